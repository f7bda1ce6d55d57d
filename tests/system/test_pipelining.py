"""Pipelined misses are under way together, and answered in their order."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Callable, Dict, Iterator, List

import pytest
from support.client import Client, wait_until
from support.origin import Asked, Connection, Gate, Origin
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter
from proxy.fast_path import AwaitedOrigin

FRESH = [("Cache-Control", "max-age=600"), ("ETag", '"1"')]
TIMEOUT = 10.0


def body_of(target: str) -> bytes:
    return target.encode() * 100


class Slow:
    """An origin that answers only once `wanted` requests are under way, or `open` was called."""

    def __init__(self) -> None:
        self.wanted = 1
        self.special: Dict[str, Callable[[Asked, Connection], None]] = {}
        self._lock = threading.Condition()  # guards the rest
        self._under_way = 0
        self.most = 0
        self.asked: List[str] = []
        self._open = False

    def open(self) -> None:
        with self._lock:
            self._open = True
            self._lock.notify_all()

    def __call__(self, asked: Asked, connection: Connection) -> None:
        with self._lock:
            self.asked.append(asked.target)
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            self._lock.notify_all()
            self._lock.wait_for(lambda: self._open or self.most >= self.wanted, TIMEOUT)
            self._under_way -= 1
        special = self.special.get(asked.target)
        if special is not None:
            special(asked, connection)
        else:
            connection.respond(200, FRESH, body_of(asked.target))


@pytest.fixture
def slow() -> Iterator[Slow]:
    origin = Slow()
    yield origin
    origin.open()


def pipeline(client: Client, origin: Origin, targets: List[str], *fields: str) -> None:
    lines = [f"Host: {HOST}:{origin.port}", *fields]
    heads = [f"GET {target} HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n" for target in targets]
    client.send("".join(heads).encode())


def names(count: int, letter: str = "a") -> List[str]:
    return [f"/{letter}{number}.deb" for number in range(count)]


@pytest.mark.one_process
def test_pipelined_misses_are_asked_for_together_and_answered_in_order(dduct: RunningDduct, slow: Slow) -> None:
    slow.wanted = 5
    origin = dduct.origin(slow)
    targets = names(20)
    with dduct.intercepted(origin) as client:
        pipeline(client, origin, targets)
        assert [client.read().body for _ in targets] == [body_of(target) for target in targets]
    assert 5 <= slow.most <= 7  # the one whose turn it is, and a few others
    assert sorted(slow.asked) == sorted(targets)  # each once
    assert dduct.counted(Counter.AHEAD) >= 4
    dduct.wait_until_durable()
    assert len(dduct.stored()) == len(targets)


@pytest.mark.one_process
def test_requests_that_arrive_one_by_one_behind_a_miss_are_asked_for_together(
    dduct: RunningDduct, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poller's thread has begun the first of them by itself: it does not see what comes behind it."""
    monkeypatch.setattr(AwaitedOrigin, "timeout", TIMEOUT)  # so no thread takes over for being late
    origin = dduct.origin(slow)
    assert dduct.fetch(origin, "/first.deb").status == 200
    wait_until(lambda: dduct.server.runtime.services.origins.idle == 1)
    targets, gate = names(8), Gate()

    def first(asked: Asked, connection: Connection) -> None:
        gate.wait()
        connection.respond(200, FRESH, body_of(asked.target))

    slow.special[targets[0]] = first
    with dduct.intercepted(origin) as client:
        pipeline(client, origin, targets[:1])
        gate.reached()  # the poller's thread waits for it
        for target in targets[1:]:
            pipeline(client, origin, [target])
        slow.most, slow.wanted = 0, 5
        gate.open()
        assert [client.read().body for _ in targets] == [body_of(target) for target in targets]
    assert slow.most >= 5
    assert sorted(slow.asked[1:]) == sorted(targets)  # each once


@pytest.mark.one_process
def test_nothing_is_asked_for_behind_a_request_that_is_not_plain(dduct: RunningDduct, slow: Slow) -> None:
    slow.wanted = 99
    origin = dduct.origin(slow)
    with dduct.intercepted(origin) as client:
        host = f"Host: {HOST}:{origin.port}\r\n"
        client.send(
            (
                f"GET /a.deb HTTP/1.1\r\n{host}\r\n"
                f"POST /form HTTP/1.1\r\n{host}Content-Length: 60\r\n\r\n"
                f"GET /body.deb HTTP/1.1\r\n{host}"
            ).encode()
        )
        wait_until(lambda: slow.asked == ["/a.deb"])
    slow.open()
    assert dduct.counters.value(Counter.AHEAD) == 0


@pytest.mark.one_process
@pytest.mark.parametrize(
    "fields", ["Authorization: Basic eDp5", "Cookie: a=b", "Connection: close", "Range: bytes=0-1"]
)
def test_a_request_with_wishes_of_its_own_waits_for_its_turn(dduct: RunningDduct, slow: Slow, fields: str) -> None:
    slow.wanted = 99
    origin = dduct.origin(slow)
    with dduct.intercepted(origin) as client:
        pipeline(client, origin, ["/first.deb"])
        pipeline(client, origin, names(3), fields)
        wait_until(lambda: slow.asked == ["/first.deb"])
    slow.open()
    assert dduct.counters.value(Counter.AHEAD) == 0


@pytest.mark.one_process
def test_an_error_in_the_middle_is_an_error_in_the_middle(dduct: RunningDduct, slow: Slow) -> None:
    slow.wanted = 4
    slow.special["/a2.deb"] = lambda _, connection: connection.respond(404, [], b"gone")
    slow.special["/a4.deb"] = lambda _, connection: connection.reset()
    origin = dduct.origin(slow)
    targets = names(6)
    with dduct.intercepted(origin) as client:
        pipeline(client, origin, targets)
        answers = [client.read() for _ in targets]
    assert [answer.status for answer in answers] == [200, 200, 404, 200, 502, 200]
    assert answers[2].body == b"gone" and answers[5].body == body_of("/a5.deb")


@pytest.mark.one_process
def test_a_client_that_leaves_leaves_no_thread_behind(dduct: RunningDduct, slow: Slow) -> None:
    slow.wanted = 4
    origin = dduct.origin(slow)
    with dduct.intercepted(origin) as client:
        pipeline(client, origin, names(4))
        wait_until(lambda: bool(slow.asked))
    slow.open()
    wait_until(lambda: not dduct.server.connections and not dduct.fills())
    with dduct.intercepted(origin) as client:
        assert client.get("/a0.deb", f"{HOST}:{origin.port}").body == body_of("/a0.deb")


@pytest.mark.one_process
def test_one_object_that_is_asked_for_twice_is_fetched_once(dduct: RunningDduct, slow: Slow) -> None:
    slow.wanted = 2
    origin = dduct.origin(slow)
    targets = ["/a.deb", "/b.deb", "/b.deb", "/a.deb", "/b.deb"]
    with dduct.intercepted(origin) as client:
        pipeline(client, origin, targets)
        assert [client.read().body for _ in targets] == [body_of(target) for target in targets]
    assert sorted(slow.asked) == ["/a.deb", "/b.deb"]


@pytest.mark.one_process
def test_what_is_not_stored_ends_looking_ahead(dduct: RunningDduct, slow: Slow) -> None:
    slow.wanted = 1
    origin = dduct.origin(slow)
    targets = names(30)
    for target in targets:
        slow.special[target] = lambda _, connection: connection.respond(200, [("Cache-Control", "no-store")], b"x")
    with dduct.intercepted(origin) as client:
        pipeline(client, origin, targets)
        assert [client.read().body for _ in targets] == [b"x"] * 30
    assert len(slow.asked) <= 30 + 12  # each once, and those that were under way ahead of their turn


@pytest.mark.one_process
@pytest.mark.parametrize(
    ("method", "inside"),
    [("POST", "GET /inside.deb HTTP/1.1\r\nHost: {host}\r\n\r\n"), ("PUT", "")],
)
def test_neither_a_body_nor_what_stands_behind_a_change_is_asked_for_early(
    dduct: RunningDduct, slow: Slow, method: str, inside: str
) -> None:
    """Although the client has pipelined misses before: its third request is none."""
    seen: List[str] = []

    def change(asked: Asked, connection: Connection) -> None:
        seen.extend(slow.asked)
        connection.respond(200, [], b"changed")

    slow.wanted = 2
    slow.special["/x.deb"] = lambda asked, connection: (
        change(asked, connection) if asked.method != "GET" else connection.respond(200, FRESH, b"new")
    )
    origin = dduct.origin(slow)
    host = f"{HOST}:{origin.port}"
    body = inside.format(host=host)
    with dduct.intercepted(origin) as client:
        requests = [f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n" for target in names(2)]
        requests.append(f"{method} /x.deb HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n{body}")
        requests.append(f"GET /x.deb HTTP/1.1\r\nHost: {host}\r\n\r\n")
        client.send("".join(requests).encode())
        assert [client.read().body for _ in requests] == [body_of("/a0.deb"), body_of("/a1.deb"), b"changed", b"new"]
    assert sorted(seen) == ["/a0.deb", "/a1.deb", "/x.deb"] and slow.asked[2:] == ["/x.deb", "/x.deb"]


@pytest.mark.one_process
@pytest.mark.parametrize("last", ["HTTP/1.0", "HTTP/1.1\r\nConnection: close"])
def test_nothing_is_asked_for_behind_the_last_request(dduct: RunningDduct, slow: Slow, last: str) -> None:
    origin = dduct.origin(slow)
    with dduct.intercepted(origin) as client:
        client.send(f"GET /a.deb {last}\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        pipeline(client, origin, names(3))
        assert client.read().body == body_of("/a.deb")
    wait_until(lambda: not dduct.server.connections)
    assert slow.asked == ["/a.deb"]


@pytest.mark.one_process
def test_a_large_object_is_not_given_up_before_its_turn(dduct: RunningDduct, slow: Slow, clock: List[float]) -> None:
    """Without a reader, a transfer that would take minutes ends: but this one has a client that waits for it."""
    gate, half = Gate(), bytes(300_000)
    slow.wanted = 2

    def large(asked: Asked, connection: Connection) -> None:
        connection.head(200, [*FRESH, ("Content-Length", str(100 * len(half)))])
        connection.send_body(half)
        gate.wait()
        for _ in range(99):
            connection.send_body(half)

    def first(asked: Asked, connection: Connection) -> None:
        gate.reached()
        clock[0] += 3600  # an hour for a hundredth
        wait_until(lambda: any(fill.snapshot().size >= len(half) for fill in dduct.fills()))
        gate.open()
        connection.respond(200, FRESH, b"first")

    slow.special.update({"/first.deb": first, "/large.deb": large})
    origin = dduct.origin(slow)
    with dduct.intercepted(origin) as client:
        pipeline(client, origin, ["/first.deb", "/large.deb"])
        assert client.read().body == b"first"
        assert len(client.read().body) == 100 * len(half)
    assert sorted(slow.asked) == ["/first.deb", "/large.deb"]
    assert dduct.counters.value(Counter.DROPPED) == 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> List[float]:
    """Seconds by which the filler's clock is ahead."""
    ahead = [0.0]
    real = time.monotonic
    monkeypatch.setattr("fetching.filler.time", SimpleNamespace(monotonic=lambda: real() + ahead[0], sleep=time.sleep))
    return ahead
