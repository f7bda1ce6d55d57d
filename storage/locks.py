"""Signals between processes by locks and names of open files: who leads, whether it has readers, whose name it is."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import struct
from typing import Optional, Tuple

_READERS = 0  # the byte of a growing file that its readers lock
_UPDATE = 1 << 62  # the byte, beyond any object, that an update of the record locks


class LockWait(enum.Enum):
    """Whether to wait for a lock that another thread or process has."""

    SHORT = "for a few seconds"
    NONE = "not at all: the poller's thread asks"


def try_lock(fd: int) -> bool:
    """Take the exclusive lock of an open file, without waiting; whether this process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(fd: int) -> bool:
    """Whether a process holds the lock of an open file, as far as its file system tells."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    unlock(fd)
    return False


def unlock(fd: int) -> None:
    """Let others have the lock of an open file.

    A network file system may fail to. Closing the descriptor does it then, and until that nobody must wait in vain.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def name_of(path: str) -> Optional[Tuple[int, int]]:
    """The device and inode that `path` names; None where it names nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_file(path: str, fd: int) -> bool:
    """Whether `path` names the file that is open as `fd`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False


def show_interest(fd: int) -> None:
    """Tell the leader of a growing file, in any process, that it has a reader, until `fd` is closed."""
    with contextlib.suppress(OSError):  # without such locks, leaders assume readers
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, _READERS))


def is_of_interest(fd: int) -> bool:
    """Whether any process has shown interest in a growing file, or cannot do so."""
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, _READERS))
    except OSError:
        return True
    return bool(struct.unpack_from("h", found)[0] != fcntl.F_UNLCK)


def try_lock_record(fd: int) -> bool:
    """Lock the record of a file, without waiting, until `fd` is closed; whether that worked.

    `fd` is open for writing, and nobody else's. This lock says nothing of the file's bytes: its holder does not lead,
    and `is_locked` does not see it. Raises OSError where the file system has no such locks.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, _UPDATE))
    except (BlockingIOError, PermissionError):
        return False
    return True


def unlock_record(fd: int) -> None:
    """Let others have the lock of a record."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, _UPDATE))


def _flock(kind: int, start: int) -> bytes:
    """A struct flock (fcntl(2)) for one byte of a file."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, 1, 0)
