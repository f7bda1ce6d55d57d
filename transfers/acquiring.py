"""Who writes the growing file of an object: this process, another one, or nobody any more."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import NamedTuple, Optional

from storage.entry import Version
from storage.locks import name_of, try_lock
from storage.own_files import GROWING_SUFFIX
from storage.record import Metadata, RecordState, Unstorable
from storage.records import partial_download_record, read_record
from storage.store import Store


class AcquireResult(enum.Enum):
    """The result of an attempt to lead."""

    MINE = "this process writes the file"
    FOREIGN = "another process does"
    PUBLISHED = "nobody needs to: the object is here"
    UNKNOWN = "the attempt failed, or takes too long: claim again"


@dataclass(frozen=True)
class PartialDownload:
    """The part of an object that an earlier leader left: the first `size` of its `length` bytes."""

    metadata: Metadata
    length: int
    size: int


class Acquired(NamedTuple):
    """A result, and with MINE the open file and what an earlier leader left in it."""

    result: AcquireResult
    fd: int = -1
    partial_download: Optional[PartialDownload] = None


def acquire(store: Store, place: str, beyond: Optional[Version]) -> Acquired:
    """Lock the growing file of `place`, or find out why this process must not write it. Raises Unstorable.

    A published object of the version `beyond` is to be replaced or revalidated.
    """
    while True:
        fd = store.tree.open_growing_file(place)
        acquired = None
        try:
            acquired = _attempt(store, place, beyond, fd)
        except OSError as error:
            raise Unstorable.of(error) from error
        finally:
            if acquired is None or acquired.fd != fd:
                os.close(fd)
        if acquired is not None:
            return acquired


def _attempt(store: Store, place: str, beyond: Optional[Version], fd: int) -> Optional[Acquired]:
    """One attempt; None where the locked file has lost its name: then another one is due. Raises OSError."""
    path = place + GROWING_SUFFIX
    if not try_lock(fd):
        return Acquired(AcquireResult.FOREIGN)
    status = os.fstat(fd)
    if name_of(path) != (status.st_dev, status.st_ino):
        return None  # its last owner has just renamed or removed it
    if _published_meanwhile(store, place, beyond):
        os.unlink(path)
        return Acquired(AcquireResult.PUBLISHED)
    if not status.st_size and not _has_record(fd):
        return Acquired(AcquireResult.MINE, fd)
    left = _what_is_left(store, fd)
    if left is None:
        os.unlink(path)  # a fresh inode carries nothing over
        return None
    return Acquired(AcquireResult.MINE, fd, left)


def _published_meanwhile(store: Store, place: str, beyond: Optional[Version]) -> bool:
    """Whether another version than `beyond` is published; under the lock, so that nobody else publishes one."""
    # The claim has just found nothing, here and aside. What was put aside since then costs a second transfer at most.
    if not os.access(place, os.F_OK):
        return False
    entry = store.open_entry(place)
    if entry is None:
        return False
    try:
        return entry.version != beyond
    finally:
        entry.close()


def _has_record(fd: int) -> bool:
    try:
        return read_record(fd) is not None
    except ValueError:
        return True  # a damaged one


def _what_is_left(store: Store, fd: int) -> Optional[PartialDownload]:
    record = partial_download_record(fd, store.boot)
    if record is None:
        return None
    # Followers must not use it before the origin has answered.
    store.records.write(fd, record.enter(RecordState.ASKING))
    # All bytes may be there: then only the last byte is requested, to learn whether the object is still the same.
    return PartialDownload(record.metadata, record.length, min(os.fstat(fd).st_size, record.length - 1))
