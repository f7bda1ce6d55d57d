"""Making room: the least recently used objects go when there are too many, and what a crash has left goes at once.

All of it happens in one background thread of one process for each cache directory; nobody waits for it. Who reads an
object that goes, reads it to its end, for the inode lives on.
"""

from __future__ import annotations

import heapq
import logging
import os
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Tuple

from locks import is_file, try_lock
from ownfiles import PART_SUFFIX, files_below, is_reached_directly, prune
from redaction import reason_of, shown
from store import boot_id, leftover_record

_log = logging.getLogger("dduct.evict")

_LOOK = 2.0  # seconds between two looks at what other processes have added, and at the free space
_PERIOD = 60.0  # seconds between two sweeps that nothing was added between
_CANDIDATES = 10_000  # objects that one sweep may find to be the oldest; memory is bounded by it
_SLACK = 0.05  # of a limit, by which it is undercut, so that the next object does not exceed it again
_BLOCK = 512  # octets; the unit of st_blocks
_LEFT_AT_MOST = 86400.0  # seconds that half an object is kept for somebody who wants the rest

_Candidate = Tuple[float, str, int]  # time of the last use, path, octets on the disk


@dataclass(frozen=True)
class Limits:
    """Octets: as many as objects may take up (None: any number), and as many as are to stay free."""

    max_size: Optional[int] = None
    min_free: int = 0


class Evictor:
    """Keeps the directory `root` within its limits.

    `grown` says how many octets have ever been added, by all processes; `evicted` is told of every object that goes.
    """

    def __init__(
        self, root: Path, limits: Limits, grown: Callable[[], int], evicted: Callable[[], None] = lambda: None
    ) -> None:
        self._root = str(root)
        self.limits = limits
        self._grown = grown
        self._evicted = evicted
        self._boot = boot_id()
        self._used = 0  # octets, when the last sweep was through
        self._grown_before = 0  # what `grown` said when it began: what was added meanwhile it may have seen or not
        self._changed = threading.Condition()  # guards the two below
        self._stopping = False
        self._poked = False

    def run(self) -> None:
        """Watch until `stop`; the whole work of a thread."""
        self.sweep()  # something may have been left by a crash
        swept_at = time.monotonic()
        while not self._wait():
            since = time.monotonic() - swept_at
            due = self._grown() > self._grown_before or since > _PERIOD
            if (due and self._excess(self.used) > 0) or since > _LEFT_AT_MOST:
                self.sweep()
                swept_at = time.monotonic()

    def stop(self) -> None:
        """End `run` soon."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def look(self) -> None:
        """Something has been added."""
        with self._changed:
            self._poked = True
            self._changed.notify_all()

    @property
    def used(self) -> int:
        """Octets in use, as far as is known, and rather too many."""
        return self._used + self._grown() - self._grown_before

    def sweep(self) -> None:
        """Look at everything once, remove what a crash has left, and what is too much. Returns at once where another
        process is at it."""
        with self._alone() as alone:
            while alone:
                grown_before = self._grown()
                used, candidates = self._survey()
                excess = self._excess(used)
                freed = self._remove(candidates, excess)
                self._used, self._grown_before = used - freed, grown_before
                if freed >= excess or not freed or self._stopping:
                    return

    # Innards

    def _wait(self) -> bool:
        """Until something was added here, or perhaps elsewhere; whether it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._poked, _LOOK)
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

    def _excess(self, used: int) -> int:
        """Octets that have to go; not above 0 where all is well."""
        excess = 0
        limit = self.limits.max_size
        if limit is not None and used > limit:
            excess = used - int(limit * (1 - _SLACK))
        try:
            status = os.statvfs(self._root)
        except OSError:
            return excess
        free = status.f_bavail * status.f_frsize
        if free < self.limits.min_free:
            excess = max(excess, int(self.limits.min_free * (1 + _SLACK)) - free)
        return excess

    def _survey(self) -> Tuple[int, List[_Candidate]]:
        """Octets in use, and the objects that were used least recently, the oldest first."""
        used = 0
        oldest = time.time() - _LEFT_AT_MOST
        heap: List[Tuple[float, str, int]] = []  # the youngest of the candidates on top: times are negated
        for entry in files_below(self._root):
            if self._stopping:
                break
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # gone meanwhile
            if entry.name.endswith(PART_SUFFIX) and _remove_leftover(entry.path, self._boot, oldest):
                prune(os.path.dirname(entry.path), self._root)
                continue
            octets = status.st_blocks * _BLOCK
            used += octets
            candidate = (-max(status.st_atime, status.st_mtime), entry.path, octets)
            if len(heap) < _CANDIDATES:
                heapq.heappush(heap, candidate)
            else:
                heapq.heappushpop(heap, candidate)
        oldest_first = sorted(heap, reverse=True)
        return used, [(-negated, path, octets) for negated, path, octets in oldest_first]

    def _remove(self, candidates: List[_Candidate], excess: int) -> int:
        """Remove candidates in their order until so many octets are gone; how many are."""
        freed = 0
        for last_used, path, octets in candidates:
            if freed >= excess:
                break
            try:
                if max(os.lstat(path).st_atime, last_used) > last_used:
                    continue  # used since
                if not is_reached_directly(self._root, path):
                    continue  # somebody has put a link in the place of a folder
                if not path.endswith(PART_SUFFIX):
                    os.unlink(path)
                elif not _remove_leftover(path, self._boot, float("inf")):
                    continue  # it is growing
            except OSError:
                continue
            freed += octets
            self._evicted()
            prune(os.path.dirname(path), self._root)
        if freed:
            _log.info("Removed %d MB of the least recently used objects", freed // 1_000_000)
        return freed


def _remove_leftover(path: str, boot: str, oldest: float) -> bool:
    """Remove a growing file that nobody is growing, unless one may yet go on with it; whether it is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if not try_lock(fd):
            return False
        if leftover_record(fd, boot) is not None and os.fstat(fd).st_mtime > oldest:
            return False
        # Whoever opened it meanwhile finds out, once he has the lock, that it has lost its name.
        if is_file(path, fd):
            os.unlink(path)
            _log.info("Removed what a crash has left: %s", shown(path))
        return True
    except OSError as error:
        _log.warning("Cannot remove %s: %s", shown(path), reason_of(error))
        return False
    finally:
        os.close(fd)  # and with it the lock
