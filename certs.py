"""Certificates: dduct's own authority, what it issues, and the files in cert_dir.

Rules of this room:

* A private key is written with mode 0600 and whole, or not at all.
* What lies in cert_dir is checked before it is used; what is wrong with it is one line that names file and remedy.
* Everything issued here verifies under VERIFY_X509_STRICT, and one code path serves cryptography 3.4.8 to the newest.
"""

from __future__ import annotations

import base64
import fcntl
import ipaddress
import logging
import os
import ssl
import stat
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence, Tuple, Union

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from openssl import prefer_aes_128

_log = logging.getLogger("dduct.certs")

Life = Tuple[datetime, datetime]
PrivateKey = Union[rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey]

_CLOCK_SKEW = timedelta(days=2)  # a client whose clock is late must not find a new certificate too young
_EXPIRY_WARNING = timedelta(days=30)
_COMMON_NAME_LIMIT = 64  # RFC 5280, ub-common-name
_PSS_ONLY = bytes.fromhex("06092a864886f70d01010a")  # the OID 1.2.840.113549.1.1.10 in DER
_PEM_END = b"-----END CERTIFICATE-----"


class CertificateError(Exception):
    """A file in cert_dir is not what it should be; one line that names it and the remedy."""


@dataclass(frozen=True)
class Identity:
    """The names, sizes and lives of what is issued at the first start."""

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
        """All that the authority of the first start is to vouch for, if `name_constraints`."""
        return (*self.server_dns_sans, *self.server_ip_sans, self.server_cn, self.client_cn)


@dataclass(frozen=True)
class KeyPair:
    """A private key and its certificate."""

    key: PrivateKey
    certificate: x509.Certificate

    @property
    def key_pem(self) -> bytes:
        """PKCS#8, unencrypted."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def certificate_pem(self) -> bytes:
        """The certificate alone."""
        return self.certificate.public_bytes(Encoding.PEM)


# --- issuing ------------------------------------------------------------------------------------


class CertificateAuthority:
    """A key that clients trust, and what it vouches for."""

    def __init__(self, pair: KeyPair) -> None:
        self._pair = pair

    @staticmethod
    def generate(
        common_name: str, key_bits: int, days: int, only_for: Optional[Sequence[str]] = None
    ) -> CertificateAuthority:
        """A new RSA authority, valid for `days`, and believed for no other hosts than `only_for` (None: for all)."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=key_bits)
        subject = _name(common_name)
        # RFC 5280 §4.2.1.9 and §4.2.1.3: both critical, and nothing but signing.
        builder = (
            _builder(subject, subject, key, _from_now(days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        )
        if only_for is not None:
            builder = builder.add_extension(_name_constraints(only_for), critical=True)  # RFC 5280 §4.2.1.10
        return CertificateAuthority(KeyPair(key, builder.sign(key, hashes.SHA256())))

    @property
    def certificate(self) -> x509.Certificate:
        """What clients are to trust."""
        return self._pair.certificate

    @property
    def pem(self) -> bytes:
        """The same as PEM."""
        return self._pair.certificate_pem

    @property
    def key_pem(self) -> bytes:
        """Its private key."""
        return self._pair.key_pem

    @property
    def chain_pem(self) -> bytes:
        """What a server has to send beside its own certificate: clients have a root already."""
        return b"" if self.certificate.issuer == self.certificate.subject else self.pem

    def may_vouch_for(self, host: str) -> bool:
        """Whether clients believe it in that: its own name constraints may say no (RFC 5280 §4.2.1.10)."""
        constraints = self._constraints
        if constraints is None:
            return True
        name = _general_name(host.replace("*.", "", 1))
        kind = type(name)
        permitted = [other for other in constraints.permitted_subtrees or [] if isinstance(other, kind)]
        excluded = [other for other in constraints.excluded_subtrees or [] if isinstance(other, kind)]
        if any(_is_within(name, subtree) for subtree in excluded):
            return False
        return not permitted or any(_is_within(name, subtree) for subtree in permitted)

    def issue_server(self, key: PrivateKey, common_name: str, hosts: Sequence[str], days: int) -> KeyPair:
        """A server's certificate for host names, `*.` names and IP addresses, valid for `days` from now."""
        names = [_general_name(host) for host in hosts]
        return self._issue(key, common_name, names, ExtendedKeyUsageOID.SERVER_AUTH, _from_now(days))

    def issue_leaf(self, key: PrivateKey, host: str, days: int) -> KeyPair:
        """A host's certificate with a life of `days` in all, which is what clients count."""
        name = _general_name(host)
        # OpenSSL takes an IPv4 address in a subject for a DNS name, which name constraints do not permit.
        subject = "" if isinstance(name, x509.IPAddress) and self._constraints is not None else host
        return self._issue(key, subject, [name], ExtendedKeyUsageOID.SERVER_AUTH, _in_all(days))

    def issue_client(self, key: PrivateKey, common_name: str, days: int) -> KeyPair:
        """A client's certificate."""
        return self._issue(key, common_name, [], ExtendedKeyUsageOID.CLIENT_AUTH, _from_now(days))

    def issued(self, certificate: x509.Certificate) -> bool:
        """Whether this authority's key signed `certificate`."""
        public = self.certificate.public_key()
        algorithm = certificate.signature_hash_algorithm
        if certificate.issuer != self.certificate.subject or algorithm is None:
            return False
        signature, signed = certificate.signature, certificate.tbs_certificate_bytes
        try:
            if isinstance(public, rsa.RSAPublicKey):
                public.verify(signature, signed, padding.PKCS1v15(), algorithm)
            elif isinstance(public, ec.EllipticCurvePublicKey):
                public.verify(signature, signed, ec.ECDSA(algorithm))
            else:
                return False
        except InvalidSignature:
            return False
        return True

    @property
    def _constraints(self) -> Optional[x509.NameConstraints]:
        try:
            return self.certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            return None

    def _issue(
        self,
        key: PrivateKey,
        common_name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        life: Life,
    ) -> KeyPair:
        subject = _name(common_name) if 0 < len(common_name) <= _COMMON_NAME_LIMIT else x509.Name([])
        builder = (
            _builder(subject, self.certificate.subject, key, life, at_most=not_after(self.certificate))
            .add_extension(self._authority_key_identifier(), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                # RSA keys also take part in TLS 1.2's RSA key exchange.
                _key_usage(digital_signature=True, key_encipherment=isinstance(key, rsa.RSAPrivateKey)),
                critical=True,
            )
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if names:
            # RFC 5280 §4.2.1.6: critical where there is no subject.
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not list(subject))
        return KeyPair(key, builder.sign(self._pair.key, hashes.SHA256()))

    def _authority_key_identifier(self) -> x509.AuthorityKeyIdentifier:
        # Copied, not computed: a user's own authority may have made its identifier in another way.
        try:
            own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._pair.key.public_key())
        return x509.AuthorityKeyIdentifier(own.value.digest, None, None)


def _from_now(days: int) -> Life:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    return now - _CLOCK_SKEW, now + timedelta(days=days)


def _in_all(days: int) -> Life:
    life = timedelta(days=days)
    begin = datetime.now(timezone.utc).replace(microsecond=0) - min(_CLOCK_SKEW, life / 4)
    return begin, begin + life


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, life: Life, at_most: Optional[datetime] = None
) -> x509.CertificateBuilder:
    begin, end = life
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end if at_most is None else min(end, at_most))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name_constraints(hosts: Sequence[str]) -> x509.NameConstraints:
    """Nothing but these hosts and what is below them; a DNS name cannot be permitted without that."""
    permitted: List[x509.GeneralName] = []
    for host in dict.fromkeys(host.replace("*.", "", 1) for host in hosts):
        try:
            permitted.append(x509.IPAddress(ipaddress.ip_network(host)))
        except ValueError:
            permitted.append(x509.DNSName(host))
    # What is not named at all is not constrained: addresses would be free where none is listed.
    everywhere = [x509.IPAddress(ipaddress.ip_network(network)) for network in ("0.0.0.0/0", "::/0")]
    has_address = any(isinstance(name, x509.IPAddress) for name in permitted)
    return x509.NameConstraints(permitted, None if has_address else everywhere)


def _is_within(name: x509.GeneralName, subtree: x509.GeneralName) -> bool:
    if isinstance(name, x509.DNSName) and isinstance(subtree, x509.DNSName):
        return f".{name.value}".endswith(f".{subtree.value}")
    network = subtree.value
    return isinstance(network, (ipaddress.IPv4Network, ipaddress.IPv6Network)) and name.value in network


def not_after(certificate: x509.Certificate) -> datetime:
    """When it ends."""
    return _aware(certificate, "not_valid_after")


def _not_before(certificate: x509.Certificate) -> datetime:
    return _aware(certificate, "not_valid_before")


def _aware(certificate: x509.Certificate, name: str) -> datetime:
    # The aware attribute came with cryptography 42, and the naive one warns since.
    value = getattr(certificate, f"{name}_utc", None)
    if value is None:
        value = getattr(certificate, name).replace(tzinfo=timezone.utc)
    assert isinstance(value, datetime)
    return value


# --- the files ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CertificateFiles:
    """The paths in cert_dir."""

    directory: Path

    def path(self, name: str) -> Path:
        """Such as `path('ca.crt')`."""
        return self.directory / name

    def server_context(self) -> ssl.SSLContext:
        """For the TLS listener: dduct's own certificate."""
        pem = self.path("server.crt").read_bytes() + self.path("server.key").read_bytes()
        return server_context(pem)


def prepare(directory: Path, identity: Identity) -> CertificateAuthority:
    """Make what is missing in `directory`, check what is there, and return the authority. Raises CertificateError."""
    files = CertificateFiles(directory)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & stat.S_IWOTH:
            raise CertificateError(
                f'misc.cert_dir "{directory}" is writable by everybody; chmod 700 it, and see who was'
            )
        with _locked(directory):
            authority = _authority(files, identity)
            _server(files, identity, authority)
            _client(files, identity, authority)
    except OSError as error:
        raise CertificateError(
            f'cannot use "{error.filename or directory}" in misc.cert_dir: {error.strerror or error}'
        ) from error
    return authority


def _authority(files: CertificateFiles, identity: Identity) -> CertificateAuthority:
    remedy = (
        "restore it from a backup, or delete ca.*, server.* and client.* there and restart for a new authority, "
        "which every client then has to trust anew"
    )
    pair = _read_pair(files, "ca", remedy)
    if pair is None:
        only_for = identity.hosts if identity.name_constraints else None
        authority = CertificateAuthority.generate(
            identity.ca_cn, identity.rsa_key_bits, identity.days_from_now, only_for
        )
        _write_pair(files, "ca", authority.key_pem, authority.pem)
        return authority
    try:
        constraints = pair.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        is_authority = constraints.ca
    except x509.ExtensionNotFound:
        is_authority = False
    if not is_authority:
        raise CertificateError(f'"{files.path("ca.crt")}" is no certificate authority (basicConstraints CA); {remedy}')
    return CertificateAuthority(pair)


def _server(files: CertificateFiles, identity: Identity, authority: CertificateAuthority) -> None:
    def issue() -> KeyPair:
        key = rsa.generate_private_key(public_exponent=65537, key_size=identity.rsa_key_bits)
        hosts = [*identity.server_dns_sans, *identity.server_ip_sans]
        return authority.issue_server(key, identity.server_cn, hosts or [identity.server_cn], identity.days_from_now)

    _issued(files, "server", issue, identity.p12_pass, authority)


def _client(files: CertificateFiles, identity: Identity, authority: CertificateAuthority) -> None:
    def issue() -> KeyPair:
        key = rsa.generate_private_key(public_exponent=65537, key_size=identity.rsa_key_bits)
        return authority.issue_client(key, identity.client_cn, identity.days_from_now)

    _issued(files, "client", issue, identity.p12_pass, authority)


def _issued(
    files: CertificateFiles, name: str, issue: Callable[[], KeyPair], password: str, authority: CertificateAuthority
) -> None:
    """Make or check NAME.key, NAME.crt and NAME.p12."""
    remedy = f"delete {name}.key, {name}.crt and {name}.p12 there and restart: they will be issued anew"
    pair = _read_pair(files, name, remedy)
    bundle = files.path(f"{name}.p12")
    if pair is None:
        pair = issue()
        _write_pair(files, name, pair.key_pem, pair.certificate_pem)
        bundle.unlink() if bundle.exists() else None
    elif not authority.issued(pair.certificate):
        raise CertificateError(f'"{files.path(name + ".crt")}" was not issued by "{files.path("ca.crt")}"; {remedy}')
    if not bundle.exists():
        encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        data = pkcs12.serialize_key_and_certificates(
            name.encode(), pair.key, pair.certificate, [authority.certificate], encryption
        )
        _write(bundle, data, 0o600)


def _read_pair(files: CertificateFiles, name: str, remedy: str) -> Optional[KeyPair]:
    """NAME.key and NAME.crt, checked; None where there is neither. Raises CertificateError, OSError."""
    key_path, certificate_path = files.path(f"{name}.key"), files.path(f"{name}.crt")
    pending = _pending(certificate_path)
    if pending.exists():  # a start broke off between the two
        if key_path.exists() and not certificate_path.exists():
            os.replace(pending, certificate_path)
        else:
            pending.unlink()
    present = [path for path in (key_path, certificate_path) if path.exists()]
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
    if now < _not_before(pair.certificate):
        start = _not_before(pair.certificate)
        raise CertificateError(f'"{certificate_path}" is not valid before {start:%Y-%m-%d}; is the clock right?')
    if now > not_after(pair.certificate) - _EXPIRY_WARNING:
        _log.warning('"%s" expires on %s', certificate_path, f"{not_after(pair.certificate):%Y-%m-%d}")
    return pair


def _read_key(path: Path, remedy: str) -> PrivateKey:
    data = path.read_bytes()
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
    # cryptography takes one for a plain RSA key, and what that signs with it nobody verifies.
    if _PSS_ONLY in base64.b64decode(b"".join(data.partition(b"-----\n")[2].partition(b"-----")[0].split())):
        raise CertificateError(f'"{path}" is an RSA key for PSS alone; use a plain RSA or an EC key, or {remedy}')
    return key


def _read_certificate(path: Path, remedy: str) -> x509.Certificate:
    data = path.read_bytes()
    end = data.find(_PEM_END)
    try:
        # Of a chain the first certificate counts.
        certificate = x509.load_pem_x509_certificate(data if end < 0 else data[: end + len(_PEM_END)] + b"\n")
        # Most of it is decoded when it is looked at, and damage inside shows no sooner.
        certificate.public_key()
        for _ in (certificate.extensions, certificate.subject, certificate.issuer, _not_before(certificate)):
            pass
        not_after(certificate)
        certificate.signature_hash_algorithm  # noqa: B018
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension):
        raise CertificateError(f'"{path}" holds no whole PEM certificate; {remedy}') from None
    return certificate


def _public_der(key: object) -> bytes:
    # Keys have no `==` in some of the versions we serve.
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


def _pending(path: Path) -> Path:
    return path.with_name(f".{path.name}.pending")


def _write_pair(files: CertificateFiles, name: str, key_pem: bytes, certificate_pem: bytes) -> None:
    """Write NAME.key and NAME.crt so that a start which breaks off in between is made good by the next."""
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
    """Write a file whole: under another name first, brought to the disk, then renamed."""
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
    """One dduct at a time, so that two that start at once agree on one authority."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- TLS contexts -------------------------------------------------------------------------------


_OP_PRIORITIZE_CHACHA = 1 << 21  # for which ssl has no name


def server_context(pem: bytes) -> ssl.SSLContext:
    """A TLS server with the certificate chain and key in `pem`: TLS 1.2 and 1.3, HTTP/1.1 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # Our order counts, but for clients that put ChaCha20 first: their processors do not know AES.
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | _OP_PRIORITIZE_CHACHA
    context.set_ciphers("ECDHE+AES128+AESGCM:ECDHE+AESGCM:ECDHE+CHACHA20")
    prefer_aes_128(context)
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 1  # two cost a quarter of a handshake, and whoever resumes gets another
    # load_cert_chain() takes paths only; a memfd has one, and its octets never reach a disk.
    descriptor = os.memfd_create("dduct", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
