"""The log: each line is one system call to standard error; limits for lines that every request may cause."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import stat
import sys
import termios
import threading
import time
from collections import OrderedDict
from functools import lru_cache
from typing import Callable, Tuple

from monitoring import request_number
from monitoring.redaction import printable, without_queries

_KEYS_REMEMBERED = 4096  # the least recently used goes first
_LEVELS = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.NOTSET + 1,
}
_STDERR = 2
_F_GETPIPE_SZ = 1032  # fcntl(2); the fcntl module names it since Python 3.10
_LEVEL_NAMES = {logging.WARNING: "WARN", logging.CRITICAL: "ERROR"}
_MILLISECONDS = tuple(f".{number:03}Z" for number in range(1000))  # each line has one


def start_log(level: str) -> None:
    """Write dduct's log to standard error from now on; call it once."""
    # Our lines use nothing that these switches collect (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = _Handler()
    handler.setFormatter(LineFormatter())
    log = logging.getLogger("dduct")
    log.addHandler(handler)
    log.propagate = False
    set_level(level)


def set_level(level: str) -> None:
    """Set the least level that is written: a value of misc.log_level."""
    logging.getLogger("dduct").setLevel(_LEVELS[level])


@lru_cache(maxsize=2)
def _moment(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


@lru_cache(maxsize=256)
def _origin(level: int, name: str) -> str:
    return f" {_LEVEL_NAMES.get(level, logging.getLevelName(level)):<5} {name}"


class LineFormatter(logging.Formatter):
    """`[2026-01-01T12:34:56.789Z INFO  dduct.certs] Write "/…/ca.key"`, one line, and a traceback if there is one.

    The number of the request that the line is about stands before the bracket: `INFO  dduct.session 17.3] …`.
    """

    def format(self, record: logging.LogRecord) -> str:
        when = _moment(int(record.created)) + _MILLISECONDS[int(record.msecs)]
        message = printable(record.getMessage())
        number = request_number.current()
        about = "" if number is None else f" {number[0]}.{number[1]}"
        line = f"[{when}{_origin(record.levelno, record.name)}{about}] {message}"
        return line if not record.exc_info else f"{line}\n{without_queries(self.formatException(record.exc_info))}"


class _Handler(logging.Handler):
    """Writes each line to standard error with one system call, which keeps lines whole without a lock.

    A slow reader delays no thread: lines that do not fit are lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pipe_size = 0  # bytes; 0: no pipe
        try:
            if stat.S_ISFIFO(os.fstat(_STDERR).st_mode):
                self._pipe_size = fcntl.fcntl(_STDERR, _F_GETPIPE_SZ)
        except OSError:
            pass  # closed

    def createLock(self) -> None:  # noqa: N802 - logging's name for it
        """Create no lock."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit without the lock, which logging's own method always takes since Python 3.13."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line; it is lost if it does not fit."""
        data = memoryview((self.format(record) + "\n").encode("utf-8", "backslashreplace"))
        try:
            while data and self._has_space():
                data = data[os.write(_STDERR, data) :]
        except OSError:
            pass

    def _has_space(self) -> bool:
        """Whether a line can be written without waiting, even if other threads write now."""
        if self._pipe_size:
            held = int.from_bytes(fcntl.ioctl(_STDERR, termios.FIONREAD, bytes(4)), sys.byteorder)
            return held < self._pipe_size // 2
        return bool(select.select((), (_STDERR,), (), 0)[1])


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
