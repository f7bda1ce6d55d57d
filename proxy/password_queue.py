"""Whose password is hashed next: fair between addresses, so that guesses delay nobody but those who guess.

Hashing is expensive on purpose. So there are only a few hashes at a time, of which an address has one. Of each user, an
address may have a few more that wait; the next one then takes the place of the oldest, which is refused at once. Many
users may share an address (NAT), so that in all there may be more. Addresses whose last password was right, or that
have sent none yet, come before those that guess.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from contextlib import contextmanager
from typing import Deque, Iterator, Optional, Set

_AT_ONCE = 2  # hashes: guesses get no more of the machine than that
_WAITING_PER_USER = 4  # of one address; whether there is such a user makes no difference, or guessers could tell
_WAITING_PER_ADDRESS = 32
_TIMEOUT = 10.0  # seconds in the queue
_GUESSERS_REMEMBERED = 4096  # addresses; the oldest is forgotten first


class TooManyPasswords(Exception):
    """An address sends more passwords than can be checked."""


class _Waiting:
    """One password that waits; `event` is set when it is its turn, or when it is `refused`."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.event = threading.Event()
        self.admitted = False
        self.refused = False


class PasswordQueue:
    """The order of hashes. `turn` waits for one; `note` is told whether the password was right."""

    def __init__(self, timeout: float = _TIMEOUT) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()  # guards the three below, and the state of all who wait
        self._waiting: OrderedDict[str, Deque[_Waiting]] = OrderedDict()  # by address, the longest unserved first
        self._running: Set[str] = set()  # addresses
        self._guessers: OrderedDict[str, None] = OrderedDict()  # addresses whose last password was wrong

    @contextmanager
    def turn(self, address: str, user: str = "") -> Iterator[None]:
        """Hash inside of this. Raises TooManyPasswords where the address sends too many, or nothing ends in time."""
        mine = _Waiting(user)
        with self._lock:
            queue = self._waiting.setdefault(address, deque())
            oldest = _surplus(queue, user)
            if oldest is not None:
                queue.remove(oldest)
                oldest.refused = True
                oldest.event.set()
            queue.append(mine)
            self._admit()
        if not mine.event.wait(self._timeout):
            self._withdraw(address, mine)
        if not mine.admitted:
            raise TooManyPasswords
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(address)
                self._admit()

    def note(self, address: str, right: bool) -> None:
        """A password from this address was right, or wrong."""
        with self._lock:
            self._guessers.pop(address, None)
            if not right:
                self._guessers[address] = None
                if len(self._guessers) > _GUESSERS_REMEMBERED:
                    self._guessers.popitem(last=False)

    def _withdraw(self, address: str, mine: _Waiting) -> None:
        """Its time is over, unless its turn has just come."""
        with self._lock:
            if not (mine.admitted or mine.refused):
                mine.refused = True
                queue = self._waiting[address]
                queue.remove(mine)
                if not queue:
                    del self._waiting[address]

    def _admit(self) -> None:
        """Begin what may begin; callers have the lock."""
        while len(self._running) < _AT_ONCE:
            address = self._next()
            if address is None:
                return
            queue = self._waiting.pop(address)
            following = queue.popleft()
            if queue:
                self._waiting[address] = queue  # behind all others
            self._running.add(address)
            following.admitted = True
            following.event.set()

    def _next(self) -> Optional[str]:
        free = [address for address in self._waiting if address not in self._running]
        return next((address for address in free if address not in self._guessers), free[0] if free else None)


def _surplus(queue: Deque[_Waiting], user: str) -> Optional[_Waiting]:
    """Which of an address's passwords is to go for another one of this user, if any."""
    same = [one for one in queue if one.user == user]
    if len(same) >= _WAITING_PER_USER:
        return same[0]
    return queue[0] if len(queue) >= _WAITING_PER_ADDRESS else None
