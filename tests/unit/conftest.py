"""What the tests of the modules at the top share."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest

from cache import Cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "files", timeout=lambda: 20.0)


@pytest.fixture
def pair(tmp_path: Path) -> List[Cache]:
    """Two processes; flock does not know the difference."""
    return [Cache(tmp_path / "files", timeout=lambda: 20.0) for _ in range(2)]
