"""Readers of a fill, and the view of a fill that another process leads.

Between processes the growing file is the whole protocol: the holder of its lock leads, its size is the progress, and
its record tells how the fill ended.
"""

from __future__ import annotations

import os
import time
from typing import Iterator, Optional, Union

from net import client_watch
from storage.entry import Lost, read_bytes
from storage.locks import is_file, show_interest, try_lock, unlock
from storage.own_files import GROWING_SUFFIX
from storage.record import Metadata
from storage.records import is_blank, readable_record
from storage.tree import remove_growing_file
from transfers.fill import Fill
from transfers.hold_back import releasable
from transfers.pacing import PIECE, POLL_INTERVAL, backoff_seconds
from transfers.states import FillState

_POLL_SHORTEST, _POLL_LONGEST = 0.001, 0.05  # seconds between two polls of another process's fill
FIRST_BYTES = 5.0  # seconds; limited, because some clients give up after 30 without a response head


class ForeignFill:
    """A fill that another process leads, seen through its file; it has the readers' methods of `Fill`."""

    def __init__(self, place: str, fd: int, verifies: bool) -> None:
        self._place = place
        self._fd = fd
        show_interest(fd)
        self._verifies = verifies
        self.state = FillState.ASKING
        self.metadata: Optional[Metadata] = None
        self.length: Optional[int] = None
        self.cause: object = None

    def attach(self) -> None:
        """Do nothing: each follower has its own descriptor."""

    def enter(self, reader: object) -> None:
        """Do nothing: the leader cannot wait for readers of other processes."""

    def detach(self, reader: object = None) -> None:
        """Close the descriptor; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def wait_head(self, timeout: float) -> FillState:
        """See Fill.wait_head; the state is GONE if the leader gave up or died before the head."""
        for _ in _looks(timeout):
            self._look()
            if self.state is not FillState.ASKING:
                break
        return self.state

    def available(self, offset: int) -> int:
        """See Fill.available."""
        return self._size() - offset

    def read_at(
        self, view: memoryview, offset: int, timeout: float, reader: object = None, backoff: float = 0.0
    ) -> int:
        """See Fill.read_at; the number of readers is unknown here."""
        began = time.monotonic()
        wanted = len(view)
        for _ in _looks(timeout, backoff * POLL_INTERVAL):
            if time.monotonic() - began >= backoff:
                wanted = 1
            available = self.available(offset)
            if available < wanted:  # the leader's fate matters only now
                self._look()
                available = self.available(offset)
            if available >= wanted or (available > 0 and self.state.final):
                return read_bytes(self._fd, view[:available], offset)
            if self.state is FillState.PUBLISHED:
                return 0
            if self.state.final:
                raise Lost(self.cause)
            wanted = PIECE
        raise Lost(f"nothing arrived for {timeout:g} s")

    def ready(self, offset: int, timeout: float) -> bool:
        """See Fill.ready."""
        for _ in _looks(timeout):
            self._look()
            if self._size() > offset or self.state is FillState.PUBLISHED:
                return True
            if self.state.final:
                raise Lost(self.cause)
        return False

    def _look(self) -> None:
        if self.state.final:
            return
        ended = self._ending()
        record = readable_record(self._fd)
        if record is not None and not record.asking:
            self.metadata = record.metadata
            self.length = record.length or None
            if self.state is FillState.ASKING:
                self.state = FillState.FILLING
        if ended is None:
            return
        if self.metadata is None:
            ended = FillState.GONE
        if ended is FillState.PUBLISHED:
            self.length = os.fstat(self._fd).st_size
        self.state = ended

    def _ending(self) -> Optional[FillState]:
        """PUBLISHED, FAILED, or None while the leader is still filling."""
        if is_file(self._place + GROWING_SUFFIX, self._fd):
            if not try_lock(self._fd):
                return None
            if is_blank(self._fd):
                # Another process may have failed to lead because of such a poll's lock. Without the file it claims
                # again.
                remove_growing_file(self._place + GROWING_SUFFIX, self._fd)
            unlock(self._fd)
        # The name no longer decides: the object may have been evicted since. The leader writes a complete record last.
        record = readable_record(self._fd)
        if record is not None and record.complete and record.length == os.fstat(self._fd).st_size:
            return FillState.PUBLISHED
        self.cause = "its leader is gone, or gave it up"
        return FillState.FAILED

    def _size(self) -> int:
        """Bytes that may be read; the last ones are held back until the object is known to be published."""
        size = os.fstat(self._fd).st_size
        if self.state is FillState.PUBLISHED:
            return size
        return releasable(size, self.length, self._verifies)


AnyFill = Union[Fill, ForeignFill]


class FillReader:
    """A reader on a fill, attached until it is closed. `timeout` is in seconds."""

    def __init__(self, fill: AnyFill, timeout: float) -> None:
        self.fill = fill
        self.timeout = timeout
        self._open = True
        self._caught_up_at = float("inf")  # never yet: until then there is no backoff
        self._usual = 0  # the largest read so far, in bytes
        fill.enter(self)

    @property
    def length(self) -> Optional[int]:
        """Bytes of the whole object, where known."""
        return self.fill.length

    def ready(self, offset: int, whole: bool) -> bool:
        """Wait briefly for the bytes at `offset`; whether they are there.

        Raises FillFailed, Lost where they will never come.
        """
        return self.fill.ready(offset, min(self.timeout, FIRST_BYTES))

    def read_at(self, view: memoryview, offset: int) -> int:
        """Read bytes from `offset` on as they arrive; 0 at the end. Raises FillFailed, Lost."""
        if self.fill.available(offset) >= len(view):
            return self.fill.read_at(view, offset, self.timeout, self)
        self._usual = max(self._usual, len(view))
        is_last = len(view) < self._usual  # the rest of a span is not worth a backoff
        backoff = 0.0 if is_last else min(backoff_seconds(self._caught_up_at), self.timeout / 2)
        count = self.fill.read_at(view, offset, self.timeout, self, backoff)
        self._caught_up_at = time.monotonic()
        return count

    def close(self) -> None:
        """Detach; idempotent."""
        if self._open:
            self._open = False
            self.fill.detach(self)


def _looks(timeout: float, apart: float = 0.0) -> Iterator[None]:
    """Yield at growing intervals, of at least `apart` seconds, until `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    pause = max(_POLL_SHORTEST, apart)
    while True:
        yield
        if time.monotonic() >= deadline:
            return
        client_watch.check()
        time.sleep(pause)
        pause = max(pause, min(2 * pause, _POLL_LONGEST))
