"""Objects whose hash comes late, failed fills, and fills without a disk."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from support.caching import (
    KEY,
    META,
    NAME,
    digest_of,
    follow,
    hit_body,
    lead,
    parts,
    publish,
    read_all,
    view,
)
from support.client import wait_until
from support.pairs import TIMEOUT, in_thread

from cache import Cache
from storage.entry import Lost
from storage.record import Record, Unstorable
from storage.store import Key
from transfers.fill import Fill
from transfers.hashing import Hashes
from transfers.hold_back import HOLD_BACK
from transfers.recheck import VerifyingReader
from transfers.states import FillFailed, FillState

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
