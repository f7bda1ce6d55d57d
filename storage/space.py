"""How much space the cache may take: rules over numbers, and the numbers.

* For an object of known length, objects are evicted as its bytes arrive. An object of unknown length evicts none: it
  has the free space, and a little beyond the limits. No stored object is evicted for bytes that are only announced.
* The numbers are in memory that all workers share. A restarted worker takes over the numbers of its predecessor, so
  that nothing stays reserved.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Tuple

SLACK = 0.05  # fraction of a limit: eviction goes this far below it, so that the next object does not exceed it again
FOLDER_SIZE = 4096  # assumed bytes of a folder or an empty file, until a sweep has measured it

# The excess over a limit that is allowed until eviction has caught up, as a fraction of it.
_BEYOND_SIZE_KNOWN, _BEYOND_SIZE = 0.10, 0.05  # of max_size, and at least
_BEYOND_LEAST_KNOWN, _BEYOND_LEAST = 16 * 1024 * 1024, 4 * 1024 * 1024  # these bytes
_BEYOND_FREE_KNOWN, _BEYOND_FREE = 0.25, 0.10  # of min_free
_SHARE_OF_A_WISH = 10  # for an object that did not fit, at most a tenth of the cache is evicted at once
_SHARE_OF_GROWTH = 2  # if others must be evicted, growing objects may take half of it,
_SHARE_OF_OTHERS = 10  # or more for one, if all others that grow take no more than a tenth
_FILES_SHARE, _MAX_FILES = 20, 10_000  # inodes that stay free: a twentieth, or at most this
SMALL_STEP, _STEP_MOST = 256 * 1024, 4 * 1024 * 1024  # bytes between two checks of a growing object
_STEP_SHARE = 16  # of the free space: near the limit, checks are more frequent
_PLENTY = 1 << 60
_RECENT = 0.05  # seconds that the numbers of the disk are good for a small object


@dataclass(frozen=True)
class Limits:
    """In bytes: the most that objects may take up (None: no limit), and the least that stays free."""

    max_size: Optional[int] = None
    min_free: int = 0


@dataclass(frozen=True)
class Need:
    """The bytes and inodes to evict; `unreachable` says why eviction cannot free enough."""

    size: int = 0
    files: int = 0
    unreachable: str = ""

    def __bool__(self) -> bool:
        return self.size > 0 or self.files > 0


@dataclass(frozen=True)
class Situation:
    """The current numbers, in bytes and inodes.

    `used`: the stored objects, None before the first sweep. `known`, `unknown`: growing objects so far, by whether
    their length is known. `entries`: the inodes that eviction could free.
    """

    limits: Limits
    used: Optional[int] = 0
    known: int = 0
    unknown: int = 0
    free: int = _PLENTY
    files: int = 0
    files_free: int = 0
    entries: int = 0

    @property
    def capacity(self) -> int:
        """The space for all objects in total; without limits, more than any disk has."""
        size = _PLENTY if self.limits.max_size is None else self.limits.max_size
        if not self.limits.min_free:
            return size
        taken = (self.used or 0) + self.known + self.unknown
        return min(size, max(0, taken + self.free - self.limits.min_free))

    def objection_to(self, length: Optional[int]) -> str:
        """Why an object of this length can never be kept, even after eviction; empty where it can."""
        if length is None:
            return ""
        if self.limits.max_size is not None and length > self.limits.max_size:
            return "it is larger than cache.max_size"
        if self.limits.min_free and self.used is not None and length > self.free + self.used - self.limits.min_free:
            return "it is larger than what can be free beside cache.min_free"
        return ""

    def objection_to_growth(self, known: bool, mine: int = 0, used_before: int = 0) -> str:
        """Why an object that has taken `mine` bytes cannot grow further on the disk; empty where it can.

        `used_before` is the use when it started: growth that fits beside that evicts nothing.
        """
        share = _BEYOND_FREE_KNOWN if known else _BEYOND_FREE
        if self.free < self.limits.min_free * (1 - share):
            return "less than cache.min_free is free"
        growing = self.known + self.unknown
        size = self.limits.max_size
        if size is not None:
            beyond = max(size * _BEYOND_SIZE, _BEYOND_LEAST)
            if known:
                beyond = max(size * _BEYOND_SIZE_KNOWN, _BEYOND_LEAST_KNOWN)
            if (self.used or 0) + growing > size + beyond:
                return "cache.max_size is reached"
        capacity = self.capacity
        crowded = growing > capacity // _SHARE_OF_GROWTH and growing - mine > capacity // _SHARE_OF_OTHERS
        if crowded and used_before + growing > capacity:
            return "too much is growing beside it"
        return ""

    def space_to_grow(self) -> int:
        """Bytes that can be taken before a limit is reached."""
        space = self.free - self.limits.min_free
        if self.limits.max_size is not None:
            space = min(space, self.limits.max_size - (self.used or 0) - self.known - self.unknown)
        return max(0, space)

    def need(self, wish: int = 0) -> Need:
        """What to evict. `wish`: bytes for an object that could not be kept; at most a tenth is granted."""
        used, limits = self.used or 0, self.limits
        wish = min(wish, self.capacity // _SHARE_OF_A_WISH)
        size = 0
        if limits.max_size is not None and used + self.known + wish > limits.max_size:
            size = used + self.known - limits.max_size + max(wish, int(limits.max_size * SLACK))
        # Growing objects of unknown length count as free space: by then they are removed, or are stored objects.
        missing = limits.min_free + max(wish, int(limits.min_free * SLACK)) - self.free - self.unknown
        unreachable = ""
        if self.free + self.unknown < limits.min_free + wish and limits.min_free:
            if missing > used:
                unreachable = "cache.min_free"
            else:
                size = max(size, missing)
        return Need(min(size, used), *self._files_needed(unreachable))

    def _files_needed(self, unreachable: str) -> Tuple[int, str]:
        least = min(self.files // _FILES_SHARE, _MAX_FILES)
        if not self.files or self.files_free >= least:
            return 0, unreachable
        missing = 2 * least - self.files_free
        if missing > self.entries:
            return 0, unreachable or "inodes"
        return missing, unreachable


class SpaceLimits:
    """The numbers of the cache below `root`, in memory that forked processes share; each writes its own row.

    `limits` is called for each decision: a reload may have changed them.
    """

    def __init__(
        self, root: Path, limits: Callable[[], Limits], rows: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.root = str(root)
        self._limits = limits
        self._values = memoryview(mmap.mmap(-1, (_ROWS_FROM + rows * _ROW) * _NUMBER)).cast("q")
        self._row = _ROWS_FROM
        self._clock = clock
        # Free bytes, all inodes, free inodes. Without a lock: what one thread reads, another may use.
        self._disk = (_PLENTY, 0, 0)
        self._disk_known_until = float("-inf")
        self._lock = threading.Lock()  # guards this process's row, and its changes of the wish
        self.on_need: Callable[[], None] = lambda: None  # called when space is short

    def use(self, row: int) -> None:
        """Count in this row from now on. Bytes that its former process left growing count as stored."""
        with self._lock:
            self._row = _ROWS_FROM + row * _ROW
            left = self._values[self._row + _KNOWN] + self._values[self._row + _UNKNOWN]
            self._values[self._row + _KNOWN] = self._values[self._row + _UNKNOWN] = 0
            self._values[self._row + _GROWN] += left

    def grow(self, size: int, entries: int = 1) -> None:
        """Add bytes and inodes that objects or their folders have taken."""
        with self._lock:
            self._values[self._row + _GROWN] += size
            self._values[self._row + _GROWN_ENTRIES] += entries

    @property
    def grown(self) -> int:
        """The bytes ever added, by all processes."""
        return self._sum(_GROWN)

    def note_used(self, used: int, grown_before: int, entries: int) -> None:
        """Set the bytes and inodes that a sweep has found in use; `grown_before` is `grown` at its start."""
        self._values[_BASE], self._values[_SURVEYED] = used - grown_before, 1
        self._values[_ENTRIES] = entries - self._sum(_GROWN_ENTRIES)

    def note_freed(self, size: int, entries: int) -> None:
        """Subtract evicted bytes and inodes."""
        self._values[_BASE] -= size
        self._values[_ENTRIES] -= entries

    def wish(self, size: int) -> None:
        """Record that an object of this size could not be kept for lack of space."""
        with self._lock:
            self._values[_WISH] = max(self._values[_WISH], size)
        self.on_need()

    def take_wish(self) -> int:
        """The largest wish since the last call."""
        with self._lock:
            size, self._values[_WISH] = self._values[_WISH], 0
        return size

    @property
    def is_growing(self) -> bool:
        """Whether an object grows in any process."""
        return self._sum(_KNOWN) + self._sum(_UNKNOWN) > 0

    def situation(self) -> Situation:
        """The current numbers."""
        self._disk = _disk_numbers(self.root)
        self._disk_known_until = self._clock() + _RECENT
        return self._situation()

    def recent_situation(self) -> Situation:
        """The current numbers of the cache, and those of its disk from the last 50 ms; for small objects."""
        return self._situation() if self._clock() < self._disk_known_until else self.situation()

    def _situation(self) -> Situation:
        used = self._values[_BASE] + self.grown if self._values[_SURVEYED] else None
        entries = max(0, self._values[_ENTRIES] + self._sum(_GROWN_ENTRIES))
        return Situation(self._limits(), used, self._sum(_KNOWN), self._sum(_UNKNOWN), *self._disk, entries)

    def change(self, known: bool, size: int) -> None:
        """Add to the bytes of growing objects, or subtract."""
        with self._lock:
            self._values[self._row + (_KNOWN if known else _UNKNOWN)] += size

    def _sum(self, column: int) -> int:
        return sum(self._values[_ROWS_FROM + column :: _ROW])


class Growth:
    """The space that one growing object takes while it grows; for its leader only. `length` is None if unknown.

    `used_before` is the use when it started.
    """

    def __init__(self, space: SpaceLimits, length: Optional[int], used_before: int) -> None:
        self._space = space
        self._known = length is not None
        self._used_before = used_before
        self._size = 0
        self.next_look = SMALL_STEP  # the size at which to check again

    def objection(self, size: int) -> str:
        """Set its size; why it cannot go on, or an empty string."""
        self._note(size)
        now = self._space.situation()
        space = now.space_to_grow()
        self.next_look = size + min(max(space // _STEP_SHARE, SMALL_STEP), _STEP_MOST)
        if not space:
            self._space.on_need()
        return now.objection_to_growth(self._known, size, self._used_before)

    def end(self, kept: int = 0) -> None:
        """End the growth; `kept` bytes of it stay. Idempotent."""
        if kept:
            self._space.grow(kept)
        self._note(0)

    def _note(self, size: int) -> None:
        change, self._size = size - self._size, size
        self._space.change(self._known, change)


def _disk_numbers(root: str) -> Tuple[int, int, int]:
    """Free bytes, all inodes, free inodes of a file system."""
    try:
        disk = os.statvfs(root)
    except OSError:
        return _PLENTY, 0, 0  # the directory is gone, and will be made again
    return disk.f_bavail * disk.f_frsize, disk.f_files, disk.f_favail


# Indices in the shared memory: the common numbers, then the rows.
_NUMBER = 8  # bytes of a number
_BASE, _ENTRIES, _SURVEYED, _WISH, _ROWS_FROM = range(5)
_GROWN, _GROWN_ENTRIES, _KNOWN, _UNKNOWN, _ROW = range(5)
