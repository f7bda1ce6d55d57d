"""A fill and its end, on a file system that fails."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Callable

import pytest

from cache import Cache, Lead
from storage.record import Metadata
from storage.store import Key
from transfers.fill import Fill
from transfers.states import FillState

META = Metadata("https://some.thing/x.deb", (), 1000.0)


def publishes(fill: Fill) -> None:
    assert fill.publish()


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (publishes, FillState.PUBLISHED),
        (lambda fill: fill.fail("broken off"), FillState.FAILED),
        (lambda fill: fill.hand_over(), FillState.GONE),
    ],
    ids=["published", "failed", "handed over"],
)
def test_a_fill_ends_although_its_file_system_cannot_unlock_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[Fill], None], state: FillState
) -> None:
    """As a network file system whose server is away; else its readers would wait until they time out."""
    claim = Cache(tmp_path / "files").claim(Key("https/some.thing/x.deb"))
    assert isinstance(claim, Lead)
    fill, real = claim.fill, fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if operation & fcntl.LOCK_UN:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    fill.start(META, 3, resumable=True)
    fill.write(memoryview(b"abc"))
    end(fill)
    assert fill.state is state
    fill.close()
