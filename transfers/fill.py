"""A fill: one transfer into one growing file, and its readers.

Within a process, a condition on the `Fill` announces changes; for other processes the growing file does (see `follow`).
A fill wakes all its readers however it ends.
"""

from __future__ import annotations

import threading
from typing import Callable, Dict, Optional

from net import client_watch
from storage.store import Key, Lost, Metadata, Paths, Store, Version, read_bytes
from transfers.asking import Asking
from transfers.growing_file import AcquireResult as AcquireResult
from transfers.growing_file import DiskRefused, GrowingFile
from transfers.growing_file import PartialDownload as PartialDownload
from transfers.hashing import Hashes
from transfers.pacing import MANY_READERS, wait_for_bytes
from transfers.states import COMPLETE, TRANSITIONS
from transfers.states import DigestMismatch as DigestMismatch
from transfers.states import FillFailed as FillFailed
from transfers.states import FillState as FillState
from transfers.window import WINDOW_LIMIT, Window

# Readers get the last bytes of a digest-named object only once the digest matches: no reader gets a whole wrong object.
HOLD_BACK = 64 * 1024

_SLOWEST_READER_TIMEOUT = 30.0  # seconds without progress before a fill without a disk drops its slowest reader
_ACQUIRE_TIMEOUT = 10.0  # seconds to wait for another thread's `acquire`; then the claim starts again


class Fill:
    """One transfer into one growing file. Its leader writes it while any number of threads read it.

    Readers call `attach`, `detach`, `wait_head`, `ready` and `read_at`; everything else is for the leader. `on_done` is
    called at the end of the fill, just before its readers are notified. A published object of the version `beyond` is
    to be replaced or revalidated.
    """

    def __init__(
        self,
        store: Store,
        key: Key,
        paths: Paths,
        on_done: Callable[[Fill], None],
        beyond: Optional[Version] = None,
    ) -> None:
        self.asking = Asking()
        self.file = GrowingFile(store, paths, key.digest, beyond)
        self._digest = key.digest
        self._on_done = on_done
        self._hashes, self._size = Hashes(key.digest), 0
        # Guards everything below, and is notified of changes (many readers poll). `available` reads without it.
        self._changed = threading.Condition()
        self._window: Optional[Window] = None  # bytes that the disk did not accept
        self._positions: Dict[object, int] = {}  # of the readers: they need no bytes before these
        self._users = 1  # users of the descriptor: the leader and every attached reader
        self._released = 0  # bytes that readers may read
        self._acquired: Optional[AcquireResult] = None  # the result of `acquire`, once it has ended
        self._cause: object = None
        self.state = FillState.ASKING
        self.metadata: Optional[Metadata] = None
        self.length: Optional[int] = None

    # The leader's side

    def acquire(self) -> AcquireResult:
        """Become the writer of the growing file, or find out which process is; notify the threads in `wait_acquired`.

        Unless this process is the writer, the fill is over. Raises Unstorable.
        """
        acquired = AcquireResult.UNKNOWN
        try:
            acquired = self.file.acquire()
        finally:
            if acquired is not AcquireResult.MINE:
                self._finish(FillState.GONE)
            with self._changed:
                self._acquired = acquired
                self._changed.notify_all()
        return acquired

    @property
    def partial_download(self) -> Optional[PartialDownload]:
        """What an earlier leader left: `resume` continues it, `start` discards it."""
        return self.file.partial_download

    def start(self, metadata: Metadata, length: Optional[int], resumable: bool = False) -> None:
        """Keep the origin's answer: `length` bytes are coming, or an unknown number.

        `resumable`: after a crash, another leader can fetch the rest. Raises Unstorable; the fill can then still be
        declined.
        """
        self.file.start(metadata, length, resumable)
        with self._changed:
            self.metadata, self.length = metadata, length
            self._enter_state(FillState.FILLING)

    def resume(self, metadata: Metadata) -> None:
        """Continue a partial download; its bytes are at once available to readers. Raises Unstorable."""
        left = self.partial_download
        assert left is not None
        self.file.resume(left, metadata)
        with self._changed:
            self.metadata, self.length, self._size = metadata, left.length, left.size
            self._released = max(0, left.size - (HOLD_BACK if self._digest is not None else 0))
            self._enter_state(FillState.FILLING)

    def catch_up(self) -> None:
        """Hash the earlier bytes; a no-op on a new fill. Raises FillFailed, Lost where the disk has lost them."""
        self._hashes.catch_up(self.file.fd, self._size)

    def write(self, data: memoryview) -> None:
        """Append bytes and release them to the readers. Raises FillFailed where there is neither a disk nor a reader.

        The bytes must not change until the next call returns: they may still be hashed. When the disk accepts no more,
        the bytes pass through memory, and the fill is as slow as its slowest reader.
        """
        on_disk = self._write_to_disk(data) if self._window is None else 0
        self._hashes.update(data)
        self._size += len(data)
        if on_disk < len(data):
            self._write_to_memory(data[on_disk:])
        if self._digest is None and self._size == self.length:
            return  # `publish` releases the last piece: a reader with all bytes then finds the object published
        released = self._size if self._digest is None else self._size - HOLD_BACK
        with self._changed:
            if released > self._released:
                self._released = released
                if len(self._positions) <= MANY_READERS:
                    self._changed.notify_all()

    def publish(self) -> bool:
        """Verify the complete body, publish it and release the last bytes; whether it was kept.

        Raises FillFailed where length or digest differ; nothing is published then, and the caller must fail the fill.
        """
        self._verify()
        kept = self._window is None and self._put_in_place()
        self._finish(FillState.PUBLISHED if kept else FillState.UNKEPT)
        return kept

    def make_durable(self) -> None:
        """Make a published object survive a loss of power; called when no client waits any more.

        Raises OSError, Unstorable, and FillFailed or Lost where the object was lost and is therefore unpublished.
        """
        if self.state is not FillState.PUBLISHED:
            return
        if self._hashes.late:
            self.file.hash_the_rest(self._size, self._hashes)
        self.file.make_durable()

    def fail(self, cause: object) -> None:
        """Break off: nothing is published; readers that want more bytes get `cause`."""
        self._finish(FillState.FAILED, cause)

    def decline(self) -> None:
        """Do not keep the origin's answer."""
        self._finish(FillState.DECLINED)

    def renew(self) -> None:
        """End without a transfer: the published object is still good, and new claims find it so."""
        self._finish(FillState.GONE)

    @property
    def verifies(self) -> bool:
        """Whether a digest proves the whole object, wherever its parts come from."""
        return self._digest is not None

    @property
    def unread(self) -> bool:
        """Whether no reader in this process is attached."""
        return self._users <= 1

    def abandon(self) -> bool:
        """Stop, so that a later claim can continue; False where a reader, in any process, is attached."""
        return not self.file.is_of_interest and self._stop(although_read=False)

    def hand_over(self) -> bool:
        """Stop, so that one of the readers can continue; False where nothing would prove the rest."""
        return self.file.is_resumable and self._stop(although_read=True)

    def hand_on(self) -> None:
        """The leader's client has gone before there was an answer: claims start again, with the partial download."""
        if not self.hand_over():
            self.renew()

    def _stop(self, although_read: bool) -> bool:
        with self._changed:
            if (self._users > 1 and not although_read) or self._window is not None or self.state.final:
                return False
        self.file.leave_partial(self._size)
        self._on_done(self)
        self.file.unlock()
        with self._changed:
            self._enter_state(FillState.GONE)  # only after `_on_done`: a new claim does not find this fill
        return True

    def close(self) -> None:
        """End the leader's part, on every path; a fill that is not over by then has failed."""
        try:
            self._hashes.close()
        finally:
            self._finish(FillState.FAILED, "abandoned by its leader")
            self.detach()

    # The readers' side

    def attach(self) -> None:
        """Add a reader, so that the file stays open for it; `detach` removes it."""
        with self._changed:
            self._users += 1

    def enter(self, reader: object) -> None:
        """Register an attached reader that is assumed to want every byte from the first one on."""
        with self._changed:
            self._place_reader(reader, self._positions.get(reader, 0))

    def detach(self, reader: object = None) -> None:
        """Remove a user; the last one closes the file."""
        with self._changed:
            self._users -= 1
            last = not self._users
            if self._positions.pop(reader, None) is not None:
                self._changed.notify_all()
        if last:
            self.file.close()

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
        if self.available(offset) >= len(view) and self._window is None:
            return read_bytes(self.file.fd, view, offset)
        with self._changed:
            self._place_reader(reader, offset)
            if self._window is not None:
                self._changed.notify_all()
            arrived = self._wait_for_bytes(offset, timeout, backoff)
            if self._window is not None and self._window.has_dropped(offset):
                self._positions.pop(reader, None)  # it continues elsewhere; the fill must not wait for it
                self._changed.notify_all()
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

    @property
    def cause(self) -> object:
        """Why the fill failed or is not kept."""
        return self._cause

    @property
    def size(self) -> int:
        """Bytes written so far; for the leader only."""
        return self._size

    # Internals

    def _place_reader(self, reader: object, offset: int) -> None:
        """Record a reader's position; the caller holds the lock."""
        if len(self._positions) == MANY_READERS and reader not in self._positions:
            self._changed.notify_all()  # from now on, waiting readers poll
        self._positions[reader] = offset

    def _wait_for_bytes(self, offset: int, timeout: float, backoff: float = 0.0) -> bool:
        """Wait until bytes at `offset` are there or never will be; False after `timeout` seconds. The lock is held."""

        def arrived(count: int) -> bool:
            return self.state.final or self._released - offset >= (count if self._window is None else 1)

        return wait_for_bytes(
            self._changed, arrived, lambda: len(self._positions) > MANY_READERS, timeout, backoff=backoff
        )

    def _ending(self) -> Exception:
        """The exception that says why there are no more bytes."""
        return Lost("it was given up") if self.state is FillState.GONE else FillFailed(self._cause)

    def _write_to_disk(self, data: memoryview) -> int:
        """Write `data` to the disk; how many bytes it accepted. From now on the window gets the rest."""
        try:
            self.file.write(data, self._size)
        except DiskRefused as error:
            self._leave_the_disk(error)
            return error.written
        return len(data)

    def _leave_the_disk(self, error: DiskRefused) -> None:
        """Continue in memory after the bytes that were written.

        No reader that needs the beginning may join, and the disk space is of more use to others.
        """
        self._cause = error.reason
        self.file.leave_disk(error.reason, self.length or 2 * self._size)
        self._on_done(self)
        with self._changed:
            self._window = Window(self._size + error.written)

    def _write_to_memory(self, data: memoryview) -> None:
        """Append to the window once its readers have made space, or were dropped as too slow."""
        with self._changed:
            window = self._window
            assert window is not None

            def has_space() -> bool:
                assert window is not None
                window.drop_before(min(self._positions.values(), default=window.end))
                return window.size + len(data) <= WINDOW_LIMIT

            before = dict(self._positions)
            while not self._changed.wait_for(has_space, _SLOWEST_READER_TIMEOUT):
                # A reader without progress for so long is dropped, for the sake of the others.
                for reader in [one for one, at in before.items() if self._positions.get(one) == at < window.end]:
                    del self._positions[reader]
                before = dict(self._positions)
            if not self._positions and self._users <= 1:
                raise FillFailed("the disk is full, and nobody reads it")
            window.append(data)

    def _put_in_place(self) -> bool:
        """Rename the file into its place, with its record; whether that succeeded."""
        assert self.metadata is not None
        try:
            self.file.publish(self.metadata, self._size, self._hashes)
        except DiskRefused as error:
            self._cause = error.reason
            return False
        return True

    def _verify(self) -> None:
        if self.length is not None and self._size != self.length:
            raise FillFailed(f"{self._size} bytes instead of {self.length}")
        if self._digest is not None and self._hashes.check != self._digest.hex:
            raise DigestMismatch(f"its bytes have not the digest {self._digest}")

    def _finish(self, state: FillState, cause: object = None) -> None:
        with self._changed:
            if self.state.final:
                return
        kept = state is FillState.FAILED and self.state is FillState.ASKING and self.partial_download is not None
        if state is not FillState.PUBLISHED and not kept:
            self.file.remove()
        self.file.end_growth(self._size if state is FillState.PUBLISHED else 0)
        self._on_done(self)
        unhashed = state is FillState.PUBLISHED and self._hashes.late
        if not unhashed:  # otherwise the lock shows that the hash is still to come
            self.file.unlock()
        with self._changed:
            if state in COMPLETE:  # only now: a reader with all bytes finds the object published, and no fill
                self._released = self.length = self._size
            self._cause = cause or self._cause
            self._enter_state(state)

    def _enter_state(self, state: FillState) -> None:
        """Change the state, and wake all who wait; no other method does. The caller holds the lock."""
        assert state in TRANSITIONS[self.state], f"a fill that is {self.state.name} does not become {state.name}"
        self.state = state
        self._changed.notify_all()
