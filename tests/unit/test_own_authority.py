"""An authority that a user brings, and one with constraints."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import PrivateFormat
from support.cert_dirs import (
    FILES,
    SMALL,
    names_in,
)
from support.certificates import (
    assert_verifies,
    hand_made,
    key_pem,
    openssl,
    own_key,
    pem,
)

from certs import CertificateError, prepare
from tls.leaf_certificates import LeafCertificateCache, LeafSettings

LEAF_DAYS = 30


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


def test_an_authority_whose_key_is_for_pss_only_works_or_is_refused(tmp_path: Path) -> None:
    for command in (
        ("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:1024", "-out", tmp_path / "ca.key"),
        ("req", "-x509", "-new", "-key", tmp_path / "ca.key", "-subj", "/CN=own", "-out", tmp_path / "ca.crt"),
    ):
        assert openssl(*command).returncode == 0
    with pytest.raises(CertificateError, match=r"ca\.key"):
        prepare(tmp_path, SMALL)


def test_a_constrained_authority_may_issue_dducts_own_certificates(tmp_path: Path) -> None:
    addresses = ("192.0.2.1", "2001:db8::1")
    authority = prepare(tmp_path, replace(SMALL, name_constraints=True, server_ip_sans=addresses))
    extension = authority.certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert extension.critical
    assert_verifies(tmp_path / "ca.crt", tmp_path / "server.crt", "-purpose", "sslserver")
    assert_verifies(tmp_path / "ca.crt", tmp_path / "client.crt", "-purpose", "sslclient")
