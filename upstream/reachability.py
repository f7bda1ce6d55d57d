"""Recent experience with origins: which address of a name works, and which names do not answer.

Each process has its own.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Callable, Dict, Hashable, Optional, Tuple

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
    """The state of one name. `worked_at`: its last success; `until`: when the next request may try."""

    def __init__(self) -> None:
        self.worked_at = float("-inf")
        self.until = 0.0
        self.tried_at = float("inf")  # since when one request tries alone
        self.pause = 0.0  # seconds without attempts; 0 outside of an outage


class Outages:
    """Names that do not answer. After a failure, requests do not wait for a few seconds. Then one request tries;
    meanwhile, for at most `trial` seconds, the others still do not wait.

    A failure counts only if nothing has worked since its request began: a late one does not hide a recovery.
    """

    def __init__(self, trial: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._trial = trial
        self._clock = clock
        self._lock = threading.Lock()  # guards _states
        self._states: OrderedDict[Hashable, _State] = OrderedDict()

    def wait(self, name: Hashable) -> float:
        """Seconds without attempts. 0 where the caller tries now, and reports the outcome."""
        with self._lock:
            state = self._states.get(name)
            if state is None or not state.pause:
                return 0.0
            now = self._clock()
            if now < state.until:
                return state.until - now
            state.tried_at, state.until = now, now + self._trial
            return 0.0

    def lasts(self, name: Hashable) -> bool:
        """Whether the name is in an outage; nothing is tried."""
        with self._lock:
            state = self._states.get(name)
            return state is not None and bool(state.pause)

    def undecided(self, name: Hashable, began: float) -> None:
        """A request that began then has told nothing of an outage. If it was the trial, the next request is."""
        with self._lock:
            state = self._states.get(name)
            if state is not None and state.pause and state.tried_at <= began:
                state.tried_at, state.until = float("inf"), self._clock()

    def worked(self, name: Hashable) -> bool:
        """The name has answered. Returns whether that ends an outage."""
        with self._lock:
            state = self._state(name)
            news, state.pause = bool(state.pause), 0.0
            state.worked_at = self._clock()
            return news

    def failed(self, name: Hashable, began: float) -> float:
        """The name did not answer a request begun then. Returns the pause in seconds if an outage begins, else 0."""
        with self._lock:
            state = self._state(name)
            if state.worked_at >= began:
                return 0.0
            news = not state.pause
            state.pause = _FIRST_PAUSE if news else _LONGEST_PAUSE
            state.tried_at, state.until = float("inf"), self._clock() + state.pause
            return state.pause if news else 0.0

    def _state(self, name: Hashable) -> _State:
        states: Dict[Hashable, _State] = self._states
        state = states.setdefault(name, _State())
        self._states.move_to_end(name)
        if len(self._states) > _MAX_NAMES:
            self._states.popitem(last=False)
        return state
