"""A stored object whose bytes are verified while they are sent."""

from __future__ import annotations

import hashlib
import logging
from typing import Optional

from monitoring.redaction import reason_of
from storage.entry import Entry, Lost, pieces
from storage.record import Unstorable
from transfers.hold_back import releasable
from transfers.states import FillFailed

_log = logging.getLogger("dduct.verify")


class VerifyingReader:
    """A published object that needs verification: no reader gets all of it before its hash matches.

    A reader from the first byte gets the bytes as they are hashed, except the last ones. Any other reader waits until
    the whole object is hashed. A damaged object is unpublished.
    """

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._size = entry.record.length
        self.length: Optional[int] = self._size
        self._hash = hashlib.sha256()
        self._hashed = 0  # bytes
        self._releasable = releasable(self._size, self._size, verifies=True)
        self._right = False
        self._given = False  # a reader has bytes that may be wrong

    def ready(self, offset: int, whole: bool) -> bool:
        """Hash the object first where it cannot be sent while it is hashed. Raises Lost."""
        if not whole or not self._releasable:
            self._finish()
        return True

    def read_at(self, view: memoryview, offset: int) -> int:
        """Read bytes from `offset` on; 0 at the end.

        Raises Lost, or FillFailed where the bytes already given to the reader may be wrong, too.
        """
        if self._right:
            return self._entry.read_at(view, offset)
        try:
            if offset != self._hashed or offset + len(view) > self._releasable:
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
        """Hash the remaining bytes, and compare. Raises Lost."""
        if self._right:
            return
        for piece in pieces(self._entry.read_at, self._hashed, self._size):
            self._note(piece)
        sha256, record = self._hash.hexdigest(), self._entry.record
        # If it is unhashed, its process ended before hashing it, but within this boot: the kernel still has the right
        # bytes.
        if sha256 != record.sha256 and not (record.unhashed and self._hashed == self._size):
            self._entry.discard()
            raise Lost("it has been damaged on the disk")
        self._right = True
        try:
            self._entry.mark_verified(sha256)
        except (OSError, Unstorable) as error:
            _log.debug("Verified, but its record cannot be written: %s", reason_of(error))
