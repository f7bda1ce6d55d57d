"""Filling: a leader's use of its origin's response. It starts a fill, declines it, or renews the stored object."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Callable, Optional, Union

from fetching import manifests, meaning, permission, repository_look
from fetching.cacheable_request import CacheableRequest
from fetching.description import describe, renewed
from fetching.far_ranges import far_bytes
from fetching.filler import REFUSALS, Services, carry
from fetching.negative import Asked, Negative
from fetching.negative_answer import keep
from fetching.origin_query import OriginQuery
from monitoring.details import Detail, NotKept
from monitoring.metrics import Counter
from protocol import validation
from storage.entry import Entry
from storage.record import Metadata, Unstorable
from transfers.fill import Fill
from transfers.follow import FillReader
from transfers.states import FillFailed
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange

_log = logging.getLogger("dduct.fetch")


@dataclass(frozen=True)
class Started:
    """A fill that has begun: a reader on it, which the caller closes, and the object's metadata."""

    reader: FillReader
    metadata: Metadata


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

    def start(
        self, fill: Fill, exchange: Exchange, asked: Asked, cleanup: ExitStack
    ) -> Union[Started, NotKept, Negative]:
        """Move fill and exchange from `cleanup` to a filler; where they stay, the fill is declined or handed over."""
        repository_look.note_answer(self._services, self._request, exchange)
        if exchange.head.status < 300:
            self._services.negatives.forget(self._request.key.name)
        if fill.partial_download is None and manifests.is_whole(self._request, exchange):
            return self._start_whole(fill, exchange, asked.at)
        metadata = self._begin(fill, exchange, asked)
        if not isinstance(metadata, Metadata):
            return metadata
        reader = self._cache.reader(fill)
        cleanup.callback(reader.close)
        work = partial(carry, fill, exchange, self._query.whole_request(), self._url, self._services)
        try:
            self._services.spawn("fill", work)
        except RuntimeError as error:  # there are too many threads already
            _log.warning("Not kept: %s: %s", self._url, error)
            fill.asking.declined_for = Detail.BUSY
            fill.decline()
            return NotKept(Detail.BUSY, str(error))
        cleanup.pop_all()
        return Started(reader, metadata)

    def _start_whole(self, fill: Fill, exchange: Exchange, asked_at: float) -> Union[Started, NotKept]:
        """Store a manifest at once. Fill and exchange stay with the caller, who closes them. Raises UpstreamError."""
        metadata = describe(self._request, exchange, asked_at)
        reason = self.why_not(exchange, metadata, is_rest=False)
        if reason is not None:
            return self._decline(fill, exchange, reason)
        try:
            body = manifests.read(exchange)
        except UpstreamError as error:
            fill.fail(error)
            raise
        reader = self._cache.reader(fill)
        try:
            with self._cache.disk.operation():
                kept = self._cache.store_whole(fill, metadata, body)
        except Unstorable as error:
            reader.close()
            self._services.counters.add(Counter.UNSTORABLE)
            manifests.put_back(exchange, body)
            return self._decline(fill, exchange, NotKept(error.detail, str(error)))
        except FillFailed as error:
            reader.close()
            fill.fail(error)
            raise UpstreamError(f"the manifest is not what its digest names: {error}") from error
        self._services.counters.add(Counter.FILLS)
        self._services.counters.add(Counter.PUBLISHED if kept else Counter.UNKEPT)
        self._on_begun(metadata)
        if kept:
            self._services.grown(len(body))
            manifests.keep_by_digest(self._services, self._request, metadata, body)
        return Started(reader, metadata)

    def renew(self, fill: Fill, entry: Entry, stored: Metadata, exchange: Exchange, asked_at: float) -> Metadata:
        """The origin confirms the stored object (RFC 9111 §4.3.4). Returns its new metadata."""
        repository_look.note_answer(self._services, self._request, exchange)
        metadata = renewed(self._request, exchange, stored, asked_at)
        noted = False
        try:
            noted = self._cache.refresh(entry, metadata)
        except Unstorable as error:
            _log.debug("Validated, but its record cannot be written: %s: %s", self._url, error)
        if metadata.restricted and not stored.restricted and not noted:  # its record would not say so
            self._cache.remove(self._request.key)
        fill.renew()
        exchange.close()
        return metadata

    def _begin(self, fill: Fill, exchange: Exchange, asked: Asked) -> Union[Metadata, NotKept, Negative]:
        """Start the fill, or decline it, or hand it over. Returns the object's metadata, or why it is not stored."""
        metadata = describe(self._request, exchange, asked.at)
        left = fill.partial_download
        is_rest = left is not None and meaning.is_rest(self._request, exchange, left)
        if left is not None and is_rest:
            metadata = permission.merged(left.metadata, metadata)
        reason = self.why_not(exchange, metadata, is_rest)
        if reason is None:
            try:
                self._begin_or_resume(fill, exchange, metadata, is_rest)
                self._services.counters.add(Counter.FILLS)
                self._on_begun(metadata)
                return metadata
            except Unstorable as error:
                reason = NotKept(error.detail, str(error))
                self._services.counters.add(Counter.UNSTORABLE)
        # Before those that wait are told.
        negative = keep(self._services, self._request, exchange, asked)
        self._decline(fill, exchange, reason)
        return reason if negative is None else negative

    def _decline(self, fill: Fill, exchange: Exchange, reason: NotKept) -> NotKept:
        _log.debug("Not kept: %s: %s", self._url, reason.text)
        if fill.partial_download is None or exchange.head.status not in REFUSALS or not fill.hand_over():
            fill.asking.declined_for = reason.detail
            fill.decline()
        return reason

    def why_not(self, exchange: Exchange, metadata: Metadata, is_rest: bool) -> Optional[NotKept]:
        """Why a response is not stored, as far as that is known before the disk is asked."""
        if not is_rest:
            reason = meaning.not_storable(self._request, exchange)
            if reason is not None:
                return reason
            if self._request.name.manifest and manifests.is_coded(exchange.head):
                return NotKept(Detail.CODED, "a manifest with a Content-Encoding")
            if not exchange.body.delimited and not self._request.lasts:
                return NotKept(Detail.NO_LENGTH, "nothing but the end of its connection says where it ends")
        try:
            self._require_records(exchange, metadata)
        except Unstorable as error:
            return NotKept(error.detail, str(error))
        return None

    def _require_records(self, exchange: Exchange, metadata: Metadata) -> None:
        """Raises Unstorable where what clients have to be told of an object cannot be recorded."""
        records = self._cache.store.records
        if metadata.restricted:
            records.require("it needs authorisation", "to say so")
        if b"content-encoding" in exchange.head.headers:
            records.require("it has a Content-Encoding", "to say so")

    def _begin_or_resume(self, fill: Fill, exchange: Exchange, metadata: Metadata, is_rest: bool) -> None:
        fill.far = far_bytes(self._services, fill, exchange, is_rest)
        if is_rest:
            fill.resume(metadata)
            self._services.counters.add(Counter.RESUMED)
        else:
            resumable = fill.verifies or validation.strong_etag(exchange.head.headers) is not None
            fill.start(metadata, exchange.body.length, resumable)
