"""What a leader that is gone has left, and fills that another process leads."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, List, Optional

import pytest
from support.caching import (
    BLOB,
    KEY,
    META,
    NAME,
    blob_key,
    blob_meta,
    digest_of,
    follow,
    hit_body,
    lead,
    leave,
    parts,
    publish,
    read_all,
    view,
)
from support.pairs import TIMEOUT

from cache import Cache
from storage.entry import Lost
from storage.record import Unstorable
from storage.records import NoRecords
from storage.store import Key
from transfers.acquiring import PartialDownload
from transfers.follow import FillReader, ForeignFill
from transfers.hold_back import HOLD_BACK
from transfers.states import FillFailed, FillState


def test_a_partial_download_is_resumed(pair: List[Cache]) -> None:
    leave(pair[0], b"abc")
    fill = lead(pair[1])
    assert fill.partial_download == PartialDownload(META, 6, 3)
    reader = pair[1].reader(fill)
    fill.resume(META)
    assert reader.read_at(view(bytearray(10)), 0) == 3
    fill.catch_up()
    fill.write(view(b"def"))
    fill.publish()
    fill.make_durable()
    fill.close()
    assert read_all(reader) == b"abcdef"
    reader.close()
    assert hit_body(pair[0]) == b"abcdef"
    entry = pair[0].store.open_entry(str(pair[0].store.root / NAME))
    assert entry is not None and entry.record.sha256 == digest_of(b"abcdef").hex
    entry.close()


def test_foreign_followers_get_no_bytes_of_a_partial_download_before_the_origin_answers(tmp_path: Path) -> None:
    """All bytes of an outdated object may be there."""
    caches = [Cache(tmp_path / "files", timeout=lambda: 20.0) for _ in range(3)]
    leave(caches[0], b"abcdef")
    fill = lead(caches[1])
    reader = follow(caches[2])
    assert reader.fill.wait_head(0.01) is FillState.ASKING
    fill.resume(META)
    assert reader.fill.wait_head(20) is FillState.FILLING
    assert reader.fill.available(0) == 5  # the last one when the whole is in its place
    reader.close()
    fill.close()


def test_a_partial_download_survives_a_leader_that_dies_while_it_asks(pair: List[Cache]) -> None:
    leave(pair[0], b"abc")
    os.close(lead(Cache(pair[0].store.root)).file.fd)
    fill = lead(pair[1])
    assert fill.partial_download == PartialDownload(META, 6, 3)
    fill.close()


def test_a_partial_download_with_all_bytes_is_not_mistaken_for_an_object(pair: List[Cache]) -> None:
    leave(pair[0], b"abcdef")
    fill = lead(pair[1])
    assert fill.partial_download == PartialDownload(
        META, 6, 5
    )  # the last byte is asked for, and with it whether it is still the same
    fill.resume(META)
    fill.catch_up()
    fill.write(view(b"f"))
    fill.publish()
    fill.close()
    assert hit_body(pair[0]) == b"abcdef"


def test_a_digest_named_partial_download_is_verified_from_its_first_byte(pair: List[Cache], tmp_path: Path) -> None:
    key = Key("https/one/x", digest_of(b"abcdef"))
    for one, raw, right in ((pair[0], b"abX", False), (Cache(tmp_path / "files"), b"abc", True)):
        leave(one, raw, key=key)
        fill = lead(pair[1], key)
        fill.resume(META)
        fill.catch_up()
        fill.write(view(b"def"))
        if right:
            assert fill.publish()
        else:
            with pytest.raises(FillFailed, match="digest"):
                fill.publish()
        fill.close()


def test_followers_do_not_mix_a_partial_download_with_another_object(pair: List[Cache]) -> None:
    leave(pair[0], b"abc")
    foreign = ForeignFill(
        str(pair[0].store.root / NAME),
        pair[0].store.tree.open_growing_file(str(pair[0].store.root / NAME)),
        verifies=False,
    )
    old = FillReader(foreign, 20)
    assert foreign.wait_head(1) is FillState.GONE or old.read_at(view(bytearray(3)), 0) == 3
    fill = lead(pair[1])
    fill.start(META, 9)
    fill.write(view(b"ABCDEFGHI"))
    assert fill.partial_download is None
    with pytest.raises(Lost):
        old.read_at(view(bytearray(10)), 3)
    old.close()
    fill.publish()
    fill.close()
    assert hit_body(pair[0]) == b"ABCDEFGHI" and parts(pair[0]) == []


@pytest.mark.parametrize("what", ["not resumable", "other boot", "too long"])
def test_a_partial_download_that_cannot_be_resumed_is_removed(pair: List[Cache], what: str) -> None:
    if what == "other boot":
        pair[0].store.boot = "another"
    leave(pair[0], b"abc", 6 if what != "too long" else 2, what != "not resumable")
    fill = lead(pair[1])
    assert fill.partial_download is None
    fill.close()
    assert parts(pair[0]) == []


def test_a_fill_without_readers_can_be_stopped_and_resumed(pair: List[Cache]) -> None:
    fill = lead(pair[0])
    fill.start(META, 6, resumable=True)
    fill.write(view(b"abc"))
    reader = follow(pair[0])
    assert not fill.unread and not fill.abandon()
    reader.close()
    elsewhere = follow(pair[1])
    assert fill.unread and not fill.abandon()
    elsewhere.close()
    assert fill.abandon()
    fill.close()
    again = lead(pair[0])
    assert again.partial_download == PartialDownload(META, 6, 3)
    again.fail("its origin is away")
    again.close()
    assert len(parts(pair[0])) == 1
    once_more = lead(pair[1])
    assert once_more.partial_download == PartialDownload(META, 6, 3)
    once_more.decline()
    once_more.close()
    assert parts(pair[0]) == []


def test_a_fill_that_is_given_up_for_good_is_removed(cache: Cache) -> None:
    fill = lead(cache)
    fill.start(META, 6)
    fill.write(view(b"abc"))
    assert fill.abandon()
    fill.close()
    assert parts(cache) == []


def test_a_reader_that_joins_a_stopping_fill_claims_again(cache: Cache) -> None:
    fill = lead(cache)
    fill.start(META, 6, resumable=True)
    late = FillReader(fill, 1)
    assert fill.abandon()
    assert fill.wait_head(1) is FillState.GONE
    with pytest.raises(Lost):
        late.ready(0, True)
    with pytest.raises(Lost):
        late.read_at(view(bytearray(1)), 0)
    fill.close()


@pytest.mark.parametrize("failures", [2, 3])
def test_an_object_that_cannot_be_read_is_read_again_and_then_given_up(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    publish(cache, b"body")
    real, left = os.preadv, [failures]

    def preadv(fd: int, views: Any, offset: int) -> int:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "worn out")
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    hit = cache.lookup(KEY)
    assert hit is not None
    if failures == 3:
        with pytest.raises(Lost, match="worn out"):
            hit.entry.read_at(view(bytearray(9)), 0)
        assert cache.lookup(KEY) is None  # so that it is fetched again
    else:
        assert hit.entry.read_at(view(bytearray(9)), 0) == 4
    hit.entry.close()


# --- two processes (two caches on one directory: flock does not know the difference) --------------


def test_an_empty_growing_file_without_leader_is_removed_by_its_finder(cache: Cache) -> None:
    """A check for a leader takes the lock for a moment; a process that wants to lead just then sees another leader."""
    place = str(cache.store.root / NAME)
    os.close(cache.store.tree.open_growing_file(place))
    growing = cache.store.tree.open_growing(place)
    assert growing is not None
    foreign = ForeignFill(place, growing, verifies=False)
    assert foreign.wait_head(TIMEOUT) is FillState.GONE
    foreign.detach()
    assert parts(cache) == []


def test_a_foreign_follower_completes_when_the_object_is_in_its_place(pair: List[Cache]) -> None:
    fill = lead(pair[0])
    reader = follow(pair[1])
    fill.start(META, 6)
    fill.write(view(b"abcdef"))
    assert reader.fill.wait_head(TIMEOUT) is FillState.FILLING
    assert reader.fill.available(0) == 5 and reader.read_at(view(bytearray(5)), 0) == 5
    assert fill.publish()
    assert read_all(reader) == b"abcdef"
    reader.close()
    fill.close()


def test_a_foreign_follower_waits_for_larger_pieces(pair: List[Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfers.follow.PIECE", 10)
    monkeypatch.setattr("transfers.follow.POLL_INTERVAL", 0.0)  # else it looks only a few times in TIMEOUT
    fill = lead(pair[0])
    reader = follow(pair[1])
    fill.start(META, 20)
    fill.write(view(b"abc"))
    foreign, buffer, looked = reader.fill, view(bytearray(15)), threading.Event()
    assert isinstance(foreign, ForeignFill)
    assert foreign.wait_head(TIMEOUT) is FillState.FILLING
    assert foreign.read_at(buffer, 0, TIMEOUT) == 3
    assert foreign.read_at(buffer[:2], 0, TIMEOUT, backoff=TIMEOUT) == 2
    assert foreign.read_at(buffer, 0, TIMEOUT, backoff=0.01) == 3
    look = foreign._look

    def tell() -> None:
        look()
        looked.set()

    monkeypatch.setattr(foreign, "_look", tell)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(foreign.read_at, buffer, 0, TIMEOUT, None, TIMEOUT)
        assert looked.wait(TIMEOUT)
        fill.write(view(b"defghij"))
        assert reading.result(TIMEOUT) == 10
        looked.clear()
        reading = pool.submit(foreign.read_at, buffer, 9, TIMEOUT, None, TIMEOUT)
        assert looked.wait(TIMEOUT)
        fill.write(view(b"0123456789"))
        fill.publish()
        assert reading.result(TIMEOUT) in (10, 11)  # the last one may not have been for reading yet
    reader.close()
    fill.close()


def test_a_foreign_fill_is_followed_to_its_end(pair: List[Cache]) -> None:
    fill = lead(pair[0])
    reader = follow(pair[1])
    with ThreadPoolExecutor(1) as pool:
        head = pool.submit(reader.fill.wait_head, 20)
        fill.start(META, 6)
        assert head.result(20) is FillState.FILLING
        assert reader.fill.metadata == META and reader.length == 6
        body = pool.submit(read_all, reader)
        fill.write(view(b"abc"))
        fill.write(view(b"def"))
        fill.publish()
        fill.close()
        assert body.result(20) == b"abcdef"
    reader.close()


def test_a_foreign_fill_of_unknown_length_has_a_length_at_its_end(pair: List[Cache]) -> None:
    fill = lead(pair[0])
    reader = follow(pair[1])
    fill.start(META, None)
    fill.write(view(b"abc"))
    assert reader.fill.wait_head(20) is FillState.FILLING
    assert reader.length is None
    fill.publish()
    fill.close()
    assert read_all(reader) == b"abc"
    assert reader.length == 3
    reader.close()


def test_a_foreign_digest_named_fill_holds_its_last_bytes_back(pair: List[Cache]) -> None:
    fill = lead(pair[0], blob_key("one"))
    reader = follow(pair[1], blob_key("one"))
    fill.start(blob_meta("one"), len(BLOB))
    fill.write(view(BLOB))
    buffer = view(bytearray(2 * HOLD_BACK))
    assert reader.read_at(buffer, 0) == len(BLOB) - HOLD_BACK
    fill.publish()
    fill.close()
    assert reader.read_at(buffer, 1000) == HOLD_BACK
    reader.close()


def test_a_fill_that_ends_before_it_can_be_followed_leaves_nothing(
    pair: List[Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is gone between our seeing that another process has it and our opening it."""
    fill = lead(pair[0])
    fill.start(META, 4)
    fill.write(view(b"body"))
    real = pair[1].store.tree.open_growing

    def open_growing(place: str) -> Optional[int]:
        fill.publish()
        return real(place)

    monkeypatch.setattr(pair[1].store.tree, "open_growing", open_growing)
    assert hit_body(pair[1]) == b"body"
    assert parts(pair[1]) == []
    fill.close()


@pytest.mark.parametrize("fate", ["evicted", "replaced"])
def test_a_complete_foreign_fill_is_complete_even_if_its_file_was_removed(pair: List[Cache], fate: str) -> None:
    """A slow follower may reach the end much later."""
    fill = lead(pair[0])
    reader = follow(pair[1])
    fill.start(META, None)
    fill.write(view(b"abc"))
    assert reader.read_at(view(bytearray(3)), 0) == 3
    fill.write(view(b"def"))
    fill.publish()
    fill.close()
    (pair[0].store.root / NAME).unlink()
    if fate == "replaced":
        publish(pair[0], b"new")
    assert read_all(reader) == b"abcdef"
    reader.close()


def test_without_attributes_a_foreign_fill_cannot_be_followed(pair: List[Cache]) -> None:
    """Nothing tells its head before its end."""
    for cache in pair:
        cache.store.records = NoRecords()
    fill = lead(pair[0])
    with pytest.raises(Unstorable, match="no metadata"):
        pair[1].claim(KEY)
    fill.start(META, 4)
    fill.write(view(b"body"))
    fill.publish()
    fill.close()
    assert hit_body(pair[1]) == b"body"


@pytest.mark.parametrize("end", ["fail", "decline"])
def test_a_foreign_fill_that_ends_before_its_head_makes_followers_claim_again(pair: List[Cache], end: str) -> None:
    fill = lead(pair[0])
    reader = follow(pair[1])
    fill.fail("x") if end == "fail" else fill.decline()
    assert reader.fill.wait_head(20) is FillState.GONE
    reader.close()
    fill.close()
    publish(pair[1], b"body")


def test_followers_of_a_failed_foreign_fill_continue_elsewhere(pair: List[Cache]) -> None:
    fill = lead(pair[0])
    reader = follow(pair[1])
    fill.start(META, 6)
    fill.write(view(b"abc"))
    fill.fail("x")
    fill.close()
    with pytest.raises(Lost, match="gave it up"):
        read_all(reader)
    reader.close()


def test_many_followers_of_a_foreign_fill_in_one_process_all_follow_it(pair: List[Cache]) -> None:
    fill = lead(pair[0])
    start, attached = threading.Barrier(16), threading.Barrier(17)

    def client(_: int) -> bytes:
        start.wait(20)
        reader = follow(pair[1])
        attached.wait(20)
        try:
            return read_all(reader)
        finally:
            reader.close()

    with ThreadPoolExecutor(16) as pool:
        bodies = [pool.submit(client, n) for n in range(16)]
        attached.wait(20)
        fill.start(META, 4)
        fill.write(view(b"body"))
        fill.publish()
        fill.close()
        assert {body.result(20) for body in bodies} == {b"body"}
