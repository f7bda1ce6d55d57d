"""The way of a request that may be answered from the cache: hit, lead or follow, and one send loop for all three.

A leader asks the origin; if the answer is to be kept, a filler thread owns connection and file from then on, and the
leader reads the growing file like everybody else. So no client, however slow or gone, is in the way of a fill.
A stale object is claimed in the same way: its leader validates it, and everybody else has the outcome.
"""

from __future__ import annotations

import enum
import logging
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Iterable, List, Optional, Protocol

import freshness
import selection
from body import BUFFER_SIZE
from cache import Follow, Hit, Lead
from fill import Fill, FillFailed, FillState
from filler import Services, carry, key_of
from freshness import Assessment, Stored
from http1 import Field, Headers, RequestHead, Target
from metrics import Counter
from policy import Name
from relay import forward, outgoing
from reply import Reply
from selection import Part, Selection
from store import Entry, Metadata, Unstorable
from upstream import Exchange, Request, UpstreamError

_log = logging.getLogger("dduct.fetch")

_CLAIMS_AT_MOST = 8  # then it is relayed: some other process makes and breaks fills faster than we can join them
_PATIENCE = 120.0  # seconds a follower waits for the leader's answer from the origin
_REDIRECT_LIMIT = 512  # characters of a redirect's URL worth remembering
_OUTDATED = (200, 404, 410)  # answers after which what was stored is of no more use
# What would make an origin send less, or something else, than the whole representation.
_CONDITIONS = (
    b"range",
    b"if-range",
    b"if-match",
    b"if-none-match",
    b"if-modified-since",
    b"if-unmodified-since",
)
# RFC 9110 §15.4.5: what of the stored fields a 304 repeats.
_IN_NOT_MODIFIED = frozenset(
    [b"cache-control", b"content-location", b"date", b"etag", b"expires", b"last-modified", b"vary"]
)


class Source(Protocol):
    """Octets by offset: an entry, or a reader on a fill."""

    @property
    def length(self) -> Optional[int]: ...

    def read_at(self, view: memoryview, offset: int) -> int: ...


class _Admission(enum.Enum):
    """What an origin says to a client that wants what another client's credentials have brought here."""

    GRANTED = "the client may have it"
    ANSWERED = "the client has been given the origin's own answer"
    CHANGED = "it may have it, but it is something else by now"


@dataclass(frozen=True)
class _Stale:
    """A stored object that has to be validated before it may be used."""

    entry: Entry
    metadata: Metadata
    assessment: Assessment


class CachedFetch:
    """Answers one GET or HEAD whose target has a name in the cache."""

    def __init__(
        self, services: Services, reply: Reply, request: RequestHead, target: Target, name: Name, near: bool
    ) -> None:
        self._near = near
        self._services = services
        self._cache = services.cache
        self._reply = reply
        self._request = request
        self._target = target
        self._key = key_of(name)
        self._url = _bare(target)
        self._arrived_at = time.time()
        self._signed = bool(name.signature)
        self._credentials = _credentials(request, name)
        self._only_if_cached = freshness.only_if_cached(request)
        # Neither may bring an object here, and so neither may lead those who want one.
        self._takes_no_fill = request.method == b"HEAD" or self._only_if_cached

    def run(self) -> None:
        """Send the answer. Raises UpstreamError while none has begun, OSError when the client is gone."""
        try:
            for _ in range(_CLAIMS_AT_MOST):
                if self._answer():
                    return
        except Unstorable as error:
            self._services.counters.add(Counter.UNSTORABLE)
            _log.debug("Not kept: %s: %s", self._url, error)
        self._relay()

    def _answer(self) -> bool:
        """One attempt; False where the object has changed hands meanwhile and another attempt is due."""
        if self._takes_no_fill:
            found = self._cache.lookup(self._key)
            if found is None:
                self._relay()
                return True
            with closing(found.entry):
                return self._hit(found)
        claim = self._cache.claim(self._key)
        if isinstance(claim, Hit):
            with closing(claim.entry):
                return self._hit(claim)
        return self._join(claim, None)

    def _join(self, claim: object, stale: Optional[_Stale]) -> bool:
        if isinstance(claim, Follow):
            with closing(claim.reader):
                return self._follow(claim, stale)
        assert isinstance(claim, Lead)
        self._lead(claim, stale)
        return True

    # Hit

    def _hit(self, hit: Hit) -> bool:
        metadata = hit.metadata or self._introduction(hit.entry)
        if metadata is None:
            return True
        self._check_whose_affair(metadata)
        if freshness.varies(self._request, metadata.vary):
            self._relay()
            return True
        if hit.metadata is None:
            self._cache.introduce(self._key, metadata)
            self._send_hit(hit.entry, metadata, Counter.HITS, "hit")
            return True
        assessment = self._assess(hit.entry, metadata)
        if not assessment.usable:
            return self._validate(_Stale(hit.entry, metadata, assessment))
        if metadata.restricted:
            admission = self._admit(metadata, hit.entry.length)
            if admission is _Admission.CHANGED:
                return self._validate(_Stale(hit.entry, metadata, assessment))
            if admission is _Admission.ANSWERED:
                return True
        self._send_hit(hit.entry, metadata, Counter.HITS, _hit_note(assessment))
        return True

    def _assess(self, entry: Entry, metadata: Metadata) -> Assessment:
        stored = _stored(metadata)
        if self._key.digest is not None and entry.record.sha256:
            return Assessment(True, True, stored.age(time.time()), float("inf"))  # it can never be anything else
        return freshness.assess(self._request, stored, self._services.freshness, time.time(), self._arrived_at)

    def _validate(self, stale: _Stale) -> bool:
        """Have the origin asked about an object, by this client or by another that is at it already."""
        if self._takes_no_fill:
            self._relay_or(stale)
            return True
        claim = self._cache.claim(self._key, beyond=stale.entry.version)
        if isinstance(claim, Hit):
            claim.entry.close()
            return False
        return self._join(claim, stale)

    # Follow

    def _follow(self, claim: Follow, stale: Optional[_Stale]) -> bool:
        fill = claim.reader.fill
        state = fill.wait_head(_PATIENCE)
        if state is FillState.GONE:
            return False
        if state in (FillState.DECLINED, FillState.ASKING):
            self._relay_or(stale)
            return True
        if fill.metadata is None:
            error = _as_upstream_error(fill.cause)
            if not self._may_use(stale):
                raise error
            self._send_stale(stale, error)
            return True
        if state is FillState.FAILED:
            return False  # nothing has been sent yet: a new fill may do better
        known = fill.metadata.url == self._url
        metadata = fill.metadata if known else self._introduction(claim.reader)
        if metadata is None:
            return True
        self._check_whose_affair(metadata)
        if freshness.varies(self._request, metadata.vary):
            self._relay()
            return True
        if metadata.restricted and known:
            admission = self._admit(metadata, claim.reader.length)
            if admission is _Admission.CHANGED:
                self._relay()
            if admission is not _Admission.GRANTED:
                return True
        self._services.counters.add(Counter.COLLAPSED)
        self._reply.note = f"fwd={'uri-miss' if stale is None else 'stale'}; collapsed"
        self._send(claim.reader, metadata)
        if not known and fill.state is FillState.PUBLISHED:
            self._cache.introduce(self._key, metadata)
        return True

    # Lead

    def _lead(self, claim: Lead, stale: Optional[_Stale]) -> None:
        fill = claim.fill
        with ExitStack() as owned:
            owned.callback(fill.close)
            asked_at = time.time()
            try:
                exchange = self._ask(stale)
            except UpstreamError as error:
                fill.fail(error)
                if not self._may_use(stale):
                    raise
                self._send_stale(stale, error)
                return
            owned.callback(exchange.close)
            status = exchange.head.status
            if stale is not None and status == 304:
                self._renew(fill, stale, exchange, asked_at)
                return
            if status >= 500 and self._may_use(stale):
                failure = UpstreamError(f"the origin answers {status}", status)
                fill.fail(failure)
                self._send_stale(stale, failure)
                return
            metadata = self._begin(fill, exchange, asked_at)
            if metadata is None:
                if stale is not None and status in _OUTDATED:
                    self._cache.remove(self._key)
                self._pass_on(exchange)
                return
            reader = self._cache.reader(fill)
            owned.callback(reader.close)
            self._services.spawn("fill", partial(carry, fill, exchange, self._whole(), self._url, self._services))
            # From here on the filler owns them, and this client is a reader like any other.
            owned.pop_all()
        self._reply.note = "fwd=uri-miss; stored" if stale is None else "fwd=stale; fwd-status=200; stored"
        with closing(reader):
            self._send(reader, metadata)

    def _ask(self, stale: Optional[_Stale]) -> Exchange:
        """Ask for the whole representation, or whether it is still what is stored."""
        if stale is None:
            return self._follow_redirects(self._whole())
        fields = Headers(_fields(stale.metadata))
        exchange = self._follow_redirects(self._whole(freshness.validators(fields)))
        if exchange.head.status != 304 or freshness.selects(exchange.head, fields):
            return exchange
        exchange.close()  # it speaks of something that is not here
        return self._follow_redirects(self._whole())

    def _renew(self, fill: Fill, stale: _Stale, exchange: Exchange, asked_at: float) -> None:
        """The origin says that what is stored is still good (RFC 9111 §4.3.4)."""
        now = time.time()
        metadata = replace(
            stale.metadata,
            fields=freshness.updated_fields(Headers(_fields(stale.metadata)), exchange.head, now),
            fetched_at=now,
            age=freshness.initial_age(exchange.head, asked_at, now),
        )
        try:
            self._cache.refresh(stale.entry, metadata)
        except Unstorable as error:
            _log.debug("Validated, but cannot be noted so: %s: %s", self._url, error)
        fill.renew()
        exchange.close()
        self._services.grants.remember(self._credentials, self._key.name)
        self._send_hit(stale.entry, metadata, Counter.VALIDATED, "fwd=stale; fwd-status=304")

    def _begin(self, fill: Fill, exchange: Exchange, asked_at: float) -> Optional[Metadata]:
        """Start the fill, or decline it and return None."""
        reason = self._not_storable(exchange)
        if reason is None and not exchange.body.delimited and self._key.digest is None:
            reason = "nothing but the end of its connection says where it ends"
        metadata = self._describe(exchange, asked_at)
        if reason is None and metadata.restricted and not self._cache.store.keeps_metadata:
            reason = "it needs authorisation, and the file system keeps no metadata to say so"
        if reason is None:
            try:
                fill.begin(metadata, exchange.body.length)
                self._services.counters.add(Counter.FILLS)
                self._services.grants.remember(self._credentials, self._key.name)
                return metadata
            except Unstorable as error:
                reason = str(error)
        _log.debug("Not kept: %s: %s", self._url, reason)
        fill.decline()
        return None

    # What the origin says

    def _introduction(self, source: Source) -> Optional[Metadata]:
        """Ask this URL's origin about octets that are known from elsewhere; its head decides, its body is not read.

        None where its answer went to the client instead.
        """
        asked_at = time.time()
        with closing(self._follow_redirects(self._whole())) as exchange:
            same_length = None in (exchange.body.length, source.length) or exchange.body.length == source.length
            if same_length and self._not_storable(exchange) is None:
                self._services.grants.remember(self._credentials, self._key.name)
                return self._describe(exchange, asked_at)
            self._pass_on(exchange)
            return None

    def _admit(self, metadata: Metadata, length: Optional[int]) -> _Admission:
        """Ask the origin, with this client's own credentials, whether it may have what is stored."""
        if self._services.grants.holds(self._credentials, self._key.name):
            return _Admission.GRANTED
        fields = Headers(_fields(metadata))
        probe = self._request_for(self._request.method, freshness.validators(fields))
        exchange = self._exchange(probe)
        target = exchange.redirect()
        if target is not None and _bare(target) == metadata.redirect:
            exchange.close()  # to where it has sent the one who brought the object
            return self._granted()
        if target is not None:
            # An origin may send a stranger away to log in: what counts is what is found at the end of the way.
            exchange.close()
            exchange = self._follow_redirects(probe)
        with closing(exchange):
            head = exchange.head
            if head.status == 304 and freshness.selects(head, fields):
                return self._granted()
            if head.status in (200, 206):
                if freshness.same_representation(head, fields, length):
                    return self._granted()
                if self._not_storable(exchange) is None:
                    return _Admission.CHANGED
            self._services.grants.forget(self._credentials, self._key.name)
            self._reply.note = "fwd=request"
            forward(self._reply, exchange)
            return _Admission.ANSWERED

    def _granted(self) -> _Admission:
        self._services.grants.remember(self._credentials, self._key.name)
        return _Admission.GRANTED

    def _not_storable(self, exchange: Exchange) -> Optional[str]:
        redirected = exchange.redirected_to is not None
        return freshness.not_storable(self._request, exchange.head, self._services.freshness, redirected)

    def _describe(self, exchange: Exchange, asked_at: float) -> Metadata:
        now = time.time()
        redirect = "" if exchange.redirected_to is None else _bare(exchange.redirected_to)
        return Metadata(
            url=self._url,
            fields=freshness.stored_fields(exchange.head, now),
            fetched_at=now,
            restricted=self._signed or freshness.restricted(self._request, exchange.head, self._services.freshness),
            vary=freshness.vary_fields(self._request, exchange.head),
            age=freshness.initial_age(exchange.head, asked_at, now),
            near=exchange.near,
            redirect=redirect if len(redirect) <= _REDIRECT_LIMIT else "",
        )

    # Requests

    def _whole(self, conditions: Iterable[Field] = ()) -> Request:
        """The request for the whole representation, as its origin stores it (never re-encoded)."""
        return self._request_for(b"GET", [*conditions, (b"Accept-Encoding", b"identity")])

    def _request_for(self, method: bytes, fields: Iterable[Field]) -> Request:
        headers = outgoing(self._request, self._services.via).without([*_CONDITIONS, b"accept-encoding"])
        headers = Headers([*headers, *fields])
        return Request(method, self._target, headers, self._near, on_interim=self._reply.interim)

    def _exchange(self, request: Request) -> Exchange:
        self._check_permission()
        return self._services.origins.exchange(request)

    def _follow_redirects(self, request: Request) -> Exchange:
        self._check_permission()
        return self._services.origins.follow(request)

    def _check_whose_affair(self, metadata: Metadata) -> None:
        """What a client on this machine has brought from its own services is not for others."""
        if metadata.near and not self._near:
            raise UpstreamError("its origin is for clients on dduct's own machine alone", 403)

    def _check_permission(self) -> None:
        if self._only_if_cached:
            raise UpstreamError("only-if-cached, and there is no response in the cache that may be used", 504)

    # Answers

    def _relay(self) -> None:
        """Ask the origin for this client alone."""
        headers = outgoing(self._request, self._services.via)
        request = Request(self._request.method, self._target, headers, self._near, on_interim=self._reply.interim)
        with closing(self._exchange(request)) as exchange:
            self._services.counters.add(Counter.RELAYED)
            self._reply.note = "fwd=bypass"
            forward(self._reply, exchange)

    def _relay_or(self, stale: Optional[_Stale]) -> None:
        """Relay, or use the stale object if the origin cannot be asked."""
        try:
            self._relay()
        except UpstreamError as error:
            if self._reply.started or not self._may_use(stale):
                raise
            self._send_stale(stale, error)

    def _pass_on(self, exchange: Exchange) -> None:
        """Give the client the answer to the request for the whole, unless it had asked for something else."""
        if any(name in self._request.headers for name in _CONDITIONS):
            exchange.close()
            self._relay()
        else:
            self._services.counters.add(Counter.RELAYED)
            self._reply.note = "fwd=uri-miss"
            forward(self._reply, exchange)

    def _may_use(self, stale: Optional[_Stale]) -> bool:
        """Whether a stale object will do now that its origin cannot be asked."""
        if stale is None or self._only_if_cached or stale.metadata.restricted:
            return False
        return stale.assessment.usable_on_error

    def _send_stale(self, stale: Optional[_Stale], error: UpstreamError) -> None:
        assert stale is not None
        _log.warning("Stale, but sent: %s: %s", self._url, error)
        self._send_hit(stale.entry, stale.metadata, Counter.STALE, _hit_note(stale.assessment))

    def _send_hit(self, entry: Entry, metadata: Metadata, counter: Counter, note: str) -> None:
        self._services.counters.add(counter)
        self._reply.note = note
        self._send(entry, metadata)

    def _send(self, source: Source, metadata: Metadata) -> None:
        fields = _fields(metadata)
        chosen = selection.select(self._request, Headers(fields), source.length)
        if chosen is None:
            self._relay()  # a precondition is for the origin to judge
            return
        age = int(_stored(metadata).age(time.time()))
        extra = [*chosen.fields, (b"Accept-Ranges", b"bytes")]
        if age or not self._reply.note.startswith("fwd=uri-miss"):
            extra.append((b"Age", b"%d" % age))
        self._reply.begin(chosen.status, [*_shown(fields, chosen), *extra], chosen.length)
        if not self._reply.has_body:
            return
        try:
            complete = all(self._send_part(source, part) for part in chosen.parts)
        except FillFailed as error:
            _log.info("Cut short: %s: %s", self._url, error)
            complete = False
        if not complete:
            self._reply.cut()
            return
        if chosen.closing:
            self._reply.write(memoryview(chosen.closing))
        self._reply.finish()

    def _send_part(self, source: Source, part: Part) -> bool:
        """Send a span; whether all of it was there. Raises FillFailed, OSError."""
        if part.preface:
            self._reply.write(memoryview(part.preface))
        size = BUFFER_SIZE if part.end is None else min(BUFFER_SIZE, part.end - part.start)
        buffer = memoryview(bytearray(size))
        offset = part.start
        while part.end is None or offset < part.end:
            count = source.read_at(buffer if part.end is None else buffer[: part.end - offset], offset)
            if not count:
                return part.end is None
            self._reply.write(buffer[:count])
            offset += count
        return True


def _credentials(request: RequestHead, name: Name) -> bytes:
    """All that this client has to show for itself; nothing where that is nothing."""
    fields = (b": ".join(field) for field in request.headers.credentials())
    return b"\n".join([*fields, name.signature.encode()]).strip(b"\n")


def _bare(target: Target) -> str:
    """A URL without its query, which may be signed."""
    return str(target).partition("?")[0]


def _fields(metadata: Metadata) -> List[Field]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in metadata.fields]


def _stored(metadata: Metadata) -> Stored:
    return Stored(Headers(_fields(metadata)), metadata.fetched_at, metadata.age)


def _shown(fields: List[Field], chosen: Selection) -> List[Field]:
    """What of the stored fields belongs into an answer."""
    if chosen.status == 304:
        return [field for field in fields if field[0].lower() in _IN_NOT_MODIFIED]
    if chosen.status == 416:
        return [field for field in fields if field[0].lower() == b"date"]
    replaced = {name.lower() for name, _ in chosen.fields}
    return [field for field in fields if field[0].lower() not in replaced]


def _hit_note(assessment: Assessment) -> str:
    """Cache-Status of a hit (RFC 9211 §2); its ttl is negative for a stale one."""
    return "hit" if assessment.ttl == float("inf") else f"hit; ttl={int(assessment.ttl)}"


def _as_upstream_error(cause: object) -> UpstreamError:
    """What a follower tells its client when the leader got no answer."""
    return cause if isinstance(cause, UpstreamError) else UpstreamError(f"the transfer broke off: {cause}")
