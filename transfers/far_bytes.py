"""The bytes of a fill that come ahead of their turn: ranges far ahead of it, fetched on connections of their own.

Readers wait here for a range that runs, and for nothing else: `look` says whether bytes are here, will come, or have to
be asked for. The filler takes these bytes when it arrives at them, and does not fetch them again. They lie in files
without names (see `cells`) and are trusted no more than other bytes of the fill: its hash is taken in order, over all.
"""

from __future__ import annotations

import enum
import logging
import threading
from typing import Dict, NamedTuple, Optional, Tuple, Union

from monitoring.redaction import reason_of
from net import client_watch
from storage.record import Unstorable
from storage.store import Store
from transfers.cells import Cells
from transfers.growing_file import GrowingFile
from transfers.pace import Pace
from transfers.pacing import wait_for_bytes
from transfers.readers import MANY_READERS
from transfers.spans import Span, Spans

_log = logging.getLogger("dduct.fetch")

_NEAR = 1.0  # seconds; what the fill brings sooner is waited for
WORTH = 256 * 1024  # bytes; less than this is not worth a connection: it is waited for, or fetched again
_MAX_RUNNING = 16  # ranges of one fill that run at the same time
_MAX_SPANS = 256  # of one fill; when there are more, ranges wait for the fill
_STALLED = 1.0  # seconds without bytes after which the filler goes on by itself
_LOOK_AGAIN = 0.1  # seconds between two looks at what cannot wake its readers


class Step(enum.Enum):
    """What a reader has to do for the bytes at an offset."""

    READ = "they are here"
    WAIT = "they will come, or may be asked for soon"
    SOON = "the fill brings them soon, if it stays as fast as it is"
    FILL = "the fill brings them"


class FarSnapshot(NamedTuple):
    """What came ahead at one moment: `kept` bytes are here, and `running` ranges bring more."""

    kept: int
    running: int


class FarBytes:
    """What has come ahead of one fill of `length` bytes, which begins with `size` of them.

    `places` bounds the ranges that run in this process.
    """

    def __init__(
        self,
        store: Store,
        file: GrowingFile,
        length: int,
        places: threading.BoundedSemaphore,
        size: int = 0,
        pace: Optional[Pace] = None,
    ) -> None:
        self.length = length
        self._file = file
        self._places = places
        self._cells = Cells(store, file.place, length)
        self._lock = threading.Lock()  # guards all below
        self._ended = threading.Condition(self._lock)  # notified when a range ends; each has one for its bytes, too
        self._pace = pace or Pace()
        self._spans = Spans()
        self._passed = size  # the fill has all bytes before
        self._readers: Dict[object, Tuple[int, int]] = {}  # where each is, and the end of what it wants
        self._stopped = False  # nothing more is asked for
        self._keeps_nothing = False  # more

    def snapshot(self) -> FarSnapshot:
        """What is here now."""
        with self._lock:
            return FarSnapshot(self._spans.size, self._spans.running)

    # Readers

    def look(self, reader: object, offset: int, end: int, may_ask: bool = True) -> Union[Step, Span]:
        """What `reader`, which wants the bytes from `offset` to `end`, has to do for the first of them.

        A span is one that the caller now has to ask for, and to `finish` on every path; with `may_ask` only.
        """
        with self._lock:
            self._readers[reader] = (offset, end)
            span = self._spans.covering(offset)
            if span is not None and offset < span.position:
                return Step.READ
            missing = offset - max(self._passed, 0 if span is None else span.position)
            if span is None:
                missing -= self._spans.here_between(self._passed, offset)
            if missing <= WORTH or len(self._spans) >= _MAX_SPANS or self._stopped or not may_ask:
                return Step.FILL if span is None else Step.WAIT
            rate = self._pace.rate
            if rate is None:
                return Step.WAIT
            if missing <= rate * _NEAR:
                return Step.SOON if span is None else Step.WAIT
            if self._spans.running >= _MAX_RUNNING or not self._places.acquire(blocking=False):
                return Step.WAIT
            end = min(max(end, offset + WORTH), self.length)
            return self._spans.add(offset, end, threading.Condition(self._lock))

    def wait(self, offset: int) -> None:
        """Wait for the bytes at `offset`, a moment: the fill may bring them, too. Raises ClientGone."""

        with self._lock:
            span = self._spans.covering(offset)
            if span is None:
                client_watch.wait(self._ended, _LOOK_AGAIN)
                return
            wait_for_bytes(span.changed, lambda _: _is_over(span, offset), self._are_many, _LOOK_AGAIN, backoff=0.0)

    def read(self, view: memoryview, offset: int) -> int:
        """Read bytes at `offset`; 0 where there are none any more. Raises Lost."""
        with self._lock:
            span = self._spans.covering(offset)
            count = 0 if span is None else max(0, min(len(view), span.position - offset))
        return self._cells.read(view[:count], offset) if count else 0

    def leave(self, reader: object) -> None:
        """A reader wants nothing more; idempotent."""
        with self._lock:
            self._readers.pop(reader, None)

    # The thread that fetches a range

    def wants(self, span: Span) -> bool:
        """Whether a reader, or the filler, still wants bytes that a running span lacks."""
        with self._lock:
            return self._wants(span)

    def store(self, span: Span, data: memoryview) -> bool:
        """Keep the next bytes of a span; whether more of them are wanted."""
        with self._lock:
            offset, count = span.position, min(len(data), span.end - span.position)
            if not self._wants(span):
                return False
        try:
            self._cells.write(data[:count], offset)
        except (OSError, Unstorable) as error:
            _log.info("Nothing is fetched ahead any more: %s", reason_of(error))
            self.leave_disk()
            return False
        with self._lock:
            if not span.running:
                return False  # the filler has overtaken it
            span.position = min(offset + count, span.end)  # it may end earlier now: another range has begun there
            self._file.beside = self._spans.size
            if not self._are_many():
                span.changed.notify_all()
            return self._wants(span)

    def finish(self, span: Span) -> None:
        """A span gets no more bytes."""
        with self._lock:
            self._spans.finish(span)
            span.changed.notify_all()
            self._ended.notify_all()
        self._places.release()

    def stop(self) -> None:
        """Ask for nothing more; what is here stays."""
        with self._lock:
            self._stopped = True

    def leave_disk(self) -> None:
        """The disk takes no more: ranges that run end; what is here stays."""
        with self._lock:
            self._stopped = self._keeps_nothing = True

    # The filler

    def advance(self, size: int, received: int) -> bool:
        """The fill has `size` bytes, `received` of them since the last call from its origin.

        Whether anything has come, or is to come, ahead of it: seldom.
        """
        with self._lock:
            self._pace.note(received)
            self._passed = size
            if self._spans:
                self._spans.drop_before(size)
                self._file.beside = self._spans.size
            any_ahead = bool(self._spans)
        if self._cells:
            self._cells.drop_before(size)
        return any_ahead

    def next_part(self, offset: int) -> Tuple[int, int]:
        """Where the first part at `offset` or behind begins that the filler need not fetch, and where it ends.

        Both are the object's length where there is none. What would take longer to skip than to fetch counts as none,
        and so does a range that has brought nothing yet, unless it continues another one.
        """
        with self._lock:
            start = end = offset
            for span in self._spans:
                if span.start > end:
                    if self._is_worth(start, end):
                        break
                    start = end = span.start
                if span.reach > end and (end > start or span.position > span.start):
                    end = span.reach
            return (start, end) if self._is_worth(start, end) else (self.length, self.length)

    def next_start(self, offset: int) -> int:
        """Up to where the filler has to fetch what lies at `offset`, if all that is to come ahead does come."""
        with self._lock:
            starts = (span.start for span in self._spans if span.running or self._is_worth(span.start, span.position))
            return next((start for start in starts if start > offset), self.length)

    def take(self, view: memoryview, offset: int) -> int:
        """Read bytes at `offset` for the filler; 0 where none are here, and none come for a moment. Raises Lost."""
        with self._lock:
            span = self._spans.covering(offset)
            if span is not None:
                span.changed.wait_for(lambda: _is_over(span, offset), _STALLED)
        return self.read(view, offset)

    def close(self) -> None:
        """End, with the fill; idempotent."""
        with self._lock:
            self._stopped = self._keeps_nothing = True
            self._ended.notify_all()
        self._cells.close()

    def _is_worth(self, start: int, end: int) -> bool:
        return end > start and (end - start >= WORTH or end == self.length)

    def _are_many(self) -> bool:
        """Whether waiting readers poll."""
        return len(self._readers) > MANY_READERS

    def _wants(self, span: Span) -> bool:
        if self._keeps_nothing or not span.running or span.position >= span.end:
            return False
        if self._passed >= span.start or 0 < span.position - span.start < WORTH:
            return True  # the filler is there; or it would fetch so little again
        return any(offset < span.end and end > span.position for offset, end in self._readers.values())


def _is_over(span: Span, offset: int) -> bool:
    """Whether `span` has the byte at `offset`, or will not bring it."""
    return offset < span.position or not span.running or offset >= span.end
