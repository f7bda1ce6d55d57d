"""Small misses in the poller's thread, while origins, disks and other processes misbehave: nobody else waits."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from typing import Any, Callable, Iterator, List

import pytest
from support.client import Client, wait_until
from support.origin import Asked, Connection, Gate, Origin
from support.running import HOST, RunningDduct
from support.told import BODY, FRESH, HINTS, WHOLE, Told, confirms, primed, responds, send_get, sends, tagged

from fetching import following, polled_fetch
from fetching.polled_fetch import PolledFetch
from monitoring.metrics import Counter
from monitoring.request_number import current
from net.stream import Stream
from protocol.http1 import Authority
from proxy.fast_path import AwaitedOrigin
from storage.locks import try_lock_record
from transfers.fill import Fill
from upstream.nonblocking_request import NonblockingRequest

pytestmark = pytest.mark.one_process

TIMEOUT = 20.0


@pytest.fixture
def waits_in_poller(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """Waits for a peer in the poller's thread: there must be none."""
    found: List[str] = []
    real = Stream._receive_within

    def receive(stream: Stream, *arguments: Any) -> int:
        if threading.current_thread().name == "idle":
            found.append(repr(stream))
        return real(stream, *arguments)

    monkeypatch.setattr(Stream, "_receive_within", receive)
    return found


def stored(dduct: RunningDduct, told: Told, reaction: Any, connections: int = 2) -> Origin:
    """An origin whose /object.deb is stored."""
    told.reactions["/object.deb"] = reaction
    origin = primed(dduct, told, connections)
    assert dduct.fetch(origin, "/object.deb").body == BODY
    dduct.wait_until_durable()
    wait_until(lambda: not dduct.fills() and not dduct.server.connections)
    return origin


@pytest.mark.parametrize("start", [b"\r\n\r\n", b"\r\n\n", b"\n", b"\r\n\r\n" + HINTS, HINTS, b"HTTP/1.1 2"])
def test_whatever_a_response_begins_with_the_poller_does_not_wait(
    dduct: RunningDduct, begun: List[PolledFetch], waits_in_poller: List[str], start: bytes
) -> None:
    told, gate = Told(), Gate()

    def react(_: Asked, connection: Connection) -> None:
        connection.send(start)
        gate.wait()
        connection.send(WHOLE[len(start) :] if WHOLE.startswith(start) else WHOLE)

    told.reactions["/object.deb"] = react
    origin = primed(dduct, told)
    with dduct.intercepted(origin) as client:
        send_get(client, origin, "/object.deb")
        gate.reached()
        assert dduct.client().get("/healthz", "localhost").status == 200
        gate.open()
        answer = client.read()
        while answer.status < 200:
            answer = client.read()
        assert answer.body == BODY or answer.status == 502
    assert begun and not waits_in_poller


@pytest.mark.parametrize("polls", [True, False])
def test_interim_responses_reach_the_client(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch, polls: bool) -> None:
    if not polls:
        monkeypatch.setattr(polled_fetch, "begin", lambda *_: None)
    told, gate = Told(), Gate()

    def react(_: Asked, connection: Connection) -> None:
        connection.send(HINTS)
        gate.wait()
        connection.send(WHOLE)

    told.reactions["/object.deb"] = react
    origin = primed(dduct, told)
    with dduct.intercepted(origin) as client:
        send_get(client, origin, "/object.deb")
        assert client.read().status == 103
        gate.open()
        assert client.read().body == BODY


def test_a_response_in_many_small_records_is_read_in_turns(
    dduct: RunningDduct, polled: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, reads = Told(), [0]
    told.reactions["/object.deb"] = sends(*(WHOLE[at : at + 20] for at in range(0, len(WHOLE), 20)))
    origin = primed(dduct, told)
    real_advance, real_take_in, most = PolledFetch.advance, Stream.take_in, [0]

    def advance(fetch: PolledFetch) -> object:
        reads[0] = 0
        step = real_advance(fetch)
        most[0] = max(most[0], reads[0])
        return step

    def take_in(stream: Stream) -> bool:
        reads[0] += 1
        return real_take_in(stream)

    monkeypatch.setattr(PolledFetch, "advance", advance)
    monkeypatch.setattr(Stream, "take_in", take_in)
    assert dduct.fetch(origin, "/object.deb").body == BODY
    assert 0 < most[0] <= 64


@pytest.fixture
def awaited(start_dduct: Callable[..., RunningDduct], begun: List[PolledFetch]) -> Iterator[Any]:
    """A dduct, its origin, a client whose small miss waits for the origin, and the gate that lets the origin answer."""
    dduct, told, gate = start_dduct(), Told(), Gate()

    def react(asked: Asked, connection: Connection) -> None:
        gate.wait()
        connection.respond(200, [FRESH], BODY)

    told.reactions["/object.deb"] = react
    origin = primed(dduct, told, 2)
    with dduct.intercepted(origin) as client:
        send_get(client, origin, "/object.deb")
        gate.reached()
        wait_until(lambda: bool(begun))
        yield dduct, origin, client, gate
        gate.open()


def test_a_request_that_waits_when_dduct_stops_is_answered(awaited: Any) -> None:
    dduct, _, client, gate = awaited
    stop = threading.Thread(target=dduct.server.stop, args=(10,))
    stop.start()
    wait_until(lambda: dduct.server._poller._epoll is None)  # a thread has to take over
    gate.open()
    assert client.read().body == BODY
    stop.join(TIMEOUT)
    assert not stop.is_alive()


def test_a_disk_that_hangs_takes_one_thread_however_many_responses_come(
    dduct: RunningDduct, begun: List[PolledFetch], monkeypatch: pytest.MonkeyPatch
) -> None:
    hang, answers, entered, count = threading.Event(), threading.Event(), [], 6
    real = Fill.store_whole

    def store(fill: Fill, *arguments: Any) -> bool:
        entered.append(threading.current_thread().name)
        assert hang.wait(TIMEOUT)
        return real(fill, *arguments)

    monkeypatch.setattr(Fill, "store_whole", store)
    told = Told()

    def react(_: Asked, connection: Connection) -> None:
        assert answers.wait(TIMEOUT)
        connection.respond(200, [FRESH], BODY)

    for number in range(count):
        told.reactions[f"/{number}.deb"] = react
    origin = primed(dduct, told, count)
    with ExitStack() as stack:
        stack.callback(hang.set)
        stack.callback(answers.set)
        clients: List[Client] = [stack.enter_context(dduct.intercepted(origin)) for _ in range(count)]
        for number, client in enumerate(clients):
            send_get(client, origin, f"/{number}.deb")
        wait_until(lambda: len(begun) == count)
        answers.set()
        wait_until(lambda: dduct.server._poller._lost == 1)
        for _ in range(3):
            assert dduct.client().get("/healthz", "localhost").status == 200
        assert entered == ["idle"]
        hang.set()
        assert [client.read().body for client in clients] == [BODY] * count


def test_a_record_that_another_process_locks_is_left_to_a_thread(
    dduct: RunningDduct, begun: List[PolledFetch], polled: List[str]
) -> None:
    told = Told()
    origin = stored(dduct, told, tagged())
    polled.clear()
    told.reactions["/object.deb"] = confirms(("ETag", '"1"'), ("Cache-Control", "max-age=600"))
    fd = os.open(dduct.files / dduct.stored()[0], os.O_RDWR)
    try:
        assert try_lock_record(fd)
        with dduct.intercepted(origin) as client:
            send_get(client, origin, "/object.deb")
            wait_until(lambda: origin.count("/object.deb") == 2)
            assert dduct.client().get("/healthz", "localhost").status == 200
            os.close(fd)
            fd = -1
            assert client.read().body == BODY
    finally:
        if fd >= 0:
            os.close(fd)
    assert len(begun) == 2 and not polled


def test_the_trial_after_an_outage_is_left_to_a_thread(
    dduct: RunningDduct, begun: List[PolledFetch], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    origin = stored(dduct, told, responds(200, ("Cache-Control", "max-age=0"), ("ETag", '"1"')))
    silent, name = dduct.server.runtime.services.origins._silent, ("https", Authority(HOST, origin.port))
    silent.failed(name, silent._clock())
    silent._table.put(silent._key(name), 0.0)  # the pause is over
    count = len(begun)
    told.reactions["/object.deb"] = confirms(("ETag", '"1"'))
    assert dduct.fetch(origin, "/object.deb").body == BODY
    assert origin.count("/object.deb") == 2 and len(begun) == count
    assert not silent.lasts(name) and not dduct.counters.value(Counter.FAST_FAILURES)


def test_an_object_that_goes_during_its_validation_is_stored_again(
    dduct: RunningDduct, begun: List[PolledFetch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a request that follows, and then asks as well: the validation has no file yet."""
    monkeypatch.setattr(following, "_SLOW_HEAD", 0.0)
    monkeypatch.setattr(AwaitedOrigin, "timeout", TIMEOUT)
    told, gate = Told(), Gate()
    origin = stored(dduct, told, tagged())

    def react(asked: Asked, connection: Connection) -> None:
        if asked.get("x-other") is None:
            gate.wait()
        connection.respond(200, [FRESH], BODY)

    told.reactions["/object.deb"] = react
    with dduct.intercepted(origin) as client, dduct.intercepted(origin) as other:
        send_get(client, origin, "/object.deb")
        gate.reached()
        for name in dduct.stored():
            (dduct.files / name).unlink()
        send_get(other, origin, "/object.deb", "X-Other: 1\r\n")
        answer = other.read()
        gate.open()
        assert answer.body == client.read().body == BODY
    wait_until(lambda: not dduct.fills() and not dduct.server.connections)
    assert len(dduct.stored()) == 1


def test_a_connection_that_was_not_used_grows_older(
    dduct: RunningDduct, begun: List[PolledFetch], monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = primed(dduct, Told())
    pool = dduct.server.runtime.services.origins._connections._pool
    (connection,) = pool._by_age.values()
    before = connection.idle_since
    monkeypatch.setattr("cache.Cache.lead", lambda *_: None)
    sent: List[object] = []
    real = NonblockingRequest.drop

    def drop(request: NonblockingRequest) -> None:
        real(request)
        sent.append(connection.idle_since)

    monkeypatch.setattr(NonblockingRequest, "drop", drop)
    assert dduct.fetch(origin, "/object.deb").body == b"/object.deb"
    assert sent == [before]


def test_a_connect_behind_a_miss_leaves_no_number_behind(dduct: RunningDduct, begun: List[PolledFetch]) -> None:
    told, gate = Told(), Gate()

    def react(asked: Asked, connection: Connection) -> None:
        gate.wait()
        connection.respond(200, [FRESH], BODY)

    told.reactions["/object.deb"] = react
    origin = dduct.origin(told, tls=False)
    name = f"{HOST}:{origin.port}"
    assert dduct.client().get(f"http://{name}/first.deb", name).status == 200
    wait_until(lambda: dduct.server.runtime.services.origins.idle == 1)
    client = dduct.client()
    client.send(f"GET http://{name}/object.deb HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    gate.reached()
    wait_until(lambda: bool(begun))
    client.send(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    gate.open()
    assert client.read().body == BODY
    assert client.read(method="CONNECT").status == 200
    numbers = client_numbers(dduct)
    wait_until(lambda: bool(numbers) and numbers[-1] is None)


def client_numbers(dduct: RunningDduct) -> List[object]:
    """The number that the poller's thread has between two connections, each time that it looks after its upkeep."""
    found: List[object] = []
    real = dduct.server._poller._upkeep

    def upkeep() -> None:
        found.append(current())
        real()

    dduct.server._poller._upkeep = upkeep
    return found
