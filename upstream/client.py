"""Origins: requests, redirects and kept connections, on top of http.client, whose faults are closed here.

Rules of this module:

* A connection that has brought a response without a body (HEAD, 204, 304, Content-Length: 0) brings nothing after that
  but a 304 that confirms the stored object. A broken origin may send a body all the same, and late: dduct would take
  it for the response to the next request, which may be for another URL.
* A connection that a client has authenticated as such (NTLM, Negotiate) is not kept: others would use its identity.
* http.client sends requests and tracks a connection's state. dduct's own strict parser reads heads and bodies, because
  http.client's lenient one ends short bodies silently, splits heads at bare CRs, ends them at lines without a colon,
  and accepts two Content-Lengths and `0x_3` as a chunk size.
"""

from __future__ import annotations

import enum
import http.client
import logging
import re
import socket
import ssl
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Callable, NamedTuple, Optional, Tuple

from monitoring.metrics import Counter, Counters
from net.addresses import Reach
from net.body import BodyReader, BodyWriter
from net.client_watch import ClientGone
from net.stream import ConnectionLost, Stream
from protocol import http1
from protocol.http1 import Authority, BodyFraming, Field, Headers, ResponseHead, Target
from protocol.request_fields import DEFAULT, RequestFields
from upstream.connection_pool import ConnectionPool
from upstream.dialling import SLOW, Dialler, NoAnswer, Settings, translated
from upstream.dialling import Unanswered as Unanswered  # for callers of this module
from upstream.dialling import UpstreamError as UpstreamError
from upstream.reachability import Outages
from upstream.response_head import AnswerHeads, InterimFlood

_log = logging.getLogger("dduct")

REDIRECT_LIMIT = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_REPLAYABLE = (b"GET", b"HEAD", b"OPTIONS")
_MAX_DRAINED = 64 * 1024  # bytes that are read to keep a connection
_DRAINED_FOR = 1.0  # seconds that this may take
_CONTINUE_TIMEOUT = 1.0  # seconds; curl waits as long
_LOGS_CONNECTIONS_IN = re.compile(rb"(?i)(?:^|[\s,])(?:ntlm|negotiate)(?:$|[\s,])")


class _Stale(Exception):
    """A kept connection brought no response, or an invalid one; the request may be sent on another one."""


class OriginResponse(http.client.HTTPResponse):
    """http.client's response with dduct's parser: `head` and `body` replace its own attributes."""

    head: ResponseHead
    body: BodyReader

    def __init__(
        self, sock: Stream, request: Request, heads: AnswerHeads, early: Optional[ResponseHead], **_: object
    ) -> None:
        super().__init__(sock, method=request.method.decode("ascii"))  # type: ignore[arg-type]
        self._stream = sock
        self._request = request
        self._heads = heads
        self._early = early

    def begin(self, **_: object) -> None:
        """Read the final head, unless it came early. Raises ProtocolError(502), ConnectionLost, or another OSError."""
        head = self._early or self._heads.final(self._stream.timeout)
        if head.status == 101 and not self._request.upgrade:
            raise http1.ProtocolError("origin switched protocols without being asked to", 502)
        self.head = head
        framing = http1.response_framing(self._request.method, head)
        self.body = BodyReader(self._stream, framing, sender=http1.Sender.ORIGIN)
        self.code = self.status = self.head.status
        self.reason = self.head.reason.decode("latin-1")
        self.version = 10 + self.head.version
        # http.client closes its socket at a response with `close`; here the reader of the body closes the connection.
        self.will_close = False


class _Connection(http.client.HTTPConnection):
    """An established connection, as http.client's type."""

    response_class = OriginResponse

    def __init__(
        self, origin: _Origin, stream: Stream, needs: Reach, to_parent: Optional[Tuple[Field, ...]] = None
    ) -> None:
        super().__init__(origin.authority.host, origin.authority.port)
        self.sock = stream
        self.auto_open = 0  # a request on a closed connection is an error, not a new connection
        self.origin = origin
        self.stream = stream
        self.to_parent = to_parent  # fields for a parent proxy, which needs absolute targets; None without one
        self.idle_since = 0.0
        self.fileno = stream.fileno
        self.needs = needs  # the reach that a client needs for its target
        self.request_incomplete = False  # the end of the request was not sent


@dataclass(frozen=True)
class _Origin:
    scheme: str
    authority: Authority
    reach: Reach  # clients of different reach share no connection
    bodiless: bool = False  # its connections have brought a response without a body


class Purpose(enum.Enum):
    """What a response is for; this decides how long its origin may be silent."""

    FILL = "may be kept: others may wait for it, and it can be asked for again"
    RELAY = "for one client alone, who may give up by themselves: long polls, events, slow reports"


@dataclass(frozen=True)
class Request:
    """A request to an origin: `headers` are end-to-end fields without Host and framing.

    `expects`: the origin first says whether it wants the body; `upgrade`: it may answer 101 and switch protocols;
    `on_interim` gets every interim response (RFC 9110 §15.2) but 100. `reach`: what of dduct's machine the client may
    reach. `confirms`: whether a 304 is proof enough on a connection that brings nothing else; None where none is.
    `expects_redirect`: the origin will redirect the request, and `confirms` is about the redirect's target.
    """

    method: bytes
    target: Target
    headers: Headers
    reach: Reach
    purpose: Purpose
    framing: BodyFraming = http1.NO_BODY
    body: Optional[BodyReader] = None
    expects: bool = False
    upgrade: bool = False
    on_interim: Callable[[ResponseHead], None] = lambda _: None
    confirms: Optional[Callable[[ResponseHead], bool]] = None
    expects_redirect: bool = False
    names: RequestFields = DEFAULT  # which of its fields may be credentials

    def redirected(self, target: Target) -> Request:
        """The same at another URL. Credentials are dropped when host, port or scheme change: S3 answers 400 to them."""
        headers = self.headers
        if (target.scheme, target.authority) != (self.target.scheme, self.target.authority):
            headers = Headers(field for field in headers if not self.names.opens(field[0]))
        return replace(self, target=target, headers=headers, expects_redirect=False)


class Hop(NamedTuple):
    """A redirect that was followed: its head, its target, and the reach that a client needs for it."""

    head: ResponseHead
    target: Target
    needs: Reach


class Exchange:
    """A request that was sent and its response: read `body`, then `close()`, on every path."""

    def __init__(self, origins: Origins, connection: _Connection, response: OriginResponse, request: Request) -> None:
        self._origins = origins
        self._connection = connection
        self._response = response
        self._closed = False
        self._logs_in = _logs_in(request, response.head)
        self._bodiless = response.body.complete  # nothing of it has been read yet
        self.method = request.method
        self.target = request.target
        self.hops: Tuple[Hop, ...] = ()  # the redirects that `follow` has followed
        self.head = response.head
        self.body = response.body

    @property
    def needs(self) -> Reach:
        """The reach that a client needs for the response and for the redirects that led to it."""
        return max([self._connection.needs, *(hop.needs for hop in self.hops)])

    @property
    def redirected_to(self) -> Optional[Target]:
        """The target of the first redirect, if any."""
        return self.hops[0].target if self.hops else None

    @property
    def stream(self) -> Stream:
        """The connection itself, for the protocol after a 101."""
        return self._connection.stream

    def relayed(self) -> None:
        """Apply the timeout for relays: the rest of the body is for one client alone."""
        self._connection.stream.timeout = self._origins.relay_timeout

    def redirect(self) -> Optional[Target]:
        """The target of a redirect; None without one, or where http1 cannot resolve it.

        The client itself follows a redirect that sets a cookie: the target may be another thing without that cookie.
        """
        location = self.head.headers.get(b"location")
        if self.head.status not in _REDIRECTS or location is None or b"set-cookie" in self.head.headers:
            return None
        return http1.resolve(self.target, location)

    def close(self) -> None:
        """Keep the connection for another request if its body was read to the end, or nearly; else close it."""
        if self._closed:
            return
        self._closed = True
        self._response.close()
        reusable = False
        try:
            reusable = self._may_be_kept()
        finally:
            if self._bodiless:
                self._connection.origin = replace(self._connection.origin, bodiless=True)
            self._origins.give_back(self._connection, reusable)

    def _may_be_kept(self) -> bool:
        """Whether the connection may be kept; reads the rest of the body, for a moment. Raises ClientGone."""
        reusable = self.head.persistent and self.body.delimited and not self._connection.request_incomplete
        if not reusable or self.head.status == 101 or self._logs_in:
            return False
        # The client waits meanwhile: only afterwards a redirect is followed, or a validated hit sent.
        self._connection.stream.timeout = min(self._connection.stream.timeout, _DRAINED_FOR)
        return self.body.drain(_MAX_DRAINED, _DRAINED_FOR)

    def discard(self) -> None:
        """Close the connection, however the response ends."""
        self._closed = True
        self._response.close()
        self._origins.give_back(self._connection, reusable=False)


class Origins:
    """All connections to origins. Raises UnusableCertificate."""

    def __init__(self, settings: Settings, counters: Counters, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._counters = counters
        self._silence = {
            Purpose.FILL: (settings.fill_timeout, "proxy.upstream_timeout"),
            Purpose.RELAY: (settings.relay_timeout, "proxy.relay_timeout"),
        }
        self._clock = clock
        self._silent = Outages(settings.fill_timeout, clock)
        self._dialler = Dialler(settings, counters, clock)
        self._pool: ConnectionPool[_Connection] = ConnectionPool(clock)

    @property
    def relay_timeout(self) -> float:
        """The longest silence in a relayed response, in seconds."""
        return self._settings.relay_timeout

    def dial(self, authority: Authority, reach: Reach) -> Stream:
        """A connection for a tunnel; `hang_up()` ends it. Raises UpstreamError (403, 502, 504, 508)."""
        stream = self._dialler.dial(authority, reach)
        stream.timeout = self._settings.relay_timeout
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

    def give_back(self, connection: _Connection, reusable: bool) -> None:
        """An exchange is over: keep its connection for the next one, or close it."""
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
        except NoAnswer:
            raise
        except UpstreamError as error:
            if error.status == 504 or (error.status == 502 and self._clock() - began >= SLOW):
                self._note_silence(target, began)
            raise
        except ClientGone:
            self._silent.undecided((target.scheme, target.authority), began)
            raise
        if self._silent.worked((target.scheme, target.authority)):
            _log.info("%s answers again", target.authority)
        return exchange

    def _exchange(self, request: Request) -> Exchange:
        origin = _Origin(request.target.scheme, request.target.authority, request.reach)
        # A request that cannot be sent twice takes no kept connection: it may be closing (RFC 9110 §9.2.2).
        if request.method in _REPLAYABLE and request.body is None:
            found = self._confirmation(origin, request) or self._ask_again(origin, request)
            if found is not None:
                return found
        return self._ask(self._open(origin), request, reused=False)

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
            hops = (*hops, Hop(exchange.head, target, exchange.needs))
            request = request.redirected(target)

    def _note_silence(self, target: Target, began: float) -> None:
        pause = self._silent.failed((target.scheme, target.authority), began)
        if pause:
            self._counters.add(Counter.OUTAGES)
            _log.warning("%s does not answer; for %.0f s stale objects do not wait for it", target.authority, pause)

    def _open(self, origin: _Origin) -> _Connection:
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
        return _Connection(origin, stream, self._dialler.reach_needed(stream, origin.authority), to_parent)

    def _ask_again(self, origin: _Origin, request: Request) -> Optional[Exchange]:
        """Send a request over a kept connection; None where none is usable."""
        kept = self._take(origin)
        while kept is not None:
            try:
                return self._ask(kept, request, reused=True)
            except _Stale:
                kept = self._take(origin)
        return None

    def _confirmation(self, origin: _Origin, request: Request) -> Optional[Exchange]:
        """A 304 that confirms, over a connection that brings nothing else; None where there is none."""
        if request.confirms is None or request.expects_redirect:
            return None
        exchange = self._ask_again(replace(origin, bodiless=True), replace(request, on_interim=lambda _: None))
        if exchange is None or (exchange.head.status == 304 and request.confirms(exchange.head)):
            return exchange
        exchange.discard()
        return None

    def _ask(self, connection: _Connection, request: Request, reused: bool) -> Exchange:
        timeout, key = self._silence[request.purpose]
        connection.stream.timeout = timeout
        try:
            response = _send(connection, request)
            return Exchange(self, connection, response, request)
        except (OSError, http1.ProtocolError, http.client.HTTPException, UnicodeError) as error:
            self.give_back(connection, reusable=False)
            if isinstance(error, InterimFlood):
                self._counters.add(Counter.INTERIM_FLOODS)
            elif reused and isinstance(error, (ConnectionError, ConnectionLost, ssl.SSLError, http1.ProtocolError)):
                raise _Stale from error
            failure = translated(error, f"no answer from {request.target.authority}", key)
            raise Unanswered(str(failure), failure.status) from error
        except BaseException:
            self.give_back(connection, reusable=False)
            raise

    def _take(self, origin: _Origin) -> Optional[_Connection]:
        while True:
            connection = self._pool.take(origin)
            if connection is None:
                return None
            self._dialler.use(connection.stream)
            if not self._pool.expired(connection) and not connection.stream.unusable():
                return connection
            self.give_back(connection, reusable=False)


def _logs_in(request: Request, head: ResponseHead) -> bool:
    """Whether a connection may have an identity after this: NTLM and Negotiate (RFC 4559) authenticate connections."""
    schemes = (*request.headers.get_all(b"authorization"), *head.headers.get_all(b"www-authenticate"))
    return any(_LOGS_CONNECTIONS_IN.search(value) for value in schemes)


def _send(connection: _Connection, request: Request) -> OriginResponse:
    target = str(request.target) if connection.to_parent is not None else request.target.path_query
    connection.putrequest(request.method.decode("ascii"), target, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", request.target.host_field)
    for name, value in (*request.headers, *(connection.to_parent or ())):
        connection.putheader(http1.canonical(name), value)
    if request.framing.kind is http1.Framing.CHUNKED:
        connection.putheader("Transfer-Encoding", "chunked")
    elif request.framing.kind is http1.Framing.LENGTH:
        connection.putheader("Content-Length", str(request.framing.length))
    if request.expects:
        connection.putheader("Expect", "100-continue")
    connection.endheaders()
    heads = AnswerHeads(connection.stream, request.on_interim)
    early = _send_body(connection, request, heads)
    response_class = partial(OriginResponse, request=request, heads=heads, early=early)
    connection.response_class = response_class  # type: ignore[assignment]
    response = connection.getresponse()
    assert isinstance(response, OriginResponse)
    return response


def _send_body(connection: _Connection, request: Request, heads: AnswerHeads) -> Optional[ResponseHead]:
    """Send the body as far as the origin wants it. Returns the final head if that comes before the end."""
    if request.body is None:
        return None
    stream = connection.stream
    head = _await_go_ahead(heads) if request.expects else None
    if head is not None:
        connection.request_incomplete = True
        return head
    writer = BodyWriter(stream, request.framing)
    for piece in request.body.chunks(memoryview(bytearray(64 * 1024))):
        if stream.arrived():
            head = heads.next(stream.timeout)
            if not head.interim:
                connection.request_incomplete = True
                return head
        try:
            writer.write(piece)
        except ConnectionError:
            connection.request_incomplete = True
            return None  # an early response, if there is one, says more than this error
    writer.finish(request.body.trailers)
    return None


def _await_go_ahead(heads: AnswerHeads) -> Optional[ResponseHead]:
    """Wait a little for 100 Continue (RFC 9110 §10.1.1). Returns the final head if that comes instead."""
    deadline = time.monotonic() + _CONTINUE_TIMEOUT
    while True:
        try:
            head = heads.next(max(0.001, deadline - time.monotonic()))
        except socket.timeout:
            return None  # an origin that does not know Expect waits for the body
        if head.status == 100:
            return None
        if not head.interim:
            return head
