"""Claims and fills on a real directory, between threads and between processes; events instead of sleeps."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple, cast

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
from support.client import wait_until
from support.pairs import TIMEOUT

from cache import Cache, Hit, Lead
from storage.record import Digest, Unstorable
from storage.records import NoRecords
from storage.store import Key
from transfers.fill import Fill
from transfers.follow import FillReader
from transfers.hold_back import HOLD_BACK
from transfers.pacing import backoff_seconds
from transfers.states import FillFailed, FillState

# --- one process --------------------------------------------------------------------------------


def test_the_first_claim_leads_and_the_next_one_follows(cache: Cache) -> None:
    fill = lead(cache)
    reader = follow(cache)
    assert reader.fill is fill
    reader.close()
    fill.close()


@pytest.mark.parametrize("length", [6, None])
def test_after_the_last_byte_a_claim_is_a_hit_and_not_a_fill(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, length: Optional[int]
) -> None:
    """Otherwise the next request of a client would join a fill that has ended."""
    fill = lead(cache)
    fill.start(META, length)
    fill.write(view(b"abc"))
    fill.write(view(b"def"))
    before: List[bool] = []
    over = fill._on_done

    def leave(fill: Fill) -> None:
        before.append(fill.available(0) == fill.length)
        over(fill)
        before.append(fill.available(0) == fill.length)

    monkeypatch.setattr(fill, "_on_done", leave)
    assert fill.publish()
    assert before == [False, False] and fill.available(0) == fill.length == 6
    fill.close()


def test_a_published_object_is_a_hit_with_its_metadata(cache: Cache) -> None:
    publish(cache, b"body")
    claim = cache.claim(KEY)
    assert isinstance(claim, Hit)
    assert claim.metadata == META
    assert claim.entry.length == 4
    assert claim.entry.record.sha256 == hashlib.sha256(b"body").hexdigest()
    claim.entry.close()
    assert (cache.store.root / NAME).read_bytes() == b"body"
    assert parts(cache) == []


def test_an_empty_object_is_stored(cache: Cache) -> None:
    fill = lead(cache)
    fill.start(META, 0)
    fill.publish()
    fill.close()
    assert hit_body(cache) == b""


def test_a_follower_reads_while_the_file_grows(cache: Cache) -> None:
    fill = lead(cache)
    reader = follow(cache)
    fill.start(META, 9)
    buffer = view(bytearray(10))
    fill.write(view(b"abc"))
    assert reader.read_at(buffer, 0) == 3 and bytes(buffer[:3]) == b"abc"
    assert reader.length == 9
    fill.write(view(b"def"))
    assert reader.read_at(buffer, 3) == 3 and bytes(buffer[:3]) == b"def"
    fill.write(view(b"ghi"))
    fill.publish()
    assert reader.read_at(buffer, 6) == 3
    assert reader.read_at(buffer, 9) == 0
    reader.close()
    fill.close()


def test_a_waiting_reader_is_woken_by_bytes(cache: Cache) -> None:
    fill = lead(cache)
    reader = follow(cache)
    fill.start(META, None)
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[int] = pool.submit(reader.read_at, view(bytearray(10)), 0)
        fill.write(view(b"abc"))
        assert waiting.result(20) == 3
    reader.close()
    fill.close()


def test_many_readers_wait_for_larger_pieces(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfers.readers.MANY_READERS", 2)
    monkeypatch.setattr("transfers.pacing.PIECE", 10)
    monkeypatch.setattr("transfers.pacing.POLL_INTERVAL", 0.0)
    fill = lead(cache)
    readers = [follow(cache) for _ in range(3)]
    fill.start(META, 20)
    fill.write(view(b"abc"))
    buffer = view(bytearray(15))
    assert fill.read_at(buffer, 0, TIMEOUT) == 3
    assert fill.read_at(buffer[:2], 0, TIMEOUT, backoff=TIMEOUT) == 2  # what was asked for is there
    assert fill.read_at(buffer, 0, TIMEOUT, backoff=0.01) == 3
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(fill.read_at, buffer, 0, TIMEOUT, None, TIMEOUT)
        wait_until(lambda: bool(fill._changed._waiters))  # type: ignore[attr-defined]
        fill.write(view(b"defghij"))
        assert reading.result(TIMEOUT) == 10
        reading = pool.submit(fill.read_at, buffer, 9, TIMEOUT, None, TIMEOUT)
        wait_until(lambda: bool(fill._changed._waiters))  # type: ignore[attr-defined]
        fill.write(view(b"0123456789"))
        fill.publish()  # no more will come
        assert reading.result(TIMEOUT) == 11
    for reader in readers:
        reader.close()
    fill.close()


def test_few_readers_take_what_there_is(cache: Cache) -> None:
    fill = lead(cache)
    reader = follow(cache)
    fill.start(META, 6)
    fill.write(view(b"abc"))
    assert fill.read_at(view(bytearray(10)), 0, TIMEOUT, backoff=TIMEOUT) == 3
    reader.close()
    fill.close()


class Scripted:
    """A fill with the length that the test sets, which notes how long its reader would back off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.there = 0
        self.takes = 0.0  # seconds to wait
        self.backoffs: List[float] = []
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def enter(self, _: object) -> None:
        pass

    def available(self, offset: int) -> int:
        return self.there - offset

    def read_at(
        self, view: memoryview, offset: int, timeout: float, reader: object = None, backoff: float = 0.0
    ) -> int:
        self.backoffs.append(round(backoff, 6))
        self.now += self.takes
        self.there = max(self.there, offset + len(view)) if self.takes else self.there
        return min(len(view), self.there - offset)


def test_backoff_counts_the_sending_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each wait would make the next one twice as long, for a reader that has nothing else to do."""
    fill = Scripted(monkeypatch)
    reader, buffer = FillReader(cast(Any, fill), timeout=60), view(bytearray(10))
    fill.there = 3
    assert reader.read_at(buffer, 0) == 3
    fill.takes = 0.5
    assert reader.read_at(buffer, 3) == 10  # a whole view, but it has been waited for
    assert reader.read_at(buffer, 13) == 10
    fill.there, fill.takes = 60, 0.0
    for offset in (23, 33, 43):
        assert reader.read_at(buffer, offset) == 10
        fill.now += 0.05
    assert reader.read_at(buffer, 53) == 7
    assert [max(0.0, value) for value in fill.backoffs] == [0, 0, 0, 0, 0, 0, 0.6]


def test_the_end_of_a_range_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fill = Scripted(monkeypatch)
    reader, buffer = FillReader(cast(Any, fill), timeout=60), view(bytearray(10))
    fill.there = 3
    reader.read_at(buffer, 0)
    fill.now += 1
    reader.read_at(buffer, 3)
    fill.now += 1
    reader.read_at(buffer[:5], 3)
    assert fill.backoffs[1:] == [2.0, 0.0]


def test_backoff_ends_well_before_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    fill = Scripted(monkeypatch)
    reader, buffer = FillReader(cast(Any, fill), timeout=0.1), view(bytearray(10))
    fill.there = 3
    reader.read_at(buffer, 0)
    fill.now += 1
    reader.read_at(buffer, 3)
    assert fill.backoffs[1:] == [0.05]


def test_backoff_lasts_as_long_as_sending(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    assert backoff_seconds(1000.0) == 0
    assert backoff_seconds(999.75) == 1.0
    assert backoff_seconds(1.0) == 2.0
    assert backoff_seconds(float("inf")) < 0  # a reader that never caught up does not back off


@pytest.mark.parametrize("end", ["fail", "decline", "close"])
def test_every_way_out_of_a_fill_releases_those_who_wait_for_the_head(cache: Cache, end: str) -> None:
    fill = lead(cache)
    readers = [follow(cache) for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(reader.fill.wait_head, 20) for reader in readers]
        ways: dict[str, Callable[[], None]] = {
            "fail": lambda: fill.fail("no luck"),
            "decline": fill.decline,
            "close": fill.close,
        }
        ways[end]()
        states = {future.result(20) for future in waiting}
    assert states == {FillState.DECLINED if end == "decline" else FillState.FAILED}
    for reader in readers:
        reader.close()
    fill.close()
    assert parts(cache) == []


def test_a_failed_fill_gives_its_readers_what_arrived_and_then_the_cause(cache: Cache) -> None:
    fill = lead(cache)
    reader = follow(cache)
    fill.start(META, 10)
    fill.write(view(b"abc"))
    cause = RuntimeError("origin is gone")
    fill.fail(cause)
    assert reader.read_at(view(bytearray(10)), 0) == 3
    with pytest.raises(FillFailed) as caught:
        reader.read_at(view(bytearray(10)), 3)
    assert caught.value.cause is cause
    reader.close()
    fill.close()
    lead(cache).close()


@pytest.mark.parametrize("sent", [b"abc", b"abcdefg"], ids=["short", "long"])
def test_a_body_with_a_wrong_length_is_not_published(cache: Cache, sent: bytes) -> None:
    fill = lead(cache)
    fill.start(META, 5)
    fill.write(view(sent))
    with pytest.raises(FillFailed, match=f"{len(sent)} bytes instead of 5"):
        fill.publish()
    fill.close()
    assert not (cache.store.root / NAME).exists()
    assert parts(cache) == []


def test_a_reader_times_out_when_nothing_arrives(tmp_path: Path) -> None:
    cache = Cache(tmp_path, timeout=lambda: 0.01)
    fill = lead(cache)
    fill.start(META, 10)
    reader = cache.reader(fill)
    with pytest.raises(FillFailed, match=r"nothing arrived for 0\.01 s"):
        reader.read_at(view(bytearray(1)), 0)
    reader.close()
    fill.close()


def test_a_reader_outlives_the_leader_and_the_objects_replacement(cache: Cache) -> None:
    fill = lead(cache)
    reader = follow(cache)
    fill.start(META, 3)
    fill.write(view(b"old"))
    fill.publish()
    fill.close()
    (cache.store.root / NAME).unlink()
    publish(cache, b"newer")
    assert read_all(reader) == b"old"
    reader.close()


def test_an_entry_outlives_its_eviction(cache: Cache) -> None:
    publish(cache, b"body")
    claim = cache.claim(KEY)
    assert isinstance(claim, Hit)
    (cache.store.root / NAME).unlink()
    assert read_all(claim.entry) == b"body"
    claim.entry.close()


def test_the_descriptor_of_a_fill_is_closed_by_its_last_user(cache: Cache) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    fill = lead(cache)
    readers = [follow(cache) for _ in range(3)]
    fill.start(META, 0)
    fill.publish()
    fill.close()
    readers[0].close()
    readers[0].close()
    readers[1].close()
    assert descriptors() == before + 1
    readers[2].close()
    assert descriptors() == before


def test_two_names_never_mix(cache: Cache) -> None:
    other = Key("https/other.thing/pool/x.deb")
    publish(cache, b"one")
    publish(cache, b"two", other)
    assert hit_body(cache) == b"one"
    assert hit_body(cache, other) == b"two"


def test_unused_directories_are_removed_again(cache: Cache) -> None:
    fill = lead(cache, Key("https/h/a/b/c/x.deb"))
    fill.decline()
    fill.close()
    assert list(cache.store.root.iterdir()) == []


def test_a_directory_removed_during_its_creation_is_created_again(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = os.mkdir, [2]

    def mkdir(*arguments: Any, **more: Any) -> None:
        if failures[0]:
            failures[0] -= 1
            raise FileNotFoundError(errno.ENOENT, "pruned")
        real(*arguments, **more)

    monkeypatch.setattr(os, "mkdir", mkdir)
    publish(cache, b"body")
    assert hit_body(cache) == b"body"


@pytest.mark.parametrize("name", ["https/h/../x", "https//x", "https/h/x.dduct", "https/h/" + "x" * 250, "https/h/."])
def test_a_name_that_no_file_can_have_is_unstorable_and_leaves_nothing(cache: Cache, name: str) -> None:
    with pytest.raises(Unstorable):
        cache.claim(Key(name))
    assert list(cache.store.root.iterdir()) == []


ABOVE, BELOW = Key(NAME), Key(NAME + "/below.deb")


@pytest.mark.parametrize("order", [(ABOVE, BELOW), (BELOW, ABOVE)])
def test_objects_with_names_that_collide_as_file_and_directory_are_both_stored(
    cache: Cache, order: Tuple[Key, Key]
) -> None:
    for key in order:
        publish(cache, key.name.encode(), key)
    for other in (cache, Cache(cache.store.root)):
        assert [hit_body(other, key) for key in order] == [key.name.encode() for key in order]
    for key in order:
        cache.remove(key)
        assert cache.lookup(key) is None
    assert list(cache.store.root.iterdir()) == []


def test_a_directory_that_appears_at_the_path_of_a_growing_object_does_not_lose_it(cache: Cache) -> None:
    above = lead(cache, ABOVE)
    above.start(META, 5)
    publish(cache, b"below", BELOW)
    with closing(follow(cache, ABOVE)):  # it is still the same fill, here and in other processes
        pass
    with closing(follow(Cache(cache.store.root), ABOVE)):
        pass
    above.write(view(b"above"))
    assert above.publish()
    above.make_durable()
    above.close()
    assert (hit_body(cache, ABOVE), hit_body(Cache(cache.store.root), BELOW)) == (b"above", b"below")


def test_an_object_stored_aside_is_replaced_there(cache: Cache) -> None:
    publish(cache, b"below", BELOW)
    publish(cache, b"old", ABOVE)
    cache.remove(BELOW)  # its place is free by now
    found = cache.lookup(ABOVE)
    assert found is not None
    with closing(found.entry):
        claim = cache.claim(ABOVE, found.entry.version)
    assert isinstance(claim, Lead)
    claim.fill.start(META, 3)
    claim.fill.write(view(b"new"))
    assert claim.fill.publish()
    claim.fill.close()
    assert hit_body(cache, ABOVE) == b"new"
    assert len([path for path in cache.store.root.rglob("*") if path.is_file()]) == 1


def test_aliases_can_be_stored_aside(cache: Cache) -> None:
    digest = Digest("sha256", hashlib.sha256(b"layer").hexdigest())
    for key in (Key(ABOVE.name, digest), Key(BELOW.name, digest)):
        found = cache.lookup(key)
        if found is None:
            publish(cache, b"layer", key)
        else:
            found.entry.close()
        cache.confirm_alias(key, META)
    for key in (Key(ABOVE.name, digest), Key(BELOW.name, digest)):
        found = Cache(cache.store.root).lookup(key)
        assert found is not None and found.metadata == META
        found.entry.close()


@pytest.mark.parametrize("levels", [33, 500, 1200, 3000])
def test_deep_names_are_unstorable(cache: Cache, levels: int) -> None:
    deep = "/".join(["https/h", *["d"] * levels, "x.deb"])
    with pytest.raises(Unstorable, match="levels"):
        cache.claim(Key(deep))
    digest = Digest("sha256", hashlib.sha256(b"layer").hexdigest())
    with pytest.raises(Unstorable, match="levels"):
        cache.claim(Key(deep, digest))
    assert list(cache.store.root.iterdir()) == []


def test_long_names_are_unstorable_and_those_at_the_limits_are_not(cache: Cache) -> None:
    with pytest.raises(Unstorable, match="over-long path"):
        cache.claim(Key("https/h/" + "/".join(["d" * 200] * 11)))
    deep = Key("/".join(["https/h", *["d"] * 30, "x.deb"]))
    publish(cache, b"deep", deep)
    assert hit_body(cache, deep) == b"deep"


def test_a_removed_growing_file_is_not_published_over_its_successor(pair: List[Cache]) -> None:
    """A user clears the cache while it is filled, and another process starts again under the same name."""
    first = lead(pair[0])
    first.start(META, None)
    first.write(view(b"whole"))
    shutil.rmtree(pair[0].store.root / "https")
    second = lead(pair[1])
    second.start(META, None)
    second.write(view(b"who"))
    assert first.publish() is False
    first.close()
    assert pair[0].lookup(KEY) is None
    second.write(view(b"le"))
    assert second.publish()
    second.close()
    assert hit_body(pair[0]) == b"whole"


def test_a_file_that_was_never_verified_is_no_object(cache: Cache) -> None:
    fill = lead(cache)
    fill.start(META, 3, resumable=True)
    fill.write(view(b"abc"))
    os.rename(parts(cache)[0], cache.store.root / NAME)
    assert cache.lookup(KEY) is None
    fill.close()


def test_a_new_file_locked_by_another_process_is_not_led(pair: List[Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    leave(pair[0], b"abc")
    fill = lead(pair[1])
    monkeypatch.setattr("storage.tree.try_lock", lambda _: False)
    with pytest.raises(Unstorable, match="locked by another process"):
        fill.start(META, 9)
    fill.decline()
    fill.close()
    assert parts(pair[0]) == []


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINVAL])
def test_an_object_whose_sync_fails_is_unpublished(cache: Cache, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """Quotas and network file systems say so only when an object is synced; EINVAL means that they never sync."""
    fill = lead(cache)
    fill.start(META, 3)
    fill.write(view(b"abc"))
    fill.publish()

    def fsync(_: int) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError):
            fill.make_durable()
    fill.close()
    found = cache.lookup(KEY)
    assert (found is None) == (error != errno.EINVAL)
    if found is not None:
        found.entry.close()


def test_without_a_hashing_thread_the_writer_hashes(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    body = os.urandom(1_000_000)
    monkeypatch.setattr("transfers.hashing._ALONE", 1000)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    fill = lead(cache)
    fill.start(META, 2 * len(body))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        fill.write(view(body))
        fill.write(view(body))
    assert fill.publish()
    fill.close()
    assert hit_body(cache) == 2 * body


# --- digests ------------------------------------------------------------------------------------


def test_a_digest_named_object_lies_under_its_digest_and_its_url_is_an_alias(cache: Cache) -> None:
    key = blob_key("one")
    publish(cache, BLOB, key, blob_meta("one"))
    digest = hashlib.sha256(BLOB).hexdigest()
    assert (cache.store.root / "sha256" / digest[:2] / digest).read_bytes() == BLOB
    assert (cache.store.root / key.name).stat().st_size == 0
    claim = cache.claim(key)
    assert isinstance(claim, Hit) and claim.metadata == blob_meta("one")
    claim.entry.close()


def test_another_url_with_the_same_digest_has_to_be_confirmed_first(cache: Cache) -> None:
    publish(cache, BLOB, blob_key("one"), blob_meta("one"))
    other = blob_key("two")
    claim = cache.claim(other)
    assert isinstance(claim, Hit) and claim.metadata is None
    claim.entry.close()
    cache.confirm_alias(other, blob_meta("two"))
    claim = cache.claim(other)
    assert isinstance(claim, Hit) and claim.metadata == blob_meta("two")
    assert read_all(claim.entry) == BLOB
    claim.entry.close()


def test_simultaneous_claims_of_one_digest_by_two_urls_share_one_fill(cache: Cache) -> None:
    fill = lead(cache, blob_key("one"))
    reader = follow(cache, blob_key("two"))
    assert reader.fill is fill
    reader.close()
    fill.close()


def test_the_last_bytes_wait_for_the_digest(cache: Cache) -> None:
    fill = lead(cache, blob_key("one"))
    reader = cache.reader(fill)
    fill.start(blob_meta("one"), len(BLOB))
    fill.write(view(BLOB))
    buffer = view(bytearray(2 * HOLD_BACK))
    assert reader.read_at(buffer, 0) == len(BLOB) - HOLD_BACK
    fill.publish()
    assert reader.read_at(buffer, 1000) == HOLD_BACK
    reader.close()
    fill.close()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "sha1", "md5", "blake2b"])
def test_bytes_of_another_digest_are_never_published(cache: Cache, algorithm: str) -> None:
    key = blob_key("one", b"what was promised", algorithm)
    fill = lead(cache, key)
    reader = cache.reader(fill)
    fill.start(blob_meta("one"), None)
    fill.write(view(b"what came"))
    with pytest.raises(FillFailed, match=f"do not match the digest {algorithm}") as caught:
        fill.publish()
    fill.fail(caught.value)
    with pytest.raises(FillFailed):
        reader.read_at(view(bytearray(100)), 0)
    reader.close()
    fill.close()
    assert [path for path in cache.store.root.rglob("*") if path.is_file()] == []


def test_blake2b_is_as_long_as_the_digest_in_the_name(cache: Cache) -> None:
    digest = Digest("blake2b", hashlib.blake2b(b"wheel", digest_size=32).hexdigest())
    key = Key("https/h/wheel.whl", digest)
    publish(cache, b"wheel", key)
    assert hit_body(cache, key) == b"wheel"


@pytest.mark.parametrize("algorithm", ["sha1", "md5"])
def test_weak_digests_are_checked_but_never_shared(cache: Cache, algorithm: str) -> None:
    key = blob_key("one", b"weak", algorithm)
    publish(cache, b"weak", key, blob_meta("one"))
    assert (cache.store.root / key.name).read_bytes() == b"weak"
    other = cache.claim(blob_key("two", b"weak", algorithm))
    assert isinstance(other, Lead)
    other.fill.close()


@pytest.mark.parametrize("since", ["nothing", "another answer", "invalidation"])
def test_what_is_shown_of_an_alias_does_not_undo_what_came_since(cache: Cache, since: str) -> None:
    """A proof that anybody gets the object is of the answer that was stored then, and not of a later private one."""
    key, stored = blob_key("one"), blob_meta("one")
    publish(cache, BLOB, key, stored)
    hit = cache.lookup(key)
    assert hit is not None and hit.metadata == stored
    private = replace(stored, fetched_at=2000.0, restricted=True, restricted_by=("private",))
    if since == "another answer":
        cache.confirm_alias(key, private)
    elif since == "invalidation":
        cache.invalidate(key)
    shown = replace(stored, same_for_all=True)
    cache.amend(key, hit.entry, stored, shown)
    hit.entry.close()
    found = cache.lookup(key)
    assert found is not None
    found.entry.close()
    assert found.metadata == {"nothing": shown, "another answer": private, "invalidation": None}[since]


def test_an_alias_is_no_object_for_a_filter_without_digests(cache: Cache) -> None:
    """Filters change; otherwise every layer would be an empty answer."""
    key = blob_key("one")
    publish(cache, BLOB, key, blob_meta("one"))
    plain = Key(key.name)
    assert cache.lookup(plain) is None
    publish(cache, BLOB, plain)
    assert hit_body(cache, plain) == BLOB
    claim = cache.claim(key)  # and the reverse: what lies there now is no alias
    assert isinstance(claim, Hit) and claim.metadata is None
    claim.entry.close()


@pytest.mark.parametrize("keeps", [True, False])
def test_an_empty_file_without_a_record_is_no_object(cache: Cache, keeps: bool) -> None:
    """It may be an alias that was copied without its attribute."""
    if not keeps:
        cache.store.records = NoRecords()
    (cache.store.root / NAME).parent.mkdir(parents=True)
    (cache.store.root / NAME).touch()
    assert cache.lookup(KEY) is None


def test_aliases_of_an_evicted_object_are_misses(cache: Cache) -> None:
    key = blob_key("one")
    publish(cache, BLOB, key, blob_meta("one"))
    digest = hashlib.sha256(BLOB).hexdigest()
    (cache.store.root / "sha256" / digest[:2] / digest).unlink()
    publish(cache, BLOB, key, blob_meta("one"))
    assert hit_body(cache, key) == BLOB


def test_a_url_whose_alias_cannot_be_written_still_shares_the_object(cache: Cache) -> None:
    (cache.store.root / "https").write_text("in the way")
    key = Key("https/one/blob", digest_of(BLOB))
    publish(cache, BLOB, key)
    claim = cache.claim(key)
    assert isinstance(claim, Hit) and claim.metadata is None
    assert read_all(claim.entry) == BLOB
    claim.entry.close()


# --- damage and crashes -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"sho", b"too long"], ids=["empty", "short", "long"])
def test_an_object_of_the_wrong_length_is_a_miss_and_is_replaced(cache: Cache, damage: bytes) -> None:
    publish(cache, b"body")
    (cache.store.root / NAME).write_bytes(damage)
    publish(cache, b"body")
    assert hit_body(cache) == b"body"


def test_a_partial_download_of_a_crash_is_not_served(cache: Cache) -> None:
    part = cache.store.root / (NAME + ".dduct")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"a partial download of another size")
    publish(cache, b"body")
    assert hit_body(cache) == b"body"
    assert parts(cache) == []


def test_a_partial_download_is_never_truncated_under_a_leader_of_another_process(tmp_path: Path) -> None:
    one, two = Cache(tmp_path), Cache(tmp_path)
    fill = lead(one)
    fill.start(META, 6)
    fill.write(view(b"abc"))
    reader = follow(two)
    fill.write(view(b"def"))
    fill.publish()
    assert read_all(reader) == b"abcdef"
    reader.close()
    fill.close()
