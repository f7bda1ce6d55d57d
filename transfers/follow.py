"""Reading along: a reader on a fill, and how a fill looks that another process leads.

Between processes the growing file is the whole protocol: who holds its lock leads, its size says how far, and its inode
how it ended.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Iterator, Optional, Union

from net import client_watch
from storage.locks import is_file, show_interest, try_lock
from storage.own_files import PART_SUFFIX
from storage.store import (
    Lost,
    Metadata,
    Record,
    is_blank,
    read_octets,
    read_record,
    remove_part,
)
from transfers.fill import HOLD_BACK, Fill, FillState
from transfers.pacing import LOOKS_APART, PIECE, hesitation

_POLL_SHORTEST, _POLL_LONGEST = 0.001, 0.05  # seconds between two looks at another process's fill
_FIRST_OCTETS = 5.0  # seconds; some clients give up where no head comes for 30, so it must not wait for ever


class ForeignFill:
    """A fill that another process leads, watched through its file; the readers' side of `Fill`."""

    def __init__(self, place: str, fd: int, held_back: bool) -> None:
        self._place = place
        self._fd = fd
        show_interest(fd)
        self._held_back = held_back
        self.state = FillState.ASKING
        self.metadata: Optional[Metadata] = None
        self.length: Optional[int] = None
        self.cause: object = None

    def attach(self) -> None:
        """Each follower has a descriptor of its own: nothing to count."""

    def enter(self, reader: object) -> None:
        """Nor is there anything to wait for."""

    def detach(self, reader: object = None) -> None:
        """Give the descriptor back; harmless twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def wait_head(self, patience: float) -> FillState:
        """See Fill.wait_head; a leader that gave up or died before the head leaves GONE."""
        for _ in _looks(patience):
            self._look()
            if self.state is not FillState.ASKING:
                break
        return self.state

    def available(self, offset: int) -> int:
        """See Fill.available."""
        return self._size() - offset

    def read_at(
        self, view: memoryview, offset: int, patience: float, reader: object = None, hesitate_for: float = 0.0
    ) -> int:
        """See Fill.read_at; whether there is a crowd, nobody knows here."""
        began = time.monotonic()
        wanted = len(view)
        for _ in _looks(patience, hesitate_for * LOOKS_APART):
            if time.monotonic() - began >= hesitate_for:
                wanted = 1
            available = self.available(offset)
            if available < wanted:  # and only then does it matter what has become of its leader
                self._look()
                available = self.available(offset)
            if available >= wanted or (available > 0 and self.state.final):
                return read_octets(self._fd, view[:available], offset)
            if self.state is FillState.PUBLISHED:
                return 0
            if self.state.final:
                raise Lost(self.cause)
            wanted = PIECE
        raise Lost(f"nothing arrived for {patience:g} s")

    def ready(self, offset: int, patience: float) -> bool:
        """See Fill.ready."""
        for _ in _looks(patience):
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
        record = self._record()
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
        """PUBLISHED, FAILED, or None while its leader is at it."""
        if is_file(self._place + PART_SUFFIX, self._fd):
            if not try_lock(self._fd):
                return None
            if is_blank(self._fd):
                # Whoever wanted to lead it may have found it locked by such a look, and leave it to us.
                remove_part(self._place + PART_SUFFIX, self._fd)
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        # Its name counts no longer, for it may have been evicted since. Its leader says so last, when all is right.
        record = self._record()
        if record is not None and record.complete and record.length == os.fstat(self._fd).st_size:
            return FillState.PUBLISHED
        self.cause = "its leader is gone, or gave it up"
        return FillState.FAILED

    def _record(self) -> Optional[Record]:
        try:
            return read_record(self._fd)
        except ValueError:
            return None

    def _size(self) -> int:
        """Octets that may be read: all but some, until the whole is known to be in its place."""
        size = os.fstat(self._fd).st_size
        if self.state is FillState.PUBLISHED:
            return size
        if self._held_back:
            return size - HOLD_BACK
        return size if self.length is None else min(size, self.length - 1)


AnyFill = Union[Fill, ForeignFill]


class FillReader:
    """A reader on a fill, attached until it is closed. `patience` is in seconds."""

    def __init__(self, fill: AnyFill, patience: float) -> None:
        self.fill = fill
        self._patience = patience
        self._open = True
        self._caught_up_at = float("inf")  # not yet; and until then there is nothing to hesitate about
        self._usual = 0  # octets that are asked for at once
        fill.enter(self)

    @property
    def length(self) -> Optional[int]:
        """Octets of the whole object, where known already."""
        return self.fill.length

    def ready(self, offset: int, whole: bool) -> bool:
        """Wait a little for the octets at `offset`; whether they are there.

        Raises FillFailed, Lost where it is clear that they never come.
        """
        return self.fill.ready(offset, min(self._patience, _FIRST_OCTETS))

    def read_at(self, view: memoryview, offset: int) -> int:
        """Octets from `offset` on as they come; 0 at the end. Raises FillFailed, Lost."""
        if self.fill.available(offset) >= len(view):
            return self.fill.read_at(view, offset, self._patience, self)
        self._usual = max(self._usual, len(view))
        is_last = len(view) < self._usual  # more than the rest of a span is not worth waiting for
        hesitate_for = 0.0 if is_last else min(hesitation(self._caught_up_at), self._patience / 2)
        count = self.fill.read_at(view, offset, self._patience, self, hesitate_for)
        self._caught_up_at = time.monotonic()
        return count

    def close(self) -> None:
        """Detach; harmless twice."""
        if self._open:
            self._open = False
            self.fill.detach(self)


def _looks(patience: float, apart: float = 0.0) -> Iterator[None]:
    """Yield at growing intervals, of `apart` seconds at least, until `patience` seconds have passed."""
    deadline = time.monotonic() + patience
    pause = max(_POLL_SHORTEST, apart)
    while True:
        yield
        if time.monotonic() >= deadline:
            return
        client_watch.check()
        time.sleep(pause)
        pause = max(pause, min(2 * pause, _POLL_LONGEST))
