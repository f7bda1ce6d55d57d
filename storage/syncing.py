"""Published files on their way to being durable: synced, and marked so in their records, many at a time.

* No client waits for it. Small files wait for each other: to sync many together takes hardly longer than to sync one.
* Not to sync a file is safe. An object that is not marked durable is compared with its hash when it is sent for the
  first time after a reboot. So files that are too many are dropped, and counted.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import logging
import os
import threading
import time
from collections import deque
from typing import Callable, Deque, List, Optional, Sequence

from monitoring.log import RateLimitedLog
from monitoring.redaction import reason_of, shown
from storage.locations import aside_of
from storage.locks import is_file
from storage.record import Unstorable
from storage.records import Records
from storage.tree import Tree

QUEUED_SIZE = 1024 * 1024  # bytes; the sync of a larger object takes so long that smaller ones would wait for it
MAX_WAITING = 4096  # files
BATCH = 64  # files that are open at once
_GATHERING = 0.25  # seconds
_DRAINING = 5.0  # seconds that a stop leaves for those that wait
# A sync that fails with one of these may have lost bytes, and the next one does not report it (fsync(2)).
LOST_IN_WRITING = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
_SYNC_FILE_RANGE_WRITE = 2  # sync_file_range(2)

_log = logging.getLogger("dduct.store")


class Taken(enum.Enum):
    """What becomes of files that were added to a queue."""

    QUEUED = "they are synced soon"
    DROPPED = "too many wait: they are not synced"
    REFUSED = "no thread takes files: the caller may sync them"


class SyncQueue:
    """Files that wait to be synced; the thread in `run` gives them to `sync`, up to `BATCH` at a time.

    `on_dropped` is called with the number of files that are not synced because there are too many. `gathering`: seconds
    in which files come together.
    """

    def __init__(self, sync: Callable[[Sequence[str]], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._sync = sync
        self._clock = clock
        self.gathering = _GATHERING
        self.on_dropped: Callable[[int], None] = lambda _: None
        self._changed = threading.Condition()  # guards the three attributes below
        self._waiting: Deque[str] = deque()
        self._running = False
        self._drain_until: Optional[float] = None  # once it is to stop

    def __repr__(self) -> str:
        return f"<SyncQueue: {len(self._waiting)} files wait>"

    def add(self, places: Sequence[str]) -> Taken:
        """Have files synced soon; never waits."""
        with self._changed:
            if not self._running or self._drain_until is not None:
                return Taken.REFUSED
            if len(self._waiting) + len(places) <= MAX_WAITING:
                was_empty = not self._waiting
                self._waiting.extend(places)
                if was_empty or len(self._waiting) >= BATCH:
                    self._changed.notify_all()
                return Taken.QUEUED
        self.on_dropped(len(places))
        return Taken.DROPPED

    def run(self) -> None:
        """Sync files until `stop`; the target of a thread."""
        with self._changed:
            self._running = True
        try:
            batch = self._next()
            while batch:
                self._sync(batch)
                batch = self._next()
        finally:
            with self._changed:
                self._running = False
                left = len(self._waiting)
                self._waiting.clear()
            if left:
                self.on_dropped(left)

    def stop(self) -> None:
        """Take no more files, and end `run` once those that wait are synced, after 5 seconds at the latest."""
        with self._changed:
            self._drain_until = self._clock() + _DRAINING
            self._changed.notify_all()

    def _next(self) -> List[str]:
        """The next files, once there are many or they have waited; none where `run` is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._drain_until is not None)
            self._changed.wait_for(lambda: len(self._waiting) >= BATCH or self._drain_until is not None, self.gathering)
            if self._drain_until is not None and self._clock() >= self._drain_until:
                return []
            return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]


class Syncer:
    """Syncs published files below `root`, and marks them durable."""

    def __init__(self, root: str, tree: Tree, records: Records) -> None:
        self._root = root
        self._tree = tree
        self._records = records
        self._trouble = RateLimitedLog(_log)

    def sync(self, places: Sequence[str]) -> None:
        """Sync those files that are still there; what the disk has lost is unpublished."""
        opened = [(place, self._open(place)) for place in places]
        files = [(place, fd) for place, fd in opened if fd >= 0]
        try:
            for _, fd in files:
                _begin_writing(fd)  # all before the first sync: then that one has little left for the others
            while files:
                self._sync(*files[-1])
                self._close(*files.pop())  # at once: this releases the lock of its record
        finally:
            for place, fd in files:
                self._close(place, fd)

    def _open(self, place: str) -> int:
        """The file of `place`, there or aside; -1 where it cannot be opened, as after an eviction."""
        for path in (place, aside_of(self._root, place)):
            try:
                return os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue
            except OSError as error:
                self._note(place, error)
                break
        return -1

    def _sync(self, place: str, fd: int) -> None:
        try:
            os.fsync(fd)
            self._records.note_synced(fd)
        except OSError as error:
            if error.errno in LOST_IN_WRITING:
                self._unpublish(place, fd)
            self._note(place, error)
        except Unstorable as error:
            self._note(place, error)

    def _close(self, place: str, fd: int) -> None:
        try:
            os.close(fd)
        except OSError as error:
            self._note(place, error)

    def _unpublish(self, place: str, fd: int) -> None:
        for path in (place, aside_of(self._root, place)):
            if is_file(path, fd):
                self._tree.remove(path)

    def _note(self, place: str, error: Exception) -> None:
        reason = reason_of(error)
        self._trouble.warning("Kept, but perhaps not past a loss of power: %s: %s", shown(place), reason)


def _begin_writing(fd: int) -> None:
    """Begin to write a file's bytes, without waiting; a no-op where the system cannot. Errors are left to fsync."""
    if _sync_file_range is not None:
        _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def _libc_sync_file_range() -> Optional[Callable[[int, int, int, int], int]]:
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_sync_file_range = _libc_sync_file_range()
