"""The filler, whatever its origin sends: in this thread, on a real cache, with origins that follow a script."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, List, Tuple, Union

import pytest
from support.fetching import HOST, NAME, PATH, URL, Answer, Around, meta, ok, rest_of, sha256_of

from fetching.cacheable_request import CacheableRequest
from fetching.filler import MAX_SKIPPED, carry
from fetching.naming import Name, Naming, Parameters
from fetching.origin_query import OriginQuery
from monitoring.details import Detail
from monitoring.metrics import Counter
from protocol.headers import Field, Headers
from protocol.http1 import Authority, ResponseHead, Target
from storage.record import Digest, Unstorable
from storage.store import Key
from transfers.fill import Fill
from transfers.hold_back import HOLD_BACK
from transfers.states import FillState
from upstream.dialling import UpstreamError

BODY = bytes(range(256)) * 1000
HALF = len(BODY) // 2
ETAG = (b"ETag", b'"1"')
DIGEST = sha256_of(BODY)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetching.filler._PAUSES", (0.0,) * 3)


def broken(*fields: Field, size: int = HALF, body: bytes = BODY) -> Answer:
    """A 200 that ends before its end."""
    return Answer(200, fields, body[:size], len(body))


class Transfer:
    """One fill and its filler's thread, which is this one. A reader is attached, unless it is `unread`."""

    def __init__(self, directory: Path, *answers: Union[Answer, UpstreamError], digest: Any = None) -> None:
        self.around = Around(directory, *answers)
        self.request: CacheableRequest = self.around.request(digest=digest)
        self.fill: Fill = self.around.lead(self.request)

    def run(self, unread: bool = False) -> FillState:
        """Carry the first answer's body into the fill; the state in which that ends."""
        query = OriginQuery(self.around.services, self.request, lambda _: None)
        exchange = query.get_full()
        self.fill.start(meta(), exchange.body.length, resumable=True)
        reader = None if unread else self.around.cache.reader(self.fill)
        carry(self.fill, exchange, query.whole_request(), URL, self.around.services)
        if reader is not None:
            reader.close()
        return self.fill.state

    @property
    def stored(self) -> object:
        return self.around.stored(self.request.key)

    def counted(self, *counters: Counter) -> List[int]:
        return [self.around.count(counter) for counter in counters]


def test_a_body_that_comes_to_its_end_is_published_and_durable(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, ok(BODY))
    assert transfer.run() is FillState.PUBLISHED
    assert transfer.stored == BODY
    hit = transfer.around.hit(transfer.request)
    assert hit.entry.record.durable
    hit.entry.close()
    assert transfer.counted(Counter.PUBLISHED, Counter.BROKEN) == [1, 0]
    assert transfer.around.grown == [len(BODY)]
    assert transfer.around.origins.kept == [True]


def test_a_body_that_only_the_connection_ends_is_published_if_a_digest_proves_it(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, Answer(body=BODY, length=None), digest=DIGEST)
    assert transfer.run() is FillState.PUBLISHED and transfer.stored == BODY


def test_bytes_that_do_not_match_their_digest_are_not_published(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, ok(BODY[::-1]), digest=DIGEST)
    assert transfer.run() is FillState.FAILED
    assert transfer.stored is None
    assert transfer.counted(Counter.MISMATCHED, Counter.BROKEN, Counter.PUBLISHED) == [1, 0, 0]


@pytest.mark.parametrize("digest", [None, DIGEST])
def test_an_origin_that_breaks_off_is_asked_for_the_rest(tmp_path: Path, digest: Any) -> None:
    transfer = Transfer(tmp_path, broken(ETAG), rest_of(BODY, HALF, ETAG), digest=digest)
    assert transfer.run() is FillState.PUBLISHED and transfer.stored == BODY
    asked = transfer.around.origins.fields(b"range", b"if-range", b"accept-encoding")
    # A digest proves the whole, with any validator.
    condition = None if digest else b'"1"'
    assert asked == [(None, None, b"identity"), (b"bytes=%d-" % HALF, condition, b"identity")]
    assert transfer.counted(Counter.RESUMED, Counter.PUBLISHED, Counter.BROKEN) == [1, 1, 0]


def test_without_a_strong_validator_nothing_is_asked_again(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, broken((b"ETag", b'W/"1"')), rest_of(BODY, HALF))
    assert transfer.run() is FillState.FAILED
    assert len(transfer.around.origins.asked) == 1
    assert transfer.stored is None and transfer.counted(Counter.BROKEN) == [1]


def test_the_rest_of_another_version_is_not_joined(tmp_path: Path) -> None:
    other = rest_of(BODY[::-1], HALF, (b"ETag", b'"2"'))
    transfer = Transfer(tmp_path, broken(ETAG), other)
    assert transfer.run() is FillState.FAILED and transfer.stored is None


@pytest.mark.parametrize("status", [503, 429, 408, 425])
def test_what_may_pass_is_tried_again(tmp_path: Path, status: int) -> None:
    transfer = Transfer(tmp_path, broken(ETAG), Answer(status), UpstreamError("no route"), rest_of(BODY, HALF, ETAG))
    assert transfer.run() is FillState.PUBLISHED and transfer.stored == BODY


def test_after_a_few_attempts_without_progress_it_is_given_up(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, broken(ETAG), *[Answer(503)] * 9)
    assert transfer.run() is FillState.FAILED
    assert len(transfer.around.origins.asked) == 1 + 3  # as many as there are pauses


def test_progress_allows_as_many_attempts_again(tmp_path: Path) -> None:
    busy = [Answer(503)] * 2
    again = Answer(206, rest_of(BODY, HALF, ETAG).fields, BODY[HALF : HALF + 50_000], len(BODY) - HALF)
    last = rest_of(BODY, HALF + 50_000, ETAG)
    transfer = Transfer(tmp_path, broken(ETAG), *busy, again, *busy, last)
    assert transfer.run() is FillState.PUBLISHED and transfer.stored == BODY


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_a_refused_rest_is_left_to_the_next_request(tmp_path: Path, status: int) -> None:
    """The token of this one may have expired; another client's may not."""
    transfer = Transfer(tmp_path, broken(ETAG), Answer(status))
    assert transfer.run() is FillState.GONE
    assert transfer.counted(Counter.DROPPED, Counter.BROKEN) == [1, 0]
    left = transfer.around.lead(transfer.request)
    assert left.partial_download is not None and left.partial_download.size == HALF
    left.close()


def test_another_answer_to_the_question_for_the_rest_ends_the_transfer(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, broken(ETAG), Answer(412), rest_of(BODY, HALF, ETAG))
    assert transfer.run() is FillState.FAILED and len(transfer.around.origins.asked) == 2


def test_an_origin_without_ranges_sends_everything_again_and_what_is_there_is_skipped(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, broken(ETAG), ok(BODY, ETAG))
    assert transfer.run() is FillState.PUBLISHED and transfer.stored == BODY


def test_an_origin_without_ranges_may_break_off_while_bytes_are_skipped(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, broken(ETAG), broken(ETAG, size=100), ok(BODY, ETAG))
    assert transfer.run() is FillState.PUBLISHED and transfer.stored == BODY


def test_not_too_much_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_SKIPPED > HALF
    monkeypatch.setattr("fetching.filler.MAX_SKIPPED", HALF - 1)
    transfer = Transfer(tmp_path, broken(ETAG), ok(BODY, ETAG))
    assert transfer.run() is FillState.FAILED


def test_a_transfer_that_nobody_reads_is_given_up_if_much_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fetching.filler._WORTH_WAITING", -1.0)
    transfer = Transfer(tmp_path, broken(ETAG, size=HALF - 1))
    assert transfer.run(unread=True) is FillState.GONE
    assert transfer.counted(Counter.DROPPED, Counter.BROKEN) == [1, 0]


def test_a_transfer_that_nobody_reads_goes_on_if_it_ends_soon(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, ok(BODY))
    assert transfer.run(unread=True) is FillState.PUBLISHED


def test_a_partial_download_that_the_disk_has_cut_is_not_published(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, broken(ETAG), Answer(403), rest_of(BODY, HALF, ETAG), digest=DIGEST)
    assert transfer.run() is FillState.GONE
    fill = transfer.around.lead(transfer.request)
    assert fill.partial_download is not None and fill.partial_download.size == HALF > HOLD_BACK
    fill.resume(meta())
    (tmp_path / "files" / fill.file.place).with_suffix(".dduct").write_bytes(b"")
    exchange = OriginQuery(transfer.around.services, transfer.request, lambda _: None).get_full()
    carry(fill, exchange, transfer.around.origins.asked[-1], URL, transfer.around.services)
    assert fill.state is FillState.FAILED and "cut off" in str(fill.cause)


# --- invalidation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "gone"),
    [
        ((b"Date", b"now"), [False, True]),
        ((b"Location", PATH.encode()), [False, True]),
        ((b"Location", b"/pool/y.deb"), [True, True]),
        ((b"Content-Location", b"https://some.thing/pool/y.deb"), [True, True]),
        ((b"Location", b"https://other.thing/pool/y.deb"), [False, True]),
        ((b"Location", b"http://some.thing/pool/y.deb"), [False, True]),
    ],
)
def test_an_answer_invalidates_its_target_and_what_it_names_of_the_same_origin(
    tmp_path: Path, field: Tuple[bytes, bytes], gone: List[bool]
) -> None:
    around = Around(tmp_path)
    keys = [Key(NAME.replace("x.deb", "y.deb")), Key(NAME)]
    for key in keys:
        around.put(b"body", meta(), key)
    naming = Naming((re.compile(r"\.deb$"),), Parameters(()))
    head = ResponseHead(201, b"", 1, Headers([field]))
    around.services.invalidate(Target("https", Authority(HOST, 443), PATH), head, naming)
    assert [around.stored(key) is None for key in keys] == gone


def test_an_invalidation_that_the_disk_loses_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    around = Around(tmp_path)

    def hang(_: Key) -> None:
        raise Unstorable("the cache's disk does not answer (misc.file_dir)")

    monkeypatch.setattr(around.cache, "invalidate", hang)
    with caplog.at_level(logging.WARNING, "dduct"):
        for _ in range(2):  # one line: every request may cause it
            around.services.forget(Name(f"{NAME}?v=1"))
    assert [record.getMessage() for record in caplog.records] == [
        f"Not invalidated, and perhaps outdated: {NAME}: the cache's disk does not answer (misc.file_dir)"
    ]


def test_a_name_that_no_file_can_have_needs_no_invalidation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    around = Around(tmp_path)
    name = Name(f"https/{HOST}/{'x' * 300}")
    with pytest.raises(Unstorable) as refused:
        around.cache.invalidate(Key(name.path))
    assert refused.value.detail is Detail.PATH
    with caplog.at_level(logging.WARNING, "dduct"):
        around.services.forget(name)
    assert caplog.records == []


def test_a_name_with_a_digest_is_forgotten_at_its_url(tmp_path: Path) -> None:
    around, digest = Around(tmp_path), Digest("sha256", DIGEST.hex)
    key = Key(NAME, digest)
    around.put(BODY, meta(), key)
    around.services.forget(Name(NAME, digest))
    hit = around.cache.lookup(key)
    assert hit is not None and hit.metadata is None  # its origin is asked whether it still has these bytes
    hit.entry.close()
