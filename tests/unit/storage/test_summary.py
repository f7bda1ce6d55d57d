"""A summary says what its record says, and counts only in front of that record."""

from __future__ import annotations

import binascii
import zlib
from dataclasses import replace
from typing import Tuple

import pytest

from protocol.freshness import Lifetime
from storage.record import ATTRIBUTE_LIMIT, FieldText, Metadata, Record, RecordState
from storage.summary import durably, summary_of

DATE = "Tue, 01 Dec 2026 04:30:00 GMT"
FIELDS: Tuple[FieldText, ...] = (("etag", '"1"'), ("Cache-Control", "max-age=600"), ("X-Odd", "a\xe9b"))
META = Metadata("https://some.thing/x.deb", FIELDS, 1000.5, age=7.0, near=True)
RECORD = Record(META, 4096, "ab", boot="0" * 36, durable=True)


def test_a_summary_says_what_its_record_says() -> None:
    found = summary_of(RECORD.encode())
    assert found is not None and Record.decode(RECORD.encode()) == RECORD
    assert (found.length, found.durable, found.boot, found.alias) == (4096, True, "0" * 36, "")
    assert (found.fetched_at, found.age, found.near, found.own) == (1000.5, 7.0, True, False)
    assert found.fields == b'ETag: "1"\r\nCache-Control: max-age=600\r\nX-Odd: a\xe9b\r\n'
    assert found.lifetime == Lifetime(600.0, None)


@pytest.mark.parametrize(
    ("fields", "lifetime"),
    [
        ((("Cache-Control", "s-maxage=5, max-age=600"),), Lifetime(5.0, None)),
        ((("Date", DATE), ("Expires", "Tue, 01 Dec 2026 04:31:00 GMT")), Lifetime(60.0, None)),
        ((("Date", DATE), ("Last-Modified", "Tue, 01 Dec 2026 04:20:00 GMT")), Lifetime(None, 60.0)),
        ((("Last-Modified", DATE),), Lifetime(None, 0.0)),
        ((), Lifetime(None, None)),
    ],
)
def test_it_has_the_lifetime_that_the_origin_states_or_suggests(
    fields: Tuple[FieldText, ...], lifetime: Lifetime
) -> None:
    found = summary_of(replace(RECORD, metadata=replace(META, fields=fields)).encode())
    assert found is not None and found.lifetime == lifetime


def test_an_alias_has_one_with_its_digest() -> None:
    found = summary_of(Record(META, 0, alias="sha256:ab", boot="this").encode())
    assert found is not None and found.alias == "sha256:ab" and not found.durable and found.boot == "this"


@pytest.mark.parametrize(
    "record",
    [
        replace(RECORD, metadata=replace(META, restricted=True)),
        replace(RECORD, metadata=replace(META, must_validate=True)),
        replace(RECORD, metadata=replace(META, vary=(("accept", ""),))),
        replace(RECORD, metadata=replace(META, fields=(("Cache-Control", "no-cache"),))),
        replace(RECORD, metadata=replace(META, fields=(("X-Odd", "\u20ac"),))),
        replace(RECORD, boot="x" * 37),
        RECORD.enter(RecordState.ASKING),
        Record(META, 6, boot="this"),
        Record(META, 6, boot="this", unhashed=True),
        Record(META, 6, durable=True),
    ],
)
def test_a_record_that_takes_a_decision_has_none(record: Record) -> None:
    assert summary_of(record.encode()) is None
    assert Record.decode(record.encode()) == record


def test_a_summary_counts_only_in_front_of_its_own_record() -> None:
    data, restricted = RECORD.encode(), replace(RECORD, metadata=replace(META, restricted=True)).encode()
    summary = data[: data.index(b'"metadata"')]
    changed = summary + restricted[restricted.index(b'"metadata"') :]
    assert Record.decode(changed).metadata.restricted
    assert summary_of(changed) is None


def test_damage_is_no_summary() -> None:
    data = RECORD.encode()
    end = data.index(b'"metadata"')
    for position in range(end):
        for byte in (b"A", b"!", b'"'):
            if data[position : position + 1] != byte:
                assert summary_of(data[:position] + byte + data[position + 1 :]) is None
    for short in range(end):
        assert summary_of(data[:short]) is None
    for packed in (b"", b"\x01" * 8, b"\x02" * 200):
        text = b'{"v":1,"quick":"' + binascii.b2a_base64(packed, newline=False) + b'",' + data[end:]
        assert summary_of(text) is None


def test_metadata_that_leaves_no_room_for_a_summary_has_none() -> None:
    fields = tuple((f"X-{number}", "x" * 100) for number in range(20))
    data = replace(RECORD, metadata=replace(META, fields=fields)).encode()
    assert len(data) <= ATTRIBUTE_LIMIT and summary_of(data) is None


@pytest.mark.parametrize(
    "odd",
    [
        replace(RECORD, boot=None),  # type: ignore[arg-type]
        replace(RECORD, durable="yes"),  # type: ignore[arg-type]
        replace(RECORD, length=-1),
        replace(RECORD, metadata=replace(META, fetched_at="1")),  # type: ignore[arg-type]
        replace(RECORD, metadata=replace(META, fetched_at=None)),  # type: ignore[arg-type]
        replace(RECORD, metadata=replace(META, age=float("nan"))),
        replace(RECORD, metadata=replace(META, near="x")),  # type: ignore[arg-type]
    ],
)
def test_a_record_that_was_edited_by_hand_has_none(odd: Record) -> None:
    assert summary_of(odd.encode()) is None


def test_a_summary_of_another_version_is_not_changed() -> None:
    data = replace(RECORD, durable=False).encode()
    end = data.index(b'",')
    packed = bytearray(binascii.a2b_base64(data[len(b'{"v":1,"quick":"') : end]))
    packed[4] += 1
    packed[:4] = zlib.crc32(data[end + 2 :], zlib.crc32(packed[4:])).to_bytes(4, "little")
    other = b'{"v":1,"quick":"' + binascii.b2a_base64(packed, newline=False) + data[end:]
    assert summary_of(other) is None
    assert durably(data, data) is not None and durably(other, data) is None
