"""Negative answers: 404, 410 and permanent redirects that state how long they are good, kept in memory for that time.

Rules of this module:

* What ends an answer early changes the mark of its name: a request that may have changed what is there, a fill that
  has begun, a reload. An answer counts under the mark that was read before its origin was asked, and under no other.
* An answer is for requests that are alike. Fields by which some origins choose, without a word in Vary, have to be
  equal: one client with an odd field must not make others believe that an object is not there.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Callable, List, NamedTuple, Optional, Tuple

from fetching.naming import VARIANT
from fetching.shared_answers import LONGEST, Mark, SharedAnswers
from monitoring.details import Detail, with_detail
from net.addresses import Scope
from protocol import freshness
from protocol.freshness import FieldText, Stored
from protocol.headers import Field, Headers

MAX_BODY = 16 * 1024  # bytes
_CHOOSING = (b"accept", b"accept-charset", b"accept-language", b"origin", b"referer", b"user-agent")


class Asked(NamedTuple):
    """When an origin was asked, in seconds since the epoch, and the mark of the object's name then."""

    at: float
    mark: Mark


@dataclass(frozen=True)
class Negative:
    """A response without an object; `vary`: the request's fields on which it depended.

    `scope`: of what it came from. `until`: when it has to be asked for again, in seconds since the epoch.
    """

    status: int
    stored: Stored
    body: bytes
    vary: Tuple[FieldText, ...]
    scope: Scope
    until: float

    def fields(self, now: float) -> List[Field]:
        """Its fields as they are sent at this time."""
        return [*self.stored.fields, (b"Age", b"%d" % int(self.stored.age(now)))]

    def note(self, now: float) -> str:
        """Cache-Status of a response from memory."""
        return with_detail(f"hit; ttl={int(self.until - now)}", Detail.NEGATIVE)


class NegativeAnswers:
    """The negative answers under one configuration.

    `rules` tells it apart from others, in all processes alike. `limit`: seconds for which an answer is kept at most; 0
    for none.
    """

    def __init__(
        self, shared: SharedAnswers, limit: float, rules: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        self._shared = shared
        self.limit = limit
        self._rules = rules
        self._clock = clock

    def asking(self, name: str) -> Asked:
        """To be called before an origin is asked for the object of a name."""
        return Asked(self._clock(), self._shared.mark(_base(name)))

    def forget(self, name: str) -> None:
        """The object of a name may be there from now on: no answer to an earlier question says that it is not."""
        self._shared.forget(_base(name))

    def any(self) -> bool:
        """Whether there may be an answer at all: a quick look."""
        return bool(self.limit) and self._shared.any(self._clock())

    def find(self, name: str, sent: Headers) -> Optional[Negative]:
        """The answer to a request without credentials, of which its origin would get the fields `sent`."""
        if not self.any():
            return None
        like = _like(sent)
        data = self._shared.get((name, like))
        if data is None:
            return None
        of, answer = _decoded(data)
        if of != [name, list(like), self._rules, list(self._shared.mark(_base(name)))]:
            return None
        # A time in the future comes from a clock that was set back since.
        now = self._clock()
        current = answer.stored.fetched_at <= now < answer.until
        return answer if current and not freshness.varies(sent, answer.vary) else None

    def keep(self, name: str, sent: Headers, answer: Negative, asked: Asked) -> bool:
        """Keep the answer to such a request; False where it is too long, or outdated already."""
        if asked.mark != self._shared.mark(_base(name)):
            return False
        like = _like(sent)
        data = _encoded([name, list(like), self._rules, list(asked.mark)], answer)
        if len(data) > LONGEST:
            return False
        self._shared.put((name, like), data, answer.until)
        return True


def _base(name: str) -> str:
    """The name without what its client accepts: an upload ends the answers to all clients."""
    return name.partition(VARIANT)[0]


def _like(sent: Headers) -> Tuple[str, ...]:
    return tuple((sent.get(name) or b"").decode("latin-1") for name in _CHOOSING)


def _encoded(of: List[object], answer: Negative) -> bytes:
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.stored.fields]
    times = answer.stored.fetched_at, answer.stored.initial_age, answer.until
    head = json.dumps([of, answer.status, fields, answer.vary, answer.scope, times]).encode()
    return head + b"\n" + answer.body  # JSON has no line break of its own


def _decoded(data: bytes) -> Tuple[List[object], Negative]:
    head, _, body = data.partition(b"\n")
    of, status, fields, vary, scope, (fetched_at, age, until) = json.loads(head)
    headers = Headers([(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields])
    varies = tuple((name, value) for name, value in vary)
    return of, Negative(status, Stored(headers, fetched_at, age), body, varies, Scope(scope), until)
