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

from store import ATIME_GRAIN, Identity, identity_of

SMALL = 64 * 1024  # octets; beyond that, sending costs more than understanding

_REMEMBERED_AT_MOST = 2048  # requests; then it begins anew
_REQUEST_AT_MOST = 2048  # octets


@dataclass(frozen=True)
class PlainHit:
    """A fresh object that was sent whole: its files as they were then, the first with its octets.

    `born_at` is when its age was 0, `fresh_until` is infinity for one that never changes; both and `fetched_at` are in
    seconds since the epoch.
    """

    identities: Tuple[Tuple[str, Identity], ...]
    url: str
    born_at: float
    fetched_at: float
    fresh_until: float


@dataclass(frozen=True)
class Answer:
    """Head and body as they are to be sent, and what to say of them in the log."""

    octets: bytes
    length: int
    url: str
    note: str


@dataclass(frozen=True)
class _Remembered:
    hit: PlainHit
    size: int
    before_age: bytes
    after_age: bytes
    after_ttl: bytes


_HOLES = re.compile(rb"(.*\r\nAge: )[0-9]+(\r\n.*\r\nCache-Status: dduct; hit)(?:; ttl=[0-9]+)?(\r\n.*)", re.DOTALL)


class Hot:
    """What was answered lately. Single operations on the dictionary are atomic; a lost one costs a little time."""

    def __init__(self) -> None:
        self._known: Dict[Tuple[str, bytes], _Remembered] = {}

    def answer(self, kind: str, request: bytes) -> Optional[Answer]:
        """The answer to a request on a `kind` of connection, if it is known and still right."""
        known = self._known.get((kind, request))
        if known is None:
            return None
        now = time.time()
        hit = known.hit
        body = _read(known, now) if hit.fetched_at <= now < hit.fresh_until else None
        if body is None:
            self._known.pop((kind, request), None)
            return None
        note = "hit"
        if hit.fresh_until != float("inf"):
            note = f"hit; ttl={int(hit.fresh_until - now)}"
        age = b"%d" % int(now - hit.born_at)
        head = (known.before_age, age, known.after_age, note[len("hit") :].encode(), known.after_ttl)
        return Answer(b"".join((*head, body)), known.size, hit.url, note)

    def remember(self, kind: str, request: bytes, head: bytes, hit: PlainHit) -> None:
        """A request was answered with this head, and with the whole of this object."""
        holes = _HOLES.fullmatch(head)
        if holes is None or len(request) > _REQUEST_AT_MOST:
            return
        if len(self._known) >= _REMEMBERED_AT_MOST:
            self._known.clear()
        size = hit.identities[0][1][2]
        self._known[kind, request] = _Remembered(hit, size, *holes.groups())


def _read(known: _Remembered, now: float) -> Optional[bytes]:
    """The body, if nothing has happened to its file since."""
    (place, identity), *others = known.hit.identities
    try:
        if any(identity_of(os.stat(other)) != expected for other, expected in others):
            return None
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if identity_of(status) != identity or now - status.st_atime > ATIME_GRAIN:
            return None
        body = os.pread(fd, known.size, 0)
    except OSError:
        return None
    finally:
        os.close(fd)
    return body if len(body) == known.size else None
