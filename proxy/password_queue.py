"""The queue of passwords to hash: fair between addresses, so that password guessing delays only the guessers.

Hashing is expensive on purpose. So few hashes run at a time, and at most one of an address. An address may queue a few
more for each user; one beyond that replaces the oldest, which is refused at once. Many users may share an address
(NAT), so an address may queue more in total. Addresses whose last password was right, or that have sent none yet, come
before guessers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from contextlib import contextmanager
from typing import Deque, Iterator, Optional, Set

_AT_ONCE = 2  # hashes: limits the CPU time that guesses can take
_WAITING_PER_USER = 4  # of one address; the same for unknown users: guessers must not tell them apart
_WAITING_PER_ADDRESS = 32
_TIMEOUT = 10.0  # seconds in the queue
_GUESSERS_REMEMBERED = 4096  # addresses; the oldest is forgotten first


class TooManyPasswords(Exception):
    """An address sends more passwords than can be checked."""


class _Waiting:
    """One queued password; `event` is set once it is `admitted` or `refused`."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.event = threading.Event()
        self.admitted = False
        self.refused = False


class PasswordQueue:
    """The order of hashes. `admission` waits for permission to hash; `note` records the result."""

    def __init__(self, timeout: float = _TIMEOUT) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()  # guards the three fields below, and the state of each _Waiting
        self._waiting: OrderedDict[str, Deque[_Waiting]] = OrderedDict()  # by address, longest unserved first
        self._running: Set[str] = set()  # addresses with a hash in progress
        self._guessers: OrderedDict[str, None] = OrderedDict()  # addresses whose last password was wrong

    @contextmanager
    def admission(self, address: str, user: str = "") -> Iterator[None]:
        """Hash inside this context. Raises TooManyPasswords if the address sends too many, or on a time-out."""
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
        """Leave the queue after a time-out, unless just admitted or refused."""
        with self._lock:
            if not (mine.admitted or mine.refused):
                mine.refused = True
                queue = self._waiting[address]
                queue.remove(mine)
                if not queue:
                    del self._waiting[address]

    def _admit(self) -> None:
        """Admit as many passwords as may run; callers hold the lock."""
        while len(self._running) < _AT_ONCE:
            address = self._next()
            if address is None:
                return
            queue = self._waiting.pop(address)
            following = queue.popleft()
            if queue:
                self._waiting[address] = queue  # at the end
            self._running.add(address)
            following.admitted = True
            following.event.set()

    def _next(self) -> Optional[str]:
        free = [address for address in self._waiting if address not in self._running]
        return next((address for address in free if address not in self._guessers), free[0] if free else None)


def _surplus(queue: Deque[_Waiting], user: str) -> Optional[_Waiting]:
    """The queued password of an address to refuse in favour of a new one of this user, if any."""
    same = [one for one in queue if one.user == user]
    if len(same) >= _WAITING_PER_USER:
        return same[0]
    return queue[0] if len(queue) >= _WAITING_PER_ADDRESS else None
