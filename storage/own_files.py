"""The files below the cache's directory that are dduct's own; dduct never removes or reads any other file there.

* The folders of `OWN_FOLDERS` are own, and so is each file in them at an object's possible path: below a host or, for
  an object named by its digest, under exactly that name. Files copied there by hand count as objects.
* Symbolic links, mount points and other file systems are not followed: files behind them are not dduct's.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Iterator, List, NamedTuple, Optional, Set, Tuple

from storage.record import SHARED_ALGORITHMS

GROWING_SUFFIX = ".dduct"
ASIDE = ".dduct"  # a folder below each host that no URL can name: no name has a segment with GROWING_SUFFIX
_NAMED_BY_URL = ("http", "https")
OWN_FOLDERS = (*_NAMED_BY_URL, *SHARED_ALGORITHMS)
_NOT_FOREIGN = frozenset([".evictor", "lost+found", *OWN_FOLDERS])
_PROBE_PREFIX = ".probe-"
_HEX = re.compile("[0-9a-f]+")
_MOUNTS = "/proc/self/mountinfo"
_MOUNT_POINT = 4  # the index of this field in a line (proc_pid_mountinfo(5))
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Outside(NamedTuple):
    """Foreign entries in the cache's directory: an example of each kind, if there is one."""

    foreign: Optional[str]
    closed: Tuple[str, ...]  # own folders that are a link, a mount point or no folder


def own_entries(root: str) -> Iterator[os.DirEntry[str]]:
    """All own files below a directory, and their folders; a folder comes before its content."""
    mounts = _mounts_below(root)
    try:
        device = os.stat(root).st_dev
    except OSError:
        return
    pending: List[Tuple[str, int, str]] = [(f"{root}/{name}", 0, name) for name in OWN_FOLDERS]
    pending = [(path, level, top) for path, level, top in pending if _is_own_folder(path, device, mounts)]
    while pending:
        place, level, top = pending.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if entry.path not in mounts and entry.stat(follow_symlinks=False).st_dev == device:
                            pending.append((entry.path, level + 1, top))
                            yield entry
                    elif entry.is_file(follow_symlinks=False) and _is_object(entry, place, level, top):
                        yield entry
        except OSError:
            continue  # gone meanwhile, or not readable


def files_below(root: str) -> Iterator[os.DirEntry[str]]:
    """All own files below a directory."""
    return (entry for entry in own_entries(root) if not entry.is_dir(follow_symlinks=False))


def outside(root: str) -> Outside:
    """The foreign entries of a cache's directory, judged by its first level."""
    mounts = _mounts_below(root)
    device = os.stat(root).st_dev
    closed = tuple(
        name
        for name in OWN_FOLDERS
        if os.path.lexists(f"{root}/{name}") and not _is_own_folder(f"{root}/{name}", device, mounts)
    )
    foreign = (
        name for name in sorted(os.listdir(root)) if name not in _NOT_FOREIGN and not name.startswith(_PROBE_PREFIX)
    )
    return Outside(next(foreign, None), closed)


def is_reached_directly(root: str, path: str) -> bool:
    """Whether no folder between `root` and a path is a symbolic link; otherwise the path leads elsewhere."""
    directory = os.path.dirname(path)
    while len(directory) > len(root):
        try:
            if stat.S_ISLNK(os.lstat(directory).st_mode):
                return False
        except OSError:
            pass  # it does not exist yet
        directory = os.path.dirname(directory)
    return True


def prune(directory: str, root: str) -> Tuple[int, int]:
    """Remove an empty folder, and the empty ones above it, below `root`; how many, and the bytes they took."""
    count = size = 0
    while len(directory) > len(root):
        try:
            taken = size_on_disk(os.lstat(directory))
            os.rmdir(directory)
        except OSError:
            break  # in use
        count, size = count + 1, size + taken
        directory = os.path.dirname(directory)
    return count, size


_BLOCK = 512  # bytes; the unit of st_blocks
_LEAST = 1024  # bytes: the minimum of an inode where a file system reports no blocks


def size_on_disk(status: os.stat_result) -> int:
    """Bytes that a file or folder takes on its disk."""
    return max(status.st_blocks * _BLOCK, _LEAST)


def size_on_disk_at(path: str) -> int:
    """Bytes that a file takes on its disk; 0 where there is none."""
    try:
        return size_on_disk(os.lstat(path))
    except OSError:
        return 0


def _is_own_folder(path: str, device: int, mounts: Set[str]) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_dev == device and path not in mounts


def _is_object(entry: os.DirEntry[str], place: str, level: int, top: str) -> bool:
    """Whether a regular file is where an object, an alias or a growing file can be."""
    if top in _NAMED_BY_URL:
        return level >= 1
    if level != 1:
        return False
    name = entry.name
    if name.endswith(GROWING_SUFFIX):
        name = name[: -len(GROWING_SUFFIX)]
        if name.startswith("."):
            return True  # a fresh one, to be renamed soon
    return name.startswith(os.path.basename(place)) and _HEX.fullmatch(name) is not None


def _mounts_below(root: str) -> Set[str]:
    """The mount points below a directory, as paths that start with `root`."""
    real = os.path.realpath(root)
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as lines:
            places = [line.split(" ")[_MOUNT_POINT] for line in lines]
    except (OSError, IndexError):
        return set()
    points = (_ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), place) for place in places)
    return {root + point[len(real) :] for point in points if point.startswith(real + "/")}
