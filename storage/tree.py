"""The tree of folders and files below the cache's directory: files made, renamed and removed, and the space they take.

`open_growing_file` and `remove` find out whether a symbolic link leads a path out of the directory: then the object is
`Unstorable`, and nothing is removed. The other methods are for paths that these have made or found.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
import uuid
from typing import Callable, Dict, Optional, Tuple

from monitoring.details import Detail
from monitoring.log import RateLimitedLog
from monitoring.redaction import reason_of, shown
from storage.locations import aside_of, make_folders
from storage.locks import is_file, try_lock
from storage.own_files import GROWING_SUFFIX, is_reached_directly, prune, size_on_disk_at
from storage.record import Unstorable
from storage.space import FOLDER_SIZE, SpaceLimits

_REACHED_FOR = 1.0  # seconds for which a folder is known to have no symbolic link above it
_MAX_REACHED = 1024  # folders that are known so
_MKDIR_ATTEMPTS = 10  # another thread may prune a directory after it is made and before it is used

_log = logging.getLogger("dduct.store")


class Tree:
    """All files of a cache. A `place` is the path of an object; its growing file lies beside it."""

    def __init__(self, root: str, space: SpaceLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._space = space
        self._clock = clock
        # Until when a folder is taken for one that no link leads to. Without a lock: a lost entry is looked up again.
        self._reached_until: Dict[str, float] = {}
        self._full = RateLimitedLog(_log)

    def open_growing_file(self, place: str) -> int:
        """Open the growing file of `place`, made with its directories, never truncated. Raises Unstorable."""
        part = place + GROWING_SUFFIX
        if not self._is_reached(part):
            raise Unstorable("a folder in its path is a symbolic link", Detail.PATH)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        for _ in range(_MKDIR_ATTEMPTS):
            try:
                return os.open(part, flags, 0o644)
            except FileNotFoundError:
                self._make_parents(part)
            except OSError as error:
                raise self._refused(error) from error
        raise Unstorable("its directory vanishes again and again", Detail.BUSY)

    def open_growing(self, place: str) -> Optional[int]:
        """Open the growing file of `place`; None where there is none any more. Raises Unstorable."""
        try:
            return os.open(place + GROWING_SUFFIX, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unstorable.of(error) from error

    def open_fresh(self, place: str) -> Tuple[int, str]:
        """Make a locked file beside `place` under a unique name, for the caller to rename. Raises Unstorable."""
        path = f"{os.path.dirname(place)}/.{uuid.uuid4().hex}{GROWING_SUFFIX}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Unstorable.of(error) from error
        if not try_lock(fd):  # the evictor has found it first
            remove_growing_file(path, fd)
            os.close(fd)
            raise Unstorable("its file is locked by another process", Detail.BUSY)
        return fd, path

    def open_unnamed(self, place: str) -> int:
        """Open a file without a name on the disk of `place`; closing it removes it. Raises Unstorable."""
        with contextlib.suppress(OSError):  # not every file system has such files
            return os.open(os.path.dirname(place), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        fd, path = self.open_fresh(place)
        remove_growing_file(path, fd)
        return fd

    def put_in_place(self, place: str) -> str:
        """Rename the growing file to `place`, or aside where a folder blocks it; its path. Raises OSError."""
        part = place + GROWING_SUFFIX
        replaced = size_on_disk_at(place) if os.access(place, os.F_OK) else 0  # usually there is none
        try:
            os.replace(part, place)
            self._space.grow(-replaced, -bool(replaced))
            return place
        except (IsADirectoryError, FileExistsError):
            pass
        aside = aside_of(self._root, place)
        for _ in range(_MKDIR_ATTEMPTS - 1):
            with contextlib.suppress(FileNotFoundError):
                make_folders(aside)
                os.replace(part, aside)
                return aside
        raise FileNotFoundError(errno.ENOENT, "its directory vanishes again and again", Detail.BUSY)

    def remove(self, place: str) -> None:
        """Unpublish an object, if there is one; its readers can read on."""
        if not is_reached_directly(self._root, place):
            return  # a link leads outside dduct's own files
        removed = size_on_disk_at(place)
        try:
            os.unlink(place)
            self._space.grow(-removed, -1)
        except OSError as error:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                _log.warning("Cannot remove %s: %s", shown(place), reason_of(error))
            return
        self.prune(place)

    def prune(self, place: str) -> None:
        """Remove the empty directories above `place`, made for an object that was not kept."""
        prune(os.path.dirname(place), self._root)

    def _is_reached(self, path: str) -> bool:
        """As `is_reached_directly`, up to a second ago. Nothing is removed on its word."""
        folder, now = os.path.dirname(path), self._clock()
        if self._reached_until.get(folder, now) > now:
            return True
        if not is_reached_directly(self._root, path):
            return False
        if len(self._reached_until) >= _MAX_REACHED:
            self._reached_until.clear()
        self._reached_until[folder] = now + _REACHED_FOR
        return True

    def _make_parents(self, path: str) -> None:
        try:
            made = make_folders(path)
            self._space.grow(FOLDER_SIZE * made, made)
        except (FileNotFoundError, FileExistsError):
            pass  # pruned again meanwhile
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> Unstorable:
        """Report that the disk can make no file or folder, once a minute."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            self._full.warning('No file can be made in "%s": %s: nothing new is kept', self._root, reason_of(error))
            self._space.on_need()
        return Unstorable.of(error)


def remove_growing_file(part: str, fd: int) -> None:
    """Remove a growing file that this process owns, unless another file has taken its name."""
    try:
        if is_file(part, fd):
            os.unlink(part)
    except OSError as error:
        _log.warning("Cannot remove %s: %s", shown(part), reason_of(error))
