"""Clients that hang up while somebody else is waited for."""

from __future__ import annotations

import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.client import Client, wait_until
from support.household import HOST, House
from support.origin import Asked, Connection, Files, Gate, Origin

from metrics import Counter

BODY = b"0123456789" * 400
TIMEOUT = 20.0

pytestmark = pytest.mark.one_process


def ask(client: Client, origin: Origin, path: str) -> None:
    client.send(f"GET http://{HOST}:{origin.port}{path} HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())


def reset(client: Client) -> None:
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()


@pytest.mark.parametrize("path", ["/relayed", "/x.deb"])
@pytest.mark.parametrize("leave", [reset, lambda client: client.sock.close()])
def test_who_hangs_up_frees_everything_while_the_origin_is_silent(house: House, path: str, leave) -> None:  # type: ignore[no-untyped-def]
    gone = Gate()

    def silent(_: Asked, connection: Connection) -> None:
        assert connection.sock.recv(1) == b""  # dduct hangs up
        gone.open()
        connection.over = True

    origin = house.origin(silent, tls=False)
    client = house.client()
    ask(client, origin, path)
    origin.wait_for_requests(1)
    leave(client)
    gone.wait()
    wait_until(lambda: not house.server.connections and not house.fills())
    assert house.counted(Counter.CLIENTS_GONE) == 1


def test_a_client_that_has_only_said_all_gets_its_answer(house: House) -> None:
    gate = Gate()

    def slow(_: Asked, connection: Connection) -> None:
        gate.wait()
        connection.respond(200, [], BODY)

    origin = house.origin(slow, tls=False)
    client = house.client()
    ask(client, origin, "/relayed")
    client.sock.shutdown(socket.SHUT_WR)
    gate.reached()
    (connection,) = house.server.connections._all.values()
    assert connection.session is not None
    wait_until(lambda session=connection.session: session.watch.half_closed)  # type: ignore[misc]
    gate.open()
    assert client.read().body == BODY


def test_a_leader_that_hangs_up_hands_on(house: House) -> None:
    gate = Gate()

    def handler(asked: Asked, connection: Connection) -> None:
        if len(origin.requests) == 1:
            connection.sock.recv(1)
            connection.over = True
            return
        gate.wait()
        Files({"/x.deb": BODY})(asked, connection)

    origin = house.origin(handler, tls=False)
    leader, follower = house.client(), house.client()
    ask(leader, origin, "/x.deb")
    origin.wait_for_requests(1)
    ask(follower, origin, "/x.deb")
    wait_until(lambda: house.fills()[0]._users == 2)
    reset(leader)
    gate.reached()
    gate.open()
    assert follower.read().body == BODY


def test_a_fill_that_nobody_reads_ends_while_its_origin_is_silent(house: House) -> None:
    gone = Gate()

    def begins(_: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", "1000000"), ("ETag", '"x"')])
        connection.send_body(b"abc")
        connection.sock.recv(1)
        gone.open()
        connection.over = True

    origin = house.origin(begins, tls=False)
    with ThreadPoolExecutor(1):
        client = house.client()
        ask(client, origin, "/x.deb")
        assert client.sock.recv(10)
        reset(client)
    gone.wait()
    wait_until(lambda: not house.fills() and not house.server.connections)
