"""Heuristically fresh objects are validated in the background, or for a client that repeats its request."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Tuple

import pytest
from support.client import Answer, Client, wait_until
from support.origin import Gate
from support.running import HOST, RunningDduct
from system.test_caching import BODY, FRESH, OTHER, Shelf

from monitoring.metrics import Counter

Build = Callable[..., RunningDduct]
GOOD = "Authorization: Bearer x"


class Clock:
    """The real time, and what a test adds to it."""

    def __init__(self) -> None:
        self._real = time.time
        self.ahead = 0.0

    def __call__(self) -> float:
        return self._real() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


def guessed(*fields: Tuple[str, str], body: bytes = BODY) -> Shelf:
    """An object whose origin says when it was modified, and no more."""
    shelf = Shelf(*fields, body=body)
    shelf.modified = "Mon, 01 Jan 2024 00:00:00 GMT"
    return shelf


def replace(shelf: Shelf, body: bytes = OTHER) -> None:
    shelf.body, shelf.etag, shelf.modified = body, '"2"', "Tue, 02 Jan 2024 00:00:00 GMT"


def status(answer: Answer) -> str:
    return (answer.get("cache-status") or "").partition("; ttl")[0]


# --- in the background ------------------------------------------------------------------------------


def test_an_old_heuristic_hit_is_sent_at_once_and_validated_in_the_background(
    dduct: RunningDduct, clock: Clock
) -> None:
    shelf = guessed()
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    clock.ahead = 500
    assert status(dduct.fetch(origin, "/x.deb")) == "dduct; hit"
    clock.ahead = 700
    shelf.before = Gate()
    answers = [dduct.fetch(origin, "/x.deb") for _ in range(3)]  # while the question is open
    assert [(status(answer), answer.body) for answer in answers] == [("dduct; hit", BODY)] * 3
    shelf.before.reached()
    shelf.before.open()
    assert dduct.counted(Counter.CONFIRMED) == 1
    assert int(dduct.fetch(origin, "/x.deb").get("age") or 0) < 100
    assert shelf.answers == [200, 304]


def test_a_changed_object_is_current_in_the_next_answer(dduct: RunningDduct, clock: Clock) -> None:
    shelf = guessed()
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    clock.ahead = 700
    replace(shelf)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert dduct.counted(Counter.PUBLISHED, 2) == 2
    answer = dduct.fetch(origin, "/x.deb")
    assert (answer.body, status(answer)) == (OTHER, "dduct; hit")
    assert shelf.answers == [200, 200] and dduct.counters.value(Counter.OUTDATED) == 1


def test_an_object_is_not_sent_while_its_replacement_arrives(dduct: RunningDduct, clock: Clock) -> None:
    shelf = guessed()
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    clock.ahead = 700
    replace(shelf)
    shelf.gate = Gate()
    assert dduct.fetch(origin, "/x.deb").body == BODY
    shelf.gate.reached()
    wait_until(lambda: bool(dduct.counters.value(Counter.FILLS) == 2))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(dduct.fetch, origin, "/x.deb")
        shelf.gate.open()
        assert answer.result().body == OTHER
    assert shelf.answers == [200, 200]


def test_a_background_answer_that_forbids_storing_outdates_the_object(dduct: RunningDduct, clock: Clock) -> None:
    shelf = guessed()
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    clock.ahead = 700
    shelf.status = 404
    assert dduct.fetch(origin, "/x.deb").body == BODY
    dduct.counted(Counter.OUTDATED)
    wait_until(lambda: not dduct.fills())
    assert dduct.fetch(origin, "/x.deb").status == 404


@pytest.mark.parametrize("trouble", ["dead", "503", "429"])
def test_a_failing_origin_is_not_asked_repeatedly(dduct: RunningDduct, clock: Clock, trouble: str) -> None:
    shelf = guessed(body=b"small")
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    dduct.wait_until_durable()
    clock.ahead = 700
    shelf.dead, shelf.status = trouble == "dead", None if trouble == "dead" else int(trouble)
    with dduct.intercepted(origin) as client:
        assert client.get("/x.deb", f"{HOST}:{origin.port}").body == b"small"
        dduct.counted(Counter.UNCONFIRMED)
        asked = len(origin.requests)
        for _ in range(10):
            assert client.get("/x.deb", f"{HOST}:{origin.port}").body == b"small"
        assert len(origin.requests) == asked and dduct.counters.value(Counter.UNCONFIRMED) == 1
        clock.ahead += 61
        assert client.get("/x.deb", f"{HOST}:{origin.port}").body == b"small"
    dduct.counted(Counter.UNCONFIRMED, 2)


def test_answers_from_memory_end_when_a_validation_is_due(dduct: RunningDduct, clock: Clock) -> None:
    shelf = guessed(body=b"small")
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    dduct.wait_until_durable()
    with dduct.intercepted(origin) as client:
        for _ in range(5):
            client.get("/x.deb", f"{HOST}:{origin.port}")
        assert shelf.answers == [200]
        clock.ahead = 700
        for _ in range(5):
            assert client.get("/x.deb", f"{HOST}:{origin.port}").body == b"small"
        dduct.counted(Counter.CONFIRMED)
        for _ in range(5):
            client.get("/x.deb", f"{HOST}:{origin.port}")
    assert shelf.answers == [200, 304]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "fields", [(), ("Range: bytes=5-9",), ('If-None-Match: "1"',), ("Cache-Control: max-age=9999",)]
)
def test_every_kind_of_request_triggers_background_validation(
    dduct: RunningDduct, clock: Clock, method: str, fields: Tuple[str, ...]
) -> None:
    shelf = guessed()
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    clock.ahead = 700
    with dduct.intercepted(origin) as client:
        client.get("/x.deb", f"{HOST}:{origin.port}", *fields, method=method)
    dduct.counted(Counter.CONFIRMED)
    asked = origin.requests[-1]
    assert (asked.method, asked.get("range"), asked.get("cache-control")) == ("GET", None, None)
    assert asked.get("if-none-match") == '"1"'


def test_background_validation_sends_no_credentials(dduct: RunningDduct, clock: Clock) -> None:
    shelf = guessed()
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    clock.ahead = 700
    dduct.fetch(origin, "/x.deb", GOOD, "Cookie: a=b", "X-Api-Key: c")
    dduct.counted(Counter.CONFIRMED)
    last = origin.requests[-1]
    assert [last.get(name) for name in ("authorization", "cookie", "x-api-key")] == [None] * 3


@pytest.mark.parametrize("kind", ["restricted", "explicit", "signed"])
def test_only_heuristically_fresh_objects_are_validated_in_the_background(
    start_dduct: Build, clock: Clock, kind: str
) -> None:
    dduct = start_dduct(auth_grace=3600.0)
    shelf = guessed(*(FRESH if kind == "explicit" else ()))
    origin = dduct.origin(shelf)
    path = "/x.deb?token=1" if kind == "signed" else "/x.deb"
    fields = (GOOD,) if kind == "restricted" else ()
    dduct.fetch(origin, path, *fields)
    clock.ahead = 700
    dduct.fetch(origin, path, *fields)
    assert dduct.counters.value(Counter.CONFIRMED) == 0
    assert not any(thread.name == "validation" for thread in threading.enumerate())


def test_all_workers_share_one_background_validation(start_dduct: Build) -> None:
    dduct = start_dduct(recheck=0.0, workers=2)
    shelf = guessed()
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    shelf.before = Gate()
    for _ in range(20):
        assert dduct.fetch(origin, "/x.deb").body == BODY  # the question is open
    shelf.before.reached()
    assert len(origin.requests) == 2
    shelf.before.open()
    dduct.counted(Counter.CONFIRMED)


def test_a_background_validation_does_not_delay_a_stop(start_dduct: Build, clock: Clock) -> None:
    dduct = start_dduct(upstream_timeout=300.0)
    shelf = guessed()
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    clock.ahead = 700
    shelf.before = Gate()
    dduct.fetch(origin, "/x.deb")
    shelf.before.reached()
    started = time.monotonic()
    dduct.server.stop(grace=600)
    assert time.monotonic() - started < 60
    shelf.before.open()


# --- a client that asks again -----------------------------------------------------------------------


@pytest.fixture
def doubting(start_dduct: Build) -> RunningDduct:
    return start_dduct(retry_window=120.0)


@pytest.mark.parametrize("size", [100, 200_000])
def test_a_client_that_repeats_its_request_gets_the_current_object(doubting: RunningDduct, size: int) -> None:
    shelf = guessed(body=b"a" * size)
    origin = doubting.origin(shelf)
    assert doubting.fetch(origin, "/x.deb").body == b"a" * size
    wait_until(lambda: not doubting.server.connections)  # what was sent is noted after it was sent
    replace(shelf, b"b" * size)
    assert doubting.fetch(origin, "/x.deb").body == b"b" * size
    assert shelf.answers == [200, 200] and doubting.counters.value(Counter.DOUBTED) == 1


def test_repeated_requests_of_many_clients_cause_one_validation(doubting: RunningDduct, clock: Clock) -> None:
    shelf = guessed(body=b"small")
    origin = doubting.origin(shelf)
    doubting.fetch(origin, "/x.deb")
    doubting.wait_until_durable()
    with doubting.intercepted(origin) as client:
        for _ in range(30):
            assert client.get("/x.deb", f"{HOST}:{origin.port}").body == b"small"
        assert shelf.answers == [200, 304]
        clock.ahead = 119
        client.get("/x.deb", f"{HOST}:{origin.port}")
        assert shelf.answers == [200, 304]
        clock.ahead = 122
        for _ in range(30):
            assert client.get("/x.deb", f"{HOST}:{origin.port}").body == b"small"
    assert shelf.answers == [200, 304, 304]


def test_answers_from_memory_count_as_deliveries(doubting: RunningDduct, clock: Clock) -> None:
    shelf = guessed(body=b"small")
    origin = doubting.origin(shelf)
    doubting.fetch(origin, "/x.deb")
    doubting.wait_until_durable()
    with doubting.intercepted(origin) as client:
        for _ in range(5):
            client.get("/x.deb", f"{HOST}:{origin.port}")
        clock.ahead = 130  # no client got it lately, and the last validation is long ago
        client.get("/x.deb", f"{HOST}:{origin.port}")
        replace(shelf, b"other")
        assert client.get("/x.deb", f"{HOST}:{origin.port}").body == b"other"


def test_the_first_request_of_another_client_is_no_repetition(doubting: RunningDduct) -> None:
    shelf = guessed()
    origin = doubting.origin(shelf, tls=False)
    url = f"http://{HOST}:{origin.port}/x.deb"
    for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        with Client(doubting.tcp_port, source=source) as client:
            assert client.get(url, "x").body == BODY
    assert shelf.answers == [200]
    with Client(doubting.tcp_port, source="127.0.0.2") as client:
        assert client.get(url, "x").body == BODY
    assert shelf.answers == [200, 304]


def test_repeated_ranges_heads_and_explicit_lifetimes_are_not_validated(doubting: RunningDduct) -> None:
    shelf = guessed()
    origin = doubting.origin(shelf)
    doubting.fetch(origin, "/x.deb", "Range: bytes=0-9")
    doubting.fetch(origin, "/x.deb", "Range: bytes=10-")
    assert doubting.fetch(origin, "/x.deb").body == BODY
    with doubting.intercepted(origin) as client:
        client.get("/x.deb", f"{HOST}:{origin.port}", method="HEAD")
    doubting.fetch(origin, "/x.deb", "Range: bytes=10-")
    assert shelf.answers == [200]
    lasting = Shelf(*FRESH)
    origin = doubting.origin(lasting)
    for _ in range(3):
        doubting.fetch(origin, "/x.deb")
    assert lasting.answers == [200]


@pytest.mark.parametrize("forgiving", [True, False])
def test_a_validation_that_fails_changes_nothing(start_dduct: Build, forgiving: bool) -> None:
    dduct = start_dduct(retry_window=120.0, stale_if_error=forgiving)
    shelf = guessed()
    origin = dduct.origin(shelf)
    dduct.fetch(origin, "/x.deb")
    shelf.dead = True
    for _ in range(3):
        assert dduct.fetch(origin, "/x.deb").body == BODY


def test_workers_share_recent_deliveries(start_dduct: Build) -> None:
    dduct = start_dduct(retry_window=120.0, workers=2)
    shelf = guessed()
    origin = dduct.origin(shelf)
    for number in range(12):
        shelf.body, shelf.etag = BODY, '"1"'
        assert dduct.fetch(origin, f"/{number}.deb").body == BODY
        shelf.body, shelf.etag = OTHER, '"2"'
        assert dduct.fetch(origin, f"/{number}.deb").body == OTHER
