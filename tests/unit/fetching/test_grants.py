"""Which permissions of an origin are remembered, and for how long."""

from __future__ import annotations

import os
from typing import List

from fetching.grants import Grants, Kind
from storage.shared_table import SharedTable


def grants(seconds: float, now: List[float]) -> Grants:
    return Grants(seconds, SharedTable(64), Kind.OBJECT, clock=lambda: now[0])


def test_a_grant_holds_for_its_credentials_and_one_version_of_its_object_alone() -> None:
    kept = grants(60, [0.0])
    kept.remember(b"Bearer a", "https/h/x", "1")
    assert kept.holds(b"Bearer a", "https/h/x", "1")
    assert not kept.holds(b"Bearer b", "https/h/x", "1")
    assert not kept.holds(b"Bearer a", "https/h/y", "1")
    assert not kept.holds(b"Bearer a", "https/h/x", "2")
    assert not kept.holds(b"", "https/h/x", "1")


def test_credentials_and_names_are_not_confused() -> None:
    kept = grants(60, [0.0])
    kept.remember(b"a", "bc", "1")
    assert not kept.holds(b"ab", "c", "1")
    assert not kept.holds(b"a", "bc1", "")


def test_a_grant_expires() -> None:
    now = [0.0]
    kept = grants(60, now)
    kept.remember(b"a", "x", "1")
    now[0] = 59.0
    assert kept.holds(b"a", "x", "1")
    now[0] = 60.0
    assert not kept.holds(b"a", "x", "1")


def test_a_grant_can_be_extended_and_revoked() -> None:
    now = [0.0]
    kept = grants(60, now)
    kept.remember(b"a", "x", "1")
    now[0] = 50.0
    kept.remember(b"a", "x", "1")
    now[0] = 100.0
    assert kept.holds(b"a", "x", "1")
    kept.forget(b"a", "x", "1")
    assert not kept.holds(b"a", "x", "1")


def test_no_grant_is_kept_without_credentials_or_duration() -> None:
    kept = grants(60, [0.0])
    kept.remember(b"", "x", "1")
    assert not kept.holds(b"", "x", "1")
    none = grants(0, [0.0])
    none.remember(b"a", "x", "1")
    assert not none.holds(b"a", "x", "1")


def test_kinds_and_lengths_are_not_confused() -> None:
    table = SharedTable(64)
    objects, names = Grants(60, table, Kind.OBJECT), Grants(60, table, Kind.NAME)
    objects.remember(b"a", "x", "")
    assert not names.holds(b"a", "x", "")
    assert objects.holds(b"a", "x", "")


def test_all_processes_share_grants() -> None:
    kept = Grants(60, SharedTable(64), Kind.OBJECT)
    child = os.fork()
    if not child:
        kept.remember(b"a", "x", "1")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert kept.holds(b"a", "x", "1")


def test_a_shorter_time_counts_for_earlier_grants_too() -> None:
    now, table = [0.0], SharedTable(64)
    Grants(600, table, Kind.OBJECT, lambda: now[0]).remember(b"a", "x", "1")
    assert not Grants(60, table, Kind.OBJECT, lambda: now[0]).holds(b"a", "x", "1")
    now[0] = 550.0
    assert Grants(60, table, Kind.OBJECT, lambda: now[0]).holds(b"a", "x", "1")
