"""The answer from stored bytes, or from bytes that still arrive; the client and the origin are in memory."""

from __future__ import annotations

import errno
import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import List, Optional, Tuple, Union

import pytest
from support.fetching import CLIENT, NAME, Answer, Answering, Around, meta, ok

from cache import Hit
from fetching.outcomes import Outcome, Stale
from monitoring.details import Detail, Side
from monitoring.metrics import Counter
from protocol.freshness import Assessment, Basis
from protocol.headers import Field
from storage.record import Metadata, Record
from transfers.fill import Fill
from upstream.dialling import UpstreamError
from upstream.request import Purpose

BODY = os.urandom(150_000)
ETAG = (b"ETag", b'"1"')
STORED = meta(("ETag", '"1"'), ("Content-Type", "application/zip"), ("Date", "Mon, 01 Jan 2024 00:00:00 GMT"))
STALE = Assessment(False, True, 7.0, -5.0, Basis.EXPLICIT)
AWAY = UpstreamError("no route", 504)


def answering(around: Around, *fields: Field, method: bytes = b"GET", stored: Metadata = STORED) -> Answering:
    """A request for an object that is stored."""
    request = around.request(*fields, method=method)
    if around.stored(request.key) is None:
        around.put(BODY, stored, request.key)
    return Answering(around, request)


def send_hit(around: Around, one: Answering, note: str = "hit") -> Outcome:
    hit = around.hit(one.request)
    assert hit.metadata is not None
    with closing(hit.entry):
        return one.answer.send_hit(hit.entry, hit.metadata, Counter.HITS, note)


def stale_hit(around: Around, one: Answering, assessment: Assessment = STALE) -> Tuple[Hit, Stale]:
    hit = around.hit(one.request)
    assert hit.metadata is not None
    return hit, Stale(hit.entry, hit.metadata, assessment)


# --- a hit ----------------------------------------------------------------------------------------


def test_a_hit_has_its_fields_its_age_and_its_bytes(tmp_path: Path) -> None:
    around = Around(tmp_path)
    one = answering(around, stored=replace(STORED, fetched_at=time.time() - 100, age=20.0))
    assert send_hit(around, one, "hit; ttl=5") is Outcome.DONE
    client = one.client
    assert client.head.status == 200 and client.body == BODY and not client.cut
    assert (client.got(b"etag"), client.got(b"content-type")) == (b'"1"', b"application/zip")
    assert int(client.got(b"age") or b"0") in range(120, 130)
    assert client.got(b"content-length") == b"%d" % len(BODY) and client.got(b"accept-ranges") == b"bytes"
    assert client.cache_status == "hit; ttl=5"
    assert around.count(Counter.HITS) == 1 and around.origins.asked == []


def test_head_gets_the_head_alone(tmp_path: Path) -> None:
    around = Around(tmp_path)
    one = answering(around, method=b"HEAD")
    assert send_hit(around, one) is Outcome.DONE
    assert one.client.got(b"content-length") == b"%d" % len(BODY) and one.client.body == b""


def test_a_range_gets_its_bytes(tmp_path: Path) -> None:
    around = Around(tmp_path)
    one = answering(around, (b"Range", b"bytes=5-9"))
    send_hit(around, one)
    assert (one.client.head.status, one.client.body) == (206, BODY[5:10])
    assert one.client.got(b"content-range") == b"bytes 5-9/%d" % len(BODY)


def test_an_unchanged_object_is_a_304(tmp_path: Path) -> None:
    around = Around(tmp_path)
    one = answering(around, (b"If-None-Match", b'"1"'))
    send_hit(around, one)
    assert (one.client.head.status, one.client.body) == (304, b"")
    assert one.client.got(b"etag") == b'"1"' and one.client.got(b"content-type") is None


def test_a_precondition_on_another_version_is_for_the_origin(tmp_path: Path) -> None:
    around = Around(tmp_path, Answer(412))
    one = answering(around, (b"If-Match", b'"2"'))
    assert send_hit(around, one) is Outcome.DONE
    assert one.client.head.status == 412 and one.client.cache_status == "fwd=request; detail=condition"
    assert around.origins.fields(b"if-match") == [(b'"2"',)]


@pytest.mark.parametrize(
    ("fields", "whole"), [((), True), (((b"Range", b"bytes=0-1"),), False), (((b"If-None-Match", b'"1"'),), False)]
)
def test_only_a_whole_delivery_is_remembered(tmp_path: Path, fields: Tuple[Field, ...], whole: bool) -> None:
    around = Around(tmp_path)
    send_hit(around, answering(around, *fields))
    assert around.services.deliveries.asks_again(CLIENT, NAME) is whole


def test_a_damaged_object_is_found_before_anything_is_sent(tmp_path: Path) -> None:
    around = Around(tmp_path)
    one = answering(around, (b"Range", b"bytes=9-"))  # a whole one is sent while it is hashed
    path = tmp_path / "files" / NAME
    record = Record.decode(os.getxattr(path, "user.dduct"))
    path.write_bytes(BODY[::-1])
    os.setxattr(path, "user.dduct", replace(record, boot="earlier", durable=False).encode())
    assert send_hit(around, one) is Outcome.RETRY
    assert not one.reply.started and around.stored(one.request.key) is None
    assert (around.count(Counter.HITS), around.count(Counter.DAMAGED)) == (0, 1)


def test_where_the_disk_loses_an_object_it_is_fetched_again_and_the_answer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = Around(tmp_path, ok(BODY, ETAG))
    one = answering(around)
    hit = around.hit(one.request)
    real = os.preadv

    def fail(fd: int, views: List[memoryview], offset: int) -> int:
        if fd == hit.entry.fileno() and offset:
            raise OSError(errno.EIO, "broken")
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", fail)
    with closing(hit.entry):
        assert one.answer.send_hit(hit.entry, STORED, Counter.HITS, "hit") is Outcome.DONE
    assert one.client.body == BODY and not one.client.cut
    assert len(around.origins.asked) == 1 and around.stored(one.request.key) == BODY


# --- bytes that still arrive ----------------------------------------------------------------------


def growing(around: Around, body: bytes = BODY) -> Fill:
    fill = around.lead(around.request())
    fill.start(replace(STORED, fetched_at=time.time()), len(BODY))
    fill.write(memoryview(body))
    return fill


@pytest.mark.parametrize("note", ["fwd=uri-miss; stored", "fwd=stale; collapsed"])
def test_the_log_says_what_became_of_an_object(tmp_path: Path, note: str) -> None:
    around = Around(tmp_path)
    fill = growing(around)
    with closing(around.cache.reader(fill)) as reader, closing(fill):
        assert fill.publish()
        one = Answering(around, around.request())
        one.reply.note = note
        assert one.answer.send_growing(reader, STORED) is Outcome.DONE
    assert one.client.body == BODY and one.client.cache_status == note
    assert one.reply.outcome == note.replace("; stored", "") + "; stored"


def test_a_miss_has_no_age_before_it_is_a_second_old(tmp_path: Path) -> None:
    around = Around(tmp_path)
    fill = growing(around)
    with closing(around.cache.reader(fill)) as reader, closing(fill):
        fill.publish()
        one = Answering(around, around.request())
        one.reply.note = "fwd=uri-miss; stored"
        one.answer.send_growing(reader, replace(STORED, fetched_at=time.time() + 60))
    assert one.client.got(b"age") is None


def test_a_fill_that_fails_before_any_bytes_is_tried_once_more(tmp_path: Path) -> None:
    around = Around(tmp_path)
    one = Answering(around, around.request())
    for attempt in range(2):
        fill = around.lead(one.request)
        with closing(around.cache.reader(fill)) as reader, closing(fill):
            fill.start(STORED, len(BODY))
            fill.fail(UpstreamError("broken off"))
            if attempt == 0:
                assert one.answer.send_growing(reader, STORED) is Outcome.RETRY
            else:
                with pytest.raises(UpstreamError, match="broken off"):
                    one.answer.send_growing(reader, STORED)
    assert not one.reply.started


def test_a_fill_that_fails_later_cuts_the_connection(tmp_path: Path) -> None:
    """Nothing says that the rest of another attempt would be of the same object."""
    around = Around(tmp_path)
    fill = growing(around, BODY[:100])
    one = Answering(around, around.request())
    with closing(around.cache.reader(fill)) as reader, closing(fill):
        real = one.reply.send_head

        def send_head(*arguments: object, **more: object) -> None:
            real(*arguments, **more)  # type: ignore[arg-type]
            fill.fail(UpstreamError("broken off"))

        one.reply.send_head = send_head  # type: ignore[method-assign]
        assert one.answer.send_growing(reader, meta()) is Outcome.DONE
    assert one.client.cut and one.reply.cut_by is Side.ORIGIN and one.client.body == BODY[:100]
    assert not around.services.deliveries.asks_again(CLIENT, NAME)


# --- where the origin cannot be asked -------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "stored", "assessment", "may"),
    [
        ((), STORED, STALE, True),
        ((), STORED, replace(STALE, usable_on_error=False), False),
        ((), replace(STORED, restricted=True), STALE, False),
        (((b"Cache-Control", b"only-if-cached"),), STORED, STALE, False),
    ],
    ids=["stale", "too stale", "restricted", "only-if-cached"],
)
def test_which_stale_objects_may_be_sent(
    tmp_path: Path, fields: Tuple[Field, ...], stored: Metadata, assessment: Assessment, may: bool
) -> None:
    around = Around(tmp_path)
    one = answering(around, *fields, stored=stored)
    hit, stale = stale_hit(around, one, assessment)
    with closing(hit.entry):
        assert one.answer.may_use(stale) is may
        assert not one.answer.may_use(None)
        if not may:
            with pytest.raises(UpstreamError, match="no route"):
                one.answer.send_stale_or_raise(stale, AWAY)
            return
        assert one.answer.send_stale_or_raise(stale, AWAY) is Outcome.DONE
    assert one.client.body == BODY and one.client.cache_status == "hit; ttl=-5"
    assert around.count(Counter.STALE) == 1


def relayed(
    directory: Path, answer: Union[Answer, UpstreamError], assessment: Optional[Assessment]
) -> Tuple[Around, Answering]:
    """Relay a request for a stale object, or for none."""
    around = Around(directory, answer)
    one = answering(around)
    hit, stale = stale_hit(around, one, assessment or STALE)
    with closing(hit.entry):
        assert one.answer.relay_or(stale if assessment else None, Detail.NO_SPACE) is Outcome.DONE
    return around, one


def test_what_cannot_be_validated_is_relayed(tmp_path: Path) -> None:
    around, one = relayed(tmp_path, ok(b"new"), STALE)
    assert one.client.body == b"new" and one.client.cache_status == "fwd=stale; detail=no-room"
    assert around.origins.asked[0].purpose is Purpose.FILL  # the stale object need not wait as long as a relay may


def test_a_miss_is_relayed_for_its_client_alone(tmp_path: Path) -> None:
    around, one = relayed(tmp_path, ok(b"new"), None)
    assert one.client.cache_status == "fwd=uri-miss; detail=no-room"
    assert around.origins.asked[0].purpose is Purpose.RELAY


def test_a_stale_object_is_sent_where_the_relay_finds_no_origin(tmp_path: Path) -> None:
    around, one = relayed(tmp_path, AWAY, STALE)
    assert one.client.body == BODY and around.count(Counter.STALE) == 1


def test_without_a_stale_object_the_client_gets_the_error(tmp_path: Path) -> None:
    around = Around(tmp_path, AWAY)
    one = Answering(around, around.request())
    with pytest.raises(UpstreamError, match="no route"):
        one.answer.relay_or(None, Detail.NO_SPACE)
    assert not one.reply.started
