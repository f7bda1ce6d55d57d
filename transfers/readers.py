"""The readers of a fill in this process."""

from __future__ import annotations

import threading
from typing import Dict, Tuple

from transfers.states import FillFailed
from transfers.window import WINDOW_LIMIT, Window

MANY_READERS = 16  # readers; when there are more, they poll instead of being woken
_SLOWEST_READER_TIMEOUT = 30.0  # seconds without progress before a fill without a disk drops its slowest reader


class Readers:
    """Who reads a fill, and how far each reader is. The lock of `changed` guards it: callers hold that lock."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._positions: Dict[object, int] = {}  # the readers need no bytes before these
        self.users = 1  # users of the descriptor: the leader and every attached reader

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def positions(self) -> Tuple[int, ...]:
        """How far the readers are."""
        return tuple(self._positions.values())

    def are_many(self) -> bool:
        """Whether waiting readers poll."""
        return len(self._positions) > MANY_READERS

    def enter(self, reader: object) -> None:
        """Add a reader that is assumed to want every byte from the first one on."""
        self.place(reader, self._positions.get(reader, 0))

    def place(self, reader: object, offset: int) -> None:
        """Record how far a reader is."""
        if len(self._positions) == MANY_READERS and reader not in self._positions:
            self._changed.notify_all()  # from now on, waiting readers poll
        self._positions[reader] = offset

    def remove(self, reader: object) -> None:
        """Wait for a reader no longer; a no-op where it is not known."""
        if self._positions.pop(reader, None) is not None:
            self._changed.notify_all()

    def make_space(self, window: Window, count: int) -> None:
        """Wait until the window has space for `count` bytes: its readers have read on, or are dropped as too slow.

        Raises FillFailed where there is no reader.
        """

        def has_space() -> bool:
            window.drop_before(min(self._positions.values(), default=window.end))
            return window.size + count <= WINDOW_LIMIT

        before = dict(self._positions)
        while not self._changed.wait_for(has_space, _SLOWEST_READER_TIMEOUT):
            # A reader without progress for so long is dropped, for the sake of the others.
            for reader in [one for one, at in before.items() if self._positions.get(one) == at < window.end]:
                del self._positions[reader]
            before = dict(self._positions)
        if not self._positions and self.users <= 1:
            raise FillFailed("the disk is full, and nobody reads it")
