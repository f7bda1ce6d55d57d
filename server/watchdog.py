"""Ends a process that is stuck because one thread keeps the interpreter's lock.

* A search with a backtracking regular expression keeps the lock for hours. No other thread runs, so Python handles no
  signal and no timer. A kernel timer ends the process; a thread resets the timer as long as the thread can run.
* The timer counts processor time. A process that is stopped, suspended with its machine, or without a processor on a
  busy machine uses none. Steps of the clock have no effect.
* The process first writes one stack to standard error: that of the thread that uses the processor, because the kernel
  gives it the signal. The C code for this needs no lock. It omits other stacks: they may change in a false alarm.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import stat
import threading
import time

LIMIT = 20.0  # seconds of processor time without a reset
ENDED_BY = signal.SIGVTALRM  # ends the process then
_PARTS = 20  # resets of the timer in that time
_STDERR = 2


def start(limit: float = LIMIT) -> None:
    """Watch this process. Call once in each process, in the main thread, before other threads start.

    It cannot end process 1, which the kernel spares.
    """

    def set_back() -> None:
        while True:
            signal.setitimer(signal.ITIMER_VIRTUAL, limit)
            time.sleep(limit / _PARTS)

    signal.signal(ENDED_BY, signal.SIG_DFL)  # dduct's parent may have ignored or blocked it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {ENDED_BY})
    faulthandler.register(ENDED_BY, _output(), all_threads=False, chain=True)
    threading.Thread(target=set_back, name="sign of life", daemon=True).start()


def end_within(seconds: float) -> None:
    """After `seconds`, write the stack of each thread and end this process with status 1, if it still runs."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_output())


def _output() -> int:
    """A descriptor of standard error that stays open; if that is a pipe, no write waits.

    A process that waits for the pipe's reader would not end. The separate open file description leaves the mode of
    others that share the pipe unchanged.
    """
    try:
        if stat.S_ISFIFO(os.fstat(_STDERR).st_mode):
            return os.open(f"/proc/self/fd/{_STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        pass  # closed, or another user's
    return _STDERR
