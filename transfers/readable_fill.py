"""A fill as its readers see it: its state, the bytes that they may have, and how they wait for more."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Optional, Tuple

from monitoring.redaction import shown
from net import client_watch
from storage.entry import Lost, read_bytes
from storage.record import Metadata
from transfers.acquiring import AcquireResult
from transfers.far_bytes import FarBytes
from transfers.growing_file import GrowingFile
from transfers.pacing import wait_for_bytes
from transfers.readers import Readers
from transfers.states import COMPLETE, TRANSITIONS, FillFailed, FillState
from transfers.window import Window

_ACQUIRE_TIMEOUT = 10.0  # seconds to wait for another thread's `acquire`; then the claim starts again


@dataclass(frozen=True)
class FillSnapshot:
    """A fill at one moment: `size` bytes written, of `length` where known; `positions` of the readers."""

    state: FillState
    size: int
    length: Optional[int]
    positions: Tuple[int, ...]

    @property
    def readers(self) -> int:
        """How many readers there are in this process."""
        return len(self.positions)


class ReadableFill:
    """The readers' side of a `Fill`. Here are its lock and its state; its leader's side changes them.

    Whatever its end, all its readers are woken.
    """

    def __init__(self, file: GrowingFile) -> None:
        self.file = file
        self.size = 0  # bytes written so far; for the leader only
        # Guards everything below, and is notified of changes (many readers poll). `available` reads without it.
        self._changed = threading.Condition()
        self._readers = Readers(self._changed)
        self._window: Optional[Window] = None  # bytes that the disk did not accept
        self._released = 0  # bytes that readers may read
        self._acquired: Optional[AcquireResult] = None  # the result of `acquire`, once it has ended
        self.cause: object = None  # why the fill failed or is not kept
        self.state = FillState.ASKING
        self.metadata: Optional[Metadata] = None
        self.length: Optional[int] = None
        self.far: Optional[FarBytes] = None  # set before it starts, where its origin takes ranges

    def __repr__(self) -> str:
        of = "" if self.length is None else f" of {self.length}"
        progress = f"{self.state.name}, {self.size}{of} bytes, {len(self._readers)} readers"
        return f"<Fill of {shown(self.file.place)}: {progress}>"

    def snapshot(self) -> FillSnapshot:
        """The fill as it is now."""
        with self._changed:
            return FillSnapshot(self.state, self.size, self.length, self._readers.positions)

    def attach(self) -> None:
        """Add a reader, so that the file stays open for it; `detach` removes it."""
        with self._changed:
            self._readers.users += 1

    def enter(self, reader: object) -> None:
        """Register an attached reader that is assumed to want every byte from the first one on."""
        with self._changed:
            self._readers.enter(reader)

    def place(self, reader: object, offset: int) -> None:
        """A reader gets the bytes at `offset` elsewhere: the fill need not keep what comes before."""
        with self._changed:
            self._readers.place(reader, offset)

    def detach(self, reader: object = None) -> None:
        """Remove a user; the last one closes the file."""
        with self._changed:
            self._readers.users -= 1
            last = not self._readers.users
            self._readers.remove(reader)
        if last:
            self.file.close()

    @property
    def verifies(self) -> bool:
        """Whether a digest proves the whole object, wherever its parts come from."""
        return self.file.digest is not None

    @property
    def unread(self) -> bool:
        """Whether no reader in this process is attached."""
        return self._readers.users <= 1

    def note_acquired(self, acquired: AcquireResult) -> None:
        """Record who leads, and wake those in `wait_acquired`.

        A validation leads within this process without a file, which it seldom needs.
        """
        with self._changed:
            self._acquired = acquired
            self._changed.notify_all()

    def wait_acquired(self) -> AcquireResult:
        """The result of another thread's `acquire`; the wait is short, as that does file operations only."""
        with self._changed:
            self._changed.wait_for(lambda: self._acquired is not None, _ACQUIRE_TIMEOUT)
            return self._acquired or AcquireResult.UNKNOWN

    def wait_head(self, timeout: float) -> FillState:
        """The state once it is no longer ASKING, or ASKING after `timeout` seconds."""
        with self._changed:  # the client is polled under the lock, but that poll does not block
            client_watch.wait_for(self._changed, lambda: self.state is not FillState.ASKING, timeout)
            return self.state

    def ready(self, offset: int, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the bytes at `offset`; whether they are there.

        Raises FillFailed, Lost where they will never come.
        """
        with self._changed:
            arrived = self._wait_for_bytes(offset, timeout)
            if self.state.final and self.state not in COMPLETE:
                raise self._ending()  # even with some bytes there: a reader that has none yet needs no partial object
            return arrived

    def available(self, offset: int) -> int:
        """The number of bytes available from `offset` on, as far as a read without the lock can tell."""
        return self._released - offset

    def read_at(
        self, view: memoryview, offset: int, timeout: float, reader: object = None, backoff: float = 0.0
    ) -> int:
        """Read bytes from `offset` on as soon as there are any; 0 at the end of a complete object.

        Raises FillFailed where they will not come or did not come for `timeout` seconds, and Lost where this reader
        cannot get them. A `reader` needs no bytes before its offset. Among many readers, it waits up to `backoff`
        seconds for many bytes.
        """
        # Without the lock, which would make many readers wait for each other: `_released` only grows, and without a
        # window all bytes are on the disk. An outdated position is a lower one, which does no harm.
        if self._released - offset >= len(view) and self._window is None:
            return read_bytes(self.file.fd, view, offset)
        with self._changed:
            self._readers.place(reader, offset)
            if self._window is not None:
                self._changed.notify_all()
            arrived = self._wait_for_bytes(offset, timeout, backoff)
            if self._window is not None and self._window.has_dropped(offset):
                self._readers.remove(reader)  # it continues elsewhere; the fill must not wait for it
                raise Lost("the disk takes no more, and this reader is too slow to do without")
            available = self._released - offset
            if available <= 0:
                if self.state in COMPLETE:
                    return 0
                raise self._ending() if arrived else FillFailed(f"nothing arrived for {timeout:g} s")
            if self._window is not None:
                if offset >= self._window.first:
                    return self._window.read(view[:available], offset)
                available = min(available, self._window.beginning - offset)
        return read_bytes(self.file.fd, view[:available], offset)

    def _enter_state(self, state: FillState) -> None:
        """Change the state, and wake all who wait; no other method does. The caller holds the lock."""
        assert state in TRANSITIONS[self.state], f"a fill that is {self.state.name} does not become {state.name}"
        self.state = state
        self._changed.notify_all()

    def _wait_for_bytes(self, offset: int, timeout: float, backoff: float = 0.0) -> bool:
        """Wait until bytes at `offset` are there or never will be; False after `timeout` seconds. The lock is held."""

        def arrived(count: int) -> bool:
            return self.state.final or self._released - offset >= (count if self._window is None else 1)

        return wait_for_bytes(self._changed, arrived, self._readers.are_many, timeout, backoff=backoff)

    def _ending(self) -> Exception:
        """The exception that says why there are no more bytes."""
        return Lost("it was given up") if self.state is FillState.GONE else FillFailed(self.cause)
