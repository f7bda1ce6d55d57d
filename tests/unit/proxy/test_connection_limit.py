"""Which connection gets a place, and which one loses it."""

from __future__ import annotations

import time
from typing import Callable, List, Optional

import pytest

from proxy.connection_limit import GONE, ConnectionLimit, Slots, TooManyConnections


class Holder:
    def __init__(self, address: str, silent_since: Optional[float] = 0.0) -> None:
        self.address = address
        self.silent_since = silent_since


class Clock:
    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


class Places(ConnectionLimit):
    """With the same slots for every `with`."""

    def __init__(self, count: int, unproven: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self.slots = Slots.of(count, unproven)

    def enter(self, holder: Holder) -> object:
        return self.take(holder, self.slots)


def taken(places: Places, address: str, count: int, **keys: Optional[float]) -> List[Holder]:
    holders = [Holder(address, **keys) for _ in range(count)]
    for holder in holders:
        assert places.enter(holder) is None
    return holders


def test_the_limit_can_change_while_places_are_taken() -> None:
    places = Places(2, 9)
    first, second = taken(places, "a", 2, silent_since=None)
    with pytest.raises(TooManyConnections, match=r"proxy\.max_connections"):
        places.enter(Holder("a"))
    places.slots = Slots.of(3, 9)
    taken(places, "a", 1, silent_since=None)
    places.slots = Slots.of(2, 9)
    for _ in range(2):
        places.release(first)  # harmless twice
    with pytest.raises(TooManyConnections):
        places.enter(Holder("a"))
    places.release(second)
    taken(places, "a", 1)
    assert places.taken == 2


def test_the_longest_silent_of_the_address_with_the_most_gives_way() -> None:
    places = Places(6, 9, Clock())
    (early,) = taken(places, "many", 1, silent_since=0.5)
    earliest, busy = Holder("many", 0.25), Holder("many", None)
    for holder in (earliest, busy):
        places.enter(holder)
    taken(places, "few", 2, silent_since=0.0)
    taken(places, "many", 1, silent_since=0.75)
    assert places.enter(Holder("new", None)) is earliest
    assert places.enter(Holder("new", None)) is early
    with pytest.raises(TooManyConnections):
        places.enter(Holder("few"))  # which has as many as the other


def test_an_address_gains_no_place_by_opening_more_connections() -> None:
    clock = Clock()
    places = Places(3, 9, clock)
    holders = taken(places, "a", 3, silent_since=0.5)
    for _ in range(2):
        with pytest.raises(TooManyConnections):
            places.enter(Holder("a"))
    clock.now = 6.0  # a while later the places are free
    assert places.enter(Holder("a", None)) is holders[0]


def test_a_connection_that_sent_a_request_gives_way_last() -> None:
    places = Places(4, 9, Clock())
    for holder in taken(places, "site", 3, silent_since=0.0):
        places.prove(holder)
        places.prove(holder)
    (silent,) = taken(places, "scanner", 1, silent_since=0.75)
    assert places.enter(Holder("new", None)) is silent


def test_a_closed_connection_gives_way_first() -> None:
    places = Places(3, 9, Clock())
    taken(places, "a", 2)
    (gone,) = taken(places, "a", 1, silent_since=GONE)
    assert places.enter(Holder("a", None)) is gone


def test_an_address_has_a_limited_number_of_silent_connections() -> None:
    clock = Clock()
    places = Places(100, 2, clock)
    first, second = taken(places, "a", 2, silent_since=0.5)
    with pytest.raises(TooManyConnections, match=r"proxy\.max_silent_per_client"):
        places.enter(Holder("a"))
    taken(places, "b", 2)
    places.prove(first)
    (third,) = taken(places, "a", 1, silent_since=0.75)
    clock.now = 10.0
    assert places.enter(Holder("a")) is second
    assert places.enter(Holder("a")) is third
    places.release(first)
    assert places.taken == 4


def test_a_share_is_a_quarter_and_never_too_small() -> None:
    places = Places(400, 0)
    taken(places, "a", 100, silent_since=None)
    with pytest.raises(TooManyConnections):
        places.enter(Holder("a"))
    small = Places(32, 0)
    taken(small, "a", 32)


def test_many_accepts_search_rarely() -> None:
    """To look at thousands takes time, and clients choose how often they come."""
    looks: List[None] = []

    class Counting(Holder):
        def __init__(self) -> None:
            self.address = "a"

        @property
        def silent_since(self) -> Optional[float]:  # type: ignore[override]
            looks.append(None)
            return None

    clock = Clock()
    places = Places(5, 9, clock)
    for _ in range(5):
        places.enter(Counting())
    for _ in range(10):
        with pytest.raises(TooManyConnections):
            places.enter(Holder("b"))
    assert len(looks) == 5
