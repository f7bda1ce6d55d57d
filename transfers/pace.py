"""How fast an origin sends: the mean of the last seconds."""

from __future__ import annotations

import time
from typing import Callable, Optional, Tuple

_SOONEST = 0.25  # seconds; before that nothing is known
_INTERVAL = 1.0  # seconds; the mean is that of one to two intervals


class Pace:
    """Bytes as they come, and their rate. For one thread at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count = 0
        self._from: Optional[Tuple[float, int]] = None  # where the mean begins
        self._next = (0.0, 0)  # where the next one will

    def note(self, count: int) -> None:
        """Bytes have come; the first call is the beginning."""
        now = self._clock()
        self._count += count
        if self._from is None:
            self._from = self._next = now, self._count
        elif now - self._next[0] >= _INTERVAL:
            self._from, self._next = self._next, (now, self._count)

    @property
    def rate(self) -> Optional[float]:
        """Bytes a second; None in the beginning."""
        if self._from is None:
            return None
        since, before = self._from
        elapsed = self._clock() - since
        return (self._count - before) / elapsed if elapsed >= _SOONEST else None
