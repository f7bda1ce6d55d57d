"""All published objects: each is a file below the root, with its record in one extended attribute.

Rules of this module:

* The file system is the database. A name, an inode and `user.dduct` are the whole state.
* No path outside the root is ever used: a name is checked part by part, and an odd one is `Unstorable`.
* Damage is a miss with a reason, never an error for a client.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import mimetypes
import os
import stat
import time
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from pathlib import Path
from typing import List, NamedTuple, Optional

from monitoring.details import Detail
from monitoring.log import RateLimitedLog
from monitoring.redaction import reason_of, shown
from storage.entry import Entry, identity_of
from storage.glance import ATIME_GRAIN
from storage.locations import aside_of, objection, vacant
from storage.locks import is_file, is_locked, try_lock
from storage.own_files import GROWING_SUFFIX, outside
from storage.record import Digest, Metadata, Record, Unstorable
from storage.records import boot_id, read_record, records_below
from storage.space import FOLDER_SIZE, SMALL_STEP, Growth, Limits, Situation, SpaceLimits
from storage.syncing import LOST_IN_WRITING, Syncer, SyncQueue
from storage.tree import Tree, remove_growing_file

_MAX_LOOKED_AT = 20_000  # entries of a folder
_MAX_REMEMBERED = 512  # characters; the paths of longer names are not remembered

_log = logging.getLogger("dduct.store")


class Key(NamedTuple):
    """The name of an object below the cache's root, and the digest that its URL promises, if any."""

    name: str
    digest: Optional[Digest] = None


@dataclass(frozen=True)
class Paths:
    """The path of a key's object, and of its URL's alias if the object is stored by its digest."""

    object: str
    alias: Optional[str]


class Store:
    """The directory of all stored objects; `space` limits its size.

    Raises OSError where the directory cannot be made or written.
    """

    def __init__(self, root: Path, space: Optional[SpaceLimits] = None) -> None:
        self.root = root
        self._root = str(root)
        self.space = space or SpaceLimits(root, Limits)
        root.mkdir(parents=True, exist_ok=True)
        self.outside = outside(str(root))
        self.tree = Tree(str(root), self.space)
        self.records = records_below(root)
        self.syncs = SyncQueue(Syncer(str(root), self.tree, self.records).sync)
        self.boot = boot_id()
        self.trouble = RateLimitedLog(_log)  # with the disk
        self._known_paths = lru_cache(maxsize=4096)(self._paths)

    def beginning(self, name: str, most: int) -> List[str]:
        """The names of at most so many objects in one folder, whose names begin so. Raises Unstorable."""
        folder, _, beginning = name.rpartition("/")
        found: List[str] = []
        try:
            with os.scandir(self.place(folder)) as entries:
                for entry in itertools.islice(entries, _MAX_LOOKED_AT):
                    if entry.name.startswith(beginning) and not entry.name.endswith(GROWING_SUFFIX):
                        found.append(f"{folder}/{entry.name}")
                    if len(found) == most:
                        break
        except OSError:
            return []
        return sorted(found)

    def place(self, name: str) -> str:
        """The absolute path of the object called `name`; raises Unstorable on names that a file cannot have."""
        reason = objection(self._root, name)
        if reason is not None:
            raise Unstorable(reason, Detail.PATH)
        folder = name.partition("/")[0]
        if folder in self.outside.closed:
            raise Unstorable(f"{folder} in misc.file_dir is a link, a mount point or no folder", Detail.PATH)
        return f"{self._root}/{name}"

    def paths(self, key: Key) -> Paths:
        """The paths of a key's files; raises Unstorable on names that a file cannot have."""
        return self._known_paths(key) if len(key.name) <= _MAX_REMEMBERED else self._paths(key)

    def _paths(self, key: Key) -> Paths:
        named = self.place(key.name)
        if key.digest is None or not self.records.shares(key.digest):
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
        return Entry(self.tree, self.records, place, fd, record, trusted, identity_of(status))

    def write_alias(self, place: str, digest: Digest, metadata: Metadata) -> None:
        """Record at a URL's place that it serves the object of a digest; losing this costs one request to the origin.

        Does nothing where another process is writing it, or where no file can be made.
        """
        place = self.vacant(place)
        part = place + GROWING_SUFFIX
        try:
            fd = self.tree.open_growing_file(place)
        except Unstorable:
            return
        try:
            if try_lock(fd) and is_file(part, fd):
                os.ftruncate(fd, 0)
                self.records.write(fd, Record(metadata, 0, alias=str(digest), boot=self.boot))
                self.space.grow(FOLDER_SIZE)
                self.tree.put_in_place(place)
        except (OSError, Unstorable) as error:
            self.trouble.warning("Cannot note that %s has %s: %s", shown(metadata.url), digest, reason_of(error))
            remove_growing_file(part, fd)
        finally:
            os.close(fd)

    def forget(self, place: str) -> None:
        """Unpublish the object of `place`, also if it is aside."""
        for one in (place, aside_of(str(self.root), place)):
            if not os.path.isdir(one):
                self.tree.remove(one)

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
            if error.errno in LOST_IN_WRITING:
                entry.discard()
            raise
        finally:
            entry.close()

    def begin_growth(self, length: Optional[int]) -> Growth:
        """Start to count a growing object, of a possibly unknown length. Raises Unstorable where it cannot be kept."""
        return Growth(self.space, length, self.check_space(length).used or 0)

    def check_space(self, length: Optional[int]) -> Situation:
        """The numbers that allow an object of a possibly unknown length. Raises Unstorable where it cannot be kept."""
        # A growing object, too, is not looked at again before it has grown by so much.
        is_small = length is not None and length <= SMALL_STEP
        now = self.space.recent_situation() if is_small else self.space.situation()
        reason = now.objection_to(length)
        if reason:
            raise Unstorable(reason, Detail.TOO_LARGE)
        reason = now.objection_to_growth(length is not None)
        if reason:
            self.trouble.warning('Nothing new is kept in "%s" for now: %s', self.root, reason)
            self.space.wish(length or 0)
            raise Unstorable(reason, Detail.NO_SPACE)
        return now

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
