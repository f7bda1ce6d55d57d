"""The hashes of an object that grows."""

from __future__ import annotations

import hashlib
import threading
from typing import Any, Optional

from storage.store import Digest

_ALONE = 4 * 1024 * 1024  # octets that are hashed before a thread for it is worth while


class Hashes:
    """SHA-256 and, where the object is named by another one, that.

    A large object is hashed by a thread of its own, so that the one who brings the octets can bring the next meanwhile.
    Where no name promises a digest, nothing depends on the hash for now, and nobody is to be slower for it: as soon as
    the thread does not keep up, it is `late`, and leaves the rest for when somebody has the time to `go_on`.
    """

    def __init__(self, digest: Optional[Digest]) -> None:
        self._sha256 = hashlib.sha256()
        self._check = self._sha256 if digest is None or digest.algorithm == "sha256" else hasher(digest)
        self._can_wait = digest is None
        self._hashed = 0
        self.late = False
        self._thread: Optional[threading.Thread] = None
        self._changed = threading.Condition()  # guards the two below
        self._waiting: Optional[memoryview] = None  # handed over, and not hashed yet
        self._closed = False

    def update(self, data: memoryview) -> None:
        """The next octets. They must stay as they are until the next call of anything here returns."""
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
        """Be late no longer: the octets from this offset on are wanted, once more."""
        self.settle()
        self.late = False
        return self._hashed

    def settle(self) -> None:
        """Wait until all is hashed that was taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None)

    @property
    def sha256(self) -> str:
        """Hexadecimal."""
        self.settle()
        return str(self._sha256.hexdigest())

    @property
    def check(self) -> str:
        """The hash that the object's name promises, or SHA-256."""
        self.settle()
        return str(self._check.hexdigest())

    def close(self) -> None:
        """End the thread, if there is one; harmless twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> bool:
        """Begin to hash in a thread, if that is worth while and the system has room for one."""
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


def hasher(digest: Digest) -> Any:
    """What computes such a digest."""
    if digest.algorithm == "blake2b":
        return hashlib.blake2b(digest_size=len(digest.hex) // 2)
    return hashlib.new(digest.algorithm)
