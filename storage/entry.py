"""A published object, open for reading."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Callable, Iterator, Optional, Tuple

from storage.locks import LockWait, is_file
from storage.record import Metadata, Record
from storage.records import Records
from storage.tree import Tree

_READ_ATTEMPTS = 3
_AT_ONCE = 1024 * 1024  # bytes of a large read

# Differs between a published object and its successor, and before and after a validation.
Version = Tuple[int, int, float]
# The kernel changes it with every change of a file or its attribute.
FileIdentity = Tuple[int, int, int, int]


class Lost(Exception):
    """These bytes are not available here any more, but may be elsewhere: claim again."""


class Entry:
    """One published object, open for reading; its caller closes it. Replacement and eviction do not affect it.

    Unless it is `trusted`, its bytes must be verified before any reader has all of them.
    """

    def __init__(
        self,
        tree: Tree,
        records: Records,
        place: str,
        fd: int,
        record: Record,
        trusted: bool,
        identity: FileIdentity = (0, 0, 0, 0),
    ) -> None:
        self._tree = tree
        self._records = records
        self.place = place
        self.identity = identity  # taken before the record was read
        self._fd = fd
        self.record = record
        self.trusted = trusted
        self.length: Optional[int] = record.length

    def ready(self, offset: int, whole: bool) -> bool:
        """A stored object is always ready."""
        return True

    def read_at(self, view: memoryview, offset: int) -> int:
        """Read bytes from `offset` on; 0 at the end. If the disk cannot, unpublishes the object and raises Lost."""
        try:
            return read_bytes(self._fd, view, offset)
        except Lost:
            self.discard()
            raise

    def fileno(self) -> int:
        """The descriptor; its offset is never used."""
        return self._fd

    @property
    def version(self) -> Version:
        """Equal for two entries only if nothing was published or validated between them."""
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino, self.record.metadata.fetched_at

    def refresh(self, metadata: Metadata, wait: LockWait = LockWait.SHORT) -> bool:
        """Replace its metadata, if it has any; whether that is so. Does not verify its bytes. Raises Unstorable."""
        return self._records.update(self._fd, self.record, lambda record: replace(record, metadata=metadata), wait)

    def amend(self, metadata: Metadata, amended: Metadata) -> None:
        """Replace `metadata` by `amended`, unless it was replaced meanwhile. Raises Unstorable."""
        self._records.update(
            self._fd,
            self.record,
            lambda record: replace(record, metadata=amended) if record.metadata == metadata else record,
        )

    def mark_verified(self, sha256: str = "") -> None:
        """Record that its bytes are right, with this hash, and sync them to the disk. Raises OSError, Unstorable.

        Where another process's update undoes the hash (see `AttributeRecords`), the object is not durable, and its next
        reader hashes it again.
        """
        if sha256 and self.record.unhashed:
            self._records.note_hash(self._fd, sha256)
        os.fsync(self._fd)
        self._records.update(self._fd, self.record, Record.synced)

    def discard(self) -> None:
        """Unpublish it, if it is still the published object."""
        if is_file(self.place, self._fd):
            self._tree.remove(self.place)

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def identity_of(status: os.stat_result) -> FileIdentity:
    """Equal for two fstat results only if neither the file's bytes nor its attribute changed in between."""
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


def read_bytes(fd: int, view: memoryview, offset: int) -> int:
    """Read an open file from `offset` on. Raises Lost where the disk fails again and again."""
    reason: object = None
    for _ in range(_READ_ATTEMPTS):
        try:
            return os.preadv(fd, [view], offset)
        except OSError as error:
            reason = error.strerror or error
    raise Lost(f"the disk does not give it: {reason}")


def pieces(read_at: Callable[[memoryview, int], int], start: int, end: int) -> Iterator[memoryview]:
    """The bytes from `start` to `end`, as large reads give them; they end early where the file does.

    A piece is good until the next one. Raises what `read_at` raises.
    """
    view = memoryview(bytearray(max(0, min(_AT_ONCE, end - start))))
    while start < end:
        count = read_at(view[: end - start], start)
        if not count:
            return
        yield view[:count]
        start += count
