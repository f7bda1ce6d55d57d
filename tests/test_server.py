"""What a configuration makes of it all, and what another one changes while it runs."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from support.household import House

from server import StartError

pytestmark = pytest.mark.one_process


def life_of_a_leaf(house: House) -> float:
    """How long a leaf is valid that SNI has chosen, in days."""
    with house.client(house.tls_port) as client:
        client.start_tls(house.trust, "origin.test")
        assert isinstance(client.sock, ssl.SSLSocket)
        certificate = client.sock.getpeercert()
    assert certificate is not None
    begin, end = (ssl.cert_time_to_seconds(str(certificate[name])) for name in ("notBefore", "notAfter"))
    return (end - begin) / 86400


def test_a_reload_that_fails_has_changed_nothing(house: House, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("no hash\n")
    before = life_of_a_leaf(house)
    shorter = replace(house.config, certs=replace(house.config.certs, leaf_days=5))
    with pytest.raises(StartError):
        house.server.reload(replace(shorter, proxy=replace(shorter.proxy, auth_file=users)))
    assert life_of_a_leaf(house) == before
    house.server.reload(shorter)
    assert life_of_a_leaf(house) == 5
