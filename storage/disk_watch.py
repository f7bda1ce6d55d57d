"""Whether the cache's disk answers: a network file system may hang, and nobody may hang with it who need not.

Operations of threads are entered here while they last, the oldest first. While one has lasted for too long, and for a
moment after a slow answer, the poller's thread asks the disk nothing; and only so many threads wait for it. Where the
first operation to hang is the poller's own, another thread takes its place (see idle.py).
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Callable, Dict, Iterator, Optional

from monitoring.log import Seldom
from storage.store import Unstorable

_log = logging.getLogger("dduct")

SLOW = 0.1  # seconds for one operation
_WARY_FOR = 1.0  # seconds after a slow answer
_WAITING_AT_MOST = 64  # threads, while the disk is slow


class DiskWatch:
    """Single operations on the dictionary are atomic; `on_slow` is told of each time that the disk was slow.

    `polling` is the operation that the poller's thread is in, another object for each. Only the poller's thread writes
    it, and while one is `lost`, the next poller has none.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, directory: str = "") -> None:
        self._clock = clock
        self._directory = directory
        self.polling: Optional[float] = None
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

    def lost(self, operation: object, since: float) -> None:
        """The poller's thread hangs in an operation, until `found`; another thread is the poller now."""
        self._in_flight[operation] = since

    def found(self, operation: object) -> None:
        """What was lost has come back."""
        del self._in_flight[operation]

    def waiting(self) -> int:
        """How many threads are in an operation that has taken too long already."""
        now = self._clock()
        waits = [now - since for since in list(self._in_flight.values()) if now - since > SLOW]
        if waits:
            self._tell(max(waits))  # though nobody asks for anything
        return len(waits)

    def is_slow(self, now: float) -> bool:
        """Whether the disk is not to be asked without need."""
        if now < self._wary_until:
            return True
        if not self._in_flight:
            return False
        oldest = min(list(self._in_flight.values()), default=now)  # a copy: other threads come and go
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
            'The disk of misc.file_dir "%s" is slow: an operation has taken %.1f s; what does not need it goes on '
            "without it, and new requests are relayed when too many wait: look at that disk, or its server",
            self._directory,
            seconds,
        )
