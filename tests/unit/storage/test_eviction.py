"""Eviction, on real directories."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from cache import Cache, Lead
from storage import eviction, survey
from storage.eviction import Evictor
from storage.record import Metadata, Unstorable
from storage.space import Limits, SpaceLimits
from storage.store import Key
from transfers.fill import Fill

KILO = 4096  # a block


def fill(root: Path, count: int, raw: int = 10 * KILO) -> List[Path]:
    """Objects of which each was used an hour after the one before."""
    paths = []
    for number in range(count):
        path = root / f"https/h/{number % 3}/{number}.deb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(raw))
        moment = 1_000_000_000 + 3600 * number
        os.utime(path, (moment, 1_000_000_000))
        paths.append(path)
    return paths


def left(paths: List[Path]) -> List[int]:
    return [number for number, path in enumerate(paths) if path.exists()]


def test_the_least_recently_used_objects_are_evicted_first(tmp_path: Path) -> None:
    paths = fill(tmp_path, 10)
    gone: List[int] = []
    Evictor(SpaceLimits(tmp_path, lambda: Limits(max_size=60 * KILO)), lambda: gone.append(1)).sweep()
    assert left(paths) == [5, 6, 7, 8, 9]  # a little below the limit
    assert len(gone) == 5


def test_nothing_is_evicted_below_the_limit(tmp_path: Path) -> None:
    paths = fill(tmp_path, 10)
    Evictor(SpaceLimits(tmp_path, lambda: Limits(max_size=1000 * KILO))).sweep()
    Evictor(SpaceLimits(tmp_path, Limits)).sweep()
    assert left(paths) == list(range(10))


def test_empty_directories_are_removed_with_their_last_object(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    Evictor(SpaceLimits(tmp_path, lambda: Limits(max_size=0))).sweep()
    assert [path.name for path in tmp_path.iterdir()] == [".evictor"]


def test_a_sweep_in_bounded_memory_evicts_everything_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_CANDIDATES", 4)
    paths = fill(tmp_path, 20)
    Evictor(SpaceLimits(tmp_path, lambda: Limits(max_size=50 * KILO))).sweep()
    assert left(paths) == [16, 17, 18, 19]


def test_min_free_is_kept_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = fill(tmp_path, 10)
    real = os.statvfs(tmp_path)

    class Status:
        f_frsize = 1
        f_files = f_favail = 0

        @property
        def f_bavail(self) -> int:
            return 100 * KILO - sum(path.stat().st_size for path in paths if path.exists())

    monkeypatch.setattr(os, "statvfs", lambda _: Status())
    Evictor(SpaceLimits(tmp_path, lambda: Limits(min_free=35 * KILO))).sweep()
    assert left(paths) == [4, 5, 6, 7, 8, 9]
    assert real.f_bsize


def test_remains_of_a_crash_are_removed_and_growing_files_stay(tmp_path: Path) -> None:
    place = tmp_path / "https/h"
    place.mkdir(parents=True)
    (place / "left.deb.dduct").write_bytes(b"half")
    with (place / "grows.deb.dduct").open("wb") as growing:
        fcntl.flock(growing, fcntl.LOCK_EX)
        Evictor(SpaceLimits(tmp_path, lambda: Limits(max_size=0))).sweep()
        assert sorted(path.name for path in place.iterdir()) == ["grows.deb.dduct"]


def test_only_one_process_sweeps_a_directory(tmp_path: Path) -> None:
    paths = fill(tmp_path, 3)
    with (tmp_path / ".evictor").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        Evictor(SpaceLimits(tmp_path, lambda: Limits(max_size=0))).sweep()
        assert left(paths) == [0, 1, 2]
    Evictor(SpaceLimits(tmp_path, lambda: Limits(max_size=0))).sweep()
    assert left(paths) == []


def test_a_missing_directory_is_no_error(tmp_path: Path) -> None:
    Evictor(SpaceLimits(tmp_path / "none", lambda: Limits(max_size=0, min_free=1))).sweep()


def test_space_taken_during_a_sweep_is_counted(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    space = SpaceLimits(tmp_path, lambda: Limits(max_size=45 * KILO))
    space.grow(100 * KILO)  # before, and found by the sweep
    Evictor(space, lambda: space.grow(7 * KILO)).sweep()
    used = space.situation().used
    assert used is not None and 20 * KILO + 21 * KILO <= used < 100 * KILO


def test_a_file_that_cannot_be_removed_is_not_retried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 3)
    tried = threading.Semaphore(0)

    def refuse(_: str) -> None:
        tried.release()
        raise PermissionError

    monkeypatch.setattr(os, "unlink", refuse)
    evictor = Evictor(SpaceLimits(tmp_path, lambda: Limits(max_size=0)))
    with running(evictor):
        for _ in range(3):
            assert tried.acquire(timeout=20)
        evictor.look()
        assert not tried.acquire(timeout=0.2)


@contextmanager
def running(evictor: Evictor) -> Iterator[None]:
    thread = threading.Thread(target=evictor.run)
    thread.start()
    yield
    evictor.stop()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("told", [True, False])
def test_the_evictor_runs_in_the_background_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    monkeypatch.setattr(eviction, "_LOOK", 60.0 if told else 0.01)  # what another process adds is seen sooner or later
    paths = fill(tmp_path, 5)
    gone = threading.Semaphore(0)
    space = SpaceLimits(tmp_path, lambda: Limits(max_size=30 * KILO))
    evictor = Evictor(space, gone.release)
    with running(evictor):
        for _ in range(3):
            assert gone.acquire(timeout=20)
        newer = tmp_path / "https/h/newer.deb"
        newer.write_bytes(bytes(20 * KILO))
        space.grow(20 * KILO)
        if told:
            evictor.look()
        for _ in range(2):
            assert gone.acquire(timeout=20)
    assert left(paths) == [] and newer.exists()


MEGA = 1_000_000


def test_fills_that_end_in_any_way_reserve_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, space=SpaceLimits(tmp_path, lambda: Limits(max_size=100 * MEGA)))
    space = cache.store.space
    metadata = Metadata("https://h/x", (("ETag", '"1"'),), 1.0)

    def lead(number: int) -> Fill:
        claim = cache.claim(Key(f"https/h/{number}.zip"))
        assert isinstance(claim, Lead)
        claim.fill.start(metadata, 2 * MEGA, resumable=True)
        claim.fill.write(memoryview(bytes(MEGA)))
        claim.fill.write(memoryview(b"x"))
        assert space.situation().known >= MEGA
        return claim.fill

    for number, end in enumerate([Fill.close, lambda fill: fill.fail("x"), Fill.abandon]):
        before, fill = space.grown, lead(number)
        end(fill)
        fill.close()
        assert not space.is_growing
        kept = MEGA + 1 if end is Fill.abandon else 0
        assert 0 <= space.grown - before - kept <= 3 * 4096
    claim = cache.claim(Key("https/h/2.zip"))  # what was left over is there, and only the rest is new
    assert isinstance(claim, Lead)
    before = space.grown
    claim.fill.resume(metadata)
    claim.fill.catch_up()
    claim.fill.write(memoryview(bytes(MEGA - 1)))
    assert claim.fill.publish()
    claim.fill.close()
    assert not space.is_growing and space.grown - before == MEGA - 1
    cache.remove(Key("https/h/2.zip"))
    assert space.grown - before < -MEGA // 2


def test_the_cache_is_not_emptied_when_foreign_files_fill_the_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = fill(tmp_path, 5)
    evictor = Evictor(SpaceLimits(tmp_path, lambda: Limits(min_free=1 << 60)))
    for _ in range(3):
        evictor.sweep()
    assert left(paths) == [0, 1, 2, 3, 4]
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "cache.min_free" in said and "none is removed" in said


def test_inodes_are_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = fill(tmp_path, 100, 10)

    class Status:
        f_frsize, f_bavail, f_files = 1, 1 << 60, 100

        @property
        def f_favail(self) -> int:
            return 103 - sum(path.exists() for path in paths)

    monkeypatch.setattr(os, "statvfs", lambda _: Status())
    Evictor(SpaceLimits(tmp_path, Limits)).sweep()
    assert left(paths) == list(range(7, 100))


def test_directories_and_empty_files_count(tmp_path: Path) -> None:
    for number in range(20):
        deep = tmp_path / "https/h" / "/".join([str(number)] * 30)
        deep.mkdir(parents=True)
        (deep / "x.deb").touch()
    space = SpaceLimits(tmp_path, lambda: Limits(max_size=20 * 31 * 1024))
    Evictor(space).sweep()
    used = space.situation().used
    assert used is not None and 10 * 1024 <= used <= 20 * 31 * 1024
    assert len(list((tmp_path / "https/h").iterdir())) < 20


def test_a_disk_that_creates_no_files_is_logged_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, told = Cache(tmp_path), []
    cache.store.space.on_need = lambda: told.append(1)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", refuse)
    for _ in range(3):
        with pytest.raises(Unstorable):
            cache.claim(Key("https/h/x.deb"))
    assert len([record for record in caplog.records if "No file can be made" in record.getMessage()]) == 1
    assert len(told) == 3


def test_eviction_stops_if_it_frees_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Snapshots, or further links to the same files."""
    paths = fill(tmp_path, 10)
    statuses: Any = type("Status", (), {"f_frsize": 1, "f_files": 0, "f_favail": 0, "f_bavail": 80 * KILO})
    monkeypatch.setattr(os, "statvfs", lambda _: statuses)
    evictor = Evictor(SpaceLimits(tmp_path, lambda: Limits(min_free=100 * KILO)))
    for _ in range(3):
        evictor.sweep()
    assert left(paths) == [3, 4, 5, 6, 7, 8, 9]
    assert "hardly any of it has become free" in caplog.text


def test_a_survey_is_used_until_it_is_too_old(tmp_path: Path) -> None:
    paths = fill(tmp_path, 10)
    limits = [Limits(max_size=1000 * KILO)]
    evictor = Evictor(SpaceLimits(tmp_path, lambda: limits[-1]))
    evictor.sweep()
    os.utime(paths[1])  # used since
    limits.append(Limits(max_size=90 * KILO))
    evictor.relieve()
    assert 0 not in left(paths) and 1 in left(paths) and len(left(paths)) <= 8
