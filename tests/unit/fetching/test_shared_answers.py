"""Answers that all workers share: bounded, without a lock, never mixed up."""

from __future__ import annotations

import os
from typing import Callable, List, Tuple

import pytest

from fetching.shared_answers import LONGEST, SharedAnswers

SOON = 1_800_000_060.5


@pytest.fixture
def shared() -> SharedAnswers:
    return SharedAnswers(short=1, long=1, marks=4)


def test_an_answer_is_found_by_its_key_only(shared: SharedAnswers) -> None:
    shared.put(("a", "x"), b"one", SOON)
    assert (shared.get(("a", "x")), shared.get(("a", "y")), shared.get("a")) == (b"one", None, None)


@pytest.mark.parametrize("sizes", [(5, 6), (5, 5000), (5000, 5), (LONGEST, 5000)])
def test_the_last_one_of_a_key_counts(shared: SharedAnswers, sizes: Tuple[int, int]) -> None:
    for size in sizes:
        shared.put("a", bytes(size), SOON)
    assert shared.get("a") == bytes(sizes[1])
    others = "bcdefgh"  # it has one place, and not two
    for key in others:
        shared.put(key, bytes(sizes[1]), SOON)
    assert [shared.get(key) for key in ("a", *others)] == [bytes(sizes[1])] * 8


@pytest.mark.parametrize("size", [1, LONGEST])
def test_the_one_whose_time_ends_first_makes_room(shared: SharedAnswers, size: int) -> None:
    values = {key: key.encode() * size for key in "abcdefghi"}
    for number, key in enumerate("abcdefgh"):
        shared.put(key, values[key], SOON + (0 if key == "c" else number + 1))
    shared.put("i", values["i"], SOON)
    assert [key for key, value in values.items() if shared.get(key) != value] == ["c"]
    assert shared.get("c") is None


@pytest.mark.parametrize("where", [0, 16, 24, 32, 36, 50, 135])
@pytest.mark.parametrize("size", [100, 5000])
def test_one_that_is_written_at_the_same_time_is_not_found(shared: SharedAnswers, size: int, where: int) -> None:
    """Whichever byte is another's: of the checksum, the key, the end, the length, the value."""
    shared.put("a", bytes(size), SOON)
    assert shared.get("a") == bytes(size)
    for table in shared._tables:
        for start in table._starts(0):
            table._memory[start + where] ^= 1
    assert shared.get("a") is None


def test_it_takes_no_more_than_it_says() -> None:
    """README and SECURITY say how many answers, and how much memory."""
    sizes = [len(table._memory) for table in SharedAnswers()._tables]
    assert sum(sizes) <= 21 * 1024**2 and len(range(0, sizes[0], 4096)) == 4096


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
