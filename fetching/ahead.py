"""Fetching ahead: pipelined requests that wait behind a miss of the same connection ask their origins meanwhile.

apt sends ten requests at once, and each miss would cost a round trip to its origin, one after the other. Here another
thread leads the fill of an object whose request has been received. That request then follows it, or finds it stored,
in its turn: so responses keep their order, and whatever goes wrong goes wrong as it would have then.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, closing
from functools import partial
from typing import Callable, Protocol

from cache import Hit, Lead
from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.filling import Filling, Started
from fetching.origin_query import OriginQuery
from monitoring.details import NotKept
from monitoring.metrics import Counter
from storage.record import Unstorable
from transfers.fill import Fill
from upstream.dialling import UpstreamError

_log = logging.getLogger("dduct.fetch")

_AT_ONCE = 32  # queries of one process


class Waiting(Protocol):
    """A request whose turn has not come. Both methods are called in another thread."""

    def started(self, release: Callable[[], None]) -> None:
        """Its fill has begun. It goes on without other readers until `release` is called."""

    def useless(self) -> None:
        """Its origin's response is not stored, or there is none: the request asks again in its turn."""


class Ahead:
    """Queries for requests whose turn has not come. `spawn` starts a thread. None starts once `ending` is set."""

    def __init__(self, spawn: Callable[[str, Callable[[], None]], None], ending: threading.Event) -> None:
        self._spawn = spawn
        self._ending = ending
        self._free = threading.Semaphore(_AT_ONCE)

    def begin(self, services: Services, request: CacheableRequest, waiting: Waiting) -> bool:
        """Fetch the object of a request without credentials, if it is not stored. Returns whether there was a place."""
        if self._ending.is_set() or not self._free.acquire(blocking=False):
            return False
        try:
            self._spawn("ahead", partial(self._run, services, request, waiting))
        except RuntimeError:  # there are too many threads already
            self._free.release()
            return False
        return True

    def _run(self, services: Services, request: CacheableRequest, waiting: Waiting) -> None:
        try:
            claim = services.cache.claim(request.key)
            if isinstance(claim, Hit):
                claim.entry.close()
            elif (
                isinstance(claim, Lead) and services.negatives.find(request.key.name, request.sent.headers) is not None
            ):
                with closing(claim.fill):  # in its turn, the request finds it, too
                    claim.fill.hand_on()
            elif isinstance(claim, Lead):
                self._lead(claim.fill, services, request, waiting)
            else:
                claim.reader.close()
        except Unstorable as error:
            _log.debug("Not fetched ahead: %s: %s", request.shown, error)
        finally:
            self._free.release()

    def _lead(self, fill: Fill, services: Services, request: CacheableRequest, waiting: Waiting) -> None:
        query = OriginQuery(services, request, lambda _: None)
        with ExitStack() as cleanup:
            asked = services.negatives.asking(request.key.name)
            asker = fill.asking.lead(request.question, fill.fail, fill.close)
            cleanup.callback(asker.close)
            services.counters.add(Counter.AHEAD)
            try:
                exchange = query.whole_or_rest(fill.partial_download)
            except UpstreamError as error:
                asker.fail(error)
                waiting.useless()
                return
            cleanup.callback(exchange.close)
            if not asker.answered():
                return  # the request's turn has come, and it was faster
            if self._ending.is_set():
                fill.renew()  # no client waits for it any more
                return
            started = Filling(services, request, query, lambda _: None).start(fill, exchange, asked, cleanup)
            if not isinstance(started, Started):
                if isinstance(started, NotKept):
                    waiting.useless()
                return
            fill.attach()  # and no reader: one would hold the fill up where the disk is full
            started.reader.close()
            waiting.started(fill.detach)
