"""Idle connections to origins, in a running dduct."""

from __future__ import annotations

import socket
from typing import Callable, List

import pytest
from support.client import wait_until
from support.origin import Asked, Connection
from support.running import HOST, RunningDduct

from upstream import connection_pool

Build = Callable[..., RunningDduct]


@pytest.mark.one_process
@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
def test_an_idle_connection_that_its_origin_closed_is_closed_without_traffic(
    start_dduct: Build, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setattr(connection_pool, "_SWEEP_INTERVAL", 0.0)
    ends: List[bytes] = []

    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [], b"hello")
        connection.fin()
        ends.append(connection.sock.recv(1) if not tls else socket.socket.recv(connection.sock, 100))

    dduct = start_dduct()
    origin = dduct.origin(handler, tls)
    with dduct.client() as client:
        url = f"http://{HOST}:{origin.port}/page"
        if tls:
            assert dduct.fetch(origin, "/page").body == b"hello"
        else:
            assert client.get(url, HOST).body == b"hello"
        wait_until(lambda: bool(ends))
