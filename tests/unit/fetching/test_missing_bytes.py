"""A filler that meets what has come ahead: which bytes it asks for, and that it always ends with the right ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Optional, Tuple, Union

import pytest
from support.fetching import URL, Answer, Around, meta, ok, rest_of, sha256_of

from fetching.filler import carry
from fetching.missing_bytes import MissingBytes
from fetching.origin_query import OriginQuery
from monitoring.metrics import Counter
from net.body import new_buffer
from protocol import validation
from protocol.headers import Field
from storage.entry import Lost
from transfers.far_bytes import WORTH, FarBytes
from transfers.fill import Fill
from transfers.spans import Span
from transfers.states import FillState
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange

LENGTH = 12 * WORTH
BODY = (bytes(range(251)) * (LENGTH // 251 + 1))[:LENGTH]
ETAG = (b"ETag", b'"1"')


@pytest.fixture(autouse=True)
def slow_and_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfers.pace.Pace.rate", 0.0)
    monkeypatch.setattr("transfers.far_bytes._STALLED", 0.01)
    monkeypatch.setattr("fetching.filler._PAUSES", (0.0,) * 3)


def part(start: int, end: int, *fields: Field, size: Optional[int] = None) -> Answer:
    """A 206 with these bytes, perhaps cut after `size` of them."""
    span = (b"Content-Range", b"bytes %d-%d/%d" % (start, end - 1, LENGTH))
    return Answer(206, (span, *(fields or (ETAG,))), BODY[start:end][:size], end - start)


class Transfer:
    """One fill and its filler, whose thread is this one. A reader is attached."""

    def __init__(self, directory: Path, *answers: Union[Answer, UpstreamError], digest: Any = None) -> None:
        self.around = Around(directory, *answers)
        self.request = self.around.request(digest=digest)
        self.fill: Fill = self.around.lead(self.request)
        services = self.around.services
        self.far = self.fill.far = FarBytes(services.cache.store, self.fill.file, LENGTH, services.far_places)

    def ahead(self, start: int, end: int, size: Optional[int] = None, data: bytes = BODY) -> Span:
        """Bytes that have come ahead; with a `size`, so many of them, and the others are to come."""
        span = self.far.look("a client", start, end)
        assert isinstance(span, Span) and span.end == end
        self.far.store(span, memoryview(data[start:end][:size]))
        if size is None:
            self.far.finish(span)
        return span

    def run(self) -> FillState:
        """Carry the first answer's body into the fill, and what follows; the state in which that ends."""
        query = OriginQuery(self.around.services, self.request, lambda _: None)
        exchange = query.get_full()
        self.fill.start(meta(), LENGTH, resumable=True)
        reader = self.around.cache.reader(self.fill)
        carry(self.fill, exchange, query.whole_request(), URL, self.around.services)
        reader.close()
        return self.fill.state

    @property
    def is_right(self) -> bool:
        return self.around.stored(self.request.key) == BODY

    @property
    def ranges(self) -> List[Tuple[Optional[bytes], ...]]:
        """What the origin was asked for after the whole."""
        return self.around.origins.fields(b"range", b"if-range")[1:]


def asked(*windows: Tuple[int, Optional[int]]) -> List[Tuple[bytes, bytes]]:
    """Such questions."""
    return [(b"bytes=%d-%s" % (start, b"" if end is None else b"%d" % (end - 1)), b'"1"') for start, end in windows]


def test_what_has_come_ahead_is_not_fetched_again(tmp_path: Path) -> None:
    gap = part(6 * WORTH, 8 * WORTH)
    transfer = Transfer(tmp_path, ok(BODY, ETAG), gap, part(9 * WORTH, LENGTH))
    transfer.ahead(4 * WORTH, 6 * WORTH)
    transfer.ahead(8 * WORTH, 9 * WORTH)
    assert transfer.run() is FillState.PUBLISHED and transfer.is_right
    assert transfer.ranges == asked((6 * WORTH, 8 * WORTH), (9 * WORTH, LENGTH))
    assert transfer.around.count(Counter.RESUMED) == 0
    assert transfer.around.origins.kept == [False, True, True]


def test_an_end_that_has_come_ahead_is_not_asked_for(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, ok(BODY, ETAG))
    transfer.ahead(4 * WORTH, LENGTH)
    assert transfer.run() is FillState.PUBLISHED and transfer.is_right
    assert transfer.ranges == []


def test_what_is_not_worth_a_question_is_fetched_again(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, ok(BODY, ETAG))
    span = transfer.ahead(4 * WORTH, 6 * WORTH, size=WORTH - 1)
    transfer.far.finish(span)
    assert transfer.run() is FillState.PUBLISHED and transfer.is_right
    assert transfer.ranges == []


@pytest.mark.parametrize(
    "answer",
    [
        Answer(401),
        Answer(503),
        UpstreamError("no route"),
        ok(BODY, (b"ETag", b'"2"')),
        part(6 * WORTH, LENGTH, (b"ETag", b'"2"')),
        part(6 * WORTH + 1, LENGTH),
    ],
)
def test_a_running_response_is_given_up_only_for_the_right_one(
    tmp_path: Path, answer: Union[Answer, UpstreamError]
) -> None:
    transfer = Transfer(tmp_path, ok(BODY, ETAG), answer)
    transfer.ahead(4 * WORTH, 6 * WORTH)
    transfer.ahead(8 * WORTH, 9 * WORTH)
    assert transfer.run() is FillState.PUBLISHED and transfer.is_right
    assert len(transfer.ranges) == 1


def test_a_range_that_runs_is_followed_and_where_it_stalls_the_origin_is_asked(tmp_path: Path) -> None:
    behind, stalled = part(8 * WORTH, LENGTH), rest_of(BODY, 5 * WORTH, ETAG)
    transfer = Transfer(tmp_path, ok(BODY, ETAG), behind, stalled)
    span = transfer.ahead(4 * WORTH, 8 * WORTH, size=WORTH)
    assert transfer.run() is FillState.PUBLISHED and transfer.is_right
    assert transfer.ranges == asked((8 * WORTH, LENGTH), (5 * WORTH, None))
    assert not transfer.far.wants(span)


def test_after_a_break_what_has_come_ahead_is_taken_first(tmp_path: Path) -> None:
    cut = Answer(200, (ETAG,), BODY[: 4 * WORTH], LENGTH)
    transfer = Transfer(tmp_path, cut, part(6 * WORTH, LENGTH), part(6 * WORTH, LENGTH))
    transfer.ahead(4 * WORTH, 6 * WORTH)
    assert transfer.run() is FillState.PUBLISHED and transfer.is_right
    assert transfer.ranges == asked((6 * WORTH, LENGTH))


def test_a_part_that_breaks_off_is_resumed(tmp_path: Path) -> None:
    cut = part(6 * WORTH, 8 * WORTH, size=WORTH)
    transfer = Transfer(tmp_path, ok(BODY, ETAG), cut, rest_of(BODY, 7 * WORTH, ETAG), part(9 * WORTH, LENGTH))
    transfer.ahead(4 * WORTH, 6 * WORTH)
    transfer.ahead(8 * WORTH, 9 * WORTH)
    assert transfer.run() is FillState.PUBLISHED and transfer.is_right
    assert transfer.ranges == asked((6 * WORTH, 8 * WORTH), (7 * WORTH, None), (9 * WORTH, LENGTH))
    assert transfer.around.count(Counter.RESUMED) == 1


def test_an_origin_that_does_not_go_on_behind_a_part_is_asked_like_one_that_breaks_off(tmp_path: Path) -> None:
    transfer = Transfer(
        tmp_path, ok(BODY, ETAG), part(6 * WORTH, 8 * WORTH), Answer(503), Answer(503), rest_of(BODY, 8 * WORTH, ETAG)
    )
    transfer.ahead(4 * WORTH, 6 * WORTH)
    transfer.ahead(8 * WORTH, 9 * WORTH)
    assert transfer.run() is FillState.PUBLISHED and transfer.is_right
    assert transfer.ranges == asked((6 * WORTH, 8 * WORTH), (9 * WORTH, LENGTH), (8 * WORTH, LENGTH), (8 * WORTH, None))


def test_what_the_disk_has_lost_of_it_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> int:
        raise Lost("the disk does not give it")

    transfer = Transfer(tmp_path, ok(BODY, ETAG), part(6 * WORTH, LENGTH), rest_of(BODY, 4 * WORTH, ETAG))
    transfer.ahead(4 * WORTH, 6 * WORTH)
    monkeypatch.setattr("transfers.cells.Cells.read", lost)
    assert transfer.run() is FillState.PUBLISHED and transfer.is_right


def test_wrong_bytes_that_came_ahead_fail_an_object_that_a_digest_names(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, ok(BODY), part(6 * WORTH, LENGTH), digest=sha256_of(BODY))
    transfer.ahead(4 * WORTH, 6 * WORTH, data=bytes(LENGTH))
    assert transfer.run() is FillState.FAILED
    assert transfer.around.stored(transfer.request.key) is None
    assert transfer.around.count(Counter.MISMATCHED) == 1


@pytest.mark.parametrize("granted", [True, False])
def test_a_silent_origin_is_left_for_what_has_come_ahead_if_it_goes_on_behind_it(tmp_path: Path, granted: bool) -> None:
    transfer = Transfer(tmp_path, ok(BODY, ETAG), part(6 * WORTH, LENGTH) if granted else Answer(503))
    services = transfer.around.services
    query = OriginQuery(services, transfer.request, lambda _: None)
    exchange = query.get_full()
    transfer.fill.start(meta(), LENGTH, resumable=True)
    missing = MissingBytes(transfer.fill, exchange, lambda start, end: query_part(query, start, end))
    real, span = exchange.body.readinto, transfer.ahead(2 * WORTH, 6 * WORTH, size=0)

    def silent(view: memoryview, much: bool = False) -> int:
        """At one place nothing comes for a moment, in which others bring it; then the filler looks."""
        if transfer.fill.size == span.start and span.running:
            transfer.far.store(span, memoryview(BODY[2 * WORTH : 6 * WORTH]))
            transfer.far.finish(span)
            missing.look()
        return real(view, much)

    exchange.body.readinto = silent  # type: ignore[method-assign]
    for piece in missing.pieces(new_buffer(), new_buffer()):
        transfer.fill.write(piece)
    assert transfer.fill.publish() and transfer.is_right
    assert transfer.around.origins.kept[:1] == ([False] if granted else [])
    missing.close()
    transfer.fill.close()


def query_part(query: OriginQuery, start: int, end: int) -> Optional[Exchange]:
    """What a filler makes of an answer to a question for a part."""
    exchange = query.get_full(validation.rest_conditions(b'"1"', start, end))
    return exchange if exchange.head.status == 206 else None
