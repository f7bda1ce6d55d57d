"""What a request asks of its origin for the cache, and which answers it takes; the origin follows a script."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, List, Optional, Tuple

import pytest
from support.fetching import HOST, PATH, TOKEN, Answer, Around, meta, ok, rest_of, sha256_of

from fetching.cacheable_request import CacheableRequest
from fetching.origin_query import OriginQuery
from protocol.http1 import ResponseHead
from storage.record import Metadata
from transfers.acquiring import PartialDownload
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange
from upstream.request import Purpose

BODY = b"0123456789"
ETAG, WEAK, OTHER = (b"ETag", b'"1"'), (b"ETag", b'W/"1"'), (b"ETag", b'"2"')
STORED = meta(("ETag", '"1"'), ("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT"))
LEFT = PartialDownload(STORED, len(BODY), 4)
ELSEWHERE = f"https://cdn.thing{PATH}"
TO_CDN = Answer(302, ((b"Location", ELSEWHERE.encode()),))


def querying(around: Around, request: Optional[CacheableRequest] = None) -> OriginQuery:
    return OriginQuery(around.services, request or around.request(), lambda _: None)


def body_of(exchange: Exchange) -> bytes:
    view = memoryview(bytearray(100))
    done = 0
    while True:
        count = exchange.body.readinto(view[done:])
        if not count:
            exchange.close()
            return bytes(view[:done])
        done += count


# --- the whole ------------------------------------------------------------------------------------


def test_the_whole_is_asked_for_as_its_origin_stores_it(tmp_path: Path) -> None:
    around = Around(tmp_path, ok(BODY))
    request = around.request(
        *[(b"Accept-Encoding", b"gzip"), (b"Range", b"bytes=1-2"), (b"If-Range", b'"1"'), (b"If-None-Match", b'"1"')],
        *[(b"Accept", b"text/plain"), TOKEN],
        method=b"HEAD",
    )
    assert body_of(querying(around, request).get_full()) == BODY
    asked = around.origins.asked[0]
    assert asked.method == b"GET" and asked.purpose is Purpose.FILL and str(asked.target).endswith(PATH)
    names = (b"accept-encoding", b"range", b"if-range", b"if-none-match", b"authorization")
    assert around.origins.fields(*names) == [(b"identity", None, None, None, TOKEN[1])]
    assert asked.headers.get_all(b"via") == [b"1.1 dduct"]


def test_redirects_are_followed_and_credentials_do_not_go_to_another_host(tmp_path: Path) -> None:
    around = Around(tmp_path, TO_CDN, ok(BODY))
    exchange = querying(around, around.request(TOKEN)).get_full()
    assert str(exchange.redirected_to) == ELSEWHERE and body_of(exchange) == BODY
    assert around.origins.fields(b"authorization") == [(TOKEN[1],), (None,)]


def test_a_client_s_own_request_goes_out_as_it_came(tmp_path: Path) -> None:
    around = Around(tmp_path, TO_CDN)
    request = around.request((b"Range", b"bytes=1-2"), (b"Accept-Encoding", b"gzip"), method=b"HEAD")
    exchange = querying(around, request).pass_through()
    exchange.close()
    asked = around.origins.asked[0]
    assert (asked.method, asked.purpose, exchange.head.status) == (b"HEAD", Purpose.RELAY, 302)
    assert around.origins.fields(b"range", b"accept-encoding") == [(b"bytes=1-2", b"gzip")]


@pytest.mark.parametrize(
    "ask",
    [
        lambda query: query.get_full(),
        lambda query: query.pass_through(),
        lambda query: query.revalidate(STORED, len(BODY)),
        lambda query: query.whole_or_rest(LEFT),
        lambda query: query.get_range(b'"1"', 4, len(BODY)),
        lambda query: query.permission(STORED),
    ],
)
def test_a_client_that_wants_only_what_is_cached_causes_no_request(
    tmp_path: Path, ask: Callable[[OriginQuery], object]
) -> None:
    around = Around(tmp_path)
    with pytest.raises(UpstreamError) as error:
        ask(querying(around, around.request((b"Cache-Control", b"only-if-cached"))))
    assert error.value.status == 504 and around.origins.asked == []


# --- validation -----------------------------------------------------------------------------------


def test_a_validation_names_every_validator(tmp_path: Path) -> None:
    around = Around(tmp_path, Answer(304, (ETAG,)))
    exchange = querying(around).revalidate(STORED, len(BODY))
    assert exchange.head.status == 304
    conditions = (b"if-none-match", b"if-modified-since", b"accept-encoding")
    assert around.origins.fields(*conditions) == [(b'"1"', STORED.fields[1][1].encode(), b"identity")]
    exchange.close()


def test_a_validation_that_also_decides_on_permission_trusts_no_date(tmp_path: Path) -> None:
    around = Around(tmp_path, Answer(304, (ETAG,)))
    querying(around, around.request(TOKEN)).revalidate(STORED, len(BODY)).close()
    assert around.origins.fields(b"if-none-match", b"if-modified-since") == [(b'"1"', None)]


@pytest.mark.parametrize("kept", [True, False])
def test_what_confirms_on_a_connection_that_brings_nothing_else(tmp_path: Path, kept: bool) -> None:
    around = Around(tmp_path, Answer(304, (ETAG,)))
    querying(around).revalidate(STORED, len(BODY)).close()
    confirms = around.origins.asked[0].confirms
    assert confirms is not None
    head = Answer(304, (ETAG if kept else OTHER,)).head()
    assert confirms(ResponseHead(304, b"", 1, head.headers)) is kept


def test_a_304_about_another_version_is_no_answer(tmp_path: Path) -> None:
    around = Around(tmp_path, Answer(304, (OTHER,)), ok(BODY, OTHER))
    assert body_of(querying(around).revalidate(STORED, len(BODY))) == BODY
    assert around.origins.fields(b"if-none-match") == [(b'"1"',), (None,)]
    assert around.origins.kept[0]  # the 304's connection


# --- the rest -------------------------------------------------------------------------------------


def test_a_partial_download_needs_only_its_rest(tmp_path: Path) -> None:
    around = Around(tmp_path, rest_of(BODY, 4, ETAG))
    assert body_of(querying(around).whole_or_rest(LEFT)) == BODY[4:]
    assert around.origins.fields(b"range", b"if-range") == [(b"bytes=4-", b'"1"')]


def test_what_a_digest_names_is_continued_under_any_validator(tmp_path: Path) -> None:
    around = Around(tmp_path, rest_of(BODY, 4, OTHER))
    request = around.request(digest=sha256_of(BODY))
    assert body_of(querying(around, request).whole_or_rest(LEFT)) == BODY[4:]
    assert around.origins.fields(b"range", b"if-range") == [(b"bytes=4-", None)]


@pytest.mark.parametrize(
    "left",
    [
        None,
        PartialDownload(meta(), len(BODY), 4),
        PartialDownload(meta(("ETag", 'W/"1"')), len(BODY), 4),
        PartialDownload(meta(("ETag", '"1"'), url="https://other.thing/x"), len(BODY), 4),
        PartialDownload(meta(("ETag", '"1"'), vary=(("accept", "text/html"),)), len(BODY), 4),
    ],
    ids=["none", "no validator", "weak", "of another URL", "for another request"],
)
def test_where_nothing_shows_that_the_rest_belongs_to_it_the_whole_is_asked_for(
    tmp_path: Path, left: Optional[PartialDownload]
) -> None:
    around = Around(tmp_path, ok(BODY))
    assert body_of(querying(around).whole_or_rest(left)) == BODY
    assert around.origins.fields(b"range") == [(None,)]


def test_an_origin_whose_version_is_another_sends_the_whole(tmp_path: Path) -> None:
    around = Around(tmp_path, ok(BODY, OTHER))
    assert body_of(querying(around).whole_or_rest(LEFT)) == BODY and len(around.origins.asked) == 1


@pytest.mark.parametrize("answer", [rest_of(BODY, 5, ETAG), rest_of(BODY, 4, OTHER), Answer(416)])
def test_another_part_than_the_one_asked_for_is_no_answer(tmp_path: Path, answer: Answer) -> None:
    around = Around(tmp_path, answer, ok(BODY))
    assert body_of(querying(around).whole_or_rest(LEFT)) == BODY
    assert around.origins.fields(b"range") == [(b"bytes=4-",), (None,)]


def test_the_rest_of_an_answer_is_taken_from_a_whole_one_too(tmp_path: Path) -> None:
    around = Around(tmp_path, rest_of(BODY, 4, ETAG), ok(BODY, ETAG))
    for _ in range(2):
        assert body_of(querying(around).get_range(b'"1"', 4, len(BODY))) == BODY[4:]


@pytest.mark.parametrize(
    "answer",
    [ok(BODY, OTHER), rest_of(BODY, 5, ETAG), Answer(200, (ETAG,), BODY[:2], len(BODY)), Answer(404)],
    ids=["another version", "another part", "too short", "gone"],
)
def test_what_is_not_the_rest_of_an_answer_is_thrown_away(tmp_path: Path, answer: Answer) -> None:
    around = Around(tmp_path, answer)
    with pytest.raises(UpstreamError, match="does not send the rest"):
        querying(around).get_range(b'"1"', 4, len(BODY))
    assert around.origins.kept == [False]


def test_not_too_much_is_received_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetching.origin_query.MAX_SKIPPED", 3)
    around = Around(tmp_path, ok(BODY, ETAG))
    with pytest.raises(UpstreamError, match="does not send the rest"):
        querying(around).get_range(b'"1"', 4, len(BODY))


# --- permission -----------------------------------------------------------------------------------


def permission(around: Around, metadata: Metadata, method: bytes = b"GET") -> Optional[Exchange]:
    return querying(around, around.request(TOKEN, method=method)).permission(metadata)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_permission_is_asked_for_with_the_client_s_own_method_and_credentials(tmp_path: Path, method: bytes) -> None:
    around = Around(tmp_path, Answer(304, (ETAG,)))
    exchange = permission(around, STORED, method)
    assert exchange is not None and exchange.head.status == 304
    exchange.close()
    assert around.origins.asked[0].method == method
    names = (b"authorization", b"if-none-match", b"if-modified-since", b"accept-encoding")
    assert around.origins.fields(*names) == [(TOKEN[1], b'"1"', None, b"identity")]


def test_a_redirect_of_everybody_to_where_it_came_from_is_permission(tmp_path: Path) -> None:
    around = Around(tmp_path, TO_CDN)
    assert permission(around, meta(("ETag", '"1"'), redirect=ELSEWHERE)) is None
    assert len(around.origins.asked) == 1 and len(around.origins.kept) == 1


@pytest.mark.parametrize(
    ("location", "redirect", "restricted_by"),
    [
        (ELSEWHERE, "https://cdn.thing/login", ()),
        (ELSEWHERE + "?sig=1", ELSEWHERE + "?", ()),
        (ELSEWHERE, ELSEWHERE, ("signature",)),
        (f"https://{HOST}/moved", f"https://{HOST}/moved", ()),
    ],
    ids=["elsewhere", "with a query", "once opened by a signature", "the same origin"],
)
def test_the_end_of_any_other_redirect_decides(
    tmp_path: Path, location: str, redirect: str, restricted_by: Tuple[str, ...]
) -> None:
    around = Around(tmp_path, Answer(302, ((b"Location", location.encode()),)), Answer(403))
    stored = meta(("ETag", '"1"'), redirect=redirect, restricted=bool(restricted_by), restricted_by=restricted_by)
    exchange = permission(around, stored)
    assert exchange is not None and exchange.head.status == 403
    exchange.close()
    targets: List[str] = [str(request.target) for request in around.origins.asked]
    assert targets[1] == location and len(targets) == 2


def test_without_a_reason_on_record_a_redirect_is_no_permission(tmp_path: Path) -> None:
    """Old records do not say why an object is restricted."""
    around = Around(tmp_path, TO_CDN, Answer(403))
    exchange = permission(around, meta(redirect=ELSEWHERE, restricted=True))
    assert exchange is not None and exchange.head.status == 403
    exchange.close()
