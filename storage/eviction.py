"""Eviction: removes the least recently used objects over the limits, and, at once, leftovers of a crash.

Everything happens in one background thread of one process per cache directory; no request waits for it. The reader of
an evicted object can read to its end, because the inode stays. `space` decides how much has to go.
"""

from __future__ import annotations

import enum
import heapq
import logging
import os
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Deque, Iterator, List, Optional, Tuple

from monitoring.log import RateLimitedLog
from monitoring.redaction import reason_of, shown
from storage.locks import is_file, try_lock
from storage.own_files import GROWING_SUFFIX, is_reached_directly, own_entries, prune, size_on_disk
from storage.space import Need, SpaceLimits
from storage.store import boot_id, partial_download_record

_log = logging.getLogger("dduct.evict")

_LOOK = 0.5  # seconds between two checks of other processes' growth and the free space
_LOOK_GROWING = 0.1  # seconds, while objects grow
_PERIOD = 60.0  # seconds between two sweeps if nothing was added
_CANDIDATES = 10_000  # objects that one sweep lists as the oldest; a bound on memory
_FOUND_FOR = 600.0  # seconds for which a sweep's result is used to remove more
_MAX_LEFT = 86400.0  # seconds that a partial download is kept for a later request
_WISH_INTERVAL = 60.0  # seconds between two wishes for space that are granted
_LOG_INTERVAL = 600.0  # seconds between two log lines about the same trouble


@dataclass(frozen=True)
class _Candidate:
    last_used: float
    path: str
    size: int


class _Left(enum.Enum):
    """The state of a growing file after a check."""

    REMOVED = "nobody wrote it, and it cannot be resumed"
    KEPT = "nobody writes it, but it can be resumed"
    GROWING = "it is being written"


class Evictor:
    """Keeps the directory of a `space` within its limits. `evicted` is called for every removed object."""

    def __init__(self, space: SpaceLimits, evicted: Callable[[], None] = lambda: None) -> None:
        self.space = space
        self._root = space.root
        self._evicted = evicted
        self._boot = boot_id()
        self._found: Deque[_Candidate] = deque()  # the oldest objects of the last sweep that are still here
        self._swept_at = float("-inf")
        self._grown_before = 0  # `grown` at the start of that sweep
        self._wished_at = float("-inf")
        self._trouble = {
            reason: RateLimitedLog(_log, _LOG_INTERVAL) for reason in ("cache.min_free", "inodes", "in vain")
        }
        self._in_vain_until = float("-inf")  # removal freed nothing: more of it would not help
        self._changed = threading.Condition()  # guards the two attributes below
        self._stopping = False
        self._poked = False

    def run(self) -> None:
        """Evict until `stop`; the target of the background thread."""
        self.sweep()  # a crash may have left files
        while not self._wait():
            since = time.monotonic() - self._swept_at
            if since > _MAX_LEFT:
                self.sweep()
            elif self._need():
                if self._found and (since < _FOUND_FOR or not self._is_for_size()):
                    self.relieve()
                elif self.space.grown > self._grown_before or since > _PERIOD:
                    self.sweep()

    def stop(self) -> None:
        """End `run` soon."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def look(self) -> None:
        """Wake the evictor: an object was added, or could not be."""
        with self._changed:
            self._poked = True
            self._changed.notify_all()

    def sweep(self) -> None:
        """Visit all files once, and remove leftovers of a crash and everything over the limits.

        Returns at once where another process is sweeping.
        """
        with self._alone() as alone:
            while alone:
                self._survey()
                if self._remove(self._need()) or self._stopping:
                    return

    def relieve(self) -> None:
        """Remove the excess over the limits, as far as the last sweep's list allows."""
        with self._alone() as alone:
            if alone:
                self._remove(self._need())

    # Internals

    def _wait(self) -> bool:
        """Wait for an addition here, or one polling interval; whether to stop."""
        with self._changed:
            seconds = _LOOK_GROWING if self.space.is_growing else _LOOK
            self._changed.wait_for(lambda: self._stopping or self._poked, seconds)
            self._poked = False
            return self._stopping

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Yield whether no other process sweeps this directory; the lock keeps others out."""
        try:
            fd = os.open(f"{self._root}/.evictor", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            yield False  # no directory, nothing to sweep
            return
        try:
            yield try_lock(fd)
        finally:
            os.close(fd)

    def _is_for_size(self) -> bool:
        """Whether max_size is exceeded, by an estimate that may be too high where files were deleted."""
        now = self.space.situation()
        return now.limits.max_size is not None and (now.used or 0) + now.known > now.limits.max_size

    def _need(self) -> Need:
        """The bytes and inodes that have to go now."""
        now = time.monotonic()
        wish = 0
        if now - self._wished_at >= _WISH_INTERVAL:
            wish = self.space.take_wish()
            self._wished_at = now if wish else self._wished_at
        need = self.space.situation().need(wish)
        if need.unreachable:
            self._trouble[need.unreachable].warning(
                'Too little is free in "%s" (%s), and removing all objects would not be enough: none is removed, and '
                "nothing new is kept, until other files there are removed",
                self._root,
                need.unreachable,
            )
        if now < self._in_vain_until and not self._is_for_size():
            return Need()
        return need

    def _survey(self) -> None:
        """Find the space in use and the least recently used objects."""
        grown_before, self._swept_at = self.space.grown, time.monotonic()
        used = entries = 0
        oldest = time.time() - _MAX_LEFT
        heap: List[Tuple[float, str, int]] = []  # negated times: the youngest candidate is on top
        for entry in own_entries(self._root):
            if self._stopping:
                return
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # gone meanwhile
            size = size_on_disk(status)
            if entry.is_dir(follow_symlinks=False):
                used, entries = used + size, entries + 1
                continue
            if entry.name.endswith(GROWING_SUFFIX):
                left = _look_at_partial_download(entry.path, self._boot, oldest)
                if left is _Left.REMOVED:
                    prune(os.path.dirname(entry.path), self._root)
                if left is not _Left.KEPT:
                    continue
            used, entries = used + size, entries + 1
            candidate = (-max(status.st_atime, status.st_mtime), entry.path, size)
            if len(heap) < _CANDIDATES:
                heapq.heappush(heap, candidate)
            else:
                heapq.heappushpop(heap, candidate)
        self._found = deque(_Candidate(-negated, path, size) for negated, path, size in sorted(heap, reverse=True))
        self._grown_before = grown_before
        self.space.note_used(used, grown_before, entries)

    def _remove(self, need: Need) -> bool:
        """Remove candidates, the oldest first, until it is enough; False where another sweep may find more."""
        before = self.space.situation()
        size = files = removed = 0
        while need and self._found and (size < need.size or files < need.files) and not self._stopping:
            freed = self._remove_one(self._found.popleft())
            if freed is not None:
                removed, size, files = removed + 1, size + freed[0], files + freed[1]
                self.space.note_freed(*freed)
        if removed:
            _log.info("Removed %d MB of the least recently used objects", size // 1_000_000)
            now = self.space.situation()
            growth = now.known + now.unknown - before.known - before.unknown
            if now.free + growth < before.free + size // 2 and now.free < now.limits.min_free:
                self._in_vain_until = time.monotonic() + _PERIOD
                self._trouble["in vain"].warning(
                    'Removed %d MB in "%s", and hardly any of it has become free (snapshots? other writers?)',
                    size // 1_000_000,
                    self._root,
                )
        return not removed or (size >= need.size and files >= need.files)

    def _remove_one(self, candidate: _Candidate) -> Optional[Tuple[int, int]]:
        """Remove an object unless it was used since the sweep; the bytes and inodes that it took."""
        path = candidate.path
        try:
            if max(os.lstat(path).st_atime, candidate.last_used) > candidate.last_used:
                return None  # used since
            if not is_reached_directly(self._root, path):
                return None  # a folder was replaced by a link
            if not path.endswith(GROWING_SUFFIX):
                os.unlink(path)
            elif _look_at_partial_download(path, self._boot, float("inf")) is not _Left.REMOVED:
                return None  # it is growing
        except OSError:
            return None
        self._evicted()
        folders, taken = prune(os.path.dirname(path), self._root)
        return candidate.size + taken, 1 + folders


def _look_at_partial_download(path: str, boot: str, oldest: float) -> _Left:
    """Remove a growing file without a leader, unless it can still be resumed."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return _Left.KEPT
    try:
        if not try_lock(fd):
            return _Left.GROWING
        if partial_download_record(fd, boot) is not None and os.fstat(fd).st_mtime > oldest:
            return _Left.KEPT
        # A process that has opened it meanwhile sees, once it has the lock, that the file has lost its name.
        if is_file(path, fd):
            os.unlink(path)
            _log.info("Removed what a crash has left: %s", shown(path))
        return _Left.REMOVED
    except OSError as error:
        _log.warning("Cannot remove %s: %s", shown(path), reason_of(error))
        return _Left.KEPT
    finally:
        os.close(fd)  # this releases the lock, too
