"""The hashes of a growing object."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from typing import Any, Optional

from storage.entry import pieces, read_bytes
from storage.record import Digest
from transfers.states import DigestMismatch, FillFailed

_ALONE = 4 * 1024 * 1024  # bytes hashed before a thread is worth its cost


class Hashes:
    """SHA-256 and, where the object is named by another hash, that one.

    A thread of its own hashes a large object, so that the next bytes can be fetched meanwhile. Where no name promises a
    digest, nothing needs the hash yet, and it must delay no reader: once the thread falls behind, the hash is `late`,
    and hashing stops until `go_on`.
    """

    def __init__(self, digest: Optional[Digest]) -> None:
        self._digest = digest
        self._sha256 = hashlib.sha256()
        self._check: Any = self._sha256 if digest is None or digest.algorithm == "sha256" else digest.hasher()
        self._can_wait = digest is None
        self._hashed = 0
        self.late = False
        self._thread: Optional[threading.Thread] = None
        self._changed = threading.Condition()  # guards the two attributes below
        self._waiting: Optional[memoryview] = None  # given to the thread, and not hashed yet
        self._closed = False

    def update(self, data: memoryview) -> None:
        """Take the next bytes. They must not change until the next call of any method returns."""
        if self.late:
            return
        if self._thread is None and not self._start():
            self._hash(data)
            return
        with self._changed:
            self.late = self._can_wait and self._waiting is not None
            self._changed.wait_for(lambda: self._waiting is None)
            if not self.late:
                self._waiting = data
                self._changed.notify_all()

    def go_on(self) -> int:
        """Stop being late; the offset from which on the caller must pass the bytes again."""
        self.finish()
        self.late = False
        return self._hashed

    def catch_up(self, fd: int, size: int) -> None:
        """Hash the first `size` bytes of a file as far as they are not; a no-op where all are.

        Raises FillFailed, Lost where the disk has lost them.
        """
        for piece in pieces(partial(read_bytes, fd), self.go_on(), size):
            self.update(piece)
            self.finish()
        if self._hashed < size:
            raise FillFailed("what was there of it has been cut off")

    def finish(self) -> None:
        """Wait until all accepted bytes are hashed."""
        if self._thread is None:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None)

    @property
    def sha256(self) -> str:
        """The SHA-256, hexadecimal."""
        self.finish()
        return str(self._sha256.hexdigest())

    @property
    def check(self) -> str:
        """The hash that the object's name promises, or SHA-256; hexadecimal."""
        self.finish()
        return str(self._check.hexdigest())

    def verify(self) -> None:
        """Compare the bytes with the digest in the object's name, if there is one. Raises DigestMismatch."""
        if self._digest is not None and self.check != self._digest.hex:
            raise DigestMismatch(f"its bytes do not match the digest {self._digest}")

    def close(self) -> None:
        """End the thread, if there is one; idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> bool:
        """Start to hash in a thread, if that is worth its cost and the system allows one."""
        if self._hashed < _ALONE:
            return False
        thread = threading.Thread(target=self._run, name="hash", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting is not None)
                data = self._waiting
            if data is None:
                return
            self._hash(data)
            with self._changed:
                self._waiting = None
                self._changed.notify_all()

    def _hash(self, data: memoryview) -> None:
        self._sha256.update(data)
        if self._check is not self._sha256:
            self._check.update(data)
        self._hashed += len(data)
