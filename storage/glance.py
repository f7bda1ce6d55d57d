"""A small stored object, read whole by the poller's thread in five system calls: open, fstat, getxattr, read, close.

It sees only what is plain: a file at its own path whose record has a summary, whose bytes are verified and in the page
cache, and whose access time needs no update. `Store` sees all others, and judges these in the same way.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple, Optional, Tuple

from storage.entry import FileIdentity, identity_of
from storage.records import ATTRIBUTE
from storage.summary import Summary, summary_of

ATIME_GRAIN = 3600.0  # seconds between two recorded uses of an object, under any mount options
_FLAGS = os.O_RDONLY | os.O_CLOEXEC
_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)
_NOT_KNOWN = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # a file system that cannot tell whether a read would wait


class Glance(NamedTuple):
    """What was seen: the object's bytes, the summary that says how this URL serves them, and the files, the first with
    the bytes."""

    summary: Summary
    body: bytearray
    files: Tuple[Tuple[str, os.stat_result], ...]

    @property
    def identities(self) -> Tuple[Tuple[str, FileIdentity], ...]:
        """The identities of the files."""
        return tuple((place, identity_of(status)) for place, status in self.files)


def glance(place: str, alias: Optional[str], digest: str, boot: str, now: float, most: int) -> Optional[Glance]:
    """An object of at most `most` bytes, with this URL's `alias` if it is stored by its `digest`; None where it takes
    more than a glance. `boot` is this boot, `now` in seconds since the epoch."""
    seen = _look(place, boot, now, most)
    if seen is None or seen.summary.alias:
        return None
    if alias is None:
        return seen
    named = _look(alias, boot, now, 0)
    if named is None or named.summary.alias != digest:
        return None
    return Glance(named.summary, seen.body, seen.files + named.files)


def _look(place: str, boot: str, now: float, most: int) -> Optional[Glance]:
    try:
        fd = os.open(place, _FLAGS)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        size = status.st_size
        if size > most or not stat.S_ISREG(status.st_mode) or now - status.st_atime > ATIME_GRAIN:
            return None
        summary = summary_of(os.getxattr(fd, ATTRIBUTE))
        if summary is None or summary.length != size:
            return None
        if not (summary.durable or summary.alias or summary.boot == boot):
            return None  # a power cut may have damaged it
        body = read_without_waiting(fd, size) if size else bytearray()
    except OSError:
        return None
    finally:
        os.close(fd)
    return None if body is None else Glance(summary, body, ((place, status),))


def read_without_waiting(fd: int, length: int, offset: int = 0) -> Optional[bytearray]:
    """The bytes of a file that are in the page cache; None where they are not, and where the disk fails."""
    body = bytearray(length)
    try:
        count = os.preadv(fd, [body], offset, _NO_WAIT)
    except OSError as error:
        if error.errno not in _NOT_KNOWN:
            return None
        try:
            count = os.preadv(fd, [body], offset)
        except OSError:
            return None
    return body if count == length else None
