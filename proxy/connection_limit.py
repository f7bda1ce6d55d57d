"""Who may be connected: places for connections, and who gives theirs up when there are no more.

A place that is held in silence is worth nothing to anybody. So an address may hold only so many places with connections
that have not made an accepted request yet; and when all places are taken, a connection that waits for its client is
ended for the newcomer. It is one of the address that holds the most in silence, never of the newcomer's own address,
unless it has been silent for a while: no address gains by opening more.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Callable, Deque, Dict, Iterator, List, Optional, Protocol

GONE = float("-inf")  # as `silent_since`: the client has hung up

_GRACE = 5.0  # seconds that a connection may be silent before its own address takes its place
_LOOKS_APART = 0.1  # seconds between two looks at all connections
_SHARE = 4  # an address may hold one place of so many in silence
_SHARE_AT_LEAST = 32


class NoPlace(Exception):
    """There is no place for a connection; one line that names the key."""


class Holder(Protocol):
    """A connection. `silent_since` is when it began to wait for its client (monotonic), None while it does not."""

    @property
    def address(self) -> str: ...

    @property
    def silent_since(self) -> Optional[float]: ...


class Places:
    """`count` places; at most `unproven` of them are for one address before it has asked, 0: a share."""

    def __init__(self, count: int, unproven: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards all below
        self._count, self._unproven_at_most = count, _share(count, unproven)
        self._holders: Dict[Holder, bool] = {}  # and whether they have made an accepted request
        self._unproven: Dict[str, int] = {}  # how many have not, by address
        self._silent: List[Dict[str, Deque[Holder]]] = []  # as of the last look: by address, the longest silent first
        self._looked_at = float("-inf")

    def take(self, holder: Holder) -> Optional[Holder]:
        """Take a place; another connection that has lost its own for that, and is to be ended. Raises NoPlace."""
        address = holder.address
        with self._lock:
            loser = None
            if self._unproven.get(address, 0) >= self._unproven_at_most:
                loser = self._patient(self._look()[1].get(address))
                if loser is None:
                    raise NoPlace(
                        f"too many connections of {address} have not asked for anything (proxy.max_silent_per_client)"
                    )
            elif len(self._holders) >= self._count:
                loser = self._dispensable(address)
                if loser is None:
                    raise NoPlace("too many connections (proxy.max_connections)")
            if loser is not None:
                self._drop(loser)
            self._holders[holder] = False
            self._unproven[address] = self._unproven.get(address, 0) + 1
            return loser

    def prove(self, holder: Holder) -> None:
        """A connection has made a request that was accepted. Harmless twice."""
        with self._lock:
            if self._holders.get(holder) is False:
                self._holders[holder] = True
                self._count_down(holder.address)

    def release(self, holder: Holder) -> None:
        """Give a place back. Harmless twice, and for one that has lost it."""
        with self._lock:
            self._drop(holder)

    def resize(self, count: int, unproven: int) -> None:
        """From now on there are so many; nobody loses their place by that."""
        with self._lock:
            self._count, self._unproven_at_most = count, _share(count, unproven)

    @property
    def taken(self) -> int:
        """How many are taken."""
        with self._lock:
            return len(self._holders)

    # Callers of what follows have the lock

    def _drop(self, holder: Holder) -> None:
        proven = self._holders.pop(holder, None)
        if proven is False:
            self._count_down(holder.address)

    def _count_down(self, address: str) -> None:
        left = self._unproven[address] - 1
        if left:
            self._unproven[address] = left
        else:
            del self._unproven[address]

    def _look(self) -> List[Dict[str, Deque[Holder]]]:
        """Silent connections by address: of clients that are gone, without a request, and all others."""
        now = self._clock()
        if now - self._looked_at >= _LOOKS_APART:
            self._looked_at = now
            found: List[Dict[str, List[Holder]]] = [{}, {}, {}]
            since: Dict[Holder, float] = {}
            for holder, proven in self._holders.items():
                silent = holder.silent_since
                if silent is not None:
                    since[holder] = silent
                    kind = 0 if silent == GONE else 1 + proven
                    found[kind].setdefault(holder.address, []).append(holder)
            self._silent = [
                {address: deque(sorted(holders, key=since.__getitem__)) for address, holders in one.items()}
                for one in found
            ]
        return self._silent

    def _dispensable(self, address: str) -> Optional[Holder]:
        """Whose place the newcomer of this address gets."""
        gone, *others = self._look()
        for holders in gone.values():
            for holder in _popped(holders):
                if self._holders.get(holder) is not None and holder.silent_since is not None:
                    return holder
        for silent in others:
            most = max(silent.values(), key=len, default=deque())
            if most is not silent.get(address) and len(most) > len(silent.get(address, ())):
                for holder in _popped(most):
                    if self._is_silent(holder):
                        return holder
        for silent in others:
            for holders in silent.values():
                patient = self._patient(holders)
                if patient is not None:
                    return patient
        return None

    def _patient(self, holders: Optional[Deque[Holder]]) -> Optional[Holder]:
        """One that has been silent for so long that anybody may have its place."""
        while holders:
            holder = holders[0]
            since = holder.silent_since if holder in self._holders else None
            if since is not None and self._clock() - since < _GRACE:
                return None
            holders.popleft()
            if since is not None:
                return holder
        return None

    def _is_silent(self, holder: Holder) -> bool:
        return holder in self._holders and holder.silent_since is not None


def _popped(holders: Deque[Holder]) -> Iterator[Holder]:
    while holders:
        yield holders.popleft()


def _share(count: int, unproven: int) -> int:
    return unproven or max(_SHARE_AT_LEAST, count // _SHARE)
