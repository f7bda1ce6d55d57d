"""Origins: dialled, verified, asked, kept alive. http.client does the asking; what it gets wrong is closed here.

Rules of this room:

* Every origin's certificate is verified, save those of hosts that the configuration names.
* An address is judged when it is dialled: a name that resolves to dduct's own listener leads nowhere.
* A connection over which somebody has logged in as such (NTLM, Negotiate) is not kept: it would be anybody's.
* http.client sends requests and keeps count of a connection's state. Response heads and bodies are read by this
  project's own strict parser, for http.client's lenient one ends short bodies silently, splits heads at bare CRs,
  ends them at lines without a colon, accepts two Content-Lengths and `0x_3` as a chunk size.
"""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Callable, Container, Dict, List, NamedTuple, NoReturn, Optional, Set, Tuple

import http1
from access import is_listener, is_private_affair
from body import BodyReader, BodyWriter
from http1 import Authority, BodyFraming, Field, Headers, ResponseHead, Target
from openssl import prefer_aes_128
from stream import ConnectionLost, Stream, tell_cut_from_end

REDIRECT_LIMIT = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_REPLAYABLE = (b"GET", b"HEAD", b"OPTIONS")
_DRAINED_AT_MOST = 64 * 1024  # octets worth reading to keep a connection
_IDLE_AT_MOST = 30.0  # seconds; most servers hang up later than that
_IDLE_PER_ORIGIN = 32
_CONTINUE_PATIENCE = 1.0  # seconds; curl waits as long
_LOGS_CONNECTIONS_IN = re.compile(rb"(?i)(?:^|[\s,])(?:ntlm|negotiate)(?:$|[\s,])")


class UpstreamError(Exception):
    """The origin could not be asked, or did not answer properly; `status` is what the client is told."""

    def __init__(self, reason: str, status: int = 502) -> None:
        super().__init__(reason)
        self.status = status


class _Stale(Exception):
    """A kept-alive connection ended before it brought any answer; the request may be sent on another one."""


class OriginResponse(http.client.HTTPResponse):
    """http.client's response with this project's parser in it: `head` and `body` replace its own attributes."""

    head: ResponseHead
    body: BodyReader

    def __init__(self, sock: Stream, request: Request, early: Optional[ResponseHead], **_: object) -> None:
        super().__init__(sock, method=request.method.decode("ascii"))  # type: ignore[arg-type]
        self._stream = sock
        self._request = request
        self._early = early

    def begin(self, **_: object) -> None:
        """Read the final head, unless it came early. Raises ProtocolError(502), ConnectionLost, or another OSError."""
        head = self._early or _next_head(self._stream, self._stream.timeout)
        while head.interim:
            if head.status != 100:  # that one, our sending of the body has asked for
                self._request.on_interim(head)
            head = _next_head(self._stream, self._stream.timeout)
        if head.status == 101 and not self._request.upgrade:
            raise http1.ProtocolError("origin switched protocols without being asked to", 502)
        self.head = head
        self.body = BodyReader(self._stream, http1.response_framing(self._request.method, head))
        self.code = self.status = self.head.status
        self.reason = self.head.reason.decode("latin-1")
        self.version = 10 + self.head.version
        # http.client closes its socket under a response that says `close`; ours is closed by whoever read the body.
        self.will_close = False


class _Connection(http.client.HTTPConnection):
    """An established connection, told to http.client."""

    response_class = OriginResponse

    def __init__(
        self, origin: _Origin, stream: Stream, private: bool, to_parent: Optional[Tuple[Field, ...]] = None
    ) -> None:
        super().__init__(origin.authority.host, origin.authority.port)
        self.sock = stream
        self.auto_open = 0  # a request on a closed connection is an error, not a new connection
        self.origin = origin
        self.stream = stream
        self.to_parent = to_parent  # what a parent proxy, which wants absolute targets, is told; None without one
        self.idle_since = 0.0
        self.private = private  # it leads to what is this machine's own affair
        self.spoiled = False  # the end of the request was never sent


@dataclass(frozen=True)
class _Origin:
    scheme: str
    authority: Authority
    near: bool  # or a connection that one client may have would be another's, too


@dataclass(frozen=True)
class Request:
    """What to ask of an origin: `headers` are end-to-end fields without Host and framing.

    `expects`: the origin is to say whether it wants the body; `upgrade`: it may answer 101 and switch protocols;
    `on_interim` is told every interim response (RFC 9110 §15.2) but 100. `near`: it comes from this very machine, and
    may go to what is its own affair.
    """

    method: bytes
    target: Target
    headers: Headers
    near: bool
    framing: BodyFraming = http1.NO_BODY
    body: Optional[BodyReader] = None
    expects: bool = False
    upgrade: bool = False
    on_interim: Callable[[ResponseHead], None] = lambda _: None

    def redirected(self, target: Target) -> Request:
        """The same at another URL. Credentials stay behind when host, port or scheme change: S3 answers 400 to them."""
        moved = (target.scheme, target.authority) != (self.target.scheme, self.target.authority)
        if moved:
            headers = Headers(field for field in self.headers if not http1.is_credential(field[0].lower()))
        else:
            headers = self.headers
        return replace(self, target=target, headers=headers)


class Hop(NamedTuple):
    """A redirect that was followed: its head, where it led, and whether it was this machine's own affair."""

    head: ResponseHead
    target: Target
    near: bool


class Exchange:
    """A request that was sent and the answer that came: read `body`, then `close()`, on every path."""

    def __init__(self, origins: Origins, connection: _Connection, response: OriginResponse, request: Request) -> None:
        self._origins = origins
        self._connection = connection
        self._response = response
        self._closed = False
        self._logs_in = _logs_in(request, response.head)
        self.method = request.method
        self.target = request.target
        self.hops: Tuple[Hop, ...] = ()  # the redirects that `follow` has followed to it
        self.head = response.head
        self.body = response.body

    @property
    def near(self) -> bool:
        """Whether the answer is for clients on this machine alone: it, or a redirect to it, is of this machine."""
        return self._connection.private or any(hop.near for hop in self.hops)

    @property
    def redirected_to(self) -> Optional[Target]:
        """Where the first URL sent `follow`, if anywhere."""
        return self.hops[0].target if self.hops else None

    @property
    def stream(self) -> Stream:
        """The connection itself, for what follows a 101."""
        return self._connection.stream

    def redirect(self) -> Optional[Target]:
        """Where the answer sends us, or None where it does not, or to nowhere that http1 understands."""
        location = self.head.headers.get(b"location")
        if self.head.status not in _REDIRECTS or location is None:
            return None
        return http1.resolve(self.target, location)

    def close(self) -> None:
        """Keep the connection for another request if its body was read to the end, or nearly; else hang up."""
        if self._closed:
            return
        self._closed = True
        self._response.close()
        reusable = self.head.persistent and self.body.delimited and not self._connection.spoiled
        reusable = reusable and self.head.status != 101 and not self._logs_in and self.body.drain(_DRAINED_AT_MOST)
        self._origins.give_back(self._connection, reusable)


@dataclass(frozen=True)
class Parent:
    """Another proxy, over TLS or not; `credentials` are its Basic `user:password`."""

    host: str
    port: int
    tls: bool = False
    credentials: Optional[str] = None

    @property
    def fields(self) -> Tuple[Field, ...]:
        """What it has to be told with every request."""
        if self.credentials is None:
            return ()
        return ((b"Proxy-Authorization", b"Basic " + base64.b64encode(self.credentials.encode())),)


@dataclass(frozen=True)
class Settings:
    """`timeout` is in seconds: for connecting, for the handshake, and for each wait for the next octets.

    `ca` is a PEM file trusted beside the system's; `client_certificate` is (certificate, key), offered where asked for.
    All hosts but those in `direct` are reached through `parent`, where there is one; `via` is dduct's name there.
    """

    timeout: float
    ca: Optional[Path] = None
    insecure: Container[str] = ()
    client_certificate: Optional[Tuple[Path, Path]] = None
    own_addresses: Tuple[Tuple[str, int], ...] = ()
    parent: Optional[Parent] = None
    direct: Container[str] = ()
    via: bytes = b""


class Origins:
    """All connections to origins. Raises OSError (ssl.SSLError too) where its certificate files are unusable."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._verifying = _client_context(settings, verify=True)
        self._trusting = _client_context(settings, verify=False)
        self._lock = threading.Lock()  # guards the four below
        self._idle: Dict[_Origin, List[_Connection]] = {}
        self._active: Set[Stream] = set()
        self._keeps = True  # connections for later
        self._closed = False

    def dial(self, authority: Authority, near: bool) -> Stream:
        """A connection for a tunnel; `hang_up()` ends it. Raises UpstreamError (403, 502, 504, 508)."""
        parent = self._parent_for(authority.host)
        if parent is None:
            return self._dial(authority, near)
        stream = self._dial_parent(parent, authority, near)
        try:
            self._connect_through(stream, parent, authority)
        except (OSError, http1.ProtocolError) as error:
            self.hang_up(stream, broken=True)
            raise _translated(error, "no answer from the parent proxy (proxy.upstream_proxy)") from error
        except BaseException:
            self.hang_up(stream, broken=True)
            raise
        return stream

    def exchange(self, request: Request) -> Exchange:
        """Send one request and read the head of its answer. Raises UpstreamError (502, 504, 508)."""
        origin = _Origin(request.target.scheme, request.target.authority, request.near)
        # What cannot be sent twice is not risked on a connection that may be dying (RFC 9110 §9.2.2).
        if request.method in _REPLAYABLE and request.body is None:
            kept = self._take(origin)
            while kept is not None:
                try:
                    return self._ask(kept, request, reused=True)
                except _Stale:
                    kept = self._take(origin)
        return self._ask(self._open(origin), request, reused=False)

    def follow(self, request: Request) -> Exchange:
        """The same, following redirects. One from https to http, or to nowhere, is handed out as it is."""
        hops: Tuple[Hop, ...] = ()
        for _ in range(REDIRECT_LIMIT + 1):
            exchange = self.exchange(request)
            exchange.hops = hops
            target = exchange.redirect()
            if target is None or (request.target.scheme, target.scheme) == ("https", "http"):
                return exchange
            exchange.close()
            hops = (*hops, Hop(exchange.head, target, exchange.near))
            request = request.redirected(target)
        raise UpstreamError(f"more than {REDIRECT_LIMIT} redirects, the last to {request.target.host_field}")

    def hang_up(self, stream: Stream, broken: bool = False) -> None:
        """End a connection that `dial` made."""
        with self._lock:
            self._active.discard(stream)
        if broken:
            stream.abort()
        else:
            stream.close()

    def give_back(self, connection: _Connection, reusable: bool) -> None:
        """An exchange is over: keep its connection for the next one, or hang up."""
        now = self._clock()
        surplus = []
        with self._lock:
            self._active.discard(connection.stream)
            kept = self._idle.setdefault(connection.origin, [])
            if reusable and self._keeps and len(kept) < _IDLE_PER_ORIGIN:
                connection.idle_since = now
                kept.append(connection)
            else:
                surplus.append(connection)
            for origin in list(self._idle):
                surplus += [old for old in self._idle[origin] if now - old.idle_since > _IDLE_AT_MOST]
                self._idle[origin] = [c for c in self._idle[origin] if now - c.idle_since <= _IDLE_AT_MOST]
                if not self._idle[origin]:
                    del self._idle[origin]
        for connection in surplus:
            connection.close()

    def retire(self) -> None:
        """Keep no connection for later; those in use are not touched."""
        with self._lock:
            self._keeps = False
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Hang up on everybody; whoever waits for an origin gets an error."""
        with self._lock:
            self._closed = True
        self.retire()
        with self._lock:
            active = list(self._active)
        for stream in active:
            stream.cancel()

    # Innards

    def _parent_for(self, host: str) -> Optional[Parent]:
        return None if host in self._settings.direct else self._settings.parent

    def _dial(self, authority: Authority, near: bool) -> Stream:
        _check_whose_affair(authority.host, authority, near)
        try:
            addresses = socket.getaddrinfo(authority.host, authority.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise UpstreamError(f"cannot resolve {authority.host}: {_say(error)}") from error
        failure: OSError = ConnectionLost("it has no address")
        for family, kind, protocol, _, address in addresses:
            if any(is_listener(str(address[0]), int(address[1]), own) for own in self._settings.own_addresses):
                raise UpstreamError(f"{authority} is dduct itself", 508)
            # Judged by the address that is dialled: a name may mean another one at every look.
            _check_whose_affair(str(address[0]), authority, near)
            try:
                return self._track(Stream(self._connect(family, kind, protocol, address), self._settings.timeout))
            except OSError as error:
                failure = error
        raise _translated(failure, f"cannot connect to {authority}")

    def _dial_parent(self, parent: Parent, authority: Authority, near: bool) -> Stream:
        """A connection to a parent, for what is at `authority`. Raises UpstreamError (403 too)."""
        _check_whose_affair(authority.host, authority, near)
        stream = self._dial(Authority(parent.host, parent.port), near=True)
        if not near and _is_private_behind(stream, authority.host):
            self.hang_up(stream, broken=True)
            _refuse(authority)
        if parent.tls:
            self._start_tls(stream, Authority(parent.host, parent.port))
        return stream

    def _connect_through(self, stream: Stream, parent: Parent, authority: Authority) -> None:
        """RFC 9110 §9.3.6, from a client's side. Raises UpstreamError, ProtocolError, OSError."""
        fields = [(b"Host", str(authority).encode()), (b"Via", self._settings.via), *parent.fields]
        lines = [b"CONNECT %s HTTP/1.1" % str(authority).encode(), *(b"%s: %s" % field for field in fields)]
        stream.send(b"\r\n".join([*lines, b"", b""]))
        head = _next_head(stream, stream.timeout)
        while head.interim:
            head = _next_head(stream, stream.timeout)
        if not 200 <= head.status < 300:
            reason = head.reason.decode("latin-1")
            remedy = "; proxy.upstream_proxy wants user:password" if head.status == 407 else ""
            raise UpstreamError(f"the parent proxy refuses {authority}: {head.status} {reason}{remedy}")

    def _start_tls(self, stream: Stream, authority: Authority) -> None:
        context = self._trusting if authority.host in self._settings.insecure else self._verifying
        try:
            stream.start_tls(context, authority.host)
        except (OSError, ValueError) as error:
            self.hang_up(stream, broken=True)
            raise _translated(error, f"no trusted TLS connection to {authority}") from error

    def _connect(self, family: int, kind: int, protocol: int, address: object) -> socket.socket:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(self._settings.timeout)
            sock.connect(address)  # type: ignore[arg-type]
        except BaseException:
            sock.close()
            raise
        return sock

    def _open(self, origin: _Origin) -> _Connection:
        host = origin.authority.host
        parent = self._parent_for(host)
        if origin.scheme == "http" and parent is not None:
            stream = self._dial_parent(parent, origin.authority, origin.near)
            return _Connection(origin, stream, _is_private_behind(stream, host), parent.fields)
        stream = self.dial(origin.authority, origin.near)
        if origin.scheme == "https":
            self._start_tls(stream, origin.authority)
        if parent is not None:
            return _Connection(origin, stream, _is_private_behind(stream, host))
        return _Connection(origin, stream, is_private_affair(host) or is_private_affair(stream.peer))

    def _ask(self, connection: _Connection, request: Request, reused: bool) -> Exchange:
        try:
            response = _send(connection, request)
            return Exchange(self, connection, response, request)
        except (OSError, http1.ProtocolError, http.client.HTTPException, UnicodeError) as error:
            self.give_back(connection, reusable=False)
            if reused and isinstance(error, (ConnectionError, ConnectionLost, ssl.SSLError)):
                raise _Stale from error
            raise _translated(error, f"no answer from {request.target.authority}") from error
        except BaseException:
            self.give_back(connection, reusable=False)
            raise

    def _take(self, origin: _Origin) -> Optional[_Connection]:
        while True:
            with self._lock:
                kept = self._idle.get(origin)
                connection = kept.pop() if kept else None
                if connection is not None:
                    self._active.add(connection.stream)
            if connection is None:
                return None
            if self._clock() - connection.idle_since <= _IDLE_AT_MOST and not connection.stream.dead():
                return connection
            self.give_back(connection, reusable=False)

    def _track(self, stream: Stream) -> Stream:
        with self._lock:
            closed = self._closed
            if not closed:
                self._active.add(stream)
        if closed:
            stream.abort()
            raise UpstreamError("dduct is shutting down", 503)
        return stream


def _check_whose_affair(address: str, authority: Authority, near: bool) -> None:
    if not near and is_private_affair(address):
        _refuse(authority)


def _refuse(authority: Authority) -> NoReturn:
    raise UpstreamError(f"{authority} is for clients on dduct's own machine alone", 403)


def _is_private_behind(parent: Stream, host: str) -> bool:
    """Whether a parent proxy leads to what is this machine's own affair: it may, under any name, if it is on it.

    One elsewhere resolves names there, to what we cannot see.
    """
    if is_private_affair(host):
        return True
    if not is_private_affair(parent.peer):
        return False
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False  # the parent may know better
    return any(is_private_affair(str(address[0])) for *_, address in addresses)


def _logs_in(request: Request, head: ResponseHead) -> bool:
    """Whether a connection may be somebody's own after this: NTLM and Negotiate (RFC 4559) log in connections."""
    said = (*request.headers.get_all(b"authorization"), *head.headers.get_all(b"www-authenticate"))
    return any(_LOGS_CONNECTIONS_IN.search(value) for value in said)


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
    early = _send_body(connection, request)
    connection.response_class = partial(OriginResponse, request=request, early=early)  # type: ignore[assignment]
    response = connection.getresponse()
    assert isinstance(response, OriginResponse)
    return response


def _send_body(connection: _Connection, request: Request) -> Optional[ResponseHead]:
    """Send what the origin wants of the body; its final head, if that came before the end of it."""
    if request.body is None:
        return None
    stream = connection.stream
    head = _await_go_ahead(stream, request) if request.expects else None
    if head is not None:
        connection.spoiled = True
        return head
    writer = BodyWriter(stream, request.framing)
    for piece in request.body.chunks(memoryview(bytearray(64 * 1024))):
        if stream.arrived():
            head = _hear(stream, request)
            if head is not None:
                connection.spoiled = True
                return head
        try:
            writer.write(piece)
        except ConnectionError:
            connection.spoiled = True
            return None  # it may have answered before it had heard all; the answer, if any, says more than this error
    writer.finish(request.body.trailers)
    return None


def _await_go_ahead(stream: Stream, request: Request) -> Optional[ResponseHead]:
    """Wait a little for 100 Continue (RFC 9110 §10.1.1); the final head, if that is the answer."""
    deadline = time.monotonic() + _CONTINUE_PATIENCE
    while True:
        try:
            head = _next_head(stream, max(0.001, deadline - time.monotonic()))
        except socket.timeout:
            return None  # an origin that has never heard of Expect: it waits for the body
        if head.status == 100:
            return None
        if not head.interim:
            return head
        request.on_interim(head)


def _hear(stream: Stream, request: Request) -> Optional[ResponseHead]:
    """The head that is arriving while the body leaves, if it is final."""
    head = _next_head(stream, stream.timeout)
    if not head.interim:
        return head
    if head.status != 100:
        request.on_interim(head)
    return None


def _next_head(stream: Stream, patience: float) -> ResponseHead:
    """Raises ProtocolError(502), ConnectionLost, socket.timeout, or another OSError."""
    try:
        block = stream.read_head(patience)
    except http1.ProtocolError as error:
        raise http1.ProtocolError(f"origin sent a bad response head: {error}", 502) from None
    if not block:
        raise ConnectionLost("connection closed without an answer")
    return http1.parse_response(block)


def _client_context(settings: Settings, verify: bool) -> ssl.SSLContext:
    context = tell_cut_from_end(ssl.create_default_context())
    # Python 3.13 turned this on; laboratories' own authorities often lack an extension it asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    prefer_aes_128(context)
    if settings.ca is not None:
        context.load_verify_locations(settings.ca)
    if settings.client_certificate is not None:
        context.load_cert_chain(*settings.client_certificate)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _translated(error: BaseException, what: str) -> UpstreamError:
    """An error of the network or of the origin as one line for a client, with the remedy where there is one."""
    if isinstance(error, UpstreamError):
        return error
    if isinstance(error, http1.ProtocolError):
        return UpstreamError(str(error), error.status)
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = "name its authority in proxy.upstream_ca, or the host in proxy.upstream_insecure"
        return UpstreamError(f"{what}: {error.verify_message.rstrip('.')}; {remedy}")
    if isinstance(error, socket.timeout):
        return UpstreamError(f"{what}: nothing for too long (proxy.upstream_timeout)", 504)
    return UpstreamError(f"{what}: {_say(error)}")


def _say(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
