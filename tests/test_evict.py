"""Making room, on real directories."""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, List

import pytest
from support.household import House
from support.origin import Files

import evict
from evict import Evictor, Limits
from metrics import Counter

KILO = 4096  # a block


def fill(root: Path, count: int, octets: int = 10 * KILO) -> List[Path]:
    """Objects of which each was used an hour after the one before."""
    paths = []
    for number in range(count):
        path = root / f"https/h/{number % 3}/{number}.deb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(octets))
        moment = 1_000_000_000 + 3600 * number
        os.utime(path, (moment, 1_000_000_000))
        paths.append(path)
    return paths


def left(paths: List[Path]) -> List[int]:
    return [number for number, path in enumerate(paths) if path.exists()]


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    paths = fill(tmp_path, 10)
    gone: List[int] = []
    Evictor(tmp_path, Limits(max_size=60 * KILO), lambda: 0, lambda: gone.append(1)).sweep()
    assert left(paths) == [5, 6, 7, 8, 9]  # a little below the limit
    assert len(gone) == 5


def test_nothing_goes_below_the_limit(tmp_path: Path) -> None:
    paths = fill(tmp_path, 10)
    Evictor(tmp_path, Limits(max_size=1000 * KILO), lambda: 0).sweep()
    Evictor(tmp_path, Limits(), lambda: 0).sweep()
    assert left(paths) == list(range(10))


def test_empty_directories_go_with_their_last_object(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    Evictor(tmp_path, Limits(max_size=0), lambda: 0).sweep()
    assert [path.name for path in tmp_path.iterdir()] == [".evictor"]


def test_memory_is_bounded_and_everything_goes_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evict, "_CANDIDATES", 4)
    paths = fill(tmp_path, 20)
    Evictor(tmp_path, Limits(max_size=50 * KILO), lambda: 0).sweep()
    assert left(paths) == [16, 17, 18, 19]


def test_free_room_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = fill(tmp_path, 10)
    real = os.statvfs(tmp_path)

    class Status:
        f_frsize = 1

        @property
        def f_bavail(self) -> int:
            return 100 * KILO - sum(path.stat().st_size for path in paths if path.exists())

    monkeypatch.setattr(os, "statvfs", lambda _: Status())
    Evictor(tmp_path, Limits(min_free=35 * KILO), lambda: 0).sweep()
    assert left(paths) == [4, 5, 6, 7, 8, 9]
    assert real.f_bsize


def test_what_a_crash_has_left_goes_and_what_grows_stays(tmp_path: Path) -> None:
    place = tmp_path / "https/h"
    place.mkdir(parents=True)
    (place / "left.deb.dduct").write_bytes(b"half")
    with (place / "grows.deb.dduct").open("wb") as growing:
        fcntl.flock(growing, fcntl.LOCK_EX)
        Evictor(tmp_path, Limits(max_size=0), lambda: 0).sweep()
        assert sorted(path.name for path in place.iterdir()) == ["grows.deb.dduct"]


def test_only_one_process_sweeps_a_directory(tmp_path: Path) -> None:
    paths = fill(tmp_path, 3)
    with (tmp_path / ".evictor").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        Evictor(tmp_path, Limits(max_size=0), lambda: 0).sweep()
        assert left(paths) == [0, 1, 2]
    Evictor(tmp_path, Limits(max_size=0), lambda: 0).sweep()
    assert left(paths) == []


def test_a_directory_that_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    Evictor(tmp_path / "none", Limits(max_size=0, min_free=1), lambda: 0).sweep()


def test_what_is_added_during_a_sweep_is_not_forgotten(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    added = [100 * KILO]  # before, and found by the sweep

    def add() -> None:
        added[0] += 7 * KILO

    evictor = Evictor(tmp_path, Limits(max_size=25 * KILO), lambda: added[0], add)
    evictor.sweep()
    assert evictor.used >= 20 * KILO + 21 * KILO
    assert evictor.used < 100 * KILO


def test_what_cannot_be_removed_is_not_tried_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 3)
    tried = threading.Semaphore(0)

    def refuse(_: str) -> None:
        tried.release()
        raise PermissionError

    monkeypatch.setattr(os, "unlink", refuse)
    evictor = Evictor(tmp_path, Limits(max_size=0), lambda: 0)
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
def test_it_works_in_the_background_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    monkeypatch.setattr(evict, "_LOOK", 60.0 if told else 0.01)  # what another process adds is seen sooner or later
    paths = fill(tmp_path, 5)
    gone = threading.Semaphore(0)
    added = [0]
    evictor = Evictor(tmp_path, Limits(max_size=25 * KILO), lambda: added[0], gone.release)
    with running(evictor):
        for _ in range(3):
            assert gone.acquire(timeout=20)
        newer = tmp_path / "https/h/newer.deb"
        newer.write_bytes(bytes(20 * KILO))
        added[0] += 20 * KILO
        if told:
            evictor.look()
        for _ in range(2):
            assert gone.acquire(timeout=20)
    assert left(paths) == [] and newer.exists()


def test_a_small_cache_serves_everybody(build_house: Callable[..., House]) -> None:
    objects = {f"/{number}.deb": os.urandom(300_000) for number in range(12)}
    house = build_house(max_size=1_000_000)
    origin = house.origin(Files(objects))
    for path, body in list(objects.items()) * 2:
        assert house.fetch(origin, path).body == body
    for _ in range(200):
        if len(house.stored()) <= 4:
            break
        assert house.fetch(origin, "/11.deb").body == objects["/11.deb"]
    assert len([name for name in house.stored() if name.endswith(".deb")]) <= 4
    house.counted(Counter.EVICTED, 8)


def test_nothing_new_is_kept_where_there_is_no_room(build_house: Callable[..., House]) -> None:
    house = build_house(min_free=2**60)
    origin = house.origin(Files({"/x.deb": os.urandom(1000)}))
    assert [house.fetch(origin, "/x.deb").status for _ in range(2)] == [200, 200]
    assert list(house.stored()) == []
    assert origin.count("/x.deb") == 2


def test_a_use_is_noted(house: House) -> None:
    origin = house.origin(Files({"/x.deb": b"x"}))
    house.fetch(origin, "/x.deb")
    (name,) = list(house.stored())
    path = house.files / name
    os.utime(path, (1_000_000_000, path.stat().st_mtime))
    house.fetch(origin, "/x.deb")
    assert path.stat().st_atime > 1_000_000_000
