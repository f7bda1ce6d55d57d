"""Log lines about what may befall every request at once, such as a full disk: one of them, and then how many more."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from typing import Callable

_ADDRESSES_REMEMBERED = 4096  # the oldest is forgotten first


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
    """Lines of one sort, at most one in `seconds` for each client address."""

    def __init__(self, log: logging.Logger, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()  # guards _silent_until
        self._silent_until: OrderedDict[str, float] = OrderedDict()  # by address, the oldest first

    def write(self, level: int, address: str, message: str, *arguments: object) -> None:
        """Log it, unless this address has had its line lately."""
        now = self._clock()
        with self._lock:
            if now < self._silent_until.get(address, now):
                return
            self._silent_until.pop(address, None)
            self._silent_until[address] = now + self._seconds
            if len(self._silent_until) > _ADDRESSES_REMEMBERED:
                self._silent_until.popitem(last=False)
        self._log.log(level, message, *arguments)
