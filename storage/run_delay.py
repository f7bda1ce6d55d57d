"""How long a thread was ready to run and had no processor: a clock cannot tell that from a wait for the disk."""

from __future__ import annotations

import os
import threading
from typing import Callable, Optional

_GRAIN = 0.005  # seconds; a measurement may begin so much too early, which saves most of the reads
_STATISTICS = "/proc/thread-self/schedstat"  # proc(5): nanoseconds on a processor, then those of waiting for one
_LENGTH = 128  # bytes, more than three numbers have


def run_delay() -> Optional[float]:
    """The seconds that this thread has waited for a processor so far; None where the kernel does not say that."""
    try:
        fd = os.open(_STATISTICS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, _LENGTH).split()[1]) / 1e9
        finally:
            os.close(fd)
    except (OSError, IndexError, ValueError):
        return None


class RunDelays:
    """Measures this delay in one thread after another; `read` is `run_delay`.

    A measurement belongs to the thread that has begun it.
    """

    def __init__(self, read: Callable[[], Optional[float]] = run_delay) -> None:
        self._read = read
        self._thread = 0
        self._read_at = float("-inf")
        self._delay: Optional[float] = None

    def begin(self, now: float) -> None:
        """Begin to measure, at `now` or up to `_GRAIN` before."""
        thread = threading.get_ident()
        if thread != self._thread or now - self._read_at > _GRAIN:
            self._thread, self._read_at, self._delay = thread, now, self._read()

    def measured(self) -> float:
        """Seconds since `begin`; 0 where one of both figures is missing, as without a descriptor to read it by."""
        delay = self._read()
        return 0.0 if delay is None or self._delay is None else max(0.0, delay - self._delay)
