"""A record's text is marked as its record would be, or left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.effort import examples

from storage.durable_mark import durably
from storage.record import Metadata, Record
from storage.records import AttributeRecords, read_record
from storage.summary import summary_of

META = Metadata("https://some.thing/x.deb", (("ETag", '"x"'),), 1000.0)
HASH = "ab" * 32
BOOT = "0b5a5a0c-0000-4000-8000-0123456789ab"
VERIFIED = Record(META, 6, HASH, boot=BOOT)
ALIAS = Record(META, 0, alias="sha256:" + HASH, boot=BOOT)
LIKE_AN_END = VERIFIED.encode()[-200:].decode()


@pytest.mark.parametrize("record", [VERIFIED, ALIAS, replace(VERIFIED, boot="")])
def test_a_verified_record_becomes_durable(record: Record) -> None:
    assert durably(record.encode()) == record.synced().encode()


@pytest.mark.parametrize(
    "record",
    [
        Record(META, 6, boot=BOOT),
        replace(VERIFIED, asking=True),
        Record(META, 6, boot=BOOT, unhashed=True),
        replace(VERIFIED, durable=True),
        Record(META, 6, durable=True),
        replace(ALIAS, durable=True),
        replace(ALIAS, sha256=HASH),
        replace(VERIFIED, boot="another kind of boot"),
    ],
)
def test_all_other_records_are_left_to_be_read_whole(record: Record) -> None:
    assert durably(record.encode()) is None


def test_a_text_of_another_version_is_left_alone() -> None:
    text = VERIFIED.encode()
    values = json.loads(text)
    for other in (b"", b"{}", text[1:], text + b" ", text.replace(b'"v":1', b'"v":2'), json.dumps(values).encode()):
        assert durably(other) is None
    assert durably(json.dumps({**values, "new": 1}, separators=(",", ":")).encode()) is None


@settings(max_examples=examples(500), deadline=None, derandomize=True)
@given(st.text() | st.just(LIKE_AN_END), st.text() | st.just(LIKE_AN_END), st.integers(0, 1 << 60), st.booleans())
def test_what_an_origin_sends_does_not_matter(url: str, value: str, length: int, durable: bool) -> None:
    try:
        record = Record(Metadata(url, (("X", value),), 1.5), length, HASH, boot=BOOT, durable=durable)
        text = record.encode()
    except UnicodeEncodeError:
        return
    assert durably(text) == (None if durable else record.synced().encode())


@pytest.mark.parametrize("record", [VERIFIED, ALIAS, replace(VERIFIED, boot="odd"), replace(VERIFIED, asking=True)])
def test_a_synced_file_gets_the_record_that_its_record_says(tmp_path: Path, record: Record) -> None:
    with (tmp_path / "x.deb").open("wb") as file:
        AttributeRecords().write(file.fileno(), record)
        AttributeRecords().note_synced(file.fileno())
        assert read_record(file.fileno()) == record.synced()


def test_the_summary_says_so_too() -> None:
    marked = durably(VERIFIED.encode())
    assert marked is not None
    found = summary_of(marked)
    assert found is not None and found.durable


def test_a_summary_that_does_not_count_is_left_alone() -> None:
    assert durably(VERIFIED.encode().replace(b"some.thing", b"some-thing")) is None
