"""Log lines about what may befall every request at once, such as a full disk: one of them, and then how many more."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from typing import Callable, Tuple

_KEYS_REMEMBERED = 4096  # the oldest is forgotten first


class Seldom:
    """Warnings of one sort, at most one in `seconds`; the next one says how many were left out."""

    def __init__(self, log: logging.Logger, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()  # guards the two below
        self._silent_until = float("-inf")
        self._left_out = 0

    def warning(self, message: str, *arguments: object) -> None:
        """Log it, or count it."""
        now = self._clock()
        with self._lock:
            if now < self._silent_until:
                self._left_out += 1
                return
            self._silent_until = now + self._seconds
            left_out, self._left_out = self._left_out, 0
        if left_out:
            message += f" (and {left_out} like it before)"
        self._log.warning(message, *arguments)


class PerAddress:
    """Lines of one sort, at most `burst` in `seconds` for each key: a client's address, with what the line is about."""

    def __init__(
        self,
        log: logging.Logger,
        burst: int = 5,
        seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._burst = burst
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()  # guards _periods
        self._periods: OrderedDict[str, Tuple[float, int]] = OrderedDict()  # by key: its end, and the lines in it

    def write(self, level: int, key: str, message: str, *arguments: object) -> None:
        """Log it, unless there have been enough such lines lately."""
        now = self._clock()
        with self._lock:
            end, count = self._periods.pop(key, (0.0, 0))
            if now >= end:
                end, count = now + self._seconds, 0
            self._periods[key] = end, count + 1
            if len(self._periods) > _KEYS_REMEMBERED:
                self._periods.popitem(last=False)
        if count < self._burst:
            self._log.log(level, message, *arguments)
