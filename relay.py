"""What dduct carries and does not keep: answers passed on as they come, and tunnels."""

from __future__ import annotations

import select
import time
from typing import Dict, List, Tuple

import policy
import values
from body import BUFFER_SIZE, IncompleteBody
from http1 import Field, Headers, RequestHead
from reply import Reply
from stream import Stream
from upstream import Exchange

_MODEST, _PIPE_SIZE = 16 * 1024, 128 * 1024
_QUIET = 1.0  # seconds
_TURNS = 16


def outgoing(request: RequestHead, via: bytes, upgrade: bool = False) -> Headers:
    """The fields of a request as they go on to its origin: end-to-end ones, our name in Via, and what of the
    connection's own options dduct passes on."""
    kept = request.headers.end_to_end().without([b"host", b"content-length", b"expect"])
    left = policy.forwards_left(request)
    if left is not None:
        kept = Headers([*kept.without([b"max-forwards"]), (b"Max-Forwards", b"%d" % (left - 1))])
    options: List[Field] = []
    if b"trailers" in request.headers.tokens(b"te"):  # RFC 9110 §10.1.4; no other coding is spoken here
        options.append((b"TE", b"trailers"))
    if upgrade:
        options.append((b"Upgrade", request.headers.get(b"upgrade") or b""))
    if options:
        options.append((b"Connection", b", ".join(name for name, _ in options)))
    return Headers([*kept, (b"Via", via), *options])


def wants_upgrade(request: RequestHead) -> bool:
    """Whether a request asks for another protocol that dduct lets through (RFC 9110 §7.8).

    Not h2c: what is asked inside of that would be seen by nobody here (RFC 9113 has given it up).
    """
    if request.version < 1 or b"upgrade" not in request.headers.tokens(b"connection"):
        return False
    protocols = request.headers.tokens(b"upgrade")
    return bool(protocols) and b"h2c" not in protocols


def forward(reply: Reply, exchange: Exchange) -> None:
    """Pass an origin's answer on, streaming. An answer that breaks off is broken off here too."""
    head = exchange.head
    fields = [*head.headers.end_to_end()]
    if b"date" not in head.headers:
        fields.append((b"Date", values.format_date(time.time())))  # RFC 9110 §6.6.1
    reply.begin(head.status, fields, exchange.body.length, head.reason)
    try:
        for piece in exchange.body.chunks(memoryview(bytearray(BUFFER_SIZE))):
            reply.write(piece)
    except IncompleteBody:
        reply.cut()
        return
    reply.finish(exchange.body.trailers)


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
            self._view = memoryview(bytearray(_PIPE_SIZE))

    def drop(self) -> None:
        """Nothing is moving."""
        self._view = memoryview(b"")


class _Direction:
    """One way through a tunnel: what was read from `source` and not written to `sink` yet, and how it ends."""

    def __init__(self, source: Stream, sink: Stream, buffer: _Buffer) -> None:
        self.source = source
        self.sink = sink
        self._buffer = buffer
        self._pending = memoryview(b"")
        self.ended = False  # the source has nothing more
        self.done = False  # and the sink knows

    def wants_read(self) -> bool:
        return not self.ended and not self._pending

    def wants_write(self) -> bool:
        return bool(self._pending)

    def move(self) -> bool:
        """Carry what can be carried without waiting; whether anything was."""
        moved = False
        for _ in range(_TURNS):  # and then the other way has its chance
            if self.done:
                break
            fresh = not self._pending and not self.ended
            if fresh:
                view = self._buffer.get()
                count = self.source.readinto_nowait(view)
                if count is None:
                    break
                self._pending = view[:count]
                self._buffer.note(count)
                self.ended = count == 0
                moved = True
            if self._pending:
                sent = self.sink.send_nowait(self._pending)
                self._pending = self._pending[sent:]
                moved = moved or sent > 0
                if self._pending:
                    if fresh:  # the other way needs the buffer
                        self._pending = memoryview(bytes(self._pending))
                    break
            elif self.ended:
                self.sink.shutdown_write()
                self.done = True
        return moved


def tunnel(client: Stream, origin: Stream, idle: float) -> None:
    """Carry octets both ways until both ends are done; each end's half-close is passed on.

    Ends too when nothing moves for `idle` seconds. Raises OSError when an end breaks.
    """
    buffer = _Buffer()
    ways = (_Direction(client, origin, buffer), _Direction(origin, client, buffer))
    deadline = time.monotonic() + idle
    while not all(way.done for way in ways):
        moved = [way.move() for way in ways]
        now = time.monotonic()
        if any(moved):
            deadline = now + idle
            continue
        if now >= deadline:
            return
        if _wait(ways, min(_QUIET, deadline - now)):
            continue
        buffer.drop()
        if not _wait(ways, max(0.0, deadline - time.monotonic())):
            return


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
