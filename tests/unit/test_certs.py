"""The files in cert_dir, and the listener that uses them; openssl(1) is the second opinion."""

from __future__ import annotations

import errno
import os
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.cert_dirs import (
    FILES,
    KEYS,
    SETTINGS,
    SMALL,
    content,
    mode,
    names_in,
    writes,
)
from support.certificates import (
    agree,
    assert_verifies,
    load,
    moment,
    openssl,
    shake_hands,
    trusting,
    usages,
)
from support.pairs import TIMEOUT

from certs import CertificateError, CertificateFiles, prepare
from tls.authority import CertificateAuthority
from tls.leaf_certificates import LeafCertificateCache, LeafSettings

LEAF_DAYS = 30
HOSTS = ("origin.test", "192.0.2.1", "2001:db8::1")


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
