"""The same request again: the same answer, unless anything has changed."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Callable, List, Optional, Tuple

import pytest
from support.client import Answer, wait_until
from support.origin import Asked, Connection, Files, Gate, Origin
from support.running import HOST, RunningDduct

from fetching.small_hit import PlainRequest
from monitoring.metrics import Counter
from net.stream import Stream

BODY = os.urandom(5000)
FRESH = [("Cache-Control", "max-age=600")]


class Spy:
    """Counts the answers that were given again, and notes in which turns."""

    def __init__(self, dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answered = 0
        self.turns: List[Optional[float]] = []
        self.requests: List[PlainRequest] = []
        hot = dduct.server.runtime.memory_cache
        real = hot.answer

        def answer(request: PlainRequest, iteration: Optional[float] = None) -> object:
            found = real(request, iteration)
            if found is not None:
                self.answered += 1
                self.turns.append(iteration)
                self.requests.append(request)
            return found

        monkeypatch.setattr(hot, "answer", answer)


@pytest.fixture
def spy(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(dduct, monkeypatch)


def settled(dduct: RunningDduct, origin: Origin, path: str = "/x.deb") -> None:
    """The object is here, and everything is written that is written after its publication."""
    assert dduct.fetch(origin, path).status == 200
    dduct.wait_until_durable()
    wait_until(lambda: not dduct.server.connections)  # the answer is remembered after the client has it


def fetch_and_know(dduct: RunningDduct, origin: Origin, path: str = "/x.deb") -> Answer:
    """Two hits, of which the second leaves the object in memory."""
    dduct.fetch(origin, path)
    answer = dduct.fetch(origin, path)
    wait_until(lambda: dduct.server.runtime.memory_cache.snapshot()[0] > 0)
    return answer


def without_age(answer: Answer) -> List[Tuple[str, str]]:
    return [field for field in answer.headers if field[0] not in ("Age", "Cache-Status")]


def test_a_repeated_request_gets_the_same_answer(dduct: RunningDduct, spy: Spy) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}, FRESH))
    settled(dduct, origin)
    with dduct.intercepted(origin) as client:
        answers = [client.get("/x.deb", f"{HOST}:{origin.port}") for _ in range(5)]
    assert spy.answered == 5 and None not in spy.turns  # by the poller's thread
    assert {answer.body for answer in answers} == {BODY}
    assert all(without_age(answer) == without_age(answers[0]) for answer in answers)
    assert all((answer.get("cache-status") or "").startswith("dduct; hit; ttl=5") for answer in answers)
    assert dduct.counted(Counter.HITS) == 5 and len(origin.requests) == 1


def test_age_and_ttl_advance_in_answers_from_memory(
    dduct: RunningDduct, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}, FRESH))
    settled(dduct, origin)
    fetch_and_know(dduct, origin)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 100)
    answer = dduct.fetch(origin, "/x.deb")
    assert spy.answered == 3
    assert 100 <= int(answer.get("age") or 0) < 110  # the disk takes its time to settle
    assert (answer.get("cache-status") or "").startswith("dduct; hit; ttl=49")
    monkeypatch.setattr(time, "time", lambda: now() + 601)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert spy.answered == 3 and len(origin.requests) == 2  # stale: it is validated


def test_an_object_that_never_changes_has_no_ttl(dduct: RunningDduct, spy: Spy) -> None:
    path = f"/v2/a/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}"
    origin = dduct.origin(Files({path: BODY}))
    settled(dduct, origin, path)
    answers = [fetch_and_know(dduct, origin, path) for _ in range(3)]
    assert [answer.get("cache-status") for answer in answers] == ["dduct; hit"] * 3 and spy.answered == 6


@pytest.mark.parametrize("change", ["removed", "replaced", "truncated", "touched", "alias removed"])
def test_a_changed_object_is_not_answered_from_memory(dduct: RunningDduct, spy: Spy, change: str) -> None:
    digest = hashlib.sha256(BODY).hexdigest()
    path = f"/v2/a/blobs/sha256:{digest}" if change == "alias removed" else "/x.deb"
    origin = dduct.origin(Files({path: BODY}, FRESH))
    settled(dduct, origin, path)
    fetch_and_know(dduct, origin, path)
    dduct.fetch(origin, path)
    assert spy.answered == 3
    names = [name for name in dduct.stored() if name.startswith("https/")]
    place = dduct.files / names[0]
    if change in ("removed", "alias removed"):
        place.unlink()
    elif change == "truncated":
        os.truncate(place, 10)
    elif change == "touched":
        os.utime(place)
    else:
        place.write_bytes(BODY[::-1])  # with the record of the other: as foreign hands may do
    answer = dduct.fetch(origin, path)
    assert answer.status == 200
    assert answer.body == (BODY[::-1] if change == "replaced" else BODY)
    assert spy.answered == (4 if change in ("touched", "replaced") else 3)  # the rest is no hit any more
    assert len(origin.requests) == {"touched": 1, "replaced": 1}.get(change, 2)


@pytest.mark.parametrize(
    "field",
    ["Range: bytes=0-9", 'If-None-Match: "5000"', "Cache-Control: no-cache", "Pragma: no-cache"],
)
def test_requests_with_conditions_are_not_answered_from_memory(dduct: RunningDduct, spy: Spy, field: str) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}, FRESH))
    settled(dduct, origin)
    for _ in range(3):
        assert dduct.fetch(origin, "/x.deb", field).status in (200, 206, 304)
    assert spy.answered == 0


def test_an_object_with_no_cache_is_not_answered_from_memory(dduct: RunningDduct, spy: Spy) -> None:
    """Although one request was answered by another request's validation, for which it had waited."""
    gate = Gate()

    def handler(asked: Asked, connection: Connection) -> None:
        if len(origin.requests) == 2:
            gate.wait()
        if asked.get("if-none-match") == '"1"':
            connection.head(304, [("ETag", '"1"')])
        else:
            fields = [
                ("ETag", '"1"'),
                ("Cache-Control", "no-cache"),
                ("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT"),
            ]
            connection.respond(200, fields, BODY)

    origin = dduct.origin(handler)
    settled(dduct, origin)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(dduct.fetch, origin, "/x.deb")]
        gate.reached()
        answers.append(pool.submit(dduct.fetch, origin, "/x.deb"))
        wait_until(lambda: bool(dduct.fills()) and dduct.fills()[0].snapshot().readers == 1)
        gate.open()
        notes = [answer.result().get("cache-status") or "" for answer in answers]
    assert notes[1].startswith("dduct; hit")
    wait_until(lambda: not dduct.server.connections)
    asked = len(origin.requests)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert len(origin.requests) == asked + 1 and not spy.answered


def test_a_restricted_object_is_not_answered_from_memory(dduct: RunningDduct, spy: Spy) -> None:
    def private(asked: Asked, connection: Connection) -> None:
        if asked.get("authorization") != "good":
            connection.respond(401, [], b"who are you?")
        else:
            connection.respond(200, [("ETag", '"1"'), *FRESH], BODY)

    origin = dduct.origin(private)
    assert dduct.fetch(origin, "/x.deb", "Authorization: good").body == BODY
    for _ in range(3):
        assert dduct.fetch(origin, "/x.deb").status == 401
        assert dduct.fetch(origin, "/x.deb", "Authorization: good").body == BODY
    assert spy.answered == 0


def test_a_variant_in_memory_answers_matching_requests_only(dduct: RunningDduct, spy: Spy) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}, [*FRESH, ("Vary", "Accept-Language")]))
    assert dduct.fetch(origin, "/x.deb", "Accept-Language: a").body == BODY
    for _ in range(2):
        dduct.fetch(origin, "/x.deb", "Accept-Language: a")
        dduct.fetch(origin, "/x.deb", "Accept-Language: b")
    assert len(origin.requests) == 3  # b is relayed


def test_an_object_that_comes_back_is_counted_once_in_memory(dduct: RunningDduct, spy: Spy) -> None:
    """An object that changes and comes back takes no more room than it takes."""
    origin = dduct.origin(Files({"/x.deb": BODY}, FRESH))
    settled(dduct, origin)
    hot = dduct.server.runtime.memory_cache
    place = dduct.files / dduct.stored()[0]
    with dduct.intercepted(origin) as client:
        for _ in range(4):
            for _ in range(3):
                assert client.get("/x.deb", f"{HOST}:{origin.port}").body == BODY
            assert hot.snapshot() == (1, len(BODY))
            os.utime(place)
    assert spy.answered == 12


def test_objects_beyond_the_memory_limit_are_still_answered(
    dduct: RunningDduct, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fetching.memory_cache._MAX_HELD", 2 * len(BODY))
    dduct.server.reload(dduct.config)  # a new memory
    names = [f"/{number}.deb" for number in range(5)]
    origin = dduct.origin(Files(dict.fromkeys(names, BODY), FRESH))
    for name in names:
        dduct.fetch(origin, name)
    dduct.wait_until_durable()
    with dduct.intercepted(origin) as client:
        for _ in range(3):
            for name in names:
                assert client.get(name, f"{HOST}:{origin.port}").body == BODY
    objects, size = dduct.server.runtime.memory_cache.snapshot()
    assert 0 < objects <= 4 and size == objects * len(BODY)  # two generations
    assert len(origin.requests) == len(names)


def test_a_reload_empties_the_memory_cache(dduct: RunningDduct, spy: Spy) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}, FRESH))
    settled(dduct, origin)
    for _ in range(3):
        fetch_and_know(dduct, origin)
    before = dduct.server.runtime.memory_cache
    dduct.server.reload(dduct.config)
    assert before.snapshot()[0] and not dduct.server.runtime.memory_cache.snapshot()[0]
    assert dduct.fetch(origin, "/x.deb").body == BODY


@pytest.mark.one_process
def test_the_memory_cache_does_not_answer_refused_clients(start_dduct: Callable[..., RunningDduct]) -> None:
    dduct = start_dduct()
    origin = dduct.origin(Files({"/x.deb": BODY}, FRESH))
    settled(dduct, origin)
    with dduct.intercepted(origin) as client:
        for _ in range(3):
            assert client.get("/x.deb", f"{HOST}:{origin.port}").body == BODY
        proxy = replace(dduct.config.proxy, allow_clients=("10.0.0.0/8",))
        dduct.server.reload(replace(dduct.config, proxy=proxy))
        try:
            assert client.get("/x.deb", f"{HOST}:{origin.port}").status == 403
        except OSError:
            pass  # a reload ends such connections; a request that is faster is refused


@pytest.mark.one_process
def test_an_answer_is_checked_once_in_a_poll_iteration(dduct: RunningDduct, spy: Spy) -> None:
    """All requests of an iteration were there when it began; later ones are checked again."""
    origin = dduct.origin(Files({"/x.deb": BODY}, FRESH))
    settled(dduct, origin)
    fetch_and_know(dduct, origin)
    request = spy.requests[-1]
    hot = dduct.server.runtime.memory_cache
    iteration = time.monotonic() + 3600  # long after any operation of a busy disk
    first = hot.answer(request, iteration)
    (dduct.files / dduct.stored()[0]).unlink()
    assert first is not None and hot.answer(request, iteration) is first
    assert hot.answer(request) is None and not hot.snapshot()[0]  # a thread's own look
    assert hot.answer(request, iteration) is None


@pytest.mark.one_process
def test_an_answer_that_could_not_be_sent_at_once_is_sent_later(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have had no memory for it: the connection goes on."""
    origin = dduct.origin(Files({"/x.deb": BODY}, FRESH))
    settled(dduct, origin)
    real = Stream.send_nowait
    failed: List[int] = []

    def send_nowait(stream: Stream, view: Any) -> int:
        if len(view) > len(BODY) and not failed:
            failed.append(len(view))
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return real(stream, view)

    monkeypatch.setattr(Stream, "send_nowait", send_nowait)
    with dduct.intercepted(origin) as client:
        answers = [client.get("/x.deb", f"{HOST}:{origin.port}") for _ in range(20)]
    assert failed and all(answer.body == BODY for answer in answers)
