"""How fast an origin sends."""

from __future__ import annotations

from transfers.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_known_in_the_beginning() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now += 100
    assert pace.rate is None
    pace.note(0)
    clock.now += 0.2
    assert pace.rate is None
    clock.now += 0.3
    pace.note(1000)
    assert pace.rate == 2000


def test_only_the_last_seconds_count() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.note(0)
    for _ in range(40):
        clock.now += 0.25
        pace.note(250)
    assert pace.rate == 1000
    clock.now += 1.75
    assert (pace.rate or 0) < 1000
    for _ in range(12):
        clock.now += 0.25
        pace.note(25)
    assert pace.rate == 100


def test_an_origin_that_sends_nothing_has_no_pace() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.note(0)
    clock.now += 5
    assert pace.rate == 0
