"""Who may read, who must wait, who has to fetch: claims on objects, and the fills that make them.

`Cache.claim(key)` answers with one of three things, all of them to be closed by the caller:

* `Hit`: the object is here; read it.
* `Follow`: somebody is fetching it; read along from the growing file.
* `Lead`: nobody is; fetch it, and write it into the fill.

The fills themselves are the business of `fill`, names and records that of `store`. None of the three knows HTTP.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Dict, Optional, Tuple, Union

from monitoring.details import Detail
from storage.disk_watch import DiskWatch
from storage.space import Room
from storage.store import Entry, Identity, Key, Metadata, Places, Store, Unstorable, Version
from transfers.fill import Fill, Ownership
from transfers.follow import FillReader, ForeignFill


@dataclass(frozen=True)
class Hit:
    """The object is here. `metadata` is None where the octets are known by their digest but not from this URL.

    `identities` are those of its file and, if it is stored by its digest, of its URL's alias.
    """

    entry: Entry
    metadata: Optional[Metadata]
    identities: Tuple[Tuple[str, Identity], ...] = ()


@dataclass(frozen=True)
class Follow:
    """Somebody else is fetching it: an attached reader."""

    reader: FillReader


@dataclass(frozen=True)
class Lead:
    """Nobody has it: the caller fetches it and closes the fill on every path."""

    fill: Fill


class Cache:
    """All objects below one directory. `patience`: seconds a reader waits for octets that do not come.

    Raises OSError where the directory cannot be made or written.
    """

    def __init__(self, root: Path, patience: float = 60.0, room: Optional[Room] = None) -> None:
        self.store = Store(root, room)
        self.patience = patience
        self.disk = DiskWatch(directory=str(root))
        self._lock = threading.Lock()  # guards _fills
        self._fills: Dict[str, Fill] = {}  # by place, those that are not over

    def lookup(self, key: Key) -> Optional[Hit]:
        """The object, if it is here; never waits. Raises Unstorable."""
        with self.disk.operation():
            return self._lookup(key, self.store.places(key))

    def claim(self, key: Key, beyond: Optional[Version] = None) -> Union[Hit, Follow, Lead]:
        """Find out what to do about an object. Raises Unstorable where it can only be relayed.

        A published object of the version `beyond` is no hit: whoever leads then is to validate or to replace it.
        """
        with self.disk.operation():
            return self._claim(key, beyond)

    def _claim(self, key: Key, beyond: Optional[Version]) -> Union[Hit, Follow, Lead]:
        places = self.store.places(key)
        while True:
            hit = self._lookup(key, places, beyond)
            if hit is not None:
                return hit
            place = self.store.vacant(places.object)
            with self._lock:
                fill = self._fills.get(places.object)
                if fill is None:
                    over = partial(self._forget, places.object)
                    mine = Fill(self.store, key, Places(place, places.alias), over, beyond)
                    self._fills[places.object] = mine
                else:
                    fill.attach()
            ownership = mine.own() if fill is None else fill.wait_owned()
            if ownership is Ownership.MINE:
                return Lead(mine) if fill is None else Follow(FillReader(fill, self.patience))
            if fill is not None:
                fill.detach()
            if ownership is Ownership.FOREIGN and not self.store.keeps_metadata:
                reason = "another process fetches it, and the file system keeps no metadata to read along by"
                raise Unstorable(reason, Detail.NO_METADATA)
            if ownership is Ownership.FOREIGN:
                growing = self.store.open_growing(place)
                if growing is not None:
                    foreign = ForeignFill(place, growing, key.digest is not None)
                    return Follow(FillReader(foreign, self.patience))

    def reader(self, fill: Fill) -> FillReader:
        """A reader on a fill that the caller leads: the leader reads like everybody else."""
        fill.attach()
        return FillReader(fill, self.patience)

    def introduce(self, key: Key, metadata: Metadata) -> None:
        """Remember that this URL, too, serves the object of its digest; a no-op where there are no aliases."""
        places = self.store.places(key)
        if places.alias is not None and key.digest is not None:
            self.store.write_alias(places.alias, key.digest, metadata)

    def refresh(self, entry: Entry, metadata: Metadata) -> None:
        """Its origin has said that an object is still good; and `metadata` what is known of it. Raises Unstorable."""
        self.store.refresh(entry, metadata)

    def amend(self, key: Key, entry: Entry, metadata: Metadata, amended: Metadata) -> None:
        """More is known of what this URL serves than `metadata`; what has changed since stays. Raises Unstorable."""
        if self.store.places(key).alias is None:
            self.store.amend(entry, metadata, amended)
        else:
            self.introduce(key, amended)

    def invalidate(self, key: Key) -> None:
        """This URL's object may have changed. Raises Unstorable.

        A restricted one is kept: it is sent to nobody without its origin's word, and a stranger to whom the origin says
        that all went well may have changed nothing.
        """
        hit = self.lookup(key)
        if hit is None:
            self.remove(key)
            return
        try:
            if hit.metadata is None or not hit.metadata.restricted:
                self.remove(key)
            elif self.store.places(key).alias is None:
                self.store.amend(hit.entry, hit.metadata, replace(hit.metadata, must_validate=True))
        finally:
            hit.entry.close()

    def remove(self, key: Key) -> None:
        """Its origin has said that this URL's object is no longer what it was. Raises Unstorable."""
        places = self.store.places(key)
        self.store.forget(places.alias or places.object)

    def _lookup(self, key: Key, places: Places, beyond: Optional[Version] = None) -> Optional[Hit]:
        entry = self.store.open_entry(places.object)
        if entry is None:
            return None
        if beyond is not None and entry.version == beyond:
            entry.close()
            return None
        if places.alias is None:
            return Hit(entry, entry.record.metadata, ((entry.place, entry.identity),))
        try:
            alias = self.store.open_alias(places.alias)
        except Unstorable:
            alias = None  # this URL cannot be remembered, and has to be asked about every time
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

    def _forget(self, place: str, fill: Fill) -> None:
        """A fill is over: the next claim begins anew."""
        with self._lock:
            if self._fills.get(place) is fill:
                del self._fills[place]
