"""A cacheable request's queries to its origin, and what the responses say of the object."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import replace
from functools import cached_property, partial
from typing import Callable, Iterable, List, Optional, Tuple

from fetching import permission, proof
from fetching.filler import MAX_SKIPPED, Services
from fetching.naming import Name
from fetching.proof import Verdict
from fetching.stored_metadata import needed, stored_fields
from monitoring.details import Detail, NotKept
from monitoring.redaction import shown
from net.addresses import Reach
from net.body import IncompleteBody
from protocol import freshness, media_types, validation
from protocol.http1 import Field, Headers, RequestHead, ResponseHead, Target
from protocol.selection import CONDITIONS
from storage.store import FieldText, Metadata
from transfers.asking import Question
from transfers.fill import PartialDownload
from upstream.client import Exchange, Purpose, Request, UpstreamError
from upstream.relay import outgoing

_log = logging.getLogger("dduct.fetch")

_REDIRECT_LIMIT = 512  # characters of a redirect's URL; of a longer one, only the origin is stored


class OriginQuery:
    """The queries of one request. Each raises UpstreamError, also where the client forbids one (only-if-cached).

    Signatures and secrets in the query count as credentials. `reach`: what of dduct's machine the client may reach.
    """

    def __init__(
        self,
        services: Services,
        request: RequestHead,
        target: Target,
        name: Name,
        reach: Reach,
        on_interim: Callable[[ResponseHead], None],
    ) -> None:
        self._services = services
        self._request = request
        self._target = target
        self._reach = reach
        self._signed = bool(name.signature or name.secrets)
        self._path = name.path.partition("?")[0]
        self._lasts = name.digest is not None  # its content never changes, wherever it comes from
        self._on_interim = on_interim
        self.only_if_cached = freshness.only_if_cached(request)
        self.keeps_nothing = self.only_if_cached or freshness.says_no_store(request)
        self.url = bare(target)
        self.shown = shown(self.url)  # for the log
        self.place = self.url + _mark_of(name)

    @cached_property
    def sent(self) -> RequestHead:
        """The request as its origin gets it; a response may depend on its fields."""
        fields = outgoing(self._request, self._services.via).without([*CONDITIONS, b"accept-encoding"])
        return replace(self._request, headers=self._services.names.on_behalf_of_all(fields))

    @cached_property
    def brings(self) -> Tuple[str, ...]:
        """The kinds of credentials that this request brings."""
        return permission.reasons(bool(self._services.names.opening(self.sent.headers)), self._signed, private=False)

    @cached_property
    def question(self) -> Question:
        """All parts of a request for the whole that may differ between clients."""
        fields = sorted((name.lower(), value) for name, value in self.sent.headers)
        return self._reach, self._target.path_query, tuple(fields)

    def varies(self, metadata: Metadata) -> bool:
        """Whether the stored response was selected for another kind of request."""
        return bool(metadata.vary) and freshness.varies(self.sent, metadata.vary)

    # Queries

    def pass_through(self, purpose: Purpose = Purpose.RELAY) -> Exchange:
        """Send the client's own request."""
        self._check_permission()
        headers = outgoing(self._request, self._services.via)
        return self._services.origins.exchange(self._made_of(self._request.method, headers, purpose))

    def whole_request(self, conditions: Iterable[Field] = ()) -> Request:
        """The request for the whole representation, as its origin stores it (never re-encoded)."""
        return self._request_for(b"GET", [*conditions, (b"Accept-Encoding", b"identity")])

    def get_full(self, conditions: Iterable[Field] = ()) -> Exchange:
        """Ask for the whole representation, through redirects."""
        self._check_permission()
        return self._services.origins.follow(self.whole_request(conditions))

    def revalidate(self, metadata: Metadata, length: Optional[int]) -> Exchange:
        """Ask for the whole, unless the stored object is still good: then the origin answers 304."""
        fields, strict = stored_fields(metadata), self._is_about_permission(metadata)
        self._check_permission()
        question = self.whole_request(proof.question(fields) if strict else validation.validators(fields))
        confirms = partial(proof.names if strict else validation.confirms, fields=fields)
        exchange = self._services.origins.follow(
            replace(question, confirms=confirms, expects_redirect=bool(metadata.redirect))
        )
        if exchange.head.status != 304 or self.still_good(exchange, metadata, length):
            return exchange
        exchange.close()  # the 304 is about another representation
        return self.get_full()

    def whole_or_rest(self, partial_download: Optional[PartialDownload]) -> Exchange:
        """Ask for the whole, or for what a partial download lacks of it: a 206 is exactly that."""
        if partial_download is None or not self._resumes(partial_download):
            return self.get_full()
        exchange = self.get_full(validation.rest_conditions(self._etag_of(partial_download), partial_download.size))
        if self.is_rest(exchange, partial_download) or exchange.head.status not in (206, 416):
            return exchange
        exchange.close()  # it is another part than the one asked for
        return self.get_full()

    def get_range(self, etag: bytes, offset: int, length: int) -> Exchange:
        """Ask for the bytes from `offset` on, of the representation with this strong validator and length."""
        exchange = self.get_full(validation.rest_conditions(etag, offset))
        if validation.is_rest(exchange.head, etag, offset, length):
            return exchange
        try:
            if offset <= MAX_SKIPPED and validation.is_whole_again(exchange.head, etag, length):
                exchange.body.consume(offset)
                return exchange
        except IncompleteBody as error:
            _log.debug("Broken off again: %s: %s", self.url, error)
        exchange.discard()
        raise UpstreamError("the origin does not send the rest")

    def permission(self, metadata: Metadata) -> Optional[Exchange]:
        """Ask whether this client may have the stored object, with its own method: CDNs refuse HEAD.

        None where the origin redirects it to where the object came from, and no credentials counted there: that is
        permission.
        """
        self._check_permission()
        fields = stored_fields(metadata)
        probe = self._request_for(self._request.method, [*proof.question(fields), (b"Accept-Encoding", b"identity")])
        # Stricter than a validation: another request's response must not authorize this client.
        probe = replace(probe, confirms=partial(proof.names, fields=fields))
        exchange = self._services.origins.exchange(probe)
        target = exchange.redirect()
        if target is None:
            return exchange
        if self._leads_everybody_there(target, metadata):
            exchange.close()
            return None
        # An origin may redirect a stranger to a login page, or redirect all clients before it checks credentials. So
        # the response at the end of the redirects decides.
        return self._services.origins.follow(probe, begun=exchange)

    def _leads_everybody_there(self, target: Target, metadata: Metadata) -> bool:
        """Whether a redirect leads where any client may have the stored object: it came from there without credentials.

        A query may carry the client's credentials along, and a signature may have opened the redirect itself.
        """
        why_is_known = bool(metadata.restricted_by) or not metadata.restricted
        here = (self._target.scheme, self._target.authority)
        same = "?" not in str(target) and str(target) == metadata.redirect
        moved = (target.scheme, target.authority) != here
        return same and moved and why_is_known and permission.SIGNATURE not in metadata.restricted_by

    # Responses

    def is_rest(self, exchange: Exchange, partial_download: Optional[PartialDownload]) -> bool:
        """Whether a response is exactly what a partial download lacks, of the same representation."""
        if partial_download is None or not self._resumes(partial_download):
            return False
        return validation.is_rest(
            exchange.head, self._etag_of(partial_download), partial_download.size, partial_download.length
        )

    def not_storable(self, exchange: Exchange) -> Optional[NotKept]:
        """Why a response may not be stored; None where it may."""
        redirected = exchange.redirected_to is not None
        reason = freshness.not_storable(self._request, exchange.head, self._services.freshness, redirected)
        kind = exchange.head.headers.get(b"content-type")
        if reason is None and media_types.contradicts(self._path, self._lasts, kind):
            found = media_types.essence(kind).decode("latin-1")
            return NotKept(Detail.HTML, f"{found} under the name of an archive or a digest")
        return reason

    def may_replace(self, stored: Metadata, exchange: Exchange, known: bool) -> bool:
        """Whether another response may replace the stored one; `known`: its client was authorized before."""
        if self.not_storable(exchange) is not None:
            return False
        fields = stored_fields(stored)
        return permission.may_replace(stored, self.brings, known, exchange.head, fields, time.time())

    def once_authorized(self, metadata: Metadata, exchange: Optional[Exchange]) -> Metadata:
        """The metadata once this client is authorized; without an exchange, a redirect for all clients did that."""
        rules, names = self._services.freshness, self._services.names
        if exchange is None:
            return replace(metadata, same_for_all=metadata.same_for_all or not metadata.restricted)
        return permission.shown(metadata, bool(self.brings), exchange.head, rules, names)

    def describe(self, exchange: Exchange, asked_at: float) -> Metadata:
        """The metadata to store of a response's head, and of the redirects that led to it."""
        now = time.time()
        rules, names = self._services.freshness, self._services.names
        target = exchange.redirected_to
        redirect = "" if target is None else bare(target) + ("?" if "?" in str(target) else "")
        private = any(
            freshness.is_private(head, rules) for head in (exchange.head, *(hop.head for hop in exchange.hops))
        )
        restricted_by = permission.reasons(
            permission.FIELDS in self.brings, permission.SIGNATURE in self.brings, private
        )
        age = freshness.initial_age(exchange.head, asked_at, now)
        return Metadata(
            url=self.place,
            fields=self._limited(freshness.stored_fields(exchange.head, now), exchange, now, age),
            fetched_at=now,
            restricted=bool(restricted_by),
            restricted_by=restricted_by,
            vary=freshness.vary_fields(self.sent, exchange.head, names),
            age=age,
            near=exchange.needs is Reach.EVERYTHING,
            own=exchange.needs is Reach.OWN_ADDRESSES,
            redirect=redirect if len(redirect) <= _REDIRECT_LIMIT else "/".join(_origin_of(redirect)),
        )

    def still_good(self, exchange: Exchange, stored: Metadata, length: Optional[int]) -> bool:
        """Whether the response to `revalidate` confirms the stored object."""
        if self._is_about_permission(stored):
            same = proof.judge(exchange.head, stored_fields(stored), length, {}) is Verdict.SAME
            return same and (exchange.head.status == 304 or self.not_storable(exchange) is None)
        if exchange.head.status == 304:
            return validation.selects(exchange.head, stored_fields(stored))
        target = exchange.redirected_to
        elsewhere = (
            target is not None and bool(stored.redirect) and _origin_of(str(target)) != _origin_of(stored.redirect)
        )
        repeated = validation.repeats(exchange.head, stored_fields(stored), length, elsewhere)
        return repeated and self.not_storable(exchange) is None

    def may_confirm_alias(self, brought: Metadata) -> bool:
        """Whether this URL's origin may confirm that it has the object that another URL has `brought`.

        Any origin can say so without having it. So only its own origin opens a restricted object.
        """
        return not brought.restricted or _origin_of(brought.url) == _origin_of(self.url)

    def has(self, exchange: Exchange, brought: Metadata, length: Optional[int], digest: str) -> bool:
        """Whether a response is the object of `digest`, which another URL has brought.

        Only a response from dduct's own machine opens an object from there.
        """
        if self.not_storable(exchange) is not None or needed(brought) > exchange.needs:
            return False
        if brought.restricted:
            return proof.states(exchange.head, *digest.split(":"))
        return None in (exchange.body.length, length) or exchange.body.length == length

    def renewed(self, stored: Metadata, exchange: Exchange, asked_at: float) -> Metadata:
        """The metadata of a stored representation after a 304 (RFC 9111 §4.3.4): its fields, and its restrictions.

        Restrictions stay: permission for this request's credentials says nothing about other clients.
        """
        found = self.describe(exchange, asked_at)
        now = found.fetched_at
        fields = validation.updated_fields(stored_fields(stored), exchange.head, now)
        return replace(
            permission.merged(stored, found),
            fields=self._limited(fields, exchange, now, found.age),
            fetched_at=now,
            age=found.age,
            must_validate=False,
            near=stored.near or found.near,
            own=stored.own or found.own,
            vary=found.vary if b"vary" in exchange.head.headers else stored.vary,
            redirect=found.redirect,
        )

    # Internals

    def _limited(
        self, fields: Tuple[FieldText, ...], exchange: Exchange, now: float, age: float
    ) -> Tuple[FieldText, ...]:
        """Fields of a response, fresh for no longer than the redirects that led to it."""
        rules = self._services.freshness
        holding = (freshness.redirect_lifetime(hop.head, rules, now) for hop in exchange.hops)
        limits = [seconds for seconds in holding if seconds is not None]
        return fields if self._lasts or not limits else freshness.limited(fields, min(limits) + age, rules, now)

    def _is_about_permission(self, stored: Metadata) -> bool:
        """Whether a validation also decides whether this client may have the object: then it takes a proof."""
        return stored.restricted or bool(self.brings)

    def _resumes(self, partial_download: PartialDownload) -> bool:
        """Whether this request fits a partial download, and something will show that the rest belongs to it."""
        if partial_download.metadata.url != self.place or self.varies(partial_download.metadata):
            return False
        return self._lasts or self._etag_of(partial_download) is not None

    def _etag_of(self, partial_download: PartialDownload) -> Optional[bytes]:
        """A partial download's strong validator, if any; None where its digest proves it."""
        return None if self._lasts else validation.strong_etag(stored_fields(partial_download.metadata))

    def _request_for(self, method: bytes, fields: Iterable[Field]) -> Request:
        return self._made_of(method, Headers([*self.sent.headers, *fields]), Purpose.FILL)

    def _made_of(self, method: bytes, headers: Headers, purpose: Purpose) -> Request:
        names = self._services.names
        return Request(method, self._target, headers, self._reach, purpose, on_interim=self._on_interim, names=names)

    def _check_permission(self) -> None:
        if self.only_if_cached:
            raise UpstreamError("only-if-cached, and there is no response in the cache that may be used", 504)


def bare(target: Target) -> str:
    """A URL without its query, which may be signed."""
    return str(target).partition("?")[0]


def _mark_of(name: Name) -> str:
    """A hash that tells URLs with different queries apart without showing these: they may hold secrets."""
    query = name.path.partition("?")[2]
    return "?" + hashlib.sha256(query.encode()).hexdigest()[:16] if query else ""


def _origin_of(url: str) -> List[str]:
    """Scheme and authority."""
    return url.split("/", 3)[:3]
