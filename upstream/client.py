"""Origins: requests, redirects and kept connections."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import Callable, Optional, Tuple

from monitoring.metrics import Counter, Counters
from net.addresses import Reach
from net.stream import Stream
from protocol.http1 import Authority, ResponseHead, Target
from upstream.dialling import Dialler, NoAnswer, Refusing, Settings, is_outage
from upstream.exchange import Exchange, Hop
from upstream.exchanges import Exchanges
from upstream.known import Known
from upstream.nonblocking_request import NonblockingRequest
from upstream.origin_connection import OriginConnection
from upstream.origin_connections import OriginConnections
from upstream.reachability import Outages
from upstream.refusals import Refusals
from upstream.request import Request

_log = logging.getLogger("dduct")

REDIRECT_LIMIT = 10
_NO_ANSWERS = (502, 503, 504)  # of a gateway, for an origin that does not answer it


class Origins:
    """All connections to origins. Raises UnusableCertificate."""

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        known: Known,
        clock: Callable[[], float] = time.monotonic,
        dialler: Optional[Dialler] = None,
    ) -> None:
        self._relay_timeout = settings.relay_timeout
        self._counters = counters
        self._known = known
        self._clock = clock
        self._silent = Outages(settings.fill_timeout, known.table, "origin", clock)
        self._refusals = Refusals(known.table, clock)
        self._dialler = Dialler(settings, counters, known.table, clock) if dialler is None else dialler
        self._connections = OriginConnections(self._dialler, clock)
        self._exchanges = Exchanges(settings, counters, self._connections, self._note_answer, self._give_back)

    def dial(self, authority: Authority, reach: Reach) -> Stream:
        """A connection for a tunnel; `hang_up()` ends it. Raises UpstreamError (403, 502, 504, 508)."""
        stream = self._dialler.dial(authority, reach)
        stream.timeout = self._relay_timeout
        return stream

    def exchange(self, request: Request) -> Exchange:
        """Send one request and read the head of its response. Raises UpstreamError (502, 504, 508)."""
        return self._reported(self._exchanges.exchange, request)

    def follow(self, request: Request, begun: Optional[Exchange] = None) -> Exchange:
        """The same, following redirects; `begun` is a response that has arrived already.

        A redirect from https to http, without a usable target, or in a loop is returned as it is. So is the one after
        REDIRECT_LIMIT: the client may know better how to go on.
        """
        return self._reported(partial(self._follow, begun=begun), request)

    def prepare(self, request: Request) -> Optional[NonblockingRequest]:
        """A request without a body over a kept connection, for a thread that must not wait; None where there is none.

        Its `send` and `receive` do not wait. Another thread goes on with it by `complete`, or it is dropped.
        """
        return None if self._refusals.lasts(request) else self._exchanges.prepare(request)

    def complete(self, begun: NonblockingRequest, on_interim: Callable[[ResponseHead], None]) -> Exchange:
        """The response to a request that was sent: like `exchange`, which sends it again if its connection was lost."""
        begun.request = replace(begun.request, on_interim=on_interim)
        return self._reported(lambda _: self._exchanges.complete(begun), begun.request)

    def away(self, target: Target) -> Optional[NoAnswer]:
        """Why not to wait for this origin if there is a substitute; None where the caller has to ask it.

        All other requests learn from the outcome of that one.
        """
        wait = self._silent.wait((target.scheme, target.authority))
        if not wait:
            return None
        self._counters.add(Counter.FAST_FAILURES)
        return NoAnswer(f"{target.authority} did not answer just now; it is tried again in {wait:.0f} s", 504)

    def seems_away(self, target: Target) -> bool:
        """Whether this origin did not answer just now, for a caller that leaves the next attempt to others."""
        return self._silent.lasts((target.scheme, target.authority))

    def opens(self, target: Target) -> bool:
        """Whether proxy.allow_own opens this URL, as it is written, to every client."""
        return self._dialler.opens(target.authority)

    @property
    def idle(self) -> int:
        """How many connections are kept for the next request."""
        return len(self._connections)

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
        refusal = self._refusals.wait(request)
        if refusal is not None:
            self._counters.add(Counter.FAST_FAILURES)
            raise Refusing(target.authority, *refusal)
        try:
            exchange = ask(request)
        except BaseException as error:
            if is_outage(error, self._clock() - began):
                self._note_silence(target, began)
            else:
                self._silent.undecided((target.scheme, target.authority), began)
            raise
        if exchange.head.status in _NO_ANSWERS:
            self._note_silence(target, began)
        else:
            self._note_answer(target)
        self._note_refusal(request, exchange)
        self._known.public_tokens.note_challenge(exchange.target, exchange.head)
        self._known.rate_limits.note(exchange.target, exchange.head)
        return exchange

    def _note_refusal(self, request: Request, exchange: Exchange) -> None:
        if exchange.hops:
            self._refusals.note(request, exchange.hops[0].head)
        seconds = self._refusals.note(replace(request, target=exchange.target), exchange.head)
        if seconds:
            self._counters.add(Counter.REFUSALS)
            authority, status = exchange.target.authority, exchange.head.status
            _log.warning("%s answers %d; for %.0f s such requests do not ask it", authority, status, seconds)

    def _note_answer(self, target: Target) -> None:
        if self._silent.worked((target.scheme, target.authority)):
            _log.info("%s answers again", target.authority)

    def _follow(self, request: Request, begun: Optional[Exchange]) -> Exchange:
        first = request.target
        hops: Tuple[Hop, ...] = ()
        while True:
            exchange, begun = begun or self._exchanges.exchange(request), None
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

    def _give_back(self, connection: OriginConnection, reusable: bool) -> None:
        """End an exchange. An open one holds this method: origins that a reload has replaced live as long as they are
        in use, and `Server.stop` can close them."""
        self._connections.give_back(connection, reusable)
