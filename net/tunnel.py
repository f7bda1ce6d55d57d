"""Tunnels: bytes relayed both ways, unread.

Bulk data to another machine goes from socket to socket in the kernel (splice(2)) if neither stream uses TLS here; all
other data is copied. An idle tunnel holds neither buffer nor pipe, for there are thousands of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import sys
import time
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from monitoring.details import Side
from net.addresses import is_loopback
from net.stream import Stream

_MODEST, _LARGE = 16 * 1024, 512 * 1024
_PIPE_SIZE = 1024 * 1024  # bytes; the kernel's default limit of an unprivileged user
_MUCH = 64 * 1024  # bytes in one direction without a pause, from which a pipe pays off
_QUIET = 1.0  # seconds without bytes, after which a tunnel is idle
_ROUNDS = 16  # rounds of one direction, before the other is served
_BROKEN = select.POLLHUP | select.POLLERR | select.POLLNVAL  # poll reports these unrequested
_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032  # fcntl(2); missing in the fcntl module before Python 3.10

# On a busy machine, client and origin run first: then each poll finds more bytes, at less work for each. sched_yield
# returns at once if no process waits. Older Pythons block all threads meanwhile (python/cpython#96078).
_YIELDS_ALONE = sys.version_info >= (3, 11, 1) or (3, 10, 9) <= sys.version_info < (3, 11)
_let_others_run: Callable[[], None] = os.sched_yield if _YIELDS_ALONE else lambda: None

_Event = int  # of poll(2); 0 where there is none to wait for


class _Buffer:
    """The copy buffer of both directions of a tunnel: modest at first, larger for bulk data, none when idle.

    Thousands of tunnels are idle most of the time.
    """

    def __init__(self) -> None:
        self._view = memoryview(b"")

    def get(self) -> memoryview:
        """The buffer; its former content is invalid."""
        if not self._view:
            self._view = memoryview(bytearray(_MODEST))
        return self._view

    def note(self, count: int) -> None:
        """Record a read of `count` bytes; a full buffer is doubled."""
        if count == len(self._view) < _LARGE:
            self._view = memoryview(bytearray(2 * count))

    def holds(self, view: memoryview) -> bool:
        """Whether `view` lies in this buffer."""
        return view.obj is self._view.obj

    def drop(self) -> None:
        """Free the buffer."""
        self._view = memoryview(b"")


class _Pipe:
    """A kernel pipe for one direction of a tunnel: its bytes do not pass through this process (splice(2)).

    Raises OSError where no pipe of useful size is available.
    """

    def __init__(self, source: Stream, sink: Stream) -> None:
        self._source, self._sink = source, sink
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0  # bytes
        self.written = 0  # bytes to the sink since the caller last reset it
        # The kernel limits the pipe memory of a user (pipe(7)): the pipe may be smaller, even too small to pay off.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._in, _F_SETPIPE_SZ, _PIPE_SIZE)
        if fcntl.fcntl(self._in, _F_GETPIPE_SZ) < _MUCH:
            self.close()
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    def carry(self) -> bool:
        """Move bytes without waiting, at most `_ROUNDS` rounds; returns whether any moved.

        Raises OSError where the kernel cannot splice, or an end is broken.
        """
        source, sink, splice = self._source.fileno(), self._sink.fileno(), os.splice
        moved = False
        try:
            for _ in range(_ROUNDS):
                if not self.held:
                    self.held = splice(source, self._in, _PIPE_SIZE)
                    if not self.held:
                        break
                    moved = True
                written = splice(self._out, sink, self.held)
                self.held -= written
                self.written += written
                moved = True
                if self.held:
                    break
        except BlockingIOError:
            pass
        return moved

    def taken_back(self) -> memoryview:
        """Remove and return the bytes in the pipe."""
        data = os.read(self._out, self.held) if self.held else b""
        self.held = 0
        return memoryview(data)

    def close(self) -> None:
        os.close(self._in)
        os.close(self._out)


class _Direction:
    """One direction of a tunnel: the bytes read from `source` and not written to `sink` yet, and its end."""

    def __init__(self, source: Stream, sink: Stream, buffer: _Buffer) -> None:
        self.source = source
        self.sink = sink
        self._buffer = buffer
        self._pending = memoryview(b"")
        self._pipe: Optional[_Pipe] = None
        self._can_splice = hasattr(os, "splice") and not (source.encrypted or sink.encrypted)  # since Python 3.10
        self.may_hide = source.encrypted or source.buffered > 0  # the source may hold bytes that poll does not see
        self._carried = 0  # bytes since the last pause
        self.total = 0  # bytes written to the sink
        self.broken: Optional[Stream] = None  # the end that raised OSError
        self.eof = False  # the source has ended
        self.done = False  # the end was passed on to the sink

    def wants_write(self) -> bool:
        return bool(self._pending) or (self._pipe is not None and self._pipe.held > 0)

    def awaits(self) -> _Event:
        """What the next move needs: POLLOUT of the sink or POLLIN of the source; 0 when done."""
        if self.wants_write():
            return select.POLLOUT
        return 0 if self.done else select.POLLIN

    def holds_bytes(self) -> bool:
        """Whether the source holds bytes to read that poll does not see."""
        return not (self.eof or self.wants_write()) and self.source.holds_bytes()

    def busy(self) -> bool:
        """Whether the direction carries bulk data."""
        return self._carried >= _MUCH

    def move(self) -> bool:
        """Relay bytes without waiting; returns whether any moved."""
        if self._splice():
            return True
        if self._pipe is not None and self._pipe.held:
            return False
        # Copying handles what splice cannot move: the end, or urgent data, before which splice stops for good.
        return self._copy()

    def rest(self) -> None:
        """Free what an idle direction does not need."""
        self._carried = 0
        if self._pipe is not None and not self._pipe.held:
            self.close()

    def close(self) -> None:
        """Close the pipe; bytes in it are lost."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _copy(self) -> bool:
        moved = False
        for _ in range(_ROUNDS):
            arrived = self._copy_in() if not (self.eof or self._pending) else False
            sent = self._copy_out() if self._pending else 0
            moved = moved or arrived or sent > 0
            if self.eof and not self._pending:
                self._pass_on_the_end()
            if self.eof or self._pending or not (arrived or sent) or self._worth_a_pipe():
                break
        self._lend()
        return moved

    def _pass_on_the_end(self) -> None:
        try:
            self.sink.shutdown_write()
        except OSError:
            self.broken = self.sink
            raise
        self.done = True

    def _copy_in(self) -> bool:
        """Read without waiting; returns whether bytes or the end came."""
        view = self._buffer.get()
        try:
            count = self.source.readinto_nowait(view)
        except OSError:
            self.broken = self.source
            raise
        if count is None:
            return False
        self.eof = count == 0
        self._pending = view[:count]
        self._buffer.note(count)
        return True

    def _copy_out(self) -> int:
        try:
            sent = self.sink.send_nowait(self._pending)
        except OSError:
            self.broken = self.sink
            raise
        self._pending = self._pending[sent:]
        self._carried += sent
        self.total += sent
        return sent

    def _splice(self) -> bool:
        """Splice without waiting; returns whether any bytes moved."""
        if self._pending or (self._pipe is None and not self._begin_to_splice()):
            return False
        assert self._pipe is not None
        pipe = self._pipe
        try:
            return pipe.carry()
        except OSError as error:
            self._splice_no_more(error)
            return False
        finally:
            self.total += pipe.written
            pipe.written = 0

    def _begin_to_splice(self) -> bool:
        """Open a pipe if it pays off; returns whether it is open."""
        if not self._worth_a_pipe():
            return False
        # splice passes on pages: each costs a receiver on this machine more than a copy would.
        self._can_splice = not _is_here(self.sink)
        if not self._can_splice:
            return False
        try:
            self._pipe = _Pipe(self.source, self.sink)
        except OSError:
            self._can_splice = False  # no descriptors, or too little pipe memory
        return self._can_splice

    def _worth_a_pipe(self) -> bool:
        return self._can_splice and self.busy() and not self.source.buffered

    def _splice_no_more(self, error: OSError) -> None:
        """Go on by copying where the kernel cannot splice. Raises all other errors: they are the connection's."""
        assert self._pipe is not None
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            self.broken = self.sink if self._pipe.held else self.source
            raise error
        self._pending = self._pipe.taken_back()
        self.close()
        self._can_splice = False

    def _lend(self) -> None:
        """Move pending bytes out of the buffer, which the other direction needs."""
        if self._pending and self._buffer.holds(self._pending):
            self._pending = memoryview(bytes(self._pending))


def _is_here(stream: Stream) -> bool:
    """Whether the stream's peer is on this machine."""
    return is_loopback(stream.peer) or stream.peer == stream.address[0]


@dataclass
class Carried:
    """The bytes that a tunnel has relayed, `sent` and `received` by the client, and the side that cut it."""

    sent: int = 0
    received: int = 0
    cut_by: Optional[Side] = None


def tunnel(client: Stream, origin: Stream, idle: float, carried: Optional[Carried] = None) -> None:
    """Relay bytes both ways until both ends have ended; a half-close is passed on.

    Raises OSError when an end breaks, and socket.timeout when nothing moves for `idle` seconds. `carried` is filled in
    at the end, also after an error.
    """
    buffer = _Buffer()
    ways = (_Direction(client, origin, buffer), _Direction(origin, client, buffer))
    try:
        _carry(ways, buffer, idle)
    finally:
        for way in ways:
            way.close()
        if carried is not None:
            carried.sent, carried.received = (way.total for way in ways)
            broken = [way.broken for way in ways if way.broken is not None]
            if broken:
                carried.cut_by = Side.CLIENT if broken[0] is client else Side.ORIGIN


def _carry(ways: Tuple[_Direction, _Direction], buffer: _Buffer, idle: float) -> None:
    watch = _Watch(ways)
    ready = list(ways)
    deadline = time.monotonic() + idle
    while True:
        moved = [way for way in ready if way.move()]
        if ways[0].done and ways[1].done:
            return
        now = time.monotonic()
        if moved:
            deadline = now + idle
            if any(way.busy() for way in moved):
                _let_others_run()
        elif now >= deadline:
            raise socket.timeout("nothing has moved in the tunnel for too long")
        ready = watch.wait(min(_QUIET, deadline - now))
        if ready:
            continue
        buffer.drop()
        for way in ways:
            way.rest()
        ready = watch.wait(max(0.0, deadline - time.monotonic()))


class _Watch:
    """Polls both directions of a tunnel.

    With bulk data, most waits have the same events and results: registrations and results are kept for the next one.
    """

    def __init__(self, ways: Tuple[_Direction, _Direction]) -> None:
        self._ways = ways
        self._may_hide = [way for way in ways if way.may_hide]
        self._descriptors = [{select.POLLIN: way.source.fileno(), select.POLLOUT: way.sink.fileno()} for way in ways]
        self._poll = select.poll()
        self._awaited: List[_Event] = []  # by each direction
        self._found: List[Tuple[int, _Event]] = []
        self._ready: List[_Direction] = []

    def wait(self, seconds: float) -> List[_Direction]:
        """The directions that are ready; none after `seconds`."""
        for way in self._may_hide:
            if way.holds_bytes():
                return [way for way in self._ways if not way.done]
        awaited = [way.awaits() for way in self._ways]
        if awaited != self._awaited:
            self._look_out_for(awaited)
        found = self._poll.poll(seconds * 1000)
        if found != self._found:
            self._found, self._ready = found, list(self._named_by(found))
        return self._ready

    def _look_out_for(self, awaited: List[_Event]) -> None:
        for fd in self._by_descriptor(self._awaited):
            self._poll.unregister(fd)
        for fd, events in self._by_descriptor(awaited).items():
            self._poll.register(fd, events)
        self._awaited, self._found, self._ready = awaited, [], []

    def _by_descriptor(self, awaited: List[_Event]) -> Dict[int, _Event]:
        events: Dict[int, _Event] = {}
        for fds, event in zip(self._descriptors, awaited):
            if event:
                events[fds[event]] = events.get(fds[event], 0) | event
        return events

    def _named_by(self, found: List[Tuple[int, _Event]]) -> Iterator[_Direction]:
        events = dict(found)
        for way, fds, event in zip(self._ways, self._descriptors, self._awaited):
            if event and events.get(fds[event], 0) & (event | _BROKEN):
                yield way
