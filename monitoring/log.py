"""Limits for log lines that every request may cause, such as about a full disk."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from typing import Callable, Tuple

_KEYS_REMEMBERED = 4096  # the least recently used goes first


class RateLimitedLog:
    """Warnings of one kind, at most one in `seconds`; the next one counts those left out."""

    def __init__(self, log: logging.Logger, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()  # guards _silent_until, _left_out
        self._silent_until = float("-inf")
        self._left_out = 0

    def warning(self, message: str, *arguments: object) -> None:
        """Log a line, or count it."""
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
    """Lines of one kind, at most `burst` in `seconds` for each key: a client's address and the topic."""

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
        self._periods: OrderedDict[str, Tuple[float, int]] = OrderedDict()  # by key: its end and its line count

    def write(self, level: int, key: str, message: str, *arguments: object) -> None:
        """Log a line, unless its key has used up its burst."""
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
