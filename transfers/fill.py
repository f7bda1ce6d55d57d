"""A fill: one transfer into one growing file, and those who read along.

Within a process a condition on the `Fill` says what happens; for others the growing file does (see `follow`). Every way
out of a fill wakes all its readers.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import threading
from dataclasses import dataclass, replace
from typing import Callable, Dict, Optional

from monitoring.redaction import reason_of, shown
from net import client_watch
from storage.locks import is_file, is_of_interest, try_lock
from storage.own_files import PART_SUFFIX
from storage.space import Growth
from storage.store import (
    Key,
    Lost,
    Metadata,
    Places,
    Record,
    Store,
    Unstorable,
    Version,
    is_blank,
    leftover_record,
    read_octets,
    remove_part,
)
from transfers.asking import Asking
from transfers.hashing import Hashes
from transfers.pacing import CROWD, wait_for_bytes
from transfers.window import WINDOW_LIMIT, Window

# The last octets of a digest-named object stay here until the digest agrees, so that nobody holds a whole wrong one.
HOLD_BACK = 64 * 1024

_REHASHED_AT_ONCE = 1024 * 1024  # octets
_LAGGARD_PATIENCE = 30.0  # seconds for the slowest reader of a fill without a disk
_OWNING_AT_MOST = 10.0  # seconds to wait for another thread's file operations, then the claim begins anew


class FillState(enum.Enum):
    """How far a fill is. The last five are final."""

    ASKING = "the leader waits for the origin's answer"
    FILLING = "the head is known, octets are arriving"
    PUBLISHED = "complete and in its place"
    UNKEPT = "complete and read to its end, but the disk would not have it"
    FAILED = "broken off"
    DECLINED = "the origin's answer is not to be kept; everybody asks for himself"
    GONE = "over before it began, or given up in good order; claim again"

    @property
    def final(self) -> bool:
        """Whether nothing more comes of it."""
        return self in _FINAL


_COMPLETE = frozenset([FillState.PUBLISHED, FillState.UNKEPT])
_FINAL = _COMPLETE.union([FillState.FAILED, FillState.DECLINED, FillState.GONE])


class Ownership(enum.Enum):
    """What became of the attempt to lead."""

    MINE = "this process writes the file"
    FOREIGN = "another process does"
    PUBLISHED = "nobody needs to: the object is here"


@dataclass(frozen=True)
class Leftover:
    """What a leader that is gone has left of an object: the first `size` of its `length` octets."""

    metadata: Metadata
    length: int
    size: int


class FillFailed(Exception):
    """The fill broke off before the wanted octets arrived; `cause` is what its leader gave as the reason."""

    def __init__(self, cause: object) -> None:
        super().__init__(str(cause))
        self.cause = cause


class DigestMismatch(FillFailed):
    """The octets are not those that the object's name promises."""


class Fill:
    """One transfer into one growing file: written by its leader, read by any number of threads meanwhile.

    Readers call `attach`, `detach`, `wait_head`, `ready` and `read_at`; all else is the leader's. `over` is told when
    the fill has reached its end, just before its readers are. A published object of the version `beyond` is to be
    replaced, or found to be still good.
    """

    def __init__(
        self,
        store: Store,
        key: Key,
        places: Places,
        over: Callable[[Fill], None],
        beyond: Optional[Version] = None,
    ) -> None:
        self._store = store
        self._beyond = beyond
        self._digest = key.digest
        self.asking = Asking()
        self._place, self._alias = places.object, places.alias
        self._published_at = self._place  # unless a folder gets in its way
        self._over = over
        self._fd = -1
        self._hashes, self._size = Hashes(key.digest), 0
        self._began_at = 0  # what was there of it before
        self._growth: Optional[Growth] = None  # as long as it takes room
        # Guards all below, and is notified on every change of them; `available` looks at one without.
        self._changed = threading.Condition()
        self._window: Optional[Window] = None  # what the disk would not take
        self._positions: Dict[object, int] = {}  # of the readers: what lies before is of no more use to them
        self._users = 1  # descriptors' users: the leader, and every attached reader
        self._released = 0  # octets that readers may have
        self._owned = False  # `own` is through, and this is what it found out:
        self._ownership: Optional[Ownership] = None
        self._cause: object = None
        self.state = FillState.ASKING
        self.metadata: Optional[Metadata] = None
        self.length: Optional[int] = None
        self.leftover: Optional[Leftover] = None  # to be gone on with by `resume`; `begin` begins anew

    # The leader's side

    def own(self) -> Ownership:
        """Become the one that writes the growing file, or find out who is; tell those who wait for that.

        Unless this process writes it, the fill is over with this. Raises Unstorable.
        """
        ownership = None
        try:
            while ownership is None:
                ownership = self._try_own()
        finally:
            if ownership is not Ownership.MINE:
                self._finish(FillState.GONE)
            with self._changed:
                self._ownership = ownership
                self._owned = True
                self._changed.notify_all()
        return ownership

    def begin(self, metadata: Metadata, length: Optional[int], resumable: bool = False) -> None:
        """The origin's answer is to be kept: `length` octets are coming, or an unknown number.

        `resumable`: whoever finds what a crash leaves of it can have the rest. Raises Unstorable; the fill can then
        still be declined.
        """
        self._growth = self._store.begin_growth(length)
        if self.leftover is not None:
            self._start_over()
        boot = self._store.boot if resumable and length else ""
        self._store.write_record(self._fd, Record(metadata, length or 0, boot=boot))
        with self._changed:
            self.metadata, self.length = metadata, length
            self.state = FillState.FILLING
            self._changed.notify_all()

    def resume(self, metadata: Metadata) -> None:
        """The origin sends the rest of what was left over; readers have at once what is there. Raises Unstorable."""
        left = self.leftover
        assert left is not None
        self._growth = self._store.begin_growth(left.length)
        self._store.write_record(self._fd, Record(metadata, left.length, boot=self._store.boot))
        with self._changed:
            self.metadata, self.length, self._size = metadata, left.length, left.size
            self._began_at = left.size
            self._released = max(0, left.size - (HOLD_BACK if self._digest is not None else 0))
            self.state = FillState.FILLING
            self._changed.notify_all()

    def catch_up(self) -> None:
        """Hash what was there before; a no-op on a new fill. Raises FillFailed, Lost where the disk has lost it."""
        offset = self._hashes.go_on()
        view = memoryview(bytearray(min(self._size - offset, _REHASHED_AT_ONCE)))
        while offset < self._size:
            count = read_octets(self._fd, view[: self._size - offset], offset)
            if not count:
                raise FillFailed("what was there of it has been cut off")
            self._hashes.update(view[:count])
            self._hashes.settle()
            offset += count

    def write(self, data: memoryview) -> None:
        """Append octets and show them to the readers. Raises FillFailed where there is neither disk nor reader left.

        They must stay as they are until the next call returns: they may still be hashed.
        Where the disk takes no more, they pass through memory, and the fill is as slow as its slowest reader.
        """
        grown = self._size - self._began_at
        if self._growth is not None and grown >= self._growth.next_look and self._window is None:
            self._look_at_room(self._growth, grown)
        done = self._write_to_disk(data) if self._window is None else 0
        self._hashes.update(data)
        self._size += len(data)
        if done < len(data):
            self._write_to_memory(data[done:])
        if self._digest is None and self._size == self.length:
            return  # the last piece is for `publish`: who has the whole object finds it in its place
        released = self._size if self._digest is None else self._size - HOLD_BACK
        with self._changed:
            if released > self._released:
                self._released = released
                if len(self._positions) <= CROWD:
                    self._changed.notify_all()

    def publish(self) -> bool:
        """The body is complete: verify it, put it in its place, let everybody have the rest; whether it was kept.

        Raises FillFailed where length or digest disagree; nothing is published then, and the fill is to be failed.
        """
        self._verify()
        kept = self._window is None and self._put_in_place()
        self._finish(FillState.PUBLISHED if kept else FillState.UNKEPT)
        return kept

    def settle(self) -> None:
        """After `publish`, when nobody waits any more: make the object survive a loss of power.

        Raises OSError, Unstorable, and, where it is unpublished for having been lost, FillFailed or Lost.
        """
        if self.state is not FillState.PUBLISHED:
            return
        if self._hashes.late:
            self._hash_the_rest()
        self._store.settle(self._published_at)
        if self._alias is not None:
            with contextlib.suppress(Unstorable):  # then there is no alias either; see write_alias
                self._store.settle(self._alias, alias=True)

    def fail(self, cause: object) -> None:
        """Break off: nothing is published, and readers past the octets they have get `cause`."""
        self._finish(FillState.FAILED, cause)

    def decline(self) -> None:
        """The origin's answer is not to be kept."""
        self._finish(FillState.DECLINED)

    def renew(self) -> None:
        """There is nothing to fill: what is published is still good, and claims will find it so."""
        self._finish(FillState.GONE)

    @property
    def verifies(self) -> bool:
        """Whether a digest proves the whole, wherever its parts come from."""
        return self._digest is not None

    @property
    def unread(self) -> bool:
        """Whether nobody in this process reads along."""
        return self._users <= 1

    def abandon(self) -> bool:
        """Stop here, for whoever wants it next to go on from; False where somebody, here or elsewhere, reads along."""
        return not is_of_interest(self._fd) and self._stop(although_read=False)

    def hand_over(self) -> bool:
        """Stop here, for one of those who read along to go on from; False where nothing would prove the rest."""
        return leftover_record(self._fd, self._store.boot) is not None and self._stop(although_read=True)

    def hand_on(self) -> None:
        """Its leader's client has gone before there was an answer: claims begin again, with what was left over."""
        if not self.hand_over():
            self.renew()

    def _stop(self, although_read: bool) -> bool:
        with self._changed:
            if (self._users > 1 and not although_read) or self._window is not None or self.state.final:
                return False
        kept = leftover_record(self._fd, self._store.boot)
        self._end_growth(self._size - self._began_at if kept else 0)
        if kept is None:
            remove_part(self._place + PART_SUFFIX, self._fd)
            self._store.prune(self._place)
        self._over(self)
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        with self._changed:
            self.state = FillState.GONE  # only now: whoever claims again does not come back here
            self._changed.notify_all()
        return True

    def close(self) -> None:
        """The leader's last word, on every path; a fill that is not over by then has failed."""
        try:
            self._hashes.close()
        finally:
            self._finish(FillState.FAILED, "abandoned by its leader")
            self.detach()

    # The readers' side

    def attach(self) -> None:
        """Count a reader in, so that the file stays open for it; `detach` ends that."""
        with self._changed:
            self._users += 1

    def enter(self, reader: object) -> None:
        """An attached reader is going to want everything from the first octet on, as far as anybody knows."""
        with self._changed:
            self._place_reader(reader, self._positions.get(reader, 0))

    def detach(self, reader: object = None) -> None:
        """Count a user out; the last one closes the file."""
        with self._changed:
            self._users -= 1
            last = not self._users
            if self._positions.pop(reader, None) is not None:
                self._changed.notify_all()
        if last and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def wait_owned(self) -> Optional[Ownership]:
        """What `own` found out, None where it raised; it does file operations only, so this is soon."""
        with self._changed:
            self._changed.wait_for(lambda: self._owned, _OWNING_AT_MOST)
            return self._ownership

    def wait_head(self, patience: float) -> FillState:
        """The state once it is no longer ASKING, or ASKING after `patience` seconds."""
        with self._changed:  # under which is a poll that does not wait
            client_watch.wait_for(self._changed, lambda: self.state is not FillState.ASKING, patience)
            return self.state

    def ready(self, offset: int, patience: float) -> bool:
        """Wait until the octets at `offset` are there, or for `patience` seconds; whether they are.

        Raises FillFailed, Lost where they never will be.
        """
        with self._changed:
            arrived = self._wait_for_octets(offset, patience)
            if self.state.final and self.state not in _COMPLETE:
                raise self._ending()  # even if there are some: nobody needs half of it who has had nothing yet
            return arrived

    def available(self, offset: int) -> int:
        """Octets that are there from `offset` on, as far as a look without the lock can tell."""
        return self._released - offset

    def read_at(
        self, view: memoryview, offset: int, patience: float, reader: object = None, hesitate_for: float = 0.0
    ) -> int:
        """Octets from `offset` on as soon as there are any; 0 at the end of a complete object.

        Raises FillFailed where they will not come, or did not for `patience` seconds, and Lost where this reader has no
        way to them. A `reader` has no more use for what lies before its offset. In a crowd, it waits for many octets if
        they come within `hesitate_for` seconds.
        """
        # Without the lock, on which a crowd would wait for each other: this only grows, and as long as there is no
        # window all of it is on the disk. A position that is not up to date is a lower one then, which does no harm.
        if self.available(offset) >= len(view) and self._window is None:
            return read_octets(self._fd, view, offset)
        with self._changed:
            self._place_reader(reader, offset)
            if self._window is not None:
                self._changed.notify_all()
            arrived = self._wait_for_octets(offset, patience, hesitate_for)
            if self._window is not None and self._window.has_dropped(offset):
                self._positions.pop(reader, None)  # it goes on elsewhere, and nobody here waits for it
                self._changed.notify_all()
                raise Lost("the disk takes no more, and this reader is too slow to do without")
            available = self._released - offset
            if available <= 0:
                if self.state in _COMPLETE:
                    return 0
                raise self._ending() if arrived else FillFailed(f"nothing arrived for {patience:g} s")
            if self._window is not None:
                if offset >= self._window.first:
                    return self._window.read(view[:available], offset)
                available = min(available, self._window.beginning - offset)
        return read_octets(self._fd, view[:available], offset)

    @property
    def cause(self) -> object:
        """Why it failed, or is not kept."""
        return self._cause

    @property
    def size(self) -> int:
        """Octets written so far; for the leader alone."""
        return self._size

    # Innards

    def _place_reader(self, reader: object, offset: int) -> None:
        """Note where a reader is; the caller has the lock."""
        if len(self._positions) == CROWD and reader not in self._positions:
            self._changed.notify_all()  # from now on those who wait look by themselves
        self._positions[reader] = offset

    def _wait_for_octets(self, offset: int, patience: float, hesitate_for: float = 0.0) -> bool:
        """Until there are octets at `offset`, or never will be; False after `patience` seconds. The lock is held."""

        def arrived(count: int) -> bool:
            return self.state.final or self._released - offset >= (count if self._window is None else 1)

        return wait_for_bytes(
            self._changed, arrived, lambda: len(self._positions) > CROWD, patience, hesitate_for=hesitate_for
        )

    def _ending(self) -> Exception:
        """Why there will be no more octets."""
        return Lost("it was given up") if self.state is FillState.GONE else FillFailed(self._cause)

    def _start_over(self) -> None:
        """A fresh inode takes the name of what was left over. Raises Unstorable.

        Followers elsewhere who have read some of that see that it is gone, and are not given octets of something else.
        """
        fd, path = self._store.open_fresh(self._place)
        try:
            os.replace(path, self._place + PART_SUFFIX)
        except OSError as error:
            remove_part(path, fd)
            os.close(fd)
            raise Unstorable.of(error) from error
        os.close(self._fd)
        self._fd, self.leftover = fd, None

    def _write_to_disk(self, data: memoryview) -> int:
        """How many octets of `data` the disk has taken; what it has not is for the window, from now on."""
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], self._size + done)
        except OSError as error:
            self._leave_the_disk(str(reason_of(error)), done)
        return done

    def _look_at_room(self, growth: Growth, grown: int) -> None:
        reason = growth.objection(grown)
        if reason:
            self._leave_the_disk(reason, 0)

    def _leave_the_disk(self, reason: str, done: int) -> None:
        """Go on in memory: `done` bytes of the piece at hand have been written.

        Nobody may join who needs the beginning, and the room is of more use to others.
        """
        self._cause = reason
        self._store.trouble.warning("Goes on without the disk: %s: %s", shown(self._place), reason)
        remove_part(self._place + PART_SUFFIX, self._fd)
        self._end_growth(0)
        self._store.room.wish(self.length or 2 * self._size)
        self._over(self)
        with self._changed:
            self._window = Window(self._size + done)

    def _end_growth(self, kept: int) -> None:
        growth, self._growth = self._growth, None
        if growth is not None:
            growth.end(kept)

    def _write_to_memory(self, data: memoryview) -> None:
        """Append to the window as soon as its readers have made room, or have been too slow for that."""
        with self._changed:
            window = self._window
            assert window is not None

            def has_room() -> bool:
                assert window is not None
                window.drop_before(min(self._positions.values(), default=window.end))
                return window.size + len(data) <= WINDOW_LIMIT

            before = dict(self._positions)
            while not self._changed.wait_for(has_room, _LAGGARD_PATIENCE):
                # Whoever reads nothing for so long is given up, for the sake of those who do.
                for reader in [one for one, at in before.items() if self._positions.get(one) == at < window.end]:
                    del self._positions[reader]
                before = dict(self._positions)
            if not self._positions and self._users <= 1:
                raise FillFailed("the disk is full, and nobody reads it")
            window.append(data)

    def _put_in_place(self) -> bool:
        """Rename the file into its place, with its record; whether that could be done."""
        assert self.metadata is not None
        try:
            if not is_file(self._place + PART_SUFFIX, self._fd):
                raise Unstorable("its file was taken away")  # what has that name now is somebody else's
            late, boot = self._hashes.late, self._store.boot
            sha256 = "" if late else self._hashes.sha256
            self._store.write_record(self._fd, Record(self.metadata, self._size, sha256, boot=boot, unhashed=late))
            # The alias first: whoever finds the object finds out from where, and need not ask the origin again.
            if self._alias is not None and self._digest is not None:
                self._store.write_alias(self._alias, self._digest, self.metadata)
            self._published_at = self._store.put_in_place(self._place)
        except (OSError, Unstorable) as error:
            self._cause = reason_of(error)
            self._store.trouble.warning("Cannot keep %s: %s", shown(self._place), self._cause)
            return False
        return True

    def _hash_the_rest(self) -> None:
        try:
            self.catch_up()
            self._store.note_hash(self._fd, self._hashes.sha256)
        except (FillFailed, Lost):
            if is_file(self._published_at, self._fd):
                self._store.remove(self._published_at)
            raise
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _try_own(self) -> Optional[Ownership]:
        """One attempt at `own`; None where the file was not the one to own, and another attempt is due."""
        part = self._place + PART_SUFFIX
        fd = self._store.open_part(self._place)
        ownership = None
        try:
            if not try_lock(fd):
                ownership = Ownership.FOREIGN
            elif not is_file(part, fd):
                pass  # its last owner has just renamed or removed it
            elif self._published_meanwhile():
                os.unlink(part)
                ownership = Ownership.PUBLISHED
            elif is_blank(fd):
                ownership = Ownership.MINE
            else:
                self.leftover = self._what_is_left(fd)
                if self.leftover is None:
                    os.unlink(part)  # a fresh inode carries nothing of it over
                else:
                    ownership = Ownership.MINE
        except OSError as error:
            raise Unstorable.of(error) from error
        finally:
            if ownership is Ownership.MINE:
                self._fd = fd
            else:
                os.close(fd)
        return ownership

    def _what_is_left(self, fd: int) -> Optional[Leftover]:
        record = leftover_record(fd, self._store.boot)
        if record is None:
            return None
        # It is not for followers before its origin has spoken.
        self._store.write_record(fd, replace(record, asking=True))
        # All of it may be there: then the last octet is asked for, to find out whether the object is still the same.
        return Leftover(record.metadata, record.length, min(os.fstat(fd).st_size, record.length - 1))

    def _published_meanwhile(self) -> bool:
        entry = self._store.open_entry(self._place)
        if entry is None:
            return False
        try:
            return entry.version != self._beyond
        finally:
            entry.close()

    def _verify(self) -> None:
        if self.length is not None and self._size != self.length:
            raise FillFailed(f"{self._size} octets instead of {self.length}")
        if self._digest is not None and self._hashes.check != self._digest.hex:
            raise DigestMismatch(f"its octets have not the digest {self._digest}")

    def _finish(self, state: FillState, cause: object = None) -> None:
        with self._changed:
            if self.state.final:
                return
        kept = state is FillState.FAILED and self.state is FillState.ASKING and self.leftover is not None
        if state is not FillState.PUBLISHED and not kept and self._fd >= 0:
            remove_part(self._place + PART_SUFFIX, self._fd)
            self._store.prune(self._place)
        self._end_growth(self._size - self._began_at if state is FillState.PUBLISHED else 0)
        self._over(self)
        unhashed = state is FillState.PUBLISHED and self._hashes.late
        if self._fd >= 0 and not unhashed:  # else everybody sees by the lock that the hash is coming
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        with self._changed:
            if state in _COMPLETE:  # only now: whoever has the whole object finds it in its place, and no fill of it
                self._released = self.length = self._size
            self.state, self._cause = state, cause or self._cause
            self._changed.notify_all()
