"""Short answers in memory that all worker processes share, and marks by which an answer ends before its time.

Rules of this module:

* It is bounded and has no lock. A slot may be written by two processes at once, or while it is read: its checksum
  shows whether all of it is of one answer. A lost answer costs one query.
* A mark is never lost: a slot of marks is for many names, and a new mark ends the answers of all of them.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
import time
from typing import Hashable, Optional, Tuple

Mark = Tuple[int, int]

_WAYS = 8  # a key has one set of slots, and any of those in it
# Sets, and bytes of a slot: most answers are short. Pages that hold nothing are not allocated.
_SHORT, _LONG = (512, 4 * 1024), (32, 20 * 1024)
_MARKS = 1 << 18  # a power of two
_HEADER = struct.Struct("<16sQdI")  # checksum; hash of the key, 0 for none; the end of its time; length
_MASK = (1 << 64) - 1
_EPOCH, _LAST_END, _FIRST_MARK = 0, 1, 2  # positions among the numbers

LONGEST = _LONG[1] - _HEADER.size  # bytes of an answer


class SharedAnswers:
    """Answers by key, as bytes. Processes that are forked after its creation share it, and the secret of `hash`.

    Clients do not know that secret, so none can choose whose slots it takes.
    """

    def __init__(self, short: int = _SHORT[0], long: int = _LONG[0], marks: int = _MARKS) -> None:
        self._tables = (_Slots(short, _SHORT[1]), _Slots(long, _LONG[1]))
        self._mask = marks - 1
        self._numbers = memoryview(mmap.mmap(-1, (_FIRST_MARK + marks) * 8)).cast("Q")

    def mark(self, name: str) -> Mark:
        """What changes when `forget` or `clear` is called."""
        return self._numbers[_EPOCH], self._numbers[self._place(name)]

    def forget(self, name: str) -> None:
        """Change the mark of a name."""
        self._numbers[self._place(name)] = time.monotonic_ns()

    def clear(self) -> None:
        """Change all marks."""
        self._numbers[_EPOCH] = time.monotonic_ns()

    def any(self, now: float) -> bool:
        """Whether there may be an answer whose time has not ended; `now` in seconds since the epoch."""
        return now < self._numbers[_LAST_END]

    def get(self, key: Hashable) -> Optional[bytes]:
        """The answer that was put last for a key; None where there is none, or no whole one."""
        mark = _mark_of(key)
        for table in self._tables:
            value = table.get(mark)
            if value is not None:
                return value
        return None

    def put(self, key: Hashable, value: bytes, until: float) -> None:
        """Keep an answer of at most `LONGEST` bytes, in place of the one in its set whose time ends first."""
        mark, is_kept = _mark_of(key), False
        for table in self._tables:
            if is_kept or len(value) > table.longest:
                table.drop(mark)
            else:
                table.put(mark, value, until)
                is_kept = True
        self._numbers[_LAST_END] = max(self._numbers[_LAST_END], math.ceil(until))

    def _place(self, name: str) -> int:
        return _FIRST_MARK + (hash(name) & self._mask)


class _Slots:
    """Slots of one size, in `sets` of `_WAYS`."""

    def __init__(self, sets: int, size: int) -> None:
        self._sets = sets
        self._size = size
        self._memory = memoryview(mmap.mmap(-1, sets * _WAYS * size))
        self.longest = size - _HEADER.size  # bytes of a value

    def get(self, mark: int) -> Optional[bytes]:
        """The value of a key with this hash, if it is whole."""
        for start in self._starts(mark):
            checksum, holds, until, length = _HEADER.unpack_from(self._memory, start)
            if holds == mark and length <= self.longest:
                value = bytes(self._memory[start + _HEADER.size : start + _HEADER.size + length])
                if checksum == _checksum(mark, until, value):
                    return value
        return None

    def put(self, mark: int, value: bytes, until: float) -> None:
        """Write a value over the one of the same key, or the one whose time ends first."""
        headers = [(start, _HEADER.unpack_from(self._memory, start)) for start in self._starts(mark)]
        same = [start for start, header in headers if header[1] == mark]
        start = same[0] if same else min(headers, key=lambda one: one[1][2])[0]
        self._memory[start + _HEADER.size : start + _HEADER.size + len(value)] = value
        _HEADER.pack_into(self._memory, start, _checksum(mark, until, value), mark, until, len(value))

    def drop(self, mark: int) -> None:
        """Empty the slot of a key."""
        for start in self._starts(mark):
            if _HEADER.unpack_from(self._memory, start)[1] == mark:
                _HEADER.pack_into(self._memory, start, b"", 0, 0.0, 0)

    def _starts(self, mark: int) -> range:
        first = mark % self._sets * _WAYS * self._size
        return range(first, first + _WAYS * self._size, self._size)


def _mark_of(key: Hashable) -> int:
    return hash(key) & _MASK or 1


def _checksum(mark: int, until: float, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16, salt=struct.pack("<Qd", mark, until)).digest()
