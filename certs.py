"""The files in cert_dir, made at the first start and checked at every start.

Rules of this module:

* A private key file is complete and has mode 0600, or it does not exist.
* Files in cert_dir are checked before use; an error is one line that names the file and the remedy.
* `tls/authority.py` issues the certificates.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import logging
import os
import re
import ssl
import stat
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Callable, Iterator, Optional, Tuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PublicFormat,
    load_pem_private_key,
    pkcs12,
)

from tls.authority import CertificateAuthority, KeyPair, PrivateKey, may_be_named, may_sign, not_after, not_before
from tls.openssl import server_context

_log = logging.getLogger("dduct.certs")

_EXPIRY_WARNING = timedelta(days=30)
_PSS_ONLY = bytes.fromhex("06092a864886f70d01010a")  # the OID 1.2.840.113549.1.1.10 in DER
_PAIRS = ("ca", "server", "client")
_OF_AN_AUTHORITY = re.compile(r"(?:ca|server|client|leaf|leaves)(?:\..*)?", re.DOTALL)
_MAX_LISTED = 20  # file names in a message
_LARGEST_FILE = 1024 * 1024  # bytes of a PEM file, which may hold a chain and comments
_PEM_END = b"-----END CERTIFICATE-----"


class CertificateError(Exception):
    """A file in cert_dir is unusable; the message is one line that names it and the remedy."""


@dataclass(frozen=True)
class CertificateSettings:
    """Names, key sizes and lifetimes for certificates of the first start."""

    rsa_key_bits: int
    days_from_now: int
    ca_cn: str
    server_cn: str
    server_dns_sans: Tuple[str, ...]
    server_ip_sans: Tuple[str, ...]
    client_cn: str
    p12_pass: str
    name_constraints: bool = False

    @property
    def hosts(self) -> Tuple[str, ...]:
        """The hosts that a new authority may certify, if `name_constraints`."""
        return (*self.server_dns_sans, *self.server_ip_sans, self.server_cn, self.client_cn)


@dataclass(frozen=True)
class CertificateFiles:
    """The paths in cert_dir."""

    directory: Path

    def path(self, name: str) -> Path:
        """A file's path, such as `path('ca.crt')`."""
        return self.directory / name

    def server_context(self) -> ssl.SSLContext:
        """The TLS listener's context. Raises OSError."""
        pem = self.path("server.crt").read_bytes() + self.path("server.key").read_bytes()
        return server_context(pem)

    def server_valid_from(self) -> float:
        """When server.crt becomes valid (Unix time). Raises CertificateError."""
        with _named_errors(self.directory):
            return not_before(_read_certificate(self.path("server.crt"), _reissued("server"))).timestamp()


def prepare(directory: Path, certificate_settings: CertificateSettings) -> CertificateAuthority:
    """Make missing files in `directory`, check the others, return the authority. Raises CertificateError."""
    files = CertificateFiles(directory)
    with _named_errors(directory):
        _check_link(directory)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_directory(directory)
        with _locked(directory):
            for name in _PAIRS:
                _recover(files, name)
            authority = _read_authority(files) or _make_authority(files, certificate_settings)
            _server(files, certificate_settings, authority)
            _client(files, certificate_settings, authority)
            for concern in _concerns(files):
                _log.warning("%s", concern)
    return authority


def inspect(directory: Path) -> Tuple[str, ...]:
    """The warnings that `prepare` would log; changes nothing. Raises CertificateError where `prepare` would."""
    files = CertificateFiles(directory)
    with _named_errors(directory):
        _check_link(directory)
        if not directory.exists():
            _check_writable(directory)
            return ()
        _check_directory(directory)
        authority = _read_authority(files)
        missing = authority is None
        for name in ("server", "client"):
            pair = None if authority is None else _read_issued(files, name, authority)
            missing = missing or pair is None or not files.path(f"{name}.p12").exists()
        if missing:
            _check_writable(directory)
        return tuple(_concerns(files))


@contextmanager
def _named_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CertificateError(
            f'cannot use "{error.filename or directory}" in misc.cert_dir: {error.strerror or error}'
        ) from error


def _check_link(directory: Path) -> None:
    if directory.is_symlink() and not directory.exists():
        raise CertificateError(
            f'misc.cert_dir "{directory}" is a link to "{os.readlink(directory)}", which is not there; mount or make it'
        )


def _check_directory(directory: Path) -> None:
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    if status.st_mode & stat.S_IWOTH:
        raise CertificateError(f'misc.cert_dir "{directory}" is writable by everybody; chmod 700 it, and see who was')


def _check_writable(directory: Path) -> None:
    """Raise OSError if `directory`, which need not exist, cannot be written."""
    existing = directory
    while not os.path.lexists(existing):
        existing = existing.parent
    if not stat.S_ISDIR(existing.stat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))


def _concerns(files: CertificateFiles) -> Iterator[str]:
    """Warnings about files that still work."""
    for name in _PAIRS:
        key_path, certificate_path = _locate(files, name)
        for path in (key_path, files.path(f"{name}.p12")):
            if path.exists() and path.stat().st_mode & 0o077:
                mode = stat.S_IMODE(path.stat().st_mode)
                yield f'"{path}" can be read by other users (mode {mode:04o}): chmod 600 it'
        if not certificate_path.exists():
            continue
        certificate = _read_certificate(certificate_path, "")
        end = not_after(certificate)
        if datetime.now(timezone.utc) > end - _EXPIRY_WARNING:
            yield f'"{certificate_path}" expires on {end:%Y-%m-%d}'
        if name == "ca" and not may_sign(certificate):
            yield f'"{certificate_path}" may not sign (keyUsage without keyCertSign): clients will refuse all it issues'


def _read_authority(files: CertificateFiles) -> Optional[CertificateAuthority]:
    """The stored authority; None if there never was one. Raises CertificateError, OSError."""
    remains = _remains(files.directory)
    remedy = (
        f"restore it from a backup, or delete ca.*, server.* and client.* there ({remains}) and restart for a new "
        "authority, which every client then has to trust again"
    )
    pair = _read_pair(files, "ca", remedy)
    if pair is None:
        if remains:
            # No client would trust a new authority that is made silently.
            raise CertificateError(
                f'misc.cert_dir "{files.directory}" holds {remains}, but neither ca.key nor ca.crt; restore both from '
                "a backup, or delete all of these and restart for a new authority, which every client then has to "
                "trust again"
            )
        return None
    try:
        constraints = pair.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        is_authority = constraints.ca
    except x509.ExtensionNotFound:
        is_authority = False
    if not is_authority:
        raise CertificateError(f'"{files.path("ca.crt")}" is no certificate authority (basicConstraints CA); {remedy}')
    return CertificateAuthority(pair)


def _remains(directory: Path) -> str:
    """The files of an authority and its certificates, as a list for a message."""
    names = sorted(name for name in os.listdir(directory) if _OF_AN_AUTHORITY.fullmatch(name))
    return ", ".join(names[:_MAX_LISTED]) + (", …" if len(names) > _MAX_LISTED else "")


def _make_authority(files: CertificateFiles, certificate_settings: CertificateSettings) -> CertificateAuthority:
    only_for = certificate_settings.hosts if certificate_settings.name_constraints else None
    authority = CertificateAuthority.generate(
        certificate_settings.ca_cn, certificate_settings.rsa_key_bits, certificate_settings.days_from_now, only_for
    )
    _write_pair(files, "ca", authority.key_pem, authority.pem)
    return authority


def _server(
    files: CertificateFiles, certificate_settings: CertificateSettings, authority: CertificateAuthority
) -> None:
    def issue() -> KeyPair:
        key = rsa.generate_private_key(public_exponent=65537, key_size=certificate_settings.rsa_key_bits)
        hosts = [*filter(may_be_named, certificate_settings.server_dns_sans), *certificate_settings.server_ip_sans]
        return authority.issue_server(
            key,
            certificate_settings.server_cn,
            hosts or [certificate_settings.server_cn],
            certificate_settings.days_from_now,
        )

    _issued(files, "server", issue, certificate_settings.p12_pass, authority)


def _client(
    files: CertificateFiles, certificate_settings: CertificateSettings, authority: CertificateAuthority
) -> None:
    def issue() -> KeyPair:
        key = rsa.generate_private_key(public_exponent=65537, key_size=certificate_settings.rsa_key_bits)
        return authority.issue_client(key, certificate_settings.client_cn, certificate_settings.days_from_now)

    _issued(files, "client", issue, certificate_settings.p12_pass, authority)


def _issued(
    files: CertificateFiles, name: str, issue: Callable[[], KeyPair], password: str, authority: CertificateAuthority
) -> None:
    """Make or check NAME.key, NAME.crt and NAME.p12."""
    pair = _read_issued(files, name, authority)
    bundle = files.path(f"{name}.p12")
    if pair is None:
        pair = issue()
        _write_pair(files, name, pair.key_pem, pair.certificate_pem)
        bundle.unlink(missing_ok=True)
    if not bundle.exists():
        encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        data = pkcs12.serialize_key_and_certificates(
            name.encode(), pair.key, pair.certificate, [authority.certificate], encryption
        )
        _write(bundle, data, 0o600)


def _read_issued(files: CertificateFiles, name: str, authority: CertificateAuthority) -> Optional[KeyPair]:
    """NAME.key and NAME.crt, issued by `authority`; None if neither exists."""
    pair = _read_pair(files, name, _reissued(name))
    if pair is not None and not authority.issued(pair.certificate):
        raise CertificateError(
            f'"{files.path(name + ".crt")}" was not issued by "{files.path("ca.crt")}"; restore the ca.key and ca.crt '
            f"that it belongs to, or {_reissued(name)}"
        )
    return pair


def _reissued(name: str) -> str:
    return f"delete {name}.key, {name}.crt and {name}.p12 there and restart: they will be issued again"


def _read_pair(files: CertificateFiles, name: str, remedy: str) -> Optional[KeyPair]:
    """NAME.key and NAME.crt, checked; None if neither exists. Raises CertificateError, OSError."""
    key_path, certificate_path = _locate(files, name)
    present = [path for path in (key_path, certificate_path) if os.path.lexists(path)]
    if not present:
        return None
    if len(present) == 1:
        missing = certificate_path if present == [key_path] else key_path
        raise CertificateError(f'"{present[0]}" is there without "{missing}"; {remedy}')
    pair = KeyPair(_read_key(key_path, remedy), _read_certificate(certificate_path, remedy))
    if _public_der(pair.key.public_key()) != _public_der(pair.certificate.public_key()):
        raise CertificateError(f'"{key_path}" is not the key of "{certificate_path}"; {remedy}')
    now = datetime.now(timezone.utc)
    if now > not_after(pair.certificate):
        raise CertificateError(f'"{certificate_path}" expired on {not_after(pair.certificate):%Y-%m-%d}; {remedy}')
    if now < not_before(pair.certificate):
        start = not_before(pair.certificate)
        raise CertificateError(
            f'"{certificate_path}" is not valid before {start:%Y-%m-%d %H:%M} UTC, and the clock says '
            f"{now:%Y-%m-%d %H:%M} UTC: set the clock right; if it was ahead when the certificate was made, {remedy}"
        )
    return pair


def _locate(files: CertificateFiles, name: str) -> Tuple[Path, Path]:
    """Paths of key and certificate: the pending one if a start broke off after the key was written."""
    key, certificate = files.path(f"{name}.key"), files.path(f"{name}.crt")
    pending = _pending(certificate)
    broke_off = pending.exists() and os.path.lexists(key) and not os.path.lexists(certificate)
    return key, pending if broke_off else certificate


def _recover(files: CertificateFiles, name: str) -> None:
    """Finish or undo what an interrupted start left."""
    pending = _pending(files.path(f"{name}.crt"))
    if _locate(files, name)[1] == pending:
        os.replace(pending, files.path(f"{name}.crt"))
    else:
        pending.unlink(missing_ok=True)


def _read(path: Path, remedy: str) -> bytes:
    """A file's content. Devices and pipes are refused: reading them may never end."""
    if path.is_symlink() and not path.exists():
        raise CertificateError(f'"{path}" is a link to "{os.readlink(path)}", which is not there; {remedy}')
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CertificateError(f'"{path}" is no regular file; {remedy}')
    with path.open("rb") as file:
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise CertificateError(f'"{path}" is too large for a key or a certificate; {remedy}')
    return data


def _read_key(path: Path, remedy: str) -> PrivateKey:
    data = _read(path, remedy)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise CertificateError(
            f'"{path}" is encrypted; decrypt it with: openssl pkey -in {path.name} -out plain.key'
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f'"{path}" holds no whole PEM private key; {remedy}') from None
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise CertificateError(f'"{path}" is neither an RSA nor an EC key; {remedy}')
    # cryptography loads it as a plain RSA key, and no client verifies the resulting signatures.
    if _PSS_ONLY in base64.b64decode(b"".join(data.partition(b"-----\n")[2].partition(b"-----")[0].split())):
        raise CertificateError(f'"{path}" is an RSA key for PSS alone; use a plain RSA or an EC key, or {remedy}')
    return key


def _read_certificate(path: Path, remedy: str) -> x509.Certificate:
    data = _read(path, remedy)
    end = data.find(_PEM_END)
    try:
        # In a chain, the first certificate counts.
        certificate = x509.load_pem_x509_certificate(data if end < 0 else data[: end + len(_PEM_END)] + b"\n")
        # cryptography decodes most fields on access, and damage shows only then.
        certificate.public_key()
        for _ in (certificate.extensions, certificate.subject, certificate.issuer, not_before(certificate)):
            pass
        not_after(certificate)
        certificate.signature_hash_algorithm  # noqa: B018
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension):
        raise CertificateError(f'"{path}" holds no whole PEM certificate; {remedy}') from None
    return certificate


def _public_der(key: object) -> bytes:
    # Keys have no `==` in some supported versions.
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


def _pending(path: Path) -> Path:
    return path.with_name(f".{path.name}.pending")


def _write_pair(files: CertificateFiles, name: str, key_pem: bytes, certificate_pem: bytes) -> None:
    """Write NAME.key and NAME.crt so that the next start can finish an interrupted write."""
    key, certificate = files.path(f"{name}.key"), files.path(f"{name}.crt")
    pending = _pending(certificate)
    try:
        _store(pending, certificate_pem, 0o644)
        _write(key, key_pem, 0o600)
        os.replace(pending, certificate)
    except BaseException:
        for path in (key, pending):
            path.unlink(missing_ok=True)
        raise
    _log.info('Write "%s"', certificate)


def _write(path: Path, data: bytes, mode: int) -> None:
    _store(path, data, mode)
    _log.info('Write "%s"', path)


def _store(path: Path, data: bytes, mode: int) -> None:
    """Write a complete file: under a temporary name, with fsync, then renamed."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 from the start
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock the directory, so that two dducts that start at once share one authority."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
