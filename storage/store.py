"""One object on disk: a file below the root, its metadata in one extended attribute.

Rules of this module:

* The file system is the database. A name, an inode and `user.dduct` are the whole state.
* No path outside the root is ever used: a path is checked part by part, and an odd one is `Unstorable`.
* Damage is a miss with a reason, never an error for a client.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mimetypes
import os
import stat
import threading
import time
import uuid
from dataclasses import dataclass, replace
from email.utils import formatdate
from functools import lru_cache
from pathlib import Path
from typing import Callable, NamedTuple, Optional, Tuple

from monitoring.details import Detail
from monitoring.log import RateLimitedLog
from monitoring.redaction import reason_of, shown
from storage.locations import aside_of, make_folders, objection, vacant
from storage.locks import is_file, is_locked, try_lock
from storage.own_files import GROWING_SUFFIX, is_reached_directly, outside, prune, size_on_disk_at
from storage.record import Digest as Digest
from storage.record import FieldText as FieldText
from storage.record import Metadata as Metadata
from storage.record import Record as Record
from storage.record import Unstorable as Unstorable
from storage.space import FOLDER_SIZE, Growth, Limits, SpaceLimits

ATTRIBUTE = "user.dduct"
_MAX_REMEMBERED = 512  # characters; the paths of longer names are not remembered
ATIME_GRAIN = 3600.0  # seconds between two recorded uses of an object, under any mount options
_MKDIR_ATTEMPTS = 10  # another thread may prune a directory after it is made and before it is used
_READ_ATTEMPTS = 3
# A sync that fails with one of these may have lost bytes, and the next one does not report it (fsync(2)).
_LOST_IN_WRITING = (errno.EIO, errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger("dduct.store")


class Lost(Exception):
    """These bytes are not available here any more, but may be elsewhere: claim again."""


class Key(NamedTuple):
    """The name of an object below the cache's root, and the digest that its URL promises, if any."""

    name: str
    digest: Optional[Digest] = None


@dataclass(frozen=True)
class Paths:
    """The path of a key's object, and of its URL's alias if the object is stored by its digest."""

    object: str
    alias: Optional[str]


# Differs between a published object and its successor, and before and after a validation.
Version = Tuple[int, int, float]
# The kernel changes it with every change of a file or its attribute.
FileIdentity = Tuple[int, int, int, int]


class Entry:
    """One published object, open for reading; its caller closes it. Replacement and eviction do not affect it.

    Unless it is `trusted`, its bytes must be verified before any reader has all of them.
    """

    def __init__(
        self, store: Store, place: str, fd: int, record: Record, trusted: bool, identity: FileIdentity = (0, 0, 0, 0)
    ) -> None:
        self._store = store
        self.place = place
        self.identity = identity  # taken before the record was read
        self._fd = fd
        self.record = record
        self.trusted = trusted
        self.length: Optional[int] = record.length

    def ready(self, offset: int, whole: bool) -> bool:
        """A stored object is always ready."""
        return True

    def read_at(self, view: memoryview, offset: int) -> int:
        """Read bytes from `offset` on; 0 at the end. If the disk cannot, unpublishes the object and raises Lost."""
        try:
            return read_bytes(self._fd, view, offset)
        except Lost:
            self.discard()
            raise

    def fileno(self) -> int:
        """The descriptor; its offset is never used."""
        return self._fd

    @property
    def version(self) -> Version:
        """Equal for two entries only if nothing was published or validated between them."""
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino, self.record.metadata.fetched_at

    def discard(self) -> None:
        """Unpublish it, if it is still the published object."""
        if is_file(self.place, self._fd):
            self._store.remove(self.place)

    def mark_verified(self, sha256: str = "") -> None:
        """Record that its bytes are right, with this hash, and sync them to the disk. Raises OSError, Unstorable."""
        if sha256 and self.record.unhashed:
            self._store.note_hash(self._fd, sha256)
        os.fsync(self._fd)
        self._store.note_durable(self)

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Store:
    """The directory of all stored objects; `space` limits its size.

    Raises OSError where the directory cannot be made or written.
    """

    def __init__(self, root: Path, space: Optional[SpaceLimits] = None) -> None:
        self.root = root
        self.space = space or SpaceLimits(root, Limits)
        root.mkdir(parents=True, exist_ok=True)
        self.outside = outside(str(root))
        self.keeps_metadata = self._probe_attributes()
        self.boot = boot_id()
        self.trouble = RateLimitedLog(_log)  # with the disk
        self._full = RateLimitedLog(_log)
        # Guards each update of a record; between processes, a lost update costs a validation or a hash.
        self._updating = threading.Lock()
        self._known_paths = lru_cache(maxsize=4096)(self._paths)

    def place(self, name: str) -> str:
        """The absolute path of the object called `name`; raises Unstorable on names that a file cannot have."""
        reason = objection(str(self.root), name)
        if reason is not None:
            raise Unstorable(reason, Detail.PATH)
        folder = name.partition("/")[0]
        if folder in self.outside.closed:
            raise Unstorable(f"{folder} in misc.file_dir is a link, a mount point or no folder", Detail.PATH)
        return f"{self.root}/{name}"

    def paths(self, key: Key) -> Paths:
        """The paths of a key's files; raises Unstorable on names that a file cannot have.

        Without attributes there are no aliases, so no object is stored by its digest.
        """
        return self._known_paths(key) if len(key.name) <= _MAX_REMEMBERED else self._paths(key)

    def _paths(self, key: Key) -> Paths:
        named = self.place(key.name)
        if key.digest is None or not key.digest.shared or not self.keeps_metadata:
            return Paths(named, None)
        return Paths(self.place(f"{key.digest.algorithm}/{key.digest.hex[:2]}/{key.digest.hex}"), named)

    def vacant(self, place: str) -> str:
        """Where to write the object of `place`: there, or aside where another object blocks that path."""
        return vacant(str(self.root), place)

    def open_entry(self, place: str) -> Optional[Entry]:
        """The published object of `place`, also if it is aside; None where there is none, or only a damaged one."""
        return self._find(place, alias=False)

    def open_alias(self, place: str) -> Optional[Entry]:
        """The alias of `place`, like `open_entry`. No alias passes for an object: filters change, and files stay."""
        return self._find(place, alias=True)

    def _find(self, place: str, alias: bool) -> Optional[Entry]:
        entry = self._open(place, alias)
        return self._open(aside_of(str(self.root), place), alias) if entry is None else entry

    def _open(self, place: str, alias: bool) -> Optional[Entry]:
        try:
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Unstorable.of(error) from error
        try:
            status = os.fstat(fd)
            record = self._read_record(fd, status, place)
        except BaseException:
            os.close(fd)
            raise
        # An incomplete object was never verified, and has this name by accident; foreign files count as durable.
        if record is None or bool(record.alias) != alias or not (record.complete or alias or record.durable):
            os.close(fd)
            return None
        # If published in an earlier boot and perhaps never synced, the name may have outlived the bytes.
        trusted = alias or record.durable or record.boot == self.boot
        if record.unhashed:
            trusted = is_locked(fd)  # by the process, here or on another machine, that fetched and hashes it
            if not trusted and record.boot != self.boot:
                os.close(fd)
                return None
        return Entry(self, place, fd, record, trusted, identity_of(status))

    def open_growing_file(self, place: str) -> int:
        """Open the growing file of `place`, made with its directories, never truncated. Raises Unstorable."""
        part = place + GROWING_SUFFIX
        if not is_reached_directly(str(self.root), part):
            raise Unstorable("a folder in its path is a symbolic link", Detail.PATH)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        for _ in range(_MKDIR_ATTEMPTS):
            try:
                return os.open(part, flags, 0o644)
            except FileNotFoundError:
                self._make_parents(part)
            except OSError as error:
                raise self._refused(error) from error
        raise Unstorable("its directory vanishes again and again", Detail.BUSY)

    def open_growing(self, place: str) -> Optional[int]:
        """Open the growing file of `place`; None where there is none any more. Raises Unstorable."""
        try:
            return os.open(place + GROWING_SUFFIX, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unstorable.of(error) from error

    def open_fresh(self, place: str) -> Tuple[int, str]:
        """Make a locked file beside `place` under a unique name, for the caller to rename. Raises Unstorable."""
        path = f"{os.path.dirname(place)}/.{uuid.uuid4().hex}{GROWING_SUFFIX}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Unstorable.of(error) from error
        if not try_lock(fd):  # the evictor has found it first
            remove_growing_file(path, fd)
            os.close(fd)
            raise Unstorable("its file is locked by another process", Detail.BUSY)
        return fd, path

    def prune(self, place: str) -> None:
        """Remove the empty directories above `place`, made for an object that was not kept."""
        prune(os.path.dirname(place), str(self.root))

    def write_record(self, fd: int, record: Record) -> None:
        """Set the attribute of an open file; raises Unstorable. A no-op where the file system has none."""
        data = record.encode()
        if not self.keeps_metadata:
            return
        try:
            os.setxattr(fd, ATTRIBUTE, data)
        except OSError as error:
            raise Unstorable.of(error) from error

    def write_alias(self, place: str, digest: Digest, metadata: Metadata) -> None:
        """Record at a URL's place that it serves the object of a digest; losing this costs one request to the origin.

        Does nothing where another process is writing it, or where no file can be made.
        """
        place = self.vacant(place)
        part = place + GROWING_SUFFIX
        try:
            fd = self.open_growing_file(place)
        except Unstorable:
            return
        try:
            if try_lock(fd) and is_file(part, fd):
                os.ftruncate(fd, 0)
                self.write_record(fd, Record(metadata, 0, alias=str(digest), boot=self.boot))
                self.space.grow(FOLDER_SIZE)
                self.put_in_place(place)
        except (OSError, Unstorable) as error:
            self.trouble.warning("Cannot note that %s has %s: %s", shown(metadata.url), digest, reason_of(error))
            remove_growing_file(part, fd)
        finally:
            os.close(fd)

    def refresh(self, entry: Entry, metadata: Metadata) -> None:
        """Replace the metadata of a published object. It does not verify its bytes. Raises Unstorable."""
        self._update(entry, lambda record: replace(record, metadata=metadata))

    def put_in_place(self, place: str) -> str:
        """Rename the growing file to `place`, or aside where a folder blocks it; its path. Raises OSError."""
        part = place + GROWING_SUFFIX
        replaced = size_on_disk_at(place)
        try:
            os.replace(part, place)
            self.space.grow(-replaced, -bool(replaced))
            return place
        except (IsADirectoryError, FileExistsError):
            pass
        aside = aside_of(str(self.root), place)
        for _ in range(_MKDIR_ATTEMPTS - 1):
            with contextlib.suppress(FileNotFoundError):
                make_folders(aside)
                os.replace(part, aside)
                return aside
        raise FileNotFoundError(errno.ENOENT, "its directory vanishes again and again", Detail.BUSY)

    def forget(self, place: str) -> None:
        """Unpublish the object of `place`, also if it is aside."""
        for one in (place, aside_of(str(self.root), place)):
            if not os.path.isdir(one):
                self.remove(one)

    def amend(self, entry: Entry, metadata: Metadata, amended: Metadata) -> None:
        """Replace the metadata of a published object, unless it was replaced meanwhile. Raises Unstorable."""
        self._update(entry, lambda record: replace(record, metadata=amended) if record.metadata == metadata else record)

    def remove(self, place: str) -> None:
        """Unpublish an object, if there is one; its readers can read on."""
        if not is_reached_directly(str(self.root), place):
            return  # a link leads outside dduct's own files
        removed = size_on_disk_at(place)
        try:
            os.unlink(place)
            self.space.grow(-removed, -1)
        except OSError as error:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                _log.warning("Cannot remove %s: %s", shown(place), reason_of(error))
            return
        self.prune(place)

    def mark_durable(self, place: str, alias: bool = False) -> None:
        """Sync a published file to the disk, then record that. Raises OSError, Unstorable.

        An object whose bytes the disk has lost is unpublished: its next reader could get wrong bytes.
        """
        entry = self._find(place, alias)
        if entry is None:
            return  # evicted or replaced since
        try:
            entry.mark_verified()
        except OSError as error:
            if error.errno in _LOST_IN_WRITING:
                entry.discard()
            raise
        finally:
            entry.close()

    def note_hash(self, fd: int, sha256: str) -> None:
        """Record the hash of a published object that had none. Raises Unstorable."""
        with self._updating:
            try:
                record = read_record(fd)
            except ValueError as error:
                raise Unstorable(str(error)) from error
            if record is not None:
                self.write_record(fd, replace(record, sha256=sha256, unhashed=False))

    def note_durable(self, entry: Entry) -> None:
        """Record that an object has reached the disk. Raises Unstorable.

        Where another process's update has undone `note_hash`, the object's next reader hashes it again.
        """
        self._update(entry, lambda record: replace(record, durable=not record.unhashed))

    def begin_growth(self, length: Optional[int]) -> Growth:
        """Start to count a growing object, of a possibly unknown length. Raises Unstorable where it cannot be kept."""
        now = self.space.situation()
        reason = now.objection_to(length)
        if reason:
            raise Unstorable(reason, Detail.TOO_LARGE)
        reason = now.objection_to_growth(length is not None)
        if reason:
            self.trouble.warning('Nothing new is kept in "%s" for now: %s', self.root, reason)
            self.space.wish(length or 0)
            raise Unstorable(reason, Detail.NO_SPACE)
        return Growth(self.space, length)

    def _update(self, entry: Entry, change: Callable[[Record], Record]) -> None:
        """Change the record of a published object. Of two updates at once, neither undoes the other."""
        with self._updating:
            try:
                record = read_record(entry.fileno()) or entry.record
            except ValueError:
                record = entry.record
            self.write_record(entry.fileno(), change(record))

    def _read_record(self, fd: int, status: os.stat_result, place: str) -> Optional[Record]:
        if not stat.S_ISREG(status.st_mode):
            return None
        try:
            record = read_record(fd)
        except ValueError:
            return None
        if record is None:
            return self._foreign(status, place)
        if record.length != status.st_size:
            return None
        if time.time() - status.st_atime > ATIME_GRAIN:
            with contextlib.suppress(OSError):  # for eviction only
                os.utime(fd, ns=(time.time_ns(), status.st_mtime_ns))
        return record

    def _foreign(self, status: os.stat_result, place: str) -> Optional[Record]:
        """A record for a file that was copied in by hand; None for one below the name of a digest."""
        name = os.path.relpath(place, self.root)
        scheme, _, rest = name.partition("/")
        if scheme not in ("http", "https") or not status.st_size:
            return None  # an empty one may be an alias whose attribute was lost in copying
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        fields = (
            ("Content-Type", kind),
            ("Last-Modified", formatdate(status.st_mtime, usegmt=True)),
        )
        return Record(Metadata(f"{scheme}://{rest}", fields, status.st_mtime), status.st_size, durable=True)

    def _make_parents(self, path: str) -> None:
        try:
            made = make_folders(path)
            self.space.grow(FOLDER_SIZE * made, made)
        except (FileNotFoundError, FileExistsError):
            pass  # pruned again meanwhile
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> Unstorable:
        """Report that the disk can make no file or folder, once a minute."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            self._full.warning('No file can be made in "%s": %s: nothing new is kept', self.root, reason_of(error))
            self.space.on_need()
        return Unstorable.of(error)

    def _probe_attributes(self) -> bool:
        probe = self.root / f".probe-{os.getpid()}{GROWING_SUFFIX}"
        probe.touch()
        try:
            os.setxattr(probe, ATTRIBUTE, b"{}")
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM):
                raise
            return False
        finally:
            probe.unlink()
        return True


def read_record(fd: int) -> Optional[Record]:
    """The record of an open file; None where it has none. Raises ValueError where it is damaged."""
    try:
        data = os.getxattr(fd, ATTRIBUTE)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP):
            return None
        raise ValueError(f"unreadable metadata: {error}") from error
    return Record.decode(data)


def identity_of(status: os.stat_result) -> FileIdentity:
    """Equal for two fstat results only if neither the file's bytes nor its attribute changed in between."""
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


def read_bytes(fd: int, view: memoryview, offset: int) -> int:
    """Read an open file from `offset` on. Raises Lost where the disk fails again and again."""
    reason: object = None
    for _ in range(_READ_ATTEMPTS):
        try:
            return os.preadv(fd, [view], offset)
        except OSError as error:
            reason = error.strerror or error
    raise Lost(f"the disk does not give it: {reason}")


def is_blank(fd: int) -> bool:
    """Whether an open file is new, with neither bytes nor a record."""
    try:
        return not os.fstat(fd).st_size and read_record(fd) is None
    except ValueError:
        return False


def partial_download_record(fd: int, boot: str) -> Optional[Record]:
    """The record of a growing file without a leader, if it was started in this boot and can be resumed."""
    try:
        record = read_record(fd)
    except ValueError:
        return None
    if record is None or record.boot != boot or not 0 < os.fstat(fd).st_size <= record.length:
        return None
    return record if record.length > 1 else None


def remove_growing_file(part: str, fd: int) -> None:
    """Remove a growing file that this process owns, unless another file has taken its name."""
    try:
        if is_file(part, fd):
            os.unlink(part)
    except OSError as error:
        _log.warning("Cannot remove %s: %s", shown(part), reason_of(error))


def boot_id() -> str:
    """An identifier of this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex  # then no earlier object is trusted before it is durable
