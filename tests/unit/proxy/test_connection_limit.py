"""Who gets a place, and whose."""

from __future__ import annotations

from typing import List, Optional

import pytest

from proxy.connection_limit import GONE, ConnectionLimit, TooManyConnections


class Holder:
    def __init__(self, address: str, silent_since: Optional[float] = 0.0) -> None:
        self.address = address
        self.silent_since = silent_since


class Clock:
    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


def taken(places: ConnectionLimit, address: str, count: int, **keys: Optional[float]) -> List[Holder]:
    holders = [Holder(address, **keys) for _ in range(count)]
    for holder in holders:
        assert places.take(holder) is None
    return holders


def test_places_can_be_more_or_fewer_while_they_are_taken() -> None:
    places = ConnectionLimit(2, 9)
    first, second = taken(places, "a", 2, silent_since=None)
    with pytest.raises(TooManyConnections, match=r"proxy\.max_connections"):
        places.take(Holder("a"))
    places.resize(3, 9)
    taken(places, "a", 1, silent_since=None)
    places.resize(2, 9)
    for _ in range(2):
        places.release(first)  # harmless twice
    with pytest.raises(TooManyConnections):
        places.take(Holder("a"))
    places.release(second)
    taken(places, "a", 1)
    assert places.taken == 2


def test_the_longest_silent_of_the_address_with_the_most_gives_way() -> None:
    places = ConnectionLimit(6, 9, Clock())
    (early,) = taken(places, "many", 1, silent_since=0.5)
    earliest, busy = Holder("many", 0.25), Holder("many", None)
    for holder in (earliest, busy):
        places.take(holder)
    taken(places, "few", 2, silent_since=0.0)
    taken(places, "many", 1, silent_since=0.75)
    assert places.take(Holder("new", None)) is earliest
    assert places.take(Holder("new", None)) is early
    with pytest.raises(TooManyConnections):
        places.take(Holder("few"))  # which has as many as the other


def test_an_address_does_not_gain_by_opening_more() -> None:
    clock = Clock()
    places = ConnectionLimit(3, 9, clock)
    holders = taken(places, "a", 3, silent_since=0.5)
    for _ in range(2):
        with pytest.raises(TooManyConnections):
            places.take(Holder("a"))
    clock.now = 6.0  # a while later they are nobody's any more
    assert places.take(Holder("a", None)) is holders[0]


def test_who_has_asked_for_something_gives_way_last() -> None:
    places = ConnectionLimit(4, 9, Clock())
    for holder in taken(places, "site", 3, silent_since=0.0):
        places.prove(holder)
        places.prove(holder)
    (silent,) = taken(places, "scanner", 1, silent_since=0.75)
    assert places.take(Holder("new", None)) is silent


def test_who_is_gone_gives_way_first() -> None:
    places = ConnectionLimit(3, 9, Clock())
    taken(places, "a", 2)
    (gone,) = taken(places, "a", 1, silent_since=GONE)
    assert places.take(Holder("a", None)) is gone


def test_an_address_has_only_so_many_that_have_not_asked() -> None:
    clock = Clock()
    places = ConnectionLimit(100, 2, clock)
    first, second = taken(places, "a", 2, silent_since=0.5)
    with pytest.raises(TooManyConnections, match=r"proxy\.max_silent_per_client"):
        places.take(Holder("a"))
    taken(places, "b", 2)
    places.prove(first)
    (third,) = taken(places, "a", 1, silent_since=0.75)
    clock.now = 10.0
    assert places.take(Holder("a")) is second
    assert places.take(Holder("a")) is third
    places.release(first)
    assert places.taken == 4


def test_a_share_is_a_quarter_and_never_too_small() -> None:
    places = ConnectionLimit(400, 0)
    taken(places, "a", 100, silent_since=None)
    with pytest.raises(TooManyConnections):
        places.take(Holder("a"))
    small = ConnectionLimit(32, 0)
    taken(small, "a", 32)


def test_many_accepts_look_seldom() -> None:
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
    places = ConnectionLimit(5, 9, clock)
    for _ in range(5):
        places.take(Counting())
    for _ in range(10):
        with pytest.raises(TooManyConnections):
            places.take(Holder("b"))
    assert len(looks) == 5
