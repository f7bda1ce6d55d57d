"""What the table keeps, what it drops, and what other processes see of it."""

from __future__ import annotations

import os
from typing import List

from storage.shared_table import SharedTable


def test_a_fact_is_found_by_its_key_alone_and_keeps_end_and_value() -> None:
    table = SharedTable(64)
    table.put(b"a", 12.5, 2**64 - 1)
    assert table.get(b"a") == (12.5, 2**64 - 1)
    assert table.get(b"b") is None


def test_a_later_fact_replaces_an_earlier_one_of_its_key() -> None:
    table = SharedTable(64)
    table.put(b"a", 1.0, 1)
    table.put(b"a", 2.0, 2)
    assert table.get(b"a") == (2.0, 2)
    assert table.remove(b"a")
    assert table.get(b"a") is None
    assert not table.remove(b"a")


def test_where_there_is_no_room_the_fact_that_ends_first_goes() -> None:
    table = SharedTable(4)  # one bucket
    for number, end in enumerate((5.0, 2.0, 4.0, 3.0)):
        table.put(b"%d" % number, end)
    table.put(b"new", 1.0)
    assert [table.get(b"%d" % number) is None for number in range(4)] == [False, True, False, False]
    assert table.get(b"new") == (1.0, 0)


def test_a_half_written_fact_is_none() -> None:
    table = SharedTable(4)
    table.put(b"a", 5.0, 7)
    memory = table._memory
    place = next(place for place in range(0, len(memory), len(memory) // 4) if any(memory[place : place + 16]))
    memory[place + 17] ^= 1
    assert table.get(b"a") is None
    table.put(b"a", 6.0, 8)
    assert table.get(b"a") == (6.0, 8)


def test_processes_share_their_facts() -> None:
    table = SharedTable(64)
    child = os.fork()
    if not child:
        table.put(b"a", 5.0, 7)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert table.get(b"a") == (5.0, 7)


def test_keys_are_not_readable_in_memory() -> None:
    table = SharedTable(64)
    table.put(b"Bearer secret", 5.0)
    assert b"secret" not in bytes(table._memory)


def test_many_keys_keep_their_own_facts() -> None:
    table = SharedTable(1024)
    kept: List[int] = []
    for number in range(200):
        table.put(b"%d" % number, float(number), number)
    for number in range(200):
        fact = table.get(b"%d" % number)
        assert fact is None or fact == (float(number), number)
        kept += [number] if fact is not None else []
    assert len(kept) > 190
