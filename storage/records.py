"""The record of a file, in the file's extended attribute; a file system without attributes keeps none.

`records_below` finds out once which of the two it is. What follows from that is in `AttributeRecords` and `NoRecords`,
and nobody else asks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Callable, Iterator, Optional

from monitoring.details import Detail
from storage.durable_mark import durably
from storage.locks import LockWait, try_lock_record, unlock_record
from storage.own_files import GROWING_SUFFIX
from storage.record import Digest, Record, RecordState, Unstorable

ATTRIBUTE = "user.dduct"
_LOCK_PAUSE = 0.001  # seconds between two attempts to get the lock of updates
_LOCK_ATTEMPTS = 5000  # an update takes microseconds, so its process was stopped, or the disk hangs


class Records(ABC):
    """The records of all files below a directory."""

    shortcoming: Optional[str] = None  # of the file system, for the log

    @abstractmethod
    def write(self, fd: int, record: Record) -> None:
        """Set the record of an open file, if it can have one. Raises Unstorable."""

    @abstractmethod
    def update(
        self, fd: int, known: Record, change: Callable[[Record], Record], wait: LockWait = LockWait.SHORT
    ) -> bool:
        """Change the record of a published object, if it can have one; whether that is so. Raises Unstorable.

        Of two updates at once, in any processes, neither undoes the other. `known` is changed where the object has no
        readable record.
        """

    @abstractmethod
    def note_hash(self, fd: int, sha256: str) -> None:
        """Record the hash of a published object that waits for one; a no-op for others. Raises Unstorable."""

    @abstractmethod
    def note_synced(self, fd: int) -> None:
        """Record that a published file has reached the disk, if that makes it durable. Raises Unstorable.

        `fd` is open for writing, nobody else's, and closed soon.
        """

    @abstractmethod
    def shares(self, digest: Digest) -> bool:
        """Whether several URLs can share the object of a digest: each has an alias, and that is only a record."""

    @abstractmethod
    def require(self, need: str, purpose: str) -> None:
        """Raise Unstorable where there are no records: `need` has to be recorded for this `purpose`."""


class NoRecords(Records):
    """Of a file system without extended attributes: objects have their bytes and their name, and no more."""

    shortcoming = (
        "without user extended attributes: what needs authorisation is not kept, and nothing is shared between hosts"
    )

    def write(self, fd: int, record: Record) -> None:
        """Write nothing. Raises Unstorable for the same records as elsewhere."""
        record.encode()

    def update(
        self, fd: int, known: Record, change: Callable[[Record], Record], wait: LockWait = LockWait.SHORT
    ) -> bool:
        """Write nothing."""
        return False

    def note_hash(self, fd: int, sha256: str) -> None:
        """Do nothing: no object waits for a hash."""

    def note_synced(self, fd: int) -> None:
        """Do nothing: nothing is known of an object."""

    def shares(self, digest: Digest) -> bool:
        """Never: there are no aliases."""
        return False

    def require(self, need: str, purpose: str) -> None:
        """See Records.require."""
        raise Unstorable(f"{need}, and the file system keeps no metadata {purpose}", Detail.NO_METADATA)


class AttributeRecords(Records):
    """In the attribute `user.dduct` of each file.

    An update locks its own file only: one lock for all objects makes every publishing thread wait for every other.
    Where the file system has no locks, processes may undo each other's updates, and the threads of one do not.
    """

    def __init__(self, pause: Callable[[float], None] = time.sleep) -> None:
        self._pause = pause
        self._updating = threading.Lock()  # guards the updates of this process where the file system has no locks

    def write(self, fd: int, record: Record) -> None:
        """See Records.write."""
        _set(fd, record.encode())

    def update(
        self, fd: int, known: Record, change: Callable[[Record], Record], wait: LockWait = LockWait.SHORT
    ) -> bool:
        """See Records.update."""
        with self._alone(fd, wait):
            self.write(fd, change(readable_record(fd) or known))
        return True

    def shares(self, digest: Digest) -> bool:
        """Whether the digest is strong enough."""
        return digest.shared

    def require(self, need: str, purpose: str) -> None:
        """Do nothing."""

    def note_hash(self, fd: int, sha256: str) -> None:
        """See Records.note_hash."""
        with self._alone(fd):
            try:
                record = read_record(fd)
            except ValueError as error:
                raise Unstorable(str(error)) from error
            if record is not None and record.unhashed:
                self.write(fd, record.enter(RecordState.VERIFIED, sha256))

    def note_synced(self, fd: int) -> None:
        """See Records.note_synced."""
        with self._locked(fd):
            marked = durably(_text(fd))
            if marked is not None:
                _set(fd, marked)
                return
            record = readable_record(fd)
            if record is not None and record.synced() is not record:
                self.write(fd, record.synced())

    @contextlib.contextmanager
    def _alone(self, fd: int, wait: LockWait = LockWait.SHORT) -> Iterator[None]:
        """Keep all others from updates of this file, also those of other processes. Raises Unstorable.

        An update that cannot be sure to be alone fails: it could undo that an object is restricted.
        """
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
            # The leader's own. On NFS, its lock of the whole file would keep any other descriptor from this lock.
            with self._locked(fd, wait):
                try:
                    yield
                finally:
                    unlock_record(fd)
            return
        try:
            # Opened again: a lock needs a descriptor for writing, and threads may share `fd`, and with it its locks.
            own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Unstorable.of(error) from error
        try:
            with self._locked(own, wait):
                yield
        finally:
            os.close(own)  # this releases the lock, too

    @contextlib.contextmanager
    def _locked(self, own: int, wait: LockWait = LockWait.SHORT) -> Iterator[None]:
        """Get the lock of a file that nobody else has open as `own`; its caller releases it. Raises Unstorable."""
        attempts = _LOCK_ATTEMPTS if wait is LockWait.SHORT else 1
        if self._lock(own, attempts):
            yield
            return
        if not self._updating.acquire(timeout=_LOCK_PAUSE * attempts):
            raise _busy()
        try:
            yield
        finally:
            self._updating.release()

    def _lock(self, fd: int, attempts: int) -> bool:
        """Lock a file against updates; False where the file system has no locks. Raises Unstorable."""
        for attempt in range(attempts):
            if attempt:
                self._pause(_LOCK_PAUSE)
            try:
                if try_lock_record(fd):
                    return True
            except OSError:
                return False
        raise _busy()


def records_below(root: Path) -> Records:
    """The records of a directory: its file system decides."""
    return AttributeRecords() if _has_attributes(root) else NoRecords()


def read_record(fd: int) -> Optional[Record]:
    """The record of an open file; None where it has none. Raises ValueError where it is damaged."""
    try:
        data = os.getxattr(fd, ATTRIBUTE)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP):
            return None
        raise ValueError(f"unreadable metadata: {error}") from error
    return Record.decode(data)


def readable_record(fd: int) -> Optional[Record]:
    """The record of an open file; None where it has none, or a damaged one."""
    try:
        return read_record(fd)
    except ValueError:
        return None


def is_blank(fd: int) -> bool:
    """Whether an open file is new, with neither bytes nor a record."""
    try:
        return not os.fstat(fd).st_size and read_record(fd) is None
    except ValueError:
        return False


def partial_download_record(fd: int, boot: str) -> Optional[Record]:
    """The record of a growing file without a leader, if it was started in this boot and can be resumed."""
    record = readable_record(fd)
    if record is None or record.boot != boot or not 0 < os.fstat(fd).st_size <= record.length:
        return None
    return record if record.length > 1 else None


def boot_id() -> str:
    """An identifier of this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex  # then no earlier object is trusted before it is durable


def _text(fd: int) -> bytes:
    """The attribute of an open file; empty where it has none, or the disk fails."""
    try:
        return os.getxattr(fd, ATTRIBUTE)
    except OSError:
        return b""


def _set(fd: int, text: bytes) -> None:
    """Set the attribute of an open file. Raises Unstorable."""
    try:
        os.setxattr(fd, ATTRIBUTE, text)
    except OSError as error:
        raise Unstorable.of(error) from error


def _busy() -> Unstorable:
    return Unstorable("its record is locked by another process", Detail.BUSY)


def _has_attributes(root: Path) -> bool:
    probe = root / f".probe-{os.getpid()}{GROWING_SUFFIX}"
    probe.touch()
    try:
        os.setxattr(probe, ATTRIBUTE, b"{}")
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM):
            raise
        return False
    finally:
        probe.unlink()
    return True
