"""Small misses and validations without a thread: the poller's thread asks the origin, stores, and answers.

A thread for the request, another one for its fill, and what they tell each other cost several times as much as the
rest of a small miss. So the poller's thread leads the fill of a plain request itself, over a kept connection, while it
goes on polling. Whatever takes longer, or another decision than the usual one, is left to a thread: that takes over the
fill and the response as far as they have come (`Leading.take_over`).
"""

from __future__ import annotations

import enum
import http.client
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Callable, Optional, Tuple, Union

from cache import Hit
from fetching import meaning, negative_answer
from fetching.cacheable_request import CacheableRequest
from fetching.description import describe, renewed
from fetching.filler import Services
from fetching.filling import Filling
from fetching.naming import Name
from fetching.origin_query import OriginQuery
from fetching.outcomes import Stale, outcome_of
from fetching.small_hit import SMALL, Answer, PlainRequest
from fetching.stored_metadata import as_fields, scope
from monitoring.details import Detail, with_detail
from monitoring.metrics import Counter
from net.addresses import may_reach
from net.response import head_fields
from protocol import http1
from protocol.http1 import BodyFraming, Framing, ResponseHead
from storage.glance import read_without_waiting
from storage.locks import LockWait
from storage.record import FieldText, Metadata, Record, Unstorable
from transfers.asking import Asker
from transfers.fill import Fill
from transfers.states import FillFailed, FillState
from upstream.exchange import Exchange
from upstream.nonblocking_request import NonblockingRequest
from upstream.relay import passed_on
from upstream.request import Request

# Cache-Status, as a thread says it.
_STORED = "fwd=uri-miss; stored"
_VALIDATED = "fwd=stale; fwd-status=304"
_NOT_THERE = (404, 410)
_NOTED_EVERY = 60.0  # seconds; a record says when its object was last confirmed, but no more exactly than that


class Step(enum.Enum):
    """How far the poller's thread has come with a response."""

    WAIT = "the response has not come yet"
    READY = "the whole response is here, and short"
    NEEDS_THREAD = "a thread has to take over"


class PolledFetch(ABC):
    """A fill that the poller's thread leads, until it is answered, taken over or given up.

    One thread at a time owns it: the poller's, then perhaps the session's.
    """

    stale: Optional[Stale] = None  # the object that is validated

    def __init__(self, request: CacheableRequest, query: OriginQuery, question: NonblockingRequest, fill: Fill) -> None:
        self._services = services = query.services
        self._request = request
        self._query = query
        self._filling = Filling(services, request, query, lambda _: None)
        self._question = question
        self._exchange: Optional[Exchange] = None
        self.fill = fill
        self.asker: Asker = fill.asking.lead(request.question, fill.fail, fill.close)
        self.has_won = False  # its response is the one that decides on the fill
        self.asked = services.negatives.asking(request.key.name)

    @property
    def name(self) -> str:
        """The object's name."""
        return self._request.key.name

    def fileno(self) -> int:
        """The descriptor to poll: that of the origin's connection."""
        return self._question.fileno()

    # In the poller's thread

    def send(self) -> bool:
        """Ask the origin; False where its connection does not take that."""
        return self._question.send()

    def advance(self) -> Step:
        """Read what has come of the response."""
        try:
            if self._exchange is None:
                self._exchange = self._question.receive()
            if self._exchange is None:
                return Step.NEEDS_THREAD if self._question.needs_waiting else Step.WAIT
            if not self._is_usual(self._exchange):
                return Step.NEEDS_THREAD
            return Step.READY if self._question.has_body(self._exchange) else Step.WAIT
        except (OSError, http1.ProtocolError, http.client.HTTPException):
            return Step.NEEDS_THREAD

    def keep(self) -> Optional[Answer]:
        """Store what is READY, and make the answer of it; None where a thread has to decide.

        The origin's connection must not be polled any more.
        """
        assert self._exchange is not None
        # The disk may have become slow, or hang, since the miss began.
        return self._keep(self._exchange) if self._services.cache.disk.may_poll(time.monotonic()) else None

    @abstractmethod
    def _is_usual(self, exchange: Exchange) -> bool:
        """Whether the head of a response is one of those that the poller's thread uses."""

    @abstractmethod
    def _keep(self, exchange: Exchange) -> Optional[Answer]: ...

    def _wins(self) -> bool:
        """Whether this response decides on the fill."""
        self.has_won = self.asker.answered()
        return self.has_won

    def _answer(
        self, metadata: Metadata, body: Union[bytes, bytearray], status: Tuple[str, str], counter: Counter
    ) -> Answer:
        """The response as `StoredAnswer` sends it. `status`: its Cache-Status, and what the log says."""
        fields = as_fields(metadata)
        fields.append((b"Accept-Ranges", b"bytes"))
        age = int(metadata.age + max(0.0, time.time() - metadata.fetched_at))
        if age or self.stale is not None:
            fields.append((b"Age", b"%d" % age))
        framing = BodyFraming(Framing.LENGTH, len(body))
        head = head_fields(fields, 200, framing, len(body), False, self._services.via, status[0])
        data = http1.serialise_response(200, b"", head) + body
        guessed = not self._request.lasts
        return Answer(data, len(body), self._request.url, status[1], self.name, guessed, counter=counter)

    # In the session's thread

    def serves(self, services: Services, name: Name) -> bool:
        """Whether a request for this name, under these rules, can take it over."""
        return services is self._services and name == self._request.name and not self.fill.state.final

    def exchange(self, on_interim: Callable[[ResponseHead], None]) -> Exchange:
        """The origin's response, to its last redirect. Raises UpstreamError."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            exchange = self._services.origins.complete(self._question, on_interim)
        query = OriginQuery(self._services, self._request, on_interim)
        if self.stale is not None:
            return query.revalidate(self.stale.metadata, self.stale.entry.length, exchange)
        return self._services.origins.follow(query.whole_request(), begun=exchange)

    def give_up(self) -> None:
        """No request wants it any more: others that wait for it begin again. Uses the disk. Idempotent."""
        self._question.drop()
        if self._exchange is not None:
            self._exchange.discard()
            self._exchange = None
        self.asker.hand_on(self.fill.hand_on)
        self.asker.close()
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close what only this has opened. Idempotent."""


class PolledMiss(PolledFetch):
    """An object that is not stored."""

    def _is_usual(self, exchange: Exchange) -> bool:
        length = exchange.body.length if exchange.body.kind is Framing.LENGTH else None
        if exchange.head.status in _NOT_THERE:
            return length is not None and negative_answer.may_be_kept(self._services, exchange, self.asked)
        return exchange.head.status == 200 and 0 < (length or 0) <= SMALL

    def _keep(self, exchange: Exchange) -> Optional[Answer]:
        if exchange.head.status in _NOT_THERE:
            return self._keep_negative(exchange)
        metadata = describe(self._request, exchange, self.asked.at)
        if metadata.restricted or self._filling.why_not(exchange, metadata, is_rest=False) is not None:
            return None
        if not self._wins():
            return None
        body = self._question.body_ahead(exchange)
        self._services.negatives.forget(self.name)
        try:
            self._services.cache.disk.poll(partial(self._store, metadata, body))
        except (Unstorable, FillFailed):
            return None  # the thread finds the same, and says so
        self._finish(exchange, len(body))
        log = f"fwd=uri-miss; {outcome_of(self.fill)}"
        return self._answer(metadata, body, (_STORED, log), Counter.FILLS)

    def _keep_negative(self, exchange: Exchange) -> Optional[Answer]:
        """Keep an answer without an object, and send it as `OriginRelay` would."""
        services, head = self._services, exchange.head
        kept = negative_answer.keep(services, self._request, exchange, self.asked)
        if kept is None or not self._wins():
            return None
        try:
            services.cache.disk.poll(self._decline)
        except Unstorable:
            return None
        length, note = len(kept.body), with_detail(_STORED, Detail.NEGATIVE)
        framing = BodyFraming(Framing.LENGTH, length)
        fields = head_fields(passed_on(head), head.status, framing, length, False, services.via, note)
        data = http1.serialise_response(head.status, head.reason, fields) + kept.body
        exchange.body.drain(length)  # it is in the buffer
        exchange.close()
        url, counter = self._request.url, Counter.RELAYED
        return Answer(data, length, url, note, self.name, False, status=head.status, counter=counter)

    def _decline(self) -> None:
        self.fill.asking.declined_for = Detail.STATUS
        self.fill.decline()
        self.asker.close()

    def _store(self, metadata: Metadata, body: bytes) -> None:
        self._services.cache.store_whole(self.fill, metadata, body)
        self.asker.close()  # this closes the file: an operation of the disk, too

    def _finish(self, exchange: Exchange, length: int) -> None:
        kept = self.fill.state is FillState.PUBLISHED
        self._services.counters.add(Counter.PUBLISHED if kept else Counter.UNKEPT)
        exchange.body.readinto(memoryview(bytearray(length)))  # they are in the buffer
        exchange.close()
        if kept:
            self._services.grown(length)

    def close(self) -> None:
        """Do nothing: nothing is stored yet."""


class PolledValidation(PolledFetch):
    """A stored object that has to be validated; `body`: its bytes."""

    def __init__(
        self,
        request: CacheableRequest,
        query: OriginQuery,
        question: NonblockingRequest,
        fill: Fill,
        stale: Stale,
        body: Union[bytes, bytearray],
    ) -> None:
        super().__init__(request, query, question, fill)
        self.stale: Stale = stale
        self._body = body

    def _is_usual(self, exchange: Exchange) -> bool:
        return exchange.head.status == 304

    def _keep(self, exchange: Exchange) -> Optional[Answer]:
        stale = self.stale
        if not meaning.still_good(self._request, exchange, stale.metadata, stale.entry.length) or not self._wins():
            return None
        try:
            metadata = self._services.cache.disk.poll(partial(self._renew, exchange))
        except Unstorable:
            return None
        if metadata is None:
            return None
        return self._answer(metadata, self._body, (_VALIDATED, _VALIDATED), Counter.VALIDATED)

    def _renew(self, exchange: Exchange) -> Optional[Metadata]:
        """Renew the object; None where that takes a thread. Raises Unstorable, for the same reason."""
        stale = self.stale
        metadata = renewed(self._request, exchange, stale.metadata, self.asked.at)
        if metadata.restricted:
            return None
        if not (self.fill.unread and self._says_nothing_new(metadata)):
            self._services.cache.refresh(stale.entry, metadata, LockWait.NONE)
        self.fill.renew()
        exchange.close()
        self.asker.close()
        self.close()
        return metadata

    def _says_nothing_new(self, metadata: Metadata) -> bool:
        """Whether the renewed metadata need not be recorded: it differs in times only, and is not fresh even now.

        With a reader it is recorded all the same: that tells by the time of the validation that there was one.
        """
        stored, now = self.stale.metadata, metadata.fetched_at
        if now - stored.fetched_at > _NOTED_EVERY or stored.must_validate:
            return False
        same = replace(metadata, fetched_at=stored.fetched_at, age=stored.age, fields=_without_date(metadata))
        if same != replace(stored, fields=_without_date(stored)):
            return False
        return not self._request.assess(self.stale.entry.record, metadata, now, now + 1).usable

    def close(self) -> None:
        """Close the stored object."""
        self.stale.entry.close()


def _without_date(metadata: Metadata) -> Tuple[FieldText, ...]:
    """The stored fields but Date, in an order that a 304 does not change: lines of one name stay in theirs."""
    fields = [field for field in metadata.fields if field[0].lower() != "date"]
    return tuple(sorted(fields, key=lambda field: field[0].lower()))


def begin(services: Services, plain: PlainRequest, iteration: float) -> Optional[PolledFetch]:
    """Ask the origin of an object that is not stored or not fresh, as the leader; None where that takes a thread."""
    cache = services.cache
    if not cache.disk.may_poll(iteration):
        return None
    request = CacheableRequest(services, plain.head, plain.target, plain.name, plain.reach, plain.sent)
    try:
        return cache.disk.poll(partial(_begun, services, request))
    except Unstorable:
        return None  # a thread finds the same, and says so


def _begun(services: Services, request: CacheableRequest) -> Optional[PolledFetch]:
    """All of `begin` that uses the disk. Raises Unstorable."""
    hit = services.cache.look(request.key)
    fetch = _miss(services, request) if hit is None else _validation(services, request, hit)
    if fetch is None or (fetch.fill.partial_download is None and fetch.send()):
        return fetch
    fetch.give_up()
    return None


def _miss(services: Services, request: CacheableRequest) -> Optional[PolledFetch]:
    """A miss without a leader so far; None where that takes a thread. Raises Unstorable."""
    query = OriginQuery(services, request, lambda _: None)
    with ExitStack() as cleanup:
        question = _prepared(services, query.whole_request(), cleanup)
        fill = None if question is None else services.cache.lead(request.key)
        if question is None or fill is None:
            return None
        cleanup.pop_all()
        return PolledMiss(request, query, question, fill)


def _validation(services: Services, request: CacheableRequest, hit: Hit) -> Optional[PolledFetch]:
    """The first validation of a stored object; None where that takes a thread. Raises Unstorable."""
    with ExitStack() as cleanup:
        cleanup.callback(hit.entry.close)
        stale = _stale(request, hit)
        body = None if stale is None else read_without_waiting(hit.entry.fileno(), hit.entry.record.length)
        if stale is None or body is None:
            return None
        query = OriginQuery(services, request, lambda _: None)
        question = _prepared(services, query.validation_request(stale.metadata), cleanup)
        if question is None or services.origins.seems_away(request.target):
            return None
        fill = services.cache.lead_validation(request.key, hit.entry.version)
        if fill is None:
            return None
        cleanup.pop_all()
        return PolledValidation(request, query, question, fill, stale, body)


def _stale(request: CacheableRequest, hit: Hit) -> Optional[Stale]:
    """The small object of a hit that has to be validated; None for all others."""
    metadata, record = hit.metadata, hit.entry.record
    if metadata is None or not hit.entry.trusted or not may_be_polled(record, metadata):
        return None
    if not may_reach(request.reach, scope(metadata)) or request.varies(metadata):
        return None
    now = time.time()
    assessment = request.assess(record, metadata, now, now)
    return None if assessment.usable else Stale(hit.entry, metadata, assessment)


def may_be_polled(record: Record, metadata: Metadata) -> bool:
    """Whether the poller's thread validates objects like this one."""
    return record.length <= SMALL and not metadata.restricted and not metadata.redirect


def _prepared(services: Services, request: Request, cleanup: ExitStack) -> Optional[NonblockingRequest]:
    question = services.origins.prepare(request)
    if question is not None:
        cleanup.callback(question.drop)
    return question
