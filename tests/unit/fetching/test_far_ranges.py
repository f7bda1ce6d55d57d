"""What a reader of a far range asks its origin, and which answers it takes; its thread is this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, List, Optional, Union

import pytest
from support.fetching import TOKEN, Answer, Around, meta, ok, sha256_of

from fetching.far_ranges import FarRanges, FarReader, far_bytes
from fetching.origin_query import OriginQuery
from monitoring.metrics import Counter
from net.addresses import Scope
from protocol.headers import Field
from protocol.selection import Part
from storage.record import Metadata
from transfers.far_bytes import WORTH
from transfers.follow import FillReader
from upstream.dialling import UpstreamError

LENGTH = 12 * WORTH
BODY = (bytes(range(251)) * (LENGTH // 251 + 1))[:LENGTH]
ETAG: Field = (b"ETag", b'"1"')
TAKES: Field = (b"Accept-Ranges", b"bytes")
START, END = 6 * WORTH, 8 * WORTH


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfers.pace.Pace.rate", 0.0)


def part(start: int = START, end: int = END, **keys: Any) -> Answer:
    """A 206 with these bytes."""
    span: Field = (b"Content-Range", b"bytes %d-%d/%d" % (start, end - 1, LENGTH))
    return Answer(206, (span, ETAG), BODY[start:end], **keys)


class Transfer:
    """A fill that has begun, and has brought nothing yet."""

    def __init__(self, directory: Path, *answers: Union[Answer, UpstreamError], digest: Any = None) -> None:
        self.around = Around(directory, *answers)
        self.digest = digest
        request = self.around.request(digest=digest)
        self.fill = self.around.lead(request)
        exchange = self.around.origins.exchange(
            OriginQuery(self.around.services, request, lambda _: None).whole_request()
        )
        self.metadata = meta(("ETag", '"1"'), url=request.place)
        self.fill.far = far_bytes(self.around.services, self.fill, exchange, is_rest=False)
        self.fill.start(self.metadata, LENGTH)
        exchange.close()

    def reader(
        self, start: int = START, end: int = END, *fields: Field, metadata: Optional[Metadata] = None
    ) -> Union[FarReader, FillReader]:
        """The reader of a client that wants a part."""
        services, request = self.around.services, self.around.request(*fields, digest=self.digest)
        ranges = FarRanges(services, request, OriginQuery(services, request, lambda _: None))
        return ranges.reader(self.around.cache.reader(self.fill), metadata or self.metadata, (Part(start, end),))

    def close(self) -> None:
        self.fill.close()


@pytest.fixture
def transfer(tmp_path: Path) -> Any:
    made: List[Transfer] = []

    def make(*answers: Union[Answer, UpstreamError], **keys: Any) -> Transfer:
        made.append(Transfer(tmp_path, *answers, **keys))
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[..., Transfer]
BEGIN = ok(BODY, ETAG, TAKES)


def early(reader: Union[FarReader, FillReader], start: int, end: int) -> bytes:
    """What a reader gets before the fill has brought anything."""
    view = memoryview(bytearray(end - start))
    got = b""
    while len(got) < end - start:
        got += view[: reader.read_at(view[: end - start - len(got)], start + len(got))]
    return got


@pytest.mark.parametrize("named", [False, True])
def test_the_range_is_asked_for_and_read(transfer: Make, named: bool) -> None:
    one = transfer(BEGIN, part(), digest=sha256_of(BODY) if named else None)
    reader = one.reader(START, END, TOKEN)
    assert reader.ready(START, whole=False)
    assert isinstance(reader, FarReader) and reader.is_ahead
    assert early(reader, START, END) == BODY[START:END]
    condition = None if named else b'"1"'
    sent = one.around.origins.fields(b"range", b"if-range", b"authorization", b"accept-encoding")
    assert sent[1:] == [(b"bytes=%d-%d" % (START, END - 1), condition, TOKEN[1], b"identity")]
    assert one.around.count(Counter.FAR_RANGES) == 1 and one.around.origins.kept[-1]
    reader.close()


def test_a_reader_asks_for_the_gaps_that_others_have_left(transfer: Make) -> None:
    one = transfer(BEGIN, part(), part(END, 10 * WORTH))
    first, second = one.reader(), one.reader(START, 10 * WORTH)
    assert early(first, START, END) == BODY[START:END]
    assert early(second, START, 10 * WORTH) == BODY[START : 10 * WORTH]
    first.close()
    second.close()


@pytest.mark.parametrize(
    "answer",
    [
        part(scope=Scope.LOCAL_ONLY),
        part(scope=Scope.OWN_ADDRESS),
        ok(BODY, ETAG),
        Answer(429),
        Answer(416),
        Answer(500),
    ],
)
def test_after_an_answer_that_all_would_get_nothing_more_is_asked(
    transfer: Make, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    one = transfer(BEGIN, answer)
    monkeypatch.setattr("fetching.far_ranges.FIRST_BYTES", 0.0)
    monkeypatch.setattr("transfers.follow.FIRST_BYTES", 0.0)
    for reader in (one.reader(), one.reader()):
        assert not reader.ready(START, whole=False)
        reader.close()
    assert len(one.around.origins.asked) == 2 and one.around.count(Counter.FAR_RANGES) == 0


@pytest.mark.parametrize("answer", [Answer(401), Answer(403), Answer(404), UpstreamError("no route")])
def test_what_one_client_is_refused_another_may_get(
    transfer: Make, monkeypatch: pytest.MonkeyPatch, answer: Union[Answer, UpstreamError]
) -> None:
    one = transfer(BEGIN, answer, part())
    monkeypatch.setattr("transfers.follow.FIRST_BYTES", 0.0)
    refused, other = one.reader(), one.reader()
    assert not refused.ready(START, whole=False) and len(one.around.origins.asked) == 2
    assert other.ready(START, whole=False) and refused.ready(START, whole=False)
    refused.close()
    other.close()


def test_an_origin_that_brings_little_is_not_asked_for_more(transfer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    span = part().fields
    one = transfer(BEGIN, Answer(206, span, BODY[START : START + 100], END - START))
    monkeypatch.setattr("transfers.follow.FIRST_BYTES", 0.0)
    reader = one.reader()
    assert early(reader, START, START + 100) == BODY[START : START + 100]
    assert not reader.ready(START + 100, whole=False)
    assert len(one.around.origins.asked) == 2
    reader.close()


def test_only_who_could_resume_the_transfer_brings_bytes_of_it(transfer: Make) -> None:
    one = transfer(BEGIN)
    reader = one.reader(metadata=meta(("ETag", '"1"'), url="https://a.mirror/pool/x.deb"))
    assert isinstance(reader, FillReader)
    reader.close()


def test_without_threads_a_range_waits_for_its_fill(transfer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    one = transfer(BEGIN)
    object.__setattr__(one.around.services, "spawn", none_left)
    monkeypatch.setattr("transfers.follow.FIRST_BYTES", 0.0)
    reader = one.reader()
    assert not reader.ready(START, whole=False)
    assert one.fill.far is not None and one.fill.far.snapshot().running == 0
    reader.close()


@pytest.mark.parametrize(
    "begin",
    [
        ok(BODY, ETAG),
        ok(BODY, ETAG, (b"Accept-Ranges", b"none")),
        ok(BODY, TAKES),
        ok(BODY, TAKES, (b"ETag", b'W/"1"')),
        ok(BODY[:100], ETAG, TAKES),
        Answer(200, (ETAG, TAKES), BODY, None),
    ],
)
def test_a_fill_without_proof_or_ranges_has_no_far_ranges(transfer: Make, begin: Answer) -> None:
    one = transfer(begin)
    assert one.fill.far is None
    reader = one.reader()
    assert isinstance(reader, FillReader)
    reader.close()
