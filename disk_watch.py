"""Whether the cache's disk answers: a network file system may hang, and nobody may hang with it who need not.

Operations of threads are entered here while they last, the oldest first. While one has lasted for too long, and for a
moment after a slow answer, the poller's thread asks the disk nothing; and only so many threads wait for it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Callable, Dict, Iterator

from notices import Seldom
from store import Unstorable

_log = logging.getLogger("dduct")

SLOW = 0.1  # seconds for one operation
_WARY_FOR = 1.0  # seconds after a slow answer
_WAITING_AT_MOST = 64  # threads, while the disk is slow


class DiskWatch:
    """Single operations on the dictionary are atomic; `on_slow` is told of each time that the disk was slow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._in_flight: Dict[object, float] = {}  # since when
        self._wary_until = float("-inf")
        self._trouble = Seldom(_log)
        self.on_slow: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Ask the disk something, in a thread. Raises Unstorable where enough threads wait for it."""
        now = self._clock()
        if len(self._in_flight) >= _WAITING_AT_MOST and self.is_slow(now):
            raise Unstorable("the cache's disk does not answer (misc.file_dir)")
        token = object()
        self._in_flight[token] = now
        try:
            yield
        finally:
            del self._in_flight[token]
            self.note(self._clock() - now)

    def note(self, seconds: float) -> None:
        """An operation has taken so long."""
        if seconds > SLOW:
            self._tell(seconds)

    def is_slow(self, now: float) -> bool:
        """Whether the disk is not to be asked without need."""
        if now < self._wary_until:
            return True
        try:
            oldest = next(iter(self._in_flight.values()), now)
        except RuntimeError:
            return False  # another thread was at it: then it does answer
        if now - oldest <= SLOW:
            return False
        self._tell(now - oldest)
        return True

    def _tell(self, seconds: float) -> None:
        now = self._clock()
        if now >= self._wary_until:
            self.on_slow()
        self._wary_until = now + _WARY_FOR
        self._trouble.warning(
            "The cache's disk is slow: an operation has taken %.1f s (misc.file_dir); clients go on without it", seconds
        )
