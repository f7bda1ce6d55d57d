"""The path of a request that may be answered from the cache: hit, lead or follow.

A leader asks the origin. If the response is to be stored, a filler thread owns connection and file from then on, and
the leader reads the growing file like any follower. So a slow or lost client never holds up a fill.
A stale object is claimed in the same way: its leader validates it, and all others get the outcome.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Optional

from cache import Claim, Follow, Hit
from fetching import meaning, outcomes
from fetching.authorization import Authorization
from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.filling import Filling
from fetching.memory_cache import CacheableHit
from fetching.naming import Name
from fetching.origin_query import OriginQuery
from fetching.origin_relay import OriginRelay
from fetching.outcomes import Admission, Failed, Outcome, Stale, as_upstream_error
from fetching.recent import Client
from fetching.recovery import HEAD_TIMEOUT, Recovery
from fetching.revalidation import revalidate
from fetching.stored_answer import StoredAnswer
from fetching.stored_metadata import as_stored
from monitoring.details import Detail, NotKept, with_detail
from monitoring.metrics import Counter
from net.addresses import Reach
from net.client_watch import when_gone
from net.response import Reply
from protocol import freshness
from protocol.freshness import Assessment, Basis
from protocol.http1 import RequestHead, Target
from storage.store import Entry, Metadata, Unstorable
from transfers.asking import Asker
from transfers.fill import Fill, FillState
from transfers.follow import FillReader
from upstream.client import Exchange, Purpose, Unanswered, UpstreamError

_log = logging.getLogger("dduct.fetch")

_MAX_CLAIMS = 8  # then it is relayed: another process makes and breaks fills faster than dduct can join them
_SLOW_HEAD = 3.0  # seconds without a response head; then a request that differs from the leader's is sent, too
_FORBIDDEN = 403  # the target is on dduct's own machine, which a client there may reach
_OUTDATED = (200, 404, 410)  # responses after which the stored object is of no more use


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
    ) -> None:
        self._services = services
        self._cache = services.cache
        self._reply = reply
        self._client = client
        self._request = CacheableRequest(services, request, target, name, reach)
        self._key = self._request.key
        self._query = OriginQuery(services, self._request, reply.interim)
        self._relay = OriginRelay(services, reply, self._request, self._query)
        self._authorization = Authorization(services, self._request, self._query, self._relay)
        self._filling = Filling(services, self._request, self._query, self._authorization.grant)
        recovery = Recovery(self._cache, self._request, self._query, self._filling.start)
        self._answer = StoredAnswer(services, reply, self._request, self._relay, recovery.elsewhere, client)
        self._arrived_at = time.time()
        self.cacheable_hit: Optional[CacheableHit] = None
        self._failed: Optional[Failed] = None

    def run(self) -> None:
        """Send the response. Raises UpstreamError while none has begun, OSError when the client is gone.

        `cacheable_hit` is set afterwards if the same request may be answered in the same way again.
        """
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
        why = self._request.why_no_fill
        if why is None:
            return self._take(self._cache.claim(self._key), None)
        found = self._cache.lookup(self._key)
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
                return self._follow(claim.reader, stale)
        return self._lead(claim.fill, stale)

    # Hit

    def _hit(self, hit: Hit) -> Outcome:
        metadata = hit.metadata
        if metadata is None:
            return self._hit_of_another_url(hit.entry)
        why = self._authorization.why_relayed(metadata)
        if why is not None:
            self._relay.relay(why)
            return Outcome.DONE
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
        needs_permission = self._authorization.needs_permission(metadata)
        if needs_permission:
            stale = Stale(hit.entry, metadata, assessment)
            admission = self._admit(stale, hit)
            if admission is Admission.CHANGED:
                return self._validate(stale)
            if admission is Admission.ANSWERED:
                return Outcome.DONE
        outcome = self._answer.send_hit(hit.entry, metadata, Counter.HITS, outcomes.hit_note(assessment))
        if outcome is Outcome.DONE:
            looked_at = self._recheck(hit.entry, metadata, assessment)
            if not needs_permission and outcomes.is_plain(self._request.head, hit.entry, assessment):
                url, name = self._request.shown, self._key.name
                self.cacheable_hit = outcomes.cacheable_hit(hit, metadata, url, name, assessment, looked_at)
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
        self._cache.confirm_alias(self._key, metadata)
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
        return self._services.deliveries.take(self._client, self._key.name)

    def _recheck(self, entry: Entry, metadata: Metadata, assessment: Assessment) -> float:
        """Have an object with a guessed lifetime validated, if it is due. Returns when it is due next.

        An object that needs authorization is validated with each client's own credentials only, not in the background.
        """
        if assessment.basis is not Basis.HEURISTIC or metadata.restricted or self._request.signed:
            return float("inf")
        services, request = self._services, self._request
        due = metadata.fetched_at + services.freshness.recheck
        return services.background.ask(self._key.name, due, partial(revalidate, services, request, entry.version))

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
        if status < 500:
            return exchange
        exchange.close()
        _log.info("HEAD is answered from the cache: %s: the origin answers %d", self._request.shown, status)
        return None

    def _assess(self, entry: Entry, metadata: Metadata) -> Assessment:
        if self._request.lasts and entry.record.sha256:
            age = as_stored(metadata).age(time.time())
            return Assessment(True, True, age, float("inf"), Basis.DIGEST)  # its content never changes
        stored, rules, now = as_stored(metadata), self._services.freshness, time.time()
        assessment = freshness.assess(
            self._request.head, stored, rules, now, self._arrived_at, self._request.name.volatile
        )
        return replace(assessment, usable=False, usable_on_error=False) if metadata.must_validate else assessment

    def _validate(self, stale: Stale) -> Outcome:
        """Have an object validated, by this request or by another one that does so already."""
        away = self._services.origins.away(self._request.target) if self._answer.may_use(stale) else None
        if away is not None:
            return self._answer.send_stale(stale, away)
        why = self._request.why_no_fill
        if why is not None:
            return self._answer.relay_or(stale, why)
        try:
            claim = self._cache.claim(self._key, beyond=stale.entry.version)
        except Unstorable as error:
            # The disk takes nothing new, but the stored object may still be of use.
            return self._answer.relay_or(stale, error.detail)
        return self._take(claim, stale)

    # Follow

    def _follow(self, reader: FillReader, stale: Optional[Stale]) -> Outcome:
        fill = reader.fill
        state = fill.wait_head(_SLOW_HEAD)
        if state is FillState.ASKING and isinstance(fill, Fill):
            asker = fill.asking.join(self._request.question, fill.fail, fill.close)
            if asker is not None:
                _log.info("Asked for once more, because the first request waits for long: %s", self._request.shown)
                return self._ask(fill, asker, stale)
        if state is FillState.ASKING:
            state = fill.wait_head(HEAD_TIMEOUT)
        if state is FillState.GONE:
            return Outcome.RETRY
        if state in (FillState.DECLINED, FillState.ASKING):
            return self._answer.relay_or(stale, fill.asking.declined_for if isinstance(fill, Fill) else Detail.NOT_KEPT)
        if fill.metadata is None:
            error = as_upstream_error(fill.cause)
            if isinstance(fill, Fill) and self._may_fare_better(fill, error):
                return Outcome.RETRY
            return self._answer.send_stale_or_raise(stale, error)
        return self._read_along(reader, fill.metadata, stale)

    def _read_along(self, reader: FillReader, brought: Metadata, stale: Optional[Stale]) -> Outcome:
        known = self._request.is_of_this_url(brought)
        metadata = brought if known else self._authorization.confirm_alias(reader, brought)
        if metadata is Admission.ANSWERED:
            return Outcome.DONE
        why = self._authorization.why_relayed(metadata)
        if why is not None:
            self._relay.relay(why)
            return Outcome.DONE
        if known and self._authorization.needs_permission(metadata):
            admission = self._authorization.admit(metadata, reader.length)
            if admission is Admission.CHANGED:
                self._relay.relay(with_detail("fwd=uri-miss", Detail.CREDENTIALS))
            if admission is not Admission.GRANTED:
                return Outcome.DONE
        self._services.counters.add(Counter.COLLAPSED)
        self._reply.note = f"fwd={'uri-miss' if stale is None else 'stale'}; collapsed"
        outcome = self._answer.send_growing(reader, metadata)
        if not known and reader.fill.state is FillState.PUBLISHED:
            self._cache.confirm_alias(self._key, metadata)
        return outcome

    # Lead

    def _lead(self, fill: Fill, stale: Optional[Stale]) -> Outcome:
        asker = fill.asking.lead(self._request.question, fill.fail, fill.close)
        if self._failed is not None:
            fill.asking.retries = self._failed.retries
            if not self._failed.retries.take():
                asker.fail(self._failed.error)
                return self._answer.send_stale_or_raise(stale, self._failed.error)
        return self._ask(fill, asker, stale)

    def _may_fare_better(self, fill: Fill, error: UpstreamError) -> bool:
        """Whether this client's own request may succeed although the leader's did not.

        An unreachable origin is so for the next request, too. `Retries` bounds the attempts, however many clients wait.
        """
        own_doing = isinstance(error, Unanswered) or error.status == _FORBIDDEN
        if not own_doing or not fill.asking.differs(self._request.question) or fill.asking.retries.exhausted():
            return False
        self._failed = Failed(error, fill.asking.retries)
        return True

    def _ask(self, fill: Fill, asker: Asker, stale: Optional[Stale]) -> Outcome:
        with ExitStack() as cleanup:
            cleanup.callback(asker.close)
            cleanup.push(when_gone(partial(asker.hand_on, fill.hand_on)))
            asked_at = time.time()
            missed = "fwd=uri-miss" if stale is None else "fwd=stale"
            try:
                query = self._query
                exchange = (
                    query.whole_or_rest(fill.partial_download)
                    if stale is None
                    else query.revalidate(stale.metadata, stale.entry.length)
                )
            except UpstreamError as error:
                if not asker.fail(error):
                    self._failed = Failed(error, fill.asking.retries)  # for the case that the other one fails, too
                    return Outcome.RETRY  # the other request waits for an answer, or has it
                return self._answer.send_stale_or_raise(stale, error)
            cleanup.callback(exchange.close)
            if not asker.answered():
                if fill.state is FillState.DECLINED:
                    self._relay.pass_on(exchange, with_detail(missed, fill.asking.declined_for))
                    return Outcome.DONE
                return Outcome.RETRY
            status = exchange.head.status
            if stale is not None and meaning.still_good(self._request, exchange, stale.metadata, stale.entry.length):
                return self._renew(fill, stale, exchange, asked_at)
            if stale is not None and status >= 500 and self._answer.may_use(stale):
                failure = UpstreamError(f"the origin answers {status}", status)
                fill.fail(failure)
                return self._answer.send_stale(stale, failure)
            if stale is not None and status < 500 and not self._authorization.may_change(stale.metadata, exchange):
                fill.renew()  # those that wait for this ask with their own credentials
                self._relay.pass_on(exchange, with_detail(missed, Detail.CREDENTIALS))
                return Outcome.DONE
            started = self._filling.start(fill, exchange, asked_at, cleanup)
            if isinstance(started, NotKept):
                if stale is not None and status in _OUTDATED:
                    self._cache.remove(self._key)
                try:
                    self._relay.pass_on(exchange, with_detail(missed, started.detail))
                finally:
                    self._reply.outcome = f"{self._reply.note}; not stored: {started.text}"
                return Outcome.DONE
        self._reply.note = "fwd=uri-miss; stored" if stale is None else "fwd=stale; fwd-status=200; stored"
        with closing(started.reader):
            return self._answer.send_growing(started.reader, started.metadata)

    def _renew(self, fill: Fill, stale: Stale, exchange: Exchange, asked_at: float) -> Outcome:
        metadata = self._filling.renew(fill, stale.entry, stale.metadata, exchange, asked_at)
        self._authorization.grant(metadata)
        note = f"fwd=stale; fwd-status={exchange.head.status}"
        return self._answer.send_hit(stale.entry, metadata, Counter.VALIDATED, note)
