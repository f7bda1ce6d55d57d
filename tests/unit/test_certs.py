"""The files in cert_dir, and the listener that uses them; openssl(1) is the second opinion."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import (
    agree,
    assert_verifies,
    hand_made,
    key_pem,
    load,
    moment,
    openssl,
    own_key,
    pem,
    shake_hands,
    trusting,
    usages,
)
from support.pairs import TIMEOUT, in_thread
from support.running import make_config

from certs import CertificateError, CertificateFiles, CertificateSettings, inspect, prepare
from tls.authority import CertificateAuthority, KeyPair
from tls.leaf_certificates import LeafCertificateCache, LeafSettings

ROOT = Path(__file__).resolve().parents[2]
KEYS = ("ca.key", "client.key", "server.key")
FILES = ("ca.crt", "ca.key", "client.crt", "client.key", "client.p12", "server.crt", "server.key", "server.p12")
HOSTS = ("origin.test", "192.0.2.1", "2001:db8::1")
LEAF_DAYS = 30
LEAF_DAYS = 30
SETTINGS: CertificateSettings = make_config(Path("unused"), None).certs
SMALL = replace(SETTINGS, rsa_key_bits=1024)  # for what shakes no hands: a key of 2048 bits takes 100 ms


@contextmanager
def writes() -> Iterator[List[str]]:
    """What dduct.certs logs as written, as its lines say it; whatever others have done to the logger."""
    lines: List[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("dduct.certs"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


@pytest.fixture(scope="module")
def first_start(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, List[str], CertificateAuthority]:
    """A directory as a first start leaves it (read only), what was logged, and the authority."""
    directory = tmp_path_factory.mktemp("first") / "deeper" / "certs"
    with writes() as lines:
        authority = prepare(directory, SETTINGS)
    return directory, lines, authority


@pytest.fixture(scope="module")
def made(first_start: Tuple[Path, List[str], CertificateAuthority]) -> Path:
    """A directory as a first start leaves it. Read only."""
    return first_start[0]


@pytest.fixture(scope="module")
def authority(first_start: Tuple[Path, List[str], CertificateAuthority]) -> CertificateAuthority:
    return first_start[2]


@pytest.fixture(scope="module")
def elliptic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with EC keys, which are read in no time. Read only."""
    directory = tmp_path_factory.mktemp("elliptic")
    own, *keys = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    authority = CertificateAuthority(KeyPair(own, hand_made(own, SETTINGS.ca_cn)))
    for name, pair in (
        ("ca", KeyPair(own, authority.certificate)),
        ("server", authority.issue_server(keys[0], SETTINGS.server_cn, SETTINGS.server_dns_sans, 365)),
        ("client", authority.issue_client(keys[1], SETTINGS.client_cn, 365)),
    ):
        (directory / f"{name}.key").write_bytes(pair.key_pem)
        (directory / f"{name}.crt").write_bytes(pair.certificate_pem)
        (directory / f"{name}.key").chmod(0o600)
    prepare(directory, SMALL)  # adds the bundles
    return directory


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with small RSA keys. Read only."""
    directory = tmp_path_factory.mktemp("small")
    prepare(directory, SMALL)
    return directory


@pytest.fixture
def copy(elliptic: Path, tmp_path: Path) -> Path:
    """That with EC keys, to be damaged."""
    shutil.copytree(elliptic, tmp_path / "certs")
    return tmp_path / "certs"


def content(directory: Path) -> Dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def names_in(directory: Path) -> Tuple[str, ...]:
    return tuple(sorted(os.listdir(directory)))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


# --- the first start and those after it ---------------------------------------------------------


def test_the_first_start_writes_eight_files_and_logs_each(
    first_start: Tuple[Path, List[str], CertificateAuthority],
) -> None:
    directory, lines, _ = first_start
    assert names_in(directory) == FILES
    assert sorted(lines) == [f'Write "{directory / name}"' for name in FILES]


def test_keys_and_bundles_are_readable_by_their_owner_only(made: Path) -> None:
    assert {name: mode(made / name) for name in FILES if not name.endswith(".crt")} == {
        name: 0o600 for name in FILES if not name.endswith(".crt")
    }
    assert {mode(made / name) for name in FILES if name.endswith(".crt")} == {0o644}


def test_the_directory_is_made_for_its_owner_only(made: Path) -> None:
    assert mode(made) == 0o700


def test_modes_do_not_depend_on_the_umask(tmp_path: Path, copy: Path) -> None:
    (copy / "server.key").unlink()
    (copy / "server.crt").unlink()
    before = os.umask(0)
    try:
        prepare(copy, SMALL)
        prepare(tmp_path / "new", replace(SMALL, server_dns_sans=()))
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == 0o700
    for name in KEYS:
        assert mode(copy / name) == mode(tmp_path / "new" / name) == 0o600
    assert mode(copy / "server.crt") == 0o644


def test_a_later_start_writes_nothing_and_has_the_same_authority(copy: Path) -> None:
    before = content(copy)
    stamps = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    with writes() as lines:
        again = prepare(copy, SMALL)
    assert lines == []
    assert content(copy) == before
    assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == stamps
    assert again.pem == before["ca.crt"]
    assert again.key_pem == before["ca.key"]


@pytest.mark.parametrize("who", ["server", "client"])
def test_a_deleted_certificate_is_issued_again_by_the_same_authority(copy: Path, who: str) -> None:
    before = content(copy)
    for suffix in ("key", "crt", "p12"):
        (copy / f"{who}.{suffix}").unlink()
    with writes() as lines:
        again = prepare(copy, SMALL)
    written = [f"{who}.{suffix}" for suffix in ("crt", "key", "p12")]
    assert sorted(lines) == [f'Write "{copy / name}"' for name in written]
    assert sorted(name for name, data in content(copy).items() if data != before[name]) == written
    assert again.pem == before["ca.crt"]
    assert_verifies(copy / "ca.crt", copy / f"{who}.crt")


def test_a_deleted_bundle_is_made_again_from_the_same_certificate(copy: Path) -> None:
    before = content(copy)
    (copy / "client.p12").unlink()
    with writes() as lines:
        prepare(copy, SMALL)
    assert lines == [f'Write "{copy / "client.p12"}"']
    assert {name for name, data in content(copy).items() if data != before[name]} <= {"client.p12"}
    assert bundled(copy / "client.p12") == [load(copy / "client.crt"), load(copy / "ca.crt")]


def test_a_bundle_left_from_a_deleted_certificate_is_replaced(copy: Path) -> None:
    (copy / "server.key").unlink()
    (copy / "server.crt").unlink()
    prepare(copy, SMALL)
    assert bundled(copy / "server.p12")[0] == load(copy / "server.crt")


def test_the_authority_is_what_the_configuration_says(made: Path) -> None:
    certificate = load(made / "ca.crt")
    assert certificate.subject == certificate.issuer
    assert [name.value for name in certificate.subject] == [SETTINGS.ca_cn]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value.ca
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature
    assert rsa_bits(certificate) == SETTINGS.rsa_key_bits
    assert moment(certificate, "not_valid_before") < datetime.now(timezone.utc)
    left = moment(certificate, "not_valid_after") - datetime.now(timezone.utc)
    assert timedelta(days=SETTINGS.days_from_now - 1) < left <= timedelta(days=SETTINGS.days_from_now)


def rsa_bits(certificate: x509.Certificate) -> int:
    key = certificate.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    return key.key_size


def test_the_server_certificate_is_for_the_names_of_the_configuration(made: Path) -> None:
    certificate = load(made / "server.crt")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == list(SETTINGS.server_dns_sans)
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == list(SETTINGS.server_ip_sans)
    assert [name.value for name in certificate.subject] == [SETTINGS.server_cn]
    assert usages(certificate) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert rsa_bits(certificate) == SETTINGS.rsa_key_bits


def test_the_server_certificate_has_no_name_with_a_star_inside(copy: Path) -> None:
    for suffix in ("key", "crt", "p12"):
        (copy / f"server.{suffix}").unlink()
    prepare(copy, replace(SMALL, server_dns_sans=("*.a.test", "*.b.*.a.test"), server_ip_sans=()))
    names = load(copy / "server.crt").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("*.a.test")]


def test_a_server_without_listed_hosts_is_certified_for_its_own_name(copy: Path) -> None:
    for suffix in ("key", "crt", "p12"):
        (copy / f"server.{suffix}").unlink()
    prepare(copy, replace(SMALL, server_dns_sans=(), server_ip_sans=()))
    names = load(copy / "server.crt").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName(SETTINGS.server_cn)]


def test_the_client_certificate_is_one_for_clients(made: Path) -> None:
    certificate = load(made / "client.crt")
    assert [name.value for name in certificate.subject] == [SETTINGS.client_cn]
    assert usages(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert_verifies(made / "ca.crt", made / "client.crt", "-purpose", "sslclient")


def test_openssl_accepts_the_server_certificate_strictly(made: Path) -> None:
    for more in (["-verify_hostname", "origin.test"], ["-verify_hostname", "a.listed.test"], ["-verify_ip", "::1"]):
        assert_verifies(made / "ca.crt", made / "server.crt", "-purpose", "sslserver", *more)


def test_names_need_not_be_ascii(tmp_path: Path) -> None:
    names = replace(SMALL, ca_cn="ü" * 32, server_cn="Büro", client_cn="Jürgen", p12_pass="schlüssel")
    prepare(tmp_path, names)
    prepare(tmp_path, names)  # finds nothing wrong with them
    for name in ("server.crt", "client.crt"):
        assert_verifies(tmp_path / "ca.crt", tmp_path / name)


# --- bundles ------------------------------------------------------------------------------------


def bundled(path: Path, password: str = "dduct") -> List[x509.Certificate]:
    """The certificates in a .p12, as plain openssl sees them."""
    done = openssl("pkcs12", "-in", path, "-passin", f"pass:{password}", "-nokeys")
    assert done.returncode == 0, done.stderr
    end = "-----END CERTIFICATE-----"
    return [
        x509.load_pem_x509_certificate((part[part.index("-----BEGIN") :] + end).encode())
        for part in done.stdout.split(end)[:-1]
    ]


@pytest.mark.parametrize("who", ["server", "client"])
def test_openssl_opens_a_bundle_and_finds_certificate_authority_and_key(made: Path, who: str) -> None:
    assert bundled(made / f"{who}.p12") == [load(made / f"{who}.crt"), load(made / "ca.crt")]
    done = openssl("pkcs12", "-in", made / f"{who}.p12", "-passin", "pass:dduct", "-nocerts", "-nodes")
    assert done.returncode == 0, done.stderr
    assert (made / f"{who}.key").read_text() in done.stdout


@pytest.mark.parametrize("who", ["server", "client"])
def test_a_bundle_does_not_open_with_another_password(made: Path, who: str) -> None:
    assert openssl("pkcs12", "-in", made / f"{who}.p12", "-passin", "pass:other", "-nokeys").returncode != 0


@pytest.mark.parametrize("password", ["", "pässwörd €"])
def test_a_bundle_opens_with_the_password_of_the_configuration(copy: Path, password: str) -> None:
    (copy / "server.p12").unlink()
    prepare(copy, replace(SMALL, p12_pass=password))
    assert bundled(copy / "server.p12", password)[0] == load(copy / "server.crt")


# --- an authority of the user's own -------------------------------------------------------------


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=1024)


@pytest.mark.parametrize(
    ("make_key", "form", "label"),
    [
        pytest.param(rsa_key, PrivateFormat.PKCS8, "PRIVATE KEY", id="RSA PKCS8"),
        pytest.param(rsa_key, PrivateFormat.TraditionalOpenSSL, "RSA PRIVATE KEY", id="RSA PKCS1"),
        pytest.param(
            lambda: ec.generate_private_key(ec.SECP256R1()), PrivateFormat.PKCS8, "PRIVATE KEY", id="P-256 PKCS8"
        ),
        pytest.param(
            lambda: ec.generate_private_key(ec.SECP384R1()),
            PrivateFormat.TraditionalOpenSSL,
            "EC PRIVATE KEY",
            id="P-384 SEC1",
        ),
    ],
)
def test_a_users_own_authority_is_used(
    tmp_path: Path, make_key: Callable[[], Any], form: PrivateFormat, label: str
) -> None:
    key = make_key()
    own = {"ca.key": key_pem(key, form), "ca.crt": pem(hand_made(key))}
    assert own["ca.key"].startswith(f"-----BEGIN {label}-----".encode())
    for name, data in own.items():
        (tmp_path / name).write_bytes(data)
    authority = prepare(tmp_path, SMALL)
    assert names_in(tmp_path) == FILES
    assert {name: (tmp_path / name).read_bytes() for name in own} == own
    assert authority.pem == own["ca.crt"]
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(pem(LeafCertificateCache(authority, LeafSettings(LEAF_DAYS)).certificate("origin.test")))
    for certificate in (leaf, tmp_path / "server.crt", tmp_path / "client.crt"):
        assert_verifies(tmp_path / "ca.crt", certificate)
    assert prepare(tmp_path, SMALL).pem == authority.pem


def test_the_key_that_openssl_ecparam_writes_is_understood(tmp_path: Path) -> None:
    done = openssl("ecparam", "-name", "prime256v1", "-genkey", "-out", tmp_path / "ca.key")
    assert done.returncode == 0, done.stderr
    assert b"EC PARAMETERS" in (tmp_path / "ca.key").read_bytes()
    done = openssl("req", "-x509", "-new", "-key", tmp_path / "ca.key", "-subj", "/CN=own", "-out", tmp_path / "ca.crt")
    assert done.returncode == 0, done.stderr
    assert [name.value for name in prepare(tmp_path, SMALL).certificate.subject] == ["own"]


def test_of_a_chain_in_ca_crt_the_first_certificate_counts(copy: Path) -> None:
    first = (copy / "ca.crt").read_bytes()
    chain = b"about this file\n" + first + pem(hand_made(own_key)) + b"-----BEGIN CERT"
    (copy / "ca.crt").write_bytes(chain)
    assert prepare(copy, SMALL).pem == first
    assert (copy / "ca.crt").read_bytes() == chain


# --- what is wrong in cert_dir ------------------------------------------------------------------


def complaint(directory: Path, name: str, *remedies: str) -> str:
    """The one line that refuses `directory`, which names the file and remedies; nothing is touched."""
    before = content(directory)
    with pytest.raises(CertificateError) as caught:
        prepare(directory, SMALL)
    line = str(caught.value)
    assert f'"{directory / name}"' in line
    assert [remedy for remedy in remedies if remedy not in line] == [], line
    assert "\n" not in line
    assert content(directory) == before
    return line


REMEDIES = {"ca": ("backup", "delete ca.*"), "server": ("delete server.key, server.crt and server.p12", "restart")}
BROKEN: Dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half-written": lambda data: data[: len(data) // 2],
    "one line short": lambda data: b"\n".join(data.split(b"\n")[:-2]),
    "garbage": lambda data: bytes(range(256)) * 4,
    "garbage inside": lambda data: data[:100] + b"!" * 64 + data[164:],
    "something else": lambda data: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
}


def test_a_server_certificate_that_vanishes_meanwhile_is_named(copy: Path) -> None:
    """Between two reads of a start, or of a reload."""
    (copy / "server.crt").unlink()
    with pytest.raises(CertificateError, match=r"server\.crt"):
        CertificateFiles(copy).server_valid_from()


@pytest.mark.parametrize("how", list(BROKEN))
@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "server.key", "server.crt", "client.crt"])
def test_a_damaged_file_is_refused_and_named(copy: Path, name: str, how: str) -> None:
    (copy / name).write_bytes(BROKEN[how]((copy / name).read_bytes()))
    line = complaint(copy, name, "delete", "restart", *REMEDIES.get(name.split(".")[0], ()))
    assert ("private key" if name.endswith(".key") else "certificate") in line


@pytest.mark.parametrize("who", ["ca", "server", "client"])
def test_a_key_that_is_not_the_certificates_is_refused(copy: Path, who: str) -> None:
    (copy / f"{who}.key").write_bytes(key_pem(own_key))
    line = complaint(copy, f"{who}.key", "is not the key of", *REMEDIES.get(who, ()))
    assert f'"{copy / f"{who}.crt"}"' in line


@pytest.mark.parametrize("who", ["ca", "server", "client"])
@pytest.mark.parametrize("missing", ["key", "crt"])
def test_a_certificate_or_key_without_the_other_is_refused(copy: Path, who: str, missing: str) -> None:
    (copy / f"{who}.{missing}").unlink()
    line = complaint(copy, f"{who}.{missing}", "is there without", *REMEDIES.get(who, ()))
    assert f'"{copy / who}.{"crt" if missing == "key" else "key"}"' in line


def put_own_authority(directory: Path, certificate: x509.Certificate, key: Any = own_key) -> None:
    (directory / "ca.key").write_bytes(key_pem(key))
    (directory / "ca.crt").write_bytes(pem(certificate))


def test_an_expired_authority_is_refused_with_its_date(copy: Path) -> None:
    certificate = hand_made(own_key, ends=timedelta(days=-1))
    put_own_authority(copy, certificate)
    complaint(copy, "ca.crt", f"expired on {moment(certificate, 'not_valid_after'):%Y-%m-%d}", *REMEDIES["ca"])


def test_the_error_for_a_future_authority_mentions_the_clock(copy: Path) -> None:
    certificate = hand_made(own_key, starts=timedelta(days=3))
    put_own_authority(copy, certificate)
    complaint(copy, "ca.crt", f"not valid before {moment(certificate, 'not_valid_before'):%Y-%m-%d}", "clock")


def test_an_expired_server_certificate_is_refused_with_its_remedy(copy: Path) -> None:
    (copy / "server.key").write_bytes(key_pem(own_key))
    (copy / "server.crt").write_bytes(pem(hand_made(own_key, ends=timedelta(days=-1))))
    complaint(copy, "server.crt", "expired on", *REMEDIES["server"])


def test_an_authority_that_ends_soon_is_used_with_a_warning(tmp_path: Path) -> None:
    put_own_authority(tmp_path, hand_made(own_key, ends=timedelta(days=20)))
    with writes() as lines:
        prepare(tmp_path, SMALL)
    assert [line for line in lines if line.startswith(f'"{tmp_path / "ca.crt"}" expires on ')] != []


@pytest.mark.parametrize("ca", [False, None], ids=["says no", "does not say"])
def test_a_certificate_that_is_no_authority_is_refused(copy: Path, ca: Optional[bool]) -> None:
    put_own_authority(copy, hand_made(own_key, ca=ca))
    complaint(copy, "ca.crt", "no certificate authority", *REMEDIES["ca"])


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_key_is_refused_with_the_command_that_decrypts_it(copy: Path, form: PrivateFormat) -> None:
    put_own_authority(copy, hand_made(own_key))
    (copy / "ca.key").write_bytes(key_pem(own_key, form, BestAvailableEncryption(b"secret")))
    complaint(copy, "ca.key", "is encrypted", "openssl pkey -in ca.key")


def test_a_key_that_is_neither_rsa_nor_ec_is_refused(copy: Path) -> None:
    (copy / "ca.key").write_bytes(key_pem(dsa.generate_private_key(key_size=1024)))
    complaint(copy, "ca.key", "neither an RSA nor an EC key", *REMEDIES["ca"])


@pytest.mark.parametrize("common_name", ["own", SETTINGS.ca_cn], ids=["another name", "the same name"])
def test_a_server_certificate_of_another_authority_is_refused(copy: Path, common_name: str) -> None:
    put_own_authority(copy, hand_made(own_key, common_name))
    line = complaint(copy, "server.crt", "was not issued by", *REMEDIES["server"])
    assert f'"{copy / "ca.crt"}"' in line


OF_THE_AUTHORITY = ("ca.key", "ca.crt")


@pytest.mark.parametrize(
    "left",
    [
        tuple(name for name in FILES if name not in OF_THE_AUTHORITY),
        ("server.crt",),
        ("server.key",),
        ("client.p12",),
        ("client.crt", "client.key"),
    ],
)
def test_no_new_authority_is_made_if_the_old_one_is_missing(copy: Path, left: Tuple[str, ...]) -> None:
    for name in set(FILES) - set(left):
        (copy / name).unlink()
    before = content(copy)
    for act in (lambda: prepare(copy, SMALL), lambda: inspect(copy)):
        with pytest.raises(CertificateError) as caught:
            act()
        line = str(caught.value)
        assert "\n" not in line and f'misc.cert_dir "{copy}"' in line
        assert all(word in line for word in (*left, "neither ca.key nor ca.crt", "backup", "delete"))
        assert content(copy) == before


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "server.key", "client.crt"])
def test_a_link_to_nothing_is_refused_and_not_replaced(copy: Path, name: str) -> None:
    """What it leads to may just not be mounted."""
    (copy / name).unlink()
    (copy / name).symlink_to("/nowhere/at/all")
    with pytest.raises(CertificateError, match=rf'/{name}" is a link to "/nowhere/at/all", which is not there'):
        prepare(copy, SMALL)
    assert (copy / name).is_symlink()


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_certificate_and_key_as_links_to_nothing_are_refused(tmp_path: Path, name: str) -> None:
    for other in OF_THE_AUTHORITY:
        (tmp_path / other).symlink_to("/nowhere/at/all")
    with pytest.raises(CertificateError, match="is a link to"):
        prepare(tmp_path, SMALL)
    assert names_in(tmp_path) == ("ca.crt", "ca.key")


def test_a_directory_that_is_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "certs").symlink_to("not-mounted")
    with pytest.raises(CertificateError, match=r'misc\.cert_dir ".*/certs" is a link to "not-mounted"'):
        prepare(tmp_path / "certs", SMALL)


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(CertificateError, match=rf'/{name}" is no regular file'):
        in_thread(prepare, copy, SMALL).result(TIMEOUT)


def test_a_file_too_large_for_a_certificate_is_refused(copy: Path) -> None:
    with (copy / "ca.crt").open("wb") as file:
        file.truncate(2 * 1024 * 1024)
    complaint(copy, "ca.crt", "too large", *REMEDIES["ca"])


def test_an_unfinished_first_start_does_not_block_the_next(tmp_path: Path) -> None:
    """No client can trust an authority whose certificate never got its name."""
    (tmp_path / ".ca.crt.pending").write_bytes(b"-----BEGIN")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "README").touch()
    prepare(tmp_path, SMALL)
    assert set(FILES) < set(names_in(tmp_path)) and ".ca.crt.pending" not in names_in(tmp_path)


# --- looked at, and not touched -----------------------------------------------------------------


def test_inspecting_touches_nothing(elliptic: Path, tmp_path: Path) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_mode) for path in elliptic.iterdir()}
    assert inspect(elliptic) == ()
    assert inspect(tmp_path / "new/deeper") == ()
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_mode) for path in elliptic.iterdir()} == before
    assert names_in(tmp_path) == ()


def test_inspecting_accepts_what_the_next_start_repairs(copy: Path) -> None:
    os.replace(copy / "ca.crt", copy / ".ca.crt.pending")
    before = content(copy)
    assert inspect(copy) == ()
    assert content(copy) == before


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "server.key", "client.crt"])
def test_inspecting_refuses_with_the_message_of_a_start(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"spoiled")
    with pytest.raises(CertificateError) as caught:
        inspect(copy)
    assert complaint(copy, name) == str(caught.value)


def test_inspecting_refuses_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/certs"):
        with pytest.raises(CertificateError, match=r'cannot use ".*/file" in misc\.cert_dir: Not a directory'):
            inspect(tmp_path / place)


@pytest.mark.parametrize("permissions", [0o604, 0o640])
@pytest.mark.parametrize("name", ["ca.key", "server.key", "client.p12"])
def test_a_key_that_others_can_read_gets_a_warning(copy: Path, name: str, permissions: int) -> None:
    (copy / name).chmod(permissions)
    with writes() as lines:
        prepare(copy, SMALL)
    (line,) = lines
    assert inspect(copy) == (line,)
    assert str(copy / name) in line and f"{permissions:04o}" in line and "chmod 600" in line


def test_an_authority_that_may_not_sign_gets_a_warning(tmp_path: Path) -> None:
    done = openssl(
        *("req", "-x509", "-newkey", "rsa:1024", "-nodes", "-days", "90", "-subj", "/CN=mine"),
        *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=digitalSignature"),
        *("-keyout", tmp_path / "ca.key", "-out", tmp_path / "ca.crt"),
    )
    assert done.returncode == 0, done.stderr
    (line,) = inspect(tmp_path)
    assert "ca.crt" in line and "keyCertSign" in line


def test_a_directory_in_place_of_a_file_is_refused(copy: Path) -> None:
    (copy / "ca.key").unlink()
    (copy / "ca.key").mkdir()
    with pytest.raises(CertificateError, match=r'cannot use ".*/ca\.key" in misc\.cert_dir'):
        prepare(copy, SMALL)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "certs").write_bytes(b"")
    with pytest.raises(CertificateError, match=r'cannot use ".*/certs" in misc\.cert_dir'):
        prepare(tmp_path / "certs", SMALL)


# --- whole or not at all ------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_half_written(copy: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    for suffix in ("key", "crt", "p12"):
        (copy / f"server.{suffix}").unlink()
    before = content(copy)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, writes() as lines:
        patch.setattr(os, call, full)
        with pytest.raises(CertificateError, match=r"misc\.cert_dir: No space left"):
            prepare(copy, SMALL)
    assert content(copy) == before
    assert lines == []
    prepare(copy, SMALL)
    assert names_in(copy) == FILES


def test_a_file_is_complete_private_and_synced_before_it_has_its_name(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in ("key", "crt", "p12"):
        (copy / f"server.{suffix}").unlink()
    synced: List[int] = []
    seen: Dict[str, Tuple[bool, int, bytes]] = {}
    fsync, rename = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def noting_replace(source: str, target: Path) -> None:
        new = Path(source)
        assert new.parent == copy, "a rename from elsewhere is not atomic"
        seen[target.name] = (new.stat().st_ino in synced, mode(new), new.read_bytes())
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    prepare(copy, SMALL)
    seen.pop(".server.crt.pending")
    assert seen == {
        name: (True, mode(copy / name), (copy / name).read_bytes())
        for name in ("server.key", "server.crt", "server.p12")
    }


def test_eight_threads_that_start_at_once_agree_on_one_authority(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def start(_: int) -> bytes:
        barrier.wait(TIMEOUT)
        return prepare(tmp_path / "certs", SMALL).pem

    with writes() as lines, ThreadPoolExecutor(8) as pool:
        pems = list(pool.map(start, range(8)))
    assert set(pems) == {(tmp_path / "certs" / "ca.crt").read_bytes()}
    assert sorted(lines) == [f'Write "{tmp_path / "certs" / name}"' for name in FILES]
    assert names_in(tmp_path / "certs") == FILES
    assert_verifies(tmp_path / "certs" / "ca.crt", tmp_path / "certs" / "server.crt")


# --- handshakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["origin.test", "a.listed.test", "127.0.0.1", "::1"])
def test_a_strict_client_accepts_the_server_certificate(made: Path, host: str) -> None:
    assert shake_hands(CertificateFiles(made).server_context(), trusting(load(made / "ca.crt")), host)[0] == "TLSv1.3"


def test_tls_1_2_is_served_and_nothing_older(made: Path, authority: CertificateAuthority) -> None:
    leaves = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS))
    client = trusting(load(made / "ca.crt"))
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    for context in (leaves.context("origin.test"), CertificateFiles(made).server_context()):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert shake_hands(context, client, "origin.test")[0] == "TLSv1.2"


@pytest.mark.parametrize(
    ("version", "offered", "chosen"),
    [
        (ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM:ECDHE+CHACHA20", "ECDHE-RSA-AES128-GCM-SHA256"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+CHACHA20:ECDHE+AESGCM", "ECDHE-RSA-CHACHA20-POLY1305"),
        (ssl.TLSVersion.TLSv1_3, "ECDHE+AESGCM", "TLS_AES_128_GCM_SHA256"),
    ],
)
def test_the_cheapest_cipher_is_chosen(
    version: ssl.TLSVersion,
    offered: str,
    chosen: str,
    made: Path,
    authority: CertificateAuthority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenSSL's own clients put AES-256 first. Those without AES in their processors put ChaCha20 first."""
    monkeypatch.setattr("tls.openssl.has_aes", lambda _: True)
    leaves = LeafCertificateCache(authority, LeafSettings(1))
    client = trusting(load(made / "ca.crt"))
    client.maximum_version = version
    client.set_ciphers(offered)
    for context in (leaves.context("origin.test"), CertificateFiles(made).server_context()):
        assert agree(context, client, "origin.test")[2].replace("ECDSA", "RSA") == chosen


# --- found by these tests ---------------------------------------------------------------------------


def test_a_start_that_broke_off_within_a_pair_is_repaired_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def full(source: str, target: Path) -> None:
        if target.name == "ca.crt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(CertificateError):
            prepare(tmp_path, SMALL)
    prepare(tmp_path, SMALL)
    assert names_in(tmp_path) == FILES


@pytest.mark.parametrize("name", ["ca", "server", "client"])
def test_a_start_that_was_killed_within_a_pair_is_repaired_by_the_next(copy: Path, name: str) -> None:
    before = (copy / f"{name}.crt").read_bytes()
    os.replace(copy / f"{name}.crt", copy / f".{name}.crt.pending")
    prepare(copy, SMALL)
    assert (copy / f"{name}.crt").read_bytes() == before
    assert names_in(copy) == FILES


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ca.crt", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x63"),  # kind of key
        ("server.crt", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x63"),
        ("ca.crt", b"\x55\x1d\x13\x01\x01\xff\x04", b"\x55\x1d\x0f\x01\x01\xff\x04"),  # an extension twice
    ],
)
def test_a_certificate_with_damage_inside_is_refused(
    small: Path, tmp_path: Path, name: str, old: bytes, new: bytes
) -> None:
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    der = load(small / name).public_bytes(Encoding.DER)
    assert old in der
    (tmp_path / name).write_text(ssl.DER_cert_to_PEM_cert(der.replace(old, new, 1)))
    complaint(tmp_path, name)


def test_an_authority_whose_key_is_for_pss_only_works_or_is_refused(tmp_path: Path) -> None:
    for command in (
        ("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:1024", "-out", tmp_path / "ca.key"),
        ("req", "-x509", "-new", "-key", tmp_path / "ca.key", "-subj", "/CN=own", "-out", tmp_path / "ca.crt"),
    ):
        assert openssl(*command).returncode == 0
    with pytest.raises(CertificateError, match=r"ca\.key"):
        prepare(tmp_path, SMALL)


def test_a_directory_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    """An attacker who can write ca.key there can be every host."""
    place = tmp_path / "certs"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(CertificateError, match="chmod 700"):
        prepare(place, SMALL)
    assert list(place.iterdir()) == []


def test_a_constrained_authority_may_issue_dducts_own_certificates(tmp_path: Path) -> None:
    addresses = ("192.0.2.1", "2001:db8::1")
    authority = prepare(tmp_path, replace(SMALL, name_constraints=True, server_ip_sans=addresses))
    extension = authority.certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert extension.critical
    assert_verifies(tmp_path / "ca.crt", tmp_path / "server.crt", "-purpose", "sslserver")
    assert_verifies(tmp_path / "ca.crt", tmp_path / "client.crt", "-purpose", "sslclient")
