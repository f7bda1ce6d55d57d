"""What processes tell each other by the locks and names of open files: who leads, who reads along, whose name it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct


def try_lock(fd: int) -> bool:
    """Take the exclusive lock of an open file, without waiting; whether it is ours."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(fd: int) -> bool:
    """Whether somebody has the lock of an open file, as far as its file system tells."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def is_file(path: str, fd: int) -> bool:
    """Whether `path` names the very file that is open as `fd`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False


def show_interest(fd: int) -> None:
    """Let the leader of a growing file, in whatever process, know that somebody reads it, until `fd` is closed."""
    with contextlib.suppress(OSError):  # where there are no such locks, leaders take it for granted
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK))


def is_of_interest(fd: int) -> bool:
    """Whether a process has shown interest in a growing file, or cannot do so."""
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK))
    except OSError:
        return True
    return bool(struct.unpack_from("h", found)[0] != fcntl.F_UNLCK)


def _flock(kind: int) -> bytes:
    """A struct flock (fcntl(2)) for the first octet of a file."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 1, 0)
