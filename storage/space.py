"""How much room the cache may take, and what is in it for objects that grow: rules over numbers, and the numbers.

* For objects whose length is known, room is made as their bytes arrive; for others, none is made: they have what is
  free, and a little beyond the limits. Neither may drive out what is here for the sake of promises.
* The numbers are in memory that all workers share. A worker that is started again takes over what the one before it
  has left: nothing stays reserved.
"""

from __future__ import annotations

import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Tuple

SLACK = 0.05  # of a limit, by which it is undercut, so that the next object does not exceed it again
FOLDER_SIZE = 4096  # bytes that a folder, or a file without content, takes as far as is known before it is looked at

# What may be used beyond a limit, as a part of it, until what is to go has gone.
_BEYOND_SIZE_KNOWN, _BEYOND_SIZE = 0.10, 0.05  # of max_size, and at least
_BEYOND_LEAST_KNOWN, _BEYOND_LEAST = 16 * 1024 * 1024, 4 * 1024 * 1024  # so many bytes
_BEYOND_FREE_KNOWN, _BEYOND_FREE = 0.25, 0.10  # of min_free
_SHARE_OF_A_WISH = 10  # a tenth of the cache goes at once for what could not be kept for want of room
_SHARE_OF_GROWTH = 2  # a half of it may be growing objects, if others have to go for them,
_SHARE_OF_OTHERS = 10  # unless there is but one of them, and a little besides
_FILES_SHARE, _FILES_AT_MOST = 20, 10_000  # so many inodes are to stay free: a twentieth, or this
_STEP_LEAST, _STEP_MOST = 256 * 1024, 4 * 1024 * 1024  # bytes between two looks of a growing object
_STEP_SHARE = 16  # of what is free: the nearer the limit, the more often it is looked at
_PLENTY = 1 << 60


@dataclass(frozen=True)
class Limits:
    """Bytes: as many as objects may take up (None: any number), and as many as are to stay free."""

    max_size: Optional[int] = None
    min_free: int = 0


@dataclass(frozen=True)
class Need:
    """What has to go: bytes and inodes; `unreachable` says why what is missing cannot be had by removing objects."""

    size: int = 0
    files: int = 0
    unreachable: str = ""

    def __bool__(self) -> bool:
        return self.size > 0 or self.files > 0


@dataclass(frozen=True)
class Situation:
    """How things stand, in bytes and inodes.

    `used` is what objects take that are here, None before anybody has looked; `known` and `unknown` are what growing
    ones have taken so far, by whether their length is known. `entries` are inodes that could be had back.
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
        """What objects could take in all; without limits, more than there is."""
        size = _PLENTY if self.limits.max_size is None else self.limits.max_size
        if not self.limits.min_free:
            return size
        taken = (self.used or 0) + self.known + self.unknown
        return min(size, max(0, taken + self.free - self.limits.min_free))

    def objection_to(self, length: Optional[int]) -> str:
        """Why an object of this length can never be kept, whatever goes for it; empty where it can."""
        if length is None:
            return ""
        if self.limits.max_size is not None and length > self.limits.max_size:
            return "it is larger than cache.max_size"
        if self.limits.min_free and self.used is not None and length > self.free + self.used - self.limits.min_free:
            return "it is larger than what can be free beside cache.min_free"
        return ""

    def objection_to_growth(self, known: bool, mine: int = 0, used_before: int = 0) -> str:
        """Why an object that has taken `mine` bytes cannot go on growing on the disk; empty where it can.

        `used_before` is what was used when it began: what fits beside that drives nothing out.
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

    def room_to_grow(self) -> int:
        """Bytes that can be taken before any limit is met."""
        room = self.free - self.limits.min_free
        if self.limits.max_size is not None:
            room = min(room, self.limits.max_size - (self.used or 0) - self.known - self.unknown)
        return max(0, room)

    def need(self, wish: int = 0) -> Need:
        """What has to go. `wish`: so much is to be free for one that could not be kept; at most a tenth is granted."""
        used, limits = self.used or 0, self.limits
        wish = min(wish, self.capacity // _SHARE_OF_A_WISH)
        size = 0
        if limits.max_size is not None and used + self.known + wish > limits.max_size:
            size = used + self.known - limits.max_size + max(wish, int(limits.max_size * SLACK))
        # What grows without a known length has to do with what is free: it will have gone, or is an object by then.
        missing = limits.min_free + max(wish, int(limits.min_free * SLACK)) - self.free - self.unknown
        unreachable = ""
        if self.free + self.unknown < limits.min_free + wish and limits.min_free:
            if missing > used:
                unreachable = "cache.min_free"
            else:
                size = max(size, missing)
        return Need(min(size, used), *self._files_needed(unreachable))

    def _files_needed(self, unreachable: str) -> Tuple[int, str]:
        least = min(self.files // _FILES_SHARE, _FILES_AT_MOST)
        if not self.files or self.files_free >= least:
            return 0, unreachable
        missing = 2 * least - self.files_free
        if missing > self.entries:
            return 0, unreachable or "inodes"
        return missing, unreachable


class Room:
    """The numbers for the cache below `root`, in memory that forked processes share: each writes its own row."""

    def __init__(self, root: Path, limits: Limits, rows: int = 1) -> None:
        self.root = str(root)
        self.limits = limits
        self._rows = rows
        self._values = memoryview(mmap.mmap(-1, (_ROWS_FROM + rows * _ROW) * _NUMBER)).cast("q")
        self._row = _ROWS_FROM
        self._lock = threading.Lock()  # guards this process's row, and its steps from one wish to the next
        self.on_need: Callable[[], None] = lambda: None  # is told where room is short

    def use(self, row: int) -> None:
        """Count in this row from now on. What a process that had it before has left growing are leftovers."""
        with self._lock:
            self._row = _ROWS_FROM + row * _ROW
            left = self._values[self._row + _KNOWN] + self._values[self._row + _UNKNOWN]
            self._values[self._row + _KNOWN] = self._values[self._row + _UNKNOWN] = 0
            self._values[self._row + _GROWN] += left

    def grow(self, size: int, entries: int = 1) -> None:
        """Objects, or their folders, have taken so many bytes and inodes more."""
        with self._lock:
            self._values[self._row + _GROWN] += size
            self._values[self._row + _GROWN_ENTRIES] += entries

    @property
    def grown(self) -> int:
        """What has ever been added, by all processes."""
        return self._sum(_GROWN)

    def note_used(self, used: int, grown_before: int, entries: int) -> None:
        """What was found in use by somebody who began to look when `grown` was so much; and in how many inodes."""
        self._values[_BASE], self._values[_SURVEYED] = used - grown_before, 1
        self._values[_ENTRIES] = entries - self._sum(_GROWN_ENTRIES)

    def note_freed(self, size: int, entries: int) -> None:
        """So much of that has gone."""
        self._values[_BASE] -= size
        self._values[_ENTRIES] -= entries

    def wish(self, size: int) -> None:
        """An object of so many bytes could not be kept for want of room."""
        with self._lock:
            self._values[_WISH] = max(self._values[_WISH], size)
        self.on_need()

    def take_wish(self) -> int:
        """The largest wish since the last time."""
        with self._lock:
            size, self._values[_WISH] = self._values[_WISH], 0
        return size

    @property
    def is_growing(self) -> bool:
        """Whether any object grows, in whatever process."""
        return self._sum(_KNOWN) + self._sum(_UNKNOWN) > 0

    def situation(self) -> Situation:
        """How things stand now."""
        used = self._values[_BASE] + self.grown if self._values[_SURVEYED] else None
        entries = max(0, self._values[_ENTRIES] + self._sum(_GROWN_ENTRIES))
        now = Situation(self.limits, used, self._sum(_KNOWN), self._sum(_UNKNOWN), entries=entries)
        try:
            disk = os.statvfs(self.root)
        except OSError:
            return now  # the directory is gone, and will be made again
        free, files, files_free = disk.f_bavail * disk.f_frsize, disk.f_files, disk.f_favail
        return Situation(now.limits, now.used, now.known, now.unknown, free, files, files_free, now.entries)

    def change(self, known: bool, size: int) -> None:
        """Growing objects have so many bytes more, or less."""
        with self._lock:
            self._values[self._row + (_KNOWN if known else _UNKNOWN)] += size

    def _sum(self, column: int) -> int:
        return sum(self._values[_ROWS_FROM + row * _ROW + column] for row in range(self._rows))


class Growth:
    """What one growing object takes, for as long as it grows; for its leader alone. `length` is None if unknown."""

    def __init__(self, room: Room, length: Optional[int]) -> None:
        self._room = room
        self._known = length is not None
        self._used_before = room.situation().used or 0
        self._size = 0
        self.next_look = _STEP_LEAST  # at this size

    def objection(self, size: int) -> str:
        """Note that it has taken so many bytes; why it cannot go on, or nothing."""
        self._note(size)
        now = self._room.situation()
        room = now.room_to_grow()
        self.next_look = size + min(max(room // _STEP_SHARE, _STEP_LEAST), _STEP_MOST)
        if not room:
            self._room.on_need()
        return now.objection_to_growth(self._known, size, self._used_before)

    def end(self, kept: int = 0) -> None:
        """It grows no more, and `kept` bytes of it stay; idempotent."""
        if kept:
            self._room.grow(kept)
        self._note(0)

    def _note(self, size: int) -> None:
        change, self._size = size - self._size, size
        self._room.change(self._known, change)


# Numbers in the shared memory: those of all, then the rows.
_NUMBER = 8  # bytes of one
_BASE, _ENTRIES, _SURVEYED, _WISH, _ROWS_FROM = range(5)
_GROWN, _GROWN_ENTRIES, _KNOWN, _UNKNOWN, _ROW = range(5)
