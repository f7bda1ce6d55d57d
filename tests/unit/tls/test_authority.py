"""The authority: what it issues, what it recognizes, and what it may certify; openssl(1) is the second opinion."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path
from typing import Optional, Tuple

import pytest
from support.certificates import (
    authority_identifier,
    hand_made,
    moment,
    openssl,
    own_key,
    shake_hands,
    trusting,
)

from server import config
from tls.authority import CertificateAuthority, KeyPair
from tls.leaf_certificates import LeafCertificateCache, LeafSettings

LEAF_DAYS = 30


def test_nothing_outlives_the_authority(authority: CertificateAuthority) -> None:
    end = moment(authority.certificate, "not_valid_after")
    assert moment(authority.issue_server(own_key, "a", ["a"], 36500).certificate, "not_valid_after") == end
    assert moment(authority.issue_client(own_key, "a", 36500).certificate, "not_valid_after") == end


def test_the_identifier_of_an_authority_is_copied_and_not_computed() -> None:
    own = CertificateAuthority(KeyPair(own_key, hand_made(own_key, identifier=b"made otherwise")))
    leaf = own.issue_server(own_key, "a", ["a"], 1).certificate
    assert authority_identifier(leaf) == b"made otherwise"


def test_an_authority_recognizes_its_certificates(authority: CertificateAuthority) -> None:
    impostor = CertificateAuthority(KeyPair(own_key, hand_made(own_key, "dduct")))
    ours = authority.issue_server(own_key, "a", ["a"], 1).certificate
    theirs = impostor.issue_server(own_key, "a", ["a"], 1).certificate
    assert authority.issued(ours) and impostor.issued(theirs)
    assert not authority.issued(theirs) and not impostor.issued(ours)


LISTED = ("origin.test", "listed.test", "192.0.2.1", "2001:db8::1")


@pytest.fixture(scope="module")
def constrained() -> CertificateAuthority:
    return CertificateAuthority.generate("dduct", 2048, 365, LISTED)


def greet(authority: CertificateAuthority, host: str) -> Optional[str]:
    """The TLS version of a handshake with a leaf for `host`."""
    context = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS)).context(host)
    return shake_hands(context, trusting(authority.certificate), host)[0]


@pytest.mark.parametrize("host", ["origin.test", "below.origin.test", "a.b.listed.test", "192.0.2.1", "2001:db8::1"])
def test_clients_accept_a_constrained_authority_for_listed_hosts(constrained: CertificateAuthority, host: str) -> None:
    assert constrained.may_certify(host)
    assert greet(constrained, host) == "TLSv1.3"


def test_an_authority_for_a_pattern_with_a_star_inside_covers_what_follows_the_star() -> None:
    authority = CertificateAuthority.generate("dduct", 2048, 365, ("*.ecr.*.cloud.test",))
    assert authority.may_certify("*.ecr.*.cloud.test") and authority.may_certify("1.ecr.north.cloud.test")
    assert greet(authority, "1.ecr.north.cloud.test") == "TLSv1.3"
    assert not authority.may_certify("*.ecr.*.other.test")


@pytest.mark.parametrize("host", ["other.test", "notorigin.test", "test", "192.0.2.2", "2001:db8::2"])
def test_clients_reject_a_constrained_authority_for_other_hosts(constrained: CertificateAuthority, host: str) -> None:
    assert not constrained.may_certify(host)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        greet(constrained, host)


@pytest.mark.parametrize(
    ("count", "addresses"), [(1021, ("127.0.0.1",)), (1022, ("127.0.0.1",)), (1021, ()), (1022, ())]
)
def test_openssl_verifies_as_many_constrained_hosts_as_the_configuration_takes(
    tmp_path: Path, count: int, addresses: Tuple[str, ...]
) -> None:
    hosts = tuple(f"h{number}.test" for number in range(count))
    settings = replace(config.defaults(tmp_path).certs, server_dns_sans=hosts, server_ip_sans=addresses)
    authority = CertificateAuthority.generate("dduct", 1024, 365, settings.hosts)
    server = authority.issue_server(own_key, settings.server_cn, [*hosts, *addresses], 365)
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    (tmp_path / "server.crt").write_bytes(server.certificate_pem)
    done = openssl("verify", "-CAfile", tmp_path / "ca.crt", tmp_path / "server.crt")
    assert (done.returncode == 0) is (config.comparisons(settings) <= 2**20)


def test_a_constrained_authority_without_listed_addresses_covers_no_address() -> None:
    authority = CertificateAuthority.generate("dduct", 2048, 365, ("origin.test",))
    for host in ("127.0.0.1", "::1"):
        assert not authority.may_certify(host)
        with pytest.raises(ssl.SSLCertVerificationError, match="excluded subtree violation"):
            greet(authority, host)


def test_an_authority_without_constraints_may_issue_for_every_host(authority: CertificateAuthority) -> None:
    assert authority.may_certify("anything.at.all") and authority.may_certify("203.0.113.1")


def test_a_root_is_not_sent_to_clients_that_have_it(authority: CertificateAuthority) -> None:
    assert authority.chain_pem == b""
