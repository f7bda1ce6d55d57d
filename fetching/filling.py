"""Filling: a leader's use of its origin's response. It starts a fill, declines it, or renews the stored object."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Callable, Optional, Tuple

from fetching import meaning, permission
from fetching.cacheable_request import CacheableRequest
from fetching.description import describe, renewed
from fetching.filler import REFUSALS, Services, carry
from fetching.origin_query import OriginQuery
from monitoring.details import Detail, NotKept
from monitoring.metrics import Counter
from protocol import validation
from storage.store import Entry, Metadata, Unstorable
from transfers.fill import Fill
from transfers.follow import FillReader
from upstream.client import Exchange

_log = logging.getLogger("dduct.fetch")


class Filling:
    """The fills of one request. `on_begun` gets an object's metadata as soon as its fill has begun."""

    def __init__(
        self,
        services: Services,
        request: CacheableRequest,
        query: OriginQuery,
        on_begun: Callable[[Metadata], object],
    ) -> None:
        self._services = services
        self._cache = services.cache
        self._request = request
        self._query = query
        self._on_begun = on_begun
        self._url = request.shown
        self.reason = NotKept(Detail.NOT_KEPT, "")  # why the last response was not stored

    def start(
        self, fill: Fill, exchange: Exchange, asked_at: float, cleanup: ExitStack
    ) -> Optional[Tuple[FillReader, Metadata]]:
        """Move fill and exchange from `cleanup` to a filler. Returns a reader and the metadata; None if declined."""
        metadata = self._begin(fill, exchange, asked_at)
        if metadata is None:
            return None
        reader = self._cache.reader(fill)
        cleanup.callback(reader.close)
        work = partial(carry, fill, exchange, self._query.whole_request(), self._url, self._services)
        try:
            self._services.spawn("fill", work)
        except RuntimeError as error:  # there are too many threads already
            _log.warning("Not kept: %s: %s", self._url, error)
            self.reason = NotKept(Detail.BUSY, str(error))
            fill.asking.declined_for = Detail.BUSY
            fill.decline()
            return None
        cleanup.pop_all()
        return reader, metadata

    def renew(self, fill: Fill, entry: Entry, stored: Metadata, exchange: Exchange, asked_at: float) -> Metadata:
        """The origin confirms the stored object (RFC 9111 §4.3.4). Returns its new metadata."""
        metadata = renewed(self._request, exchange, stored, asked_at)
        closed = metadata.restricted and not stored.restricted  # newly restricted, and its record has to say so
        try:
            self._cache.refresh(entry, metadata)
            closed = closed and not self._cache.store.keeps_metadata
        except Unstorable as error:
            _log.debug("Validated, but cannot be noted so: %s: %s", self._url, error)
        if closed:
            self._cache.remove(self._request.key)
        fill.renew()
        exchange.close()
        return metadata

    def _begin(self, fill: Fill, exchange: Exchange, asked_at: float) -> Optional[Metadata]:
        """Start the fill, or decline it and return None."""
        metadata = describe(self._request, exchange, asked_at)
        if meaning.is_rest(self._request, exchange, fill.partial_download) and fill.partial_download is not None:
            reason = None
            left = fill.partial_download.metadata
            near, own = left.near or metadata.near, left.own or metadata.own
            metadata = replace(permission.merged(left, metadata), near=near, own=own)
        else:
            reason = meaning.not_storable(self._request, exchange)
            if reason is None and not exchange.body.delimited and not self._request.lasts:
                reason = NotKept(Detail.NO_LENGTH, "nothing but the end of its connection says where it ends")
        if reason is None and not self._cache.store.keeps_metadata:
            if metadata.restricted:
                reason = _no_metadata("it needs authorisation")
            elif b"content-encoding" in exchange.head.headers:
                reason = _no_metadata("it has a Content-Encoding")
        if reason is None:
            try:
                self._begin_or_resume(fill, exchange, metadata)
                self._services.counters.add(Counter.FILLS)
                self._on_begun(metadata)
                return metadata
            except Unstorable as error:
                reason = NotKept(error.detail, str(error))
                self._services.counters.add(Counter.UNSTORABLE)
        self.reason = reason
        _log.debug("Not kept: %s: %s", self._url, reason.text)
        if fill.partial_download is None or exchange.head.status not in REFUSALS or not fill.hand_over():
            fill.asking.declined_for = reason.detail
            fill.decline()
        return None

    def _begin_or_resume(self, fill: Fill, exchange: Exchange, metadata: Metadata) -> None:
        if meaning.is_rest(self._request, exchange, fill.partial_download):
            fill.resume(metadata)
            self._services.counters.add(Counter.RESUMED)
        else:
            resumable = fill.verifies or validation.strong_etag(exchange.head.headers) is not None
            fill.start(metadata, exchange.body.length, resumable)


def _no_metadata(what: str) -> NotKept:
    return NotKept(Detail.NO_METADATA, f"{what}, and the file system keeps no metadata to say so")
