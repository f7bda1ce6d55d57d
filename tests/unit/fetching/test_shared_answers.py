"""Answers that all workers share: bounded, without a lock, never mixed up."""

from __future__ import annotations

import os
from typing import Callable, List

import pytest

from fetching.shared_answers import LONGEST, SharedAnswers

SOON = 1_800_000_060.5


@pytest.fixture
def shared() -> SharedAnswers:
    return SharedAnswers(sets=1, marks=4)


def test_an_answer_is_found_by_its_key_only(shared: SharedAnswers) -> None:
    shared.put(("a", "x"), b"one", SOON)
    assert (shared.get(("a", "x")), shared.get(("a", "y")), shared.get("a")) == (b"one", None, None)


def test_the_last_one_of_a_key_counts(shared: SharedAnswers) -> None:
    for value in (b"first", b"second"):
        shared.put("a", value, SOON)
    assert shared.get("a") == b"second"
    shared.put("b", b"other", SOON)  # there is one place less for others, and not two
    for key in "cd":
        shared.put(key, b"", SOON)
    assert [shared.get(key) for key in "abcd"] == [b"second", b"other", b"", b""]


def test_the_one_whose_time_ends_first_makes_room(shared: SharedAnswers) -> None:
    for number, key in enumerate("abcd"):
        shared.put(key, key.encode(), SOON + (0 if key == "c" else number + 1))
    shared.put("e", b"e", SOON)
    assert [shared.get(key) for key in "abcde"] == [b"a", b"b", None, b"d", b"e"]


def test_the_longest_fits_and_leaves_its_neighbours_alone(shared: SharedAnswers) -> None:
    values = {key: key.encode() * LONGEST for key in "abcd"}
    for key, value in values.items():
        shared.put(key, value, SOON)
    assert {key: shared.get(key) for key in values} == values


@pytest.mark.parametrize("where", [0, 16, 24, 32, 36, 50, 135])
def test_one_that_is_written_at_the_same_time_is_not_found(shared: SharedAnswers, where: int) -> None:
    """Whichever byte is another's: of the checksum, the key, the end, the length, the value."""
    shared.put("a", bytes(100), SOON)
    assert shared.get("a") == bytes(100)
    (start,) = [place for place in range(0, len(shared._slots), LONGEST + 36) if any(shared._slots[place : place + 16])]
    shared._slots[start + where] ^= 1
    assert shared.get("a") is None


def test_there_may_be_one_until_the_last_one_ends(shared: SharedAnswers) -> None:
    assert not shared.any(0.0)
    shared.put("a", b"", SOON)
    shared.put("b", b"", SOON - 10)
    assert shared.any(SOON) and not shared.any(SOON + 1)


def test_a_mark_changes_with_each_change(shared: SharedAnswers) -> None:
    seen = [shared.mark("a")]
    changes: List[Callable[[], None]] = [lambda: shared.forget("a"), shared.clear]
    for change in 2 * changes:
        assert shared.mark("a") == seen[-1]
        change()
        seen.append(shared.mark("a"))
    assert len(set(seen)) == len(seen)


def test_processes_share_answers_and_marks(shared: SharedAnswers) -> None:
    before = shared.mark("a")
    pid = os.fork()
    if not pid:
        shared.put(("a", "x"), b"of the child", SOON)
        shared.forget("a")
        os._exit(0)
    os.waitpid(pid, 0)
    assert shared.get(("a", "x")) == b"of the child" and shared.mark("a") != before and shared.any(SOON)
