"""Claims on objects: each decides whether a request reads, follows, or leads the fill of an object.

`Cache.claim(key)` returns one of three values; the caller closes it:

* `Hit`: the object is in the cache; read it.
* `Follow`: another request is fetching the object; read along from the growing file.
* `Lead`: no request is fetching the object; fetch it, and write it into the fill.

`transfers/fill` implements fills, `storage/store` names, `storage/records` records. None of them knows HTTP.
"""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple, Union

from storage.disk_watch import DiskWatch
from storage.entry import Entry, FileIdentity, Version
from storage.glance import Glance, glance
from storage.locks import LockWait
from storage.record import Metadata, Unstorable
from storage.space import SpaceLimits
from storage.store import Key, Paths, Store
from transfers.acquiring import AcquireResult
from transfers.fill import Fill
from transfers.follow import FillReader, ForeignFill


@dataclass(frozen=True)
class Hit:
    """The object is in the cache. `metadata` is None where the bytes are known by their digest but not from this URL.

    `identities` are those of its file and, if it is stored by its digest, of its URL's alias.
    """

    entry: Entry
    metadata: Optional[Metadata]
    identities: Tuple[Tuple[str, FileIdentity], ...] = ()


@dataclass(frozen=True)
class Follow:
    """Another request is fetching the object: an attached reader."""

    reader: FillReader


@dataclass(frozen=True)
class Lead:
    """No request is fetching the object: the caller fetches it and closes the fill on every path."""

    fill: Fill


Claim = Union[Hit, Follow, Lead]


class Cache:
    """All objects below one directory. `timeout()`: seconds that a reader waits for bytes that do not come.

    Raises OSError where the directory cannot be created or written.
    """

    def __init__(
        self, root: Path, timeout: Callable[[], float] = lambda: 60.0, space: Optional[SpaceLimits] = None
    ) -> None:
        self.store = Store(root, space)
        self._timeout = timeout
        self.disk = DiskWatch(directory=str(root))
        self._lock = threading.Lock()  # guards _fills
        self._fills: Dict[str, Fill] = {}  # by place; without those that are over

    def lookup(self, key: Key) -> Optional[Hit]:
        """The object, if it is in the cache; never waits. Raises Unstorable."""
        with self.disk.operation():
            return self._lookup(key, self.store.paths(key))

    def look(self, key: Key) -> Optional[Hit]:
        """Like `lookup`, for the poller's thread, whose operations are watched in another way. Raises Unstorable."""
        return self._lookup(key, self.store.paths(key))

    def lead(self, key: Key) -> Optional[Fill]:
        """Lead the fill of an object that is not stored, in the poller's thread; None where it is, or is being fetched.

        Waits for no other thread. The caller closes the fill. Raises Unstorable.
        """
        mine = self._register_alone(key, None)
        return mine if mine is not None and mine.acquire() is AcquireResult.MINE else None

    def lead_validation(self, key: Key, version: Version) -> Optional[Fill]:
        """Lead the validation of a published object, within this process; None where another request fetches it.

        Waits for no other thread. The caller closes the fill, and acquires it before anything is stored.
        """
        mine = self._register_alone(key, version)
        if mine is not None:
            mine.note_acquired(AcquireResult.MINE)
        return mine

    def acquire(self, fill: Fill) -> bool:
        """Whether a fill has its file, or gets it now; otherwise it is over. Raises Unstorable."""
        if fill.file.is_acquired:
            return True
        with self.disk.operation():
            return fill.acquire() is AcquireResult.MINE

    def glance(self, key: Key, now: float, most: int) -> Optional[Glance]:
        """The object and its at most `most` bytes, where that takes the poller's thread no more than a glance.

        `now` in seconds since the epoch. Raises Unstorable.
        """
        store, digest = self.store, key.digest
        if digest is None:
            return glance(store.place(key.name), None, "", store.boot, now, most)
        paths = store.paths(key)
        return glance(paths.object, paths.alias, f"{digest.algorithm}:{digest.hex}", store.boot, now, most)

    def claim(self, key: Key, beyond: Optional[Version] = None) -> Claim:
        """Decide how this request gets an object. Raises Unstorable where the object can only be relayed.

        A published object of the version `beyond` is no hit: the leader then validates or replaces it.
        """
        with self.disk.operation():
            return self._claim(key, beyond)

    def _claim(self, key: Key, beyond: Optional[Version]) -> Claim:
        paths = self.store.paths(key)
        while True:
            hit = self._lookup(key, paths, beyond)
            if hit is not None:
                return hit
            place = self.store.vacant(paths.object)
            with self._lock:
                fill = self._fills.get(paths.object)
                if fill is None:
                    mine = self._register(key, paths, place, beyond)
                else:
                    fill.attach()
            acquired = mine.acquire() if fill is None else fill.wait_acquired()
            if acquired is AcquireResult.MINE:
                return Lead(mine) if fill is None else Follow(FillReader(fill, self._timeout()))
            if fill is not None:
                fill.detach()
            if acquired is AcquireResult.FOREIGN:
                self.store.records.require("another process fetches it", "to read along by")
                growing = self.store.tree.open_growing(place)
                if growing is not None:
                    foreign = ForeignFill(place, growing, key.digest is not None)
                    return Follow(FillReader(foreign, self._timeout()))

    def store_whole(self, fill: Fill, metadata: Metadata, body: bytes) -> bool:
        """Store all of an object at once, to be synced soon; whether it was kept. Raises like `Fill.store_whole`."""
        kept = fill.store_whole(metadata, body)
        if kept and not fill.file.sync_soon():
            self.store.syncs.on_dropped(1)
        return kept

    def reader(self, fill: Fill) -> FillReader:
        """A reader on a fill that the caller leads: the leader reads like any follower."""
        fill.attach()
        return FillReader(fill, self._timeout())

    def confirm_alias(self, key: Key, metadata: Metadata) -> None:
        """Note that this URL, too, serves the object of its digest; a no-op where there are no aliases."""
        paths = self.store.paths(key)
        if paths.alias is not None and key.digest is not None:
            self.store.write_alias(paths.alias, key.digest, metadata)

    def refresh(self, entry: Entry, metadata: Metadata, wait: LockWait = LockWait.SHORT) -> bool:
        """Store `metadata` after the origin confirmed an object; whether objects have any here. Raises Unstorable."""
        return entry.refresh(metadata, wait)

    def amend(self, key: Key, entry: Entry, metadata: Metadata, amended: Metadata) -> None:
        """Replace this URL's `metadata` by `amended`; a change, or a removal, since then stays. Raises Unstorable."""
        place = self.store.paths(key).alias
        if place is None:
            entry.amend(metadata, amended)
            return
        alias = self.store.open_alias(place)
        if alias is not None:
            with closing(alias):
                alias.amend(metadata, amended)

    def invalidate(self, key: Key) -> None:
        """Note that this URL's object may have changed. Raises Unstorable.

        A restricted object is kept: no client gets it without its origin's permission, and the successful request of a
        client without permission may have changed nothing.
        """
        hit = self.lookup(key)
        if hit is None:
            self.remove(key)
            return
        try:
            if hit.metadata is None or not hit.metadata.restricted:
                self.remove(key)
            elif self.store.paths(key).alias is None:
                hit.entry.amend(hit.metadata, replace(hit.metadata, must_validate=True))
        finally:
            hit.entry.close()

    def remove(self, key: Key) -> None:
        """Unpublish this URL's object, because its origin has replaced or ended it. Raises Unstorable."""
        paths = self.store.paths(key)
        self.store.forget(paths.alias or paths.object)

    def _lookup(self, key: Key, paths: Paths, beyond: Optional[Version] = None) -> Optional[Hit]:
        entry = self.store.open_entry(paths.object)
        if entry is None:
            return None
        if beyond is not None and entry.version == beyond:
            entry.close()
            return None
        if paths.alias is None:
            return Hit(entry, entry.record.metadata, ((entry.place, entry.identity),))
        try:
            alias = self.store.open_alias(paths.alias)
        except Unstorable:
            alias = None  # this URL cannot have an alias, and its origin is asked every time
        except BaseException:
            entry.close()
            raise
        if alias is None:
            return Hit(entry, None)
        alias.close()
        if alias.record.alias != str(key.digest):
            return Hit(entry, None)
        identities = ((entry.place, entry.identity), (alias.place, alias.identity))
        return Hit(entry, alias.record.metadata, identities)

    def _register_alone(self, key: Key, beyond: Optional[Version]) -> Optional[Fill]:
        """A new fill, which the caller acquires; None where the object has one already. Raises Unstorable."""
        paths = self.store.paths(key)
        place = self.store.vacant(paths.object)
        with self._lock:
            return None if paths.object in self._fills else self._register(key, paths, place, beyond)

    def _register(self, key: Key, paths: Paths, place: str, beyond: Optional[Version] = None) -> Fill:
        """A new fill, to be written at `place`; the caller holds the lock, and acquires the fill after releasing it."""
        fill = Fill(self.store, key, Paths(place, paths.alias), partial(self._forget, paths.object), beyond)
        self._fills[paths.object] = fill
        return fill

    def _forget(self, place: str, fill: Fill) -> None:
        """A fill is over: the next claim starts a new one."""
        with self._lock:
            if self._fills.get(place) is fill:
                del self._fills[place]
