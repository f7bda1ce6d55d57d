"""Where directories must not lie: eviction in file_dir must never reach certificates or the program's files.

Rules of this module:

* Paths are compared with links resolved, whether or not they exist. Existing paths are also compared by device and
  inode, because a second mount of the same directory has another path.
* Each error is one line that names its keys.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, Mapping, Optional

from storage.own_files import OWN_FOLDERS

# Directories that many programs share.
_SHARED = [
    *map(Path, ("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/proc", "/run", "/sbin", "/sys")),
    *map(Path, ("/tmp", "/usr", "/var", "/var/cache", "/var/lib", "/var/log", "/var/tmp")),  # noqa: S108 - refused
]


def misplaced(cert_dir: Path, file_dir: Path, program: Path, files: Mapping[str, Optional[Path]]) -> Iterator[str]:
    """Errors about these paths, one line each. `files`: files that dduct only reads, by key."""
    for key, directory in (("misc.cert_dir", cert_dir), ("misc.file_dir", file_dir)):
        real = _resolved(directory)
        if any(_is_same(real, shared) for shared in _SHARED):
            yield f"{key} = '{directory}': expected a directory of dduct's own, such as '{real / 'dduct'}'"
    relation = _relation(cert_dir, file_dir)
    if relation:
        yield (
            f"misc.cert_dir = '{cert_dir}' is {relation} misc.file_dir = '{file_dir}', where files are removed to make "
            "room: expected two directories, neither of them inside the other"
        )
    if _is_same(_resolved(file_dir), _resolved(program)):
        yield f"misc.file_dir = '{file_dir}' is where the program is: expected a directory of the cache's own"
    for key, path in {**files, "the program": program}.items():
        for folder in OWN_FOLDERS:
            if path is not None and _is_within(path, file_dir / folder):
                shown = f"{key} = '{path}'" if "." in key else f"{key} ('{path}')"
                yield (
                    f"{shown} is inside '{folder}' of misc.file_dir = '{file_dir}', where files are removed to make "
                    "room: expected it elsewhere"
                )


def _relation(inner: Path, outer: Path) -> str:
    """The relation of `inner` to `outer`: `the same as`, `inside`, `around`, or empty."""
    if _is_same(_resolved(inner), _resolved(outer)):
        return "the same as"
    if _is_within(inner, outer):
        return "inside"
    return "around" if _is_within(outer, inner) else ""


def _is_within(inner: Path, outer: Path) -> bool:
    real, other = _resolved(inner), _resolved(outer)
    return any(_is_same(place, other) for place in (real, *real.parents))


def _is_same(place: Path, other: Path) -> bool:
    if place == other:
        return True
    try:
        return os.path.samefile(place, other)
    except OSError:
        return False  # one of them does not exist


def _resolved(path: Path) -> Path:
    """The absolute path without links and `..`; missing parts stay as written."""
    return Path(os.path.realpath(path))
