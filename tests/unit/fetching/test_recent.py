"""Recent deliveries: shared, bounded, lossy; and validations in the background."""

from __future__ import annotations

import os
import threading
import time
from typing import Callable, List

import pytest

from fetching import recent
from fetching.recent import Background, Deliveries, SharedTimes

ALICE, BOB = ("192.0.2.1", ""), ("192.0.2.2", "")


class Clock:
    """Time that stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


class Spawned:
    """Threads that are not started before a test does it."""

    def __init__(self) -> None:
        self.works: List[Callable[[], None]] = []

    def __call__(self, name: str, work: Callable[[], None]) -> None:
        self.works.append(work)


def test_a_time_is_found_by_its_key_only() -> None:
    times = SharedTimes()
    times.set("a", 1_800_000_000.2)
    assert (times.get("a"), times.get("b"), times.get(("a",))) == (1_800_000_001, 0, 0)


def test_a_key_that_takes_over_a_slot_is_not_mistaken_for_the_old_one() -> None:
    times = SharedTimes(slots=1)
    times.set("a", 5)
    assert times.get("b") == 0
    times.set("b", 6)
    assert (times.get("a"), times.get("b")) == (0, 6)


def test_processes_share_recent_deliveries() -> None:
    times = SharedTimes()
    pid = os.fork()
    if not pid:
        times.set(("a", "b"), 7)
        os._exit(0)
    os.waitpid(pid, 0)
    assert times.get(("a", "b")) == 7


def test_only_a_client_with_a_recent_delivery_repeats_a_request(clock: Clock) -> None:
    deliveries = Deliveries(SharedTimes(), 120)
    assert not deliveries.asks_again(ALICE, "x")
    deliveries.note(ALICE, "x")
    assert deliveries.asks_again(ALICE, "x")
    assert not deliveries.asks_again(BOB, "x") and not deliveries.asks_again(ALICE, "y")
    assert not deliveries.asks_again((ALICE[0], "user"), "x")
    clock.now += 121
    assert not deliveries.asks_again(ALICE, "x")


def test_a_window_has_one_question_for_all_clients(clock: Clock) -> None:
    deliveries = Deliveries(SharedTimes(), 120)
    deliveries.note(ALICE, "x")
    deliveries.note(BOB, "x")
    assert deliveries.take(ALICE, "x")
    assert not deliveries.take(ALICE, "x") and not deliveries.take(BOB, "x")
    clock.now += 60
    deliveries.note(ALICE, "x")
    assert not deliveries.take(ALICE, "x")
    clock.now += 61
    assert deliveries.take(ALICE, "x")


def test_without_a_window_no_request_is_a_repetition(clock: Clock) -> None:
    deliveries = Deliveries(SharedTimes(), 0)
    deliveries.note(ALICE, "x")
    assert not deliveries.asks_again(ALICE, "x")


def test_a_question_is_asked_when_it_is_due_and_once(clock: Clock) -> None:
    spawned = Spawned()
    background = Background(SharedTimes(), spawned, threading.Event())
    asked: List[str] = []

    def question() -> bool:
        asked.append("x")
        return True

    background.ask("x", clock.now + 5, lambda: True)
    assert not spawned.works and background.next_one("x", clock.now + 5) == clock.now + 5
    for _ in range(3):
        background.ask("x", clock.now, question)
        assert background.next_one("x", clock.now) == clock.now + 60
    assert len(spawned.works) == 1
    spawned.works.pop()()
    assert asked == ["x"]
    background.ask("x", clock.now, lambda: True)
    assert not spawned.works and background.next_one("x", clock.now) == clock.now + 1  # however often it is due
    clock.now += 1
    background.ask("x", clock.now, lambda: True)
    assert len(spawned.works) == 1


def test_a_question_without_an_answer_is_not_repeated_for_a_while(clock: Clock) -> None:
    spawned = Spawned()
    background = Background(SharedTimes(), spawned, threading.Event())
    background.ask("x", clock.now, lambda: False)
    spawned.works.pop()()
    clock.now += 59
    background.ask("x", clock.now, lambda: False)
    assert not spawned.works
    clock.now += 1
    background.ask("x", clock.now, lambda: False)
    assert len(spawned.works) == 1


def test_few_questions_run_at_a_time_and_none_after_the_stop(clock: Clock) -> None:
    spawned, ending = Spawned(), threading.Event()
    background = Background(SharedTimes(), spawned, ending)
    for number in range(20):
        background.ask(f"x{number}", clock.now, lambda: True)
    assert len(spawned.works) == recent._AT_ONCE
    assert background.next_one("x19", clock.now) == clock.now  # it found no place, and may be asked again
    spawned.works.pop()()
    ending.set()
    background.ask("y", clock.now, lambda: True)
    assert len(spawned.works) == recent._AT_ONCE - 1


def test_a_questions_place_is_freed_on_every_path(clock: Clock) -> None:
    spawned = Spawned()
    background = Background(SharedTimes(), spawned, threading.Event())

    def bug() -> bool:
        raise ValueError("a bug")

    def no_room(name: str, work: Callable[[], None]) -> None:
        raise RuntimeError

    for number in range(30):
        background.ask(f"x{number}", clock.now, bug)
        with pytest.raises(ValueError, match="a bug"):
            spawned.works.pop()()
    crowded = Background(SharedTimes(), no_room, threading.Event())
    for number in range(30):
        crowded.ask(f"x{number}", clock.now, bug)
        assert crowded.next_one(f"x{number}", clock.now) == clock.now + 60
