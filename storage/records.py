"""The record of a file, in the file's extended attribute; a file system without attributes keeps none."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from pathlib import Path
from typing import Callable, Optional

from storage.own_files import GROWING_SUFFIX
from storage.record import Record, RecordState, Unstorable

ATTRIBUTE = "user.dduct"


class Records:
    """The records of all files below a directory. `kept`: its file system has attributes."""

    def __init__(self, root: Path) -> None:
        self.kept = _has_attributes(root)
        # Guards each update of a record; between processes, a lost update costs a validation or a hash.
        self._updating = threading.Lock()

    def write(self, fd: int, record: Record) -> None:
        """Set the record of an open file; raises Unstorable. A no-op where the file system has no attributes."""
        data = record.encode()
        if not self.kept:
            return
        try:
            os.setxattr(fd, ATTRIBUTE, data)
        except OSError as error:
            raise Unstorable.of(error) from error

    def update(self, fd: int, known: Record, change: Callable[[Record], Record]) -> None:
        """Change the record of a published object; of two updates at once, neither undoes the other.

        `known` is changed where the object has no readable record. Raises Unstorable.
        """
        with self._updating:
            try:
                record = read_record(fd) or known
            except ValueError:
                record = known
            self.write(fd, change(record))

    def note_hash(self, fd: int, sha256: str) -> None:
        """Record the hash of a published object that waits for one; a no-op for others. Raises Unstorable."""
        with self._updating:
            try:
                record = read_record(fd)
            except ValueError as error:
                raise Unstorable(str(error)) from error
            if record is not None and record.unhashed:
                self.write(fd, record.enter(RecordState.VERIFIED, sha256))


def read_record(fd: int) -> Optional[Record]:
    """The record of an open file; None where it has none. Raises ValueError where it is damaged."""
    try:
        data = os.getxattr(fd, ATTRIBUTE)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP):
            return None
        raise ValueError(f"unreadable metadata: {error}") from error
    return Record.decode(data)


def is_blank(fd: int) -> bool:
    """Whether an open file is new, with neither bytes nor a record."""
    try:
        return not os.fstat(fd).st_size and read_record(fd) is None
    except ValueError:
        return False


def partial_download_record(fd: int, boot: str) -> Optional[Record]:
    """The record of a growing file without a leader, if it was started in this boot and can be resumed."""
    try:
        record = read_record(fd)
    except ValueError:
        return None
    if record is None or record.boot != boot or not 0 < os.fstat(fd).st_size <= record.length:
        return None
    return record if record.length > 1 else None


def boot_id() -> str:
    """An identifier of this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex  # then no earlier object is trusted before it is durable


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
