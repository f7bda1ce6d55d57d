"""The growing file of a fill: locked, written, and renamed into its place.

Between processes the file is the whole protocol: the holder of its lock leads, its size is the progress, and its record
tells how the fill ended (see `follow`). So everything that changes the file, its name or its lock is here.
"""

from __future__ import annotations

import contextlib
import os
from typing import Optional

from monitoring.redaction import reason_of, shown
from storage.entry import Lost, Version
from storage.locks import is_file, is_of_interest, unlock
from storage.own_files import GROWING_SUFFIX
from storage.record import Digest, Metadata, Record, Unstorable
from storage.records import partial_download_record
from storage.space import Growth
from storage.store import Paths, Store
from storage.syncing import QUEUED_SIZE, Taken
from storage.tree import remove_growing_file
from transfers.acquiring import AcquireResult, PartialDownload, acquire
from transfers.hashing import Hashes
from transfers.states import FillFailed

_SURELY_SHORT = 1024  # characters of metadata: no escape in JSON makes three times as many of them


class DiskRefused(Exception):
    """The disk does not keep the file; of the last piece, it has accepted `written` bytes."""

    def __init__(self, reason: object, written: int = 0) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.written = written


class GrowingFile:
    """The file of one fill. Only the leader changes it; readers use `fd`, which is -1 while no file is open.

    A published object of the version `beyond` is to be replaced or revalidated. `digest` is the one that names the
    object, if any.
    """

    def __init__(self, store: Store, paths: Paths, digest: Optional[Digest], beyond: Optional[Version]) -> None:
        self._store = store
        self.digest = digest
        self._beyond = beyond
        self.place, self._alias = paths.object, paths.alias
        self._path = self.place + GROWING_SUFFIX
        self._published_at = self.place  # unless a folder blocks that path
        self._growth: Optional[Growth] = None  # while the file takes up disk space
        self._began_at = 0  # bytes that an earlier leader left
        self.beside = 0  # bytes that take up disk space until their turn comes (see `far_bytes`)
        self.fd = -1
        self.partial_download: Optional[PartialDownload] = None  # `resume` continues it; `start` discards it

    def acquire(self) -> AcquireResult:
        """Lock the file, or find out why this process must not write it. Raises Unstorable."""
        acquired = acquire(self._store, self.place, self._beyond)
        self.fd, self.partial_download = acquired.fd, acquired.partial_download
        return acquired.result

    def start(self, metadata: Metadata, length: Optional[int], resumable: bool) -> None:
        """Begin with the first byte. Raises Unstorable."""
        self._growth = self._store.begin_growth(length)
        if self.partial_download is not None:
            self._start_over()
        boot = self._store.boot if resumable and length else ""
        self._store.records.write(self.fd, Record(metadata, length or 0, boot=boot))

    def resume(self, left: PartialDownload, metadata: Metadata) -> None:
        """Continue after the bytes that are left. Raises Unstorable."""
        self._growth = self._store.begin_growth(left.length)
        self._store.records.write(self.fd, Record(metadata, left.length, boot=self._store.boot))
        self._began_at = left.size

    def write(self, data: memoryview, offset: int) -> None:
        """Write the next bytes. Raises DiskRefused where the disk or its limits do not accept all of them."""
        grown = offset - self._began_at + self.beside
        if self._growth is not None and grown >= self._growth.next_look:
            reason = self._growth.objection(grown)
            if reason:
                raise DiskRefused(reason)
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self.fd, data[done:], offset + done)
        except OSError as error:
            raise DiskRefused(str(reason_of(error)), done) from error

    def leave_disk(self, reason: object, wanted: int) -> None:
        """Remove the name of a file that the disk refused, so that the space can be used for `wanted` bytes.

        What was written stays readable through `fd`.
        """
        self._store.trouble.warning("Goes on without the disk: %s: %s", shown(self.place), reason)
        remove_growing_file(self._path, self.fd)
        self.end_growth()
        self._store.space.wish(wanted)

    def store_whole(self, metadata: Metadata, body: memoryview, hashes: Hashes) -> None:
        """Begin with all bytes, and publish. Raises Unstorable before anything is written, then DiskRefused."""
        self._store.check_space(len(body))
        if _may_be_too_long(metadata):
            Record(metadata, len(body), hashes.sha256, boot=self._store.boot).encode()
        if self.partial_download is not None:
            self._start_over()
        try:
            self.write(body, 0)
        except DiskRefused as error:
            self.leave_disk(error.reason, len(body))
            raise
        self.publish(metadata, len(body), hashes)
        self._store.space.grow(len(body))

    def publish(self, metadata: Metadata, size: int, hashes: Hashes) -> None:
        """Rename the complete file into its place, with its record. Raises DiskRefused."""
        try:
            if not is_file(self._path, self.fd):
                raise Unstorable("its file was taken away")  # the file that has the name now belongs to another process
            late, boot = hashes.late, self._store.boot
            sha256 = "" if late else hashes.sha256
            self._store.records.write(self.fd, Record(metadata, size, sha256, boot=boot, unhashed=late))
            # The alias first: a request that finds the object then finds its alias, too, and need not ask the origin.
            if self._alias is not None and self.digest is not None:
                self._store.write_alias(self._alias, self.digest, metadata)
            self._published_at = self._store.tree.put_in_place(self.place)
        except (OSError, Unstorable) as error:
            reason = reason_of(error)
            self._store.trouble.warning("Cannot keep %s: %s", shown(self.place), reason)
            raise DiskRefused(reason) from error

    def hash_the_rest(self, size: int, hashes: Hashes) -> None:
        """Finish the late hash of the published file, record it and unlock the file.

        Raises Unstorable, and FillFailed or Lost where the object was lost and is therefore unpublished.
        """
        try:
            hashes.catch_up(self.fd, size)
            self._store.records.note_hash(self.fd, hashes.sha256)
        except (FillFailed, Lost):
            if is_file(self._published_at, self.fd):
                self._store.tree.remove(self._published_at)
            raise
        finally:
            self.unlock()

    @property
    def is_acquired(self) -> bool:
        """Whether it is open for its leader."""
        return self.fd >= 0

    def sync_soon(self) -> bool:
        """Leave the sync of the published file to the thread for it; False where there is none. Never waits.

        Not to sync it is safe (storage/syncing).
        """
        places = [self._published_at] if self._alias is None else [self._published_at, self._alias]
        return self._store.syncs.add(places) is not Taken.REFUSED

    def make_durable(self, size: int) -> None:
        """Sync the published file: one of a small size soon, others now. Raises OSError, Unstorable."""
        if size <= QUEUED_SIZE and self.sync_soon():
            return
        self._store.mark_durable(self._published_at)
        if self._alias is not None:
            with contextlib.suppress(Unstorable):  # then there is no alias either; see write_alias
                self._store.mark_durable(self._alias, alias=True)

    @property
    def is_resumable(self) -> bool:
        """Whether a later leader could continue the file as it is."""
        return partial_download_record(self.fd, self._store.boot) is not None

    @property
    def is_of_interest(self) -> bool:
        """Whether a reader in another process has it open, or may have."""
        return is_of_interest(self.fd)

    def leave_partial(self, size: int) -> None:
        """Leave the file to a later leader, or remove it where none could continue it; it stays locked."""
        resumable = self.is_resumable
        self.end_growth(size if resumable else 0)
        if not resumable:
            self.remove()

    def remove(self) -> None:
        """Remove the file and its empty folders, if there is one that belongs to this process."""
        if self.fd >= 0:
            remove_growing_file(self._path, self.fd)
            self._store.tree.prune(self.place)

    def end_growth(self, size: int = 0) -> None:
        """Stop counting the file as growing; it stays with this `size`, or not at all. Idempotent."""
        growth, self._growth = self._growth, None
        if growth is not None:
            growth.end(max(0, size - self._began_at))

    def unlock(self) -> None:
        """Let others have the lock: they see that the fill is over."""
        if self.fd >= 0:
            unlock(self.fd)

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _start_over(self) -> None:
        """Replace the partial download by a fresh inode of the same name. Raises Unstorable.

        Followers in other processes that have read part of it see that it is gone; they get no bytes of another object.
        """
        fd, path = self._store.tree.open_fresh(self.place)
        try:
            os.replace(path, self._path)
        except OSError as error:
            remove_growing_file(path, fd)
            os.close(fd)
            raise Unstorable.of(error) from error
        os.close(self.fd)
        self.fd, self.partial_download = fd, None


def _may_be_too_long(metadata: Metadata) -> bool:
    """Whether it is worth the time to find out whether a record holds the metadata."""
    pairs = (*metadata.fields, *metadata.vary)
    length = sum(len(name) + len(value) for name, value in pairs) + len(metadata.url) + len(metadata.redirect)
    return length > _SURELY_SHORT
