"""Recent events, in memory that all worker processes share: deliveries to clients, and queries to origins.

It is bounded and has no lock. A key has one slot, which another key may take over. A lost entry costs one query too
few or too many. A slot is eight bytes that are written at once.
"""

from __future__ import annotations

import math
import mmap
import threading
import time
from functools import partial
from typing import Callable, Hashable, Tuple

Client = Tuple[str, str]  # an address, and a user's name or an empty string

_SLOTS = 1 << 18  # a power of two
_LOW = 0xFFFFFFFF
_AT_ONCE = 8  # background queries of one process
_PAUSE_BEFORE_NEXT = 1.0  # seconds from a response to the next query about the same object
_PAUSE_AFTER_FAILURE = 60.0


class SharedTimes:
    """Times by key, in whole seconds since the epoch. Processes that are forked after its creation share it.

    They share the secret of `hash`, too. Clients do not know it, so none can choose whose slots it takes.
    """

    def __init__(self, slots: int = _SLOTS) -> None:
        self._mask = slots - 1
        self._values = memoryview(mmap.mmap(-1, slots * 8)).cast("Q")

    def get(self, key: Hashable) -> int:
        """The last time that was noted for a key; 0 where there is none."""
        mark = hash(key)
        value = self._values[mark & self._mask]
        return value & _LOW if value >> 32 == mark >> 32 & _LOW else 0

    def set(self, key: Hashable, when: float) -> None:
        """Note a time for a key."""
        mark = hash(key)
        self._values[mark & self._mask] = (mark >> 32 & _LOW) << 32 | (math.ceil(when) & _LOW)


class Deliveries:
    """Recent deliveries. A client that asks again within `window` seconds may have found its object outdated.

    Such requests cause one query per object in that time, for all clients together: many share an address.
    """

    def __init__(self, times: SharedTimes, window: float) -> None:
        self._times = times
        self._window = window

    def note(self, client: Client, name: str) -> None:
        """A client got the whole of an object."""
        if self._window:
            now = time.time()
            key = (client, name)
            if self._times.get(key) < now:  # else this second is noted already
                self._times.set(key, now)

    def asks_again(self, client: Client, name: str) -> bool:
        """Whether this request is a reason to ask the origin, and no such query was sent within the window."""
        if not self._window:
            return False
        since = time.time() - self._window
        return self._times.get(("doubt", name)) <= since < self._times.get((client, name))

    def take(self, client: Client, name: str) -> bool:
        """Like `asks_again`; where it is True, the caller asks the origin."""
        if not self.asks_again(client, name):
            return False
        self._times.set(("doubt", name), time.time())
        return True


class Background:
    """Queries that no client waits for: one at a time about an object, a few at a time in all.

    `spawn` starts a thread. No query starts once `ending` is set.
    """

    def __init__(
        self, times: SharedTimes, spawn: Callable[[str, Callable[[], None]], None], ending: threading.Event
    ) -> None:
        self._times = times
        self._spawn = spawn
        self._ending = ending
        self._free = threading.Semaphore(_AT_ONCE)

    def ask(self, name: str, due: float, question: Callable[[], bool]) -> None:
        """Start a `question` about an object if it is `due`.

        The question returns whether it was answered. If not, it is not asked again for a while.
        """
        now = time.time()
        if self.next_one(name, due) > now or self._ending.is_set() or not self._free.acquire(blocking=False):
            return
        self._times.set(("question", name), now + _PAUSE_AFTER_FAILURE)
        try:
            self._spawn("validation", partial(self._run, name, question))
        except RuntimeError:  # there are too many threads already
            self._free.release()

    def next_one(self, name: str, due: float) -> float:
        """When the next query about an object may be sent that is `due` then, in epoch seconds."""
        return max(due, float(self._times.get(("question", name))))

    def _run(self, name: str, question: Callable[[], bool]) -> None:
        try:
            if question():
                self._times.set(("question", name), time.time() + _PAUSE_BEFORE_NEXT)
        finally:
            self._free.release()
