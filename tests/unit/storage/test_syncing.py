"""Published files are synced many at a time, by a thread that holds up nobody."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Callable, Iterator, List, Sequence

import pytest
from support.pairs import TIMEOUT, in_thread

from cache import Cache, Lead
from storage.record import Digest, Metadata, Record
from storage.records import NoRecords, read_record
from storage.store import Key
from storage.syncing import BATCH, MAX_WAITING, QUEUED_SIZE, Syncer, SyncQueue, Taken
from transfers.fill import Fill

META = Metadata("https://some.thing/x.deb", (), 1000.0)
KEY = Key("https/some.thing/x.deb")


# --- the queue ------------------------------------------------------------------------------------


@contextmanager
def running(queue: SyncQueue) -> Iterator[Future[None]]:
    """Its thread, which ends with the block at the latest."""
    ended = in_thread(queue.run)
    while queue.add([]) is Taken.REFUSED:
        assert not ended.done()
    try:
        yield ended
    finally:
        queue.stop()
        ended.result(TIMEOUT)


def test_without_a_thread_the_caller_syncs_by_itself() -> None:
    queue = SyncQueue(lambda places: None)
    assert queue.add(["x"]) is Taken.REFUSED
    with running(queue):
        assert queue.add(["x"]) is Taken.QUEUED
    assert queue.add(["x"]) is Taken.REFUSED
    queue.run()  # ends at once: it has been stopped


def test_files_that_come_together_are_synced_together_and_a_stop_waits_no_longer() -> None:
    batches: List[Sequence[str]] = []
    queue = SyncQueue(batches.append)
    with running(queue):
        for place in ("x", "y", "z"):
            queue.add([place])
    assert [place for batch in batches for place in batch] == ["x", "y", "z"]
    assert repr(queue) == "<SyncQueue: 0 files wait>"


def test_many_files_do_not_wait_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.syncing._GATHERING", TIMEOUT)
    synced, seen = threading.Event(), list[int]()

    def sync(places: Sequence[str]) -> None:
        seen.append(len(places))
        synced.set()

    queue = SyncQueue(sync)
    with running(queue):
        queue.add(["x"])
        queue.add(["x"] * BATCH)
        assert synced.wait(TIMEOUT)
    assert seen == [BATCH, 1]


def test_a_few_files_do_not_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.syncing._GATHERING", 0.01)
    synced = threading.Event()
    queue = SyncQueue(lambda places: synced.set())
    with running(queue):
        queue.add(["x"])
        assert synced.wait(TIMEOUT)


def test_a_disk_that_hangs_holds_up_nobody_and_what_is_too_much_is_counted() -> None:
    hangs, answers = threading.Event(), threading.Event()
    dropped: List[int] = []

    def sync(places: Sequence[str]) -> None:
        hangs.set()
        assert answers.wait(TIMEOUT)

    queue = SyncQueue(sync)
    queue.on_dropped = dropped.append
    with ExitStack() as cleanup:
        cleanup.enter_context(running(queue))
        cleanup.callback(answers.set)
        queue.add(["x"] * BATCH)
        assert hangs.wait(TIMEOUT)
        assert queue.add(["x"] * MAX_WAITING) is Taken.QUEUED
        assert queue.add(["x", "its alias"]) is Taken.DROPPED
        assert dropped == [2]


def test_a_stop_gives_up_what_the_disk_does_not_take_in_time() -> None:
    now, dropped = [1000.0], list[int]()
    started, answers = threading.Event(), threading.Event()

    def sync(places: Sequence[str]) -> None:
        started.set()
        assert answers.wait(TIMEOUT)

    queue = SyncQueue(sync, clock=lambda: now[0])
    queue.on_dropped = dropped.append
    with running(queue) as ended:
        queue.add(["x"] * BATCH)
        assert started.wait(TIMEOUT)
        queue.add(["x"] * 3)
        queue.stop()
        now[0] += 6
        answers.set()
        ended.result(TIMEOUT)
    assert dropped == [3]


def test_a_thread_that_ends_by_a_bug_leaves_files_to_their_callers() -> None:
    dropped: List[int] = []

    def sync(places: Sequence[str]) -> None:
        raise ZeroDivisionError

    queue = SyncQueue(sync)
    queue.on_dropped = dropped.append
    ended = in_thread(queue.run)
    while queue.add([]) is Taken.REFUSED:
        assert not ended.done()
    queue.add(["x"] * (BATCH + 1))
    with pytest.raises(ZeroDivisionError):
        ended.result(TIMEOUT)
    assert dropped == [1] and queue.add(["x"]) is Taken.REFUSED


# --- the sync of published files ------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "files")


def published(cache: Cache, key: Key = KEY, body: bytes = b"body") -> Fill:
    """An object that nobody has synced; its fill is over."""
    claim = cache.claim(key)
    assert isinstance(claim, Lead)
    with closing(claim.fill) as fill:
        assert fill.store_whole(META, body)
    return claim.fill


def record(path: Path) -> Record:
    with path.open("rb") as file:
        found = read_record(file.fileno())
    assert found is not None
    return found


def syncer(cache: Cache) -> Syncer:
    return Syncer(str(cache.store.root), cache.store.tree, cache.store.records)


def test_what_is_synced_is_durable_and_keeps_no_descriptor(cache: Cache) -> None:
    paths = [cache.store.root / f"https/some.thing/{name}.deb" for name in "xyz"]
    for path in paths:
        published(cache, Key(str(path.relative_to(cache.store.root))))
    paths[1].unlink()  # evicted meanwhile
    before = os.listdir("/proc/self/fd")
    syncer(cache).sync([str(path) for path in paths])
    assert [record(path).durable for path in (paths[0], paths[2])] == [True, True]
    assert os.listdir("/proc/self/fd") == before


def test_all_files_are_on_their_way_before_the_first_is_waited_for(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: List[str] = []
    monkeypatch.setattr("storage.syncing._sync_file_range", lambda *_: calls.append("begin"))
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("sync"))
    places = [f"{cache.store.root}/https/some.thing/{name}.deb" for name in "xy"]
    for name in "xy":
        published(cache, Key(f"https/some.thing/{name}.deb"))
    syncer(cache).sync(places)
    assert calls == ["begin", "begin", "sync", "sync"]
    monkeypatch.setattr("storage.syncing._sync_file_range", None)
    syncer(cache).sync(places)
    assert calls[4:] == ["sync", "sync"]


def test_an_alias_and_an_object_that_is_aside_are_synced(cache: Cache) -> None:
    published(cache, Key("https/some.thing/x.deb/y.deb"))
    key = Key("https/some.thing/x.deb", Digest("sha256", sha256(b"body").hexdigest()))
    published(cache, key)  # its alias is aside
    published(cache)  # and so is this object, over the alias
    paths = cache.store.paths(key)
    assert paths.alias is not None
    syncer(cache).sync([paths.object, paths.alias])
    assert record(Path(paths.object)).durable
    hit = cache.lookup(KEY)
    assert hit is not None and hit.entry.record.durable
    hit.entry.close()


@pytest.mark.parametrize(("number", "kept"), [(errno.EIO, False), (errno.ENOSPC, False), (errno.EINTR, True)])
def test_what_the_disk_has_lost_is_unpublished(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, number: int, kept: bool
) -> None:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    fill = published(cache)
    path = Path(fill.file.place)
    monkeypatch.setattr(os, "fsync", fsync)
    syncer(cache).sync([str(path)])
    assert path.exists() is kept
    if kept:
        assert not record(path).durable


def test_a_file_that_cannot_be_closed_does_not_end_the_thread(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [cache.store.root / f"https/some.thing/{name}.deb" for name in "xy"]
    for path in paths:
        published(cache, Key(str(path.relative_to(cache.store.root))))
    real = os.close

    def close(fd: int) -> None:
        real(fd)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as broken:
        broken.setattr(os, "close", close)
        syncer(cache).sync([str(path) for path in paths])
    assert all(record(path).durable for path in paths)


def test_a_sync_gives_no_record_and_no_hash(cache: Cache) -> None:
    path = Path(published(cache).file.place)
    unhashed = Record(META, 4, boot="this", unhashed=True)
    os.setxattr(path, "user.dduct", unhashed.encode())
    syncer(cache).sync([str(path)])
    assert record(path) == unhashed
    os.setxattr(path, "user.dduct", b"damaged")
    syncer(cache).sync([str(path)])
    assert os.getxattr(path, "user.dduct") == b"damaged"
    os.removexattr(path, "user.dduct")
    syncer(cache).sync([str(path)])  # as a file that was copied to its place by hand
    assert "user.dduct" not in os.listxattr(path)
    with path.open("rb+") as file:
        NoRecords().note_synced(file.fileno())


# --- fills ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "queued"), [(4, True), (QUEUED_SIZE + 1, False)])
def test_a_small_object_is_left_to_the_thread_and_a_large_one_is_not(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, size: int, queued: bool
) -> None:
    synced: List[int] = []
    real: Callable[[int], None] = os.fsync

    def fsync(fd: int) -> None:
        synced.append(threading.get_ident())
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    fill = published(cache, body=bytes(size))
    with running(cache.store.syncs):
        fill.make_durable()
        assert (threading.get_ident() in synced) is not queued
    assert len(synced) == 1 and record(Path(fill.file.place)).durable
