"""Sending bytes that are stored or still arriving: one send loop for hits, leaders and followers, whole or in parts."""

from __future__ import annotations

import errno
from typing import Callable, Iterable, List, Optional, Protocol

from monitoring.details import Side
from net.body import BUFFER_SIZE, MODEST_SIZE, borrowed_buffer, new_buffer
from net.response import Reply
from protocol.headers import Field
from protocol.selection import Part, Selection
from storage.entry import Entry, Lost
from transfers.recheck import VerifyingReader
from transfers.states import FillFailed

_PROVEN = 8 * 1024 * 1024  # bytes, more than sockets hold; after so many a reader gets a large buffer
_FILE_AT_ONCE = 8 * 1024 * 1024
_MAX_LOST = 4  # times that one response may lose its source
# RFC 9110 §15.4.5: the stored fields that a 304 repeats.
_IN_NOT_MODIFIED = frozenset(
    [b"cache-control", b"content-location", b"date", b"etag", b"expires", b"last-modified", b"vary"]
)


class Source(Protocol):
    """Bytes by offset: an entry, or a reader on a fill.

    `ready` is called first, with the offset and whether the whole is wanted. Returns whether bytes are there already.
    """

    @property
    def length(self) -> Optional[int]: ...

    def ready(self, offset: int, whole: bool) -> bool: ...

    def read_at(self, view: memoryview, offset: int) -> int: ...


class FailoverSource:
    """A source with a replacement: where it is lost, `elsewhere(offset)` finds another one, or raises FillFailed.

    `file` is a descriptor from which the kernel may send the bytes; None once that fails.
    """

    def __init__(self, source: Source, elsewhere: Callable[[int], Source], file: Optional[int] = None) -> None:
        self._source = source
        self._elsewhere = elsewhere
        self._lost = 0
        self.file = file

    def read_at(self, view: memoryview, offset: int) -> int:
        """Bytes from `offset` on; 0 at the end. Raises FillFailed."""
        while True:
            try:
                return self._source.read_at(view, offset)
            except Lost as error:
                self._lost += 1
                if self._lost > _MAX_LOST:
                    raise FillFailed(error) from error
                self._source = self._elsewhere(offset)


def checked(entry: Entry) -> Source:
    """An entry as a source that never gives out wrong bytes."""
    return entry if entry.trusted else VerifyingReader(entry)


def deliver(reply: Reply, failover: FailoverSource, chosen: Selection) -> None:
    """Send the body after its head; if bytes are missing, the connection is closed so that the client can tell.

    Raises FillFailed after that, OSError where the client is gone.
    """
    try:
        complete = all(_send_part(reply, failover, part) for part in chosen.parts)
    except FillFailed:
        reply.close_abruptly(Side.ORIGIN)
        raise
    if not complete:
        reply.close_abruptly(Side.DDUCT)
        return
    if chosen.closing:
        reply.write(memoryview(chosen.closing))
    reply.finish()


def shown(fields: Iterable[Field], chosen: Selection) -> List[Field]:
    """The stored fields that belong in a response."""
    if chosen.status == 304:
        return [field for field in fields if field[0].lower() in _IN_NOT_MODIFIED]
    if chosen.status == 416:
        return [field for field in fields if field[0].lower() == b"date"]
    replaced = {name.lower() for name, _ in chosen.fields}
    return [field for field in fields if field[0].lower() not in replaced]


def _send_part(reply: Reply, failover: FailoverSource, part: Part) -> bool:
    """Send a span. Returns whether all of it was there."""
    if part.preface:
        reply.write(memoryview(part.preface))
    offset = part.start
    if part.end is not None and part.end - part.start < MODEST_SIZE:
        buffer = memoryview(bytearray(part.end - part.start))
        return _send_through(buffer, reply, failover, part, offset)
    if failover.file is not None and part.end is not None and reply.takes_files:
        offset += _send_file(reply, failover, offset, part.end)
    with borrowed_buffer() as buffer:
        return _send_through(buffer, reply, failover, part, offset)


def _send_through(buffer: memoryview, reply: Reply, failover: FailoverSource, part: Part, offset: int) -> bool:
    """Send the rest of a span from `offset` on. Returns whether all of it was there."""
    while part.end is None or offset < part.end:
        if len(buffer) < BUFFER_SIZE and offset - part.start >= _PROVEN:
            buffer = new_buffer()
        count = failover.read_at(buffer if part.end is None else buffer[: part.end - offset], offset)
        if not count:
            return part.end is None
        reply.write(buffer[:count])
        offset += count
    return True


def _send_file(reply: Reply, failover: FailoverSource, start: int, end: int) -> int:
    """Let the kernel send a span. Returns the bytes sent: all, unless the disk has failed."""
    assert failover.file is not None
    offset = start
    while offset < end:
        try:
            count = reply.send_file(failover.file, offset, min(_FILE_AT_ONCE, end - offset))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            failover.file = None  # `read_at` finds out more
            break
        if not count:
            break
        offset += count
    return offset - start
