"""What was learnt of origins of late: which address of a name works, and who does not answer.

Each process learns by itself.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Callable, Dict, Hashable, Optional, Tuple

_REMEMBERED = 600.0  # seconds for which an address that has worked is tried first
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 10.0  # seconds for which nobody waits for who did not answer
_MAX_NAMES = 1024


class WorkingAddresses:
    """The address of each name that has worked last."""

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
        """This one has just worked."""
        with self._lock:
            self._worked[name] = address, self._clock() + _REMEMBERED
            self._worked.move_to_end(name)
            if len(self._worked) > _MAX_NAMES:
                self._worked.popitem(last=False)

    def forget(self, name: Hashable) -> None:
        """None has worked."""
        with self._lock:
            self._worked.pop(name, None)


class _State:
    """What is known of one name. `worked_at` is when it last did, `until` when the next request may try."""

    def __init__(self) -> None:
        self.worked_at = float("-inf")
        self.until = 0.0
        self.tried_at = float("inf")  # since when one request tries alone
        self.pause = 0.0  # how long nobody tries; 0 for who is not away


class Outages:
    """Who does not answer. After a failure nobody waits for a few seconds; then one request tries, and meanwhile, for
    `trial` seconds at most, the others still do not wait.

    A failure counts only where nothing has worked since its request began: a late one does not hide a recovery.
    """

    def __init__(self, trial: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._trial = trial
        self._clock = clock
        self._lock = threading.Lock()  # guards _states
        self._states: OrderedDict[Hashable, _State] = OrderedDict()

    def wait(self, name: Hashable) -> float:
        """Seconds for which not to try; 0 where the caller is to try now, and to report what came of it."""
        with self._lock:
            state = self._states.get(name)
            if state is None or not state.pause:
                return 0.0
            now = self._clock()
            if now < state.until:
                return state.until - now
            state.tried_at, state.until = now, now + self._trial
            return 0.0

    def undecided(self, name: Hashable, began: float) -> None:
        """A request that began then has ended before there was an answer: where it was to try, the next one is."""
        with self._lock:
            state = self._states.get(name)
            if state is not None and state.pause and state.tried_at <= began:
                state.tried_at, state.until = float("inf"), self._clock()

    def worked(self, name: Hashable) -> bool:
        """It has answered; whether that is news."""
        with self._lock:
            state = self._state(name)
            news, state.pause = bool(state.pause), 0.0
            state.worked_at = self._clock()
            return news

    def failed(self, name: Hashable, began: float) -> float:
        """It has not answered a request that began then; for how many seconds nobody tries if that is news, else 0."""
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
