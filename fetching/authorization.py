"""Authorization: whether this client may have what is stored.

Rules of this module:

* The cache gives no access. What needs permission is sent only after its origin has given this client the very same,
  with the client's own credentials (`fetching/proof`), or while a grant of that lasts (`fetching/grants`).
* Where the origin gives it something else, the client gets the origin's own response.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from typing import Literal, Optional, Set, Union

from cache import Hit
from fetching import meaning, proof
from fetching.cacheable_request import CacheableRequest, may_confirm_alias
from fetching.deliver import Source
from fetching.description import authorized, describe
from fetching.filler import Services
from fetching.origin_query import OriginQuery
from fetching.origin_relay import OriginRelay
from fetching.outcomes import Admission
from fetching.own_bytes import ByteComparison
from fetching.proof import Verdict
from fetching.stored_metadata import scope, stored_fields, version
from monitoring.details import Detail, with_detail
from net.addresses import may_reach
from protocol import media_types, validation
from storage.entry import Entry
from storage.record import Metadata, Unstorable
from upstream.dialling import REFUSALS, NoToken
from upstream.exchange import Exchange

_log = logging.getLogger("dduct.fetch")


class Authorization:
    """What one request's client may have."""

    def __init__(self, services: Services, request: CacheableRequest, query: OriginQuery, relay: OriginRelay) -> None:
        self._services = services
        self._cache = services.cache
        self._request = request
        self._query = query
        self._relay = relay

    def why_relayed(self, metadata: Metadata) -> Optional[str]:
        """Cache-Status of a request that is relayed, because the stored object is for others; None where it is not.

        An object that came from a service of dduct's machine is for clients that may reach that service. Others are
        relayed: every address that is dialled then is judged, and so is each redirect.
        """
        request = self._request
        out_of_reach = not may_reach(request.reach, scope(metadata))
        if out_of_reach and (metadata.redirect or not self._services.origins.opens(request.target)):
            return with_detail("fwd=bypass", Detail.LOCAL)
        if request.name.manifest and not self._is_accepted(metadata):
            return with_detail("fwd=vary-miss", Detail.CONDITION)
        return "fwd=vary-miss" if request.varies(metadata) else None

    def _is_accepted(self, metadata: Metadata) -> bool:
        """Whether this client accepts the stored media type: what a digest names is stored once for all."""
        kind = stored_fields(metadata).get(b"content-type")
        return media_types.accepts(self._request.head.headers.get(b"accept"), kind)

    def needs_permission(self, metadata: Metadata) -> bool:
        """Whether the origin has to permit this client the stored object."""
        return needs_permission(self._request, metadata)

    def admit(self, metadata: Metadata, length: Optional[int], hit: Optional[Hit] = None) -> Admission:
        """Ask the origin, with this client's own credentials, whether it may have the stored object."""
        if holds_grant(self._services, self._request, metadata):
            return Admission.GRANTED
        exchange = self._query.permission(metadata)
        if exchange is None:
            return self._authorize(metadata, None, hit)
        digest = self._request.key.digest
        comparison = ByteComparison(digest if hit is None else hit.entry.record.digest)
        with closing(exchange):
            digests = {**comparison.digests, **ByteComparison(digest).digests}
            verdict = proof.judge(exchange.head, stored_fields(metadata), length, digests)
            if verdict is Verdict.SAME:
                return self._authorize(metadata, exchange, hit)
            if exchange.unhelpful and not metadata.restricted:
                raise exchange.failure()
            refused = exchange.head.status in REFUSALS
            if refused and self._services.public_tokens.is_stand_in(self._request.head.headers):
                raise NoToken
            changed = verdict is Verdict.OTHER and metadata.restricted
            if changed and meaning.may_replace(self._request, exchange, metadata, self._is_known()):
                return Admission.CHANGED
            self._services.grants.forget(self._request.grantee, self._request.key.name, version(metadata))
            self._relay.pass_on(exchange, with_detail("fwd=request", Detail.CREDENTIALS), comparison)
            if comparison.equal and validation.same_coding(exchange.head, stored_fields(metadata)):
                self._authorize(metadata, exchange, hit)
            return Admission.ANSWERED

    def confirm_alias(self, source: Source, brought: Metadata) -> Union[Metadata, Literal[Admission.ANSWERED]]:
        """Ask this URL's origin about bytes that another URL has brought; a head that confirms them is enough.

        Returns the metadata of this URL's own response.
        """
        request = self._request
        if not may_confirm_alias(request, brought):
            self._relay.relay(with_detail("fwd=uri-miss", Detail.CREDENTIALS))
            return Admission.ANSWERED
        asked_at = time.time()
        with closing(self._query.get_full()) as exchange:
            if meaning.has(request, exchange, brought, source.length):
                metadata = describe(request, exchange, asked_at)
                self.grant(metadata)
                return metadata
            reason = meaning.not_storable(request, exchange)
            comparison = ByteComparison(request.key.digest)
            detail = Detail.NOT_KEPT if reason is None else reason.detail
            self._relay.pass_on(exchange, with_detail("fwd=uri-miss", detail), comparison)
            if comparison.equal and reason is None and isinstance(source, Entry):
                metadata = describe(request, exchange, asked_at)
                self.grant(metadata)
                self._cache.confirm_alias(request.key, metadata)
            return Admission.ANSWERED

    def may_change(self, stored: Metadata, exchange: Exchange) -> bool:
        """Whether another response may replace or end the stored object."""
        if not stored.restricted:
            return True
        if self._services.grants.holds(self._request.credentials, self._request.key.name, version(stored)):
            return True
        return meaning.may_replace(self._request, exchange, stored, self._is_known())

    def grant(self, metadata: Metadata) -> None:
        """Note that the origin permits this client the object."""
        grantee, name = self._request.grantee, self._request.key.name
        self._services.grants.remember(grantee, name, version(metadata))
        self._services.known.remember(grantee, name, "")

    def _authorize(self, metadata: Metadata, exchange: Optional[Exchange], hit: Optional[Hit]) -> Admission:
        """Note that the origin permits this client the stored object, and what else its response shows."""
        amended = authorized(self._request, exchange, metadata)
        if hit is not None and amended != metadata and self._request.head.method != b"HEAD":
            try:
                self._cache.amend(self._request.key, hit.entry, metadata, amended)
            except Unstorable as error:
                _log.debug("Public, but its record cannot be written: %s: %s", self._request.shown, error)
        self.grant(metadata)
        return Admission.GRANTED

    def _is_known(self) -> bool:
        """Whether the client was authorized for any version, not long ago."""
        return self._services.known.holds(self._request.credentials, self._request.key.name, "")


def needs_permission(request: CacheableRequest, metadata: Metadata) -> bool:
    """Whether the origin has to permit this client the stored object.

    A client with credentials may get another representation than the one that came without any.
    """
    if metadata.restricted:
        return True
    return not metadata.same_for_all and not request.lasts and bool(request.credentials)


def holds_grant(services: Services, request: CacheableRequest, metadata: Metadata) -> bool:
    """Whether the origin has permitted this client the stored object, not long ago."""
    of = version(metadata)
    return any(services.grants.holds(one, request.key.name, of) for one in _grantees(request))


def _grantees(request: CacheableRequest) -> Set[bytes]:
    """The credentials whose grants permit a client something: its own ones, or those that it may have of dduct."""
    found = {request.credentials, request.grantee}
    lent = None if request.use is None or request.credentials else request.use.grantee
    if lent is not None:
        found.update((lent, b"HEAD\n" + lent) if request.head.method == b"HEAD" else (lent,))
    return found
