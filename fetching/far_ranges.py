"""Ranges that lie far ahead of a running fill: each is asked for on a connection of its own, and kept for the fill.

Rules of this module:

* Who brings bytes of an object could have led its fill: the same URL, with this client's own credentials. It has been
  permitted the object before.
* A response counts only if it is exactly the range of the same representation: the strong validator proves that, or the
  digest in the name in the end. Everything else is dropped, and the client waits for the fill.
* A thread for each range reads from the origin, so that no client holds up a range, and through it the fill.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Callable, Optional, Tuple, Union

from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.origin_query import OriginQuery
from fetching.stored_metadata import scope, stored_fields
from monitoring.metrics import Counter
from net.body import IncompleteBody, new_buffer
from net.client_watch import Regularly, working_for
from protocol import validation
from protocol.selection import Part
from storage.record import Metadata
from transfers.far_bytes import FarBytes, Step
from transfers.fill import Fill
from transfers.follow import FIRST_BYTES, FillReader
from transfers.hold_back import HOLD_BACK
from transfers.spans import Span
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange
from upstream.request import Request

_log = logging.getLogger("dduct.fetch")

_LEAST = 1024 * 1024  # bytes of an object that may have far ranges
_FOR_ALL = (200, 206, 416, 429)  # answers that other clients would get as well; a refusal may be for this one only
_LOOK_AGAIN = 0.25  # seconds between two looks at how fast the fill is
_PROGRESS = 16 * 1024  # bytes that a range has to bring so that its reader asks for another one


def far_bytes(services: Services, fill: Fill, exchange: Exchange, is_rest: bool) -> Optional[FarBytes]:
    """A place for far ranges of a fill that is about to start; None where its origin is not known to take ranges.

    `is_rest`: it resumes its partial download.
    """
    head, left = exchange.head, fill.partial_download
    units = (head.headers.get(b"accept-ranges") or b"").lower().split(b",")
    takes = head.status == 206 or b"bytes" in [unit.strip() for unit in units]
    proven = fill.verifies or validation.strong_etag(head.headers) is not None
    length, size = (left.length, left.size) if left is not None and is_rest else (exchange.body.length, 0)
    if not takes or not proven or length is None or length < _LEAST:
        return None
    return FarBytes(services.cache.store, fill.file, length, services.far_places, size)


class FarRanges:
    """The far ranges of one request."""

    def __init__(self, services: Services, request: CacheableRequest, query: OriginQuery) -> None:
        self._services = services
        self._request = request
        self._query = query

    def reader(self, reader: FillReader, metadata: Metadata, parts: Tuple[Part, ...]) -> Union[FarReader, FillReader]:
        """A reader of these parts that need not wait for the fill; `reader` where it has to. Closing either will do."""
        fill = reader.fill
        if not isinstance(fill, Fill) or fill.far is None or metadata.url != self._request.place:
            return reader
        return FarReader(reader, fill, fill.far, parts, partial(self._ask, fill, fill.far, metadata))

    def _ask(self, fill: Fill, far: FarBytes, metadata: Metadata, span: Span) -> bool:
        """Have a thread ask for a span, which that ends; False where there are too many threads."""
        etag = None if fill.verifies else validation.strong_etag(stored_fields(metadata))
        start, end = span.start, span.end  # from now on the span may change

        def fits(exchange: Exchange) -> bool:
            is_from_there = exchange.scope <= scope(metadata)
            return is_from_there and validation.is_part(exchange.head, etag, start, end, far.length)

        with ExitStack() as cleanup:
            cleanup.callback(far.finish, span)
            conditions = validation.rest_conditions(etag, start, end)
            request = replace(self._query.whole_request(conditions), on_interim=lambda _: None)
            try:
                self._services.spawn("far", _Part(self._services, far, span, request, fits).run)
            except RuntimeError:
                return False
            cleanup.pop_all()
        return True


class FarReader:
    """A reader of parts of a fill, which asks for what lies far ahead; `ask` gets the span to ask for."""

    def __init__(
        self, reader: FillReader, fill: Fill, far: FarBytes, parts: Tuple[Part, ...], ask: Callable[[Span], bool]
    ) -> None:
        self._reader = reader
        self._fill = fill
        self._far = far
        self._parts = parts
        self._ask = ask
        self._asked: Optional[Tuple[Span, int]] = None  # the last span asked for, and where it began
        self._may_ask = True
        self.length: Optional[int] = far.length
        self.is_ahead = False  # bytes came ahead of the fill

    def ready(self, offset: int, whole: bool) -> bool:
        """See FillReader.ready."""
        return self._came_ahead(offset, FIRST_BYTES) or self._reader.ready(offset, whole)

    def read_at(self, view: memoryview, offset: int) -> int:
        """See FillReader.read_at."""
        while self._came_ahead(offset, self._reader.timeout):
            count = self._far.read(view[: self._end(offset)[1] - offset], offset)
            if count:
                return count
        return self._reader.read_at(view, offset)

    def close(self) -> None:
        """Detach; idempotent."""
        self._far.leave(self)
        self._reader.close()

    def _came_ahead(self, offset: int, timeout: float) -> bool:
        """Whether the bytes at `offset` are here ahead of the fill; waits up to `timeout` seconds if they may come so.

        Raises ClientGone; FillFailed, Lost where the fill has ended without them.
        """
        self._fill.place(self._reader, offset)
        deadline = time.monotonic() + timeout
        end, limit = self._end(offset)
        while offset < limit and not self._fill.state.final and self._fill.available(offset) <= 0:
            step = self._far.look(self, offset, end, self._may_still_ask())
            if step is Step.READ:
                self.is_ahead = True
                return True
            if isinstance(step, Span):
                self._asked = step, offset
                self._may_ask = self._ask(step)
            elif step is Step.FILL or time.monotonic() >= deadline:
                break
            elif step is Step.SOON:
                self._fill.ready(offset, _LOOK_AGAIN)
            else:
                self._far.wait(offset)
        return False

    def _may_still_ask(self) -> bool:
        """Whether the last question, if there was one, has not been in vain."""
        if self._asked is not None:
            span, start = self._asked
            if not span.running and span.position < span.end and span.position - start < _PROGRESS:
                self._may_ask = False
        return self._may_ask

    def _end(self, offset: int) -> Tuple[int, int]:
        """The end of the part that is being read, and where to stop reading what is not verified."""
        length = self._far.length
        part = next((part for part in self._parts if part.start <= offset < (part.end or length)), None)
        if part is None:
            return offset, offset
        end = part.end or length
        # Until all of it is verified, no client gets the last bytes of an object that a digest names.
        return end, min(end, length - HOLD_BACK) if self._fill.verifies else end


class _Unwanted(Exception):
    """Nobody wants the rest of a range."""


class _Part:
    """A range: all the work of its thread. `fits`: whether a response is that range."""

    def __init__(
        self, services: Services, far: FarBytes, span: Span, request: Request, fits: Callable[[Exchange], bool]
    ) -> None:
        self._services = services
        self._far = far
        self._span = span
        self._request = request
        self._fits = fits

    def run(self) -> None:
        """Ask, and keep what comes, as long as it is wanted."""
        try:
            with working_for(Regularly(self._look)):
                self._fetch()
        except (IncompleteBody, UpstreamError) as error:
            _log.info("A range ends early: %s", error)
        except _Unwanted:
            _log.debug("A range ends early: no client wants it any more")
        finally:
            self._far.finish(self._span)

    def _look(self) -> None:
        if not self._far.wants(self._span):
            raise _Unwanted

    def _fetch(self) -> None:
        with ExitStack() as cleanup:
            exchange = self._services.origins.follow(self._request)
            cleanup.callback(exchange.discard)
            if not self._fits(exchange):
                status = exchange.head.status
                if status in _FOR_ALL or status >= 500:
                    self._far.stop()
                raise UpstreamError(f"the origin answers {status}, which is not that range")
            self._services.counters.add(Counter.FAR_RANGES)
            for piece in exchange.body.chunks(new_buffer(), much=True):
                if not self._far.store(self._span, piece):
                    break
            if exchange.body.complete:
                cleanup.pop_all()
                exchange.close()
