"""Interim responses of an origin, and its silence."""

from __future__ import annotations

import socket
from typing import Callable

import pytest
from support.origin import Asked, Connection, Gate, Origin
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter
from upstream.dialling import Parent
from upstream.response_head import MAX_INTERIM

Build = Callable[..., RunningDduct]


def interim(status: int, *fields: bytes) -> bytes:
    return b"HTTP/1.1 %d Wait\r\n%s\r\n" % (status, b"".join(field + b"\r\n" for field in fields))


@pytest.mark.parametrize("path", ["/x.deb", "/page"], ids=["kept", "relayed"])
@pytest.mark.parametrize("status", [100, 102, 103])
def test_a_flood_of_interim_responses_is_502_and_counted(dduct: RunningDduct, path: str, status: int) -> None:
    def flood(asked: Asked, connection: Connection) -> None:
        while True:
            connection.send(interim(status) * 100)

    origin = dduct.origin(flood)
    with dduct.intercepted(origin) as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        answer = client.read()
        while answer.status < 200:
            answer = client.read()
        assert answer.status == 502 and b"1xx" in answer.body
    assert dduct.counted(Counter.INTERIM_FLOODS) == 1
    assert dduct.stored() == []


@pytest.mark.parametrize("path", ["/x.deb", "/page"], ids=["kept", "relayed"])
def test_dripping_interim_responses_do_not_extend_the_timeout(start_dduct: Build, path: str) -> None:
    dduct = start_dduct(upstream_timeout=0.3, relay_timeout=0.3)
    over = Gate()

    def drip(asked: Asked, connection: Connection) -> None:
        while not over._open.wait(0.05):
            connection.send(interim(100))

    origin = dduct.origin(drip)
    try:
        answer = dduct.fetch(origin, path)
        assert answer.status in (502, 504)
    finally:
        over.open()


@pytest.mark.parametrize("expects", [True, False], ids=["that expects 100-continue", "at once"])
def test_a_flood_of_interim_responses_ends_an_upload(dduct: RunningDduct, expects: bool) -> None:
    with socket.create_server((HOST, 0)) as listener, dduct.client() as client:
        port = listener.getsockname()[1]
        fields = ["Expect: 100-continue"] if expects else []
        lines = [f"PUT http://{HOST}:{port}/page HTTP/1.1", f"Host: {HOST}:{port}", "Content-Length: 20000", *fields]
        client.send(("\r\n".join(lines) + "\r\n\r\n").encode())
        far, _ = listener.accept()
        with far:
            head = b""
            while b"\r\n\r\n" not in head:
                head += far.recv(65536)
            far.sendall(interim(102) * (MAX_INTERIM + 20))
            sent = 0
            while sent < 20 and not expects:
                client.send(bytes(1000))  # each piece is a moment to hear the origin
                sent += 1
            answer = client.read()
            while answer.status < 200:
                answer = client.read()
            assert answer.status == 502
    assert dduct.counted(Counter.INTERIM_FLOODS) == 1


def test_a_parents_flood_of_interim_responses_is_502(start_dduct: Build) -> None:
    def flood(asked: Asked, connection: Connection) -> None:
        while True:
            connection.send(interim(103) * 100)

    with Origin(flood) as parent:
        dduct = start_dduct(upstream_proxy=Parent(HOST, parent.port))
        with dduct.client() as client:
            answer = client.connect("far.away:22")
            assert answer.status == 502 and b"1xx" in answer.body


def test_a_relayed_response_may_pause_longer_than_a_stored_one(start_dduct: Build) -> None:
    """Long polls and slow reports work, and readers of a shared transfer do not wait for ever."""
    dduct = start_dduct(upstream_timeout=0.2, relay_timeout=20.0, stale_if_error=False)
    gate = Gate()

    def slow(asked: Asked, connection: Connection) -> None:
        gate.wait()
        connection.head(200, [("Content-Length", "4")])
        connection.send_body(b"so")
        connection.send_body(b"on")

    origin = dduct.origin(slow)
    with dduct.intercepted(origin) as client:
        client.send(f"GET /page HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        gate.reached()
        kept = dduct.fetch(origin, "/x.deb")  # requested later, and timed out earlier
        assert kept.status == 504 and b"proxy.upstream_timeout" in kept.body
        gate.open()
        assert client.read().body == b"soon"


def test_pauses_in_a_response_that_cannot_be_stored_are_relayed(start_dduct: Build) -> None:
    """A response that was requested as storable, and turns out to be an endless event stream."""
    dduct = start_dduct(upstream_timeout=0.2, relay_timeout=20.0)
    pause = Gate()

    def events(asked: Asked, connection: Connection) -> None:
        if asked.target == "/y.deb":
            pause.wait()
            return
        connection.head(200, [("Transfer-Encoding", "chunked"), ("Cache-Control", "no-store")])
        connection.send(b"1\r\na\r\n")
        pause.wait()
        connection.send(b"1\r\nb\r\n0\r\n\r\n")

    origin = dduct.origin(events)
    with dduct.intercepted(origin) as client:
        client.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        client.read_until(b"\r\n\r\n")
        assert dduct.fetch(origin, "/y.deb").status == 504  # by then 0.2 s are over
        pause.open()
        assert client._chunks() == (b"ab", True)
