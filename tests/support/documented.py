"""The sizes that packaging/README.md states for the artefacts."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "packaging/README.md"
UNITS = {"kB": 1e3, "MB": 1e6}


def size(artefact: str) -> float:
    """The documented size of an artefact such as `dduct-X.Y.Z.tar.gz`, in bytes."""
    row = re.search(rf"^\| `{re.escape(artefact)}` \| [^|]* \| ([0-9.]+) (kB|MB) \|", README.read_text("utf-8"), re.M)
    assert row is not None, f"{README} does not say how large {artefact} is"
    return float(row[1]) * UNITS[row[2]]


def check_size(artefact: str, path: Path) -> None:
    """Fail if the file differs from its documented size by more than 15 %."""
    found, said = path.stat().st_size, size(artefact)
    assert abs(found / said - 1) <= 0.15, f"{path.name} has {found} bytes, and packaging/README.md says {said:.0f}"
