"""Tunnels: octets both ways, and none of them looked at.

Where much is moving to another machine and nothing is encrypted here, the kernel carries it from socket to socket
(splice(2)); else it is copied. A tunnel in which nothing moves holds neither buffer nor pipe, for there are thousands.
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
_PIPE_SIZE = 1024 * 1024  # as large as the kernel lets anybody have it
_MUCH = 64 * 1024  # octets that have gone one way without a pause: then a pipe is worth while
_QUIET = 1.0  # seconds, after which nothing is moving
_TURNS = 16  # of one way, before the other has its chance
_BROKEN = select.POLLHUP | select.POLLERR | select.POLLNVAL  # poll tells these unasked
_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032  # fcntl(2); the fcntl module has names for them from Python 3.10 on

# Where processors are scarce, client and origin go first: then more has come when we look again, and takes less work.
# It returns at once where nobody waits. Older Pythons would hold up all our threads meanwhile (python/cpython#96078).
_YIELDS_ALONE = sys.version_info >= (3, 11, 1) or (3, 10, 9) <= sys.version_info < (3, 11)
_let_others_run: Callable[[], None] = os.sched_yield if _YIELDS_ALONE else lambda: None

_Awaited = Tuple[int, int]  # a descriptor, and an event of it


class _Buffer:
    """Room for octets on their way, for both directions of a tunnel: modest, more where much comes, none in quiet.

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
        if count == len(self._view) < _LARGE:
            self._view = memoryview(bytearray(2 * count))

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
        self.written = 0  # since it was asked last
        # A user may have only so much room in pipes (pipe(7)): then this one is smaller, or not worth while.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._in, _F_SETPIPE_SZ, _PIPE_SIZE)
        if fcntl.fcntl(self._in, _F_GETPIPE_SZ) < _MUCH:
            self.close()
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    def carry(self) -> bool:
        """As much as comes and goes without waiting, and then no more than it holds; whether anything came or went.

        Raises OSError where the kernel cannot, or an end is broken.
        """
        source, sink, splice = self._source.fileno(), self._sink.fileno(), os.splice
        moved = False
        try:
            for _ in range(_TURNS):
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
        self.may_hide = source.encrypted or source.buffered > 0  # octets of which poll knows nothing
        self._to_read = source.fileno(), select.POLLIN
        self._to_write = sink.fileno(), select.POLLOUT
        self._carried = 0  # octets since it was quiet last
        self.total = 0  # bytes that the sink has taken
        self.broken: Optional[Stream] = None  # an end that raised OSError
        self.ended = False  # the source has nothing more
        self.done = False  # and the sink knows

    def wants_write(self) -> bool:
        return bool(self._pending) or (self._pipe is not None and self._pipe.held > 0)

    def awaits(self) -> Optional[_Awaited]:
        """A descriptor and the event of it without which nothing can be carried (poll(2)); none when all has been."""
        if self.wants_write():
            return self._to_write
        return None if self.done else self._to_read

    def holds_octets(self) -> bool:
        """Whether there is something to read of which poll knows nothing."""
        return not (self.ended or self.wants_write()) and self.source.holds_octets()

    def busy(self) -> bool:
        """Whether much has gone this way without a pause."""
        return self._carried >= _MUCH

    def move(self) -> bool:
        """Carry what can be carried without waiting; whether anything was."""
        if self._splice():
            return True
        if self._pipe is not None and self._pipe.held:
            return False
        # Something is there that is not for the pipe: an end, or urgent data, before which splice stops for ever.
        return self._copy()

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

    def _copy(self) -> bool:
        moved = False
        for _ in range(_TURNS):
            arrived = self._copy_in() if not (self.ended or self._pending) else False
            sent = self._copy_out() if self._pending else 0
            moved = moved or arrived or sent > 0
            if self.ended and not self._pending:
                self._pass_on_the_end()
            if self.ended or self._pending or not (arrived or sent) or self._worth_a_pipe():
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
        """Take in what has come; whether anything has, if only the end."""
        view = self._buffer.get()
        try:
            count = self.source.readinto_nowait(view)
        except OSError:
            self.broken = self.source
            raise
        if count is None:
            return False
        self.ended = count == 0
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
        """Have the kernel carry what it can; whether it did."""
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
        """Whether the next octets are for the pipe, which is there now."""
        if not self._worth_a_pipe():
            return False
        # What splice passes on is made of pages: a receiver on this machine pays more for each than a copy would cost.
        self._can_splice = not _is_here(self.sink)
        if not self._can_splice:
            return False
        try:
            self._pipe = _Pipe(self.source, self.sink)
        except OSError:
            self._can_splice = False  # there are no more descriptors
        return self._can_splice

    def _worth_a_pipe(self) -> bool:
        return self._can_splice and self.busy() and not self.source.buffered

    def _splice_no_more(self, error: OSError) -> None:
        """Go on by copying where the kernel cannot splice. Raises the error where it is one of the connection."""
        assert self._pipe is not None
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            self.broken = self.sink if self._pipe.held else self.source
            raise error
        self._pending = self._pipe.taken_back()
        self.close()
        self._can_splice = False

    def _lend(self) -> None:
        """The other way needs the buffer: what is still in it moves out."""
        if self._pending and self._buffer.holds(self._pending):
            self._pending = memoryview(bytes(self._pending))


def _is_here(stream: Stream) -> bool:
    """Whether the peer is on this machine."""
    return is_loopback(stream.peer) or stream.peer == stream.address[0]


@dataclass
class Carried:
    """How many bytes a tunnel has carried: `sent` by the client, and `received` by it; and who has cut it."""

    sent: int = 0
    received: int = 0
    cut_by: Optional[Side] = None


def tunnel(client: Stream, origin: Stream, idle: float, carried: Optional[Carried] = None) -> None:
    """Carry octets both ways until both ends are done; each end's half-close is passed on.

    Raises OSError when an end breaks, and socket.timeout when nothing moves for `idle` seconds. At the end `carried`
    says how much it was.
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
    """What the kernel knows of the two ways of a tunnel.

    Where much is moving, every wait is like the one before: what was found out for that one is kept.
    """

    def __init__(self, ways: Tuple[_Direction, _Direction]) -> None:
        self._ways = ways
        self._may_hide = [way for way in ways if way.may_hide]
        self._poll = select.poll()
        self._awaited: List[Optional[_Awaited]] = []
        self._found: List[_Awaited] = []
        self._ready: List[_Direction] = []

    def wait(self, seconds: float) -> List[_Direction]:
        """The ways that can be moved; none after `seconds`."""
        for way in self._may_hide:
            if way.holds_octets():
                return [way for way in self._ways if not way.done]
        awaited = [way.awaits() for way in self._ways]
        if awaited != self._awaited:
            self._look_out_for(awaited)
        found = self._poll.poll(seconds * 1000)
        if found != self._found:
            self._found, self._ready = found, list(self._named_by(found))
        return self._ready

    def _look_out_for(self, awaited: List[Optional[_Awaited]]) -> None:
        for fd in {one[0] for one in self._awaited if one is not None}:
            self._poll.unregister(fd)
        events: Dict[int, int] = {}
        for one in awaited:
            if one is not None:
                events[one[0]] = events.get(one[0], 0) | one[1]
        for fd, event in events.items():
            self._poll.register(fd, event)
        self._awaited, self._found, self._ready = awaited, [], []

    def _named_by(self, found: List[_Awaited]) -> Iterator[_Direction]:
        events = dict(found)
        for way, one in zip(self._ways, self._awaited):
            if one is not None and events.get(one[0], 0) & (one[1] | _BROKEN):
                yield way
