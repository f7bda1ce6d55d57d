"""The files in cert_dir, what is issued from them, and leaves in real handshakes; openssl(1) is the second opinion."""

from __future__ import annotations

import errno
import gc
import ipaddress
import logging
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support.pairs import SOON, TIMEOUT, in_thread, meet
from support.running import make_config

from certs import CertificateError, CertificateFiles, CertificateSettings, inspect, prepare
from server import config
from tls.authority import CertificateAuthority, KeyPair
from tls.leaf_certificates import LeafCertificateCache, LeafSettings

ROOT = Path(__file__).resolve().parents[2]
KEYS = ("ca.key", "client.key", "server.key")
FILES = ("ca.crt", "ca.key", "client.crt", "client.key", "client.p12", "server.crt", "server.key", "server.p12")
HOSTS = ("origin.test", "192.0.2.1", "2001:db8::1")
LEAF_DAYS = 30
SETTINGS: CertificateSettings = make_config(Path("unused"), None).certs  # 2048 bits: made in a blink

own_key = ec.generate_private_key(ec.SECP256R1())  # one key for whatever is made by hand below


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
def first_start(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, List[str]]:
    """A directory as a first start leaves it, and what was logged. Read only."""
    directory = tmp_path_factory.mktemp("first") / "deeper" / "certs"
    with writes() as lines:
        prepare(directory, SETTINGS)
    return directory, lines


@pytest.fixture(scope="module")
def made(first_start: Tuple[Path, List[str]]) -> Path:
    """A directory as a first start leaves it. Read only."""
    return first_start[0]


@pytest.fixture(scope="module")
def authority(made: Path) -> CertificateAuthority:
    return prepare(made, SETTINGS)


@pytest.fixture(scope="module")
def leaves(authority: CertificateAuthority) -> LeafCertificateCache:
    return LeafCertificateCache(authority, LeafSettings(LEAF_DAYS))


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    shutil.copytree(made, tmp_path / "certs")
    return tmp_path / "certs"


def content(directory: Path) -> Dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def names_in(directory: Path) -> Tuple[str, ...]:
    return tuple(sorted(os.listdir(directory)))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def moment(certificate: x509.Certificate, name: str) -> datetime:
    """`not_valid_before` or `not_valid_after` in UTC; the aware attribute came with cryptography 42."""
    value = getattr(certificate, f"{name}_utc", None) or getattr(certificate, name).replace(tzinfo=timezone.utc)
    assert isinstance(value, datetime)
    return value


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def key_pem(
    key: Any,
    form: PrivateFormat = PrivateFormat.PKCS8,
    encryption: Optional[KeySerializationEncryption] = None,
) -> bytes:
    data = key.private_bytes(Encoding.PEM, form, encryption or NoEncryption())
    assert isinstance(data, bytes)
    return data


def hand_made(
    key: Any,
    common_name: str = "own",
    *,
    ca: Optional[bool] = True,
    starts: timedelta = timedelta(days=-400),
    ends: timedelta = timedelta(days=400),
    identifier: Optional[bytes] = None,
) -> x509.Certificate:
    """A self-signed certificate as a user may bring it; `ca=None` leaves basicConstraints out."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.now(timezone.utc).replace(microsecond=0)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now + starts).not_valid_after(now + ends)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = builder.add_extension(usage, critical=True)
    made_from = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(x509.SubjectKeyIdentifier(identifier or made_from.digest), critical=False)
    return builder.sign(key, hashes.SHA256())


def openssl(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["openssl", *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )


def assert_verifies(ca: Path, certificate: Path, *more: str) -> None:
    done = openssl("verify", "-x509_strict", "-CAfile", ca, *more, certificate)
    assert done.returncode == 0, done.stdout + done.stderr


# --- the first start and those after it ---------------------------------------------------------


def test_the_first_start_writes_eight_files_and_logs_each(first_start: Tuple[Path, List[str]]) -> None:
    directory, lines = first_start
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
        prepare(copy, SETTINGS)
        prepare(tmp_path / "new", replace(SETTINGS, server_dns_sans=()))
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == 0o700
    for name in KEYS:
        assert mode(copy / name) == mode(tmp_path / "new" / name) == 0o600
    assert mode(copy / "server.crt") == 0o644


def test_a_later_start_writes_nothing_and_has_the_same_authority(copy: Path, authority: CertificateAuthority) -> None:
    before = content(copy)
    stamps = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    with writes() as lines:
        again = prepare(copy, SETTINGS)
    assert lines == []
    assert content(copy) == before
    assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == stamps
    assert again.pem == authority.pem == before["ca.crt"]
    assert again.key_pem == authority.key_pem == before["ca.key"]


@pytest.mark.parametrize("who", ["server", "client"])
def test_a_deleted_certificate_is_issued_again_by_the_same_authority(
    copy: Path, authority: CertificateAuthority, who: str
) -> None:
    before = content(copy)
    for suffix in ("key", "crt", "p12"):
        (copy / f"{who}.{suffix}").unlink()
    with writes() as lines:
        again = prepare(copy, SETTINGS)
    written = [f"{who}.{suffix}" for suffix in ("crt", "key", "p12")]
    assert sorted(lines) == [f'Write "{copy / name}"' for name in written]
    assert sorted(name for name, data in content(copy).items() if data != before[name]) == written
    assert again.pem == authority.pem
    assert_verifies(copy / "ca.crt", copy / f"{who}.crt")


def test_a_deleted_bundle_is_made_again_from_the_same_certificate(copy: Path) -> None:
    before = content(copy)
    (copy / "client.p12").unlink()
    with writes() as lines:
        prepare(copy, SETTINGS)
    assert lines == [f'Write "{copy / "client.p12"}"']
    assert {name for name, data in content(copy).items() if data != before[name]} <= {"client.p12"}
    assert bundled(copy / "client.p12") == [load(copy / "client.crt"), load(copy / "ca.crt")]


def test_a_bundle_left_from_a_deleted_certificate_is_replaced(copy: Path) -> None:
    (copy / "server.key").unlink()
    (copy / "server.crt").unlink()
    prepare(copy, SETTINGS)
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


def test_a_server_without_listed_hosts_is_certified_for_its_own_name(copy: Path) -> None:
    for suffix in ("key", "crt", "p12"):
        (copy / f"server.{suffix}").unlink()
    prepare(copy, replace(SETTINGS, server_dns_sans=(), server_ip_sans=()))
    names = load(copy / "server.crt").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName(SETTINGS.server_cn)]


def test_the_client_certificate_is_one_for_clients(made: Path) -> None:
    certificate = load(made / "client.crt")
    assert [name.value for name in certificate.subject] == [SETTINGS.client_cn]
    assert usages(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert_verifies(made / "ca.crt", made / "client.crt", "-purpose", "sslclient")


def usages(certificate: x509.Certificate) -> List[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_openssl_accepts_the_server_certificate_strictly(made: Path) -> None:
    for more in (["-verify_hostname", "origin.test"], ["-verify_hostname", "a.listed.test"], ["-verify_ip", "::1"]):
        assert_verifies(made / "ca.crt", made / "server.crt", "-purpose", "sslserver", *more)


def test_nothing_outlives_the_authority(authority: CertificateAuthority) -> None:
    end = moment(authority.certificate, "not_valid_after")
    assert moment(authority.issue_server(own_key, "a", ["a"], 36500).certificate, "not_valid_after") == end
    assert moment(authority.issue_client(own_key, "a", 36500).certificate, "not_valid_after") == end


def test_names_need_not_be_ascii(tmp_path: Path) -> None:
    names = replace(SETTINGS, ca_cn="ü" * 32, server_cn="Büro", client_cn="Jürgen", p12_pass="schlüssel")
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
    prepare(copy, replace(SETTINGS, p12_pass=password))
    assert bundled(copy / "server.p12", password)[0] == load(copy / "server.crt")


# --- an authority of the user's own -------------------------------------------------------------


def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


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
    authority = prepare(tmp_path, SETTINGS)
    assert names_in(tmp_path) == FILES
    assert {name: (tmp_path / name).read_bytes() for name in own} == own
    assert authority.pem == own["ca.crt"]
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(pem(LeafCertificateCache(authority, LeafSettings(LEAF_DAYS)).certificate("origin.test")))
    for certificate in (leaf, tmp_path / "server.crt", tmp_path / "client.crt"):
        assert_verifies(tmp_path / "ca.crt", certificate)
    assert prepare(tmp_path, SETTINGS).pem == authority.pem


def test_the_key_that_openssl_ecparam_writes_is_understood(tmp_path: Path) -> None:
    done = openssl("ecparam", "-name", "prime256v1", "-genkey", "-out", tmp_path / "ca.key")
    assert done.returncode == 0, done.stderr
    assert b"EC PARAMETERS" in (tmp_path / "ca.key").read_bytes()
    done = openssl("req", "-x509", "-new", "-key", tmp_path / "ca.key", "-subj", "/CN=own", "-out", tmp_path / "ca.crt")
    assert done.returncode == 0, done.stderr
    assert [name.value for name in prepare(tmp_path, SETTINGS).certificate.subject] == ["own"]


def test_of_a_chain_in_ca_crt_the_first_certificate_counts(copy: Path, authority: CertificateAuthority) -> None:
    chain = b"about this file\n" + authority.pem + pem(hand_made(own_key)) + b"-----BEGIN CERT"
    (copy / "ca.crt").write_bytes(chain)
    assert prepare(copy, SETTINGS).pem == authority.pem
    assert (copy / "ca.crt").read_bytes() == chain


def test_the_identifier_of_an_authority_is_copied_and_not_computed() -> None:
    own = CertificateAuthority(KeyPair(own_key, hand_made(own_key, identifier=b"made otherwise")))
    leaf = own.issue_server(own_key, "a", ["a"], 1).certificate
    assert authority_identifier(leaf) == b"made otherwise"


# --- what is wrong in cert_dir ------------------------------------------------------------------


def complaint(directory: Path, name: str, *remedies: str) -> str:
    """The one line that refuses `directory`, which names the file and remedies; nothing is touched."""
    before = content(directory)
    with pytest.raises(CertificateError) as caught:
        prepare(directory, SETTINGS)
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
    "garbage inside": lambda data: data[:200] + b"!" * 64 + data[264:],
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
        prepare(tmp_path, SETTINGS)
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
    for act in (lambda: prepare(copy, SETTINGS), lambda: inspect(copy)):
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
        prepare(copy, SETTINGS)
    assert (copy / name).is_symlink()


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_certificate_and_key_as_links_to_nothing_are_refused(tmp_path: Path, name: str) -> None:
    for other in OF_THE_AUTHORITY:
        (tmp_path / other).symlink_to("/nowhere/at/all")
    with pytest.raises(CertificateError, match="is a link to"):
        prepare(tmp_path, SETTINGS)
    assert names_in(tmp_path) == ("ca.crt", "ca.key")


def test_a_directory_that_is_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "certs").symlink_to("not-mounted")
    with pytest.raises(CertificateError, match=r'misc\.cert_dir ".*/certs" is a link to "not-mounted"'):
        prepare(tmp_path / "certs", SETTINGS)


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(CertificateError, match=rf'/{name}" is no regular file'):
        in_thread(prepare, copy, SETTINGS).result(TIMEOUT)


def test_a_file_too_large_for_a_certificate_is_refused(copy: Path) -> None:
    with (copy / "ca.crt").open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    complaint(copy, "ca.crt", "too large", *REMEDIES["ca"])


def test_an_unfinished_first_start_does_not_block_the_next(tmp_path: Path) -> None:
    """No client can trust an authority whose certificate never got its name."""
    (tmp_path / ".ca.crt.pending").write_bytes(b"-----BEGIN")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "README").touch()
    prepare(tmp_path, SETTINGS)
    assert set(FILES) < set(names_in(tmp_path)) and ".ca.crt.pending" not in names_in(tmp_path)


# --- looked at, and not touched -----------------------------------------------------------------


def test_inspecting_touches_nothing(made: Path, tmp_path: Path) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_mode) for path in made.iterdir()}
    assert inspect(made) == ()
    assert inspect(tmp_path / "new/deeper") == ()
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_mode) for path in made.iterdir()} == before
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
        prepare(copy, SETTINGS)
    (line,) = lines
    assert inspect(copy) == (line,)
    assert str(copy / name) in line and f"{permissions:04o}" in line and "chmod 600" in line


def test_an_authority_that_may_not_sign_gets_a_warning(tmp_path: Path) -> None:
    done = openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "90", "-subj", "/CN=mine"),
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
        prepare(copy, SETTINGS)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "certs").write_bytes(b"")
    with pytest.raises(CertificateError, match=r'cannot use ".*/certs" in misc\.cert_dir'):
        prepare(tmp_path / "certs", SETTINGS)


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
            prepare(copy, SETTINGS)
    assert content(copy) == before
    assert lines == []
    prepare(copy, SETTINGS)
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
    prepare(copy, SETTINGS)
    seen.pop(".server.crt.pending")
    assert seen == {
        name: (True, mode(copy / name), (copy / name).read_bytes())
        for name in ("server.key", "server.crt", "server.p12")
    }


def test_eight_threads_that_start_at_once_agree_on_one_authority(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def start(_: int) -> bytes:
        barrier.wait(TIMEOUT)
        return prepare(tmp_path / "certs", SETTINGS).pem

    with writes() as lines, ThreadPoolExecutor(8) as pool:
        pems = list(pool.map(start, range(8)))
    assert set(pems) == {(tmp_path / "certs" / "ca.crt").read_bytes()}
    assert sorted(lines) == [f'Write "{tmp_path / "certs" / name}"' for name in FILES]
    assert names_in(tmp_path / "certs") == FILES
    assert_verifies(tmp_path / "certs" / "ca.crt", tmp_path / "certs" / "server.crt")


# --- leaves -------------------------------------------------------------------------------------


def authority_identifier(certificate: x509.Certificate) -> Optional[bytes]:
    value = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert value.authority_cert_issuer is None and value.authority_cert_serial_number is None
    return value.key_identifier


@pytest.mark.parametrize("host", HOSTS)
def test_a_leaf_has_the_fields_that_clients_require(
    authority: CertificateAuthority, leaves: LeafCertificateCache, host: str
) -> None:
    leaf = leaves.certificate(host)
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    expected = x509.DNSName(host) if host == "origin.test" else x509.IPAddress(ipaddress.ip_address(host))
    assert list(names.value) == [expected]
    assert not names.critical
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and not constraints.value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature
    assert not usage.value.key_cert_sign and not usage.value.key_encipherment
    assert usages(leaf) == [ExtendedKeyUsageOID.SERVER_AUTH]
    ca_identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert authority_identifier(leaf) == ca_identifier.digest
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1"
    assert leaf.issuer == authority.certificate.subject
    assert authority.issued(leaf)


def test_a_leaf_begins_in_the_past_and_ends_after_its_days(leaves: LeafCertificateCache) -> None:
    leaf, now = leaves.certificate("origin.test"), datetime.now(timezone.utc)
    assert moment(leaf, "not_valid_before") <= now - timedelta(days=1)
    left = moment(leaf, "not_valid_after") - now
    assert timedelta(days=LEAF_DAYS - 2) - timedelta(minutes=10) < left <= timedelta(days=LEAF_DAYS)


@pytest.mark.parametrize("host", [*HOSTS, "a_b.origin.test", ".".join(["long"] * 40)])
def test_openssl_accepts_a_leaf_strictly(made: Path, leaves: LeafCertificateCache, tmp_path: Path, host: str) -> None:
    path = tmp_path / "leaf.pem"
    path.write_bytes(pem(leaves.certificate(host)))
    check = "-verify_ip" if host in HOSTS[1:] else "-verify_hostname"
    assert_verifies(made / "ca.crt", path, "-purpose", "sslserver", check, host)
    assert openssl("verify", "-CAfile", made / "ca.crt", "-verify_hostname", "other.test", path).returncode != 0


def test_a_name_too_long_for_a_subject_stands_in_a_critical_extension(leaves: LeafCertificateCache) -> None:
    leaf = leaves.certificate(".".join(["long"] * 40))
    assert list(leaf.subject) == []
    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical


def test_serial_numbers_differ(leaves: LeafCertificateCache) -> None:
    assert len({leaves.certificate(f"{number}.test").serial_number for number in range(20)}) == 20


def test_an_authority_recognizes_its_certificates(authority: CertificateAuthority) -> None:
    impostor = CertificateAuthority(KeyPair(own_key, hand_made(own_key, SETTINGS.ca_cn)))
    ours = authority.issue_server(own_key, "a", ["a"], 1).certificate
    theirs = impostor.issue_server(own_key, "a", ["a"], 1).certificate
    assert authority.issued(ours) and impostor.issued(theirs)
    assert not authority.issued(theirs) and not impostor.issued(ours)


class Mint:
    """Stands in for `issue_leaf`: counts, and lets a test do something while a leaf is minted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts: List[str] = []
        self.before: Callable[[str], None] = lambda host: None
        real = CertificateAuthority.issue_leaf

        def issue_leaf(authority: CertificateAuthority, key: Any, host: str, *rest: Any) -> KeyPair:
            self.hosts.append(host)
            self.before(host)
            return real(authority, key, host, *rest)

        monkeypatch.setattr(CertificateAuthority, "issue_leaf", issue_leaf)


@pytest.fixture
def mint(monkeypatch: pytest.MonkeyPatch, authority: CertificateAuthority) -> Mint:
    return Mint(monkeypatch)


def test_a_host_keeps_its_context(authority: CertificateAuthority, mint: Mint) -> None:
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS))
    contexts = [store.context("a"), store.context("b"), store.context("a")]
    assert contexts[0] is contexts[2] and contexts[0] is not contexts[1]
    assert store.certificate("a") is store.certificate("a")
    assert mint.hosts == ["a", "b"]


def test_sixteen_threads_that_ask_for_a_host_cause_one_leaf(authority: CertificateAuthority, mint: Mint) -> None:
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS))
    barrier, two_at_once = threading.Barrier(16), threading.Barrier(2)

    def linger(_: str) -> None:
        with pytest.raises(threading.BrokenBarrierError):
            two_at_once.wait(SOON)  # a second mint would meet the first here

    def ask(_: int) -> ssl.SSLContext:
        barrier.wait(TIMEOUT)
        return store.context("a")

    mint.before = linger
    with ThreadPoolExecutor(16) as pool:
        contexts = list(pool.map(ask, range(16)))
    assert mint.hosts == ["a"]
    assert {id(context) for context in contexts} == {id(store.context("a"))}


def test_minting_for_one_host_delays_no_other(authority: CertificateAuthority, mint: Mint) -> None:
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS))
    reached, go_on = threading.Event(), threading.Event()

    def hold_a(host: str) -> None:
        if host == "a":
            reached.set()
            assert go_on.wait(TIMEOUT)

    mint.before = hold_a
    slow = in_thread(store.context, "a")
    assert reached.wait(TIMEOUT)
    quick = in_thread(store.context, "b")
    try:
        assert isinstance(quick.result(TIMEOUT / 2), ssl.SSLContext)
        assert not slow.done()
    finally:
        go_on.set()
    assert slow.result(TIMEOUT) is store.context("a")


def test_a_failed_mint_is_raised_once_and_does_not_block_the_host(authority: CertificateAuthority, mint: Mint) -> None:
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS))

    def fail(_: str) -> None:
        raise ValueError("no")

    mint.before = fail
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            in_thread(store.context, "a").result(TIMEOUT / 2)
    mint.before = lambda host: None
    assert in_thread(store.context, "a").result(TIMEOUT / 2) is store.context("a")


def test_the_least_recently_used_leaf_goes_first(authority: CertificateAuthority, mint: Mint) -> None:
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS), capacity=2)
    for host in ("a", "b", "a", "c", "a", "c", "b"):
        store.context(host)
    assert mint.hosts == ["a", "b", "c", "b"]


def test_the_number_of_cached_contexts_is_limited(authority: CertificateAuthority) -> None:
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS), capacity=3)
    contexts = [weakref.ref(store.context(f"{number}.test")) for number in range(10)]
    gc.collect()
    assert [number for number, context in enumerate(contexts) if context() is not None] == [7, 8, 9]


def test_a_leaf_is_issued_again_well_before_it_ends(authority: CertificateAuthority, mint: Mint) -> None:
    now = [time.time()]
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS), clock=lambda: now[0])
    first = store.context("a")
    end = moment(store.certificate("a"), "not_valid_after").timestamp()
    now[0] += (end - now[0]) / 2
    assert store.context("a") is first
    now[0] = end - 2 * 86400
    second = store.context("a")
    assert second is not first
    assert mint.hosts == ["a", "a"]


DAY = 86400.0


@pytest.mark.parametrize("ask", [LeafCertificateCache.context, LeafCertificateCache.get_cached])
@pytest.mark.parametrize(("ahead", "same"), [(30 * DAY, False), (1000 * DAY, False), (1.5 * DAY, False), (60, True)])
def test_a_leaf_minted_while_the_clock_was_ahead_is_minted_again(
    authority: CertificateAuthority,
    mint: Mint,
    ahead: float,
    same: bool,
    ask: Callable[[LeafCertificateCache, str], Optional[ssl.SSLContext]],
) -> None:
    """Some of what it is dated back has to be left, too: the clocks of clients may be late."""
    now = [time.time() + ahead]
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS), clock=lambda: now[0])
    first = store.context("a")
    now[0] = time.time()
    assert (ask(store, "a") is first) is same
    again = store.context("a")
    assert ask(store, "a") is again  # and it stays
    assert moment(store.certificate("a"), "not_valid_before") < datetime.now(timezone.utc) - timedelta(hours=20)
    assert mint.hosts == (["a"] if same else ["a", "a"])


def test_an_authority_that_is_not_valid_yet_is_logged(
    authority: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    begin = moment(authority.certificate, "not_valid_before")
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS), clock=lambda: begin.timestamp() - DAY)
    with caplog.at_level(logging.WARNING, "dduct.leaves"):
        store.context("a")
        store.context("b")
    (line,) = caplog.messages
    assert f"before {begin:%Y-%m-%d %H:%M}" in line and "clock" in line


def test_a_leaf_key_never_touches_the_disk(
    authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file")

    monkeypatch.chdir(tmp_path)
    for name in ("mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile"):
        monkeypatch.setattr(tempfile, name, forbidden)
    opened: List[str] = []
    real = ssl.SSLContext.load_cert_chain

    def load_cert_chain(context: ssl.SSLContext, certfile: Any, *rest: Any) -> None:
        opened.append(os.readlink(certfile))
        real(context, certfile, *rest)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_cert_chain)
    LeafCertificateCache(authority, LeafSettings(LEAF_DAYS)).context("a")
    assert len(opened) == 1 and opened[0].startswith("/memfd:")
    assert names_in(tmp_path) == ()


# --- handshakes ---------------------------------------------------------------------------------


def trusting(ca: Path) -> ssl.SSLContext:
    """A client that is as strict as Python 3.13's, on all versions."""
    context = ssl.create_default_context(cafile=str(ca))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    assert context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED
    return context


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> Tuple[Optional[str], Optional[str]]:
    """TLS version and ALPN protocol of a handshake after which bytes went both ways."""
    return agree(server, client, name)[:2]


def agree(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> Tuple[Optional[str], Optional[str], str]:
    """The same, and the cipher."""
    near, far = socket.socketpair()
    near.settimeout(TIMEOUT)
    far.settimeout(TIMEOUT)

    def serve() -> None:
        try:
            with server.wrap_socket(far, server_side=True) as tls:
                tls.sendall(tls.recv(100).upper())
        except OSError:
            pass  # why it failed is the client's to say
        finally:
            far.close()

    served = in_thread(serve)
    try:
        with client.wrap_socket(near, server_hostname=name) as tls:
            tls.sendall(b"hello")
            assert tls.recv(100) == b"HELLO"
            return tls.version(), tls.selected_alpn_protocol(), (tls.cipher() or ("none",))[0]
    finally:
        near.close()
        served.result(TIMEOUT)


@pytest.mark.parametrize("host", HOSTS)
def test_a_strict_client_accepts_a_leaf(made: Path, leaves: LeafCertificateCache, host: str) -> None:
    assert shake_hands(leaves.context(host), trusting(made / "ca.crt"), host) == ("TLSv1.3", None)


@pytest.mark.parametrize("host", HOSTS)
def test_a_client_refuses_a_leaf_for_another_host(made: Path, leaves: LeafCertificateCache, host: str) -> None:
    for other in {*HOSTS, "other.test", "192.0.2.2", "2001:db8::2"} - {host}:
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            shake_hands(leaves.context(host), trusting(made / "ca.crt"), other)


def test_a_client_of_another_authority_refuses_a_leaf(leaves: LeafCertificateCache, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(pem(hand_made(own_key, SETTINGS.ca_cn)))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(leaves.context("origin.test"), trusting(tmp_path / "other.pem"), "origin.test")


@pytest.mark.parametrize("host", ["origin.test", "a.listed.test", "127.0.0.1", "::1"])
def test_a_strict_client_accepts_the_server_certificate(made: Path, host: str) -> None:
    assert shake_hands(CertificateFiles(made).server_context(), trusting(made / "ca.crt"), host)[0] == "TLSv1.3"


def test_tls_1_2_is_served_and_nothing_older(made: Path, leaves: LeafCertificateCache) -> None:
    client = trusting(made / "ca.crt")
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
    version: ssl.TLSVersion, offered: str, chosen: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL's own clients put AES-256 first. Those without AES in their processors put ChaCha20 first."""
    monkeypatch.setattr("tls.openssl.has_aes", lambda _: True)
    leaves = LeafCertificateCache(prepare(made, SETTINGS), LeafSettings(1))
    client = trusting(made / "ca.crt")
    client.maximum_version = version
    client.set_ciphers(offered)
    for context in (leaves.context("origin.test"), CertificateFiles(made).server_context()):
        assert agree(context, client, "origin.test")[2].replace("ECDSA", "RSA") == chosen


def test_http_1_1_is_chosen_and_http_2_is_not(made: Path, leaves: LeafCertificateCache) -> None:
    client = trusting(made / "ca.crt")
    client.set_alpn_protocols(["h2", "http/1.1"])
    assert shake_hands(leaves.context("origin.test"), client, "origin.test") == ("TLSv1.3", "http/1.1")


def test_an_elliptic_authority_of_the_users_own_serves_a_handshake(tmp_path: Path) -> None:
    put_own_authority(tmp_path, hand_made(own_key))
    own = CertificateAuthority(KeyPair(own_key, load(tmp_path / "ca.crt")))
    context = LeafCertificateCache(own, LeafSettings(LEAF_DAYS)).context("::1")
    assert shake_hands(context, trusting(tmp_path / "ca.crt"), "::1")[0] == "TLSv1.3"


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
            prepare(tmp_path, SETTINGS)
    prepare(tmp_path, SETTINGS)
    assert names_in(tmp_path) == FILES


@pytest.mark.parametrize("name", ["ca", "server", "client"])
def test_a_start_that_was_killed_within_a_pair_is_repaired_by_the_next(copy: Path, name: str) -> None:
    before = (copy / f"{name}.crt").read_bytes()
    os.replace(copy / f"{name}.crt", copy / f".{name}.crt.pending")
    prepare(copy, SETTINGS)
    assert (copy / f"{name}.crt").read_bytes() == before
    assert names_in(copy) == FILES


def test_a_leaf_lives_no_longer_than_its_days(leaves: LeafCertificateCache) -> None:
    leaf = leaves.certificate("origin.test")
    life = moment(leaf, "not_valid_after") - moment(leaf, "not_valid_before")
    assert life <= timedelta(days=LEAF_DAYS)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ca.crt", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x63"),  # kind of key
        ("server.crt", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x63"),
        ("ca.crt", b"\x55\x1d\x13\x01\x01\xff\x04", b"\x55\x1d\x0f\x01\x01\xff\x04"),  # an extension twice
    ],
)
def test_a_certificate_with_damage_inside_is_refused(copy: Path, name: str, old: bytes, new: bytes) -> None:
    der = load(copy / name).public_bytes(Encoding.DER)
    assert old in der
    (copy / name).write_text(ssl.DER_cert_to_PEM_cert(der.replace(old, new, 1)))
    complaint(copy, name)


def test_an_authority_whose_key_is_for_pss_only_works_or_is_refused(tmp_path: Path) -> None:
    for command in (
        ("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048", "-out", tmp_path / "ca.key"),
        ("req", "-x509", "-new", "-key", tmp_path / "ca.key", "-subj", "/CN=own", "-out", tmp_path / "ca.crt"),
    ):
        assert openssl(*command).returncode == 0
    with pytest.raises(CertificateError, match=r"ca\.key"):
        prepare(tmp_path, SETTINGS)


def test_a_directory_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    """An attacker who can write ca.key there can be every host."""
    place = tmp_path / "certs"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(CertificateError, match="chmod 700"):
        prepare(place, SETTINGS)
    assert list(place.iterdir()) == []


def test_certificate_caches_with_one_secret_resume_each_others_sessions(
    made: Path, authority: CertificateAuthority, leaves: LeafCertificateCache
) -> None:
    """As workers do, among which a client cannot choose."""
    client = trusting(made / "ca.crt")
    first, second = (LeafCertificateCache(authority, LeafSettings(LEAF_DAYS), ticket_secret=b"x") for _ in range(2))
    before = meet(first.context("a.test"), client, name="a.test")
    for store, host, resumed in ((second, "a.test", True), (second, "b.test", False), (leaves, "a.test", False)):
        assert meet(store.context(host), client, before.session, host).session_reused is resumed


# --- an authority that is believed for little -------------------------------------------------------


@pytest.fixture(scope="module")
def constrained(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, CertificateAuthority]:
    directory = tmp_path_factory.mktemp("constrained") / "certs"
    certificate_settings = replace(SETTINGS, name_constraints=True, server_ip_sans=("192.0.2.1", "2001:db8::1"))
    return directory, prepare(directory, certificate_settings)


@pytest.mark.parametrize("host", ["origin.test", "below.origin.test", "a.b.listed.test", "192.0.2.1", "2001:db8::1"])
def test_clients_accept_a_constrained_authority_for_listed_hosts(
    constrained: Tuple[Path, CertificateAuthority], host: str
) -> None:
    directory, authority = constrained
    assert authority.may_certify(host)
    context = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS)).context(host)
    assert shake_hands(context, trusting(directory / "ca.crt"), host)[0] == "TLSv1.3"


@pytest.mark.parametrize("host", ["other.test", "notorigin.test", "test", "192.0.2.2", "2001:db8::2"])
def test_clients_reject_a_constrained_authority_for_other_hosts(
    constrained: Tuple[Path, CertificateAuthority], host: str
) -> None:
    directory, authority = constrained
    assert not authority.may_certify(host)
    context = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS)).context(host)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        shake_hands(context, trusting(directory / "ca.crt"), host)


def test_a_constrained_authority_may_issue_dducts_own_certificates(
    constrained: Tuple[Path, CertificateAuthority],
) -> None:
    directory, authority = constrained
    extension = authority.certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert extension.critical
    assert_verifies(directory / "ca.crt", directory / "server.crt", "-purpose", "sslserver")
    assert_verifies(directory / "ca.crt", directory / "client.crt", "-purpose", "sslclient")


@pytest.mark.parametrize(
    ("count", "addresses"), [(1021, ("127.0.0.1",)), (1022, ("127.0.0.1",)), (1021, ()), (1022, ())]
)
def test_openssl_verifies_as_many_constrained_hosts_as_the_configuration_takes(
    tmp_path: Path, count: int, addresses: Tuple[str, ...]
) -> None:
    hosts = tuple(f"h{number}.test" for number in range(count))
    settings = config.defaults(tmp_path).certs
    comparisons = config.comparisons(replace(settings, server_dns_sans=hosts, server_ip_sans=addresses))
    names = replace(SETTINGS, name_constraints=True, server_dns_sans=hosts, server_ip_sans=addresses)
    prepare(tmp_path / "certs", names)
    done = openssl("verify", "-CAfile", tmp_path / "certs/ca.crt", tmp_path / "certs/server.crt")
    assert (done.returncode == 0) is (comparisons <= 2**20)


def test_a_constrained_authority_without_listed_addresses_covers_no_address(tmp_path: Path) -> None:
    certificate_settings = replace(SETTINGS, name_constraints=True, server_ip_sans=())
    authority = prepare(tmp_path / "certs", certificate_settings)
    for host in ("127.0.0.1", "::1"):
        assert not authority.may_certify(host)
        context = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS)).context(host)
        with pytest.raises(ssl.SSLCertVerificationError, match="excluded subtree violation"):
            shake_hands(context, trusting(tmp_path / "certs/ca.crt"), host)


def test_an_authority_without_constraints_may_issue_for_every_host(authority: CertificateAuthority) -> None:
    assert authority.may_certify("anything.at.all") and authority.may_certify("203.0.113.1")


def test_a_root_is_not_sent_to_clients_that_have_it(authority: CertificateAuthority) -> None:
    assert authority.chain_pem == b""


@pytest.mark.parametrize("verifying", [False, True])
def test_the_root_that_clients_have_is_not_sent_to_them(authority: CertificateAuthority, verifying: bool) -> None:
    """Only where it has to be known here to verify clients: OpenSSL then puts it into the chain by itself."""
    context = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS, verifying)).context("origin.test")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello, rest = ssl.MemoryBIO(), ssl.MemoryBIO()
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    client = trusting.wrap_bio(rest, hello, server_hostname="origin.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(hello.read())
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    flight = outgoing.read()
    rest.write(flight)
    client.do_handshake()
    leaf = client.getpeercert(binary_form=True)
    assert leaf is not None
    root = ssl.PEM_cert_to_DER_cert(authority.pem.decode())
    assert (len(flight) > len(leaf) + len(root)) is verifying
