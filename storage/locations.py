"""The path of an object below the cache's directory: its name, or aside where another object blocks that path.

`x.deb/y.deb` needs a folder where `x.deb` needs a file. The second to come is stored aside, in a folder of its host
that no URL can name. A free path may be taken later, and the reverse, so lookups try both.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from typing import Optional

from storage.own_files import ASIDE, GROWING_SUFFIX

_NAME_LIMIT = 255 - len(GROWING_SUFFIX)
_MAX_LEVELS = 32  # folders above a file: each may cost a block and an inode, and the client chooses them
_MAX_NAME = 2048  # bytes
_MAX_PATH = 4095 - 64  # bytes: PATH_MAX less the suffix or a fresh file's name


# Names that need no closer look: short ASCII segments that begin with neither a dot nor a slash.
_USUAL = re.compile(rf"[!-\-0-~][ -.0-~]{{0,199}}(?:/[!-\-0-~][ -.0-~]{{0,199}}){{0,{_MAX_LEVELS}}}")
_USUAL_LENGTH = 1024  # characters, of name and root together


def objection(root: str, name: str) -> Optional[str]:
    """Why no file below `root` can have this name; None where it is valid."""
    usual = len(name) + len(root) <= _USUAL_LENGTH and root.isascii() and GROWING_SUFFIX not in name
    if usual and _USUAL.fullmatch(name) is not None:
        return None
    if name.count("/") > _MAX_LEVELS:
        return f"its path has more than {_MAX_LEVELS} levels"
    plain = name.isascii()
    size = len(name) if plain else len(name.encode())
    if size > _MAX_NAME or size + len(os.fsencode(root)) > _MAX_PATH:
        return "over-long path"
    for part in name.split("/"):
        if part in ("", ".", "..") or "\0" in part:
            return "empty, dot or NUL segment in its path"
        if (len(part) if plain else len(part.encode())) > _NAME_LIMIT:
            return "over-long segment in its path"
        if part.endswith(GROWING_SUFFIX):
            return f"its path ends a segment in {GROWING_SUFFIX}"
    return None


def aside_of(root: str, place: str) -> str:
    """The aside path of an object whose own path is a folder, or leads through a file."""
    name = place[len(root) + 1 :]
    return _aside(root, name, hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest())


def vacant(root: str, place: str) -> str:
    """The path to write an object of `place` to: `place` if it is free or a file, else aside."""
    try:
        blocked = stat.S_ISDIR(os.lstat(place).st_mode)
    except NotADirectoryError:
        return aside_of(root, place)
    except OSError:
        blocked = _may_be_aside(root, place) and _is_or_grows_at(aside_of(root, place))
    if not blocked or os.path.lexists(place + GROWING_SUFFIX):  # then it already grows there
        return place
    return aside_of(root, place)


def _is_or_grows_at(path: str) -> bool:
    return os.path.lexists(path) or os.path.lexists(path + GROWING_SUFFIX)


def _may_be_aside(root: str, place: str) -> bool:
    """Whether any object of its host is aside: most hosts have none, and then no name has to be hashed."""
    return os.access(_aside(root, place[len(root) + 1 :], ""), os.F_OK)


def _aside(root: str, name: str, hashed: str) -> str:
    top, _, rest = name.partition("/")
    return f"{root}/{top}/{rest.partition('/')[0]}/{ASIDE}/{hashed}"


def make_folders(path: str) -> int:
    """Make the missing folders of a path, one after the other; how many. Raises OSError."""
    missing = []
    directory = os.path.dirname(path)
    while directory and not os.path.isdir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    made = 0
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster; if it is a file, the next mkdir fails
            os.mkdir(directory)
            made += 1
    return made
