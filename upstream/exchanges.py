"""Requests and the heads of their responses, over kept connections and new ones."""

from __future__ import annotations

import http.client
import ssl
from dataclasses import replace
from typing import Callable, Optional

from monitoring.metrics import Counter, Counters
from net.endpoint import ConnectionLost
from protocol import http1
from protocol.http1 import ResponseHead, Target
from upstream.dialling import Settings, Unanswered, translated
from upstream.exchange import Exchange
from upstream.nonblocking_request import NonblockingRequest
from upstream.origin_connection import Origin, OriginConnection, OriginResponse, receive, send
from upstream.origin_connections import OriginConnections
from upstream.request import Purpose, Request
from upstream.response_head import InterimFlood

_REPLAYABLE = (b"GET", b"HEAD", b"OPTIONS")


class _Stale(Exception):
    """A kept connection brought no response, or an invalid one; the request may be sent on another one."""


class Exchanges:
    """Sends requests. `on_answer` is called when an origin has answered without a thread that waits.

    `give_back` gets the connection of each exchange at its end.
    """

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        connections: OriginConnections,
        on_answer: Callable[[Target], None],
        give_back: Callable[[OriginConnection, bool], None],
    ) -> None:
        self._relay_timeout = settings.relay_timeout
        self._silence = {
            Purpose.FILL: (settings.fill_timeout, "proxy.upstream_timeout"),
            Purpose.RELAY: (settings.relay_timeout, "proxy.relay_timeout"),
        }
        self._counters = counters
        self._connections = connections
        self._on_answer = on_answer
        self._give_back = give_back

    def exchange(self, request: Request) -> Exchange:
        """Send one request and read the head of its response. Raises UpstreamError (502, 504, 508)."""
        origin = _origin_of(request)
        # A request that cannot be sent twice takes no kept connection: it may be closing (RFC 9110 §9.2.2).
        if request.method in _REPLAYABLE and request.body is None:
            found = self._confirmation(origin, request) or self._ask_again(origin, request)
            if found is not None:
                return found
        return self._ask(self._connections.open(origin), request, reused=False)

    def prepare(self, request: Request) -> Optional[NonblockingRequest]:
        """A request over a kept connection, not sent yet; None where there is none. Never waits."""
        origin = _origin_of(request)
        connection = None
        if request.confirms is not None and not request.expects_redirect:
            connection = self._connections.take(replace(origin, bodiless=True))
        if connection is None:
            connection = self._connections.take(origin)
        if connection is None:
            return None
        connection.stream.timeout = self._silence[request.purpose][0]
        return NonblockingRequest(connection, request, self._received, self._give_back)

    def complete(self, begun: NonblockingRequest) -> Exchange:
        """Like `exchange`, for a request that was sent already, unless its connection was lost."""
        request, connection = begun.request, begun.take_connection()
        if connection is not None:
            origin = connection.origin
            try:
                exchange = self._awaited(connection, request, receive, reused=True)
                if _may_be_trusted(origin, request, exchange.head):
                    return exchange
                exchange.discard()
            except _Stale:
                pass  # it was closed meanwhile
        return self.exchange(request)

    # Internals

    def _received(self, connection: OriginConnection, response: OriginResponse, request: Request) -> Exchange:
        """The exchange of a request that was answered at once. Raises ConnectionLost where that is no answer to it."""
        if not _may_be_trusted(connection.origin, request, response.head):
            raise ConnectionLost("unexpected bytes after a response without a body")
        self._on_answer(request.target)
        return Exchange(connection, response, request, self._relay_timeout, self._give_back)

    def _confirmation(self, origin: Origin, request: Request) -> Optional[Exchange]:
        """A response that confirms, over a connection that brings nothing else; None where there is none."""
        if request.confirms is None or request.expects_redirect:
            return None
        exchange = self._ask_again(replace(origin, bodiless=True), replace(request, on_interim=lambda _: None))
        if exchange is None or _may_be_trusted(replace(origin, bodiless=True), request, exchange.head):
            return exchange
        exchange.discard()
        return None

    def _ask_again(self, origin: Origin, request: Request) -> Optional[Exchange]:
        """Send a request over a kept connection; None where none is usable."""
        kept = self._connections.take(origin)
        while kept is not None:
            try:
                return self._ask(kept, request, reused=True)
            except _Stale:
                kept = self._connections.take(origin)
        return None

    def _ask(self, connection: OriginConnection, request: Request, reused: bool) -> Exchange:
        return self._awaited(connection, request, send, reused)

    def _awaited(
        self,
        connection: OriginConnection,
        request: Request,
        step: Callable[[OriginConnection, Request], OriginResponse],
        reused: bool,
    ) -> Exchange:
        timeout, key = self._silence[request.purpose]
        connection.stream.timeout = timeout
        try:
            response = step(connection, request)
            return Exchange(connection, response, request, self._relay_timeout, self._give_back)
        except (OSError, http1.ProtocolError, http.client.HTTPException, UnicodeError) as error:
            self._give_back(connection, False)
            if isinstance(error, InterimFlood):
                self._counters.add(Counter.INTERIM_FLOODS)
            elif reused and isinstance(error, (ConnectionError, ConnectionLost, ssl.SSLError, http1.ProtocolError)):
                raise _Stale from error
            failure = translated(error, f"no answer from {request.target.authority}", key)
            raise Unanswered(str(failure), failure.status) from error
        except BaseException:
            self._give_back(connection, False)
            raise


def _may_be_trusted(origin: Origin, request: Request, head: ResponseHead) -> bool:
    """Whether a response is taken for the one to this request: over some connections, only one that confirms is."""
    if not origin.bodiless:
        return True
    return head.status == request.confirming_status and request.confirms is not None and request.confirms(head)


def _origin_of(request: Request) -> Origin:
    return Origin(request.target.scheme, request.target.authority, request.reach)
