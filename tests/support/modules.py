"""The program's own modules, as tests that look at all of them find them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Dict

import parts

# Imports go down this list only, or stay in one folder; ARCHITECTURE.md says what each is for.
ORDER = (
    "dduct",
    "server",
    "proxy",
    "fetching",
    "cache",
    "pages",
    "upstream",
    "transfers",
    "certs",
    "net",
    "storage",
    "protocol",
    "tls",
    "monitoring",
)


def _find() -> Dict[str, Path]:
    found = {}
    for name in ORDER:
        if (parts.ROOT / f"{name}.py").exists():
            found[name] = parts.ROOT / f"{name}.py"
        else:
            found.update({f"{name}.{path.stem}": path for path in sorted((parts.ROOT / name).glob("*.py"))})
    return found


MODULES = _find()  # by dotted name


def copy_program(target: Path) -> None:
    """Copy what is needed to run dduct."""
    for name in parts.program():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(parts.ROOT / name, target / name)
