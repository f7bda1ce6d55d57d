"""Files without names for bytes whose turn has not come."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, Tuple

import pytest

from storage.space import Limits, SpaceLimits
from storage.store import Store
from transfers import cells as module
from transfers.cells import Cells

LENGTH = 1000


@pytest.fixture
def place(tmp_path: Path) -> str:
    folder = tmp_path / "https/some.thing"
    folder.mkdir(parents=True)
    return str(folder / "x.deb")


@pytest.fixture
def cells(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cells]:
    monkeypatch.setattr(module, "_LEAST_CELL", 100)
    made = Cells(Store(tmp_path), place, LENGTH)
    yield made
    made.close()


def read(cells: Cells, start: int, end: int) -> bytes:
    view = memoryview(bytearray(end - start))
    return bytes(view[: cells.read(view, start)])


def test_bytes_are_read_where_they_were_written_cell_by_cell(cells: Cells) -> None:
    data = bytes(range(250))
    cells.write(memoryview(data), 350)
    assert read(cells, 350, 400) == data[:50]
    assert read(cells, 350, 600) == data[:50]  # up to the end of the cell
    assert read(cells, 400, 500) + read(cells, 500, 600) == data[50:]


def test_no_file_has_a_name(cells: Cells, tmp_path: Path) -> None:
    cells.write(memoryview(b"some"), 350)
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == []


def test_a_file_system_without_such_files_gets_one_whose_name_is_removed(
    cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_RDONLY)  # a folder cannot be opened for writing
    cells.write(memoryview(b"some"), 350)
    assert read(cells, 350, 354) == b"some"
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == []


def test_dropped_cells_are_closed_and_take_nothing_more(cells: Cells) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for offset in (50, 150, 250):
        cells.write(memoryview(b"some"), offset)
    assert len(set(os.listdir("/proc/self/fd")) - before) == 3
    cells.drop_before(200)
    assert len(set(os.listdir("/proc/self/fd")) - before) == 1
    cells.write(memoryview(b"late"), 150)
    assert read(cells, 150, 154) == b"" and read(cells, 250, 254) == b"some"
    cells.close()
    cells.write(memoryview(b"late"), 250)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_the_limits_of_the_cache_are_looked_at(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 10)
    limits = [Limits()]
    cells = Cells(Store(tmp_path, SpaceLimits(tmp_path, lambda: limits[0])), place, LENGTH)
    cells.write(memoryview(bytes(9)), 0)
    limits[0] = Limits(min_free=1 << 60)
    with pytest.raises(OSError, match=r"cache\.min_free"):
        cells.write(memoryview(bytes(9)), 9)
    cells.close()


def test_a_cell_is_large_enough_for_few_files(tmp_path: Path, place: str) -> None:
    cells = Cells(Store(tmp_path), place, 1 << 40)
    offsets: Tuple[int, ...] = tuple(part << 30 for part in range(1024))
    before = len(os.listdir("/proc/self/fd"))
    for offset in offsets:
        cells.write(memoryview(b"x"), offset)
    assert len(os.listdir("/proc/self/fd")) - before == 64
    cells.close()
