"""Making room: the least recently used objects go when there are too many, and what a crash has left goes at once.

All of it happens in one background thread of one process for each cache directory; nobody waits for it. Who reads an
object that goes, reads it to its end, for the inode lives on. What has to go is for `room` to say.
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

from monitoring.log import Seldom
from monitoring.redaction import reason_of, shown
from storage.locks import is_file, try_lock
from storage.own_files import PART_SUFFIX, is_reached_directly, own_entries, prune, room_of
from storage.space import Need, Room
from storage.store import boot_id, leftover_record

_log = logging.getLogger("dduct.evict")

_LOOK = 0.5  # seconds between two looks at what other processes have added, and at the free space;
_LOOK_GROWING = 0.1  # while objects grow
_PERIOD = 60.0  # seconds between two sweeps that nothing was added between
_CANDIDATES = 10_000  # objects that one sweep may find to be the oldest; memory is bounded by it
_FOUND_FOR = 600.0  # seconds that the result of a sweep is good enough to remove more by
_LEFT_AT_MOST = 86400.0  # seconds that half an object is kept for somebody who wants the rest
_WISHES_APART = 60.0  # seconds between two objects for which room is made because they could not be kept
_SAID_APART = 600.0  # seconds between two lines that say the same trouble


@dataclass(frozen=True)
class _Candidate:
    last_used: float
    path: str
    size: int


class _Left(enum.Enum):
    """What has become of a file that has the name of a growing one."""

    REMOVED = "nobody grew it, and nobody can go on with it"
    KEPT = "nobody grows it, but somebody may go on with it"
    GROWING = "somebody grows it"


class Evictor:
    """Keeps the directory of a `room` within its limits. `evicted` is told of every object that goes."""

    def __init__(self, room: Room, evicted: Callable[[], None] = lambda: None) -> None:
        self.room = room
        self._root = room.root
        self._evicted = evicted
        self._boot = boot_id()
        self._found: Deque[_Candidate] = deque()  # what the last sweep has found to be the oldest, and is still here
        self._swept_at = float("-inf")
        self._grown_before = 0  # what `grown` said then
        self._wished_at = float("-inf")
        self._trouble = {reason: Seldom(_log, _SAID_APART) for reason in ("cache.min_free", "inodes", "in vain")}
        self._in_vain_until = float("-inf")  # what was removed has made nothing free: more of it would not, either
        self._changed = threading.Condition()  # guards the two below
        self._stopping = False
        self._poked = False

    def run(self) -> None:
        """Watch until `stop`; the whole work of a thread."""
        self.sweep()  # something may have been left by a crash
        while not self._wait():
            since = time.monotonic() - self._swept_at
            if since > _LEFT_AT_MOST:
                self.sweep()
            elif self._need():
                if self._found and (since < _FOUND_FOR or not self._is_for_size()):
                    self.relieve()
                elif self.room.grown > self._grown_before or since > _PERIOD:
                    self.sweep()

    def stop(self) -> None:
        """End `run` soon."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def look(self) -> None:
        """Something has been added, or cannot be."""
        with self._changed:
            self._poked = True
            self._changed.notify_all()

    def sweep(self) -> None:
        """Look at everything once, remove what a crash has left, and what is too much. Returns at once where another
        process is at it."""
        with self._alone() as alone:
            while alone:
                self._survey()
                if self._remove(self._need()) or self._stopping:
                    return

    def relieve(self) -> None:
        """Remove what is too much, as far as the last sweep has found enough."""
        with self._alone() as alone:
            if alone:
                self._remove(self._need())

    # Innards

    def _wait(self) -> bool:
        """Until something was added here, or perhaps elsewhere; whether it is time to end."""
        with self._changed:
            seconds = _LOOK_GROWING if self.room.is_growing else _LOOK
            self._changed.wait_for(lambda: self._stopping or self._poked, seconds)
            self._poked = False
            return self._stopping

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other process sweeps this directory."""
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
        """Whether it is max_size that is exceeded: by an estimate, which may be too high where files were deleted."""
        now = self.room.situation()
        return now.limits.max_size is not None and (now.used or 0) + now.known > now.limits.max_size

    def _need(self) -> Need:
        """What has to go now."""
        now = time.monotonic()
        wish = 0
        if now - self._wished_at >= _WISHES_APART:
            wish = self.room.take_wish()
            self._wished_at = now if wish else self._wished_at
        need = self.room.situation().need(wish)
        if need.unreachable:
            self._trouble[need.unreachable].warning(
                'Too little is free in "%s" (%s), and to remove all objects would not do: none is removed, and nothing '
                "new is kept, until other files there make room",
                self._root,
                need.unreachable,
            )
        if now < self._in_vain_until and not self._is_for_size():
            return Need()
        return need

    def _survey(self) -> None:
        """Find out what is in use, and which objects were used least recently."""
        grown_before, self._swept_at = self.room.grown, time.monotonic()
        used = entries = 0
        oldest = time.time() - _LEFT_AT_MOST
        heap: List[Tuple[float, str, int]] = []  # the youngest of the candidates on top: times are negated
        for entry in own_entries(self._root):
            if self._stopping:
                return
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # gone meanwhile
            size = room_of(status)
            if entry.is_dir(follow_symlinks=False):
                used, entries = used + size, entries + 1
                continue
            if entry.name.endswith(PART_SUFFIX):
                left = _look_at_leftover(entry.path, self._boot, oldest)
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
        self.room.note_used(used, grown_before, entries)

    def _remove(self, need: Need) -> bool:
        """Remove what was found, the oldest first, until it is enough; False where there may be more to find."""
        before = self.room.situation()
        size = files = removed = 0
        while need and self._found and (size < need.size or files < need.files) and not self._stopping:
            freed = self._remove_one(self._found.popleft())
            if freed is not None:
                removed, size, files = removed + 1, size + freed[0], files + freed[1]
                self.room.note_freed(*freed)
        if removed:
            _log.info("Removed %d MB of the least recently used objects", size // 1_000_000)
            now = self.room.situation()
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
        """Remove an object that nobody has used since it was found; the bytes and inodes that it took."""
        path = candidate.path
        try:
            if max(os.lstat(path).st_atime, candidate.last_used) > candidate.last_used:
                return None  # used since
            if not is_reached_directly(self._root, path):
                return None  # somebody has put a link in the place of a folder
            if not path.endswith(PART_SUFFIX):
                os.unlink(path)
            elif _look_at_leftover(path, self._boot, float("inf")) is not _Left.REMOVED:
                return None  # it is growing
        except OSError:
            return None
        self._evicted()
        folders, taken = prune(os.path.dirname(path), self._root)
        return candidate.size + taken, 1 + folders


def _look_at_leftover(path: str, boot: str, oldest: float) -> _Left:
    """Remove a growing file that nobody is growing, unless one may yet go on with it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return _Left.KEPT
    try:
        if not try_lock(fd):
            return _Left.GROWING
        if leftover_record(fd, boot) is not None and os.fstat(fd).st_mtime > oldest:
            return _Left.KEPT
        # Whoever opened it meanwhile finds out, once he has the lock, that it has lost its name.
        if is_file(path, fd):
            os.unlink(path)
            _log.info("Removed what a crash has left: %s", shown(path))
        return _Left.REMOVED
    except OSError as error:
        _log.warning("Cannot remove %s: %s", shown(path), reason_of(error))
        return _Left.KEPT
    finally:
        os.close(fd)  # and with it the lock
