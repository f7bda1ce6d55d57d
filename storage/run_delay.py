"""How long a thread was ready to run and had no processor: a clock cannot tell that from a wait for the disk."""

from __future__ import annotations

import os
import threading
from typing import Callable

_GRAIN = 0.005  # seconds; a measurement may begin so much too early, which saves most of the reads
_STATISTICS = "/proc/thread-self/schedstat"  # proc(5): nanoseconds on a processor, then those of waiting for one
_LENGTH = 128  # bytes, more than three numbers have


def run_delay() -> float:
    """The seconds that this thread has waited for a processor so far; 0 where the kernel does not count them."""
    try:
        fd = os.open(_STATISTICS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, _LENGTH).split()[1]) / 1e9
        finally:
            os.close(fd)
    except (OSError, IndexError, ValueError):
        return 0.0


class RunDelays:
    """Measures this delay in one thread after another; `read` is `run_delay`.

    A measurement belongs to the thread that has begun it.
    """

    def __init__(self, read: Callable[[], float] = run_delay) -> None:
        self._read = read
        self._thread = 0
        self._read_at = float("-inf")
        self._delay = 0.0

    def begin(self, now: float) -> None:
        """Begin to measure, at `now` or up to `_GRAIN` before."""
        thread = threading.get_ident()
        if thread != self._thread or now - self._read_at > _GRAIN:
            self._thread, self._read_at, self._delay = thread, now, self._read()

    def measured(self) -> float:
        """Seconds since `begin`."""
        return max(0.0, self._read() - self._delay)
