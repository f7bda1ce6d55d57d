"""Answers that may be given again without looking at the request again.

A request with the same octets, on a connection of the same kind, gets the same answer as the one before, as long as the
files are the same and the object is fresh: a small one that is anybody's, and that the request wanted as it is.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from storage.disk_watch import SLOW, DiskWatch
from storage.store import ATIME_GRAIN, Identity, Unstorable, identity_of

SMALL = 64 * 1024  # octets; beyond that, sending costs more than understanding

_REMEMBERED_AT_MOST = 2048  # requests; then it begins anew
_REQUEST_AT_MOST = 2048  # octets
_HELD_AT_MOST = 32 * 1024 * 1024  # octets of answers in memory; then it begins anew


@dataclass(frozen=True)
class PlainHit:
    """A fresh object that was sent whole: its files as they were then, the first with its octets.

    `born_at` is when its age was 0, `fresh_until` is infinity for one that never changes; both and `fetched_at` are in
    seconds since the epoch, as is `until`, when the request is to be looked at again. `guessed`: its origin does not
    say how long it is fresh. `name` is what it is called in the cache.
    """

    identities: Tuple[Tuple[str, Identity], ...]
    url: str
    born_at: float
    fetched_at: float
    fresh_until: float
    until: float
    guessed: bool
    name: str


@dataclass(frozen=True)
class Answer:
    """Head and body as they are to be sent, and what to say of them in the log."""

    octets: bytes
    length: int
    url: str
    note: str
    hit: PlainHit


@dataclass
class _Remembered:
    """A request's answer, but for its age and the rest of its life; `said` is how it was when it was given last.

    And `right_in` is the turn in which that was found to be right.
    """

    hit: PlainHit
    size: int
    before_age: bytes
    after_age: bytes
    after_ttl: bytes
    said: Optional[Tuple[int, int, Answer]] = None
    right_in: Optional[float] = None


_HOLES = re.compile(rb"(.*\r\nAge: )[0-9]+(\r\n.*\r\nCache-Status: dduct; hit)(?:; ttl=[0-9]+)?(\r\n.*)", re.DOTALL)
_FOR_EVER = -1


class Hot:
    """What was answered lately. Single operations on the dictionary are atomic; a lost one costs a little time."""

    def __init__(self, disk: DiskWatch) -> None:
        self._disk = disk
        self._known: Dict[Tuple[str, bytes], _Remembered] = {}
        self._held = 0  # octets in memory, more or less

    def answer(self, kind: str, request: bytes, may_read: bool, turn: Optional[float] = None) -> Optional[Answer]:
        """The answer to a request on a `kind` of connection, if it is known and still right.

        `may_read`: its body may be read from the disk if it is not in memory yet. What was right once in a `turn`
        is right for the rest of it: all its requests had begun to arrive before.
        """
        if turn is None and (kind, request) in self._known:
            try:
                with self._disk.operation():
                    return self._answer(kind, request, may_read, turn)
            except Unstorable:
                return None
        return self._answer(kind, request, may_read, turn)

    def _answer(self, kind: str, request: bytes, may_read: bool, turn: Optional[float]) -> Optional[Answer]:
        known = self._known.get((kind, request))
        if known is None or (known.said is None and not may_read):
            return None
        if turn is not None and known.right_in == turn and known.said is not None:
            return known.said[2]
        now = time.time()
        hit = known.hit
        if turn is not None and self._disk.is_slow(turn):
            return None  # the thread of all connections does not wait for a disk
        if turn is None:
            unchanged = _unchanged(hit, now)
        else:
            self._disk.polling = now
            try:
                unchanged = _unchanged(hit, now)
            finally:
                self._disk.polling = None
            took = time.time() - now
            if took > SLOW:
                self._disk.note(took)
                return None  # while that lasted it may have become too old
        if not unchanged:
            self._forget(kind, request)
            return None
        age = int(now - hit.born_at)
        ttl = _FOR_EVER if hit.fresh_until == float("inf") else int(hit.fresh_until - now)
        known.right_in = turn
        if known.said is not None and known.said[:2] == (age, ttl):
            return known.said[2]
        return self._say(known, age, ttl)

    def remember(self, kind: str, request: bytes, head: bytes, hit: PlainHit) -> None:
        """A request was answered with this head, and with the whole of this object."""
        holes = _HOLES.fullmatch(head)
        if holes is None or len(request) > _REQUEST_AT_MOST:
            return
        self._forget(kind, request)
        if len(self._known) >= _REMEMBERED_AT_MOST:
            self._begin_anew()
        size = hit.identities[0][1][2]
        before_age, after_age, after_ttl = holes.groups()
        self._known[kind, request] = _Remembered(hit, size, before_age, after_age, after_ttl)

    def _say(self, known: _Remembered, age: int, ttl: int) -> Optional[Answer]:
        body = _read(known) if known.said is None else _body(known.said[2])
        if body is None:
            return None
        rest = b"" if ttl == _FOR_EVER else b"; ttl=%d" % ttl
        octets = b"".join((known.before_age, b"%d" % age, known.after_age, rest, known.after_ttl, body))
        answer = Answer(octets, known.size, known.hit.url, "hit" + rest.decode(), known.hit)
        if known.said is None:
            if self._held + known.size > _HELD_AT_MOST:
                self._begin_anew()
                return answer
            self._held += known.size
        known.said = (age, ttl, answer)
        return answer

    def _forget(self, kind: str, request: bytes) -> None:
        known = self._known.pop((kind, request), None)
        if known is not None and known.said is not None:
            self._held -= known.size

    def _begin_anew(self) -> None:
        self._known.clear()
        self._held = 0


def _unchanged(hit: PlainHit, now: float) -> bool:
    """Whether it is fresh, and nothing has happened to its files; one that was long not asked for is to be touched."""
    if not hit.fetched_at <= now < hit.until:
        return False
    try:
        for place, identity in hit.identities:
            status = os.stat(place)
            if identity_of(status) != identity:
                return False
            if identity is hit.identities[0][1] and now - status.st_atime > ATIME_GRAIN:
                return False
    except OSError:
        return False
    return True


def _read(known: _Remembered) -> Optional[bytes]:
    """The body, from the very file that was meant."""
    place, identity = known.hit.identities[0]
    try:
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        body = os.pread(fd, known.size, 0) if identity_of(os.fstat(fd)) == identity else b""
    except OSError:
        return None
    finally:
        os.close(fd)
    return body if len(body) == known.size else None


def _body(answer: Answer) -> bytes:
    return answer.octets[len(answer.octets) - answer.length :]
