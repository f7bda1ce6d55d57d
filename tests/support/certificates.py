"""Certificates made by hand, the second opinion of openssl(1), and handshakes in which they are used."""

from __future__ import annotations

import socket
import ssl
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, List, Optional, Tuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from support.pairs import TIMEOUT, in_thread

own_key = ec.generate_private_key(ec.SECP256R1())  # one key for whatever is made by hand


def moment(certificate: x509.Certificate, name: str) -> datetime:
    """`not_valid_before` or `not_valid_after` in UTC; the aware attribute came with cryptography 42."""
    value = getattr(certificate, f"{name}_utc", None) or getattr(certificate, name).replace(tzinfo=timezone.utc)
    assert isinstance(value, datetime)
    return value


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


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


def usages(certificate: x509.Certificate) -> List[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def trusting(authority: x509.Certificate) -> ssl.SSLContext:
    """A client that is as strict as Python 3.13's, on all versions."""
    context = ssl.create_default_context(cadata=pem(authority).decode())
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


def authority_identifier(certificate: x509.Certificate) -> Optional[bytes]:
    value = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert value.authority_cert_issuer is None and value.authority_cert_serial_number is None
    return value.key_identifier
