"""Ranges far ahead of a running transfer: they come at once, cross once, and prove no more than other bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from support import process
from support.client import Answer, Client, wait_until
from support.origin import Asked, Connection, Gate, Origin
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter
from transfers.far_bytes import FarSnapshot
from transfers.hold_back import HOLD_BACK

MIB = 1024 * 1024
BODY = os.urandom(8 * MIB)
URL = "/x.deb"
NAMED = "/v2/x/blobs/sha256:" + hashlib.sha256(BODY).hexdigest()
ETAG = '"1"'

Window = Tuple[int, int]


class Stuck:
    """An origin whose response to a request for the whole stops at some offsets until the test opens their gates.

    Ranges are answered at once. What it does else is in its attributes.
    """

    def __init__(self, *stops: int, etag: Optional[str] = ETAG) -> None:
        self.gates = {stop: Gate() for stop in stops}
        self.etag = etag
        self.accepts = "bytes"
        self.ranges: List[Window] = []
        self.asked: List[Asked] = []
        self.source = BODY  # of ranges
        self.answers: Callable[[Asked, Connection], bool] = lambda asked, connection: False  # a range otherwise

    def __call__(self, asked: Asked, connection: Connection) -> None:
        wanted = asked.get("range")
        fields = [("Accept-Ranges", self.accepts)] + ([] if self.etag is None else [("ETag", self.etag)])
        if wanted is None:
            connection.head(200, [*fields, ("Content-Length", str(len(BODY)))])
            self._send(connection)
            return
        first, _, last = wanted.partition("=")[2].partition("-")
        start, end = int(first), int(last or len(BODY) - 1) + 1
        self.ranges.append((start, end))
        self.asked.append(asked)
        if not self.answers(asked, connection):
            fields.append(("Content-Range", f"bytes {start}-{end - 1}/{len(BODY)}"))
            connection.respond(206, fields, self.source[start:end])

    def _send(self, connection: Connection) -> None:
        at = 0
        for stop, gate in [*self.gates.items(), (len(BODY), None)]:
            connection.send_body(BODY[at:stop])
            at = stop
            if gate is not None:
                gate.wait()

    def open(self) -> None:
        """Send all."""
        for gate in self.gates.values():
            gate.open()


@pytest.fixture(autouse=True)
def slow_and_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every origin counts as slow, so that nothing waits to measure it."""
    monkeypatch.setattr("transfers.pace.Pace.rate", 0.0)
    monkeypatch.setattr("fetching.filler._PAUSES", (0.0,) * 5)


@pytest.fixture
def stuck() -> Iterator[Callable[..., Stuck]]:
    """Makes such origins, which are released at the end."""
    with ExitStack() as stack:

        def make(*stops: int, **keys: Any) -> Stuck:
            made = Stuck(*stops, **keys)
            stack.callback(made.open)
            return made

        yield make


def get(dduct: RunningDduct, origin: Origin, window: Window, url: str = URL, *fields: str) -> Answer:
    """One range."""
    return dduct.fetch(origin, url, f"Range: bytes={window[0]}-{window[1] - 1}", *fields)


def is_right(answer: Answer, window: Window) -> bool:
    return answer.status == 206 and answer.complete and answer.body == BODY[window[0] : window[1]]


def ahead(dduct: RunningDduct) -> FarSnapshot:
    """What has come ahead of the only fill."""
    (fill,) = dduct.fills()
    assert fill.far is not None
    return fill.far.snapshot()


def published(dduct: RunningDduct, count: int = 1) -> None:
    """Wait for the objects to be stored."""
    assert dduct.counted(Counter.PUBLISHED, count) == count


@pytest.mark.parametrize("url", [URL, NAMED], ids=["by its tag", "by its digest"])
def test_a_far_range_comes_at_once_and_the_object_crosses_once(
    dduct: RunningDduct, stuck: Callable[..., Stuck], url: str
) -> None:
    window = (6 * MIB, 6 * MIB + 300_000)
    link = stuck(MIB, window[0], etag=ETAG if url == URL else None)
    origin = dduct.origin(link)
    answer = get(dduct, origin, window, url)
    assert is_right(answer, window)
    assert (answer.get("cache-status") or "").endswith("dduct; fwd=uri-miss; stored; detail=far-range")
    link.gates[MIB].open()
    published(dduct)
    assert dduct.fetch(origin, url).body == BODY
    assert origin.body_sent == len(BODY)
    assert link.ranges == [window, (window[1], len(BODY))]
    assert [asked.get("if-range") for asked in link.asked] == [link.etag, link.etag]
    assert dduct.counted(Counter.FAR_RANGES) == 1


def test_a_small_far_range_is_fetched_with_what_follows_it(dduct: RunningDduct, stuck: Callable[..., Stuck]) -> None:
    window = (5 * MIB, 5 * MIB + 100)
    link = stuck(MIB, window[0])
    origin = dduct.origin(link)
    assert is_right(get(dduct, origin, window), window)
    wait_until(lambda: ahead(dduct) == (256 * 1024, 0))
    link.gates[MIB].open()
    published(dduct)
    assert link.ranges == [(window[0], window[0] + 256 * 1024), (window[0] + 256 * 1024, len(BODY))]
    assert origin.body_sent == len(BODY)


def test_many_ranges_at_once_are_right_and_the_object_crosses_about_once(
    dduct: RunningDduct, stuck: Callable[..., Stuck]
) -> None:
    link = stuck(MIB, 1_500_000)
    origin = dduct.origin(link)
    windows = [(1_500_000 + place * 400_000, 1_500_000 + place * 400_000 + 300_000) for place in range(16)]
    with ThreadPoolExecutor(len(windows)) as pool:
        answers = list(pool.map(lambda window: get(dduct, origin, window), windows))
    assert all(map(is_right, answers, windows))
    link.gates[MIB].open()
    published(dduct)
    assert dduct.fetch(origin, URL).body == BODY
    assert origin.body_sent == len(BODY)


def test_a_client_that_takes_the_whole_in_parts_gets_them_at_the_same_time(
    dduct: RunningDduct, stuck: Callable[..., Stuck]
) -> None:
    link = stuck(MIB // 2, MIB)
    origin = dduct.origin(link)
    windows = [(place * MIB, (place + 1) * MIB) for place in range(8)]
    with ThreadPoolExecutor(len(windows)) as pool:
        answers = [pool.submit(get, dduct, origin, window) for window in windows]
        assert all(is_right(answer.result(), window) for answer, window in list(zip(answers, windows))[1:])
        link.gates[MIB // 2].open()
        assert is_right(answers[0].result(), windows[0])
    published(dduct)
    assert origin.body_sent == len(BODY)


@pytest.mark.parametrize("second", [(5 * MIB, 6 * MIB), (5 * MIB + 5, 5 * MIB + 99), (4 * MIB, 5 * MIB + 500_000)])
def test_what_another_range_brings_is_not_fetched_again(
    dduct: RunningDduct, stuck: Callable[..., Stuck], second: Window
) -> None:
    first = (5 * MIB, 6 * MIB)
    link = stuck(MIB)
    origin = dduct.origin(link)
    assert is_right(get(dduct, origin, first), first)
    assert is_right(get(dduct, origin, second), second)
    assert link.ranges == ([first] if second[0] >= first[0] else [first, (second[0], first[0])])


def test_ranges_without_an_end_share_the_rest(dduct: RunningDduct, stuck: Callable[..., Stuck]) -> None:
    link = stuck(MIB)
    gate = Gate()

    def answers(asked: Asked, connection: Connection) -> bool:
        start, end = link.ranges[-1]
        if start == 3 * MIB:
            connection.head(206, [("ETag", ETAG), ("Content-Range", f"bytes {start}-{end - 1}/{len(BODY)}")])
            gate.wait()
            connection.over = True
        return start == 3 * MIB

    link.answers = answers
    origin = dduct.origin(link)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(dduct.fetch, origin, URL, f"Range: bytes={3 * MIB}-")
        gate.reached()
        assert dduct.fetch(origin, URL, f"Range: bytes={6 * MIB}-").body == BODY[6 * MIB :]
        assert link.ranges == [(3 * MIB, len(BODY)), (6 * MIB, len(BODY))]
        gate.open()
        link.open()
        assert first.result().body == BODY[3 * MIB :]
    published(dduct)


def test_a_range_beyond_the_end_is_answered_at_once(dduct: RunningDduct, stuck: Callable[..., Stuck]) -> None:
    link = stuck(MIB)
    origin = dduct.origin(link)
    answer = get(dduct, origin, (len(BODY), len(BODY) + 5))
    assert answer.status == 416 and answer.get("content-range") == f"bytes */{len(BODY)}"
    assert link.ranges == []


def test_several_ranges_in_one_request_come_at_once(dduct: RunningDduct, stuck: Callable[..., Stuck]) -> None:
    link = stuck(MIB)
    origin = dduct.origin(link)
    answer = dduct.fetch(origin, URL, f"Range: bytes={6 * MIB}-{6 * MIB + 9},{4 * MIB}-{4 * MIB + 9}")
    assert answer.status == 206 and answer.complete
    assert BODY[6 * MIB : 6 * MIB + 10] in answer.body and BODY[4 * MIB : 4 * MIB + 10] in answer.body


ODD: Dict[str, Callable[[Asked, Connection], object]] = {
    "ignores ranges": lambda asked, connection: connection.respond(200, [("ETag", ETAG)], BODY),
    "another version": lambda asked, connection: connection.respond(200, [("ETag", '"2"')], bytes(len(BODY))),
    "another tag": lambda asked, connection: part(asked, connection, etag='"2"'),
    "no tag": lambda asked, connection: part(asked, connection, etag=None),
    "another length": lambda asked, connection: part(asked, connection, total=len(BODY) + 1),
    "another place": lambda asked, connection: part(asked, connection, shift=1),
    "416": lambda asked, connection: connection.respond(416, [("Content-Range", f"bytes */{len(BODY)}")]),
    "429": lambda asked, connection: connection.respond(429, [("Retry-After", "9")], b"slow down"),
    "401": lambda asked, connection: connection.respond(401, [("WWW-Authenticate", "Bearer")], b"no"),
    "503": lambda asked, connection: connection.respond(503, [], b"no"),
    "hangs up": lambda asked, connection: connection.fin(),
    "breaks off": lambda asked, connection: part(asked, connection, size=1000),
}


def part(
    asked: Asked,
    connection: Connection,
    etag: Optional[str] = ETAG,
    total: int = len(BODY),
    shift: int = 0,
    size: Optional[int] = None,
) -> None:
    """A 206 that is not what was asked for."""
    first, _, last = (asked.get("range") or "").partition("=")[2].partition("-")
    start, end = int(first) + shift, int(last) + 1 + shift
    fields = [("Content-Range", f"bytes {start}-{end - 1}/{total}"), ("Content-Length", str(end - start))]
    connection.head(206, fields if etag is None else [*fields, ("ETag", etag)])
    connection.send_body(BODY[start:end][:size])
    if size is not None:
        connection.fin()


@pytest.mark.parametrize("odd", ODD)
def test_a_range_that_the_origin_does_not_give_waits_for_the_transfer(
    dduct: RunningDduct, stuck: Callable[..., Stuck], odd: str
) -> None:
    window = (5 * MIB, 5 * MIB + 300_000)
    link = stuck(MIB)

    def answers(asked: Asked, connection: Connection) -> bool:
        ODD[odd](asked, connection)
        return True

    link.answers = answers
    origin = dduct.origin(link)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(get, dduct, origin, window)
        wait_until(lambda: bool(link.ranges))
        wait_until(lambda: not ahead(dduct).running)
        link.open()
        assert is_right(answer.result(), window)
    published(dduct)
    assert dduct.fetch(origin, URL).body == BODY
    assert len(link.ranges) == 1


@pytest.mark.parametrize("why", ["no ranges", "no validator", "a weak validator"])
def test_nothing_is_asked_for_ahead_without_proof(dduct: RunningDduct, stuck: Callable[..., Stuck], why: str) -> None:
    link = stuck(MIB, etag={"no validator": None, "a weak validator": 'W/"1"'}.get(why, ETAG))
    link.accepts = "none" if why == "no ranges" else "bytes"
    origin = dduct.origin(link)
    window = (5 * MIB, 5 * MIB + 300_000)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(get, dduct, origin, window)
        wait_until(lambda: any(fill.snapshot().readers for fill in dduct.fills()))
        link.open()
        assert is_right(answer.result(), window)
    assert link.ranges == []


def test_wrong_bytes_of_a_range_are_not_published(dduct: RunningDduct, stuck: Callable[..., Stuck]) -> None:
    link = stuck(MIB, 5 * MIB)
    link.source = bytes(len(BODY))
    origin = dduct.origin(link)
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(dduct.fetch, origin, NAMED)
        wait_until(lambda: bool(dduct.fills()))
        get(dduct, origin, (5 * MIB, 5 * MIB + 300_000), NAMED)
        link.gates[MIB].open()
        assert not whole.result().whole
    assert dduct.counted(Counter.MISMATCHED) == 1 and dduct.stored() == []
    link.source = BODY
    link.open()
    assert dduct.fetch(origin, NAMED).body == BODY


@pytest.mark.parametrize("start", [4 * MIB, len(BODY) - 70_000, len(BODY) - 100])
def test_no_range_has_the_end_of_a_digest_named_object_before_that_is_verified(
    dduct: RunningDduct, stuck: Callable[..., Stuck], start: int
) -> None:
    link = stuck(MIB)
    origin = dduct.origin(link)
    held = max(start, len(BODY) - HOLD_BACK)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(dduct.fetch, origin, NAMED, f"Range: bytes={start}-")
        wait_until(lambda: any(held in fill.snapshot().positions for fill in dduct.fills()))
        assert not rest.done()
        link.open()
        assert rest.result().body == BODY[start:]
    published(dduct)


def test_wrong_bytes_at_the_end_of_a_digest_named_object_reach_no_client_of_a_range(
    dduct: RunningDduct, stuck: Callable[..., Stuck]
) -> None:
    link = stuck(MIB)
    link.source = bytes(len(BODY))
    origin = dduct.origin(link)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(dduct.fetch, origin, NAMED, f"Range: bytes={4 * MIB}-")
        wait_until(lambda: any(len(BODY) - HOLD_BACK in fill.snapshot().positions for fill in dduct.fills()))
        link.open()
        assert not rest.result().whole
    assert dduct.counted(Counter.MISMATCHED) == 1 and dduct.stored() == []


def test_a_range_is_asked_for_with_its_own_credentials(dduct: RunningDduct, stuck: Callable[..., Stuck]) -> None:
    link = stuck(MIB)
    seen: List[Optional[str]] = []

    def handler(asked: Asked, connection: Connection) -> None:
        if asked.get("authorization") not in ("Bearer a", "Bearer b"):
            connection.respond(401)
            return
        if asked.get("if-none-match") is not None:
            connection.head(304, [("ETag", ETAG)])
            return
        if asked.get("range") is not None:
            seen.append(asked.get("authorization"))
        link(asked, connection)

    origin = dduct.origin(handler)
    window = (5 * MIB, 5 * MIB + 300_000)
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(dduct.fetch, origin, URL, "Authorization: Bearer a")
        wait_until(lambda: bool(dduct.fills()))
        link.gates[MIB].reached()
        assert is_right(get(dduct, origin, window, URL, "Authorization: Bearer b"), window)
        assert get(dduct, origin, (6 * MIB, 7 * MIB), URL, "Authorization: Bearer c").status == 401
        assert seen == ["Bearer b"]
        link.open()
        assert whole.result().body == BODY


def asking(dduct: RunningDduct, origin: Origin, window: Window) -> Client:
    """A client that has sent a request for a range and reads nothing."""
    client = dduct.intercepted(origin)
    lines = [f"GET {URL} HTTP/1.1", f"Host: {HOST}:{origin.port}", f"Range: bytes={window[0]}-{window[1] - 1}", "", ""]
    client.send("\r\n".join(lines).encode())
    return client


@pytest.mark.parametrize("client", ["leaves", "reads nothing"])
def test_a_client_of_a_range_does_not_hold_up_the_transfer(
    dduct: RunningDduct, stuck: Callable[..., Stuck], client: str
) -> None:
    link = stuck(MIB, 2 * MIB)
    origin = dduct.origin(link)
    with dduct.intercepted(origin) as whole:
        whole.send(f"GET {URL} HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        link.gates[MIB].reached()
        slow = asking(dduct, origin, (2 * MIB, 8 * MIB))
        wait_until(lambda: dduct.counters.value(Counter.FAR_RANGES) == 1)
        if client == "leaves":
            slow.reset()
        link.gates[MIB].open()
        answer = whole.read()
    assert answer.body == BODY
    published(dduct)
    if client != "leaves":
        assert slow.read().body == BODY[2 * MIB :]
        assert origin.body_sent == len(BODY)


@pytest.mark.parametrize("trouble", ["no file", "full", "over a limit"])
def test_a_disk_that_refuses_what_comes_ahead_leaves_the_transfer_alone(
    dduct: RunningDduct, stuck: Callable[..., Stuck], monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    link = stuck(MIB)
    origin = dduct.origin(link)
    window = (5 * MIB, 5 * MIB + 300_000)
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(dduct.fetch, origin, URL)
        wait_until(lambda: any(fill.snapshot().size == MIB for fill in dduct.fills()))
        with monkeypatch.context() as patch:
            if trouble == "over a limit":
                patch.setattr("transfers.cells._LOOK_EVERY", 1)
                patch.setattr("storage.space.Situation.objection_to_growth", lambda *_, **__: "it is too much")
            else:
                broken = {"no file": "storage.tree.Tree.open_unnamed", "full": "transfers.cells.Cells.write"}[trouble]
                patch.setattr(broken, refuse)
            answer = pool.submit(get, dduct, origin, window)
            assert dduct.counted(Counter.FAR_RANGES) == 1
            wait_until(lambda: ahead(dduct) == (0, 0))
        link.open()
        assert is_right(answer.result(), window)
        assert whole.result().body == BODY
    published(dduct)
    assert len(link.ranges) == 1


def test_nothing_of_what_came_ahead_outlives_its_process(tmp_path: Path, stuck: Callable[..., Stuck]) -> None:
    link = stuck(MIB)

    def fetch(port: int, *fields: str) -> Answer:
        with Client(port) as client:
            return client.get(f"http://{HOST}:{origin.port}{URL}", f"{HOST}:{origin.port}", *fields)

    with Origin(link) as origin, ExitStack() as stack:
        stack.callback(link.open)
        path = process.write(tmp_path, {"min_free": "1M"}, workers=1)
        first = stack.enter_context(closing(process.Process(path)))
        assert fetch(first.ports()[0], f"Range: bytes={5 * MIB}-{6 * MIB - 1}").body == BODY[5 * MIB : 6 * MIB]
        first.signal(signal.SIGKILL)
        first.wait()
        files = [found for found in (tmp_path / "files").rglob("*") if found.is_file() and found.name != ".evictor"]
        assert [(found.name, found.stat().st_size) for found in files] == [("x.deb.dduct", MIB)]
        link.open()
        second = stack.enter_context(closing(process.Process(path)))
        port = second.ports()[0]
        assert fetch(port).body == BODY
        assert fetch(port, f"Range: bytes={5 * MIB}-").body == BODY[5 * MIB :]
        assert link.ranges[1:] == [(MIB, len(BODY))]
