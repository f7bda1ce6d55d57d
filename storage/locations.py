"""Where an object lies below the cache's directory: its name as a path, or aside where another's is in its way.

`x.deb/y.deb` wants a folder where `x.deb` wants a file. What comes second lies aside, in a folder of its host that
no URL can name. A place that was free once may be taken later, and the reverse: both are looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from typing import Optional

from storage.own_files import ASIDE, PART_SUFFIX

_NAME_LIMIT = 255 - len(PART_SUFFIX)
_LEVELS_AT_MOST = 32  # folders above a file: each may cost a block and an inode, and the client chooses them
_NAME_AT_MOST = 2048  # bytes
_PATH_AT_MOST = 4095 - 64  # bytes (PATH_MAX), and the suffix or the name of a fresh file beside it


def objection(root: str, name: str) -> Optional[str]:
    """Why no file below a root can have this name; None where one can."""
    if name.count("/") > _LEVELS_AT_MOST:
        return f"its path has more than {_LEVELS_AT_MOST} levels"
    size = len(name.encode())
    if size > _NAME_AT_MOST or size + len(os.fsencode(root)) > _PATH_AT_MOST:
        return "over-long path"
    for part in name.split("/"):
        if part in ("", ".", "..") or "\0" in part:
            return "empty, dot or NUL segment in its path"
        if len(part.encode()) > _NAME_LIMIT:
            return "over-long segment in its path"
        if part.endswith(PART_SUFFIX):
            return f"its path ends a segment in {PART_SUFFIX}"
    return None


def aside_of(root: str, place: str) -> str:
    """Where an object lies whose place is taken by a folder, or has a file where a folder is wanted."""
    name = place[len(root) + 1 :]
    top, _, rest = name.partition("/")
    hashed = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{root}/{top}/{rest.partition('/')[0]}/{ASIDE}/{hashed}"


def vacant(root: str, place: str) -> str:
    """Where what belongs to a place is to be written: there, if it is free or has its file, else aside."""
    if os.path.lexists(place + PART_SUFFIX):
        return place  # it grows there already
    aside = aside_of(root, place)
    try:
        return aside if stat.S_ISDIR(os.lstat(place).st_mode) else place
    except NotADirectoryError:
        return aside
    except OSError:
        return aside if os.path.lexists(aside) or os.path.lexists(aside + PART_SUFFIX) else place


def make_folders(path: str) -> int:
    """Make the folders that a path lacks, one after the other; how many. Raises OSError."""
    missing = []
    directory = os.path.dirname(path)
    while directory and not os.path.isdir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    made = 0
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # somebody else was faster; where it is a file, the next one fails
            os.mkdir(directory)
            made += 1
    return made
