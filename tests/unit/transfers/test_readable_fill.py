"""What a fill tells of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest
from support.pairs import TIMEOUT, in_thread

from cache import Cache, Lead
from storage.record import Metadata
from storage.store import Key
from transfers.fill import Fill
from transfers.readable_fill import FillSnapshot
from transfers.states import FillState

META = Metadata("https://some.thing/x.deb", (), 1000.0)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "files")


@pytest.fixture
def fill(cache: Cache) -> Iterator[Fill]:
    claim = cache.claim(Key("https/some.thing/x.deb"))
    assert isinstance(claim, Lead)
    yield claim.fill
    claim.fill.close()


def test_a_snapshot_shows_state_progress_and_readers(cache: Cache, fill: Fill) -> None:
    assert fill.snapshot() == FillSnapshot(FillState.ASKING, 0, None, ())
    fill.start(META, 6)
    fill.write(memoryview(b"abc"))
    reader = cache.reader(fill)
    assert fill.snapshot() == FillSnapshot(FillState.FILLING, 3, 6, (0,)) and fill.snapshot().readers == 1
    reader.close()
    fill.write(memoryview(b"def"))
    assert fill.publish()
    assert fill.snapshot() == FillSnapshot(FillState.PUBLISHED, 6, 6, ())


def test_the_repr_of_a_fill_shows_its_snapshot_and_path(cache: Cache, fill: Fill) -> None:
    path = cache.store.root / "https/some.thing/x.deb"
    assert repr(fill) == f"<Fill of {path}: ASKING, 0 bytes, 0 readers>"
    fill.start(META, 6)
    fill.write(memoryview(b"abc"))
    reader = cache.reader(fill)
    assert repr(fill) == f"<Fill of {path}: FILLING, 3 of 6 bytes, 1 readers>"
    reader.close()


def test_the_repr_of_a_fill_waits_for_no_lock(fill: Fill) -> None:
    """It is for a debugger, too, whatever a thread holds."""
    with fill._changed:
        assert "ASKING" in in_thread(repr, fill).result(TIMEOUT)
