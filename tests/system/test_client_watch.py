"""Clients that hang up while dduct waits for an origin or a leader."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Callable, List

import pytest
from support.client import Client, wait_until
from support.origin import Asked, Connection, Files, Gate, Origin, deaf
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter
from net.client_watch import ClientGone, ClientWatch, working_for
from storage.own_files import GROWING_SUFFIX
from storage.shared_table import SharedTable
from transfers.follow import ForeignFill
from upstream.reachability import Outages

BODY = b"0123456789" * 400
TIMEOUT = 20.0
HangUp = Callable[[Client], None]

pytestmark = pytest.mark.one_process


def ask(client: Client, origin: Origin, path: str, *fields: str) -> None:
    authority = f"{HOST}:{origin.port}"
    lines = [f"GET http://{authority}{path} HTTP/1.1", f"Host: {authority}", *fields, "", ""]
    client.send("\r\n".join(lines).encode())


def reset(client: Client) -> None:
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()


@pytest.mark.parametrize("path", ["/relayed", "/x.deb"])
@pytest.mark.parametrize("hang_up", [reset, lambda client: client.sock.close()])
def test_a_client_that_hangs_up_while_the_origin_is_silent_frees_everything(
    dduct: RunningDduct, path: str, hang_up: HangUp
) -> None:
    gone = Gate()

    def silent(_: Asked, connection: Connection) -> None:
        assert connection.sock.recv(1) == b""  # dduct hangs up
        gone.open()
        connection.over = True

    origin = dduct.origin(silent, tls=False)
    client = dduct.client()
    ask(client, origin, path)
    origin.wait_for_requests(1)
    hang_up(client)
    gone.wait()
    wait_until(lambda: not dduct.server.connections and not dduct.fills())
    assert dduct.counted(Counter.CLIENTS_GONE) == 1


def test_a_client_that_closes_only_its_sending_side_gets_its_answer(dduct: RunningDduct) -> None:
    gate = Gate()

    def slow(_: Asked, connection: Connection) -> None:
        gate.wait()
        connection.respond(200, [], BODY)

    origin = dduct.origin(slow, tls=False)
    client = dduct.client()
    ask(client, origin, "/relayed")
    client.sock.shutdown(socket.SHUT_WR)
    gate.reached()
    (connection,) = dduct.server.connections._all.values()
    assert connection.session is not None
    wait_until(lambda session=connection.session: session.watch.half_closed)  # type: ignore[misc]
    gate.open()
    assert client.read().body == BODY


def test_a_leader_that_hangs_up_hands_the_fill_to_a_follower(dduct: RunningDduct) -> None:
    gate = Gate()

    def handler(asked: Asked, connection: Connection) -> None:
        if len(origin.requests) == 1:
            connection.sock.recv(1)
            connection.over = True
            return
        gate.wait()
        Files({"/x.deb": BODY})(asked, connection)

    origin = dduct.origin(handler, tls=False)
    leader, follower = dduct.client(), dduct.client()
    ask(leader, origin, "/x.deb")
    origin.wait_for_requests(1)
    ask(follower, origin, "/x.deb")
    wait_until(lambda: dduct.fills()[0].snapshot().readers == 1)
    reset(leader)
    gate.reached()
    gate.open()
    assert follower.read().body == BODY


def test_a_fill_that_nobody_reads_ends_while_its_origin_is_silent(dduct: RunningDduct) -> None:
    gone = Gate()

    def begins(_: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", "1000000"), ("ETag", '"x"')])
        connection.send_body(b"abc")
        connection.sock.recv(1)
        gone.open()
        connection.over = True

    origin = dduct.origin(begins, tls=False)
    with ThreadPoolExecutor(1):
        client = dduct.client()
        ask(client, origin, "/x.deb")
        assert client.sock.recv(10)
        reset(client)
    gone.wait()
    wait_until(lambda: not dduct.fills() and not dduct.server.connections)


# --- connecting, handshakes, TLS --------------------------------------------------------------------


@pytest.mark.parametrize("hang_up", [reset, lambda client: client.sock.close()])
def test_a_client_that_hangs_up_inside_tls_frees_everything(dduct: RunningDduct, hang_up: HangUp) -> None:
    gone = Gate()

    def silent(_: Asked, connection: Connection) -> None:
        connection.sock.recv(1)
        gone.open()
        connection.over = True

    origin = dduct.origin(silent)
    client = dduct.intercepted(origin)
    client.send(b"GET /x.deb HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\n\r\n")
    origin.wait_for_requests(1)
    hang_up(client)
    gone.wait()
    wait_until(lambda: not dduct.server.connections and not dduct.fills())


def test_a_client_that_hangs_up_while_the_origin_is_dialled_frees_everything(dduct: RunningDduct) -> None:
    with deaf() as port:
        client = dduct.client()
        client.send(f"GET http://{HOST}:{port}/x.deb HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode())
        wait_until(lambda: bool(dduct.fills()))
        reset(client)
        wait_until(lambda: not dduct.server.connections and not dduct.fills())
    assert dduct.counted(Counter.CLIENTS_GONE) == 1


def test_a_client_that_hangs_up_during_the_origins_handshake_frees_everything(dduct: RunningDduct) -> None:
    with socket.create_server((HOST, 0)) as listener:
        client = dduct.client()
        authority = f"{HOST}:{listener.getsockname()[1]}"
        assert client.connect(authority).status == 200
        client.start_tls(dduct.trust, HOST)
        client.send(f"GET /x.deb HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        with listener.accept()[0] as sock:
            sock.settimeout(TIMEOUT)
            assert sock.recv(1)  # of a ClientHello
            reset(client)
            with suppress(ConnectionResetError):
                while sock.recv(65536):
                    pass
    wait_until(lambda: not dduct.server.connections and not dduct.fills())
    assert not dduct.server.runtime.services.origins._dialler._in_use


# --- followers --------------------------------------------------------------------------------------


def test_followers_continue_with_one_request_when_their_leader_hangs_up(dduct: RunningDduct) -> None:
    gate = Gate()

    def handler(asked: Asked, connection: Connection) -> None:
        if len(origin.requests) == 1:
            connection.sock.recv(1)
            connection.over = True
        else:
            gate.wait()
            connection.respond(200, [("ETag", '"1"'), ("Cache-Control", "max-age=1000")], BODY)

    origin = dduct.origin(handler, tls=False)
    leader, *followers = [dduct.client() for _ in range(9)]
    ask(leader, origin, "/x.deb")
    origin.wait_for_requests(1)
    for follower in followers:
        ask(follower, origin, "/x.deb")
    wait_until(lambda: dduct.fills()[0].snapshot().readers == 8)
    reset(leader)
    gate.reached()
    gate.open()
    assert [follower.read().body for follower in followers] == [BODY] * 8
    assert len(origin.requests) == 2 and dduct.counted(Counter.CLIENTS_GONE) == 1


@pytest.mark.parametrize("first_to_go", ["leader", "second"])
@pytest.mark.parametrize("both", [False, True])
def test_either_of_two_asking_clients_may_hang_up(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch, first_to_go: str, both: bool
) -> None:
    monkeypatch.setattr("fetching.following._SLOW_HEAD", 0.05)
    gates = {"leader": Gate(), "second": Gate(), "third": Gate()}
    gone: List[str] = []

    def handler(asked: Asked, connection: Connection) -> None:
        name = asked.get("user-agent") or ""
        gates[name].wait()
        if name in gone:
            connection.over = True
        else:
            connection.respond(200, [("ETag", '"1"'), ("Cache-Control", "max-age=1000")], BODY)

    origin = dduct.origin(handler, tls=False)
    clients = {}
    for name in ("leader", "second"):
        clients[name] = dduct.client()
        ask(clients[name], origin, "/x.deb", f"User-Agent: {name}")
        gates[name].reached()
    clients["third"] = dduct.client()
    ask(clients["third"], origin, "/x.deb", "User-Agent: third")
    wait_until(lambda: dduct.fills()[0].snapshot().readers == 2)
    leaving = [first_to_go, *({"leader", "second"} - {first_to_go} if both else ())]
    for count, name in enumerate(leaving, 1):
        gone.append(name)
        reset(clients.pop(name))
        assert dduct.counted(Counter.CLIENTS_GONE, count) == count
    for gate in gates.values():
        gate.open()
    assert [client.read().body for client in clients.values()] == [BODY] * len(clients)
    assert len(origin.requests) == 2 + both


def test_a_follower_of_another_process_is_noticed_when_it_hangs_up(tmp_path: Path) -> None:
    place = tmp_path / f"object{GROWING_SUFFIX}"
    with place.open("wb") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        foreign = ForeignFill(str(tmp_path / "object"), os.open(place, os.O_RDWR), verifies=False)
        ours, theirs = socket.socketpair()
        watch = ClientWatch(ours.fileno, lambda: True)
        theirs.close()
        with ours, ExitStack() as cleanup, working_for(watch):
            cleanup.callback(foreign.detach)
            with pytest.raises(ClientGone):
                foreign.wait_head(TIMEOUT)


# --- the watch itself -------------------------------------------------------------------------------


def test_a_half_closed_client_is_watched_for_its_full_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("net.client_watch.HALF_CLOSED", 0.05)
    client, theirs = socket.socketpair()
    origin, other = socket.socketpair()
    with client, theirs, origin, other:
        watch = ClientWatch(client.fileno, lambda: False)
        poll = select.poll()
        poll.register(origin.fileno(), select.POLLIN)
        assert watch.wait(poll, 0.0) == [] and not watch.half_closed
        theirs.shutdown(socket.SHUT_WR)
        other.send(b"x")
        assert watch.wait(poll, TIMEOUT) == [(origin.fileno(), select.POLLIN)]
        origin.recv(1)
        with pytest.raises(ClientGone):
            watch.wait(poll, TIMEOUT)
        assert not watch.half_closed
        with ThreadPoolExecutor(1) as pool:
            monkeypatch.setattr("net.client_watch.HALF_CLOSED", TIMEOUT)
            waiting = pool.submit(watch.wait, poll, TIMEOUT)
            wait_until(lambda: watch.half_closed)
            other.send(b"x")
            assert waiting.result() and not watch.half_closed


def test_pipelined_requests_do_not_look_like_a_hang_up() -> None:
    client, theirs = socket.socketpair()
    with client, theirs:
        theirs.send(b"GET / HTTP/1.1\r\n\r\n")
        assert ClientWatch(client.fileno, lambda: True).wait(select.poll(), 0.01) == []


def test_a_client_whose_connection_was_closed_here_is_gone() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        watch = ClientWatch(ours.fileno, lambda: False)
        ours.close()
        with pytest.raises(ClientGone):
            watch.wait(select.poll(), TIMEOUT)
        with pytest.raises(ClientGone):
            watch.check()


# --- what is learnt of an origin --------------------------------------------------------------------


def test_the_next_follower_retries_when_the_one_chosen_hangs_up() -> None:
    now = [0.0]
    outages = Outages(5.0, SharedTable(64), "x", lambda: now[0])
    assert outages.failed(("a",), 0.0) == 5.0
    outages.undecided(("a",), 0.0)  # it was none that tries alone
    assert outages.wait(("a",)) == 5.0
    now[0] = 6.0
    assert outages.wait(("a",)) == 0.0 and outages.wait(("a",)) == 5.0
    outages.undecided(("a",), 6.0)
    assert outages.wait(("a",)) == 0.0 and outages.wait(("a",)) == 5.0
    outages.undecided(("b",), 6.0)
    assert outages.wait(("b",)) == 0.0
