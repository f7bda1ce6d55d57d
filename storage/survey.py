"""A survey of the cache: every file is visited once. It finds the space in use and the least recently used objects,
and removes what a crash has left on its way."""

from __future__ import annotations

import enum
import heapq
import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from typing import Callable, Deque, List, Optional, Tuple

from monitoring.redaction import reason_of, shown
from storage.locks import is_file, try_lock
from storage.own_files import GROWING_SUFFIX, own_entries, prune, size_on_disk
from storage.records import partial_download_record
from storage.space import SpaceLimits

_log = logging.getLogger("dduct.evict")

_CANDIDATES = 10_000  # objects that one survey lists as the oldest; a bound on memory
MAX_LEFT = 86400.0  # seconds that a partial download is kept for a later request


@dataclass(frozen=True)
class Candidate:
    """An object as a survey has found it: the time of its last use, and the bytes that it takes on the disk."""

    last_used: float
    path: str
    size: int


class Left(enum.Enum):
    """The state of a growing file after a check."""

    REMOVED = "nobody wrote it, and it cannot be resumed"
    KEPT = "nobody writes it, but it can be resumed"
    GROWING = "it is being written"


@dataclass(frozen=True)
class Survey:
    """What one visit of all files has found. The evictor takes from `candidates` what it removes."""

    began_at: float  # monotonic
    grown_before: int  # `SpaceLimits.grown` at its start
    candidates: Deque[Candidate]  # the oldest objects, the oldest first


def no_survey() -> Survey:
    """The survey before the first one: it has found nothing, and is as old as can be."""
    return Survey(float("-inf"), 0, deque())


def survey(space: SpaceLimits, boot: str, is_stopping: Callable[[], bool]) -> Optional[Survey]:
    """Visit all files and tell `space` what they take; None where it was stopped."""
    began_at, grown_before = time.monotonic(), space.grown
    used = entries = 0
    oldest = time.time() - MAX_LEFT
    heap: List[Tuple[float, str, int]] = []  # negated times: the youngest candidate is on top
    for entry in own_entries(space.root):
        if is_stopping():
            return None
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            continue  # gone meanwhile
        size = size_on_disk(status)
        if entry.is_dir(follow_symlinks=False):
            used, entries = used + size, entries + 1
            continue
        if entry.name.endswith(GROWING_SUFFIX):
            left = look_at_partial_download(entry.path, boot, oldest)
            if left is Left.REMOVED:
                prune(os.path.dirname(entry.path), space.root)
            if left is not Left.KEPT:
                continue
        used, entries = used + size, entries + 1
        candidate = (-max(status.st_atime, status.st_mtime), entry.path, size)
        if len(heap) < _CANDIDATES:
            heapq.heappush(heap, candidate)
        else:
            heapq.heappushpop(heap, candidate)
    space.note_used(used, grown_before, entries)
    candidates = deque(Candidate(-negated, path, size) for negated, path, size in sorted(heap, reverse=True))
    return Survey(began_at, grown_before, candidates)


def look_at_partial_download(path: str, boot: str, oldest: float) -> Left:
    """Remove a growing file without a leader, unless it can still be resumed."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return Left.KEPT
    try:
        if not try_lock(fd):
            return Left.GROWING
        if partial_download_record(fd, boot) is not None and os.fstat(fd).st_mtime > oldest:
            return Left.KEPT
        # A process that has opened it meanwhile sees, once it has the lock, that the file has lost its name.
        if is_file(path, fd):
            os.unlink(path)
            _log.info("Removed the remains of a crash: %s", shown(path))
        return Left.REMOVED
    except OSError as error:
        _log.warning("Cannot remove %s: %s", shown(path), reason_of(error))
        return Left.KEPT
    finally:
        os.close(fd)  # this releases the lock, too
