"""A disk that is full, read-only, broken or gone: downloads go on, and caching resumes by itself."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import pytest
from support.household import House
from support.origin import Asked, Connection, Files, Gate

from metrics import Counter

BODY = os.urandom(2_000_000)


@pytest.mark.parametrize("room", [0, 1_000_000, 1_999_999])
def test_a_disk_that_fills_up_costs_no_client_anything(
    house: House, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    origin = house.origin(Files({"/x.deb": BODY}))
    real = os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if offset >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[: room - offset], offset)

    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(os, "pwrite", pwrite)
        answers = [pool.submit(house.fetch, origin, "/x.deb") for _ in range(4)]
        assert [answer.result(20).body for answer in answers] == [BODY] * 4
        assert house.stored() == []
        assert house.counters.value(Counter.UNKEPT) >= 1
    assert house.fetch(origin, "/x.deb").body == BODY
    assert len(house.stored()) == 1


@pytest.mark.parametrize("what", ["setxattr", "replace", "open"])
def test_a_disk_that_fails_elsewhere_costs_no_client_anything(
    house: House, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    origin = house.origin(Files({"/x.deb": BODY}))
    real = getattr(os, what)

    def fail(path: Any, *rest: Any, **more: Any) -> Any:
        inside = str(house.files) in (os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path))
        if inside and (what != "open" or rest[0] & os.O_CREAT):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, what, fail)
        assert [house.fetch(origin, "/x.deb").body for _ in range(2)] == [BODY] * 2
        assert house.stored() == []
    assert house.fetch(origin, "/x.deb").body == BODY
    assert len(house.stored()) == 1


def test_a_cache_directory_that_vanishes_is_made_again(house: House) -> None:
    origin = house.origin(Files({"/x.deb": BODY, "/y.deb": BODY}))
    house.fetch(origin, "/x.deb")
    shutil.rmtree(house.files)
    assert house.fetch(origin, "/x.deb").body == BODY
    assert house.fetch(origin, "/y.deb").body == BODY
    assert len(house.stored()) == 2


def test_a_directory_that_is_replaced_by_a_file_is_done_without(house: House) -> None:
    origin = house.origin(Files({"/x.deb": BODY}))
    shutil.rmtree(house.files)
    house.files.write_text("in the way")
    assert house.fetch(origin, "/x.deb").body == BODY
    house.files.unlink()
    assert house.fetch(origin, "/x.deb").body == BODY
    assert len(house.stored()) == 1


def test_a_fifth_of_all_disk_operations_may_fail(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets a wrong or a short body, whatever fails."""
    bodies = {f"/{number}.deb": os.urandom(random.Random(number).randrange(1, 400_000)) for number in range(40)}
    origin = house.origin(Files(bodies))
    dice = random.Random(1)

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def fail(*arguments: Any, **more: Any) -> Any:
            if dice.random() < 0.2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments, **more)

        return fail

    with monkeypatch.context() as patch, ThreadPoolExecutor(6) as pool:
        for name in ("pwrite", "setxattr", "getxattr", "fsync"):
            patch.setattr(os, name, failing(name))
        for _ in range(3):
            answers = {path: pool.submit(house.fetch, origin, path) for path in bodies}
            for path, answer in answers.items():
                assert answer.result(20).body == bodies[path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    place = tmp_path / "house-0/files"
    place.mkdir(parents=True)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "x", place]).returncode:
        pytest.skip("needs root, to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_really_full_file_system(small_disk: Path, build_house: Callable[..., House]) -> None:
    house = build_house()
    objects = {f"/{number}.deb": os.urandom(1_500_000) for number in range(6)}
    origin = house.origin(Files(objects))
    with ThreadPoolExecutor(6) as pool:
        for _ in range(2):
            answers = {path: pool.submit(house.fetch, origin, path) for path in objects}
            assert all(answers[path].result(20).body == body for path, body in objects.items())
    assert len(house.stored()) <= 2  # six that share the room may all be too large for it
    for path in small_disk.rglob("*.deb"):
        path.unlink()
    assert house.fetch(origin, "/5.deb").body == objects["/5.deb"]
    assert [name.rpartition("/")[2] for name in house.stored()] == ["5.deb"]


def test_a_download_that_outgrows_the_disk_is_streamed_all_the_same(house: House) -> None:
    """As large as memory would not hold, were it kept there."""

    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", str(60_000_000))])
        for _ in range(600):
            connection.send_body(bytes(100_000))

    origin = house.origin(handler)
    real = os.pwrite
    with pytest.MonkeyPatch.context() as patch:

        def pwrite(fd: int, data: Any, offset: int) -> int:
            if offset > 1_000_000:
                raise OSError(errno.ENOSPC, "full")
            return real(fd, data, offset)

        patch.setattr(os, "pwrite", pwrite)
        answer = house.fetch(origin, "/x.deb")
    assert answer.complete and len(answer.body) == 60_000_000


class Breaking:
    """An origin that breaks off at each of the given offsets, once, and knows ranges."""

    def __init__(self, *cuts: int, etag: str = '"1"') -> None:
        self.cuts = list(cuts)
        self.etag = etag
        self.end: Callable[[Connection], None] = Connection.fin
        self.ranges: List[str] = []
        self.sent = 0
        self.gate: Optional[Gate] = None

    def __call__(self, asked: Asked, connection: Connection) -> None:
        wanted = asked.get("range")
        start = 0
        fields = [("ETag", self.etag)]
        if wanted is not None and asked.get("if-range") == self.etag:
            self.ranges.append(wanted)
            start = int(wanted[len("bytes=") : -1])
            fields.append(("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"))
        connection.head(206 if start else 200, [*fields, ("Content-Length", str(len(BODY) - start))])
        end = self.cuts.pop(0) if self.cuts else len(BODY)
        self.sent += end - start
        connection.send_body(BODY[start:end])
        if end < len(BODY):
            if self.gate is not None:
                self.gate.wait()
            self.end(connection)


@pytest.mark.parametrize("end", [Connection.fin, Connection.close_notify, Connection.reset])
def test_a_transfer_that_breaks_off_is_resumed_and_nobody_notices(
    house: House, end: Callable[[Connection], None]
) -> None:
    breaking = Breaking(500_000, 1_000_000, 1_500_000)
    breaking.end = end
    origin = house.origin(breaking)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(house.fetch, origin, "/x.deb") for _ in range(3)]
        assert all(answer.result(20).body == BODY for answer in answers)
    assert house.counters.value(Counter.RESUMED) == len(breaking.ranges) == 3
    assert len(house.stored()) == 1
    if end is not Connection.reset:  # which destroys what is under way
        assert breaking.sent == len(BODY)


@pytest.mark.parametrize("etag", ['W/"1"', ""])
def test_without_a_strong_validator_nothing_is_patched_together(house: House, etag: str) -> None:
    origin = house.origin(Breaking(500_000, etag=etag))
    answer = house.fetch(origin, "/x.deb")
    assert not answer.complete and house.stored() == []
    assert house.fetch(origin, "/x.deb").body == BODY


def test_an_object_that_has_changed_is_not_patched_together(house: House) -> None:
    breaking = Breaking(500_000)
    breaking.gate = Gate()
    origin = house.origin(breaking)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(house.fetch, origin, "/x.deb")
        breaking.gate.reached()
        breaking.etag = '"2"'
        breaking.gate.open()
        assert not answer.result(20).complete
    assert house.stored() == []
    assert house.fetch(origin, "/x.deb").body == BODY


def test_an_origin_that_breaks_off_for_ever_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filler._PAUSES", (0.0, 0.0, 0.0))
    breaking = Breaking(*range(100_000, 1_900_000, 100_000))
    origin = house.origin(breaking)
    assert not house.fetch(origin, "/x.deb").complete
    assert len(breaking.ranges) == 3 and house.stored() == []
