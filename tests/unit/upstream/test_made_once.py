"""Values that are made once for all who want them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import List, Optional, Tuple

import pytest
from support.client import wait_until

from upstream.made_once import MadeOnce


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def counted(made: List[str], value: str = "v", lifetime: float = 10.0) -> Tuple[str, float]:
    made.append(value)
    return value, lifetime


def test_a_value_is_kept_for_its_time() -> None:
    clock, made = Clock(), [""][:0]
    values: MadeOnce[str, str] = MadeOnce(4, clock)
    assert values.known("a") is None
    for now in (1000.0, 1009.9):
        clock.now = now
        assert values.get("a", lambda: counted(made), 1.0) == values.known("a") == "v"
    clock.now = 1010.0
    assert values.known("a") is None
    assert values.get("a", lambda: counted(made, "w"), 1.0) == "w"
    assert made == ["v", "w"]


def test_many_that_want_a_value_at_once_cause_one_to_be_made() -> None:
    values: MadeOnce[str, str] = MadeOnce(4)
    made: List[str] = []
    go_on = threading.Event()

    def make() -> Tuple[str, float]:
        assert go_on.wait(20.0)
        return counted(made)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(values.get, "a", make, 20.0) for _ in range(4)]
        assert values.get("b", lambda: counted([], "other"), 1.0) == "other"  # another key waits for nothing
        go_on.set()
        assert [future.result() for future in futures] == ["v"] * 4
    assert made == ["v"]


def test_a_value_that_cannot_be_made_is_made_by_the_next_one_that_waits() -> None:
    values: MadeOnce[str, str] = MadeOnce(4)
    fail, began = threading.Event(), threading.Event()

    def failing() -> Tuple[str, float]:
        began.set()
        assert fail.wait(20.0)
        raise ValueError

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(values.get, "a", failing, 20.0)
        assert began.wait(20.0)
        second = pool.submit(values.get, "a", lambda: counted([]), 20.0)
        fail.set()
        with pytest.raises(ValueError):
            first.result()
        assert second.result() == "v"


def test_nobody_waits_for_longer_than_they_say() -> None:
    values: MadeOnce[str, str] = MadeOnce(4)
    go_on, began = threading.Event(), threading.Event()

    def make() -> Tuple[str, float]:
        began.set()
        assert go_on.wait(20.0)
        return counted([])

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(values.get, "a", make, 20.0)
        assert began.wait(20.0)
        found: Optional[str] = values.get("a", make, 0.01)
        go_on.set()
        assert (found, future.result()) == (None, "v")
    wait_until(lambda: values.known("a") == "v")


def test_what_was_made_first_goes_first() -> None:
    values: MadeOnce[str, str] = MadeOnce(2)
    for key in "abac":
        values.get(key, lambda: counted([]), 1.0)
    assert [values.known(key) for key in "abc"] == [None, "v", "v"]


def test_only_an_old_value_is_forgotten() -> None:
    clock = Clock()
    values: MadeOnce[str, str] = MadeOnce(2, clock)
    values.get("a", lambda: counted([]), 1.0)
    assert not values.forget("a", "v", 5.0)
    assert values.forget("a", "another", 5.0) and values.known("a") == "v"
    clock.now += 5.1
    assert values.forget("a", "v", 5.0) and values.known("a") is None
    assert values.forget("b", "v", 5.0)
