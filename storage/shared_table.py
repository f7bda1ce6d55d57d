"""Facts that all worker processes share, each until a time of its own: a table in memory, without a lock.

It is bounded: a new fact takes the place of the one in its bucket that ends first. Processes write at once, so a
reader checks what it finds: half of one fact and half of another are no fact. A lost one costs a question to an origin.
"""

from __future__ import annotations

import hashlib
import mmap
import secrets
import struct
import zlib
from typing import Iterator, NamedTuple, Optional, Tuple

_SLOTS = 1 << 16  # a power of two
_BUCKET = 4  # slots that a key may be in
_ENTRY = struct.Struct("<16sdQ")  # mark of the key, end, value
_CHECK = struct.Struct("<I")
_SIZE = _ENTRY.size + 2 * _CHECK.size  # a multiple of eight
_NOTHING = bytes(_SIZE)
_MAX_NAME = 255
_NUMBER = struct.Struct("<B255sdQ")
_NUMBER_SIZE = _NUMBER.size + _CHECK.size


class Fact(NamedTuple):
    """What is noted for a key: `until` when it holds, on the caller's clock, and a number below 2^64."""

    until: float
    value: int


class SharedTable:
    """Facts by key. Processes that are forked after its creation share it.

    A key is stored as a hash with a secret of this process and its children: it may be a password.
    """

    def __init__(self, slots: int = _SLOTS) -> None:
        self._buckets = slots // _BUCKET
        self._memory = memoryview(mmap.mmap(-1, slots * _SIZE))
        self._secret = secrets.token_bytes(32)

    def get(self, key: bytes) -> Optional[Fact]:
        """The fact of a key, whether or not its time is over."""
        mark = self._mark(key)
        for place in self._places(mark):
            entry = bytes(self._memory[place : place + _SIZE])
            if entry.startswith(mark):
                if _check(entry) != entry[_ENTRY.size : _ENTRY.size + _CHECK.size]:
                    return None
                _, until, value = _ENTRY.unpack_from(entry)
                return Fact(until, value)
        return None

    def put(self, key: bytes, until: float, value: int = 0) -> None:
        """Note a fact, in place of an earlier one of this key."""
        mark = self._mark(key)
        ends = {}
        for place in self._places(mark):
            found, end, _ = _ENTRY.unpack_from(self._memory, place)
            if found == mark:
                break
            ends[place] = end
        else:
            place = min(ends, key=lambda one: ends[one])
        entry = _ENTRY.pack(mark, until, value)
        self._memory[place : place + _SIZE] = (entry + _check(entry)).ljust(_SIZE, b"\0")

    def remove(self, key: bytes) -> bool:
        """Forget the fact of a key. Returns whether there was one."""
        mark = self._mark(key)
        for place in self._places(mark):
            if self._memory[place : place + len(mark)] == mark:
                self._memory[place : place + _SIZE] = _NOTHING
                return True
        return False

    def _mark(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._secret, digest_size=16).digest()

    def _places(self, mark: bytes) -> range:
        first = int.from_bytes(mark[:8], "little") % self._buckets * _BUCKET * _SIZE
        return range(first, first + _BUCKET * _SIZE, _SIZE)


class SharedNumbers:
    """A few numbers by name, which processes that are forked after its creation share, and which can be listed.

    Where all slots are taken, a new name takes that of the number that ends first.
    """

    def __init__(self, slots: int = 128) -> None:
        self._slots = slots
        self._memory = memoryview(mmap.mmap(-1, slots * _NUMBER_SIZE))

    def set(self, name: str, value: int, until: float) -> None:
        """Note a number; one with a name that is too long is not kept."""
        mark = name.encode()
        if len(mark) > _MAX_NAME:
            return
        ends = {}
        for place, found, end, _ in self._entries():
            ends[place] = end
            if found == mark:
                break
        else:
            place = min(ends, key=lambda one: ends[one])
        entry = _NUMBER.pack(len(mark), mark, until, value)
        self._memory[place : place + _NUMBER_SIZE] = entry + _CHECK.pack(zlib.crc32(entry))

    def get(self, name: str, now: float) -> Optional[int]:
        """The number of this name; None where it has ended."""
        return dict(self.items(now)).get(name)

    def items(self, now: float) -> Iterator[Tuple[str, int]]:
        """All names with their numbers that have not ended."""
        for _, mark, until, value in self._entries():
            if mark and until > now:
                yield mark.decode(), value

    def _entries(self) -> Iterator[Tuple[int, bytes, float, int]]:
        for place in range(0, self._slots * _NUMBER_SIZE, _NUMBER_SIZE):
            entry = bytes(self._memory[place : place + _NUMBER_SIZE])
            length, mark, until, value = _NUMBER.unpack_from(entry)
            whole = zlib.crc32(entry[: _NUMBER.size]) == _CHECK.unpack_from(entry, _NUMBER.size)[0]
            yield (place, mark[:length], until, value) if length and whole else (place, b"", 0.0, 0)


def _check(entry: bytes) -> bytes:
    return _CHECK.pack(zlib.crc32(entry[: _ENTRY.size]))
