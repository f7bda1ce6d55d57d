"""A file_dir that holds files that are not dduct's."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Callable, List

import pytest
from support.origin import Files
from support.running import RunningDduct


def write(root: Path, *names: str) -> List[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"F" * 9000)
        os.utime(root / name, (1, 1))
    return [root / name for name in names]


def test_a_file_dir_with_foreign_files_is_used_with_a_warning(
    start_dduct: Callable[..., RunningDduct], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = write(tmp_path / "dduct-0/files", "photos/cat.jpg")
    (tmp_path / "dduct-0/files/lost+found").mkdir()
    with caplog.at_level(logging.WARNING, "dduct"):
        dduct = start_dduct(max_size=1)
    (said,) = [record.getMessage() for record in caplog.records if "never touched" in record.getMessage()]
    assert '"photos"' in said and "cache.min_free" in said
    origin = dduct.origin(Files({"/x.deb": b"x" * 100}))
    assert dduct.fetch(origin, "/x.deb").body == b"x" * 100
    assert path.exists()


def test_a_file_dir_without_foreign_files_gives_no_warning(
    start_dduct: Callable[..., RunningDduct], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dduct-0/files/lost+found").mkdir(parents=True)
    write(tmp_path / "dduct-0/files", ".evictor", "https/h/x.deb")
    with caplog.at_level(logging.WARNING, "dduct"):
        start_dduct()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
