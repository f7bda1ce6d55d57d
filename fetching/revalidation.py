"""Validation in the background, of objects that were sent on a guessed lifetime.

The query has no client's credentials, and no client waits for its response. A changed object is fetched like any
other one. Until it is there, requests find the old one stale, so that the next response is right.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, closing
from dataclasses import replace

from cache import Hit, Lead
from fetching import meaning
from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.filling import Filling, Started
from fetching.negative import Asked
from fetching.origin_query import OriginQuery
from fetching.stored_metadata import as_stored
from monitoring.metrics import Counter
from protocol import freshness
from protocol.headers import Headers
from protocol.selection import CONDITIONS
from storage.entry import Entry, Version
from storage.record import Metadata, Unstorable
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange

_log = logging.getLogger("dduct.fetch")


def revalidate(services: Services, request: CacheableRequest, version: Version) -> bool:
    """Validate the object of a request, published with this version. Returns False where no answer came."""
    return _Revalidation(services, request).ask(version)


class _Revalidation:
    """One validation."""

    def __init__(self, services: Services, request: CacheableRequest) -> None:
        head = replace(request.head, method=b"GET", headers=_without_its_client(services, request.head.headers))
        self._services = services
        self._request = CacheableRequest(services, head, request.target, request.name, request.reach)
        self._query = OriginQuery(services, self._request, lambda _: None)
        self._filling = Filling(services, self._request, self._query, lambda _: None)

    def ask(self, version: Version) -> bool:
        """See `revalidate`."""
        cache = self._services.cache
        try:
            claim = cache.claim(self._request.key, beyond=version)
        except Unstorable:
            return False
        if isinstance(claim, Hit):
            claim.entry.close()
            return True
        if not isinstance(claim, Lead):
            claim.reader.close()  # another request is asking
            return True
        with ExitStack() as cleanup:
            cleanup.callback(claim.fill.close)
            found = cache.lookup(self._request.key)
            if found is None:
                claim.fill.renew()
                return True
            with closing(found.entry):
                if found.metadata is None or found.metadata.restricted or found.entry.version != version:
                    claim.fill.renew()
                    return True
                return self._lead(claim, found.entry, found.metadata, cleanup)

    def _lead(self, claim: Lead, entry: Entry, metadata: Metadata, cleanup: ExitStack) -> bool:
        fill, asked = claim.fill, self._services.negatives.asking(self._request.key.name)
        try:
            exchange = self._query.revalidate(metadata, entry.length)
        except UpstreamError as error:
            fill.fail(error)
            return self._failed(error)
        cleanup.callback(exchange.close)
        status = exchange.head.status
        if meaning.still_good(self._request, exchange, metadata, entry.length):
            self._filling.renew(fill, entry, metadata, exchange, asked.at)
            self._services.counters.add(Counter.CONFIRMED)
            return True
        if exchange.unhelpful:
            failure = exchange.failure()
            fill.fail(failure)
            return self._failed(failure)
        _log.info("Outdated: %s: the origin answers %d to a validation", self._request.shown, status)
        self._services.counters.add(Counter.OUTDATED)
        self._outdate(entry, metadata)
        self._replace(claim, exchange, asked, cleanup)
        return True

    def _replace(self, claim: Lead, exchange: Exchange, asked: Asked, cleanup: ExitStack) -> None:
        """Fetch the new representation, if it may be stored; without readers, a large one is given up."""
        started = self._filling.start(claim.fill, exchange, asked, cleanup)
        if isinstance(started, Started):
            started.reader.close()

    def _outdate(self, entry: Entry, metadata: Metadata) -> None:
        """End the object's guessed lifetime now: no request may get it as if it were fresh."""
        age = freshness.age_at_end(as_stored(metadata), self._services.freshness, time.time())
        try:
            self._services.cache.refresh(entry, replace(metadata, age=age))
        except Unstorable as error:
            _log.debug("Outdated, but its record cannot be written: %s: %s", self._request.shown, error)

    def _failed(self, error: UpstreamError) -> bool:
        self._services.counters.add(Counter.UNCONFIRMED)
        _log.debug("Not validated: %s: %s", self._request.shown, error)
        return False


def _without_its_client(services: Services, headers: Headers) -> Headers:
    """The fields of a request that depend neither on its client nor on its wishes for one response."""
    opening = [name.lower() for name, _ in services.names.opening(headers)]
    return headers.without([*opening, *CONDITIONS, b"cache-control", b"pragma", b"te", b"proxy-authorization"])
