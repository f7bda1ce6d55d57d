"""How much room the cache may take: rules over numbers, and the numbers that workers share."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import List, Optional

import pytest

from storage.space import Growth, Limits, Need, Situation, SpaceLimits

MEGA, GIGA = 10**6, 10**9
BY_SIZE = Situation(Limits(max_size=10 * GIGA), used=int(9.7 * GIGA), free=500 * GIGA, entries=10_000)
BY_FREE = Situation(Limits(min_free=GIGA), used=50 * GIGA, free=int(1.02 * GIGA), entries=10_000)


@pytest.mark.parametrize(
    ("situation", "length", "reason"),
    [
        (BY_SIZE, 11 * GIGA, "larger than cache.max_size"),
        (BY_SIZE, 9 * GIGA, ""),
        (BY_SIZE, None, ""),
        (BY_FREE, 49 * GIGA, ""),
        (BY_FREE, 51 * GIGA, "larger than what can be free"),
        (replace(BY_FREE, used=None), 51 * GIGA, ""),  # not measured yet
        (Situation(Limits(), free=MEGA), GIGA, ""),
    ],
)
def test_an_object_that_can_never_fit_is_refused_at_once(
    situation: Situation, length: Optional[int], reason: str
) -> None:
    assert reason in situation.objection_to(length) and bool(reason) == bool(situation.objection_to(length))


@pytest.mark.parametrize("full", [BY_SIZE, BY_FREE])
def test_a_full_cache_evicts_for_a_layer_as_it_arrives(full: Situation) -> None:
    """300 MB whose length is known: room is made for what is there of it, and for no more."""
    now, gone = full, 0
    for _ in range(30):
        now = replace(now, known=now.known + 10 * MEGA, free=now.free - 10 * MEGA)
        assert now.objection_to_growth(True, now.known, 10 * GIGA) == ""
        size = now.need().size
        now, gone = replace(now, used=(now.used or 0) - size, free=now.free + size), gone + size
    assert gone <= 300 * MEGA + 500 * MEGA  # and 5 %, so that it is not asked for each piece
    assert replace(full, known=1, free=full.free - 1).need() == Need()


@pytest.mark.parametrize("full", [BY_SIZE, BY_FREE])
def test_a_full_cache_takes_a_tarball_of_unknown_length(full: Situation) -> None:
    now = replace(full, unknown=50 * MEGA, free=full.free - 50 * MEGA)
    assert now.objection_to_growth(False, 50 * MEGA) == ""
    assert now.need() == Need()
    # Once it is an object, the least recently used go for it.
    kept = replace(now, unknown=0, used=(full.used or 0) + 350 * MEGA)
    assert BY_SIZE is not full or kept.need().size > 0


@pytest.mark.parametrize("full", [BY_SIZE, BY_FREE])
@pytest.mark.parametrize("bodies", [1, 20])
def test_bodies_without_an_end_are_removed_and_evict_nothing(full: Situation, bodies: int) -> None:
    grown = 0
    while True:
        now = replace(full, unknown=grown, free=full.free - grown)
        assert now.need().size == 0
        if now.objection_to_growth(False, grown // bodies):
            break
        grown += 4 * MEGA
    assert grown < GIGA and now.free > 0.85 * full.limits.min_free


def test_a_promised_length_that_never_arrives_evicts_nothing() -> None:
    assert replace(BY_SIZE, known=20 * MEGA).need() == Need()
    assert replace(BY_FREE, known=20 * MEGA, free=BY_FREE.free - 20 * MEGA).need() == Need()


def test_many_growing_objects_do_not_empty_the_cache() -> None:
    """Twenty of 9 GB each that really arrive evict at most half of the cache."""
    used_before, used, growing = 10 * GIGA, 10 * GIGA, [0] * 20
    for _ in range(1000):
        for number, mine in enumerate(growing):
            now = replace(BY_SIZE, used=used, known=sum(growing))
            if mine >= 0 and not now.objection_to_growth(True, mine, used_before):
                growing[number] += 20 * MEGA
            used -= min(used, now.need().size)
    assert sum(growing) <= 5.2 * GIGA and used >= 4 * GIGA


def test_one_large_object_may_fill_the_cache_if_it_is_alone() -> None:
    now = replace(BY_SIZE, used=GIGA, known=8 * GIGA)
    assert now.objection_to_growth(True, 8 * GIGA, 10 * GIGA) == ""
    assert now.objection_to_growth(True, 4 * GIGA, 10 * GIGA) == "too much is growing beside it"
    assert now.objection_to_growth(True, 4 * GIGA, 0) == ""  # nothing that was here has to go for it


def test_nothing_is_evicted_for_space_that_cannot_be_freed() -> None:
    foreign = Situation(Limits(min_free=10 * GIGA), used=GIGA, free=2 * GIGA)
    assert foreign.need() == Need(unreachable="cache.min_free")
    assert foreign.objection_to_growth(True) == foreign.objection_to_growth(False) == "less than cache.min_free is free"
    # Objects beyond max_size are evicted nevertheless.
    both = replace(foreign, limits=Limits(GIGA // 2, 10 * GIGA))
    assert both.need().size > 0 and both.need().unreachable


def test_a_request_for_space_is_granted_up_to_a_tenth() -> None:
    assert BY_SIZE.need(200 * MEGA) == Need()
    assert BY_SIZE.need(400 * MEGA).size == 200 * MEGA
    assert BY_SIZE.need(8 * GIGA).size == 700 * MEGA
    assert 0 < BY_FREE.need(8 * GIGA).size <= 6 * GIGA


@pytest.mark.parametrize(
    ("files", "free", "entries", "expected"),
    [
        (0, 0, 100, Need()),  # btrfs
        (1500, 75, 1400, Need()),
        (1500, 74, 1400, Need(files=76)),
        (1500, 0, 100, Need(unreachable="inodes")),
        (10**9, 10_001, 10**6, Need()),
        (10**9, 0, 10**6, Need(files=20_000)),
    ],
)
def test_inodes_stay_free_too(files: int, free: int, entries: int, expected: Need) -> None:
    assert replace(BY_SIZE, files=files, files_free=free, entries=entries).need() == expected


# --- the numbers ----------------------------------------------------------------------------------


def test_workers_share_the_numbers(tmp_path: Path) -> None:
    space = SpaceLimits(tmp_path, lambda: Limits(max_size=GIGA), rows=2)
    pid = os.fork()
    if not pid:
        space.use(1)
        space.grow(5)
        growth = Growth(space, None, 0)
        growth.objection(7)
        space.wish(9)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    space.use(0)
    growth = Growth(space, 100, 0)
    growth.objection(30)
    now = space.situation()
    assert (space.grown, now.known, now.unknown, now.used) == (5, 30, 7, None)
    assert (space.take_wish(), space.take_wish()) == (9, 0)
    space.note_used(1000, 5, 3)
    space.use(1)  # the dead worker is started again: its growing files are partial downloads, and reserve nothing
    now = space.situation()
    assert (now.known, now.unknown, now.used, now.entries) == (30, 0, 1007, 3)
    assert space.is_growing


def test_a_growing_object_is_counted_until_it_ends(tmp_path: Path) -> None:
    space = SpaceLimits(tmp_path, lambda: Limits(max_size=100 * MEGA))
    space.note_used(0, 0, 0)
    told: List[int] = []
    space.on_need = lambda: told.append(1)
    growth = Growth(space, None, 0)
    assert growth.objection(50 * MEGA) == "" and not told
    assert growth.next_look == 50 * MEGA + 50 * MEGA // 16
    assert growth.objection(120 * MEGA) == "cache.max_size is reached" and told
    growth.end(20 * MEGA)
    growth.end()
    assert (space.situation().unknown, space.situation().used) == (0, 20 * MEGA)


def test_a_missing_directory_has_space(tmp_path: Path) -> None:
    assert SpaceLimits(tmp_path / "none", lambda: Limits(min_free=GIGA)).situation().need() == Need()


def test_small_objects_share_a_look_at_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For 50 ms; the numbers of the cache itself are always the present ones."""
    looks: List[str] = []
    real = os.statvfs

    def statvfs(path: str) -> os.statvfs_result:
        looks.append(path)
        return real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    clock = [1000.0]
    space = SpaceLimits(tmp_path, Limits, clock=lambda: clock[0])
    free = space.recent_situation().free
    clock[0] += 0.04
    space.change(known=True, size=5)
    assert (space.recent_situation().known, len(looks)) == (5, 1)
    clock[0] += 0.02
    assert space.recent_situation().free <= free + GIGA and len(looks) == 2
    space.situation()
    assert len(looks) == 3
