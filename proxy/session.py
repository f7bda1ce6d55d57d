"""One client's connection from accept to close: the place where all rooms meet.

    read a head → decide once → tunnel, intercept, fetch, own page or refusal → log → the next one

Interception changes nothing but the stream, which gets TLS, and what is known of where requests arrive; then the loop
goes on.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import Callable, Optional, Union

from fetching.cached_fetch import CachedFetch
from fetching.memory_cache import Answer, PlainHit
from fetching.naming import LONGEST_PATH
from monitoring.details import Side
from monitoring.log_text import target_shown
from monitoring.metrics import Counter
from monitoring.redaction import shown
from net.arrival import Where
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
from proxy.routing import Fetch, Intercept, Own, Tunnel
from proxy.runtime import Household
from proxy.session_client import SessionClient
from proxy.uncached import Asked, answer_from_origin
from upstream.client import UpstreamError
from upstream.relay import expects_continue

_log = logging.getLogger("dduct.session")

_LINGER = 1.0  # seconds for a refused client to read why
_TUNNEL_PATIENCE = 10  # an idle tunnel gets so many times the idle_timeout
_ENTRANCES_AT_MOST = 4096  # heads of CONNECT that are remembered; then it begins anew
_ENTRANCE_AT_MOST = 2048  # octets of one
_TLS_TURNS = 3  # two flights of a client, and one that comes in pieces
_REPEATS = 2  # known requests in succession, after which a connection needs no thread
_UNREAD_AT_MOST = 64 * 1024  # octets of an unwanted request body worth reading to keep a connection


class Session:
    """Serves one connection. Each request is judged by what `household` is when it arrives.

    `proved` is told once, when a request has been accepted.
    """

    def __init__(
        self,
        stream: Stream,
        client: str,
        where: Where,
        household: Callable[[], Household],
        proved: Callable[[], None] = lambda: None,
        certified: bool = False,
    ) -> None:
        self._stream = stream
        self._client = SessionClient(client, certified)
        self._where = where
        self._current = household
        self._house = household()
        self._via = self._house.services.via
        self._proved: Optional[Callable[[], None]] = proved
        self._origin: Optional[Stream] = None  # the other end of a tunnel
        self._waiting_since = time.monotonic()  # for the client, if it is not busy
        self.busy = False  # between the first octet of a request and the last of its response
        self._repeats = 0  # requests in succession that were known
        self._unsent = memoryview(b"")  # what `answer_at_once` could not send at once
        self._ending = False
        self.watch = ClientWatch(stream.fileno, lambda: stream.encrypted)
        self._ended = False  # by another thread
        self._opening: Optional[Opening] = None  # after a CONNECT, until its client has shown what it speaks
        self._tls_turns = 0  # that a handshake may take before a thread waits for its end

    @property
    def patience(self) -> float:
        """How long what comes next may take to come, in seconds."""
        return self._house.idle_timeout if self._opening is None else self._opening.seconds

    @property
    def silent_since(self) -> Optional[float]:
        """Since when it has waited for its client (`time.monotonic()`); None while it answers."""
        if self.watch.half_closed:
            return GONE
        return None if self.busy else self._waiting_since

    def barred(self, access: Access) -> Optional[str]:
        """Why this client may not go on with what it has begun; None where it may."""
        return self._client.barred(access, self._where, self._origin is not None)

    def end(self) -> None:
        """End it, from another thread, whatever it does."""
        self._ended = True
        self._stream.cancel()
        origin = self._origin
        if origin is not None:
            origin.cancel()  # a tunnel with a silent origin would not find out

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._stream.fileno()

    def run(self) -> bool:
        """Serve requests until either side has had enough, then close; False then. Raises nothing but bugs.

        True where the next request is probably one for `answer_at_once`, and no thread need wait for it.
        """
        try:
            if self._unsent:
                self._stream.send(self._unsent)
                self._unsent, self.busy = memoryview(b""), False
            if self._stream.handshaking and not self._ending and not self._take_tls_on(self._stream.finish_tls):
                return False
            while not self._ending and not self._house.draining.is_set():
                if self._opening is None and not self._serve_one():
                    break
                self.busy, self._waiting_since = False, time.monotonic()
                if self._opening is not None:
                    if self._opening.seconds and self._opening.look() is None:
                        return True  # nobody waits for it but the thread that watches
                    if not self._open(self._opening):
                        break
                if self._repeats >= _REPEATS and not self._stream.holds_octets():
                    return True
            self._stream.close()
        except (OSError, IncompleteBody, ClientGone) as error:
            self._house.services.counters.add(Counter.CLIENTS_GONE, isinstance(error, ClientGone))
            _log.debug("%s went away: %s", self._client.address, error)
            self._stream.cut()
        except BaseException:
            self._stream.abort()
            raise
        return False

    def has_left(self) -> bool:
        """Whether the client is gone, and nothing of what it has sent is to be looked at."""
        return not self._stream.handshaking and self._stream.deserted()

    def answer_at_once(self, turn: float) -> Next:
        """Do what the client wants now, if that takes neither thought nor time."""
        stream = self._stream
        try:
            if stream.handshaking:
                return self._continue_tls()
            if self._opening is not None:
                return self._open_at_once(self._opening)
            request = stream.peek()
            self._house = self._current()
            if not request or self._house.draining.is_set():
                return Next.END if stream.ended else Next.WORK
            if request.startswith(b"CONNECT "):
                return self._intercept_at_once(stream.head_arrived())
            answer = self._known(request, may_read=False, turn=turn)
            if answer is None:  # or there is more than one request, or less
                request = stream.head_arrived()
                answer = self._known(request, may_read=False, turn=turn)
                if answer is None:
                    return Next.WORK
            stream.skip(len(request))
            self._note(answer, 0.0)
            self._waiting_since = turn
            self._unsent = memoryview(answer.octets)  # which `run` sends where this fails
            self._unsent = self._unsent[stream.send_nowait(self._unsent) :]
        except OSError:
            return Next.WORK  # which finds it again
        self.busy = bool(self._unsent)
        return Next.WORK if self.busy or stream.holds_octets() else Next.WATCH

    def timed_out(self) -> Next:
        """The client has said nothing for too long; after a CONNECT it may wait for the other end to speak."""
        return Next.END if self._opening is None or not self._opening.may_be_silent else Next.WORK

    def give_up(self) -> None:
        """Have `run` hang up, whatever was to be done yet."""
        self._ending, self._unsent = True, memoryview(b"")

    def _serve_one(self) -> bool:
        """One request and its response; whether another may follow. Raises OSError when the client is gone."""
        if self._speaks_otherwise():
            return False
        try:
            block = self._stream.read_head(self._house.idle_timeout)
            if not block:
                return False
            self.busy = True
            self._house = self._current()
            if self._answer_again(block):
                return True
            head = http1.parse_request(block)
            framing = http1.request_framing(head)
        except ProtocolError as error:
            self._house.services.counters.add(Counter.REFUSED)
            # Nothing after a message that could not be understood can be.
            where = self._where.inside
            _log.info("%s - %s %d 0 0.000s %s", self._client.who, "-" if where is None else where, error.status, error)
            Reply(self._stream, None, self._via).error(error.status, str(error))
            self._stream.linger(_LINGER)
            return False
        return self._answer(block, head, framing)

    def _speaks_otherwise(self) -> bool:
        """Whether what has arrived cannot be a request of http/1; then its client has been told so."""
        start = self._stream.start_of_buffer(first_bytes.ENOUGH)
        plain = not self._stream.encrypted
        if not start or (start[:1].isalpha() and not start.startswith(b"PRI")):
            return False
        wrong = first_bytes.wrong_on_plain(start) if plain else first_bytes.wrong_inside(start)
        if wrong is None:
            return False
        self._house.services.counters.add(Counter.WRONG_PROTOCOL)
        self._client.tell(self._house.repeated, "protocol", wrong.line)
        self._stream.send(wrong.data)
        self._stream.linger(_LINGER)
        return True

    def _answer_again(self, block: bytes) -> bool:
        """Answer a request as it was answered before, if that may be done without looking at it; whether it was."""
        answer = self._known(block, may_read=True)
        if answer is None:
            self._repeats = 0
            return False
        self._repeats += 1
        started = time.monotonic()
        try:
            self._stream.send(answer.octets)
        finally:
            self._note(answer, time.monotonic() - started)
        return True

    def _known(self, block: bytes, may_read: bool, turn: Optional[float] = None) -> Optional[Answer]:
        """The answer to a request, if it is known."""
        access = self._house.access
        if self._client.is_barred(self._house, self._where) or (
            access.users is not None and self._where.inside is None
        ):
            return None
        answer = self._house.hot.answer(self._where.kind, block, may_read, turn)
        if answer is None or not answer.hit.guessed:
            return answer
        again = self._house.services.deliveries.asks_again(self._client.asker, answer.hit.name)
        return None if again else answer

    def _intercept_at_once(self, block: bytes) -> Next:
        """Answer CONNECT for a host whose leaf is at hand, and begin its TLS. Raises OSError."""
        inside = self._entrance(block)
        if inside is None or inside.inside is None or self._stream.buffered > len(block) or self._stream.encrypted:
            return Next.WORK
        context = self._house.leaves.at_hand(inside.inside.host)
        if context is None:
            return Next.WORK
        self._stream.skip(len(block))
        self._prove()
        self._house.services.counters.add(Counter.INTERCEPTED)
        _log.debug("%s CONNECT %s 200", self._client.address, inside.inside)
        answer = established(self._via)
        if self._stream.send_nowait(answer) < len(answer):
            return Next.END  # a client whose first window is full already
        self._opening = Opening(self._stream, inside, self._house.rules, self._house.idle_timeout, context)
        return Next.WATCH

    def _open_at_once(self, opening: Opening) -> Next:
        """Begin TLS if the client has, and if that takes no time. Raises OSError."""
        spoken = opening.look()
        if spoken is None or spoken is Spoken.END:
            return Next.WATCH if spoken is None else Next.END
        if spoken is not Spoken.TLS or self._stream.encrypted or self._stream.buffered:
            return Next.WORK
        context = opening.context if opening.server_name is None else self._house.leaves.at_hand(opening.server_name)
        if context is None:
            return Next.WORK
        self._opening, self._where = None, opening.place()
        self._tls_turns = _TLS_TURNS
        if not self._take_tls_on(partial(self._stream.begin_tls, context)):
            return Next.END
        return self._continue_tls()

    def _open(self, opening: Opening) -> bool:
        """Go on after a CONNECT as the client has begun; whether requests follow."""
        spoken = opening.wait()
        self._opening = None
        if spoken is Spoken.TLS:
            self._where = opening.place()
            return self._take_tls_on(partial(self._stream.start_tls, self._house.leaves.context(opening.host)))
        if spoken is Spoken.OTHER or (spoken is Spoken.NOTHING and opening.may_be_silent):
            self._pass_through(opening.authority, spoken)
        return False

    def _pass_through(self, authority: Authority, spoken: Spoken) -> None:
        """Carry what is no TLS, inside a CONNECT to a listed host, as for a host that is not listed."""
        self.busy = True
        services, started, carried = self._house.services, time.monotonic(), Carried()
        services.counters.add(Counter.NOT_TLS)
        outcome = f"tunnel; not TLS, but {spoken.value}"
        try:
            origin = services.origins.dial(authority, self._where.reach)
            broken = True
            try:
                self._carry(origin, carried)
                broken = False
            finally:
                services.origins.hang_up(origin, broken)
        except UpstreamError as error:
            # The client was told 200 before: all that is left is to hang up.
            outcome += f"; its origin cannot be reached: {error}"
            self._stream.abort()
        except OSError as error:
            outcome += f"; cut by {(carried.cut_by or Side.CLIENT).value}: {error}"
            raise
        finally:
            line = f"{self._client.who} CONNECT {authority} 200 {carried.received}"
            _log.info("%s %.3fs %s; sent=%d", line, time.monotonic() - started, outcome, carried.sent)

    def _entrance(self, block: bytes) -> Optional[Where]:
        """Where a CONNECT leads that is to be intercepted; None for all others, which `run` sees to."""
        access, entrances = self._house.access, self._house.entrances
        if self._client.is_barred(self._house, self._where):
            return None
        anybody = access.users is None
        known = entrances.get((self._where.kind, block)) if anybody else None
        if known is not None:
            return known
        try:
            head = http1.parse_request(block)
            if access.users is not None:
                user = access.users.recognise(head.headers.get(b"proxy-authorization"))
                if user is None:
                    return None  # to find out whether a password is right takes time
                self._client.is_user(user)
            decision = self._decide(head, http1.request_framing(head))
        except (ProtocolError, UpstreamError):
            return None
        if not isinstance(decision, Intercept):
            return None
        inside = replace(self._where, inside=decision.authority)
        if anybody and len(block) <= _ENTRANCE_AT_MOST:
            if len(entrances) >= _ENTRANCES_AT_MOST:
                entrances.clear()
            entrances[self._where.kind, block] = inside
        return inside

    def _continue_tls(self) -> Next:
        self._tls_turns -= 1
        if not self._take_tls_on(self._stream.continue_tls):
            return Next.END
        return Next.WATCH if self._tls_turns or not self._stream.handshaking else Next.WORK

    def _take_tls_on(self, step: Callable[[], object]) -> bool:
        """Take a step of the handshake; False where there will be no connection."""
        try:
            step()
        except OSError as error:
            key = f"tls {self._client.address} {self._where.inside}"
            message = "%s makes no TLS connection with us as %s: %s"
            self._house.repeated.write(logging.INFO, key, message, self._client.who, self._where.inside, error)
            self.give_up()
            return False
        return True

    def _prove(self) -> None:
        """A request was accepted."""
        proved, self._proved = self._proved, None
        if proved is not None:
            proved()

    def _note(self, answer: Answer, seconds: float) -> None:
        if self._proved is not None:
            self._prove()
        services = self._house.services
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
            reply.persistent = False  # until the client is told to go on, its body may come after the answer, or never
        started = time.monotonic()
        what = target_shown(head.target)
        if self._where.inside is not None and what.startswith("/"):
            what = f"https://{self._where.inside}{what}"
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
            reply.note = request_log.of_decision(decision, head, framing, self._house.rules, LONGEST_PATH)
            if isinstance(decision, (Tunnel, Intercept)):
                return self._connect(decision, reply)
            plain_hit = self._dispatch(decision, head, body, framing, reply)
            if plain_hit is not None and reply.persistent and not awaited:
                self._house.hot.remember(self._where.kind, block, reply.head, plain_hit)
        except (ProtocolError, UpstreamError) as error:
            line.remark = str(error)
            if isinstance(error, ProtocolError):
                self._house.services.counters.add(Counter.REFUSED)
                reply.persistent = False  # who knows what else this client means in another way
            elif error.status == 403:
                self._house.services.counters.add(Counter.REFUSED)
            reply.error(error.status, line.remark)
        except (OSError, IncompleteBody, ClientGone) as error:
            # What breaks towards the origin is an UpstreamError, or what has been `carried` knows.
            line.cut(error, reply, Side.DDUCT if self._ended else Side.CLIENT)
            raise
        finally:
            line.write(_log, self._client.who, reply, time.monotonic() - started)
        if body.complete or (reply.persistent and body.drain(_UNREAD_AT_MOST)):
            return reply.persistent
        self._stream.linger(_LINGER)
        return False

    def _decide(self, head: RequestHead, framing: BodyFraming) -> routing.Decision:
        """Raises ProtocolError, and UpstreamError(508) for a request that has been here before."""
        if self._via.split()[1] in b" ".join(head.headers.get_all(b"via")).split():
            raise UpstreamError("this request has come back to dduct", 508)
        expectation = head.headers.get(b"expect")
        if expectation is not None and expectation.lower() != b"100-continue":
            raise ProtocolError("an expectation other than 100-continue", 417)
        if head.method in (b"CONNECT", b"TRACE") and framing.kind is not Framing.NONE:
            raise ProtocolError(f"{head.method.decode()} with a body")  # RFC 9110 §9.3.6, §9.3.8
        if self._client.is_barred(self._house, self._where):
            self._ending = True
            return routing.Refuse(403, self._client.why_barred or "")
        decision = routing.decide(head, self._where, self._house.rules)
        return self._client.authenticated(head, decision, self._house, self._where)

    def _dispatch(
        self, decision: routing.Decision, head: RequestHead, body: BodyReader, framing: BodyFraming, reply: Reply
    ) -> Optional[PlainHit]:
        """Do what was decided; what may be done again without deciding, if anything."""
        if isinstance(decision, Own):
            house = self._house
            page = builtin.page(head, decision.path, self._where, house.about, house.services.counters)
            reply.whole(page.status, page.fields, page.body)
        elif isinstance(decision, routing.LastStop):
            page = builtin.last_stop(head)
            reply.whole(page.status, page.fields, page.body)
        elif isinstance(decision, routing.Refuse):
            self._house.services.counters.add(Counter.REFUSED)
            challenge = [(b"Proxy-Authenticate", b'Basic realm="dduct", charset="UTF-8"')]
            reply.error(decision.status, decision.reason, challenge if decision.status == 407 else [])
        elif isinstance(decision, Fetch):
            if decision.name is not None and framing.kind is Framing.NONE:
                services, reach = self._house.services, self._where.reach
                fetch = CachedFetch(services, reply, head, decision.target, decision.name, reach, self._client.asker)
                fetch.run()
                return fetch.plain_hit
            asked = Asked(decision.target, head, framing, body)
            answer_from_origin(
                self._house, asked, reply, self._where.reach, partial(self._carry, carried=reply.carried)
            )
        return None

    def _connect(self, decision: Union[Tunnel, Intercept], reply: Reply) -> bool:
        """Answer CONNECT; whether requests follow inside. Raises UpstreamError while none has been answered."""
        if isinstance(decision, Tunnel):
            reply.note = request_log.TUNNEL
            self._house.services.counters.add(Counter.TUNNELS)
            return self._tunnel(decision, reply)
        reply.note = "intercept"
        self._house.services.counters.add(Counter.INTERCEPTED)
        self._house.leaves.context(decision.authority.host)
        self._establish(reply)
        self._opening = self._make_opening(decision.authority)
        return True

    def _make_opening(self, authority: Authority) -> Opening:
        house = self._house
        return Opening(self._stream, replace(self._where, inside=authority), house.rules, house.idle_timeout)

    def _tunnel(self, decision: Tunnel, reply: Reply) -> bool:
        """Carry; or find out that the client means a host that is to be intercepted, and True then."""
        origins = self._house.services.origins
        origin = origins.dial(decision.authority, self._where.reach)
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
        """Whether a CONNECT to an address, which is not listed, turns out to be for a host that is."""
        opening = self._make_opening(authority)
        if not opening.wants_name or opening.wait(origin) is not Spoken.TLS or opening.server_name is None:
            return False
        self._house.services.counters.add(Counter.INTERCEPTED)
        self._opening = opening
        return True

    def _carry(self, origin: Stream, carried: Carried) -> None:
        """Carry octets both ways to the end. Raises OSError where that is none, and lets the client know."""
        self._origin = origin
        try:
            # Either a reload sees this tunnel, or this sees the reload.
            why = self.barred(self._current().access)
            if why is not None:
                raise ConnectionLost(why)
            tunnel(self._stream, origin, self._house.idle_timeout * _TUNNEL_PATIENCE, carried)
        except OSError:
            if self._ended or carried.cut_by is None:  # for silence, or by a reload
                carried.cut_by = Side.DDUCT
            self._stream.abort()  # a FIN would say that it has everything
            raise

    def _establish(self, reply: Reply) -> None:
        reply.status = 200
        self._stream.send(established(self._via))

    def _go_ahead(self, head: RequestHead, reply: Reply) -> None:
        reply.persistent = head.persistent
        self._stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
