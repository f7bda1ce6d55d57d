"""Tunnels: octets both ways, and none of them looked at.

Where much is moving and nothing is encrypted here, the kernel carries it from socket to socket (splice(2)); else it is
copied. A tunnel in which nothing moves holds neither buffer nor pipe, for there are thousands of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import time
from typing import Dict, Optional, Tuple

from stream import Stream

_MODEST, _LARGE = 16 * 1024, 128 * 1024
_PIPE_SIZE = 1024 * 1024  # as large as the kernel lets anybody have it
_WORTH_A_PIPE = 64 * 1024  # octets that have gone one way without a pause
_QUIET = 1.0  # seconds, after which nothing is moving
_TURNS = 16  # of one way, before the other has its chance
_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032  # fcntl(2); the fcntl module has names for them from Python 3.10 on


class _Buffer:
    """Room for octets on their way, for both directions of a tunnel: modest, large while much is moving, none in quiet.

    Thousands of tunnels are idle most of the time.
    """

    def __init__(self) -> None:
        self._view = memoryview(b"")

    def get(self) -> memoryview:
        """Some room; what was in it before is of no use."""
        if not self._view:
            self._view = memoryview(bytearray(_MODEST))
        return self._view

    def note(self, count: int) -> None:
        """So much of it was filled at once."""
        if count == len(self._view) == _MODEST:
            self._view = memoryview(bytearray(_LARGE))

    def holds(self, octets: memoryview) -> bool:
        """Whether these are in it, and not in a place of their own."""
        return octets.obj is self._view.obj

    def drop(self) -> None:
        """Nothing is moving."""
        self._view = memoryview(b"")


class _Pipe:
    """Room in the kernel for one way of a tunnel: its octets do not pass through this process (splice(2)).

    Raises OSError where there is no such room.
    """

    def __init__(self, source: Stream, sink: Stream) -> None:
        self._source, self._sink = source, sink
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0  # octets
        # A user may have only so much room in pipes (pipe(7)): then this one is smaller, or not worth while.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._in, _F_SETPIPE_SZ, _PIPE_SIZE)
        if fcntl.fcntl(self._in, _F_GETPIPE_SZ) < _WORTH_A_PIPE:
            self.close()
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    def fill(self) -> Optional[int]:
        """Like `Stream.readinto_nowait`."""
        try:
            self.held = os.splice(self._source.fileno(), self._in, _PIPE_SIZE)
        except BlockingIOError:
            return None
        return self.held

    def empty(self) -> int:
        """Like `Stream.send_nowait`."""
        try:
            count = os.splice(self._out, self._sink.fileno(), self.held)
        except BlockingIOError:
            return 0
        self.held -= count
        return count

    def taken_back(self) -> memoryview:
        """The octets in it, which it gives up."""
        data = os.read(self._out, self.held) if self.held else b""
        self.held = 0
        return memoryview(data)

    def close(self) -> None:
        os.close(self._in)
        os.close(self._out)


class _Direction:
    """One way through a tunnel: what was read from `source` and not written to `sink` yet, and how it ends."""

    def __init__(self, source: Stream, sink: Stream, buffer: _Buffer) -> None:
        self.source = source
        self.sink = sink
        self._buffer = buffer
        self._pending = memoryview(b"")
        self._pipe: Optional[_Pipe] = None
        self._can_splice = hasattr(os, "splice") and not (source.encrypted or sink.encrypted)  # from Python 3.10 on
        self._carried = 0  # octets since it was quiet last
        self.ended = False  # the source has nothing more
        self.done = False  # and the sink knows

    def wants_read(self) -> bool:
        return not self.ended and not self.wants_write()

    def wants_write(self) -> bool:
        return bool(self._pending) or (self._pipe is not None and self._pipe.held > 0)

    def move(self) -> bool:
        """Carry what can be carried without waiting; whether anything was."""
        moved = False
        for _ in range(_TURNS):
            if self.done:
                break
            arrived = self._read() if self.wants_read() else False
            sent = self._write() if self.wants_write() else 0
            moved = moved or arrived or sent > 0
            self._carried += sent
            if self.wants_write() or not (arrived or sent):
                break
            if self.ended:
                self.sink.shutdown_write()
                self.done = True
        self._lend()
        return moved

    def rest(self) -> None:
        """Nothing is moving: hold nothing that is not needed."""
        self._carried = 0
        if self._pipe is not None and not self._pipe.held:
            self.close()

    def close(self) -> None:
        """Give the pipe back; what is in it is lost."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _read(self) -> bool:
        """Take in what has come; whether anything has, if only the end."""
        count = self._splice_in() if self._begin_to_splice() else self._copy_in()
        self.ended = count == 0
        return count is not None

    def _write(self) -> int:
        if self._pipe is not None and self._pipe.held:
            try:
                return self._pipe.empty()
            except OSError as error:
                self._splice_no_more(error)
        sent = self.sink.send_nowait(self._pending)
        self._pending = self._pending[sent:]
        return sent

    def _copy_in(self) -> Optional[int]:
        view = self._buffer.get()
        count = self.source.readinto_nowait(view)
        if count is not None:
            self._pending = view[:count]
            self._buffer.note(count)
        return count

    def _begin_to_splice(self) -> bool:
        """Whether the next octets are for the pipe."""
        if self._pipe is None and self._can_splice and self._carried >= _WORTH_A_PIPE and not self.source.buffered:
            try:
                self._pipe = _Pipe(self.source, self.sink)
            except OSError:
                self._can_splice = False  # there are no more descriptors
        return self._pipe is not None

    def _splice_in(self) -> Optional[int]:
        assert self._pipe is not None
        try:
            count = self._pipe.fill()
        except OSError as error:
            self._splice_no_more(error)
            return self._copy_in()
        # Neither an end nor nothing is believed: splice stops before urgent data for ever, and a read skips it.
        return count or self._copy_in()

    def _splice_no_more(self, error: OSError) -> None:
        """Go on by copying where the kernel cannot splice. Raises the error where it is one of the connection."""
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise error
        assert self._pipe is not None
        self._pending = self._pipe.taken_back()
        self.close()
        self._can_splice = False

    def _lend(self) -> None:
        """The other way needs the buffer: what is still in it moves out."""
        if self._pending and self._buffer.holds(self._pending):
            self._pending = memoryview(bytes(self._pending))


def tunnel(client: Stream, origin: Stream, idle: float) -> None:
    """Carry octets both ways until both ends are done; each end's half-close is passed on.

    Raises OSError when an end breaks, and socket.timeout when nothing moves for `idle` seconds.
    """
    buffer = _Buffer()
    ways = (_Direction(client, origin, buffer), _Direction(origin, client, buffer))
    try:
        _carry(ways, buffer, idle)
    finally:
        for way in ways:
            way.close()


def _carry(ways: Tuple[_Direction, _Direction], buffer: _Buffer, idle: float) -> None:
    deadline = time.monotonic() + idle
    while not all(way.done for way in ways):
        moved = [way.move() for way in ways]
        now = time.monotonic()
        if any(moved):
            deadline = now + idle
            continue
        if now >= deadline:
            raise socket.timeout("nothing has moved in the tunnel for too long")
        if _wait(ways, min(_QUIET, deadline - now)):
            continue
        buffer.drop()
        for way in ways:
            way.rest()
        _wait(ways, max(0.0, deadline - time.monotonic()))


def _wait(ways: Tuple[_Direction, _Direction], seconds: float) -> bool:
    """Wait until one of the ways can move; False after `seconds`."""
    events: Dict[int, int] = {}
    for way in ways:
        if way.done:
            continue
        if way.wants_read():
            if way.source.holds_octets():
                return True
            events[way.source.fileno()] = events.get(way.source.fileno(), 0) | select.POLLIN
        if way.wants_write():
            events[way.sink.fileno()] = events.get(way.sink.fileno(), 0) | select.POLLOUT
    poll = select.poll()
    for fd, mask in events.items():
        poll.register(fd, mask)
    return bool(poll.poll(seconds * 1000))
