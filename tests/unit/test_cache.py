"""Claims and fills on a real directory, between threads and between processes; events instead of sleeps."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple, Union, cast

import pytest
from support.client import wait_until
from support.pairs import TIMEOUT, in_thread

from cache import Cache, Follow, Hit, Lead
from storage.entry import Lost
from storage.record import Digest, Metadata, Record, Unstorable
from storage.records import NoRecords
from storage.store import Key
from transfers.acquiring import PartialDownload
from transfers.fill import Fill
from transfers.follow import FillReader, ForeignFill
from transfers.hashing import Hashes
from transfers.hold_back import HOLD_BACK
from transfers.pacing import backoff_seconds
from transfers.recheck import VerifyingReader
from transfers.states import FillFailed, FillState

ROOT = Path(__file__).resolve().parents[2]
NAME = "https/some.thing/pool/x.deb"
KEY = Key(NAME)
META = Metadata("https://some.thing/pool/x.deb", (("ETag", '"1"'),), 1000.0)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "files", timeout=lambda: 20.0)


def view(data: Union[bytes, bytearray]) -> memoryview:
    return memoryview(data)


def lead(cache: Cache, key: Key = KEY) -> Fill:
    claim = cache.claim(key)
    assert isinstance(claim, Lead)
    return claim.fill


def follow(cache: Cache, key: Key = KEY) -> FillReader:
    claim = cache.claim(key)
    assert isinstance(claim, Follow)
    return claim.reader


def hit_body(cache: Cache, key: Key = KEY) -> bytes:
    claim = cache.claim(key)
    assert isinstance(claim, Hit), claim
    try:
        return read_all(claim.entry)
    finally:
        claim.entry.close()


def read_all(source: Any, size: int = 100_000) -> bytes:
    buffer = memoryview(bytearray(size))
    out = b""
    while True:
        count = source.read_at(buffer, len(out))
        if not count:
            return out
        out += bytes(buffer[:count])


def publish(cache: Cache, body: bytes, key: Key = KEY, metadata: Metadata = META, length: Optional[int] = -1) -> None:
    fill = lead(cache, key)
    fill.start(metadata, len(body) if length == -1 else length)
    fill.write(view(body))
    fill.publish()
    fill.make_durable()
    fill.close()


def digest_of(body: bytes, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, body).hexdigest())


def parts(cache: Cache) -> List[Path]:
    return list(cache.store.root.rglob("*.dduct"))


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


# --- an object whose hash follows ---------------------------------------------------------------

PIECES = [os.urandom(100_000) for _ in range(4)]


@pytest.fixture
def late(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Fill:
    """A fill with all its bytes, of which the processor had no time to hash more than the first two pieces."""
    started, gate, real = threading.Event(), threading.Event(), Hashes._hash

    def hash_slowly(hashes: Hashes, data: memoryview) -> None:
        if threading.current_thread().name == "hash":
            started.set()
            assert gate.wait(TIMEOUT)
        real(hashes, data)

    monkeypatch.setattr("transfers.hashing._ALONE", 1)
    fill = lead(cache)
    fill.start(META, sum(map(len, PIECES)))
    with monkeypatch.context() as patch:
        patch.setattr(Hashes, "_hash", hash_slowly)
        fill.write(view(PIECES[0]))
        fill.write(view(PIECES[1]))
        assert started.wait(TIMEOUT)
        third = in_thread(fill.write, view(PIECES[2]))
        wait_until(lambda: fill._hashes.late)
        gate.set()
        third.result(TIMEOUT)
        fill.write(view(PIECES[3]))
    return fill


def record_of(cache: Cache) -> Record:
    return Record.decode(os.getxattr(cache.store.root / NAME, "user.dduct"))


def test_a_hash_that_nothing_depends_on_delays_no_publication(cache: Cache, late: Fill) -> None:
    reader, elsewhere = follow(cache), follow(Cache(cache.store.root, timeout=lambda: 20.0))
    assert late.publish()
    assert record_of(cache).unhashed and not record_of(cache).sha256
    for source in (reader, elsewhere):
        assert read_all(source) == b"".join(PIECES)
        source.close()
    assert hit_body(cache) == hit_body(Cache(cache.store.root)) == b"".join(PIECES)
    late.make_durable()
    late.close()
    record = record_of(cache)
    assert record.sha256 == hashlib.sha256(b"".join(PIECES)).hexdigest()
    assert record.durable and not record.unhashed
    assert hit_body(cache) == b"".join(PIECES)


def test_another_machine_trusts_an_object_that_its_writer_still_hashes(cache: Cache, late: Fill) -> None:
    """On a shared file system; the other machine's boot looks like an earlier boot of this one."""
    other = Cache(cache.store.root)
    other.store.boot = "another machine's"
    late.publish()
    reader = cache.reader(late)  # as slow as can be: the file stays open for it
    assert hit_body(other) == b"".join(PIECES)
    late.make_durable()
    late.close()
    found = other.lookup(KEY)
    assert found is not None and found.entry.record.durable
    found.entry.close()
    reader.close()


def test_a_crash_before_the_hash_costs_the_object_only_after_the_next_boot(cache: Cache, late: Fill) -> None:
    late.publish()
    late.close()  # which is all that is left of a process that is killed: its locks are free
    found = Cache(cache.store.root).lookup(KEY)
    assert found is not None and not found.entry.trusted
    assert read_all(found.entry) == b"".join(PIECES)
    found.entry.close()
    cache.store.boot = "the next one"
    assert cache.lookup(KEY) is None
    publish(cache, b"again")
    assert hit_body(cache) == b"again"


@pytest.mark.parametrize("unreadable", [False, True])
def test_an_object_lost_before_it_is_hashed_is_unpublished(
    cache: Cache, late: Fill, monkeypatch: pytest.MonkeyPatch, unreadable: bool
) -> None:
    late.publish()
    if unreadable:

        def preadv(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "preadv", preadv)
    else:
        os.truncate(cache.store.root / NAME, 350_000)
    with pytest.raises(Lost if unreadable else FillFailed):
        late.make_durable()
    late.close()
    assert not (cache.store.root / NAME).exists() and not parts(cache)


def test_a_hash_that_another_process_overwrote_is_written_again(cache: Cache, late: Fill) -> None:
    """It validates an object, and writes back the record that it read a moment before."""
    late.publish()
    stale = os.getxattr(cache.store.root / NAME, "user.dduct")
    late.file.hash_the_rest(late.size, late._hashes)
    os.setxattr(cache.store.root / NAME, "user.dduct", stale)
    cache.store.mark_durable(str(cache.store.root / NAME))
    late.close()
    assert not record_of(cache).durable
    found = cache.lookup(KEY)
    assert found is not None and not found.entry.trusted
    assert read_all(VerifyingReader(found.entry)) == b"".join(PIECES)
    found.entry.close()
    record = record_of(cache)
    assert record.durable and record.sha256 == hashlib.sha256(b"".join(PIECES)).hexdigest()


def test_an_object_that_replaced_a_late_one_stays(cache: Cache, late: Fill) -> None:
    late.publish()
    os.truncate(cache.store.root / NAME, 350_000)
    (cache.store.root / NAME).unlink()
    publish(cache, b"another")
    with pytest.raises(FillFailed):
        late.make_durable()
    late.close()
    assert hit_body(cache) == b"another"
    assert record_of(cache).sha256 == hashlib.sha256(b"another").hexdigest()


def test_a_follower_does_not_start_with_a_failed_fill(cache: Cache) -> None:
    fill = lead(cache)
    reader = follow(cache)
    fill.start(META, 10)
    fill.write(view(b"abc"))
    fill.fail("no luck")
    with pytest.raises(FillFailed):
        reader.ready(0, True)
    reader.close()
    fill.close()


def test_a_claim_that_cannot_open_its_file_releases_its_followers(cache: Cache) -> None:
    (cache.store.root / "https").write_text("a file where a directory belongs")
    with ThreadPoolExecutor(8) as pool:
        claims = [pool.submit(cache.claim, KEY) for _ in range(8)]
        for claim in claims:
            with pytest.raises(Unstorable):
                claim.result(20)


def test_a_disk_error_at_publication_does_not_affect_readers(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    fill = lead(cache)
    reader = follow(cache)
    fill.start(META, 3)
    fill.write(view(b"abc"))
    monkeypatch.setattr(os, "replace", refuse)
    assert fill.publish() is False
    assert fill.state is FillState.UNKEPT
    assert read_all(reader) == b"abc"
    reader.close()
    fill.close()
    assert parts(cache) == []


def test_a_late_sync_does_not_undo_a_validation(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sync of a publication takes its time, and an object may be validated meanwhile."""
    fill = lead(cache)
    fill.start(META, 1)
    fill.write(view(b"x"))
    fill.publish()
    renewed = replace(META, fetched_at=2000.0)

    def fsync(_: int) -> None:
        claim = cache.lookup(KEY)
        assert claim is not None
        cache.refresh(claim.entry, renewed)
        claim.entry.close()

    monkeypatch.setattr(os, "fsync", fsync)
    fill.make_durable()
    fill.close()
    claim = cache.lookup(KEY)
    assert claim is not None
    assert claim.metadata == renewed and claim.entry.record.durable
    claim.entry.close()


def test_after_the_last_byte_the_object_is_in_its_place(cache: Cache) -> None:
    fill = lead(cache)
    reader = follow(cache)
    fill.start(META, 6)
    fill.write(view(b"abc"))
    assert reader.read_at(view(bytearray(10)), 0) == 3
    fill.write(view(b"def"))
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(reader.read_at, view(bytearray(10)), 3)
        assert not rest.done()
        fill.publish()
        assert rest.result(20) == 3
    assert hit_body(cache) == b"abcdef"
    reader.close()
    fill.close()


class FullDisk:
    """Stands in for os.pwrite: takes so many bytes of a file, and then fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, space: int, error: int = errno.ENOSPC) -> None:
        self.space = space
        real = os.pwrite

        def pwrite(fd: int, data: Any, offset: int) -> int:
            if offset >= self.space:
                raise OSError(error, os.strerror(error))
            return real(fd, data[: self.space - offset], offset)

        monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("space", [0, 1, 150_000, 299_999])
def test_a_fill_continues_in_memory_without_the_disk(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, space: int, error: int
) -> None:
    body = os.urandom(300_000)
    FullDisk(monkeypatch, space, error)
    fill = lead(cache)
    readers = [follow(cache) for _ in range(3)]
    fill.start(META, len(body))
    with ThreadPoolExecutor(3) as pool:
        copies = [pool.submit(read_all, reader) for reader in readers]
        for start in range(0, len(body), 50_000):
            fill.write(view(body[start : start + 50_000]))
        assert fill.publish() is False
        assert [copy.result(20) for copy in copies] == [body] * 3
    for reader in readers:
        reader.close()
    fill.close()
    assert parts(cache) == [] and cache.lookup(KEY) is None


def test_no_new_reader_joins_a_fill_without_the_disk(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch, 0)
    fill = lead(cache)
    reader = follow(cache)
    fill.start(META, 10)
    fill.write(view(b"01234"))
    disk.space = 100
    publish(cache, b"another try")
    assert hit_body(cache) == b"another try"
    fill.write(view(b"56789"))
    assert fill.publish() is False
    assert read_all(reader) == b"0123456789"
    reader.close()
    fill.close()
    assert hit_body(cache) == b"another try"


def test_a_fill_without_the_disk_waits_for_its_slowest_reader(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, and a reader that continues loses nothing."""
    FullDisk(monkeypatch, 0)
    monkeypatch.setattr("transfers.readers.WINDOW_LIMIT", 1000)
    fill = lead(cache)
    slow, fast = follow(cache), follow(cache)
    fill.start(META, None)
    fill.write(view(b"a" * 1000))
    buffer = view(bytearray(1000))
    assert fast.read_at(buffer, 0) == 1000
    with ThreadPoolExecutor(3) as pool:
        writing = pool.submit(fill.write, view(b"b" * 500))
        reading = pool.submit(fast.read_at, view(bytearray(1000)), 1000)
        assert slow.read_at(buffer, 0) == 1000
        assert not reading.done()
        ahead = pool.submit(slow.read_at, view(bytearray(1000)), 1000)
        writing.result(20)
        assert reading.result(20) == ahead.result(20) == 500
    assert fill.publish() is False
    slow.close()
    fast.close()
    fill.close()


def test_many_readers_do_not_back_off_where_memory_is_short(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filler waits for its readers."""
    FullDisk(monkeypatch, 0)
    monkeypatch.setattr("transfers.readers.MANY_READERS", 1)
    fill = lead(cache)
    readers = [follow(cache) for _ in range(3)]
    fill.start(META, 10)
    fill.write(view(b"01234"))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(fill.read_at, view(bytearray(10)), 0, 3 * TIMEOUT, readers[0], 3 * TIMEOUT)
        assert reading.result(TIMEOUT) == 5
    for reader in readers:
        reader.close()
    fill.close()


def test_a_stalled_reader_is_cut_visibly(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, 0)
    monkeypatch.setattr("transfers.readers.WINDOW_LIMIT", 1000)
    monkeypatch.setattr("transfers.readers._SLOWEST_READER_TIMEOUT", 0.05)
    fill = lead(cache)
    still = follow(cache)
    fill.start(META, None)
    fill.write(view(b"a" * 1000))
    fill.write(view(b"b" * 1000))
    assert fill.publish() is False
    with pytest.raises(Lost, match="too slow"):
        still.read_at(view(bytearray(10)), 0)
    still.close()
    fill.close()


def test_a_cut_reader_delays_no_other_reader(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by its position, and not by its next read, which fails."""
    FullDisk(monkeypatch, 0)
    monkeypatch.setattr("transfers.readers.WINDOW_LIMIT", 1000)
    monkeypatch.setattr("transfers.readers._SLOWEST_READER_TIMEOUT", 0.2)
    fill = lead(cache)
    still, fast = follow(cache), follow(cache)
    fill.start(META, 10_000)
    with ThreadPoolExecutor(1) as pool:
        copy = pool.submit(read_all, fast)
        fill.write(view(b"a" * 1000))
        wait_until(lambda: 1000 in fill.snapshot().positions)  # or it would be given up, too
        fill.write(view(b"b" * 1000))  # this once it is waited for
        with pytest.raises(Lost, match="too slow"):
            still.read_at(view(bytearray(10)), 0)
        monkeypatch.setattr("transfers.readers._SLOWEST_READER_TIMEOUT", TIMEOUT)
        for _ in range(8):
            in_thread(fill.write, view(b"c" * 1000)).result(TIMEOUT / 2)
        assert fill.publish() is False
        assert copy.result(TIMEOUT) == b"a" * 1000 + b"b" * 1000 + b"c" * 8000
    still.close()
    fast.close()
    fill.close()


def test_a_fill_without_disk_and_readers_ends(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, 0)
    fill = lead(cache)
    fill.start(META, None)
    with pytest.raises(FillFailed, match="nobody reads it"):
        fill.write(view(b"a"))
    fill.close()


def test_a_wrong_digest_is_detected_without_the_disk(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, 100)
    key = Key("https/h/blob", digest_of(b"right"))
    fill = lead(cache, key)
    reader = follow(cache, key)
    fill.start(META, 100_000)
    fill.write(view(bytes(100_000)))
    with pytest.raises(FillFailed, match="digest") as caught:
        fill.publish()
    fill.fail(caught.value)
    received = 0
    with pytest.raises(FillFailed):
        while True:
            received += reader.read_at(view(bytearray(65_536)), received)
    assert received == 100_000 - HOLD_BACK
    reader.close()
    fill.close()


def test_sixteen_threads_claim_at_once_and_one_of_them_leads(cache: Cache) -> None:
    start = threading.Barrier(16)
    body = os.urandom(5000)
    leaders = []

    def client(key: Key) -> bytes:
        start.wait(20)
        claim = cache.claim(key)
        if isinstance(claim, Hit):
            try:
                return read_all(claim.entry)
            finally:
                claim.entry.close()
        if isinstance(claim, Follow):
            try:
                assert claim.reader.fill.wait_head(20) in (FillState.FILLING, FillState.PUBLISHED)
                return read_all(claim.reader)
            finally:
                claim.reader.close()
        leaders.append(key)
        claim.fill.start(META, len(body))
        for at in range(0, len(body), 1000):
            claim.fill.write(view(body[at : at + 1000]))
        claim.fill.publish()
        claim.fill.close()
        return body

    with ThreadPoolExecutor(16) as pool:
        for iteration in range(100):
            key = Key(f"https/h/{iteration}.deb")
            assert set(pool.map(client, [key] * 16)) == {body}
    assert len(leaders) == 100


# --- digests ------------------------------------------------------------------------------------

BLOB = os.urandom(HOLD_BACK + 1000)


def blob_key(host: str, body: bytes = BLOB, algorithm: str = "sha256") -> Key:
    digest = digest_of(body, algorithm)
    return Key(f"https/{host}/v2/a/blobs/{digest}", digest)


def blob_meta(host: str) -> Metadata:
    return Metadata(f"https://{host}/v2/a/blobs/x", (("X-From", host),), 1000.0)


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


# --- what a leader that is gone has left -----------------------------------------------------------


def leave(cache: Cache, raw: bytes, length: int = 6, resumable: bool = True, key: Key = KEY) -> None:
    """A leader dies after so many bytes."""
    fill = lead(cache, key)
    fill.start(META, length, resumable)
    fill.write(view(raw))
    os.close(fill.file.fd)


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


@pytest.fixture
def pair(tmp_path: Path) -> List[Cache]:
    return [Cache(tmp_path / "files", timeout=lambda: 20.0) for _ in range(2)]


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


_CHILD = """
    import sys, time
    from pathlib import Path
    from cache import Cache
    from storage.store import Key
    from storage.record import Metadata
    cache = Cache(Path(sys.argv[1]))
    claim = cache.claim(Key(sys.argv[2]))
    claim.fill.start(Metadata("https://some.thing/pool/x.deb", (), 1.0), 6)
    claim.fill.write(memoryview(b"abc"))
    print("filling", flush=True)
    sys.stdin.read()
"""


def test_a_killed_leader_leaves_nothing_that_is_served_as_an_object(tmp_path: Path) -> None:
    cache = Cache(tmp_path, timeout=lambda: 20.0)
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_CHILD), str(tmp_path), NAME],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"filling\n"
        reader = follow(cache)
        assert reader.read_at(view(bytearray(10)), 0) == 3
        child.send_signal(signal.SIGKILL)
        child.wait(20)
        with pytest.raises(Lost, match="leader is gone"):
            reader.read_at(view(bytearray(10)), 3)
        reader.close()
        assert not (tmp_path / NAME).exists()
        publish(cache, b"abcdef")
        assert hit_body(cache) == b"abcdef"
        assert parts(cache) == []
    finally:
        child.kill()
        child.communicate(timeout=20)


def test_caches_racing_on_one_directory_publish_each_object_once(pair: List[Cache]) -> None:
    start = threading.Barrier(8)
    body = os.urandom(3000)
    leaders: List[Key] = []

    def client(cache: Cache, key: Key) -> bytes:
        start.wait(20)
        while True:
            claim = cache.claim(key)
            if isinstance(claim, Lead):
                leaders.append(key)
                claim.fill.start(META, len(body))
                claim.fill.write(view(body))
                claim.fill.publish()
                claim.fill.close()
                return body
            source = claim.entry if isinstance(claim, Hit) else claim.reader
            try:
                if isinstance(claim, Follow) and claim.reader.fill.wait_head(20) is FillState.GONE:
                    continue
                return read_all(source)
            finally:
                source.close()

    with ThreadPoolExecutor(8) as pool:
        for iteration in range(100):
            key = Key(f"https/h/{iteration}.deb")
            assert set(pool.map(client, pair * 4, [key] * 8)) == {body}
    assert len(leaders) == 100


def test_readers_that_become_many_while_they_wait_get_every_piece(cache: Cache) -> None:
    """Readers that were few enough to be woken learn that they no longer are."""
    fill = lead(cache)
    fill.start(META, 6)
    readers = [follow(cache) for _ in range(16)]
    spaces = [memoryview(bytearray(3)) for _ in range(17)]

    def waiting() -> int:
        with fill._changed:
            return len(fill._changed._waiters)  # type: ignore[attr-defined]

    first = [in_thread(reader.read_at, space, 0) for reader, space in zip(readers, spaces)]
    wait_until(lambda: waiting() == 16)
    readers.append(follow(cache))
    last = in_thread(readers[16].read_at, spaces[16], 0)
    fill.write(view(b"abc"))
    assert [future.result(TIMEOUT) for future in [*first, last]] == [3] * 17
    assert all(bytes(space) == b"abc" for space in spaces)
    rest = [in_thread(reader.read_at, space, 3) for reader, space in zip(readers, spaces)]
    fill.write(view(b"def"))
    assert fill.publish()
    assert [future.result(TIMEOUT) for future in rest] == [3] * 17
    for reader in readers:
        reader.close()
    fill.close()
