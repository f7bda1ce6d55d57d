"""The path of a request that may be answered from the cache: hit, lead or follow.

A leader asks the origin. If the response is to be stored, a filler thread owns connection and file from then on, and
the leader reads the growing file like any follower. So a slow or lost client never holds up a fill.
A stale object is claimed in the same way: its leader validates it, and all others get the outcome.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from typing import Callable, Optional

from cache import Claim, Follow, Hit
from fetching import outcomes, repository_look
from fetching.authorization import Authorization
from fetching.cacheable_request import CacheableRequest
from fetching.far_ranges import FarRanges
from fetching.filler import Services
from fetching.following import Following
from fetching.leading import Leading
from fetching.naming import Name
from fetching.negative_answer import NegativeAnswer
from fetching.origin_query import OriginQuery
from fetching.origin_relay import OriginRelay
from fetching.outcomes import Admission, Outcome, Polled, Stale
from fetching.polled_fetch import PolledFetch
from fetching.recent import Client
from fetching.recovery import Recovery
from fetching.revalidation import revalidate
from fetching.small_hit import may_be_granted, may_be_small
from fetching.stored_answer import StoredAnswer
from monitoring.details import Detail, NotKept, with_detail
from monitoring.metrics import Counter
from net.addresses import Reach
from net.response import Reply
from protocol.freshness import Assessment, Basis
from protocol.http1 import RequestHead, Target
from storage.entry import Entry
from storage.record import Metadata, Unstorable
from upstream.credentials import Use
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange
from upstream.request import Purpose

_log = logging.getLogger("dduct.fetch")

_MAX_CLAIMS = 8  # then it is relayed: another process makes and breaks fills faster than dduct can join them


class CachedFetch:
    """Answers one GET or HEAD whose target has a name in the cache."""

    def __init__(
        self,
        services: Services,
        reply: Reply,
        request: RequestHead,
        target: Target,
        name: Name,
        reach: Reach,
        client: Client = ("", ""),
        look_ahead: Optional[Callable[[], None]] = None,
        begun: Optional[PolledFetch] = None,
        use: Optional[Use] = None,
    ) -> None:
        self._services = services
        self._reply = reply
        self._client = client
        self._look_ahead = look_ahead
        self._begun = begun  # until it is taken over
        self._request = CacheableRequest(services, request, target, name, reach, use=use)
        self._query = OriginQuery(services, self._request, reply.interim)
        self._relay = OriginRelay(services, reply, self._request, self._query)
        self._authorization = Authorization(services, self._request, self._query, self._relay)
        recovery = Recovery(services, self._request, self._query, self._authorization.grant)
        far = FarRanges(services, self._request, self._query)
        self._answer = StoredAnswer(services, reply, self._request, self._relay, recovery, far, client)
        self._arrived_at = time.time()
        self.polled = Polled.NONE  # what would have taken no thread

    def run(self) -> None:
        """Send the response. Raises UpstreamError or AskAgain while none has begun, OSError when the client is gone."""
        reason = NotKept(Detail.BUSY, "it changes hands too often")
        if self._request.only_if_cached:
            self._reply.note = with_detail("", Detail.ONLY_IF_CACHED)  # a hit replaces it
        try:
            for _ in range(_MAX_CLAIMS):
                if self._attempt() is Outcome.DONE:
                    return
        except Unstorable as error:
            self._services.counters.add(Counter.UNSTORABLE)
            reason = NotKept(error.detail, str(error))
        note = with_detail("fwd=bypass", reason.detail)
        self._reply.outcome = f"{note}; not stored: {reason.text}"
        self._relay.relay(note)

    def _attempt(self) -> Outcome:
        begun, self._begun = self._begun, None
        if begun is not None:
            with closing(begun):
                return self._led(self._leading.take_over(begun))
        if self._negative.send_known():
            self.polled = Polled.QUICK
            return Outcome.DONE
        why = self._request.why_no_fill
        if why is None:
            return self._take(self._services.cache.claim(self._request.key), None)
        found = self._services.cache.lookup(self._request.key)
        if found is None:
            self._relay.relay(with_detail("fwd=uri-miss", why))
            return Outcome.DONE
        return self._take(found, None)

    def _take(self, claim: Claim, stale: Optional[Stale]) -> Outcome:
        """Do what a claim asks for, and close it. A claim beyond a stale object finds another one: RETRY."""
        if isinstance(claim, Hit):
            with closing(claim.entry):
                return self._hit(claim) if stale is None else Outcome.RETRY
        if isinstance(claim, Follow):
            with closing(claim.reader):
                return self._following.follow(claim.reader, stale)
        if stale is None and self._negative.find() is not None:
            with closing(claim.fill):  # another fill has brought it since this request has looked
                claim.fill.hand_on()
            return Outcome.RETRY
        return self._led(self._leading.lead(claim.fill, stale))

    def _led(self, outcome: Outcome) -> Outcome:
        self.polled = Polled.PLAIN if self._leading.was_small else Polled.NONE
        return outcome

    # Most requests do not need all of these: they are made when they are first used.

    @cached_property
    def _leading(self) -> Leading:
        shared = (self._services, self._reply, self._request, self._query, self._relay)
        return Leading(*shared, self._authorization, self._answer, self._negative, self._look_ahead)

    @cached_property
    def _following(self) -> Following:
        shared = (self._services, self._reply, self._request, self._relay, self._authorization)
        return Following(*shared, self._answer, self._negative, self._leading)

    @cached_property
    def _negative(self) -> NegativeAnswer:
        return NegativeAnswer(self._services, self._reply, self._request, self._arrived_at)

    # Hit

    def _hit(self, hit: Hit) -> Outcome:
        metadata = hit.metadata
        if metadata is None:
            return self._hit_of_another_url(hit.entry)
        why = self._authorization.why_relayed(metadata)
        if why is not None:
            self._relay.relay(why)
            return Outcome.DONE
        metadata = repository_look.look(self._services, self._request, metadata)
        assessment = self._assess(hit.entry, metadata)
        if not assessment.usable:
            return self._validate(Stale(hit.entry, metadata, assessment))
        if self._is_doubted(assessment):
            self._services.counters.add(Counter.DOUBTED)
            return self._validate(Stale(hit.entry, metadata, replace(assessment, usable_on_error=True)))
        if metadata.redirect and self._request.head.method == b"HEAD":
            exchange = self._ask_for_redirect()
            if exchange is not None:
                with closing(exchange):
                    self._relay.forward(exchange, "fwd=request")
                    return Outcome.DONE
        if self._authorization.needs_permission(metadata):
            stale = Stale(hit.entry, metadata, assessment)
            admission = self._admit(stale, hit)
            if admission is Admission.CHANGED:
                return self._validate(stale)
            if admission is Admission.ANSWERED:
                return Outcome.DONE
        outcome = self._answer.send_hit(hit.entry, metadata, Counter.HITS, outcomes.hit_note(assessment))
        if outcome is Outcome.DONE:
            self._recheck(hit.entry, metadata, assessment)
            own = bool(self._request.credentials) and self._request.use is None
            is_small = may_be_small(hit) or (own and may_be_granted(hit))
            self.polled = Polled.QUICK if is_small else Polled.NONE
        return outcome

    def _hit_of_another_url(self, entry: Entry) -> Outcome:
        """Send bytes that are known by their digest, once this URL's origin has confirmed that it has them."""
        if self._request.head.method == b"HEAD":
            self._relay.relay(with_detail("fwd=uri-miss", Detail.HEAD))  # whether this URL redirects is not known yet
            return Outcome.DONE
        metadata = self._authorization.confirm_alias(entry, entry.record.metadata)
        if metadata is Admission.ANSWERED:
            return Outcome.DONE
        why = self._authorization.why_relayed(metadata)
        if why is not None:
            self._relay.relay(why)
            return Outcome.DONE
        self._services.cache.confirm_alias(self._request.key, metadata)
        return self._answer.send_hit(entry, metadata, Counter.HITS, "hit")

    def _admit(self, stored: Stale, hit: Hit) -> Admission:
        """Have the client authorized; an object that `may_use` allows is sent, too, if its origin cannot be asked."""
        try:
            return self._authorization.admit(stored.metadata, stored.entry.length, hit)
        except UpstreamError as error:
            if self._reply.started or not self._answer.may_use(stored):
                raise
            _log.warning("Sent without asking: %s: %s", self._request.shown, error)
            return Admission.GRANTED

    def _is_doubted(self, assessment: Assessment) -> bool:
        """Whether this client asks again for the whole of an object that it just got on a guessed lifetime.

        apt does so where the hash differs from the one in its index. A range only continues a broken transfer.
        """
        if assessment.basis is not Basis.HEURISTIC or self._request.why_no_fill is not None:
            return False
        if b"range" in self._request.head.headers:
            return False
        return self._services.deliveries.take(self._client, self._request.key.name)

    def _recheck(self, entry: Entry, metadata: Metadata, assessment: Assessment) -> None:
        """Have an object with a guessed lifetime validated, if it is due.

        An object that needs authorization is validated with each client's own credentials only, not in the background.
        """
        if assessment.basis is not Basis.HEURISTIC or metadata.restricted or self._request.signed:
            return
        services, request = self._services, self._request
        due = metadata.fetched_at + services.freshness.recheck
        services.background.ask(request.key.name, due, partial(revalidate, services, request, entry.version))

    def _ask_for_redirect(self) -> Optional[Exchange]:
        """The origin's response to a HEAD for a URL that redirects; None where the stored object has to answer instead.

        No record holds the redirect's fields, and some clients ask for nothing else.
        """
        if self._request.only_if_cached or self._services.origins.away(self._request.target) is not None:
            return None
        try:
            exchange = self._query.pass_through(Purpose.FILL)
        except UpstreamError as error:
            _log.info("HEAD is answered from the cache: %s: %s", self._request.shown, error)
            return None
        status = exchange.head.status
        if not exchange.unhelpful:
            return exchange
        exchange.close()
        _log.info("HEAD is answered from the cache: %s: the origin answers %d", self._request.shown, status)
        return None

    def _assess(self, entry: Entry, metadata: Metadata) -> Assessment:
        return self._request.assess(entry.record, metadata, time.time(), self._arrived_at)

    def _validate(self, stale: Stale) -> Outcome:
        """Have an object validated, by this request or by another one that does so already."""
        away = self._services.origins.away(self._request.target) if self._answer.may_use(stale) else None
        if away is not None:
            return self._answer.send_stale(stale, away)
        why = self._request.why_no_fill
        if why is not None:
            return self._answer.relay_or(stale, why)
        try:
            claim = self._services.cache.claim(self._request.key, beyond=stale.entry.version)
        except Unstorable as error:
            # The disk takes nothing new, but the stored object may still be of use.
            return self._answer.relay_or(stale, error.detail)
        return self._take(claim, stale)
