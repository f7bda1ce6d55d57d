"""Verify the bytes of all stored objects. `transfers.recheck` does it for a single one."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Iterator, Optional

from monitoring.redaction import reason_of, shown
from storage.entry import Lost, pieces, read_bytes
from storage.locks import is_locked
from storage.own_files import GROWING_SUFFIX, files_below
from storage.record import SHARED_ALGORITHMS, Digest, Record
from storage.records import boot_id, read_record


@dataclass
class Findings:
    """The objects and bytes checked so far. `foreign` files have no hash to compare with."""

    bytes_read: int = 0
    right: int = 0
    foreign: int = 0
    damaged: int = 0
    removed: int = 0


def verify(root: Path, fix: bool, progress: Callable[[Findings], None], tell: Callable[[str], None]) -> Findings:
    """Hash every published object below `root`, and remove damaged ones if `fix`.

    `tell` gets a line for each problem; `progress` gets the findings so far, after each piece.
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
    """Bytes of all published objects below `root`."""
    bytes_read = 0
    for path in _objects(root):
        try:
            bytes_read += os.stat(path).st_size
        except OSError:
            continue  # gone meanwhile
    return bytes_read


def _objects(root: Path) -> Iterator[str]:
    return (entry.path for entry in files_below(str(root)) if not entry.name.endswith(GROWING_SUFFIX))


def _damage(path: str, root: Path, findings: Findings, progress: Callable[[Findings], None]) -> Optional[str]:
    """The damage of a file, None where there is none; updates the findings."""
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
            return "the machine went down before its bytes were hashed"
        if record is None or not (record.sha256 or record.alias):  # copied in by hand, or still being hashed
            findings.foreign += 1
            findings.bytes_read += os.fstat(fd).st_size
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
        findings.bytes_read += status.st_size
        return f"{status.st_size} bytes instead of {record.length}"
    if record.alias:
        return None
    stored, named = Digest("sha256", record.sha256), _digest_in(name)
    hashers = {digest: digest.hasher() for digest in (stored, named) if digest is not None and digest.valid}
    for data in pieces(partial(read_bytes, fd), 0, record.length):
        for found in hashers.values():
            found.update(data)
        findings.bytes_read += len(data)
        progress(findings)
    right = {digest for digest, found in hashers.items() if found.hexdigest() == digest.hex}
    if stored not in right:
        return "its bytes are not those that were stored"
    if named is not None and named not in right:
        return "its bytes do not match the digest in its name"
    return None


def _digest_in(name: str) -> Optional[Digest]:
    """The digest that names an object; None where a URL does."""
    algorithm, _, rest = name.partition("/")
    return Digest(algorithm, rest.rpartition("/")[2]) if algorithm in SHARED_ALGORITHMS else None
