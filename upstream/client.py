"""Origins: requests, redirects and kept connections."""

from __future__ import annotations

import http.client
import logging
import ssl
import time
from dataclasses import replace
from functools import partial
from typing import Callable, Optional, Tuple

from monitoring.metrics import Counter, Counters
from net.addresses import Reach
from net.endpoint import ConnectionLost
from net.stream import Stream
from protocol import http1
from protocol.http1 import Authority, Target
from upstream.connection_pool import ConnectionPool
from upstream.dialling import Dialler, NoAnswer, Settings, Unanswered, is_outage, translated
from upstream.exchange import Exchange, Hop
from upstream.origin_connection import Origin, OriginConnection, send
from upstream.reachability import Outages
from upstream.request import Purpose, Request
from upstream.response_head import InterimFlood

_log = logging.getLogger("dduct")

REDIRECT_LIMIT = 10
_REPLAYABLE = (b"GET", b"HEAD", b"OPTIONS")


class _Stale(Exception):
    """A kept connection brought no response, or an invalid one; the request may be sent on another one."""


class Origins:
    """All connections to origins. Raises UnusableCertificate."""

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
        dialler: Optional[Dialler] = None,
    ) -> None:
        self._relay_timeout = settings.relay_timeout
        self._silence = {
            Purpose.FILL: (settings.fill_timeout, "proxy.upstream_timeout"),
            Purpose.RELAY: (settings.relay_timeout, "proxy.relay_timeout"),
        }
        self._counters = counters
        self._clock = clock
        self._silent = Outages(settings.fill_timeout, clock)
        self._dialler = Dialler(settings, counters, clock) if dialler is None else dialler
        self._connections = _Connections(self._dialler, clock)

    def dial(self, authority: Authority, reach: Reach) -> Stream:
        """A connection for a tunnel; `hang_up()` ends it. Raises UpstreamError (403, 502, 504, 508)."""
        stream = self._dialler.dial(authority, reach)
        stream.timeout = self._relay_timeout
        return stream

    def exchange(self, request: Request) -> Exchange:
        """Send one request and read the head of its response. Raises UpstreamError (502, 504, 508)."""
        return self._reported(self._exchange, request)

    def follow(self, request: Request, begun: Optional[Exchange] = None) -> Exchange:
        """The same, following redirects; `begun` is a response that has arrived already.

        A redirect from https to http, without a usable target, or in a loop is returned as it is. So is the one after
        REDIRECT_LIMIT: the client may know better how to go on.
        """
        return self._reported(partial(self._follow, begun=begun), request)

    def away(self, target: Target) -> Optional[NoAnswer]:
        """Why not to wait for this origin if there is a substitute; None where the caller has to ask it.

        All other requests learn from the outcome of that one.
        """
        wait = self._silent.wait((target.scheme, target.authority))
        if not wait:
            return None
        self._counters.add(Counter.FAST_FAILURES)
        return NoAnswer(f"{target.authority} did not answer just now; it is tried again in {wait:.0f} s", 504)

    def opens(self, target: Target) -> bool:
        """Whether proxy.allow_own opens this URL, as it is written, to every client."""
        return self._dialler.opens(target.authority)

    def hang_up(self, stream: Stream, broken: bool = False) -> None:
        """End a connection that `dial` made."""
        self._dialler.hang_up(stream, broken)

    def sweep(self) -> None:
        """Close useless idle connections, every few seconds; never waits."""
        self._connections.sweep()

    def retire(self) -> None:
        """Keep no connection for later; those in use are not touched."""
        self._connections.retire()

    def close(self) -> None:
        """Close all connections; a request that waits for an origin gets an error."""
        self.retire()
        self._dialler.close()

    # Internals

    def _reported(self, ask: Callable[[Request], Exchange], request: Request) -> Exchange:
        """Ask, and note whether the origin answers."""
        target, began = request.target, self._clock()
        try:
            exchange = ask(request)
        except BaseException as error:
            if is_outage(error, self._clock() - began):
                self._note_silence(target, began)
            else:
                self._silent.undecided((target.scheme, target.authority), began)
            raise
        if self._silent.worked((target.scheme, target.authority)):
            _log.info("%s answers again", target.authority)
        return exchange

    def _exchange(self, request: Request) -> Exchange:
        origin = Origin(request.target.scheme, request.target.authority, request.reach)
        # A request that cannot be sent twice takes no kept connection: it may be closing (RFC 9110 §9.2.2).
        if request.method in _REPLAYABLE and request.body is None:
            found = self._confirmation(origin, request) or self._ask_again(origin, request)
            if found is not None:
                return found
        return self._ask(self._connections.open(origin), request, reused=False)

    def _follow(self, request: Request, begun: Optional[Exchange]) -> Exchange:
        first = request.target
        hops: Tuple[Hop, ...] = ()
        while True:
            exchange, begun = begun or self._exchange(request), None
            exchange.hops = hops
            target = exchange.redirect()
            if target is None or (request.target.scheme, target.scheme) == ("https", "http"):
                return exchange
            if target == first or any(target == hop.target for hop in hops) or len(hops) == REDIRECT_LIMIT:
                return exchange
            exchange.close()
            hops = (*hops, Hop(exchange.head, target, exchange.scope))
            request = request.redirected(target)

    def _note_silence(self, target: Target, began: float) -> None:
        pause = self._silent.failed((target.scheme, target.authority), began)
        if pause:
            self._counters.add(Counter.OUTAGES)
            _log.warning("%s does not answer; for %.0f s stale objects do not wait for it", target.authority, pause)

    def _confirmation(self, origin: Origin, request: Request) -> Optional[Exchange]:
        """A 304 that confirms, over a connection that brings nothing else; None where there is none."""
        if request.confirms is None or request.expects_redirect:
            return None
        exchange = self._ask_again(replace(origin, bodiless=True), replace(request, on_interim=lambda _: None))
        if exchange is None or (exchange.head.status == 304 and request.confirms(exchange.head)):
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
        timeout, key = self._silence[request.purpose]
        connection.stream.timeout = timeout
        try:
            response = send(connection, request)
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

    def _give_back(self, connection: OriginConnection, reusable: bool) -> None:
        """End an exchange. An open one holds this method: origins that a reload has replaced live as long as they are
        in use, and `Server.stop` can close them."""
        self._connections.give_back(connection, reusable)


class _Connections:
    """Connections to origins: dialled for one request, and kept for the next."""

    def __init__(self, dialler: Dialler, clock: Callable[[], float]) -> None:
        self._dialler = dialler
        self._pool: ConnectionPool[OriginConnection] = ConnectionPool(clock)

    def open(self, origin: Origin) -> OriginConnection:
        """A new connection. Raises UpstreamError."""
        host = origin.authority.host
        parent = self._dialler.parent_for(host)
        to_parent = None
        if origin.scheme == "http" and parent is not None:
            stream = self._dialler.dial_parent(parent, origin.authority, origin.reach)
            to_parent = parent.fields
        else:
            stream = self._dialler.dial(origin.authority, origin.reach)
            if origin.scheme == "https":
                self._dialler.start_tls(stream, origin.authority)
        return OriginConnection(origin, stream, self._dialler.scope(stream, origin.authority), to_parent)

    def take(self, origin: Origin) -> Optional[OriginConnection]:
        """A kept connection; None where none is usable."""
        while True:
            connection = self._pool.take(origin)
            if connection is None:
                return None
            self._dialler.use(connection.stream)
            if not self._pool.expired(connection) and not connection.stream.unusable():
                return connection
            self.give_back(connection, False)

    def give_back(self, connection: OriginConnection, reusable: bool) -> None:
        """Keep a connection for the next exchange, or close it."""
        self._dialler.release(connection.stream)
        for surplus in self._pool.put(connection) if reusable else [connection]:
            surplus.close()

    def sweep(self) -> None:
        """Close useless idle connections, every few seconds; never waits."""
        for connection in self._pool.sweep():
            connection.close()

    def retire(self) -> None:
        """Keep no connection for later; those in use are not touched."""
        for connection in self._pool.retire():
            connection.close()
