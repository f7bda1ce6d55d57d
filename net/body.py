"""Message bodies on streams: octets in, octets out, framing removed and put on.

A reader's end is always one of two things: 0 for a body that is provably complete, `IncompleteBody` for every other
end. Nobody downstream has to compare lengths again.
"""

from __future__ import annotations

import itertools
import math
import mmap
import time
from typing import Callable, Iterable, Iterator, List, Tuple, Union

from net.stream import ConnectionLost, Stream
from protocol import http1
from protocol.http1 import BodyFraming, Field, Framing, Sender

BUFFER_SIZE = 256 * 1024


def new_buffer(size: int = BUFFER_SIZE) -> memoryview:
    """Room for octets on their way. On pages of its own, where OpenSSL and the kernel are up to a third faster."""
    return memoryview(mmap.mmap(-1, size))


class IncompleteBody(Exception):
    """The body ended, stalled or broke its framing before it was complete."""


class BodyReader:
    """The octets of one message body, read from `stream` as `framing` says.

    `before` is called once, when the first octets are wanted: the place to tell the `sender` to go ahead.
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
        self._kind = framing.kind
        self._before = before
        self._remaining = framing.length or 0  # of the body, or of the current chunk
        self._first_chunk = True
        self.length = framing.length
        self.trailers: Tuple[Field, ...] = ()  # once it is complete
        self.complete = framing.kind is Framing.NONE or framing.length == 0
        self.started = False  # somebody has asked for octets
        self._broken = ""  # why there will be no more of them

    @property
    def delimited(self) -> bool:
        """Whether the message itself says where it ends; only then is a full body a provable one."""
        return self._kind is not Framing.CLOSE

    def readinto(self, view: memoryview, much: bool = False) -> int:
        """Some octets of the body, or as `much` as comes at once; 0 once it is complete. Raises IncompleteBody."""
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
            # What follows on the stream is anybody's guess: the first error is the last word on this body.
            self._broken = str(error) or type(error).__name__
            raise IncompleteBody(self._broken) from error
        except BaseException:
            self._broken = "nobody waits for it any more"  # and so nobody drains it, either
            raise

    def chunks(self, *buffers: memoryview, much: bool = False) -> Iterator[memoryview]:
        """The body piece by piece, every piece a view of the next of `buffers`. Raises IncompleteBody.

        `much`: as much as comes at once, but for the first piece, for which somebody may be waiting.
        """
        first = True
        for buffer in itertools.cycle(buffers):
            count = self.readinto(buffer, much and not first)
            if not count:
                return
            yield buffer[:count]
            first = False

    def skip(self, count: int) -> None:
        """Read and forget the next `count` bytes. Raises IncompleteBody where there are not so many."""
        buffer = new_buffer()
        while count > 0:
            done = self.readinto(buffer[:count])
            if not done:
                raise IncompleteBody("it is shorter than what is there already")
            count -= done

    def drain(self, limit: int, patience: float = math.inf) -> bool:
        """Read and forget what is left, if that takes no more than `limit` octets; whether it is complete now.

        No read begins after `patience` seconds.
        """
        if not self.complete and self._remaining > limit:
            return False
        buffer = memoryview(bytearray(min(limit + 1, BUFFER_SIZE)))
        left, deadline = limit, time.monotonic() + patience
        try:
            while left >= 0 and not self.complete and time.monotonic() < deadline:
                left -= self.readinto(buffer)
        except IncompleteBody:
            return False
        return self.complete

    def _read(self, view: memoryview, read: Callable[[memoryview], int]) -> int:
        if self._kind is Framing.CLOSE:
            count = read(view)
            self.complete = count == 0
            return count
        if self._kind is Framing.CHUNKED and not self._remaining:
            self._next_chunk()
            if self.complete:
                return 0
        count = read(view[: self._remaining])
        if not count:
            raise ConnectionLost("connection closed inside the body")
        self._remaining -= count
        self.complete = self._kind is Framing.LENGTH and not self._remaining
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
        room = http1.HEAD_LIMIT
        while True:
            line = self._stream.read_line(http1.HEAD_LIMIT)
            if line == b"\r\n":
                return trailers
            trailers.append(http1.parse_trailer_line(line, self._sender))
            room -= len(line)
            if room < 0 or len(trailers) > http1.FIELD_LIMIT:
                raise http1.ProtocolError("trailer section is longer than 64 KiB or 200 fields")


class BodyWriter:
    """Puts `framing` around a body on its way out. Without `finish()` the peer can tell that it is cut off."""

    def __init__(self, stream: Stream, framing: BodyFraming) -> None:
        self._stream = stream
        self._chunked = framing.kind is Framing.CHUNKED

    def write(self, data: Union[bytes, memoryview]) -> None:
        """Send one piece, at least one octet."""
        if self._chunked:
            data = b"".join((b"%x\r\n" % len(data), data, b"\r\n"))
        self._stream.send(data)

    def finish(self, trailers: Iterable[Field] = ()) -> None:
        """Say that the body is complete; `trailers` are lost where the framing has no place for them."""
        if self._chunked:
            self._stream.send(b"0\r\n" + http1.serialise_trailers(trailers) + b"\r\n")
