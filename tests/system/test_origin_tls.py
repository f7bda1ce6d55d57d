"""Which origins are shown dduct's client certificate."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path
from typing import Callable, Sequence

import pytest
from support.origin import Asked, Connection, Origin
from support.running import HOST, RunningDduct

from server import wiring
from tls.authority import CertificateAuthority
from tls.leaf_certificates import LeafCertificateCache, LeafSettings
from upstream.dialling import Parent

Build = Callable[..., RunningDduct]
HOSTS = {
    "nobody": [],
    "everybody": ["*"],
    "the address": [HOST],
    "a network": ["127.0.0.0/8"],
    "another host": ["10.0.0.0/8", "*.test", "origin.test"],
}


def asking(dduct: RunningDduct, authority: CertificateAuthority, mode: ssl.VerifyMode) -> ssl.SSLContext:
    context = LeafCertificateCache(authority, LeafSettings(9)).context(HOST)
    context.load_verify_locations(dduct.config.misc.cert_dir / "ca.crt")
    context.verify_mode = mode
    return context


def who(asked: Asked, connection: Connection) -> None:
    assert isinstance(connection.sock, ssl.SSLSocket)
    connection.respond(200, [], str((connection.sock.getpeercert() or {}).get("subject")).encode())


@pytest.mark.parametrize("path", ["/page", "/x.deb"], ids=["relayed", "kept"])
@pytest.mark.parametrize(
    ("hosts", "shown"),
    [("nobody", False), ("everybody", True), ("the address", True), ("a network", True), ("another host", False)],
)
def test_the_client_certificate_is_shown_to_listed_origins_only(
    start_dduct: Build, origin_authority: CertificateAuthority, hosts: str, shown: bool, path: str
) -> None:
    dduct = start_dduct(client_cert_hosts=tuple(HOSTS[hosts]))
    with Origin(who, asking(dduct, origin_authority, ssl.CERT_OPTIONAL)) as origin:
        answer = dduct.fetch(origin, path)
        assert answer.status == 200 and (b"client.dduct.rs" in answer.body) is shown


def test_an_origin_with_an_authority_of_its_own_is_reached_where_a_certificate_is_optional(
    dduct: RunningDduct, origin_authority: CertificateAuthority
) -> None:
    """It does not know dduct's authority, and would refuse what it has issued."""
    context = LeafCertificateCache(origin_authority, LeafSettings(9)).context(HOST)
    context.load_verify_locations(cadata=origin_authority.pem.decode())
    context.verify_mode = ssl.CERT_OPTIONAL
    with Origin(who, context) as origin:
        assert dduct.fetch(origin, "/page").body == b"None"


@pytest.mark.parametrize(("hosts", "status"), [([], 502), ([HOST], 200)])
def test_a_listed_parent_proxy_is_shown_the_client_certificate(
    start_dduct: Build, origin_authority: CertificateAuthority, hosts: Sequence[str], status: int
) -> None:
    def parent(asked: Asked, connection: Connection) -> None:
        connection.head(200)
        connection.over = True

    first = start_dduct()
    with Origin(parent, asking(first, origin_authority, ssl.CERT_REQUIRED)) as listening:
        proxy = Parent(HOST, listening.port, True)
        # The second dduct has the first one's certificates.
        dduct = start_dduct(upstream_proxy=proxy, client_cert_hosts=tuple(hosts))
        with dduct.client() as client:
            assert client.connect("far.away:22").status == status


def test_a_missing_client_certificate_is_an_error_only_if_an_origin_is_listed(
    tmp_path: Path, start_dduct: Build
) -> None:
    dduct = start_dduct()
    for name in ("client.crt", "client.key"):
        (dduct.config.misc.cert_dir / name).unlink()
    dduct.server.reload(dduct.config)
    wanted = replace(dduct.config, proxy=replace(dduct.config.proxy, client_cert_hosts=("*",)))
    with pytest.raises(wiring.StartError, match="client_cert_hosts"):
        dduct.server.reload(wanted)
