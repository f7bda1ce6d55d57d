"""What happened a moment ago, in memory that all worker processes share: who was given what, what was asked about.

It is bounded and has no lock. A key has one slot, which another key may take over; what is lost costs a question that
is not asked, or one too many. A slot is eight bytes that are written at once.
"""

from __future__ import annotations

import math
import mmap
import threading
import time
from functools import partial
from typing import Callable, Hashable, Tuple

Client = Tuple[str, str]  # an address, and a user's name or nothing

_SLOTS = 1 << 18  # a power of two
_LOW = 0xFFFFFFFF
_AT_ONCE = 8  # questions in the background of one process
_BUSY_PAUSE = 1.0  # seconds until a question that there was no room for may be asked
_PAUSE_BEFORE_NEXT = 1.0  # seconds from an answer to the next question about the same object
_PAUSE_AFTER_FAILURE = 60.0


class SharedTimes:
    """Times by key, in whole seconds since the epoch. Processes that are forked after it was made share it.

    They share the secret of `hash`, too, which clients do not know: none can choose whose slots it takes.
    """

    def __init__(self, slots: int = _SLOTS) -> None:
        self._mask = slots - 1
        self._values = memoryview(mmap.mmap(-1, slots * 8)).cast("Q")

    def get(self, key: Hashable) -> int:
        """The time that was noted for a key last; 0 where there is none."""
        mark = hash(key)
        value = self._values[mark & self._mask]
        return value & _LOW if value >> 32 == mark >> 32 & _LOW else 0

    def set(self, key: Hashable, when: float) -> None:
        """Note a time for a key."""
        mark = hash(key)
        self._values[mark & self._mask] = (mark >> 32 & _LOW) << 32 | (math.ceil(when) & _LOW)


class Deliveries:
    """Who has just been given what. Whoever asks again within `window` seconds may have found that it is outdated.

    Only one such question about an object is asked in that time, whoever asks: many clients share an address.
    """

    def __init__(self, times: SharedTimes, window: float) -> None:
        self._times = times
        self._window = window

    def note(self, client: Client, name: str) -> None:
        """A client has been given the whole of an object."""
        if self._window:
            now = time.time()
            key = (client, name)
            if self._times.get(key) < now:  # or this second is noted already
                self._times.set(key, now)

    def asks_again(self, client: Client, name: str) -> bool:
        """Whether a request is a reason to ask the origin, and it has not been asked for such a reason lately."""
        if not self._window:
            return False
        since = time.time() - self._window
        return self._times.get(("doubt", name)) <= since < self._times.get((client, name))

    def take(self, client: Client, name: str) -> bool:
        """The same; and if so, the caller asks."""
        if not self.asks_again(client, name):
            return False
        self._times.set(("doubt", name), time.time())
        return True


class Background:
    """Questions that no client waits for: one at a time about an object, a few at a time in all.

    `spawn` starts a thread. None is asked once `ending` is set.
    """

    def __init__(
        self, times: SharedTimes, spawn: Callable[[str, Callable[[], None]], None], ending: threading.Event
    ) -> None:
        self._times = times
        self._spawn = spawn
        self._ending = ending
        self._places = threading.Semaphore(_AT_ONCE)

    def ask(self, name: str, due: float, question: Callable[[], bool]) -> float:
        """Have a `question` about an object asked if it is `due`; when one may be due next.

        It tells whether it was answered. If not, it is not asked again for a while.
        """
        now = time.time()
        pending = float(self._times.get(("question", name)))
        if max(due, pending) > now:
            return max(due, pending)
        if self._ending.is_set() or not self._places.acquire(blocking=False):
            return now + _BUSY_PAUSE
        self._times.set(("question", name), now + _PAUSE_AFTER_FAILURE)
        try:
            self._spawn("validation", partial(self._run, name, question))
        except RuntimeError:  # there are too many threads already
            self._places.release()
        return now + _PAUSE_AFTER_FAILURE

    def _run(self, name: str, question: Callable[[], bool]) -> None:
        try:
            if question():
                self._times.set(("question", name), time.time() + _PAUSE_BEFORE_NEXT)
        finally:
            self._places.release()
