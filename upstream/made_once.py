"""Values that take time to make: one thread makes each for all that want it, and it is kept for its time."""

from __future__ import annotations

import threading
import time
from typing import Callable, Dict, Generic, Hashable, Optional, Set, Tuple, TypeVar

from net import client_watch

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class MadeOnce(Generic[_Key, _Value]):
    """Up to `most` values; beyond that, the one that was made first goes. The clock counts seconds."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._changed = threading.Condition()  # guards the rest; no value is made under it
        self._kept: Dict[_Key, Tuple[_Value, float, float]] = {}  # value, when it was made, until when it is kept
        self._making: Set[_Key] = set()

    def known(self, key: _Key) -> Optional[_Value]:
        """The value of a key, if there is one; nothing is waited for."""
        with self._changed:
            return self._found(key)

    def get(self, key: _Key, make: Callable[[], Tuple[_Value, float]], seconds: float) -> Optional[_Value]:
        """The value of a key; `make` gives one, and the seconds for which it is kept.

        None where another thread has not made it within `seconds`. Raises what `make` raises, and ClientGone.
        """
        deadline = self._clock() + seconds
        with self._changed:
            while True:
                found = self._found(key)
                if found is not None:
                    return found
                if key not in self._making:
                    self._making.add(key)
                    break
                left = deadline - self._clock()
                if left <= 0:
                    return None
                client_watch.wait(self._changed, left)
        try:
            value, lifetime = make()
            with self._changed:
                self._kept.pop(key, None)
                now = self._clock()
                self._kept[key] = value, now, now + lifetime
                while len(self._kept) > self._most:
                    del self._kept[next(iter(self._kept))]
            return value
        finally:
            with self._changed:
                self._making.discard(key)
                self._changed.notify_all()

    def forget(self, key: _Key, value: _Value, older_than: float) -> bool:
        """Keep a value no longer, if it was made more than so many seconds ago. Returns whether another one may be
        made, or is there."""
        with self._changed:
            kept = self._kept.get(key)
            if kept is None or kept[0] != value:
                return True
            if self._clock() - kept[1] <= older_than:
                return False
            del self._kept[key]
            return True

    def _found(self, key: _Key) -> Optional[_Value]:
        kept = self._kept.get(key)
        return None if kept is None or self._clock() >= kept[2] else kept[0]
