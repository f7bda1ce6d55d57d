"""The origin's own response, sent to one client: to its own request, or to the one that asked for the whole."""

from __future__ import annotations

from contextlib import closing
from typing import Optional

from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from fetching.origin_query import OriginQuery
from fetching.own_bytes import ByteComparison
from monitoring.metrics import Counter
from net.response import Reply
from protocol.selection import CONDITIONS
from upstream.exchange import Exchange
from upstream.relay import forward
from upstream.request import Purpose

_OF_OUR_ASKING = (206, 304, 416)  # responses to fields that dduct added, and this client perhaps did not send


class OriginRelay:
    """Relays for one request. `note`: Cache-Status of the response."""

    def __init__(self, services: Services, reply: Reply, request: CacheableRequest, query: OriginQuery) -> None:
        self._services = services
        self._reply = reply
        self._request = request
        self._query = query

    def relay(self, note: str, purpose: Purpose = Purpose.RELAY) -> None:
        """Ask the origin for this client alone, and send its response."""
        with closing(self._query.pass_through(purpose)) as exchange:
            self.forward(exchange, note)

    def pass_on(self, exchange: Exchange, note: str, seen: Optional[ByteComparison] = None) -> None:
        """Send the client the response to the request for the whole; relay instead if it asked for something else.

        Raises AskAgain, like `relay` and `forward`, where dduct's own credentials may get another one.
        """
        self._look_at(exchange)
        head = self._request.head
        as_asked = exchange.method == head.method and exchange.head.status not in _OF_OUR_ASKING
        if exchange.redirected_to is not None and not 200 <= exchange.head.status < 300:
            as_asked = False  # the redirect does: the client may have other credentials for its target
        if not as_asked or any(name in head.headers for name in CONDITIONS):
            exchange.close()
            self.relay(note)
        else:
            self._forward(exchange, note, seen)

    def forward(self, exchange: Exchange, note: str, seen: Optional[ByteComparison] = None) -> None:
        """Send a response as it comes; `seen` is completed by a whole body of a 200."""
        self._look_at(exchange)
        self._forward(exchange, note, seen)

    def _forward(self, exchange: Exchange, note: str, seen: Optional[ByteComparison]) -> None:
        self._services.counters.add(Counter.RELAYED)
        if exchange.head.status < 300:
            self._services.negatives.forget(self._request.key.name)
        self._reply.note = note
        if seen is None or exchange.head.status != 200:
            forward(self._reply, exchange)
        elif forward(self._reply, exchange, seen.update):
            seen.complete = True

    def _look_at(self, exchange: Exchange) -> None:
        if self._request.use is not None:
            self._request.use.look_at(exchange)
