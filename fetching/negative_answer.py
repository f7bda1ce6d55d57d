"""The negative answer to one request: kept when its origin has given it, and sent again.

RFC 9111 as for stored objects: only what states its lifetime, for requests without credentials. A stored object is
always better, so it is looked for first.
"""

from __future__ import annotations

import time
from typing import Optional

from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.negative import MAX_BODY, Asked, Negative
from fetching.small_hit import Answer, PlainRequest
from monitoring.metrics import Counter
from net.addresses import Reach, may_reach
from net.response import Reply, head_fields
from protocol import freshness, http1
from protocol.freshness import Stored
from protocol.headers import Headers
from protocol.http1 import BodyFraming, Framing, Target
from storage.record import Unstorable
from upstream.exchange import Exchange

_WAIT = 1.0  # seconds for a body; a longer one is relayed as it comes


class NegativeAnswer:
    """Answers one request, which arrived at `arrived_at` (seconds since the epoch), if a negative answer is kept."""

    def __init__(self, services: Services, reply: Reply, request: CacheableRequest, arrived_at: float) -> None:
        self._services = services
        self._reply = reply
        self._request = request
        self._arrived_at = arrived_at

    def asking(self) -> Asked:
        """To be called before the origin is asked."""
        return self._services.negatives.asking(self._request.key.name)

    def send_known(self) -> bool:
        """Answer, if no object is stored; False where the cache or the origin has to answer."""
        answer = self.find()
        if answer is None:
            return False
        try:
            hit = self._services.cache.lookup(self._request.key)
        except Unstorable:
            return False  # the claim finds the same, and says so
        if hit is not None:
            hit.entry.close()
            return False
        self.send(answer, answer.note(time.time()))
        return True

    def find(self) -> Optional[Negative]:
        """The answer that this request may have, whatever is stored."""
        request = self._request
        if not self._services.negatives.any() or request.credentials:
            return None
        answer = self._services.negatives.find(request.key.name, request.sent.headers)
        if answer is None or not _is_for(self._services, answer, request.reach, request.target):
            return None
        now = time.time()
        assessment = freshness.assess(request.head, answer.stored, request.rules, now, self._arrived_at)
        return answer if assessment.usable else None

    def send(self, answer: Negative, note: str) -> None:
        """Send an answer; `note` is its Cache-Status. Conditions and ranges do not matter (RFC 9110 §13.2.1, §14.2)."""
        reply = self._reply
        self._services.counters.add(Counter.NEGATIVE)
        reply.note = note
        reply.send_head(answer.status, answer.fields(time.time()), len(answer.body), hold=True)
        if reply.has_body and answer.body:
            reply.write(memoryview(answer.body))
        reply.finish()


def answer_plain(services: Services, request: PlainRequest) -> Optional[Answer]:
    """The answer of the poller's thread to a request whose object is not stored: as `NegativeAnswer` would send it."""
    answer = services.negatives.find(request.name.path, request.sent)  # a quick look where none is kept
    if answer is None or not _is_for(services, answer, request.reach, request.base):
        return None
    now = time.time()
    length, note = len(answer.body), answer.note(now)
    framing = BodyFraming(Framing.LENGTH, length)
    fields = head_fields(answer.fields(now), answer.status, framing, length, False, services.via, note)
    data = http1.serialise_response(answer.status, b"", fields) + answer.body
    name = request.name.path
    return Answer(data, length, request.bare, note, name, False, status=answer.status, counter=Counter.NEGATIVE)


def may_be_kept(services: Services, exchange: Exchange, asked: Asked) -> bool:
    """Whether an origin's response may be kept, as far as its head shows."""
    return (exchange.body.length or 0) <= MAX_BODY and _seconds(services, exchange, asked, time.time()) > 0


def keep(services: Services, request: CacheableRequest, exchange: Exchange, asked: Asked) -> Optional[Negative]:
    """Keep an origin's response to the request for the whole; None where it is none of those that are kept.

    Its body can still be read. Waits for it, for a moment. Raises ClientGone.
    """
    head, now = exchange.head, time.time()
    seconds = _seconds(services, exchange, asked, now)
    if not seconds or request.name.volatile or request.credentials:
        return None
    body = exchange.body.ahead(MAX_BODY, _WAIT)
    if body is None:
        return None
    fields = freshness.stored_fields(head, now)
    headers = Headers((name.encode("latin-1"), value.encode("latin-1")) for name, value in fields)
    stored = Stored(headers, now, freshness.initial_age(head, asked.at, now))
    vary = freshness.vary_fields(request.sent, head, request.names)
    answer = Negative(head.status, stored, body, vary, exchange.scope, now + seconds)
    return answer if services.negatives.keep(request.key.name, request.sent.headers, answer, asked) else None


def _seconds(services: Services, exchange: Exchange, asked: Asked, now: float) -> float:
    """For how long a response may be kept. At the end of a redirect it is no answer of the URL that was asked for."""
    if exchange.hops:
        return 0.0
    return min(freshness.negative_lifetime(exchange.head, asked.at, now), services.negatives.limit)


def _is_for(services: Services, answer: Negative, reach: Reach, target: Target) -> bool:
    """Whether a client may have what came from there; as for stored objects (`Authorization.why_relayed`)."""
    return may_reach(reach, answer.scope) or services.origins.opens(target)
