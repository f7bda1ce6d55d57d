"""Idle connections to origins, kept for the next request.

Rules of this module:

* Taking and returning a connection cost the same for any number of them: `_by_age` begins with the oldest.
* Connections to close are returned to the caller, and closed without the lock.
* `sweep` finds closed and old connections without any traffic: otherwise they would stay in CLOSE-WAIT.
"""

from __future__ import annotations

import select
import threading
import time
from collections import OrderedDict, deque
from typing import Callable, Deque, Dict, Generic, Hashable, List, Optional, Protocol, TypeVar

IDLE_TIMEOUT = 30.0  # seconds; most servers close a connection later
MAX_IDLE_PER_ORIGIN = 32
MAX_IDLE = 1024
_SWEEP_INTERVAL = 5.0  # seconds


class Pooled(Protocol):
    """A connection that can be kept. It knows its origin, and has a descriptor to poll."""

    idle_since: float

    @property
    def origin(self) -> Hashable: ...

    def fileno(self) -> int: ...


_C = TypeVar("_C", bound=Pooled)


class ConnectionPool(Generic[_C]):
    """Idle connections by origin; the youngest is taken first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._swept_at = clock()  # for the one thread that sweeps
        self._lock = threading.Lock()  # guards the three below
        self._by_origin: Dict[Hashable, Deque[_C]] = {}  # the youngest last
        self._by_age: OrderedDict[int, _C] = OrderedDict()  # by id; the oldest first
        self._keeps = True

    def __len__(self) -> int:
        with self._lock:
            return len(self._by_age)

    def put(self, connection: _C) -> List[_C]:
        """Keep a connection. Returns those to close instead, perhaps this one."""
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
        """The youngest connection to an origin; it may be too old (`expired`) or closed by now."""
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
        """Remove useless connections, every few seconds. Returns those to close. For one thread."""
        now = self._clock()
        if now - self._swept_at < _SWEEP_INTERVAL:
            return []
        self._swept_at = now
        with self._lock:
            found = self._expired()
            idle = list(self._by_age.values())
        # A connection that is taken meanwhile is in use: `_remove` does not find it.
        dead = _readable(idle)
        with self._lock:
            return found + [connection for connection in dead if self._remove(connection)]

    def retire(self) -> List[_C]:
        """Keep nothing from now on. Returns the connections to close."""
        with self._lock:
            self._keeps = False
            idle = list(self._by_age.values())
            self._by_age.clear()
            self._by_origin.clear()
            return idle

    # Internals; the caller holds the lock

    def _expired(self) -> List[_C]:
        found = []
        while self._by_age and self.expired(next(iter(self._by_age.values()))):
            found.append(self._pop_oldest())
        return found

    def _remove(self, connection: _C) -> bool:
        if self._by_age.pop(id(connection), None) is None:
            return False
        kept = self._by_origin[connection.origin]
        kept.remove(connection)  # linear, in at most MAX_IDLE_PER_ORIGIN
        if not kept:
            del self._by_origin[connection.origin]
        return True

    def _pop_oldest(self) -> _C:
        _, connection = self._by_age.popitem(last=False)
        kept = self._by_origin[connection.origin]
        kept.popleft()  # the oldest of all is its origin's oldest
        if not kept:
            del self._by_origin[connection.origin]
        return connection


def _readable(idle: List[_C]) -> List[_C]:
    """The connections that their origin has closed, or on which it has sent unexpected bytes."""
    poll = select.poll()
    by_descriptor = {connection.fileno(): connection for connection in idle}
    by_descriptor.pop(-1, None)  # closed meanwhile
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(0)]
