"""The states of a record, and what follows which."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import pytest

from storage.record import TRANSITIONS, Metadata, Record, RecordState
from storage.records import AttributeRecords, read_record

META = Metadata("https://some.thing/x.deb", (), 1000.0)
RECORDS: Dict[RecordState, Record] = {
    RecordState.GROWING: Record(META, 6, boot="this"),
    RecordState.ASKING: Record(META, 6, boot="this", asking=True),
    RecordState.UNHASHED: Record(META, 6, boot="this", unhashed=True),
    RecordState.VERIFIED: Record(META, 6, "ab", boot="this"),
    RecordState.DURABLE: Record(META, 6, "ab", boot="this", durable=True),
    RecordState.FOREIGN: Record(META, 6, durable=True),
    RecordState.ALIAS: Record(META, 0, alias="sha256:ab", boot="this"),
    RecordState.DURABLE_ALIAS: Record(META, 0, alias="sha256:ab", boot="this", durable=True),
}
CHANGES = [(before, after) for before in RecordState for after in RecordState]


@pytest.mark.parametrize("state", list(RecordState))
def test_each_state_has_a_record_and_a_row(state: RecordState) -> None:
    assert RECORDS[state].state is state and state in TRANSITIONS
    assert Record.decode(RECORDS[state].encode()).state is state


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_record_changes_as_the_table_says(before: RecordState, after: RecordState) -> None:
    record = RECORDS[before]
    sha256 = "ab" if after is RecordState.VERIFIED else ""
    if after in TRANSITIONS[before]:
        changed = record.enter(after, sha256)
        assert changed.state is after and changed.boot == record.boot and changed.metadata == META
    else:
        with pytest.raises(AssertionError, match=f"{before.name} does not become {after.name}"):
            record.enter(after, sha256)


def test_a_sync_makes_a_record_durable_if_it_has_or_needs_no_hash() -> None:
    synced = {state: record.synced().state for state, record in RECORDS.items()}
    assert {state: after for state, after in synced.items() if state is not after} == {
        RecordState.VERIFIED: RecordState.DURABLE,
        RecordState.ALIAS: RecordState.DURABLE_ALIAS,
    }


def test_a_late_hash_keeps_the_rest_of_the_record() -> None:
    late = RECORDS[RecordState.UNHASHED]
    assert late.enter(RecordState.VERIFIED, "ab") == RECORDS[RecordState.VERIFIED]
    again = RECORDS[RecordState.VERIFIED].enter(RecordState.ASKING)
    assert again.sha256 == "ab" and again.boot == "this"


def test_a_file_renamed_by_hand_during_a_validation_gets_its_hash(tmp_path: Path) -> None:
    """Its leader died between record and rename, and the next one had asked: verified once, it is like any other."""
    left = RECORDS[RecordState.UNHASHED].enter(RecordState.ASKING)
    assert left.state is RecordState.ASKING and left.unhashed
    assert left.enter(RecordState.VERIFIED, "ab") == RECORDS[RecordState.VERIFIED]
    with pytest.raises(AssertionError, match="without a hash"):
        left.enter(RecordState.VERIFIED)
    records, path = AttributeRecords(), tmp_path / "x.deb"
    with path.open("wb") as file:
        records.write(file.fileno(), left)
        records.note_hash(file.fileno(), "ab")
        assert read_record(file.fileno()) == RECORDS[RecordState.VERIFIED]
