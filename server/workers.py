"""Several processes that serve the same listeners, forked from a parent that only keeps them alive."""

from __future__ import annotations

import enum
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


@dataclass(frozen=True)
class Duties:
    """What the parent does for the whole dduct."""

    reload: Callable[[], bool]  # at SIGHUP, which is passed on if it returns true
    close: Callable[[], None]  # before the workers are told to end
    frozen: Callable[[], None]  # for each worker that the watchdog ended
    alive: Callable[[], None] = lambda: None  # a sign of life
    interval: Optional[float] = None  # seconds between two of them


class Phase(enum.Enum):
    """How far the workers' end has come."""

    SERVING = "workers that end are started again"
    ENDING = "all workers were told to end"
    KILLED = "the workers that were left were killed"
    ABANDONED = "the workers that were left are the kernel's: they wait for a disk"


class Event(enum.Enum):
    """What brings the end forward."""

    STOP_SIGNAL = "SIGTERM or SIGINT came"
    DEADLINE = "the phase has lasted too long"


# A pair that is not here changes nothing.
_NEXT_PHASE = {
    (Phase.SERVING, Event.STOP_SIGNAL): Phase.ENDING,
    (Phase.ENDING, Event.STOP_SIGNAL): Phase.KILLED,
    (Phase.ENDING, Event.DEADLINE): Phase.KILLED,
    (Phase.KILLED, Event.STOP_SIGNAL): Phase.KILLED,  # once more, with a new deadline
    (Phase.KILLED, Event.DEADLINE): Phase.ABANDONED,
}


@dataclass(frozen=True)
class _Worker:
    number: int
    process: int
    born: float

    def __str__(self) -> str:
        return f"Worker {self.number} (process {self.process})"


class Workers:
    """Keeps `count` processes alive. Each runs `work(number, lifeline)`, which returns its exit status.

    The parent must have no threads when it forks. The first stop signal ends all workers, the second kills them.
    """

    def __init__(self, count: int, work: Callable[[int, int], int], duties: Duties, limits: Limits = Limits()) -> None:
        self._count = count
        self._work = work
        self._duties = duties
        self._limits = limits
        self._running: Dict[int, _Worker] = {}  # by process id
        self._due: Dict[int, float] = {}  # by number: when ended workers are started again
        self._phase = Phase.SERVING
        self._deadline: Optional[float] = None  # of the phase
        self._lifeline = -1
        self._status = 0

    def __repr__(self) -> str:
        return f"<Workers: {self._phase.name}, {len(self._running)} of {self._count} running, {len(self._due)} due>"

    def run(self) -> int:
        """Run until all have ended; return the exit status."""
        self._lifeline, kept_open = os.pipe()
        try:
            for number in range(self._count):
                self._start(number, kept_open)
            while self._running or (self._due and self._phase is Phase.SERVING):
                self._handle(wait_for_signal(self._pause()))
                self._reap()
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    self._advance(Event.DEADLINE)
                self._start_those_due(kept_open)
            return self._status
        finally:
            os.close(kept_open)
            os.close(self._lifeline)

    def _handle(self, number: Optional[int]) -> None:
        if number is None:
            self._duties.alive()
        elif number == signal.SIGHUP:
            if self._phase is Phase.SERVING and self._duties.reload():
                self._send_signal(signal.SIGHUP)
        elif number != signal.SIGCHLD:
            self._advance(Event.STOP_SIGNAL)

    def _pause(self) -> Optional[float]:
        interval = self._duties.interval
        waits = [] if interval is None else [interval]
        moments = list(self._due.values()) if self._deadline is None else [self._deadline]
        waits += [max(0.0, moment - time.monotonic()) for moment in moments]
        return min(waits) if waits else None

    def _advance(self, event: Event) -> None:
        """Enter the next phase, and do what it begins with. Nothing else changes the phase."""
        phase = _NEXT_PHASE.get((self._phase, event))
        if phase is None:
            return
        if event is Event.DEADLINE:
            self._tell_of_those_left(phase)
        self._phase = phase
        if phase is Phase.ENDING:
            self._deadline = time.monotonic() + self._limits.end
            self._duties.close()
            self._send_signal(signal.SIGTERM)
        elif phase is Phase.KILLED:
            self._status = 1
            self._deadline = time.monotonic() + _LAST
            self._send_signal(signal.SIGKILL)
        else:
            self._running.clear()

    def _tell_of_those_left(self, phase: Phase) -> None:
        then = "is killed" if phase is Phase.KILLED else "is left to the kernel, for it waits for a disk"
        for worker in self._running.values():
            _log.error("%s has not ended when it was told to, and %s", worker, then)

    def _send_signal(self, number: signal.Signals) -> None:
        for process in self._running:
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
            self._running[process] = _Worker(number, process, time.monotonic())
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
            if due <= now and self._phase is Phase.SERVING:
                del self._due[number]
                self._start(number, kept_open)

    def _reap(self) -> None:
        """Note ended workers, and schedule their restart unless all should end."""
        while self._running:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            worker = self._running.pop(process, None)
            if worker is None:
                continue
            code = status_of(status)
            self._tell_of_an_end(worker, code)
            if self._phase is not Phase.SERVING:
                self._status = max(self._status, 0 if code == 0 else 1)
                continue
            soon = time.monotonic() - worker.born < _SHORT_LIFE
            self._due[worker.number] = time.monotonic() + (_PAUSE if soon else 0.0)

    def _tell_of_an_end(self, worker: _Worker, code: int) -> None:
        then = ", and is started again" if self._phase is Phase.SERVING else ""
        if code == -watchdog.ENDED_BY:
            self._duties.frozen()
            _log.error(
                "%s did not answer for %g s of processor time: probably a pattern in proxy.filters or cache.volatile "
                "takes too long on some path (its stack is above). It was ended%s",
                worker,
                self._limits.silence,
                then,
            )
        elif self._phase is Phase.SERVING:
            _log.error("%s ended with %d%s", worker, code, then)


def status_of(status: int) -> int:
    """The exit status in a wait status, or minus the signal that killed the process."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
