"""Several processes that serve the same listeners, forked from a parent that only keeps them alive."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import Callable, Dict, Optional

from server import watchdog

_log = logging.getLogger("dduct")

STOP = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*STOP, signal.SIGHUP, signal.SIGCHLD)
_SHORT_LIFE = 5.0  # seconds; a worker that ends sooner will do so again, and restarts later
_PAUSE = 1.0  # seconds
_LAST = 2.0  # seconds for killed workers to end: they cannot while they wait for a disk


def wait_for_signal(seconds: Optional[float] = None) -> Optional[int]:
    """Wait for the next of SIGNALS, which all threads block; None if none comes within `seconds`.

    A handler would run only when the main thread runs, and some kernels (gVisor) give the signal to another.
    """
    if seconds is None:
        return signal.sigwait(SIGNALS)
    info = signal.sigtimedwait(SIGNALS, seconds)
    return None if info is None else info.si_signo


def follow_parent(lifeline: int) -> None:
    """Send SIGTERM to this process when its parent dies: until then, the pipe stays empty and open."""

    def watch() -> None:
        os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


@dataclass(frozen=True)
class Limits:
    """How long a worker may delay others, in seconds."""

    silence: float = watchdog.LIMIT  # of processor time, without a sign of life
    end: float = 25.0  # from SIGTERM on; its transfers get ten of them


class Workers:
    """Keeps `count` processes alive. Each runs `work(number, lifeline)`, which returns its exit status.

    The parent must have no threads when it forks. SIGHUP is passed on if `reload()` returns true, a stop signal after
    `close()`; a second stop signal kills all workers. `frozen()` is called for each worker that the watchdog ended.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[int, int], int],
        reload: Callable[[], bool],
        close: Callable[[], None],
        alive: Callable[[], None],
        interval: Optional[float],
        frozen: Callable[[], None],
        limits: Limits = Limits(),
    ) -> None:
        self._count = count
        self._work = work
        self._reload = reload
        self._close = close
        self._alive = alive
        self._interval = interval  # seconds between two calls of `alive`
        self._frozen = frozen
        self._limits = limits
        self._numbers: Dict[int, int] = {}  # by process id
        self._born: Dict[int, float] = {}  # by number
        self._due: Dict[int, float] = {}  # by number: when ended workers are started again
        self._stopping = False
        self._deadline: Optional[float] = None  # for workers that should end; then the next step follows
        self._killed = False
        self._lifeline = -1
        self._status = 0

    def run(self) -> int:
        """Run until all have ended; return the exit status."""
        self._lifeline, kept_open = os.pipe()
        try:
            for number in range(self._count):
                self._start(number, kept_open)
            while self._numbers or (self._due and not self._stopping):
                self._handle(wait_for_signal(self._pause()))
                self._reap()
                self._end_those_left()
                self._start_those_due(kept_open)
            return self._status
        finally:
            os.close(kept_open)
            os.close(self._lifeline)

    def _handle(self, number: Optional[int]) -> None:
        if number is None:
            self._alive()
        elif number == signal.SIGHUP:
            if not self._stopping and self._reload():
                self._send_signal(signal.SIGHUP)
        elif number != signal.SIGCHLD:
            self._stop()

    def _pause(self) -> Optional[float]:
        waits = [] if self._interval is None else [self._interval]
        moments = list(self._due.values()) if self._deadline is None else [self._deadline]
        waits += [max(0.0, moment - time.monotonic()) for moment in moments]
        return min(waits) if waits else None

    def _stop(self) -> None:
        if self._stopping:
            self._kill()
            return
        self._stopping = True
        self._deadline = time.monotonic() + self._limits.end
        self._close()
        self._send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        self._killed = True
        self._status = 1
        self._deadline = time.monotonic() + _LAST
        self._send_signal(signal.SIGKILL)

    def _end_those_left(self) -> None:
        """After a deadline, kill the remaining workers; after the next, leave them to the kernel."""
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        what = "is left to the kernel, for it waits for a disk" if self._killed else "is killed"
        for process, number in self._numbers.items():
            _log.error("Worker %d (process %d) has not ended when it was told to, and %s", number, process, what)
        if self._killed:
            self._numbers.clear()
        else:
            self._kill()

    def _send_signal(self, number: signal.Signals) -> None:
        for process in self._numbers:
            os.kill(process, number)  # the id is valid until `_reap`

    def _start(self, number: int, kept_open: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            process = os.fork()
        except OSError as error:
            _log.error("Cannot start worker %d yet: %s", number, error.strerror)
            self._due[number] = time.monotonic() + _PAUSE
            return
        if process:
            self._numbers[process] = number
            self._born[number] = time.monotonic()
            return
        status = 1
        try:
            os.close(kept_open)
            watchdog.start(self._limits.silence)
            status = self._work(number, self._lifeline)
        except BaseException:  # noqa: BLE001 - the stack above this belongs to the parent
            _log.exception("A bug in dduct ended worker %d", number)
        finally:
            os._exit(status)

    def _start_those_due(self, kept_open: int) -> None:
        now = time.monotonic()
        for number, due in list(self._due.items()):
            if due <= now and not self._stopping:
                del self._due[number]
                self._start(number, kept_open)

    def _reap(self) -> None:
        """Note ended workers, and schedule their restart unless all should end."""
        while self._numbers:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            number = self._numbers.pop(process, None)
            if number is None:
                continue
            code = status_of(status)
            self._tell_of_an_end(number, process, code)
            if self._stopping:
                self._status = max(self._status, 0 if code == 0 else 1)
                continue
            soon = time.monotonic() - self._born[number] < _SHORT_LIFE
            self._due[number] = time.monotonic() + (_PAUSE if soon else 0.0)

    def _tell_of_an_end(self, number: int, process: int, code: int) -> None:
        then = "" if self._stopping else ", and is started again"
        if code == -watchdog.ENDED_BY:
            self._frozen()
            _log.error(
                "Worker %d (process %d) did not answer for %g s of processor time: probably a pattern in proxy.filters "
                "or cache.volatile takes too long on some path (its stack is above). It was ended%s",
                number,
                process,
                self._limits.silence,
                then,
            )
        elif not self._stopping:
            _log.error("Worker %d (process %d) ended with %d%s", number, process, code, then)


def status_of(status: int) -> int:
    """The exit status in a wait status, or minus the signal that killed the process."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
