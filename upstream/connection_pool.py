"""Idle connections to origins, kept for the next request.

Rules of this module:

* Taking one and giving one back cost the same however many there are: `_by_age` begins with the oldest.
* What has to be closed is returned, and closed without the lock.
* What an origin has closed, or what is too old, is found by `sweep` without any traffic: it would stay in CLOSE-WAIT.
"""

from __future__ import annotations

import select
import threading
import time
from collections import OrderedDict, deque
from typing import Callable, Deque, Dict, Generic, Hashable, List, Optional, Protocol, TypeVar

IDLE_TIMEOUT = 30.0  # seconds; most servers hang up later than that
MAX_IDLE_PER_ORIGIN = 32
MAX_IDLE = 1024
_SWEEP_INTERVAL = 5.0  # seconds


class Pooled(Protocol):
    """What can be kept: a connection that knows where it leads, and can be asked whether it still does."""

    origin: Hashable
    idle_since: float

    def fileno(self) -> int: ...


_C = TypeVar("_C", bound=Pooled)


class ConnectionPool(Generic[_C]):
    """Idle connections by origin, the youngest first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._swept_at = clock()  # of the one thread that sweeps
        self._lock = threading.Lock()  # guards the three below
        self._by_origin: Dict[Hashable, Deque[_C]] = {}  # the youngest last
        self._by_age: OrderedDict[int, _C] = OrderedDict()  # by id; the oldest first
        self._keeps = True

    def put(self, connection: _C) -> List[_C]:
        """Keep a connection; returns those that are to be closed instead, perhaps this one."""
        connection.idle_since = self._clock()
        with self._lock:
            if not self._keeps or len(self._by_origin.get(connection.origin, ())) >= MAX_IDLE_PER_ORIGIN:
                return [connection, *self._expired()]
            self._by_origin.setdefault(connection.origin, deque()).append(connection)
            self._by_age[id(connection)] = connection
            surplus = self._expired()
            if len(self._by_age) > MAX_IDLE:
                surplus.append(self._pop_oldest())
            return surplus

    def take(self, origin: Hashable) -> Optional[_C]:
        """The youngest connection to an origin, which may be too old (`expired`) or closed by now."""
        with self._lock:
            kept = self._by_origin.get(origin)
            if kept is None:
                return None
            connection = kept.pop()
            if not kept:
                del self._by_origin[origin]
            del self._by_age[id(connection)]
            return connection

    def expired(self, connection: _C) -> bool:
        """Whether a connection has been idle for too long to be used again."""
        return self._clock() - connection.idle_since > IDLE_TIMEOUT

    def sweep(self) -> List[_C]:
        """Those that are of no more use, every few seconds; returns what has to be closed. For one thread."""
        now = self._clock()
        if now - self._swept_at < _SWEEP_INTERVAL:
            return []
        self._swept_at = now
        with self._lock:
            found = self._expired()
            idle = list(self._by_age.values())
        # Whoever takes one of them meanwhile is not asked: it counts only while it is still here.
        dead = _readable(idle)
        with self._lock:
            return found + [connection for connection in dead if self._remove(connection)]

    def retire(self) -> List[_C]:
        """Keep nothing any more; returns what has to be closed."""
        with self._lock:
            self._keeps = False
            idle = list(self._by_age.values())
            self._by_age.clear()
            self._by_origin.clear()
            return idle

    # Innards; the lock is held

    def _expired(self) -> List[_C]:
        found = []
        while self._by_age and self.expired(next(iter(self._by_age.values()))):
            found.append(self._pop_oldest())
        return found

    def _remove(self, connection: _C) -> bool:
        if self._by_age.pop(id(connection), None) is None:
            return False
        kept = self._by_origin[connection.origin]
        kept.remove(connection)  # of a few
        if not kept:
            del self._by_origin[connection.origin]
        return True

    def _pop_oldest(self) -> _C:
        _, connection = self._by_age.popitem(last=False)
        kept = self._by_origin[connection.origin]
        kept.popleft()  # in an origin's own order, too, it is the oldest
        if not kept:
            del self._by_origin[connection.origin]
        return connection


def _readable(idle: List[_C]) -> List[_C]:
    """Which of some connections have been closed by their origin, or speak out of turn."""
    poll = select.poll()
    by_descriptor = {connection.fileno(): connection for connection in idle}
    by_descriptor.pop(-1, None)  # closed meanwhile
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(0)]
