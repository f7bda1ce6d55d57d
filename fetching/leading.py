"""Leading: asking the origin for a fill. The leader does so, and one follower of a leader that waits for long."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Callable, Optional, Union

from fetching import meaning
from fetching.authorization import Authorization
from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.filling import Filling, Started
from fetching.negative import Asked, Negative
from fetching.negative_answer import NegativeAnswer
from fetching.origin_query import OriginQuery
from fetching.origin_relay import OriginRelay
from fetching.outcomes import Outcome, Stale, missed
from fetching.polled_fetch import PolledFetch, may_be_polled
from fetching.small_hit import SMALL
from fetching.stored_answer import StoredAnswer
from monitoring.details import Detail, with_detail
from monitoring.metrics import Counter
from net.client_watch import when_gone
from net.response import Reply
from transfers.asking import Asker, Retries
from transfers.fill import Fill
from transfers.follow import AnyFill
from transfers.states import FillState
from upstream.dialling import REFUSALS, NoToken, Unanswered, UpstreamError
from upstream.exchange import Exchange

_log = logging.getLogger("dduct.fetch")

_FORBIDDEN = 403  # the target is on dduct's own machine, which a client there may reach
_OUTDATED = (200, 404, 410)  # responses after which the stored object is of no more use


@dataclass(frozen=True)
class _Failed:
    """A leader's failure, and the retries that its followers have left."""

    error: UpstreamError
    retries: Retries


class Leading:
    """The fills that one request leads, or tries to. With a stale object, the origin is asked to validate it.

    `look_ahead` is called before each wait for an origin. It does not wait.
    """

    def __init__(
        self,
        services: Services,
        reply: Reply,
        request: CacheableRequest,
        query: OriginQuery,
        relay: OriginRelay,
        authorization: Authorization,
        answer: StoredAnswer,
        negative: NegativeAnswer,
        look_ahead: Optional[Callable[[], None]] = None,
    ) -> None:
        self._services = services
        self._reply = reply
        self._request = request
        self._query = query
        self._relay = relay
        self._authorization = authorization
        self._answer = answer
        self._negative = negative
        self._filling = Filling(services, request, query, authorization.grant)
        self._look_ahead = look_ahead
        self.was_small = False  # such that the poller's thread could probably lead the next one
        self._failed: Optional[_Failed] = None  # the last leader's failure that this request has seen

    def lead(self, fill: Fill, stale: Optional[Stale]) -> Outcome:
        """Ask the origin as the leader of a fill; closes the fill."""
        asker = fill.asking.lead(self._request.question, fill.fail, fill.close)
        if self._failed is not None:
            fill.asking.retries = self._failed.retries
            if not self._failed.retries.take():
                asker.fail(self._failed.error)
                return self._answer.send_stale_or_raise(stale, self._failed.error)
        return self.ask(fill, asker, stale)

    def take_over(self, begun: PolledFetch) -> Outcome:
        """Go on with a fill that the poller's thread has begun; closes the fill."""
        return self.ask(begun.fill, begun.asker, begun.stale, begun)

    def after_failure(self, fill: AnyFill, error: UpstreamError, stale: Optional[Stale]) -> Outcome:
        """Answer after the leader of a fill has failed; RETRY where this client's own request may succeed."""
        if isinstance(fill, Fill) and self._may_fare_better(fill, error):
            self._failed = _Failed(error, fill.asking.retries)
            return Outcome.RETRY
        return self._answer.send_stale_or_raise(stale, error)

    def ask(self, fill: Fill, asker: Asker, stale: Optional[Stale], begun: Optional[PolledFetch] = None) -> Outcome:
        """Ask the origin, unless that was `begun`; the first asker that gets a response decides on the fill."""
        with ExitStack() as cleanup:
            cleanup.callback(asker.close)
            cleanup.push(when_gone(partial(asker.hand_on, fill.hand_on)))
            if self._look_ahead is not None:
                self._look_ahead()
            asked = self._negative.asking() if begun is None else begun.asked
            try:
                exchange = self._exchange(fill, stale) if begun is None else begun.exchange(self._reply.interim)
            except UpstreamError as error:
                if asker.fail(error):
                    return self._answer.send_stale_or_raise(stale, error)
                self._failed = _Failed(error, fill.asking.retries)  # for the case that the other one fails, too
                return Outcome.RETRY  # the other request waits for an answer, or has it
            cleanup.callback(exchange.close)
            if not (begun is not None and begun.has_won) and not asker.answered():
                return self._come_second(fill, exchange, stale)
            outcome = self._unusual(fill, exchange) if stale is None else None
            if outcome is not None:
                return outcome
            started = (
                self._start(fill, exchange, asked, cleanup)
                if stale is None
                else self._validate(fill, stale, exchange, asked, cleanup)
            )
            if isinstance(started, Outcome):
                return started
        self._reply.note = "fwd=uri-miss; stored" if stale is None else "fwd=stale; fwd-status=200; stored"
        with closing(started.reader):
            outcome = self._answer.send_growing(started.reader, started.metadata)
            self.was_small = stale is None and exchange.head.persistent and 0 < (started.reader.length or 0) <= SMALL
            return outcome

    def _failure(self, exchange: Exchange) -> Optional[UpstreamError]:
        """What keeps the origin from answering; None where its response is about the object."""
        if exchange.unhelpful:
            return exchange.failure()
        refused = exchange.head.status in REFUSALS
        return NoToken() if refused and self._services.public_tokens.is_stand_in(self._request.head.headers) else None

    def _unusual(self, fill: Fill, exchange: Exchange) -> Optional[Outcome]:
        """Answer a miss that its origin does not answer, from another variant; None where its response is sent.

        Raises UpstreamError where a token of dduct's own has been refused.
        """
        failure = self._failure(exchange)
        if failure is None:
            return None
        outcome = self._answer.send_variant(failure) if self._request.is_metadata else None
        if outcome is not None or isinstance(failure, NoToken):
            fill.fail(failure)
        if outcome is None and isinstance(failure, NoToken):
            raise failure
        return outcome

    def _exchange(self, fill: Fill, stale: Optional[Stale]) -> Exchange:
        if stale is None:
            return self._query.whole_or_rest(fill.partial_download)
        return self._query.revalidate(stale.metadata, stale.entry.length)

    def _come_second(self, fill: Fill, exchange: Exchange, stale: Optional[Stale]) -> Outcome:
        """Follow the asker that has got the first response; where that is not stored, this response is sent."""
        if fill.state is not FillState.DECLINED:
            return Outcome.RETRY
        self._relay.pass_on(exchange, with_detail(missed(stale), fill.asking.declined_for))
        return Outcome.DONE

    def _validate(
        self, fill: Fill, stale: Stale, exchange: Exchange, asked: Asked, cleanup: ExitStack
    ) -> Union[Started, Outcome]:
        """Do what the response to a validation says: renew the object, replace it, or leave it as it is."""
        status = exchange.head.status
        if meaning.still_good(self._request, exchange, stale.metadata, stale.entry.length):
            metadata = self._filling.renew(fill, stale.entry, stale.metadata, exchange, asked.at)
            self._authorization.grant(metadata)
            note = f"fwd=stale; fwd-status={status}"
            kept = status == 304 and exchange.head.persistent
            self.was_small = kept and may_be_polled(stale.entry.record, stale.metadata)
            return self._answer.send_hit(stale.entry, metadata, Counter.VALIDATED, note)
        failure = self._failure(exchange)
        if failure is not None and self._answer.may_use(stale):
            fill.fail(failure)
            return self._answer.send_stale(stale, failure)
        if isinstance(failure, NoToken):
            fill.fail(failure)
            raise failure
        if not exchange.unhelpful and not self._authorization.may_change(stale.metadata, exchange):
            fill.renew()  # those that wait for this ask with their own credentials
            self._relay.pass_on(exchange, with_detail(missed(stale), Detail.CREDENTIALS))
            return Outcome.DONE
        return self._start(fill, exchange, asked, cleanup, stale)

    def _start(
        self, fill: Fill, exchange: Exchange, asked: Asked, cleanup: ExitStack, stale: Optional[Stale] = None
    ) -> Union[Started, Outcome]:
        """Start the fill; a response that is not stored is sent to this client."""
        if not self._services.cache.acquire(fill):
            return Outcome.RETRY  # another process fetches it, or has done so
        started = self._filling.start(fill, exchange, asked, cleanup)
        if isinstance(started, Started):
            return started
        if stale is not None and exchange.head.status in _OUTDATED:
            self._services.cache.remove(self._request.key)
        if isinstance(started, Negative):
            # Whatever conditions and ranges its client has sent (RFC 9110 §13.2.1, §14.2).
            self._relay.forward(exchange, with_detail(f"{missed(stale)}; stored", Detail.NEGATIVE))
            return Outcome.DONE
        try:
            self._relay.pass_on(exchange, with_detail(missed(stale), started.detail))
        finally:
            self._reply.outcome = f"{self._reply.note}; not stored: {started.text}"
        return Outcome.DONE

    def _may_fare_better(self, fill: Fill, error: UpstreamError) -> bool:
        """Whether this client's own request may succeed although the leader's did not.

        An unreachable origin is so for the next request, too. `Retries` bounds the attempts, however many clients wait.
        """
        own_doing = isinstance(error, Unanswered) or error.status == _FORBIDDEN
        return own_doing and fill.asking.differs(self._request.question) and not fill.asking.retries.exhausted()
