"""Ends a process in which nothing runs any more because one thread keeps the interpreter's lock.

* A search with a regular expression that backtracks keeps it for hours. No other thread runs meanwhile, so no signal is
  taken and no timer in Python fires. The kernel ends the process: by a timer that a thread sets back as long as it
  can.
* That timer counts processor time. A process that is stopped, suspended with its machine, or gets no processor on a
  busy one uses none, and steps of the clock do not matter.
* Before it ends, it writes a stack to standard error: of the thread that uses the processor, for the kernel gives it
  the signal. The C code that does so needs no lock. Stacks of others may be changing where the alarm is a false one.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import stat
import threading
import time

LIMIT = 20.0  # seconds of processor time without a sign of life
ENDED_BY = signal.SIGVTALRM  # what kills the process then
_PARTS = 20  # so often in that time the timer is set back
_STDERR = 2


def start(limit: float = LIMIT) -> None:
    """Watch this process from now on. Call it once in each process, in its main thread, before others start.

    It ends no process with number 1, which the kernel spares.
    """

    def set_back() -> None:
        while True:
            signal.setitimer(signal.ITIMER_VIRTUAL, limit)
            time.sleep(limit / _PARTS)

    signal.signal(ENDED_BY, signal.SIG_DFL)  # whoever has started dduct may have it ignored, or blocked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {ENDED_BY})
    faulthandler.register(ENDED_BY, _output(), all_threads=False, chain=True)
    threading.Thread(target=set_back, name="sign of life", daemon=True).start()


def end_within(seconds: float) -> None:
    """End this process with status 1 in so many seconds, with the stack of each thread, unless it has ended by then."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_output())


def _output() -> int:
    """A descriptor of standard error on which no write waits, kept open for life.

    What it is a pipe of may not read it: the process would wait for that instead of ending. A description of its own
    is what lets it differ from those who share the pipe.
    """
    try:
        if stat.S_ISFIFO(os.fstat(_STDERR).st_mode):
            return os.open(f"/proc/self/fd/{_STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        pass  # closed, or another user's
    return _STDERR
