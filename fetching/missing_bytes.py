"""The bytes that a fill still lacks, in their order: from its origin, and those that have come ahead of their turn.

What came ahead is not fetched again. So the origin is asked for what lies behind it, and only once it sends that, the
running response is given up: a fill must not fail for a range that some client wanted.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import Callable, Iterator, Optional

from net.body import IncompleteBody
from storage.entry import Lost
from transfers.far_bytes import FarBytes
from transfers.fill import Fill
from upstream.exchange import Exchange

# Asks for the bytes from one offset up to another; None where the origin does not give exactly these.
AskForPart = Callable[[int, int], Optional[Exchange]]


class _Skipped(Exception):
    """The exchange whose bytes were awaited is replaced."""


class MissingBytes:
    """The missing bytes of one fill. `exchange` begins where the fill ends; it is closed here."""

    def __init__(self, fill: Fill, exchange: Exchange, ask: AskForPart) -> None:
        self._fill = fill
        self._exchange = exchange
        self._ask = ask
        self._at = fill.size  # the offset of the exchange's next byte; the bytes before it have come ahead
        self._until = fill.length  # where the exchange ends
        self._received = 0  # bytes that the last piece had from the origin
        self._skips = True  # what has come ahead
        self._reads = False  # it waits for bytes of the exchange

    def pieces(self, *buffers: memoryview) -> Iterator[memoryview]:
        """The bytes from the end of the fill on, each piece a view of the next of `buffers`.

        The caller writes each piece into the fill before it takes the next. Raises IncompleteBody.
        """
        far = self._fill.far
        if far is None:
            yield from self._exchange.body.chunks(*buffers, much=True)
            return
        first = True
        for buffer in itertools.cycle(buffers):
            count = self._next(far, buffer, much=not first)
            if not count:
                return
            yield buffer[:count]
            first = False

    def continue_with(self, exchange: Exchange) -> None:
        """Go on with another exchange, which brings the rest from where the fill ends. The last one is closed."""
        self._exchange, self._at, self._until = exchange, self._fill.size, self._fill.length

    def skip_ahead(self) -> bool:
        """After a break, when the last exchange is closed: go on with what has come ahead; False where that is none."""
        far, size = self._fill.far, self._fill.size
        if far is None or not self._skips:
            return False
        start, end = far.next_part(size)
        self._at = size
        return start == size < far.length and self._skip(far, end)

    def look(self) -> None:
        """Called while the origin sends nothing: what it owes may have come ahead."""
        far, size = self._fill.far, self._fill.size
        if far is None or not self._reads or not self._skips:
            return
        start, end = far.next_part(size)
        self._reads = False  # while the origin is asked
        if start == size < far.length and self._skip(far, end):
            raise _Skipped
        self._reads = True

    def close(self) -> None:
        """Close the exchange; idempotent."""
        self._exchange.close()

    def _next(self, far: FarBytes, buffer: memoryview, much: bool) -> int:
        """Read the next bytes; 0 at the end of the object, or of a response that should have brought all of it."""
        size, length = self._fill.size, far.length
        any_ahead = far.advance(size, self._received)
        self._received = 0
        if not any_ahead and size == self._at and self._until == length:
            return self._read(buffer, much)  # as usual
        while True:
            start, end = far.next_part(size) if self._skips else (length, length)
            if size == self._at and size == start < length:
                self._skip(far, end)
                continue
            if size < self._at:
                return self._take(far, buffer[: self._at - size], size)
            if size == length and self._until != length:
                return 0  # the end has come ahead
            until = far.next_start(size) if self._skips else length
            if size == self._until and size < length:
                self._go_on(until)
            with contextlib.suppress(_Skipped):
                return self._read(buffer[: until - size] if until > size else buffer, much)

    def _read(self, buffer: memoryview, much: bool) -> int:
        """Read bytes of the exchange. Raises IncompleteBody, _Skipped."""
        self._reads = True
        try:
            count = self._exchange.body.readinto(buffer, much)
        finally:
            self._reads = False
        if not count and self._until != self._fill.length:
            raise IncompleteBody("a part of it is shorter than it says")
        self._received = count
        self._at += count
        return count

    def _take(self, far: FarBytes, buffer: memoryview, size: int) -> int:
        """Bytes that have come ahead. Raises IncompleteBody where they are not here."""
        try:
            count = far.take(buffer, size)
        except Lost as error:
            self._skips = False
            raise IncompleteBody(str(error)) from error
        if not count:
            self._skips = far.next_part(size)[0] != size
            raise IncompleteBody("what has come ahead of it ends early")
        return count

    def _skip(self, far: FarBytes, end: int) -> bool:
        """Take the bytes up to `end` from what has come ahead, if the origin sends what lies behind; whether so."""
        if end == far.length:
            self._replace(self._exchange, end, self._at)
            return True
        until = far.next_start(end)
        rest = self._ask(end, until)
        if rest is not None:
            self._replace(rest, end, until)
            return True
        far.stop()
        self._skips = False
        return False

    def _go_on(self, until: int) -> None:
        """Ask for what lies behind a part that was asked for. Raises IncompleteBody."""
        rest = self._ask(self._at, until)
        if rest is None:
            raise IncompleteBody("its origin does not go on")
        self._replace(rest, self._at, until)

    def _replace(self, exchange: Exchange, at: int, until: Optional[int]) -> None:
        """End the exchange; its connection is kept if there is nothing more on it."""
        if self._exchange.body.complete:
            self._exchange.close()
        else:
            self._exchange.discard()
        self._exchange, self._at, self._until = exchange, at, until
