"""A stored object whose octets are compared with their hash while it is sent."""

from __future__ import annotations

import hashlib
import logging
from typing import Optional

from monitoring.redaction import reason_of
from storage.store import Entry, Lost, Unstorable
from transfers.fill import HOLD_BACK, FillFailed

_log = logging.getLogger("dduct.verify")

_AT_ONCE = 1024 * 1024  # octets


class Recheck:
    """A published object that is not to be trusted unseen: nobody gets all of it before its hash has proved right.

    Whoever reads it from the beginning gets it as it is hashed, but for its last octets; whoever wants anything else
    waits until all is hashed. What is wrong is unpublished.
    """

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._size = entry.record.length
        self.length: Optional[int] = self._size
        self._hash = hashlib.sha256()
        self._hashed = 0  # octets
        self._right = False
        self._given = False  # somebody has octets that may be wrong

    def ready(self, offset: int, whole: bool) -> bool:
        """Make sure that there is something to begin with. Raises Lost."""
        if not whole or self._size <= HOLD_BACK:
            self._finish()
        return True

    def read_at(self, view: memoryview, offset: int) -> int:
        """Octets from `offset` on; 0 at the end.

        Raises Lost, or FillFailed where those that were given out before are not to be trusted either.
        """
        if self._right:
            return self._entry.read_at(view, offset)
        try:
            if offset != self._hashed or offset + len(view) > self._size - HOLD_BACK:
                self._finish()
                return self._entry.read_at(view, offset)
            count = self._entry.read_at(view, offset)
        except Lost as error:
            if self._given:
                raise FillFailed(error) from error
            raise
        self._note(view[:count])
        self._given = True
        return count

    def _note(self, data: memoryview) -> None:
        self._hash.update(data)
        self._hashed += len(data)

    def _finish(self) -> None:
        """Hash what is left, and compare. Raises Lost."""
        if self._right:
            return
        view = memoryview(bytearray(min(_AT_ONCE, self._size)))
        while self._hashed < self._size:
            count = self._entry.read_at(view[: self._size - self._hashed], self._hashed)
            if not count:
                break
            self._note(view[:count])
        sha256, record = self._hash.hexdigest(), self._entry.record
        # Who should have hashed it is gone, but not since this boot: what was given to the kernel is what it gives.
        if sha256 != record.sha256 and not (record.unhashed and self._hashed == self._size):
            self._entry.discard()
            raise Lost("it has been damaged on the disk")
        self._right = True
        try:
            self._entry.vouch(sha256)
        except (OSError, Unstorable) as error:
            _log.debug("Right, but cannot be noted so: %s", reason_of(error))
