"""Responses in memory, sent again without parsing the request again.

A request with the same bytes, on a connection of the same kind, gets the same response as the one before while the
files are unchanged and the object is fresh: a small unrestricted object, of which the request wanted the whole.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from storage.disk_watch import SLOW, DiskWatch
from storage.entry import FileIdentity, identity_of
from storage.record import Unstorable
from storage.store import ATIME_GRAIN

SMALL = 64 * 1024  # bytes; for a larger object, sending costs more than parsing

_MAX_REMEMBERED = 2048  # requests; then all are dropped
_MAX_REQUEST = 2048  # bytes
_MAX_HELD = 32 * 1024 * 1024  # bytes of bodies in memory; then all are dropped


@dataclass(frozen=True)
class CacheableHit:
    """A fresh object that was sent whole; `identities`: its files at that time, the first with its bytes.

    `born_at`: when its age was 0; `fresh_until`: infinite if it never changes; `until`: when the request has to be
    parsed again. These and `fetched_at` are in seconds since the epoch. `guessed`: its lifetime is heuristic. `name`:
    its name in the cache.
    """

    identities: Tuple[Tuple[str, FileIdentity], ...]
    url: str
    born_at: float
    fetched_at: float
    fresh_until: float
    until: float
    guessed: bool
    name: str


@dataclass(frozen=True)
class Answer:
    """Head and body as sent, and what the log says of them."""

    data: bytes
    length: int
    url: str
    note: str
    hit: CacheableHit


@dataclass
class _Remembered:
    """The response to a request, without Age and ttl. `rendered`: age, ttl, and the response as last sent.

    `validated_at`: the last poll iteration that found the response valid.
    """

    hit: CacheableHit
    size: int
    before_age: bytes
    after_age: bytes
    after_ttl: bytes
    rendered: Optional[Tuple[int, int, Answer]] = None
    validated_at: Optional[float] = None


_RENDERED = re.compile(rb"(.*\r\nAge: )[0-9]+(\r\n.*\r\nCache-Status: dduct; hit)(?:; ttl=[0-9]+)?(\r\n.*)", re.DOTALL)
_FOR_EVER = -1


class MemoryCache:
    """Recent responses. Single operations on the dictionary are atomic; a lost one costs a little time."""

    def __init__(self, disk: DiskWatch) -> None:
        self._disk = disk
        self._known: Dict[Tuple[str, bytes], _Remembered] = {}
        self._held = 0  # bytes of bodies in memory, approximately

    def answer(self, kind: str, request: bytes, may_read: bool, iteration: Optional[float] = None) -> Optional[Answer]:
        """The response to a request on a `kind` of connection, if it is known and still valid.

        `may_read`: its body may be read from the disk if it is not in memory. A response stays valid for its whole
        poll `iteration`: all requests of the iteration had begun to arrive before it was validated.
        """
        if iteration is None and (kind, request) in self._known:
            try:
                with self._disk.operation():
                    return self._answer(kind, request, may_read, iteration)
            except Unstorable:
                return None
        return self._answer(kind, request, may_read, iteration)

    def _answer(self, kind: str, request: bytes, may_read: bool, iteration: Optional[float]) -> Optional[Answer]:
        known = self._known.get((kind, request))
        if known is None or (known.rendered is None and not may_read):
            return None
        if iteration is not None and known.validated_at == iteration and known.rendered is not None:
            return known.rendered[2]
        now = time.time()
        hit = known.hit
        if iteration is not None and self._disk.is_slow(iteration):
            return None  # the poller's thread does not wait for a slow disk
        if iteration is None:
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
                return None  # meanwhile the object may have become stale
        if not unchanged:
            self._forget(kind, request)
            return None
        age = int(now - hit.born_at)
        ttl = _FOR_EVER if hit.fresh_until == float("inf") else int(hit.fresh_until - now)
        known.validated_at = iteration
        if known.rendered is not None and known.rendered[:2] == (age, ttl):
            return known.rendered[2]
        return self._say(known, age, ttl)

    def remember(self, kind: str, request: bytes, head: bytes, hit: CacheableHit) -> None:
        """Note that a request was answered with this head and the whole of this object."""
        pieces = _RENDERED.fullmatch(head)
        if pieces is None or len(request) > _MAX_REQUEST:
            return
        self._forget(kind, request)
        if len(self._known) >= _MAX_REMEMBERED:
            self._drop_all()
        size = hit.identities[0][1][2]
        before_age, after_age, after_ttl = pieces.groups()
        self._known[kind, request] = _Remembered(hit, size, before_age, after_age, after_ttl)

    def _say(self, known: _Remembered, age: int, ttl: int) -> Optional[Answer]:
        body = _read(known) if known.rendered is None else _body(known.rendered[2])
        if body is None:
            return None
        rest = b"" if ttl == _FOR_EVER else b"; ttl=%d" % ttl
        data = b"".join((known.before_age, b"%d" % age, known.after_age, rest, known.after_ttl, body))
        answer = Answer(data, known.size, known.hit.url, "hit" + rest.decode(), known.hit)
        if known.rendered is None:
            if self._held + known.size > _MAX_HELD:
                self._drop_all()
                return answer
            self._held += known.size
        known.rendered = (age, ttl, answer)
        return answer

    def _forget(self, kind: str, request: bytes) -> None:
        known = self._known.pop((kind, request), None)
        if known is not None and known.rendered is not None:
            self._held -= known.size

    def _drop_all(self) -> None:
        self._known.clear()
        self._held = 0


def _unchanged(hit: CacheableHit, now: float) -> bool:
    """Whether the object is fresh, its files are unchanged, and its access time needs no update."""
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
    """The body, if the file is still the same one."""
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
    return answer.data[len(answer.data) - answer.length :]
