"""Recent experience with origins: which address of a name works, and which names do not answer.

Each process has its own of the former; all share the latter.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Callable, Hashable, Optional, Tuple

from storage.shared_table import SharedTable

_REMEMBERED = 600.0  # seconds for which a working address is tried first
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 10.0  # seconds for which requests do not wait for a name that did not answer
_MAX_NAMES = 1024


class WorkingAddresses:
    """The last working address of each name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards _worked
        self._worked: OrderedDict[Hashable, Tuple[str, float]] = OrderedDict()

    def get(self, name: Hashable) -> Optional[str]:
        """The address to try first."""
        with self._lock:
            address, until = self._worked.get(name, ("", 0.0))
        return address if self._clock() < until else None

    def worked(self, name: Hashable, address: str) -> None:
        """This address has just worked."""
        with self._lock:
            self._worked[name] = address, self._clock() + _REMEMBERED
            self._worked.move_to_end(name)
            if len(self._worked) > _MAX_NAMES:
                self._worked.popitem(last=False)

    def forget(self, name: Hashable) -> None:
        """No address of this name has worked."""
        with self._lock:
            self._worked.pop(name, None)


class _State:
    """What this process knows of one name. `worked_at`: its last success; `tried_at`: since when it tries alone."""

    def __init__(self) -> None:
        self.worked_at = float("-inf")
        self.tried_at = float("inf")


class Outages:
    """Names that do not answer, known to all processes. After a failure, requests do not wait for a few seconds. Then
    one request tries; meanwhile, for at most `trial` seconds, the others still do not wait.

    A failure counts only if nothing has worked since its request began: a late one does not hide a recovery. `kind`
    keeps names apart from those of others in the same table, which has the end of each pause.
    """

    def __init__(
        self, trial: float, table: SharedTable, kind: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._trial = trial
        self._table = table
        self._kind = kind
        self._clock = clock  # of all processes
        self._lock = threading.Lock()  # guards _states, and the choice of the one that tries
        self._states: OrderedDict[Tuple[object, ...], _State] = OrderedDict()

    def wait(self, name: Tuple[object, ...]) -> float:
        """Seconds without attempts. 0 where the caller tries now, and reports the outcome."""
        key = self._key(name)
        if self._table.get(key) is None:
            return 0.0
        with self._lock:
            fact, now = self._table.get(key), self._clock()
            if fact is None:
                return 0.0
            if now < fact.until:
                return fact.until - now
            self._state(name).tried_at = now
            self._table.put(key, now + self._trial)
            return 0.0

    def lasts(self, name: Tuple[object, ...]) -> bool:
        """Whether the name is in an outage; nothing is tried."""
        return self._table.get(self._key(name)) is not None

    def undecided(self, name: Tuple[object, ...], began: float) -> None:
        """A request that began then has told nothing of an outage. If it was the trial, the next request is."""
        with self._lock:
            state = self._states.get(name)
            if state is not None and state.tried_at <= began and self.lasts(name):
                state.tried_at = float("inf")
                self._table.put(self._key(name), self._clock())

    def worked(self, name: Tuple[object, ...]) -> bool:
        """The name has answered. Returns whether that ends an outage."""
        with self._lock:
            self._state(name).worked_at = self._clock()
            return self._table.remove(self._key(name))

    def failed(self, name: Tuple[object, ...], began: float) -> float:
        """The name did not answer a request begun then. Returns the pause in seconds if an outage begins, else 0."""
        with self._lock:
            state = self._state(name)
            if state.worked_at >= began:
                return 0.0
            news = not self.lasts(name)
            pause = _FIRST_PAUSE if news else _LONGEST_PAUSE
            state.tried_at = float("inf")
            self._table.put(self._key(name), self._clock() + pause)
            return pause if news else 0.0

    def _state(self, name: Tuple[object, ...]) -> _State:
        state = self._states.setdefault(name, _State())
        self._states.move_to_end(name)
        if len(self._states) > _MAX_NAMES:
            self._states.popitem(last=False)
        return state

    def _key(self, name: Tuple[object, ...]) -> bytes:
        return "\0".join(("outage", self._kind, *map(str, name))).encode()
