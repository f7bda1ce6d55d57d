"""Watch whether the cache's disk answers: a network file system may hang, and must block as few threads as possible.

Each disk operation of a thread is registered while it lasts, the oldest first. While one has lasted too long, and
shortly after a slow answer, the poller's thread makes no disk calls, and the number of threads that wait is limited. If
the poller's own operation is the first to hang, another thread takes its place (see `net.poller`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Callable, Dict, Iterator, Optional, Set, TypeVar

from monitoring.log import RateLimitedLog
from storage.record import Unstorable
from storage.run_delay import RunDelays, run_delay

_log = logging.getLogger("dduct")

SLOW = 0.1  # seconds; an operation that takes longer is slow
_WARY_FOR = 1.0  # seconds after a slow answer
_NOTICEABLE = 0.005  # seconds
_SHARE = 0.1  # of its time that a thread may wait
_ADVANCE = 0.1  # seconds that it may wait at once
_MAX_DEBT = 1.0  # seconds; a thread that hung for longer was replaced meanwhile
_MAX_WAITING = 64  # threads that may wait while the disk is slow

_Result = TypeVar("_Result")


class DiskWatch:
    """The operations in progress, and how slow the disk is. `on_slow` is called each time the disk becomes slow.

    `polling` is the operation of the poller's thread, another object for each. Only the poller's thread writes it, and
    while one is `lost`, the next poller has none. Single operations on the dictionary are atomic.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        directory: str = "",
        run_delay: Callable[[], Optional[float]] = run_delay,
    ) -> None:
        self._clock = clock
        self._run_delays = RunDelays(run_delay)  # of the poller's thread
        self._directory = directory
        self.polling: Optional[float] = None
        self._poll_waits = WaitBudget()  # of the poller's thread
        self._lost: Set[int] = set()  # threads that were the poller's, and hang
        self._in_flight: Dict[object, float] = {}  # the start of each
        self._wary_until = float("-inf")
        self._trouble = RateLimitedLog(_log)
        self.on_slow: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Register a thread's disk operation. Raises Unstorable where enough threads wait already."""
        now = self._clock()
        if len(self._in_flight) >= _MAX_WAITING and self.is_slow(now):
            raise Unstorable("the cache's disk does not answer (misc.file_dir)")
        token = object()
        self._in_flight[token] = now
        try:
            yield
        finally:
            del self._in_flight[token]
            self.note(self._clock() - now)

    def may_poll(self, iteration: float) -> bool:
        """Whether the poller's thread may use the disk in an iteration that began then."""
        return not (self._poll_waits.exhausted(iteration) or self.is_slow(iteration))

    def poll(self, work: Callable[..., _Result], *arguments: object) -> _Result:
        """Use the disk in the poller's thread, so that the poller's successor can find out that this one hangs.

        A thread that was lost meanwhile is not the poller any more: it goes on like a session's thread. Raises
        Unstorable only then, and what `work` raises.
        """
        if self._lost and threading.get_ident() in self._lost:
            with self.operation():
                return work(*arguments)
        self.polling = began = time.monotonic()
        self._run_delays.begin(began)
        try:
            return work(*arguments)
        finally:
            is_poller = self.polling is began  # otherwise it is the successor's operation, or None
            if is_poller:
                self.polling = None
            took = time.monotonic() - began
            if took > _NOTICEABLE:
                if is_poller:  # a busy machine is not a slow disk
                    took = max(0.0, took - self._run_delays.measured())
                self._poll_waits.note(took)
                self.note(took)

    def note(self, seconds: float) -> None:
        """Record that an operation has taken so long."""
        if seconds > SLOW:
            self._log_slowness(seconds)

    def lost(self, operation: object, since: float, thread: int) -> None:
        """Record that the poller's thread hangs in an operation, until `found`; another thread is the poller now."""
        self._in_flight[operation] = since
        self._lost.add(thread)

    def found(self, operation: object, thread: int) -> None:
        """Record that a lost thread has come back."""
        self._lost.discard(thread)
        del self._in_flight[operation]

    def waiting(self) -> int:
        """The number of threads in an operation that has already taken too long."""
        now = self._clock()
        waits = [now - since for since in list(self._in_flight.values()) if now - since > SLOW]
        if waits:
            self._log_slowness(max(waits))  # although there is no new operation
        return len(waits)

    def is_slow(self, now: float) -> bool:
        """Whether to avoid the disk where possible."""
        if now < self._wary_until:
            return True
        if not self._in_flight:
            return False
        oldest = min(list(self._in_flight.values()), default=now)  # a copy: other threads change the dictionary
        if now - oldest <= SLOW:
            return False
        self._log_slowness(now - oldest)
        return True

    def _log_slowness(self, seconds: float) -> None:
        now = self._clock()
        if now >= self._wary_until:
            self.on_slow()
        self._wary_until = now + _WARY_FOR
        self._trouble.warning(
            'The disk of misc.file_dir "%s" is slow: an operation has taken %.1f s; what does not need it goes on '
            "without it, and new requests are relayed when too many wait: look at that disk, or its server",
            self._directory,
            seconds,
        )


class WaitBudget:
    """Limits the share of its time that one thread waits for a disk that answers, but not from memory.

    Operations of less than `_NOTICEABLE` seconds cost nothing: they have not waited for the disk.
    """

    def __init__(self) -> None:
        self._spent = 0.0  # seconds, less what was earned since
        self._earned_until = 0.0

    def note(self, seconds: float) -> None:
        """Record how long an operation has taken."""
        if seconds > _NOTICEABLE:
            self._spent = min(self._spent + seconds, _MAX_DEBT)

    def exhausted(self, now: float) -> bool:
        """Whether other threads should wait in place of this one."""
        before, self._earned_until = self._earned_until, now
        if not self._spent:
            return False
        self._spent = max(0.0, self._spent - _SHARE * (now - before))
        return self._spent > _ADVANCE
