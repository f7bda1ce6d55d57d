"""One client connection from accept to close.

    read a head → decide once → tunnel, intercept, fetch, built-in page or refusal → log → next request

Interception changes only the stream, which gets TLS, and the arrival; then the loop goes on.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import Callable, Optional, Union

from fetching.cached_fetch import CachedFetch
from fetching.memory_cache import CacheableHit
from fetching.naming import LONGEST_PATH
from monitoring.details import Side
from monitoring.log_text import target_shown
from monitoring.metrics import Counter
from monitoring.redaction import shown
from net.arrival import Arrival
from net.body import BodyReader, IncompleteBody
from net.client_watch import ClientGone, ClientWatch
from net.response import Reply
from net.stream import ConnectionLost, Stream
from net.tunnel import Carried, tunnel
from pages import builtin
from protocol import http1
from protocol.http1 import Authority, BodyFraming, Framing, ProtocolError, RequestHead
from proxy import first_bytes, request_log, routing
from proxy.access import Access
from proxy.connection_limit import GONE
from proxy.fast_path import FastPath
from proxy.opening import Opening, Spoken, established
from proxy.request_log import Line
from proxy.routing import BuiltinPage, Fetch, Intercept, Tunnel
from proxy.runtime import Runtime
from proxy.session_client import SessionClient
from proxy.session_state import SessionState
from proxy.uncached import Asked, answer_from_origin
from upstream.client import UpstreamError
from upstream.relay import expects_continue

_log = logging.getLogger("dduct.session")

_LINGER = 1.0  # seconds for a refused client to read the reason
_TUNNEL_TIMEOUT_FACTOR = 10  # the timeout of a tunnel is this multiple of idle_timeout
_REPEATS = 2  # successive known requests before a connection goes to the poller
_MAX_UNREAD = 64 * 1024  # bytes of an unwanted request body to read to keep the connection


class Session:
    """Serves one connection. Each request is judged by the `current_runtime()` of its arrival.

    `proved` is called once, when the first request is accepted.
    """

    def __init__(
        self,
        stream: Stream,
        client: str,
        arrival: Arrival,
        current_runtime: Callable[[], Runtime],
        proved: Callable[[], None] = lambda: None,
        certified: bool = False,
    ) -> None:
        self._stream = stream
        self._client = SessionClient(client, certified)
        self._state = SessionState(stream, self._client, arrival, current_runtime, proved)
        self.fast_path = FastPath(self._state)  # what the poller watches
        self._origin: Optional[Stream] = None  # the other end of a tunnel
        self._repeats = 0  # successive known requests
        self.watch = ClientWatch(stream.fileno, lambda: stream.encrypted)
        self._ended = False  # `end` was called, from another thread

    @property
    def silent_since(self) -> Optional[float]:
        """When it began to wait for its client (`time.monotonic()`); None while it answers, GONE once half-closed."""
        if self.watch.half_closed:
            return GONE
        return None if self._state.busy else self._state.waiting_since

    @property
    def busy(self) -> bool:
        """Whether a request is in progress."""
        return self._state.busy

    def barred(self, access: Access) -> Optional[str]:
        """Why this client may not go on; None if it may."""
        return self._client.barred(access, self._state.arrival, self._origin is not None)

    def end(self) -> None:
        """End the session from another thread, in any state."""
        self._ended = True
        self._stream.cancel()
        origin = self._origin
        if origin is not None:
            origin.cancel()  # wakes a tunnel that waits for a silent origin

    def run(self) -> bool:
        """Serve requests until either side ends, then close and return False. Raises nothing but bugs.

        Returns True where the poller should wait for the next bytes: the fast path can probably serve them.
        """
        state, stream = self._state, self._stream
        try:
            if state.unsent:
                stream.send(state.unsent)
                state.unsent, state.busy = memoryview(b""), False
            if stream.handshaking and not state.ending and not state.take_tls_on(stream.finish_tls):
                return False
            while not state.ending and not state.runtime.draining.is_set():
                if state.opening is None and not self._serve_one():
                    break
                state.busy, state.waiting_since = False, time.monotonic()
                if state.opening is not None:
                    if state.opening.seconds and state.opening.look() is None:
                        return True  # only the poller waits for the client's first bytes
                    if not self._open(state.opening):
                        break
                if self._repeats >= _REPEATS and not stream.holds_bytes():
                    return True
            stream.close()
        except (OSError, IncompleteBody, ClientGone) as error:
            state.runtime.services.counters.add(Counter.CLIENTS_GONE, isinstance(error, ClientGone))
            _log.debug("%s went away: %s", self._client.address, error)
            stream.close_abruptly()
        except BaseException:
            stream.reset()
            raise
        return False

    def _serve_one(self) -> bool:
        """Serve one request; returns whether another may follow. Raises OSError when the client is gone."""
        if self._speaks_otherwise():
            return False
        try:
            block = self._stream.read_head(self._state.runtime.idle_timeout)
            if not block:
                return False
            self._state.busy = True
            self._state.runtime = self._state.current_runtime()
            if self._answer_again(block):
                return True
            head = http1.parse_request(block)
            framing = http1.request_framing(head)
        except ProtocolError as error:
            self._state.runtime.services.counters.add(Counter.REFUSED)
            # After an invalid message the start of the next one is unknown.
            arrival = self._state.arrival.connect_target
            _log.info(
                "%s - %s %d 0 0.000s %s", self._client.who, "-" if arrival is None else arrival, error.status, error
            )
            Reply(self._stream, None, self._state.via).error(error.status, str(error))
            self._stream.linger(_LINGER)
            return False
        return self._answer(block, head, framing)

    def _speaks_otherwise(self) -> bool:
        """Whether the received bytes cannot be HTTP/1; answers the client if so."""
        start = self._stream.start_of_buffer(first_bytes.ENOUGH)
        plain = not self._stream.encrypted
        if not start or (start[:1].isalpha() and not start.startswith(b"PRI")):
            return False
        wrong = first_bytes.wrong_on_plain(start) if plain else first_bytes.wrong_inside(start)
        if wrong is None:
            return False
        self._state.runtime.services.counters.add(Counter.WRONG_PROTOCOL)
        self._client.log_repeated(self._state.runtime.repeated, "protocol", wrong.line)
        self._stream.send(wrong.data)
        self._stream.linger(_LINGER)
        return True

    def _answer_again(self, block: bytes) -> bool:
        """Answer a request from the memory cache, without parsing it; returns whether it was known."""
        answer = self._state.known(block, may_read=True)
        if answer is None:
            self._repeats = 0
            return False
        self._repeats += 1
        started = time.monotonic()
        try:
            self._stream.send(answer.data)
        finally:
            self._state.note(answer, time.monotonic() - started)
        return True

    def _open(self, opening: Opening) -> bool:
        """Go on after a CONNECT by the client's first bytes; returns whether requests follow."""
        spoken = opening.wait()
        self._state.opening = None
        if spoken is Spoken.TLS:
            self._state.arrival = opening.named_arrival()
            return self._state.take_tls_on(
                partial(self._stream.start_tls, self._state.runtime.leaf_certificates.context(opening.host))
            )
        if spoken is Spoken.OTHER or (spoken is Spoken.NOTHING and opening.may_be_silent):
            self._pass_through(opening.authority, spoken)
        return False

    def _pass_through(self, authority: Authority, spoken: Spoken) -> None:
        """Tunnel a CONNECT to a listed host whose client does not speak TLS."""
        self._state.busy = True
        services, started, carried = self._state.runtime.services, time.monotonic(), Carried()
        services.counters.add(Counter.NOT_TLS)
        outcome = f"tunnel; not TLS, but {spoken.value}"
        try:
            origin = services.origins.dial(authority, self._state.arrival.reach)
            broken = True
            try:
                self._carry(origin, carried)
                broken = False
            finally:
                services.origins.hang_up(origin, broken)
        except UpstreamError as error:
            # The client has its 200 already: only a reset can report the error.
            outcome += f"; its origin cannot be reached: {error}"
            self._stream.reset()
        except OSError as error:
            outcome += f"; cut by {(carried.cut_by or Side.CLIENT).value}: {error}"
            raise
        finally:
            line = f"{self._client.who} CONNECT {authority} 200 {carried.received}"
            _log.info("%s %.3fs %s; sent=%d", line, time.monotonic() - started, outcome, carried.sent)

    def _answer(self, block: bytes, head: RequestHead, framing: BodyFraming) -> bool:
        reply = Reply(self._stream, head, self._state.via)
        awaited = expects_continue(head, framing)
        body = BodyReader(self._stream, framing)
        if awaited:
            body = BodyReader(self._stream, framing, partial(self._go_ahead, head, reply))
            reply.persistent = False  # before 100 Continue, the body may come after the answer, or never
        started = time.monotonic()
        what = target_shown(head.target)
        if self._state.arrival.connect_target is not None and what.startswith("/"):
            what = f"https://{self._state.arrival.connect_target}{what}"
        line = Line(head.method, what)
        try:
            line.decision = decision = self._state.decide(head, framing)
            if not isinstance(decision, routing.Refuse):
                self._state.prove()
            elif self._state.ending:
                reply.persistent = False
            if isinstance(decision, Fetch):
                line.what = shown(str(decision.target))
            elif isinstance(decision, routing.Refuse):
                line.remark = decision.reason
            reply.note = request_log.of_decision(decision, head, framing, self._state.runtime.rules, LONGEST_PATH)
            if isinstance(decision, (Tunnel, Intercept)):
                return self._connect(decision, reply)
            cacheable_hit = self._dispatch(decision, head, body, framing, reply)
            if cacheable_hit is not None and reply.persistent and not awaited:
                self._state.runtime.memory_cache.remember(self._state.arrival.kind, block, reply.head, cacheable_hit)
        except (ProtocolError, UpstreamError) as error:
            line.remark = str(error)
            if isinstance(error, ProtocolError):
                self._state.runtime.services.counters.add(Counter.REFUSED)
                reply.persistent = False  # this client and dduct may disagree on the framing, too
            elif error.status == 403:
                self._state.runtime.services.counters.add(Counter.REFUSED)
            reply.error(error.status, line.remark)
        except (OSError, IncompleteBody, ClientGone) as error:
            # Errors of the origin are UpstreamErrors, or noted in `reply.carried`.
            line.note_break(error, reply, Side.DDUCT if self._ended else Side.CLIENT)
            raise
        finally:
            line.write(_log, self._client.who, reply, time.monotonic() - started)
        if body.complete or (reply.persistent and body.drain(_MAX_UNREAD)):
            return reply.persistent
        self._stream.linger(_LINGER)
        return False

    def _dispatch(
        self, decision: routing.Decision, head: RequestHead, body: BodyReader, framing: BodyFraming, reply: Reply
    ) -> Optional[CacheableHit]:
        """Carry out a decision; returns a hit that the memory cache may repeat, if any."""
        if isinstance(decision, BuiltinPage):
            runtime = self._state.runtime
            page = builtin.page(head, decision.path, self._state.arrival, runtime.about, runtime.services.counters)
            reply.send_complete(page.status, page.fields, page.body)
        elif isinstance(decision, routing.MaxForwardsReached):
            page = builtin.max_forwards_reached(head)
            reply.send_complete(page.status, page.fields, page.body)
        elif isinstance(decision, routing.Refuse):
            self._state.runtime.services.counters.add(Counter.REFUSED)
            challenge = [(b"Proxy-Authenticate", b'Basic realm="dduct", charset="UTF-8"')]
            reply.error(decision.status, decision.reason, challenge if decision.status == 407 else [])
        elif isinstance(decision, Fetch):
            if decision.name is not None and framing.kind is Framing.NONE:
                services, reach = self._state.runtime.services, self._state.arrival.reach
                fetch = CachedFetch(services, reply, head, decision.target, decision.name, reach, self._client.asker)
                fetch.run()
                return fetch.cacheable_hit
            asked = Asked(decision.target, head, framing, body)
            answer_from_origin(
                self._state.runtime,
                asked,
                reply,
                self._state.arrival.reach,
                partial(self._carry, carried=reply.carried),
            )
        return None

    def _connect(self, decision: Union[Tunnel, Intercept], reply: Reply) -> bool:
        """Serve CONNECT; returns whether requests follow inside. Raises UpstreamError before the answer."""
        if isinstance(decision, Tunnel):
            reply.note = request_log.TUNNEL
            self._state.runtime.services.counters.add(Counter.TUNNELS)
            return self._tunnel(decision, reply)
        reply.note = "intercept"
        self._state.runtime.services.counters.add(Counter.INTERCEPTED)
        self._state.runtime.leaf_certificates.context(decision.authority.host)
        self._establish(reply)
        self._state.opening = self._make_opening(decision.authority)
        return True

    def _make_opening(self, authority: Authority) -> Opening:
        runtime = self._state.runtime
        return Opening(
            self._stream, replace(self._state.arrival, connect_target=authority), runtime.rules, runtime.idle_timeout
        )

    def _tunnel(self, decision: Tunnel, reply: Reply) -> bool:
        """Tunnel and return False; or True, without tunnelling, where the SNI names a host to intercept."""
        origins = self._state.runtime.services.origins
        origin = origins.dial(decision.authority, self._state.arrival.reach)
        broken = True
        try:
            self._establish(reply)
            if self._names_a_listed_host(decision.authority, origin):
                reply.note = "intercept"
                return True
            self._carry(origin, reply.carried)
            broken = False
        finally:
            origins.hang_up(origin, broken)
        return False

    def _names_a_listed_host(self, authority: Authority, origin: Stream) -> bool:
        """Whether the SNI inside a CONNECT to an address, which is not listed, names a listed host."""
        opening = self._make_opening(authority)
        if not opening.wants_name or opening.wait(origin) is not Spoken.TLS or opening.server_name is None:
            return False
        self._state.runtime.services.counters.add(Counter.INTERCEPTED)
        self._state.opening = opening
        return True

    def _carry(self, origin: Stream, carried: Carried) -> None:
        """Relay bytes both ways to the end. Resets the client and raises OSError where the tunnel breaks."""
        self._origin = origin
        try:
            # _origin is set before the check: a reload ends this tunnel, or the check sees the new rules.
            why = self.barred(self._state.current_runtime().access)
            if why is not None:
                raise ConnectionLost(why)
            tunnel(self._stream, origin, self._state.runtime.idle_timeout * _TUNNEL_TIMEOUT_FACTOR, carried)
        except OSError:
            if self._ended or carried.cut_by is None:  # by a reload, or by the timeout
                carried.cut_by = Side.DDUCT
            self._stream.reset()  # a FIN would mean that the data is complete
            raise

    def _establish(self, reply: Reply) -> None:
        reply.status = 200
        self._stream.send(established(self._state.via))

    def _go_ahead(self, head: RequestHead, reply: Reply) -> None:
        reply.persistent = head.persistent
        self._stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
