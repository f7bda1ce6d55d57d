"""Message bodies on streams: a reader removes the framing, a writer adds it.

A reader ends in one of two ways: 0 for a complete body, `IncompleteBody` for every other end. So its callers need not
compare lengths.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import time
from collections import deque
from typing import Callable, Deque, Iterable, Iterator, List, Optional, Tuple, Union, cast

from net.endpoint import ConnectionLost
from net.read_buffer import ReadBuffer
from net.stream import Stream
from protocol import http1
from protocol.headers import Field
from protocol.http1 import BodyFraming, Framing, Sender

BUFFER_SIZE = 256 * 1024
MODEST_SIZE = 64 * 1024  # a thousand slow readers have as many buffers
# Of a body that is looked at before it is read: bytes of chunk sizes and trailers, and the pieces in which it comes.
_MAX_FRAMING, _MAX_ARRIVALS = 4096, 16


def new_buffer(size: int = BUFFER_SIZE) -> memoryview:
    """A buffer on pages of its own: there OpenSSL and the kernel are up to a third faster.

    The pages are private. Shared ones, which are mmap's default, would be the same pages in all forked processes.
    """
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


# Buffers that are not in use, all of one size. Single operations on it are atomic.
_spare: Deque[memoryview] = deque(maxlen=32)


@contextlib.contextmanager
def borrowed_buffer() -> Iterator[memoryview]:
    """A buffer of `MODEST_SIZE` for a short time: to map a new one and touch its pages takes as long as to fill it."""
    try:
        buffer = _spare.pop()
    except IndexError:
        buffer = new_buffer(MODEST_SIZE)
    try:
        yield buffer
    finally:
        _spare.append(buffer)


class IncompleteBody(Exception):
    """The body ended, stalled or broke its framing before it was complete."""


class BodyReader:
    """Reads one message body from `stream` by its `framing`.

    `before` is called once, before the first read: it may send the `sender` a 100 Continue.
    """

    def __init__(
        self,
        stream: Stream,
        framing: BodyFraming,
        before: Callable[[], None] = lambda: None,
        sender: Sender = Sender.CLIENT,
    ) -> None:
        self._sender = sender
        self._stream = stream
        self.kind = framing.kind
        self._before = before
        self._remaining = framing.length or 0  # of the body, or of the current chunk
        self._first_chunk = True
        self.length = framing.length
        self.trailers: Tuple[Field, ...] = ()  # set once the body is complete
        self.complete = framing.kind is Framing.NONE or framing.length == 0
        self.started = False  # the first read was made
        self._broken = ""  # why no more bytes can be read

    @property
    def delimited(self) -> bool:
        """Whether the framing marks the end; only then is a complete body proven."""
        return self.kind is not Framing.CLOSE

    def readinto(self, view: memoryview, much: bool = False) -> int:
        """Read some bytes, with `much` as many as come at once; 0 once complete. Raises IncompleteBody."""
        if self.complete:
            return 0
        if self._broken:
            raise IncompleteBody(self._broken)
        try:
            if not self.started:
                self.started = True
                self._before()
            return self._read(view, self._stream.read_much if much else self._stream.readinto)
        except (http1.ProtocolError, OSError) as error:
            # The position in the stream is unknown now: every later read repeats the first error.
            self._broken = str(error) or type(error).__name__
            raise IncompleteBody(self._broken) from error
        except BaseException:
            self._broken = "nobody waits for it any more"  # this also keeps `drain` from reading
            raise

    def chunks(self, *buffers: memoryview, much: bool = False) -> Iterator[memoryview]:
        """Yield the body in pieces, each a view of the next of `buffers`. Raises IncompleteBody.

        `much`: as many bytes as come at once, except for the first piece, for which a client may be waiting.
        """
        first = True
        for buffer in itertools.cycle(buffers):
            count = self.readinto(buffer, much and not first)
            if not count:
                return
            yield buffer[:count]
            first = False

    def consume(self, count: int) -> None:
        """Read and discard `count` bytes. Raises IncompleteBody where the body is shorter."""
        buffer = new_buffer()
        while count > 0:
            done = self.readinto(buffer[:count])
            if not done:
                raise IncompleteBody("it is shorter than what is there already")
            count -= done

    def ahead(self, limit: int, seconds: float) -> Optional[bytes]:
        """The whole body, if it has at most `limit` bytes and comes within `seconds`; it can still be read.

        None where it does not, and where its framing is broken: then the reader finds the same. Raises ClientGone.
        """
        if self.complete:
            return b""
        if self.started or not self.delimited or (self.length or 0) > limit:
            return None
        most, deadline = limit + _MAX_FRAMING, time.monotonic() + seconds
        for _ in range(_MAX_ARRIVALS):
            found = self._whole(self._stream.start_of_buffer(most), limit)
            left = deadline - time.monotonic()
            if found is not None or self._stream.buffered >= most:
                return found
            try:
                if not self._stream.fill(max(0.0, left)):
                    return None
            except OSError:
                return None  # too late, or lost
        return None

    def drain(self, limit: int, timeout: float = math.inf) -> bool:
        """Read and discard the rest if it has at most `limit` bytes; returns whether the body is complete.

        No read begins after `timeout` seconds.
        """
        if not self.complete and self._remaining > limit:
            return False
        buffer = memoryview(bytearray(min(limit + 1, BUFFER_SIZE)))
        left, deadline = limit, time.monotonic() + timeout
        try:
            while left >= 0 and not self.complete and time.monotonic() < deadline:
                left -= self.readinto(buffer)
        except IncompleteBody:
            return False
        return self.complete

    def _whole(self, received: bytes, limit: int) -> Optional[bytes]:
        """The whole body, if these bytes, with which it begins, hold all of it."""
        if self.kind is Framing.LENGTH:
            return received[: self.length] if len(received) >= (self.length or 0) else None
        reader = BodyReader(cast(Stream, _Received(received)), http1.CHUNKED, sender=self._sender)
        try:
            body = b"".join(bytes(piece) for piece in reader.chunks(memoryview(bytearray(limit + 1))))
        except IncompleteBody:
            return None
        return body if len(body) <= limit else None

    def _read(self, view: memoryview, read: Callable[[memoryview], int]) -> int:
        if self.kind is Framing.CLOSE:
            count = read(view)
            self.complete = count == 0
            return count
        if self.kind is Framing.CHUNKED and not self._remaining:
            self._next_chunk()
            if self.complete:
                return 0
        count = read(view[: self._remaining])
        if not count:
            raise ConnectionLost("connection closed inside the body")
        self._remaining -= count
        self.complete = self.kind is Framing.LENGTH and not self._remaining
        return count

    def _next_chunk(self) -> None:
        if not self._first_chunk and self._stream.read_line(2) != b"\r\n":
            raise http1.ProtocolError("chunk data is not followed by CRLF")
        self._first_chunk = False
        self._remaining = http1.parse_chunk_line(self._stream.read_line(http1.CHUNK_LINE_LIMIT), self._sender)
        if not self._remaining:
            self.trailers = tuple(self._read_trailers())
            self.complete = True

    def _read_trailers(self) -> List[Field]:
        trailers: List[Field] = []
        free = http1.HEAD_LIMIT
        while True:
            line = self._stream.read_line(http1.HEAD_LIMIT)
            if line == b"\r\n":
                return trailers
            trailers.append(http1.parse_trailer_line(line, self._sender))
            free -= len(line)
            if free < 0 or len(trailers) > http1.FIELD_LIMIT:
                raise http1.ProtocolError("trailer section is longer than 64 KiB or 200 fields")


class _Received:
    """Received bytes as a stream that ends with them."""

    def __init__(self, data: bytes) -> None:
        self._buffer = ReadBuffer(data)

    def readinto(self, view: memoryview) -> int:
        return self._buffer.move_into(view)

    def read_line(self, limit: int) -> bytes:
        line = self._buffer.take_line(limit)
        if line is None:
            raise ConnectionLost("not received yet")
        return line


class BodyWriter:
    """Sends a body with its `framing`. Without `finish()` the peer sees that a chunked body is incomplete.

    `held`: the head of a body of known length, to send with its first bytes.
    """

    def __init__(self, stream: Stream, framing: BodyFraming, held: bytes = b"") -> None:
        self.framing = framing
        self._stream = stream
        self._chunked = framing.kind is Framing.CHUNKED
        self._held = held

    def write(self, data: Union[bytes, memoryview]) -> None:
        """Send a piece of at least one byte."""
        if self._held:
            # One packet and one TLS record cost less than two.
            self._stream.send(b"".join((self._held, data)))
            self._held = b""
            return
        if self._chunked:
            data = b"".join((b"%x\r\n" % len(data), data, b"\r\n"))
        self._stream.send(data)

    def write_file(self, fd: int, offset: int, count: int) -> int:
        """Send bytes of a file by sendfile(2); returns how many, 0 at its end. Not in chunks: see `takes_files`."""
        if self._held:
            self._stream.send(self._held)
            self._held = b""
        return self._stream.send_file(fd, offset, count)

    def finish(self, trailers: Iterable[Field] = ()) -> None:
        """End the body; `trailers` are sent only in a chunked body."""
        if self._chunked:
            self._stream.send(b"0\r\n" + http1.serialise_trailers(trailers) + b"\r\n")
