"""The program's own modules, as tests that look at all of them find them."""

from __future__ import annotations

import functools
import gc
import importlib
import shutil
from pathlib import Path
from typing import Any, Dict

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


def caches() -> Dict[str, Any]:
    """All caches of functions in the program, by dotted name."""
    for module in MODULES:
        importlib.import_module(module)
    kind = type(functools.lru_cache(1)(len))
    found = [one for one in gc.get_objects() if isinstance(one, kind) and one.__wrapped__.__module__ in MODULES]
    return {f"{one.__wrapped__.__module__}.{one.__wrapped__.__qualname__}": one for one in found}


def copy_program(target: Path) -> None:
    """Copy what is needed to run dduct."""
    for name in parts.program():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(parts.ROOT / name, target / name)
