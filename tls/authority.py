"""dduct's own certificate authority, and the certificates that it issues.

Rules of this module:

* Every certificate verifies under VERIFY_X509_STRICT. One code path serves cryptography 3.4.8 to the newest.
* No function here reads or writes files: `certs.py` does.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import List, Optional, Sequence, Tuple, Union

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Life = Tuple[datetime, datetime]
PrivateKey = Union[rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey]

_CLOCK_SKEW = timedelta(days=2)  # a new certificate must be valid for a client whose clock is behind
_COMMON_NAME_LIMIT = 64  # RFC 5280, ub-common-name


@dataclass(frozen=True)
class KeyPair:
    """A private key and its certificate."""

    key: PrivateKey
    certificate: x509.Certificate

    @property
    def key_pem(self) -> bytes:
        """The key as PEM: PKCS#8, unencrypted."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)


class CertificateAuthority:
    """A key that clients trust, and its certificate."""

    def __init__(self, pair: KeyPair) -> None:
        self._pair = pair

    @staticmethod
    def generate(
        common_name: str, key_bits: int, days: int, only_for: Optional[Sequence[str]] = None
    ) -> CertificateAuthority:
        """A new RSA authority, valid for `days`, that may certify only `only_for` (None: all hosts)."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=key_bits)
        subject = _name(common_name)
        # RFC 5280 §4.2.1.9 and §4.2.1.3: both critical; the key only signs.
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
        """The certificate that clients trust."""
        return self._pair.certificate

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        return self._pair.certificate_pem

    @property
    def key_pem(self) -> bytes:
        """The private key as PEM."""
        return self._pair.key_pem

    @property
    def chain_pem(self) -> bytes:
        """What a server sends after its certificate: no root, because clients have it."""
        return b"" if self.certificate.issuer == self.certificate.subject else self.pem

    def may_certify(self, host: str) -> bool:
        """Whether the authority's own name constraints permit `host` (RFC 5280 §4.2.1.10)."""
        constraints = self._constraints
        if constraints is None:
            return True
        name = _general_name(constraint_for(host))
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

    def issue_leaf(self, key: PrivateKey, host: str, days: int, now: Optional[float] = None) -> KeyPair:
        """A host's certificate, valid for `days` in all, as clients count. `now`: the caller's Unix time."""
        name = _general_name(host)
        # OpenSSL treats an IPv4 address in a subject as a DNS name, which name constraints refuse.
        subject = "" if isinstance(name, x509.IPAddress) and self._constraints is not None else host
        return self._issue(key, subject, [name], ExtendedKeyUsageOID.SERVER_AUTH, _in_all(days, now))

    def issue_client(self, key: PrivateKey, common_name: str, days: int) -> KeyPair:
        """A client's certificate, valid for `days`."""
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
            # RFC 5280 §4.2.1.6: critical if the subject is empty.
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not list(subject))
        return KeyPair(key, builder.sign(self._pair.key, hashes.SHA256()))

    def _authority_key_identifier(self) -> x509.AuthorityKeyIdentifier:
        # Copied, not computed: a user's own authority may compute its identifier differently.
        try:
            own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._pair.key.public_key())
        return x509.AuthorityKeyIdentifier(own.value.digest, None, None)


def _from_now(days: int) -> Life:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    return now - _CLOCK_SKEW, now + timedelta(days=days)


def _in_all(days: int, now: Optional[float]) -> Life:
    life = timedelta(days=days)
    moment = datetime.now(timezone.utc) if now is None else datetime.fromtimestamp(now, timezone.utc)
    begin = moment.replace(microsecond=0) - min(_CLOCK_SKEW, life / 4)
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


def constraint_for(host: str) -> str:
    """The name that constrains an authority to a host, or to a pattern of hosts: all below what follows its last `*`.

    A constraint knows no `*` (RFC 5280 §4.2.1.10).
    """
    return host.rpartition("*.")[2]


def may_be_named(host: str) -> bool:
    """Whether a certificate may name it: a `*` stands only for the first label there (RFC 6125 §6.4.3)."""
    return "*" not in host[1:]


def _name_constraints(hosts: Sequence[str]) -> x509.NameConstraints:
    """Permit these hosts and names below them only; a DNS constraint always includes those."""
    permitted: List[x509.GeneralName] = []
    for host in dict.fromkeys(map(constraint_for, hosts)):
        try:
            permitted.append(x509.IPAddress(ipaddress.ip_network(host)))
        except ValueError:
            permitted.append(x509.DNSName(host))
    # A type without constraints is not limited: all addresses would be permitted if none is listed.
    everywhere = [x509.IPAddress(ipaddress.ip_network(network)) for network in ("0.0.0.0/0", "::/0")]
    has_address = any(isinstance(name, x509.IPAddress) for name in permitted)
    return x509.NameConstraints(permitted, None if has_address else everywhere)


def _is_within(name: x509.GeneralName, subtree: x509.GeneralName) -> bool:
    if isinstance(name, x509.DNSName) and isinstance(subtree, x509.DNSName):
        return f".{name.value}".endswith(f".{subtree.value}")
    network = subtree.value
    return isinstance(network, (ipaddress.IPv4Network, ipaddress.IPv6Network)) and name.value in network


def may_sign(certificate: x509.Certificate) -> bool:
    """Whether its keyUsage permits signing (RFC 5280 §4.2.1.3); without keyUsage, it does."""
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign)
    except x509.ExtensionNotFound:
        return True


def not_after(certificate: x509.Certificate) -> datetime:
    """When it expires."""
    return _aware(certificate, "not_valid_after")


def not_before(certificate: x509.Certificate) -> datetime:
    """When it becomes valid."""
    return _aware(certificate, "not_valid_before")


def _aware(certificate: x509.Certificate, name: str) -> datetime:
    # cryptography 42 added the aware attribute; the naive one warns since then.
    value = getattr(certificate, f"{name}_utc", None)
    if value is None:
        value = getattr(certificate, name).replace(tzinfo=timezone.utc)
    assert isinstance(value, datetime)
    return value
