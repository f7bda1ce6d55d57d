"""A small stored object as it is sent again and again, and the requests that it answers.

Rules of this module:

* A `SmallHit` answers only requests that are alike for its purpose: GET of the whole, no credentials, no condition. All
  others take the path of every request (`fetching/cached_fetch`), which gives them the same bytes.
* Only the age and the remaining lifetime differ between two responses.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import NamedTuple, Optional, Tuple, Union

from cache import Hit
from fetching.naming import Name
from fetching.stored_metadata import as_stored_once, assess, scope
from monitoring.metrics import Counter
from monitoring.redaction import shown
from net.addresses import Reach, Scope, may_reach
from protocol import freshness, http1
from protocol.freshness import Basis, FreshnessRules
from protocol.headers import Headers
from protocol.http1 import RequestHead, Target
from storage.entry import FileIdentity, identity_of
from storage.glance import ATIME_GRAIN, Glance

SMALL = 64 * 1024  # bytes; for a larger object, sending costs more than parsing

_FOR_EVER = -1
_NEVER = -2  # an age that no response has


class PlainRequest(NamedTuple):
    """A GET for the whole of an object, without credentials, conditions and cache directives of its own.

    `received`: its target, as received. `base`: that target; of one without an authority, its origin. `sent`: the
    fields that an origin would get, for Vary. `bare`: its URL without its query. `reach`: what of dduct's machine its
    client may reach. Hits need nothing else, so all else is made where it is asked for.
    """

    received: bytes
    base: Target
    headers: Headers
    name: Name
    bare: str
    sent: Headers
    reach: Reach

    @property
    def head(self) -> RequestHead:
        """The request's head."""
        return RequestHead(b"GET", self.received, 1, self.headers)

    @property
    def target(self) -> Target:
        """The request's target."""
        if not self.received.startswith(b"/"):
            return self.base
        return http1.parse_origin_form(self.received, self.base.scheme, self.base.authority)


class Answer(NamedTuple):
    """Head and body as sent, and what the log says of them.

    `length`: of the body. `guessed`: the lifetime of its object is heuristic. `continues`: a range was asked for, which
    only continues a broken transfer. `counter` counts the request.
    """

    data: Union[bytes, bytearray]
    length: int
    bare: str
    note: str
    name: str
    guessed: bool
    method: str = "GET"
    status: int = 200
    counter: Counter = Counter.HITS
    continues: bool = False

    @property
    def may_be_doubted(self) -> bool:
        """Whether a client that got the whole of the object not long ago may have found it outdated."""
        return self.guessed and self.method == "GET" and not self.continues

    @property
    def delivers(self) -> bool:
        """Whether a client gets the whole of an object that it may find outdated."""
        return self.guessed and self.method == "GET" and self.status == 200

    @property
    def url(self) -> str:
        """The URL for the log."""
        return shown(self.bare)


@dataclass
class SmallHit:
    """An unrestricted, fresh object; `identities`: its files, the first with its bytes.

    `first_age`: its age at `fetched_at`; `fresh_until`: infinite if it never changes; `until`: when the request has to
    be decided again. These and `fetched_at` are in seconds since the epoch. `validated_at`: the last poll iteration
    that found it unchanged. `fields`: the lines of the stored fields. `via`: dduct's own entry in Via. `last`: age,
    ttl, and the response as last sent, which ends in the `length` bytes of the body.
    """

    name: Name
    bare: str
    identities: Tuple[Tuple[str, FileIdentity], ...]
    vary: Tuple[Tuple[str, str], ...]
    scope: Scope
    fields: bytes
    via: bytes
    length: int
    first_age: float
    fetched_at: float
    fresh_until: float
    until: float
    guessed: bool
    last: Tuple[int, int, Answer] = field(repr=False)
    validated_at: Optional[float] = None

    def unchanged(self, now: float) -> bool:
        """Whether the object is fresh, its files are unchanged, and its access time needs no update."""
        if not self.fetched_at <= now < self.until:
            return False
        try:
            for position, (place, identity) in enumerate(self.identities):
                status = os.stat(place)
                if identity_of(status) != identity:
                    return False
                if not position and now - status.st_atime > ATIME_GRAIN:
                    return False
        except OSError:
            return False
        return True

    def answer(self, now: float) -> Answer:
        """The response at this time."""
        age = int(self.first_age + max(0.0, now - self.fetched_at))
        ttl = _FOR_EVER if self.fresh_until == float("inf") else int(self.fresh_until - now)
        last = self.last
        if last[0] == age and last[1] == ttl:
            return last[2]
        note = "hit" if ttl == _FOR_EVER else f"hit; ttl={ttl}"
        body = last[2].data[len(last[2].data) - self.length :]
        data = _head(self.fields, age, self.length, self.via, note) + body
        answer = Answer(data, self.length, self.bare, note, self.name.path, self.guessed)
        self.last = (age, ttl, answer)
        return answer

    def suits(self, request: PlainRequest) -> bool:
        """Whether it is for such requests (Vary) and clients; the path of the name is the same already."""
        if self.name is not request.name and self.name != request.name:
            return False
        if self.scope is not Scope.ALL and not may_reach(request.reach, self.scope):
            return False
        return not self.vary or not freshness.varies(request.sent, self.vary)


def may_be_small(hit: Hit) -> bool:
    """Whether the object of a hit may become a `SmallHit`, as far as this does not depend on the request."""
    return may_be_granted(hit) and hit.metadata is not None and not hit.metadata.restricted


def may_be_granted(hit: Hit) -> bool:
    """Whether the poller's thread may answer with the object of a hit, if this client is permitted to have it."""
    entry, metadata = hit.entry, hit.metadata
    if metadata is None or not entry.trusted or entry.record.length > SMALL:
        return False
    return not metadata.must_validate


def make(
    hit: Hit, request: PlainRequest, body: bytearray, via: bytes, rules: FreshnessRules, looked_at: float
) -> Optional[SmallHit]:
    """The object as it is sent; None where it is not fresh, or has to be validated with each request.

    `looked_at`: when an object with a guessed lifetime is to be validated in the background.
    """
    now, metadata = time.time(), hit.metadata
    assert metadata is not None
    stored = as_stored_once(metadata)
    assessment = assess(request.head, request.name, hit.entry.record, stored, rules, now, now)
    if not assessment.usable or assessment.ttl <= 0 or assessment.basis is Basis.VOLATILE:
        return None
    if metadata.fetched_at > now:
        return None  # by a clock that was ahead: it would be looked up again each time
    guessed = assessment.basis is Basis.HEURISTIC
    fresh_until = assessment.ttl + assessment.age + metadata.fetched_at - metadata.age
    return SmallHit(
        name=request.name,
        bare=request.bare,
        identities=hit.identities,
        vary=metadata.vary,
        scope=scope(metadata),
        fields=http1.field_lines(stored.fields),
        via=via,
        length=len(body),
        first_age=metadata.age,
        fetched_at=metadata.fetched_at,
        fresh_until=fresh_until,
        until=min(fresh_until, looked_at) if guessed else fresh_until,
        guessed=guessed,
        last=(_NEVER, _NEVER, Answer(body, len(body), request.bare, "", request.name.path, guessed)),
    )


def first_answer(
    seen: Glance, request: PlainRequest, via: bytes, rules: FreshnessRules, now: float
) -> Optional[Answer]:
    """The response with what was seen at a glance, for this one time; None where `made_of` would give none.

    An object with a guessed lifetime may be due for a validation: the caller knows.
    """
    summary, digest = seen.summary, request.name.digest
    if summary.fetched_at > now:
        return None
    age = summary.age + now - summary.fetched_at
    if digest is None:
        ttl = summary.lifetime.under(rules) - age
        if ttl <= 0:
            return None
        note = f"hit; ttl={int(ttl)}"
    else:
        note = "hit"
    scope = _scope_of(seen)
    if scope is not Scope.ALL and not may_reach(request.reach, scope):
        return None
    length = len(seen.body)
    data = _head(summary.fields, int(age), length, via, note) + seen.body
    guessed = digest is None and summary.lifetime.stated is None
    return Answer(data, length, request.bare, note, request.name.path, guessed)


def _scope_of(seen: Glance) -> Scope:
    summary = seen.summary
    return Scope.LOCAL_ONLY if summary.near else Scope.OWN_ADDRESS if summary.own else Scope.ALL


def made_of(seen: Glance, request: PlainRequest, via: bytes, rules: FreshnessRules, now: float) -> Optional[SmallHit]:
    """Like `make`, for what was seen at a glance; None where `make` would give none, or where it takes the record.

    An object with a guessed lifetime has `until` for its end of that; the caller knows when it is to be validated.
    """
    summary, name = seen.summary, request.name
    fetched_at, age = summary.fetched_at, summary.age
    if fetched_at > now:
        return None
    lifetime = float("inf") if name.digest is not None else summary.lifetime.under(rules)
    fresh_until = fetched_at - age + lifetime
    if fresh_until <= now:
        return None
    length = len(seen.body)
    guessed = summary.lifetime.stated is None and name.digest is None
    return SmallHit(
        name=name,
        bare=request.bare,
        identities=seen.identities,
        vary=(),
        scope=_scope_of(seen),
        fields=summary.fields,
        via=via,
        length=length,
        first_age=age,
        fetched_at=fetched_at,
        fresh_until=fresh_until,
        until=fresh_until,
        guessed=guessed,
        last=(_NEVER, _NEVER, Answer(seen.body, length, request.bare, "", name.path, guessed)),
    )


def _head(fields: bytes, age: int, length: int, via: bytes, note: str) -> bytes:
    """The head of a response with the stored `fields`; `Reply.send_head` has the same fields in the same order."""
    return b"".join(
        (
            b"HTTP/1.1 200 OK\r\n",
            fields,
            f"Accept-Ranges: bytes\r\nAge: {age}\r\nContent-Length: {length}\r\nVia: ".encode(),
            via,
            f"\r\nCache-Status: dduct; {note}\r\n\r\n".encode(),
        )
    )
