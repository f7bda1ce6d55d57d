"""Recovery: another source for the rest of a response, where the first one is lost."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import Callable, Optional, Tuple

from cache import Follow, Hit
from fetching.cacheable_request import CacheableRequest
from fetching.deliver import Source, checked
from fetching.filler import Services
from fetching.filling import Filling, Started
from fetching.origin_query import OriginQuery
from fetching.stored_metadata import stored_fields
from net.body import IncompleteBody
from net.client_watch import when_gone
from protocol import validation
from storage.entry import Lost
from storage.record import Metadata, Unstorable
from transfers.fill import Fill
from transfers.states import FillFailed, FillState
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange

_MAX_CLAIMS = 8  # of one response in a row
_OTHERS_FIRST = 0.2  # seconds for which a refused request lets others lead
HEAD_TIMEOUT = 120.0  # seconds that a follower waits for its leader's response head


class Recovery:
    """Finds the object of one request again. `on_begun`: see `Filling`."""

    def __init__(
        self,
        services: Services,
        request: CacheableRequest,
        query: OriginQuery,
        on_begun: Callable[[Metadata], object],
    ) -> None:
        self._services = services
        self._request = request
        self._query = query
        self._on_begun = on_begun

    def elsewhere(self, sent: Metadata, length: Optional[int], cleanup: ExitStack, offset: int) -> Source:
        """Another source of the bytes from `offset` on of the representation that is being sent. Raises FillFailed.

        The leader or the disk may have failed: by now the object may be in the cache, or be fetched again.
        """
        etag = validation.strong_etag(stored_fields(sent))
        named = self._request.lasts  # then every fill is of the same object, or fails
        if length is None or (etag is None and not named):
            raise FillFailed("there is no way to tell whether the rest is of the same object")
        try:
            found = self._find(cleanup)
            if found is None:
                if etag is None:
                    raise FillFailed("nothing would prove the rest")  # a digest proves only the whole, in a fill
                rest = _Rest(self._query.get_range(etag, offset, length), length, offset)
                source: Source = cleanup.enter_context(closing(rest))
                return source
        except UpstreamError as error:
            raise FillFailed(error) from error
        source, metadata = found
        if source.length != length or not (named or validation.strong_etag(stored_fields(metadata)) == etag):
            raise FillFailed("it is another object by now")
        return source

    def _find(self, cleanup: ExitStack) -> Optional[Tuple[Source, Metadata]]:
        """The object from the cache; None where the cache does not have it. Raises UpstreamError.

        A leader that the origin refuses hands its fill over, and one of the readers leads then. This request does
        so only once.
        """
        has_led = False
        for _ in range(_MAX_CLAIMS):
            try:
                claim = self._services.cache.claim(self._request.key)
            except Unstorable:
                return None
            if isinstance(claim, Hit):
                cleanup.callback(claim.entry.close)
                metadata = claim.metadata or claim.entry.record.metadata
                return checked(claim.entry), metadata
            if isinstance(claim, Follow):
                cleanup.callback(claim.reader.close)
                if claim.reader.fill.wait_head(HEAD_TIMEOUT) is FillState.GONE:
                    continue
                known = claim.reader.fill.metadata
                return None if known is None else (claim.reader, known)
            if has_led:
                with closing(claim.fill) as fill:
                    fill.hand_over()
                return None
            has_led = True
            started = self._lead(claim.fill, cleanup)
            if started is not None or claim.fill.state is not FillState.GONE:
                return started
            time.sleep(_OTHERS_FIRST)
        return None

    def _lead(self, fill: Fill, cleanup: ExitStack) -> Optional[Tuple[Source, Metadata]]:
        with ExitStack() as leading:
            leading.callback(fill.close)
            leading.push(when_gone(fill.hand_on))
            asked = self._services.negatives.asking(self._request.key.name)
            exchange = self._query.whole_or_rest(fill.partial_download)
            leading.callback(exchange.close)
            filling = Filling(self._services, self._request, self._query, self._on_begun)
            started = filling.start(fill, exchange, asked, leading)
        if not isinstance(started, Started):
            return None
        cleanup.callback(started.reader.close)
        return started.reader, started.metadata


class _Rest:
    """The part of an object that an origin sends from some offset on, as a source."""

    def __init__(self, exchange: Exchange, length: int, offset: int) -> None:
        self._exchange = exchange
        self._offset = offset  # of the next byte
        self.length: Optional[int] = length

    def ready(self, offset: int, whole: bool) -> bool:
        """Always False: the bytes are on their way."""
        return False

    def read_at(self, view: memoryview, offset: int) -> int:
        """The next bytes. Raises Lost where other bytes are wanted, FillFailed where the origin breaks off."""
        if offset != self._offset:
            raise Lost("the origin is sending what comes before")
        try:
            count = self._exchange.body.readinto(view)
        except IncompleteBody as error:
            raise FillFailed(error) from error
        self._offset += count
        return count

    def close(self) -> None:
        """Close the exchange."""
        self._exchange.close()
