"""Comparing stored octets with their hash: of one object while it is sent, or of all there are."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Optional

from fill import HOLD_BACK, FillFailed
from locks import is_locked
from ownfiles import PART_SUFFIX, files_below
from redaction import reason_of, shown
from store import Entry, Lost, Record, Unstorable, boot_id, read_octets, read_record

_log = logging.getLogger("dduct.verify")

_AT_ONCE = 1024 * 1024  # octets


class Recheck:
    """A published object that is not to be trusted unseen: nobody gets all of it before its hash has proved right.

    Whoever reads it from the beginning gets it as it is hashed, but for its last octets; whoever wants anything else
    waits until all is hashed. What is wrong is unpublished.
    """

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._size = entry.record.length
        self.length: Optional[int] = self._size
        self._hash = hashlib.sha256()
        self._hashed = 0  # octets
        self._right = False
        self._given = False  # somebody has octets that may be wrong

    def ready(self, offset: int, whole: bool) -> bool:
        """Make sure that there is something to begin with. Raises Lost."""
        if not whole or self._size <= HOLD_BACK:
            self._finish()
        return True

    def read_at(self, view: memoryview, offset: int) -> int:
        """Octets from `offset` on; 0 at the end.

        Raises Lost, or FillFailed where those that were given out before are not to be trusted either.
        """
        if self._right:
            return self._entry.read_at(view, offset)
        try:
            if offset != self._hashed or offset + len(view) > self._size - HOLD_BACK:
                self._finish()
                return self._entry.read_at(view, offset)
            count = self._entry.read_at(view, offset)
        except Lost as error:
            if self._given:
                raise FillFailed(error) from error
            raise
        self._note(view[:count])
        self._given = True
        return count

    def _note(self, data: memoryview) -> None:
        self._hash.update(data)
        self._hashed += len(data)

    def _finish(self) -> None:
        """Hash what is left, and compare. Raises Lost."""
        if self._right:
            return
        view = memoryview(bytearray(min(_AT_ONCE, self._size)))
        while self._hashed < self._size:
            count = self._entry.read_at(view[: self._size - self._hashed], self._hashed)
            if not count:
                break
            self._note(view[:count])
        sha256, record = self._hash.hexdigest(), self._entry.record
        # Who should have hashed it is gone, but not since this boot: what was given to the kernel is what it gives.
        if sha256 != record.sha256 and not (record.unhashed and self._hashed == self._size):
            self._entry.discard()
            raise Lost("it has been damaged on the disk")
        self._right = True
        try:
            self._entry.vouch(sha256)
        except (OSError, Unstorable) as error:
            _log.debug("Right, but cannot be noted so: %s", reason_of(error))


@dataclass
class Findings:
    """What has been looked at, in objects and octets. `foreign` files have no hash: nothing says what is right."""

    octets: int = 0
    right: int = 0
    foreign: int = 0
    damaged: int = 0
    removed: int = 0


def verify(root: Path, fix: bool, progress: Callable[[Findings], None], tell: Callable[[str], None]) -> Findings:
    """Hash every published object below `root`, and remove what is damaged if `fix`.

    `tell` is given a line for everything that is wrong, `progress` the findings so far, every now and then.
    """
    findings = Findings()
    for path in _objects(root):
        reason = _damage(path, root, findings, progress)
        if reason is None:
            continue
        findings.damaged += 1
        tell(f"{shown(path)}: {reason}")
        if fix:
            try:
                os.unlink(path)
                findings.removed += 1
            except OSError as error:
                tell(f"{shown(path)}: cannot be removed: {reason_of(error)}")
    return findings


def total(root: Path) -> int:
    """Octets of all published objects below `root`."""
    octets = 0
    for path in _objects(root):
        try:
            octets += os.stat(path).st_size
        except OSError:
            continue  # gone meanwhile
    return octets


def _objects(root: Path) -> Iterator[str]:
    return (entry.path for entry in files_below(str(root)) if not entry.name.endswith(PART_SUFFIX))


def _damage(path: str, root: Path, findings: Findings, progress: Callable[[Findings], None]) -> Optional[str]:
    """What is wrong with a file; counts it where nothing is."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None  # gone meanwhile
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    try:
        try:
            record = read_record(fd)
        except ValueError as error:
            return str(error)
        if record is not None and record.unhashed and record.boot != boot_id() and not is_locked(fd):
            return "the machine went down before its octets were hashed"
        if record is None or not (record.sha256 or record.alias):  # copied in by hand, or being hashed elsewhere
            findings.foreign += 1
            findings.octets += os.fstat(fd).st_size
            return None
        reason = _difference(fd, record, os.path.relpath(path, root), findings, progress)
        if reason is None:
            findings.right += 1
        return reason
    except Lost as error:
        return str(error)
    finally:
        os.close(fd)


def _difference(
    fd: int, record: Record, name: str, findings: Findings, progress: Callable[[Findings], None]
) -> Optional[str]:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size != record.length:
        findings.octets += status.st_size
        return f"{status.st_size} octets instead of {record.length}"
    if record.alias:
        return None
    found = hashlib.sha256()
    for data in _pieces(fd):
        found.update(data)
        findings.octets += len(data)
        progress(findings)
    if found.hexdigest() != record.sha256:
        return "its octets are not those that were stored"
    if name.startswith("sha256/") and name.rpartition("/")[2] != record.sha256:
        return "its octets have not the digest that it is named by"
    return None


def _pieces(fd: int) -> Iterator[memoryview]:
    view = memoryview(bytearray(_AT_ONCE))
    offset = 0
    while True:
        count = read_octets(fd, view, offset)
        if not count:
            return
        yield view[:count]
        offset += count
