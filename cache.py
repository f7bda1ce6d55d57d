"""Who may read, who must wait, who has to fetch: claims on objects, and the fills that make them.

`Cache.claim(key)` answers with one of three things, all of them to be closed by the caller:

* `Hit`: the object is here; read it.
* `Follow`: somebody is fetching it; read along from the growing file.
* `Lead`: nobody is; fetch it, and write it into the fill.

Between processes the protocol is the growing file alone: `flock` says who leads, its size how far, its inode how it
ended. Within a process a condition on the `Fill` says the same sooner. Every way out of a fill wakes all its readers.

This room knows files and octets; of HTTP it knows nothing.
"""

from __future__ import annotations

import enum
import fcntl
import hashlib
import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional, Union

from store import PART_SUFFIX, Entry, Metadata, Record, Store, Unstorable, read_record

__all__ = [
    "Cache",
    "Digest",
    "Fill",
    "FillFailed",
    "FillState",
    "Follow",
    "Hit",
    "Key",
    "Lead",
    "Metadata",
    "Unstorable",
]

# The last octets of a digest-named object stay here until the digest agrees, so that nobody holds a whole wrong one.
HOLD_BACK = 64 * 1024

_POLL_SHORTEST, _POLL_LONGEST = 0.001, 0.05  # seconds between two looks at another process's fill
_OWNING_AT_MOST = 10.0  # seconds to wait for another thread's file operations, then the claim begins anew

_log = logging.getLogger("dduct.cache")


class Digest(NamedTuple):
    """A hash by which an object is known wherever it comes from."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @property
    def shared(self) -> bool:
        """Whether it is strong enough to let one URL's octets stand for another's."""
        return self.algorithm not in ("md5", "sha1")


class Key(NamedTuple):
    """The name of an object below the cache's root, and the digest that its URL promises, if any."""

    name: str
    digest: Optional[Digest] = None


class FillState(enum.Enum):
    """How far a fill is. The last four are final."""

    ASKING = "the leader waits for the origin's answer"
    FILLING = "the head is known, octets are arriving"
    PUBLISHED = "complete and in its place"
    FAILED = "broken off"
    DECLINED = "the origin's answer is not to be kept; everybody asks for himself"
    GONE = "over before it began; claim again"


_FINAL = frozenset([FillState.PUBLISHED, FillState.FAILED, FillState.DECLINED, FillState.GONE])


class _Ownership(enum.Enum):
    MINE = "this process writes the file"
    FOREIGN = "another process does"
    PUBLISHED = "nobody needs to: the object is here"


class FillFailed(Exception):
    """The fill broke off before the wanted octets arrived; `cause` is what its leader gave as the reason."""

    def __init__(self, cause: object) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Fill:
    """One transfer into one growing file: written by its leader, read by any number of threads meanwhile.

    Only the leader calls `begin`, `write`, `publish`, `settle`, `fail`, `decline` and `close`.
    """

    def __init__(self, cache: Cache, key: Key, place: str) -> None:
        self._cache = cache
        self._key = key
        self._place = place
        self._fd = -1
        self._sha256 = hashlib.sha256()
        self._check = self._sha256 if key.digest is None or key.digest.algorithm == "sha256" else _hasher(key.digest)
        self._size = 0
        # Guards all below, and is notified on every change of them.
        self._changed = threading.Condition()
        self._users = 1  # descriptors' users: the leader, and every attached reader
        self._released = 0  # octets that readers may have
        self._owned = False  # `own` is through, and this is what it found out:
        self._ownership: Optional[_Ownership] = None
        self._cause: object = None
        self.state = FillState.ASKING
        self.metadata: Optional[Metadata] = None
        self.length: Optional[int] = None

    # The leader's side

    def own(self) -> _Ownership:
        """Become the one that writes the growing file, or find out who is; tell those who wait for that.

        Unless this process writes it, the fill is over with this. Raises Unstorable.
        """
        ownership = None
        try:
            while ownership is None:
                ownership = self._try_own()
        finally:
            if ownership is not _Ownership.MINE:
                self._finish(FillState.GONE)
            with self._changed:
                self._ownership = ownership
                self._owned = True
                self._changed.notify_all()
        return ownership

    def begin(self, metadata: Metadata, length: Optional[int]) -> None:
        """The origin's answer is to be kept: `length` octets are coming, or an unknown number.

        Raises Unstorable; the fill can then still be declined.
        """
        self._cache.store.write_record(self._fd, Record(metadata, length or 0))
        with self._changed:
            self.metadata, self.length = metadata, length
            self.state = FillState.FILLING
            self._changed.notify_all()

    def write(self, data: memoryview) -> None:
        """Append octets and show them to the readers. Raises OSError."""
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], self._size + done)
        self._sha256.update(data)
        if self._check is not self._sha256:
            self._check.update(data)
        self._size += len(data)
        released = self._size if self._key.digest is None else self._size - HOLD_BACK
        with self._changed:
            if released > self._released:
                self._released = released
                self._changed.notify_all()

    def publish(self) -> None:
        """The body is complete: verify it, put it in its place, let everybody have the rest.

        Raises FillFailed where length or digest disagree, OSError or Unstorable where the disk does; nothing is
        published then, and the fill has failed.
        """
        assert self.metadata is not None
        try:
            self._verify()
            sha256, boot = self._sha256.hexdigest(), self._cache.store.boot
            self._cache.store.write_record(self._fd, Record(self.metadata, self._size, sha256, boot=boot))
            os.replace(self._place + PART_SUFFIX, self._place)
            if self._cache.by_digest(self._key):
                self._cache.introduce(self._key, self.metadata)
        except BaseException as error:
            self._finish(FillState.FAILED, error.cause if isinstance(error, FillFailed) else error)
            raise
        with self._changed:
            self._released = self.length = self._size
        self._finish(FillState.PUBLISHED)

    def settle(self) -> None:
        """After `publish`, when nobody waits any more: make the object survive a loss of power. Raises OSError."""
        if self.state is FillState.PUBLISHED:
            self._cache.settle(self._key)

    def fail(self, cause: object) -> None:
        """Break off: nothing is published, and readers past the octets they have get `cause`."""
        self._finish(FillState.FAILED, cause)

    def decline(self) -> None:
        """The origin's answer is not to be kept."""
        self._finish(FillState.DECLINED)

    def close(self) -> None:
        """The leader's last word, on every path; a fill that is not over by then has failed."""
        self._finish(FillState.FAILED, "abandoned by its leader")
        self.detach()

    # The readers' side

    def attach(self) -> None:
        """Count a reader in, so that the file stays open for it; `detach` ends that."""
        with self._changed:
            self._users += 1

    def detach(self) -> None:
        """Count a user out; the last one closes the file."""
        with self._changed:
            self._users -= 1
            last = not self._users
        if last and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def wait_owned(self) -> Optional[_Ownership]:
        """What `own` found out, None where it raised; it does file operations only, so this is soon."""
        with self._changed:
            self._changed.wait_for(lambda: self._owned, _OWNING_AT_MOST)
            return self._ownership

    def wait_head(self, patience: float) -> FillState:
        """The state once it is no longer ASKING, or ASKING after `patience` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.state is not FillState.ASKING, patience)
            return self.state

    def read_at(self, view: memoryview, offset: int, patience: float) -> int:
        """Octets from `offset` on as soon as there are any; 0 at the end of a published object.

        Raises FillFailed where they will not come, or did not for `patience` seconds.
        """
        with self._changed:
            arrived = self._changed.wait_for(lambda: self._released > offset or self.state in _FINAL, patience)
            available = self._released - offset
            if available <= 0:
                if self.state is FillState.PUBLISHED:
                    return 0
                raise FillFailed(self._cause if arrived else f"nothing arrived for {patience:g} s")
        return os.preadv(self._fd, [view[:available]], offset)

    @property
    def cause(self) -> object:
        """Why it failed."""
        return self._cause

    # Innards

    def _try_own(self) -> Optional[_Ownership]:
        """One attempt at `own`; None where the file was not the one to own, and another attempt is due."""
        part = self._place + PART_SUFFIX
        fd = self._cache.store.open_part(self._place)
        ownership = None
        try:
            if not _try_lock(fd):
                ownership = _Ownership.FOREIGN
            elif not _is_file(part, fd):
                pass  # its last owner has just renamed or removed it
            elif self._published_meanwhile():
                os.unlink(part)
                ownership = _Ownership.PUBLISHED
            elif not _is_blank(fd):
                os.unlink(part)  # left by a crash; a fresh inode carries nothing of it over
            else:
                ownership = _Ownership.MINE
        except OSError as error:
            raise Unstorable(error.strerror or str(error)) from error
        finally:
            if ownership is _Ownership.MINE:
                self._fd = fd
            else:
                os.close(fd)
        return ownership

    def _published_meanwhile(self) -> bool:
        entry = self._cache.store.open_entry(self._place)
        if entry is None:
            return False
        entry.close()
        return True

    def _verify(self) -> None:
        if self.length is not None and self._size != self.length:
            raise FillFailed(f"{self._size} octets instead of {self.length}")
        digest = self._key.digest
        if digest is not None and self._check.hexdigest() != digest.hex:
            raise FillFailed(f"its octets have not the digest {digest}")

    def _finish(self, state: FillState, cause: object = None) -> None:
        with self._changed:
            if self.state in _FINAL:
                return
        if state is not FillState.PUBLISHED and self._fd >= 0:
            _remove_part(self._place + PART_SUFFIX, self._fd)
            self._cache.store.prune(self._place)
        self._cache.forget(self._place, self)
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        with self._changed:
            self.state, self._cause = state, cause
            self._changed.notify_all()


class ForeignFill:
    """A fill that another process leads, watched through its file; the readers' side of `Fill`."""

    def __init__(self, place: str, fd: int, held_back: bool) -> None:
        self._place = place
        self._fd = fd
        self._held_back = held_back
        self.state = FillState.ASKING
        self.metadata: Optional[Metadata] = None
        self.length: Optional[int] = None
        self.cause: object = None

    def attach(self) -> None:
        """Each follower has a descriptor of its own: nothing to count."""

    def detach(self) -> None:
        """Give the descriptor back; harmless twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def wait_head(self, patience: float) -> FillState:
        """See Fill.wait_head; a leader that gave up or died before the head leaves GONE."""
        for _ in _looks(patience):
            self._look()
            if self.state is not FillState.ASKING:
                break
        return self.state

    def read_at(self, view: memoryview, offset: int, patience: float) -> int:
        """See Fill.read_at."""
        for _ in _looks(patience):
            self._look()
            available = self._available() - offset
            if available > 0:
                return os.preadv(self._fd, [view[:available]], offset)
            if self.state is FillState.PUBLISHED:
                return 0
            if self.state in _FINAL:
                raise FillFailed(self.cause)
        raise FillFailed(f"nothing arrived for {patience:g} s")

    def _look(self) -> None:
        if self.state in _FINAL:
            return
        ended = self._ending()
        record = self._record()
        if record is not None:
            self.metadata = record.metadata
            self.length = record.length or None
            if self.state is FillState.ASKING:
                self.state = FillState.FILLING
        if ended is None:
            return
        if ended is FillState.FAILED and self.metadata is None:
            ended = FillState.GONE
        if ended is FillState.PUBLISHED:
            self.length = os.fstat(self._fd).st_size
        self.state = ended

    def _ending(self) -> Optional[FillState]:
        """PUBLISHED, FAILED, or None while its leader is at it."""
        if _is_file(self._place, self._fd):
            return FillState.PUBLISHED
        if not _is_file(self._place + PART_SUFFIX, self._fd):
            # Between the two looks it may have moved from one name to the other.
            if _is_file(self._place, self._fd):
                return FillState.PUBLISHED
            self.cause = "its leader gave it up"
            return FillState.FAILED
        if not _try_lock(self._fd):
            return None
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        if _is_file(self._place, self._fd):
            return FillState.PUBLISHED
        self.cause = "its leader is gone"
        return FillState.FAILED

    def _record(self) -> Optional[Record]:
        try:
            return read_record(self._fd)
        except ValueError:
            return None

    def _available(self) -> int:
        size = os.fstat(self._fd).st_size
        if self.state is FillState.PUBLISHED or not self._held_back:
            return size
        return size - HOLD_BACK


AnyFill = Union[Fill, ForeignFill]


class FillReader:
    """A reader on a fill, attached until it is closed. `patience` is in seconds."""

    def __init__(self, fill: AnyFill, patience: float) -> None:
        self.fill = fill
        self._patience = patience
        self._open = True

    @property
    def length(self) -> Optional[int]:
        """Octets of the whole object, where known already."""
        return self.fill.length

    def read_at(self, view: memoryview, offset: int) -> int:
        """Octets from `offset` on as they come; 0 at the end. Raises FillFailed."""
        return self.fill.read_at(view, offset, self._patience)

    def close(self) -> None:
        """Detach; harmless twice."""
        if self._open:
            self._open = False
            self.fill.detach()


@dataclass(frozen=True)
class Hit:
    """The object is here. `metadata` is None where the octets are known by their digest but not from this URL."""

    entry: Entry
    metadata: Optional[Metadata]


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

    def __init__(self, root: Path, patience: float = 60.0) -> None:
        self.store = Store(root)
        self._patience = patience
        self._lock = threading.Lock()  # guards _fills
        self._fills: Dict[str, Fill] = {}  # by place, those that are not over

    def lookup(self, key: Key) -> Optional[Hit]:
        """The object, if it is here; never waits. Raises Unstorable."""
        entry = self.store.open_entry(self.store.place(key.name))
        if not self.by_digest(key):
            return None if entry is None else Hit(entry, entry.record.metadata)
        assert key.digest is not None
        known = entry.record if entry is not None and entry.record.alias == str(key.digest) else None
        if entry is not None:
            entry.close()
        shared = self.store.open_entry(self._place(key))
        if shared is None:
            return None
        return Hit(shared, None if known is None else known.metadata)

    def claim(self, key: Key) -> Union[Hit, Follow, Lead]:
        """Find out what to do about an object. Raises Unstorable where it can only be relayed."""
        place = self._place(key)
        while True:
            hit = self.lookup(key)
            if hit is not None:
                return hit
            with self._lock:
                fill = self._fills.get(place)
                if fill is None:
                    mine = self._fills[place] = Fill(self, key, place)
                else:
                    fill.attach()
            ownership = mine.own() if fill is None else fill.wait_owned()
            if ownership is _Ownership.MINE:
                return Lead(mine) if fill is None else Follow(FillReader(fill, self._patience))
            if fill is not None:
                fill.detach()
            if ownership is _Ownership.FOREIGN:
                foreign = ForeignFill(place, self.store.open_part(place), key.digest is not None)
                return Follow(FillReader(foreign, self._patience))

    def reader(self, fill: Fill) -> FillReader:
        """A reader on a fill that the caller leads: the leader reads like everybody else."""
        fill.attach()
        return FillReader(fill, self._patience)

    def by_digest(self, key: Key) -> bool:
        """Whether the object is stored by its digest; without attributes there are no aliases to do it with."""
        return key.digest is not None and key.digest.shared and self.store.keeps_metadata

    def introduce(self, key: Key, metadata: Metadata) -> None:
        """Remember that this URL serves the object of its digest too; losing that memory costs one question.

        Does nothing where another process is at it, or where the URL makes no file name.
        """
        try:
            place = self.store.place(key.name)
            fd = self.store.open_part(place)
        except Unstorable:
            return
        try:
            if _try_lock(fd) and _is_file(place + PART_SUFFIX, fd):
                record = Record(metadata, 0, alias=str(key.digest), boot=self.store.boot)
                os.ftruncate(fd, 0)
                self.store.write_record(fd, record)
                os.replace(place + PART_SUFFIX, place)
        except (OSError, Unstorable) as error:
            _log.warning("Cannot note that %s has %s: %s", metadata.url, key.digest, error)
            _remove_part(place + PART_SUFFIX, fd)
        finally:
            os.close(fd)

    def settle(self, key: Key) -> None:
        """Write a published object, and its alias if it has one, through to the disk. Raises OSError, Unstorable."""
        self.store.settle(self._place(key))
        if self.by_digest(key):
            self.store.settle(self.store.place(key.name))

    def forget(self, place: str, fill: Fill) -> None:
        """A fill is over: the next claim begins anew."""
        with self._lock:
            if self._fills.get(place) is fill:
                del self._fills[place]

    def _place(self, key: Key) -> str:
        if not self.by_digest(key):
            return self.store.place(key.name)
        assert key.digest is not None
        return self.store.place(f"{key.digest.algorithm}/{key.digest.hex[:2]}/{key.digest.hex}")


def _hasher(digest: Digest) -> Any:
    if digest.algorithm == "blake2b":
        return hashlib.blake2b(digest_size=len(digest.hex) // 2)
    return hashlib.new(digest.algorithm)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_file(path: str, fd: int) -> bool:
    """Whether `path` names the very file that is open as `fd`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False


def _is_blank(fd: int) -> bool:
    try:
        return not os.fstat(fd).st_size and read_record(fd) is None
    except ValueError:
        return False


def _remove_part(part: str, fd: int) -> None:
    """Remove a growing file that this process owns, and no other that has taken its name."""
    try:
        if _is_file(part, fd):
            os.unlink(part)
    except OSError as error:
        _log.warning("Cannot remove %s: %s", part, error)


def _looks(patience: float) -> Iterator[None]:
    """Yield at growing intervals until `patience` seconds have passed."""
    deadline = time.monotonic() + patience
    pause = _POLL_SHORTEST
    while True:
        yield
        if time.monotonic() >= deadline:
            return
        time.sleep(pause)
        pause = min(2 * pause, _POLL_LONGEST)
