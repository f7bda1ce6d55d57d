"""Records in extended attributes, changed by several processes at once, and file systems that keep none."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Iterator, List

import pytest
from support.pairs import TIMEOUT, in_thread

from cache import Cache, Hit, Lead
from monitoring.details import Detail
from storage.entry import Entry
from storage.locks import is_locked, is_of_interest, try_lock
from storage.record import Digest, Metadata, Record, Unstorable
from storage.records import AttributeRecords, NoRecords, Records, read_record, records_below
from storage.store import Key

META = Metadata("https://some.thing/x.deb", (), 1000.0)
VERIFIED = Record(META, 6, "ab", boot="this")


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """An object that is published, and not known to be durable."""
    with (tmp_path / "x.deb").open("wb") as file:
        AttributeRecords().write(file.fileno(), VERIFIED)
        yield file.fileno()


def restricted(record: Record) -> Record:
    return replace(record, metadata=replace(record.metadata, restricted=True))


def test_of_two_updates_at_once_neither_undoes_the_other(tmp_path: Path, fd: int) -> None:
    """Each worker has records of its own. A late sync must not undo that an object has become restricted meanwhile."""
    has_waited = threading.Event()
    mine, other = AttributeRecords(), AttributeRecords(pause=lambda _: has_waited.set())

    def restrict() -> None:
        other.update(fd, VERIFIED, restricted)
        has_waited.set()

    def sync(record: Record) -> Record:
        """Between the reading and the writing of a record, another process restricts the object."""
        restricting.append(in_thread(restrict))
        assert has_waited.wait(TIMEOUT)
        return record.synced()

    restricting: List[Future[None]] = []
    mine.update(fd, VERIFIED, sync)
    restricting[0].result(TIMEOUT)
    assert read_record(fd) == restricted(VERIFIED.synced())


def test_an_update_that_cannot_be_alone_changes_nothing(tmp_path: Path, fd: int) -> None:
    other = AttributeRecords(pause=lambda _: None)

    def change(record: Record) -> Record:
        with pytest.raises(Unstorable, match="locked") as refused:
            other.update(fd, VERIFIED, restricted)
        assert refused.value.detail is Detail.BUSY
        with pytest.raises(Unstorable, match="locked"):
            other.note_hash(fd, "cd")
        return record

    assert AttributeRecords().update(fd, VERIFIED, change)
    assert read_record(fd) == VERIFIED
    assert other.update(fd, VERIFIED, restricted)  # the lock is free again
    assert read_record(fd) == restricted(VERIFIED)


def test_an_update_waits_for_no_update_of_another_object(tmp_path: Path, fd: int) -> None:
    def wait(_: float) -> None:
        raise AssertionError("it waits")

    records = AttributeRecords(wait)
    with (tmp_path / "y.deb").open("wb") as other:
        records.write(other.fileno(), VERIFIED)

        def change(record: Record) -> Record:
            assert records.update(other.fileno(), VERIFIED, Record.synced)
            return restricted(record)

        assert records.update(fd, VERIFIED, change)
        assert read_record(other.fileno()) == VERIFIED.synced()
    assert read_record(fd) == restricted(VERIFIED)


def test_an_update_is_no_sign_of_a_leader_or_a_reader(tmp_path: Path, fd: int) -> None:
    """Either would change what others take an unhashed object, or a growing file, for."""
    with (tmp_path / "x.deb").open("rb+") as other:

        def change(record: Record) -> Record:
            assert not is_locked(other.fileno()) and not is_of_interest(other.fileno())
            return restricted(record)

        assert AttributeRecords().update(fd, VERIFIED, change)
        assert try_lock(other.fileno())  # a leader that still hashes keeps nobody from updates
        assert AttributeRecords().update(fd, VERIFIED, Record.synced)


def test_a_file_system_without_locks_still_has_records(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> bool:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("storage.records.try_lock_record", refuse)
    monkeypatch.setattr("storage.records._LOCK_ATTEMPTS", 1)
    records = AttributeRecords()

    def change(record: Record) -> Record:
        with pytest.raises(Unstorable, match="locked"):  # the threads of one process do not undo each other's updates
            in_thread(lambda: records.update(fd, VERIFIED, Record.synced)).result(TIMEOUT)
        return restricted(record)

    assert records.update(fd, VERIFIED, change)
    assert read_record(fd) == restricted(VERIFIED)
    assert records.update(fd, VERIFIED, Record.synced)


def test_an_update_keeps_no_descriptor(tmp_path: Path, fd: int) -> None:
    records = AttributeRecords()
    before = os.listdir("/proc/self/fd")
    records.update(fd, VERIFIED, restricted)
    with pytest.raises(ZeroDivisionError):
        records.update(fd, VERIFIED, lambda record: replace(record, length=1 // 0))
    assert os.listdir("/proc/self/fd") == before


def test_a_damaged_record_is_replaced_by_what_is_known(tmp_path: Path, fd: int) -> None:
    os.setxattr(fd, "user.dduct", b"damaged")
    AttributeRecords().update(fd, VERIFIED, restricted)
    assert read_record(fd) == restricted(VERIFIED)


# --- without attributes ---------------------------------------------------------------------------


@pytest.fixture
def none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Records:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no attributes")

    with monkeypatch.context() as patched:
        patched.setattr(os, "setxattr", refuse)
        return records_below(tmp_path)


def test_the_file_system_decides_once(tmp_path: Path, none: Records) -> None:
    assert isinstance(none, NoRecords) and none.shortcoming is not None
    assert isinstance(records_below(tmp_path), AttributeRecords)
    assert list(tmp_path.iterdir()) == []  # the probe is gone


def test_a_disk_that_fails_is_none_without_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "setxattr", fail)
    with pytest.raises(OSError, match="broken"):
        records_below(tmp_path)


def test_without_attributes_nothing_is_written_and_nothing_shared(none: Records, fd: int) -> None:
    none.write(fd, restricted(VERIFIED))
    assert not none.update(fd, VERIFIED, restricted)
    none.note_hash(fd, "cd")
    assert read_record(fd) == VERIFIED
    assert not none.shares(Digest("sha256", "0" * 64))


def test_what_needs_a_record_cannot_be_stored_without_attributes(none: Records, tmp_path: Path) -> None:
    with pytest.raises(Unstorable, match=r"^it is odd, and the file system keeps no metadata to say so$") as refused:
        none.require("it is odd", "to say so")
    assert refused.value.detail is Detail.NO_METADATA
    AttributeRecords().require("it is odd", "to say so")


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_only_a_strong_digest_is_shared(tmp_path: Path, algorithm: str) -> None:
    assert AttributeRecords().shares(Digest(algorithm, "0" * 64)) is (algorithm == "sha256")


def test_an_object_without_a_record_is_a_hit_as_its_file_says(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.store.records = NoRecords()
    key = Key("https/some.thing/x.deb", Digest("sha256", "0" * 64))
    claim = cache.claim(Key(key.name))
    assert isinstance(claim, Lead)
    with closing(claim.fill) as fill:
        fill.start(META, 4)
        fill.write(memoryview(b"body"))
        assert fill.publish()
        fill.make_durable()
    hit = cache.claim(key)  # named by its URL, although that promises a digest
    assert isinstance(hit, Hit) and hit.metadata is not None
    entry: Entry = hit.entry
    with closing(entry):
        assert hit.metadata.url == "https://some.thing/x.deb" and entry.length == 4
        assert not cache.refresh(entry, META)
