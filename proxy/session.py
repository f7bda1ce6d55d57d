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
from fetching.memory_cache import Answer, CacheableHit
from fetching.naming import LONGEST_PATH
from monitoring.details import Side
from monitoring.log_text import target_shown
from monitoring.metrics import Counter
from monitoring.redaction import shown
from net.arrival import Arrival
from net.body import BodyReader, IncompleteBody
from net.client_watch import ClientGone, ClientWatch
from net.poller import Next
from net.response import Reply
from net.stream import ConnectionLost, Stream
from net.tunnel import Carried, tunnel
from pages import builtin
from protocol import http1
from protocol.http1 import Authority, BodyFraming, Framing, ProtocolError, RequestHead
from proxy import first_bytes, request_log, routing
from proxy.access import Access
from proxy.connection_limit import GONE
from proxy.opening import Opening, Spoken, established
from proxy.request_log import Line
from proxy.routing import BuiltinPage, Fetch, Intercept, Tunnel
from proxy.runtime import Runtime
from proxy.session_client import SessionClient
from proxy.uncached import Asked, answer_from_origin
from upstream.client import UpstreamError
from upstream.relay import expects_continue

_log = logging.getLogger("dduct.session")

_LINGER = 1.0  # seconds for a refused client to read the reason
_TUNNEL_TIMEOUT_FACTOR = 10  # the timeout of a tunnel is this multiple of idle_timeout
_MAX_CONNECT_CACHE = 4096  # CONNECT heads in the connect cache; a full one is cleared
_MAX_CONNECT_HEAD = 2048  # bytes of one head
_TLS_ITERATIONS = 3  # poll iterations: two flights of a client, and a third where one is split
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
        self._arrival = arrival
        self._current = current_runtime
        self._runtime = current_runtime()
        self._via = self._runtime.services.via
        self._proved: Optional[Callable[[], None]] = proved
        self._origin: Optional[Stream] = None  # the other end of a tunnel
        self._waiting_since = time.monotonic()  # since when it waits for the client; valid unless busy
        self.busy = False  # from the head of a request to the last byte of its response
        self._repeats = 0  # successive known requests
        self._unsent = memoryview(b"")  # rest of an answer of `answer_at_once`, for `run` to send
        self._ending = False
        self.watch = ClientWatch(stream.fileno, lambda: stream.encrypted)
        self._ended = False  # `end` was called, from another thread
        self._opening: Optional[Opening] = None  # from a CONNECT to the client's first bytes
        self._tls_iterations = 0  # iterations left for a handshake in the poller

    @property
    def timeout(self) -> float:
        """Seconds to wait for the next bytes."""
        return self._runtime.idle_timeout if self._opening is None else self._opening.seconds

    @property
    def silent_since(self) -> Optional[float]:
        """When it began to wait for its client (`time.monotonic()`); None while it answers, GONE once half-closed."""
        if self.watch.half_closed:
            return GONE
        return None if self.busy else self._waiting_since

    def barred(self, access: Access) -> Optional[str]:
        """Why this client may not go on; None if it may."""
        return self._client.barred(access, self._arrival, self._origin is not None)

    def end(self) -> None:
        """End the session from another thread, in any state."""
        self._ended = True
        self._stream.cancel()
        origin = self._origin
        if origin is not None:
            origin.cancel()  # wakes a tunnel that waits for a silent origin

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._stream.fileno()

    def run(self) -> bool:
        """Serve requests until either side ends, then close and return False. Raises nothing but bugs.

        Returns True where the poller should wait for the next bytes: `answer_at_once` can probably serve them.
        """
        try:
            if self._unsent:
                self._stream.send(self._unsent)
                self._unsent, self.busy = memoryview(b""), False
            if self._stream.handshaking and not self._ending and not self._take_tls_on(self._stream.finish_tls):
                return False
            while not self._ending and not self._runtime.draining.is_set():
                if self._opening is None and not self._serve_one():
                    break
                self.busy, self._waiting_since = False, time.monotonic()
                if self._opening is not None:
                    if self._opening.seconds and self._opening.look() is None:
                        return True  # only the poller waits for the client's first bytes
                    if not self._open(self._opening):
                        break
                if self._repeats >= _REPEATS and not self._stream.holds_bytes():
                    return True
            self._stream.close()
        except (OSError, IncompleteBody, ClientGone) as error:
            self._runtime.services.counters.add(Counter.CLIENTS_GONE, isinstance(error, ClientGone))
            _log.debug("%s went away: %s", self._client.address, error)
            self._stream.close_abruptly()
        except BaseException:
            self._stream.reset()
            raise
        return False

    def peer_closed(self) -> bool:
        """Whether the client is gone and has left no bytes to read."""
        return not self._stream.handshaking and self._stream.peer_closed_silently()

    def answer_at_once(self, iteration: float) -> Next:
        """Serve the received bytes in the poller's thread, where that needs no waiting and no decision."""
        stream = self._stream
        try:
            if stream.handshaking:
                return self._continue_tls()
            if self._opening is not None:
                return self._open_at_once(self._opening)
            request = stream.peek()
            self._runtime = self._current()
            if not request or self._runtime.draining.is_set():
                return Next.CLOSE if stream.eof else Next.NEEDS_THREAD
            if request.startswith(b"CONNECT "):
                return self._intercept_at_once(stream.head_arrived())
            answer = self._known(request, may_read=False, iteration=iteration)
            if answer is None:  # or the bytes are not exactly one request
                request = stream.head_arrived()
                answer = self._known(request, may_read=False, iteration=iteration)
                if answer is None:
                    return Next.NEEDS_THREAD
            stream.consume(len(request))
            self._note(answer, 0.0)
            self._waiting_since = iteration
            self._unsent = memoryview(answer.data)  # `run` sends it if the next line raises
            self._unsent = self._unsent[stream.send_nowait(self._unsent) :]
        except OSError:
            return Next.NEEDS_THREAD  # the thread finds the error again
        self.busy = bool(self._unsent)
        return Next.NEEDS_THREAD if self.busy or stream.holds_bytes() else Next.WAIT

    def timed_out(self) -> Next:
        """Close a silent client; after a CONNECT the client may be waiting for the server's first bytes."""
        return Next.CLOSE if self._opening is None or not self._opening.may_be_silent else Next.NEEDS_THREAD

    def give_up(self) -> None:
        """Make `run` close the connection at once; unsent bytes are dropped."""
        self._ending, self._unsent = True, memoryview(b"")

    def _serve_one(self) -> bool:
        """Serve one request; returns whether another may follow. Raises OSError when the client is gone."""
        if self._speaks_otherwise():
            return False
        try:
            block = self._stream.read_head(self._runtime.idle_timeout)
            if not block:
                return False
            self.busy = True
            self._runtime = self._current()
            if self._answer_again(block):
                return True
            head = http1.parse_request(block)
            framing = http1.request_framing(head)
        except ProtocolError as error:
            self._runtime.services.counters.add(Counter.REFUSED)
            # After an invalid message the start of the next one is unknown.
            arrival = self._arrival.connect_target
            _log.info(
                "%s - %s %d 0 0.000s %s", self._client.who, "-" if arrival is None else arrival, error.status, error
            )
            Reply(self._stream, None, self._via).error(error.status, str(error))
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
        self._runtime.services.counters.add(Counter.WRONG_PROTOCOL)
        self._client.log_repeated(self._runtime.repeated, "protocol", wrong.line)
        self._stream.send(wrong.data)
        self._stream.linger(_LINGER)
        return True

    def _answer_again(self, block: bytes) -> bool:
        """Answer a request from the memory cache, without parsing it; returns whether it was known."""
        answer = self._known(block, may_read=True)
        if answer is None:
            self._repeats = 0
            return False
        self._repeats += 1
        started = time.monotonic()
        try:
            self._stream.send(answer.data)
        finally:
            self._note(answer, time.monotonic() - started)
        return True

    def _known(self, block: bytes, may_read: bool, iteration: Optional[float] = None) -> Optional[Answer]:
        """The remembered answer to a request, if it may be given to this client."""
        access = self._runtime.access
        if self._client.is_barred(self._runtime, self._arrival) or (
            access.users is not None and self._arrival.connect_target is None
        ):
            return None
        answer = self._runtime.memory_cache.answer(self._arrival.kind, block, may_read, iteration)
        if answer is None or not answer.hit.guessed:
            return answer
        again = self._runtime.services.deliveries.asks_again(self._client.asker, answer.hit.name)
        return None if again else answer

    def _intercept_at_once(self, block: bytes) -> Next:
        """Answer CONNECT for a host whose leaf is cached, and wait for its TLS. Raises OSError."""
        arrival = self._connect_target(block)
        if (
            arrival is None
            or arrival.connect_target is None
            or self._stream.buffered > len(block)
            or self._stream.encrypted
        ):
            return Next.NEEDS_THREAD
        context = self._runtime.leaf_certificates.get_cached(arrival.connect_target.host)
        if context is None:
            return Next.NEEDS_THREAD
        self._stream.consume(len(block))
        self._prove()
        self._runtime.services.counters.add(Counter.INTERCEPTED)
        _log.debug("%s CONNECT %s 200", self._client.address, arrival.connect_target)
        answer = established(self._via)
        if self._stream.send_nowait(answer) < len(answer):
            return Next.CLOSE  # the client's receive window is full already
        self._opening = Opening(self._stream, arrival, self._runtime.rules, self._runtime.idle_timeout, context)
        return Next.WAIT

    def _open_at_once(self, opening: Opening) -> Next:
        """Start TLS if the client has begun it and the leaf is cached. Raises OSError."""
        spoken = opening.look()
        if spoken is None or spoken is Spoken.END:
            return Next.WAIT if spoken is None else Next.CLOSE
        if spoken is not Spoken.TLS or self._stream.encrypted or self._stream.buffered:
            return Next.NEEDS_THREAD
        context = (
            opening.context
            if opening.server_name is None
            else self._runtime.leaf_certificates.get_cached(opening.server_name)
        )
        if context is None:
            return Next.NEEDS_THREAD
        self._opening, self._arrival = None, opening.named_arrival()
        self._tls_iterations = _TLS_ITERATIONS
        if not self._take_tls_on(partial(self._stream.begin_tls, context)):
            return Next.CLOSE
        return self._continue_tls()

    def _open(self, opening: Opening) -> bool:
        """Go on after a CONNECT by the client's first bytes; returns whether requests follow."""
        spoken = opening.wait()
        self._opening = None
        if spoken is Spoken.TLS:
            self._arrival = opening.named_arrival()
            return self._take_tls_on(
                partial(self._stream.start_tls, self._runtime.leaf_certificates.context(opening.host))
            )
        if spoken is Spoken.OTHER or (spoken is Spoken.NOTHING and opening.may_be_silent):
            self._pass_through(opening.authority, spoken)
        return False

    def _pass_through(self, authority: Authority, spoken: Spoken) -> None:
        """Tunnel a CONNECT to a listed host whose client does not speak TLS."""
        self.busy = True
        services, started, carried = self._runtime.services, time.monotonic(), Carried()
        services.counters.add(Counter.NOT_TLS)
        outcome = f"tunnel; not TLS, but {spoken.value}"
        try:
            origin = services.origins.dial(authority, self._arrival.reach)
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

    def _connect_target(self, block: bytes) -> Optional[Arrival]:
        """The arrival inside a CONNECT to intercept; None for all other requests, which `run` serves."""
        access, connect_cache = self._runtime.access, self._runtime.connect_cache
        if self._client.is_barred(self._runtime, self._arrival):
            return None
        anybody = access.users is None
        known = connect_cache.get((self._arrival.kind, block)) if anybody else None
        if known is not None:
            return known
        try:
            head = http1.parse_request(block)
            if access.users is not None:
                user = access.users.recognise(head.headers.get(b"proxy-authorization"))
                if user is None:
                    return None  # hashing a password takes a thread
                self._client.is_user(user)
            decision = self._decide(head, http1.request_framing(head))
        except (ProtocolError, UpstreamError):
            return None
        if not isinstance(decision, Intercept):
            return None
        arrival = replace(self._arrival, connect_target=decision.authority)
        if anybody and len(block) <= _MAX_CONNECT_HEAD:
            if len(connect_cache) >= _MAX_CONNECT_CACHE:
                connect_cache.clear()
            connect_cache[self._arrival.kind, block] = arrival
        return arrival

    def _continue_tls(self) -> Next:
        self._tls_iterations -= 1
        if not self._take_tls_on(self._stream.continue_tls):
            return Next.CLOSE
        return Next.WAIT if self._tls_iterations or not self._stream.handshaking else Next.NEEDS_THREAD

    def _take_tls_on(self, step: Callable[[], object]) -> bool:
        """Take a step of the handshake; False where it failed."""
        try:
            step()
        except OSError as error:
            key = f"tls {self._client.address} {self._arrival.connect_target}"
            message = "%s makes no TLS connection with us as %s: %s"
            self._runtime.repeated.write(
                logging.INFO, key, message, self._client.who, self._arrival.connect_target, error
            )
            self.give_up()
            return False
        return True

    def _prove(self) -> None:
        """Report the first accepted request."""
        proved, self._proved = self._proved, None
        if proved is not None:
            proved()

    def _note(self, answer: Answer, seconds: float) -> None:
        if self._proved is not None:
            self._prove()
        services = self._runtime.services
        services.counters.add(Counter.HITS)
        if answer.hit.guessed:
            services.deliveries.note(self._client.asker, answer.hit.name)
        _log.info("%s GET %s 200 %d %.3fs %s", self._client.who, answer.url, answer.length, seconds, answer.note)

    def _answer(self, block: bytes, head: RequestHead, framing: BodyFraming) -> bool:
        reply = Reply(self._stream, head, self._via)
        awaited = expects_continue(head, framing)
        body = BodyReader(self._stream, framing)
        if awaited:
            body = BodyReader(self._stream, framing, partial(self._go_ahead, head, reply))
            reply.persistent = False  # before 100 Continue, the body may come after the answer, or never
        started = time.monotonic()
        what = target_shown(head.target)
        if self._arrival.connect_target is not None and what.startswith("/"):
            what = f"https://{self._arrival.connect_target}{what}"
        line = Line(head.method, what)
        try:
            line.decision = decision = self._decide(head, framing)
            if not isinstance(decision, routing.Refuse):
                self._prove()
            elif self._ending:
                reply.persistent = False
            if isinstance(decision, Fetch):
                line.what = shown(str(decision.target))
            elif isinstance(decision, routing.Refuse):
                line.remark = decision.reason
            reply.note = request_log.of_decision(decision, head, framing, self._runtime.rules, LONGEST_PATH)
            if isinstance(decision, (Tunnel, Intercept)):
                return self._connect(decision, reply)
            cacheable_hit = self._dispatch(decision, head, body, framing, reply)
            if cacheable_hit is not None and reply.persistent and not awaited:
                self._runtime.memory_cache.remember(self._arrival.kind, block, reply.head, cacheable_hit)
        except (ProtocolError, UpstreamError) as error:
            line.remark = str(error)
            if isinstance(error, ProtocolError):
                self._runtime.services.counters.add(Counter.REFUSED)
                reply.persistent = False  # this client and dduct may disagree on the framing, too
            elif error.status == 403:
                self._runtime.services.counters.add(Counter.REFUSED)
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

    def _decide(self, head: RequestHead, framing: BodyFraming) -> routing.Decision:
        """The decision on a request. Raises ProtocolError, and UpstreamError(508) on a loop through dduct."""
        if self._via.split()[1] in b" ".join(head.headers.get_all(b"via")).split():
            raise UpstreamError("this request has come back to dduct", 508)
        expectation = head.headers.get(b"expect")
        if expectation is not None and expectation.lower() != b"100-continue":
            raise ProtocolError("an expectation other than 100-continue", 417)
        if head.method in (b"CONNECT", b"TRACE") and framing.kind is not Framing.NONE:
            raise ProtocolError(f"{head.method.decode()} with a body")  # RFC 9110 §9.3.6, §9.3.8
        if self._client.is_barred(self._runtime, self._arrival):
            self._ending = True
            return routing.Refuse(403, self._client.why_barred or "")
        decision = routing.decide(head, self._arrival, self._runtime.rules)
        return self._client.authenticated(head, decision, self._runtime, self._arrival)

    def _dispatch(
        self, decision: routing.Decision, head: RequestHead, body: BodyReader, framing: BodyFraming, reply: Reply
    ) -> Optional[CacheableHit]:
        """Carry out a decision; returns a hit that the memory cache may repeat, if any."""
        if isinstance(decision, BuiltinPage):
            runtime = self._runtime
            page = builtin.page(head, decision.path, self._arrival, runtime.about, runtime.services.counters)
            reply.send_complete(page.status, page.fields, page.body)
        elif isinstance(decision, routing.MaxForwardsReached):
            page = builtin.max_forwards_reached(head)
            reply.send_complete(page.status, page.fields, page.body)
        elif isinstance(decision, routing.Refuse):
            self._runtime.services.counters.add(Counter.REFUSED)
            challenge = [(b"Proxy-Authenticate", b'Basic realm="dduct", charset="UTF-8"')]
            reply.error(decision.status, decision.reason, challenge if decision.status == 407 else [])
        elif isinstance(decision, Fetch):
            if decision.name is not None and framing.kind is Framing.NONE:
                services, reach = self._runtime.services, self._arrival.reach
                fetch = CachedFetch(services, reply, head, decision.target, decision.name, reach, self._client.asker)
                fetch.run()
                return fetch.cacheable_hit
            asked = Asked(decision.target, head, framing, body)
            answer_from_origin(
                self._runtime, asked, reply, self._arrival.reach, partial(self._carry, carried=reply.carried)
            )
        return None

    def _connect(self, decision: Union[Tunnel, Intercept], reply: Reply) -> bool:
        """Serve CONNECT; returns whether requests follow inside. Raises UpstreamError before the answer."""
        if isinstance(decision, Tunnel):
            reply.note = request_log.TUNNEL
            self._runtime.services.counters.add(Counter.TUNNELS)
            return self._tunnel(decision, reply)
        reply.note = "intercept"
        self._runtime.services.counters.add(Counter.INTERCEPTED)
        self._runtime.leaf_certificates.context(decision.authority.host)
        self._establish(reply)
        self._opening = self._make_opening(decision.authority)
        return True

    def _make_opening(self, authority: Authority) -> Opening:
        runtime = self._runtime
        return Opening(
            self._stream, replace(self._arrival, connect_target=authority), runtime.rules, runtime.idle_timeout
        )

    def _tunnel(self, decision: Tunnel, reply: Reply) -> bool:
        """Tunnel and return False; or True, without tunnelling, where the SNI names a host to intercept."""
        origins = self._runtime.services.origins
        origin = origins.dial(decision.authority, self._arrival.reach)
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
        self._runtime.services.counters.add(Counter.INTERCEPTED)
        self._opening = opening
        return True

    def _carry(self, origin: Stream, carried: Carried) -> None:
        """Relay bytes both ways to the end. Resets the client and raises OSError where the tunnel breaks."""
        self._origin = origin
        try:
            # _origin is set before the check: a reload ends this tunnel, or the check sees the new rules.
            why = self.barred(self._current().access)
            if why is not None:
                raise ConnectionLost(why)
            tunnel(self._stream, origin, self._runtime.idle_timeout * _TUNNEL_TIMEOUT_FACTOR, carried)
        except OSError:
            if self._ended or carried.cut_by is None:  # by a reload, or by the timeout
                carried.cut_by = Side.DDUCT
            self._stream.reset()  # a FIN would mean that the data is complete
            raise

    def _establish(self, reply: Reply) -> None:
        reply.status = 200
        self._stream.send(established(self._via))

    def _go_ahead(self, head: RequestHead, reply: Reply) -> None:
        reply.persistent = head.persistent
        self._stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
