"""The limit on client connections: slots, and the choice of a connection that loses its slot to a new one.

Silent connections must not keep others out. So each address has a limit on unproven connections, those without an
accepted request; and when all slots are taken, a silent connection is ended for the new one. The loser is of the
address with the most silent connections, and of the new connection's own address only after `_GRACE` seconds of
silence: no address gains by opening more connections.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Callable, Deque, Dict, Iterator, List, Optional, Protocol

GONE = float("-inf")  # `silent_since` of a connection whose client has hung up

_GRACE = 5.0  # seconds of silence before a connection may lose its slot to its own address
_SURVEY_INTERVAL = 0.1  # seconds between two scans of all connections
_SHARE = 4  # an address may hold 1/_SHARE of all slots unproven
_MIN_SHARE = 32


class TooManyConnections(Exception):
    """No slot for a connection; the message is one line that names the configuration key."""


class Holder(Protocol):
    """A connection. `silent_since` is when it began to wait for its client (monotonic), None while it is busy."""

    @property
    def address(self) -> str: ...

    @property
    def silent_since(self) -> Optional[float]: ...


@dataclass(frozen=True)
class Slots:
    """How many connections there may be, and how many of one address without a request."""

    count: int
    max_unproven: int

    @classmethod
    def of(cls, count: int, unproven: int) -> Slots:
        """As configured; `unproven` 0 is a share of `count`."""
        return cls(count, unproven or max(_MIN_SHARE, count // _SHARE))


class ConnectionLimit:
    """Slots for connections, which keep them when a reload leaves fewer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards all attributes below
        self._holders: Dict[Holder, bool] = {}  # value: an accepted request was made
        self._unproven: Dict[str, int] = {}  # connections without one, by address
        self._silent: List[Dict[str, Deque[Holder]]] = []  # of the last scan: by address, longest silent first
        self._looked_at = float("-inf")

    def __repr__(self) -> str:
        return f"<ConnectionLimit: {len(self._holders)} taken, {len(self._unproven)} addresses with unproven ones>"

    def take(self, holder: Holder, slots: Slots) -> Optional[Holder]:
        """Take one of `slots`. Returns the connection that lost its slot for it, if any. Raises TooManyConnections."""
        address = holder.address
        with self._lock:
            loser = None
            if self._unproven.get(address, 0) >= slots.max_unproven:
                loser = self._silent_too_long(self._look()[1].get(address))
                if loser is None:
                    raise TooManyConnections(
                        f"too many connections of {address} have not asked for anything (proxy.max_silent_per_client)"
                    )
            elif len(self._holders) >= slots.count:
                loser = self._dispensable(address)
                if loser is None:
                    raise TooManyConnections("too many connections (proxy.max_connections)")
            if loser is not None:
                self._drop(loser)
            self._holders[holder] = False
            self._unproven[address] = self._unproven.get(address, 0) + 1
            return loser

    def prove(self, holder: Holder) -> None:
        """A request of the connection was accepted. Idempotent."""
        with self._lock:
            if self._holders.get(holder) is False:
                self._holders[holder] = True
                self._count_down(holder.address)

    def release(self, holder: Holder) -> None:
        """Give a slot back. Idempotent, also after the slot was lost."""
        with self._lock:
            self._drop(holder)

    @property
    def taken(self) -> int:
        """The number of slots taken."""
        with self._lock:
            return len(self._holders)

    # Callers of the methods below hold the lock

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
        """Silent connections by address, in three groups: client gone, unproven, proven."""
        now = self._clock()
        if now - self._looked_at >= _SURVEY_INTERVAL:
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
        """The connection that loses its slot to a new one of this address."""
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
                long_silent = self._silent_too_long(holders)
                if long_silent is not None:
                    return long_silent
        return None

    def _silent_too_long(self, holders: Optional[Deque[Holder]]) -> Optional[Holder]:
        """A connection that has been silent for `_GRACE` or longer, and may lose its slot to any address."""
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
