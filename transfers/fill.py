"""A fill: one transfer into one growing file.

Within a process, a condition on the `Fill` announces changes; for other processes the growing file does (see `follow`).
"""

from __future__ import annotations

from typing import Callable, Optional

from storage.entry import Version
from storage.record import Metadata
from storage.store import Key, Paths, Store
from transfers.acquiring import AcquireResult, PartialDownload
from transfers.asking import Asking
from transfers.growing_file import DiskRefused, GrowingFile
from transfers.hashing import Hashes
from transfers.hold_back import releasable
from transfers.readable_fill import ReadableFill
from transfers.states import COMPLETE, FillFailed, FillState
from transfers.window import Window


class Fill(ReadableFill):
    """One transfer into one growing file. Its leader writes it while any number of threads read it.

    This is the leader's side; the readers' side is inherited, and never changes the file. `on_done` is called at the
    end of the fill, just before its readers are notified. A published object of the version `beyond` is to be replaced
    or revalidated.
    """

    def __init__(
        self,
        store: Store,
        key: Key,
        paths: Paths,
        on_done: Callable[[Fill], None],
        beyond: Optional[Version] = None,
    ) -> None:
        super().__init__(GrowingFile(store, paths, key.digest, beyond))
        self.asking = Asking()
        self._hashes = Hashes(key.digest)
        self._on_done = on_done

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
            self.note_acquired(acquired)
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
            self.metadata, self.length, self.size = metadata, left.length, left.size
            self._released = releasable(left.size, left.length, self.verifies)
            self._enter_state(FillState.FILLING)

    def catch_up(self) -> None:
        """Hash the earlier bytes; a no-op on a new fill. Raises FillFailed, Lost where the disk has lost them."""
        self._hashes.catch_up(self.file.fd, self.size)

    def write(self, data: memoryview) -> None:
        """Append bytes and release them to the readers. Raises FillFailed where there is neither a disk nor a reader.

        The bytes must not change until the next call returns: they may still be hashed. When the disk accepts no more,
        the bytes pass through memory, and the fill is as slow as its slowest reader.
        """
        on_disk = self._write_to_disk(data) if self._window is None else 0
        self._hashes.update(data)
        self.size += len(data)
        released = releasable(self.size, self.length, self.verifies)
        with self._changed:
            if self._window is not None and on_disk < len(data):
                self._readers.make_space(self._window, len(data) - on_disk)
                self._window.append(data[on_disk:])
            if not self.verifies and self.size == self.length:
                return  # `publish` releases the last piece: a reader with all bytes then finds the object published
            if released > self._released:
                self._released = released
                if not self._readers.are_many():
                    self._changed.notify_all()

    def publish(self) -> bool:
        """Verify the complete body, publish it and release the last bytes; whether it was kept.

        Raises FillFailed where length or digest differ; nothing is published then, and the caller must fail the fill.
        """
        if self.length is not None and self.size != self.length:
            raise FillFailed(f"{self.size} bytes instead of {self.length}")
        self._hashes.verify()
        kept = self._window is None
        if kept:
            assert self.metadata is not None
            try:
                self.file.publish(self.metadata, self.size, self._hashes)
            except DiskRefused as error:
                self.cause, kept = error.reason, False
        self._finish(FillState.PUBLISHED if kept else FillState.UNKEPT)
        return kept

    def store_whole(self, metadata: Metadata, body: bytes) -> bool:
        """Start, write and publish at once: all of the object is here; whether it was kept.

        It never waits for readers, who hear of it at its end, nor for a sync. Where the disk refuses, they get
        the bytes from memory. Raises Unstorable like `start`; the fill can then still be declined. Raises FillFailed
        where the digest differs; nothing is written then, and the fill can still be started, or failed.
        """
        view, hashes, kept = memoryview(body), Hashes(self.file.digest), True
        hashes.update(view)
        hashes.verify()
        try:
            self.file.store_whole(metadata, view, hashes)
        except DiskRefused as error:
            self.cause, kept = error.reason, False
        self._hashes = hashes  # only now: until then the fill can still be started
        with self._changed:
            self.metadata, self.length, self.size = metadata, len(body), len(body)
            if not kept:
                self._window = Window(0)
                self._window.append(view)
            self._enter_state(FillState.FILLING)
        self._finish(FillState.PUBLISHED if kept else FillState.UNKEPT)
        return kept

    def make_durable(self) -> None:
        """Make a published object survive a loss of power; called when no client waits any more.

        Where the cache's thread for it runs, a small object is left to that, and nothing is waited for.
        Raises OSError, Unstorable, and FillFailed or Lost where the object was lost and is therefore unpublished.
        """
        if self.state is not FillState.PUBLISHED:
            return
        if self._hashes.late:
            self.file.hash_the_rest(self.size, self._hashes)
        self.file.make_durable(self.size)

    def fail(self, cause: object) -> None:
        """Break off: nothing is published; readers that want more bytes get `cause`."""
        self._finish(FillState.FAILED, cause)

    def decline(self) -> None:
        """Do not keep the origin's answer."""
        self._finish(FillState.DECLINED)

    def renew(self) -> None:
        """End without a transfer: the published object is still good, and new claims find it so."""
        self._finish(FillState.GONE)

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

    def close(self) -> None:
        """End the leader's part, on every path; a fill that is not over by then has failed."""
        if self.far is not None:
            self.far.close()
        try:
            self._hashes.close()
        finally:
            try:
                self._finish(FillState.FAILED, "abandoned by its leader")
            finally:
                self.detach()

    def _write_to_disk(self, data: memoryview) -> int:
        """Write `data` to the disk; how many bytes it accepted. If not all, the fill goes on in memory.

        No reader that needs the beginning may join then, and the disk space is of more use to others.
        """
        try:
            self.file.write(data, self.size)
        except DiskRefused as error:
            self.cause = error.reason
            if self.far is not None:
                self.far.leave_disk()
            self.file.leave_disk(error.reason, self.length or 2 * self.size)
            self._on_done(self)
            with self._changed:
                self._window = Window(self.size + error.written)
            return error.written
        return len(data)

    def _stop(self, although_read: bool) -> bool:
        """End without a failure, and leave what can be resumed; whether that was possible."""
        with self._changed:
            if not (self.unread or although_read) or self._window is not None or self.state.final:
                return False
        self.file.leave_partial(self.size)
        self._on_done(self)
        self.file.unlock()
        with self._changed:
            self._enter_state(FillState.GONE)  # only after `_on_done`: a new claim does not find this fill
        return True

    def _finish(self, state: FillState, cause: object = None) -> None:
        """End, unless the fill is over already."""
        with self._changed:
            if self.state.final:
                return
        kept = state is FillState.FAILED and self.state is FillState.ASKING and self.partial_download is not None
        if state is not FillState.PUBLISHED and not kept:
            self.file.remove()
        self.file.end_growth(self.size if state is FillState.PUBLISHED else 0)
        self._on_done(self)
        unhashed = state is FillState.PUBLISHED and self._hashes.late
        if not unhashed:  # otherwise the lock shows that the hash is still to come
            self.file.unlock()
        with self._changed:
            if state in COMPLETE:  # only now: a reader with all bytes finds the object published, and no fill
                self._released = self.length = self.size
            self.cause = cause or self.cause
            self._enter_state(state)
