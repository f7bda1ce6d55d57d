"""Connections to origins: name lookup, address checks, connecting, parent proxies, and verification.

Rules of this module:

* Every origin's certificate is verified, except for hosts that the configuration names.
* An address is judged when it is dialled: a name that resolves to dduct's own listener is refused.
"""

from __future__ import annotations

import base64
import logging
import math
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Callable, Container, Iterable, List, Optional, Sequence, Set, Tuple

from monitoring.metrics import Counter, Counters
from net.addresses import OwnServices, Reach, Scope, is_listener, may_reach, scope_of
from net.stream import Stream
from protocol import http1
from protocol.headers import Field
from protocol.http1 import Authority
from storage.shared_table import SharedTable
from upstream.connecting import Candidate, connect_first, in_order
from upstream.origin_tls import OriginTls, TlsSettings
from upstream.reachability import Outages, WorkingAddresses
from upstream.response_head import AnswerHeads

_log = logging.getLogger("dduct")

NO_OWN_SERVICES = OwnServices(())
_SLOW = 1.0  # seconds; a faster failure costs clients no time
_LEAST_TIME = 1.0  # seconds to connect, even after a slow name lookup
_TRIAL = 5.0  # seconds for which one request tries alone whether an origin is back; the others fail meanwhile


class UpstreamError(Exception):
    """The origin could not be asked, or did not answer properly. `status` is for the client, and so is `retry_after`:
    in how many seconds another request may succeed, if that is known."""

    def __init__(self, reason: str, status: int = 502, retry_after: Optional[int] = None) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after = retry_after


class NoAnswer(UpstreamError):
    """The origin was not asked, because it did not answer a moment ago."""


class Refusing(UpstreamError):
    """The origin was not asked, because it refuses requests for some more seconds."""

    def __init__(self, authority: Authority, status: int, seconds: float) -> None:
        whole = math.ceil(seconds)
        super().__init__(f"{authority} answered {status}, and is asked again in {whole} s", status, whole)


class OwnMachine(UpstreamError):
    """A client on another machine asked for a service of dduct's own machine."""

    def __init__(self, authority: Authority) -> None:
        reason = f"{authority} is on dduct's own machine, and for clients there alone"
        super().__init__(f"{reason}; to open it to all: proxy.allow_own = ['{authority}']", 403)


class Unanswered(UpstreamError):
    """The origin was reached, and hung up, sent no HTTP, or nothing in time; another request may succeed."""


REFUSALS = (401, 403)  # statuses of an origin that does not know a token


class NoToken(Unanswered):
    """The origin wants a token, and its token server cannot be asked."""

    def __init__(self) -> None:
        super().__init__("its token server cannot be asked", 503)


@dataclass(frozen=True)
class Parent:
    """Another proxy, over TLS or not; `credentials` are its Basic `user:password`."""

    host: str
    port: int
    tls: bool = False
    credentials: Optional[str] = None

    def __str__(self) -> str:
        scheme, user = "https" if self.tls else "http", "********@" if self.credentials else ""
        return f"{scheme}://{user}{Authority(self.host, self.port)}"

    @property
    def fields(self) -> Tuple[Field, ...]:
        """The fields that every request to it needs."""
        if self.credentials is None:
            return ()
        return ((b"Proxy-Authorization", b"Basic " + base64.b64encode(self.credentials.encode())),)


@dataclass(frozen=True)
class Settings:
    """Times in seconds. `connect_timeout`: for name lookup and connecting, for a handshake, and for a parent's CONNECT.
    `fill_timeout` (responses that may be stored) and `relay_timeout` (all others): for a response, and each wait in it.

    All hosts but those in `direct` are reached through `parent`, where there is one; `via` is dduct's name there.
    """

    connect_timeout: float
    fill_timeout: float
    relay_timeout: float
    tls: TlsSettings
    own_addresses: Tuple[Tuple[str, int], ...] = ()
    parent: Optional[Parent] = None
    direct: Container[str] = ()
    via: bytes = b""
    allow_own: OwnServices = NO_OWN_SERVICES


class Dialler:
    """Makes connections, and tracks those in use. Raises UnusableCertificate."""

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        table: SharedTable,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._clock = clock
        self._working = WorkingAddresses(clock)
        self._outages = Outages(_TRIAL, table, "address", clock)
        self._tls = OriginTls(settings.tls)
        self._lock = threading.Lock()  # guards the two below
        self._in_use: Set[Stream] = set()
        self._closed = False

    def dial(self, authority: Authority, reach: Reach) -> Stream:
        """A connection for a tunnel; `hang_up()` ends it. Raises UpstreamError (403, 502, 504, 508)."""
        parent = self.parent_for(authority.host)
        if parent is None:
            return self._dial(authority, reach)
        stream = self.dial_parent(parent, authority, reach)
        try:
            self._connect_through(stream, parent, authority)
        except (OSError, http1.ProtocolError) as error:
            self.hang_up(stream, broken=True)
            raise translated(error, "no answer from the parent proxy (proxy.upstream_proxy)") from error
        except BaseException:
            self.hang_up(stream, broken=True)
            raise
        return stream

    def parent_for(self, host: str) -> Optional[Parent]:
        """The proxy through which a host is reached, if any."""
        return None if host in self._settings.direct else self._settings.parent

    def dial_parent(self, parent: Parent, authority: Authority, reach: Reach) -> Stream:
        """A connection to a parent, for requests to `authority`. Raises UpstreamError (403 too)."""
        self._check_behind(authority, reach, ())
        stream = self._dial(Authority(parent.host, parent.port), Reach.EVERYTHING)
        try:
            if not may_reach(reach, Scope.LOCAL_ONLY):
                self._check_behind(authority, reach, _addresses_behind(stream, authority))
        except UpstreamError:
            self.hang_up(stream, broken=True)
            raise
        if parent.tls:
            self.start_tls(stream, Authority(parent.host, parent.port))
        return stream

    def start_tls(self, stream: Stream, authority: Authority) -> None:
        """Start TLS to an origin or a parent. Raises UpstreamError, and closes the connection then."""
        try:
            stream.start_tls(self._tls.context(authority.host), authority.host)
        except (OSError, ValueError) as error:
            self.hang_up(stream, broken=True)
            raise translated(error, f"no trusted TLS connection to {authority}") from error
        except BaseException:
            self.hang_up(stream, broken=True)
            raise

    def scope(self, stream: Stream, authority: Authority) -> Scope:
        """The scope of what this connection leads to."""
        if self.parent_for(authority.host) is None:
            return self._scope(authority, stream.peer)
        addresses = (authority.host, *_addresses_behind(stream, authority))
        return max(self._scope(authority, address) for address in addresses)

    def opens(self, authority: Authority) -> bool:
        """Whether the configuration opens this authority, as it is written, to every client."""
        return self._settings.allow_own.opens(authority.host, authority.port, authority.host)

    def use(self, stream: Stream) -> None:
        """An idle connection is in use again, unless all are closed meanwhile: then it is ended."""
        with self._lock:
            closed = self._closed
            self._in_use.add(stream)
        if closed:
            stream.cancel()

    def release(self, stream: Stream) -> None:
        """A connection is no longer in use."""
        with self._lock:
            self._in_use.discard(stream)

    def hang_up(self, stream: Stream, broken: bool = False) -> None:
        """End a connection that `dial` made."""
        self.release(stream)
        if broken:
            stream.reset()
        else:
            stream.close()

    def close(self) -> None:
        """End the connections in use, and make no more."""
        with self._lock:
            self._closed = True
            in_use = list(self._in_use)
        for stream in in_use:
            stream.cancel()

    # Internals

    def _dial(self, authority: Authority, reach: Reach) -> Stream:
        place = authority.host, str(authority.port)
        wait = self._outages.wait(place)
        if wait:
            self._counters.add(Counter.FAST_FAILURES)
            raise NoAnswer(f"{authority} did not answer just now; it is tried again in {wait:.0f} s", 504)
        began = self._clock()
        try:
            stream = self._connect(authority, reach, began + self._settings.connect_timeout)
        except BaseException as error:
            if isinstance(error, UpstreamError):
                self._working.forget(place)
            if is_outage(error, self._clock() - began):
                self._note_outage(place, began, error)
            else:
                self._outages.undecided(place, began)
            raise
        if self._outages.worked(place):
            _log.info("%s answers again", authority)
        return stream

    def _note_outage(self, place: Tuple[str, str], began: float, error: BaseException) -> None:
        pause = self._outages.failed(place, began)
        if pause:
            self._counters.add(Counter.OUTAGES)
            _log.warning("%s; not tried again for %.0f s (proxy.connect_timeout)", error, pause)

    def _connect(self, authority: Authority, reach: Reach, deadline: float) -> Stream:
        try:
            found = socket.getaddrinfo(authority.host, authority.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise UpstreamError(f"cannot resolve {authority.host}: {_say(error)}") from error
        place = authority.host, authority.port
        allowed, refusal = self._judged(authority, [Candidate(*entry) for entry in found], reach)
        try:
            order = in_order(allowed, self._working.get(place))
            sock, winner = connect_first(order, max(deadline, self._clock() + _LEAST_TIME), self._clock)
        except OSError as error:
            raise refusal or translated(error, f"cannot connect to {authority}") from error
        self._working.worked(place, winner.host)
        return self._track(Stream(sock, self._settings.connect_timeout))

    def _judged(
        self, authority: Authority, candidates: Sequence[Candidate], reach: Reach
    ) -> Tuple[List[Candidate], Optional[UpstreamError]]:
        """The addresses that a client may connect to, and the reason for the first refused one.

        Each lookup of a name may find other addresses.
        """
        allowed: List[Candidate] = []
        refusal: Optional[UpstreamError] = None
        for candidate in candidates:
            try:
                self._judge(authority, candidate.host, int(candidate.address[1]), reach)
                allowed.append(candidate)
            except UpstreamError as error:
                refusal = refusal or error
        return allowed, refusal

    def _judge(self, authority: Authority, address: str, port: int, reach: Reach) -> None:
        """Raises UpstreamError where a client may not be connected to this address."""
        if any(is_listener(address, port, own) for own in self._settings.own_addresses):
            raise UpstreamError(f"{authority} is dduct itself", 508)
        if not may_reach(reach, self._scope(authority, address)):
            raise OwnMachine(authority)

    def _scope(self, authority: Authority, address: str) -> Scope:
        if self._settings.allow_own.opens(authority.host, authority.port, address):
            return Scope.ALL
        return scope_of(address)

    def _check_behind(self, authority: Authority, reach: Reach, addresses: Iterable[str]) -> None:
        """Raises UpstreamError where a client may not reach this authority, or these addresses, through a parent."""
        for address in (authority.host, *addresses):
            if not may_reach(reach, self._scope(authority, address)):
                raise OwnMachine(authority)

    def _connect_through(self, stream: Stream, parent: Parent, authority: Authority) -> None:
        """Send a CONNECT (RFC 9110 §9.3.6). Raises UpstreamError, ProtocolError, OSError."""
        fields = [(b"Host", str(authority).encode()), (b"Via", self._settings.via), *parent.fields]
        lines = [b"CONNECT %s HTTP/1.1" % str(authority).encode(), *(b"%s: %s" % field for field in fields)]
        stream.send(b"\r\n".join([*lines, b"", b""]))
        head = AnswerHeads(stream).final(stream.timeout)
        if not 200 <= head.status < 300:
            reason = head.reason.decode("latin-1")
            remedy = "; proxy.upstream_proxy wants user:password" if head.status == 407 else ""
            raise UpstreamError(f"the parent proxy refuses {authority}: {head.status} {reason}{remedy}")

    def _track(self, stream: Stream) -> Stream:
        stream.of_origin = True
        with self._lock:
            closed = self._closed
            if not closed:
                self._in_use.add(stream)
        if closed:
            stream.reset()
            raise UpstreamError("dduct is shutting down", 503)
        return stream


def is_outage(error: BaseException, seconds: float) -> bool:
    """Whether a failure after so many seconds means that others should not wait for the same.

    One that comes at once is none: it costs them no time, and they learn of a recovery from the first that succeeds.
    """
    if not isinstance(error, UpstreamError) or isinstance(error, NoAnswer):
        return False
    return error.status == 504 or (error.status == 502 and seconds >= _SLOW)


def _addresses_behind(parent: Stream, authority: Authority) -> List[str]:
    """The addresses of a name, where its parent proxy is on dduct's machine and may lead back to it.

    A parent elsewhere resolves names there, and dduct does not see the result.
    """
    if scope_of(parent.peer) is Scope.ALL:
        return []
    try:
        addresses = socket.getaddrinfo(authority.host, authority.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []  # the parent may know better
    return [str(address[0]) for *_, address in addresses]


def translated(error: BaseException, what: str, key: str = "proxy.connect_timeout") -> UpstreamError:
    """An error of the network or of the origin as one line for a client, with the remedy where there is one.

    `key` is the configuration key that bounded the wait.
    """
    if isinstance(error, UpstreamError):
        return error
    if isinstance(error, http1.ProtocolError):
        return UpstreamError(str(error), error.status)
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = "name its authority in proxy.upstream_ca, or the host in proxy.upstream_insecure"
        if error.verify_code in _NAME_MISMATCHES:
            remedy = "ask for a name that it is for, or put the host into proxy.upstream_insecure"
        elif error.verify_code in _WRONG_TIMES:
            remedy = "its owner has to renew it; or is this machine's clock wrong?"
        return UpstreamError(f"{what}: {error.verify_message.rstrip('.')}; {remedy}")
    if isinstance(error, ssl.SSLError):
        return UpstreamError(f"{what}: {_say_tls(error)}")
    if isinstance(error, socket.timeout):
        return UpstreamError(f"{what}: nothing for too long ({key})", 504)
    return UpstreamError(f"{what}: {_say(error)}")


_NAME_MISMATCHES = (62, 63, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, _EMAIL_, _IP_ADDRESS_
_WRONG_TIMES = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")


def _say_tls(error: ssl.SSLError) -> str:
    """OpenSSL's reason, without the place in its source; TLS towards a port for http is the usual mistake."""
    reason = error.reason or str(error)
    if reason in _NO_TLS:
        return "it does not speak TLS there (is it http, or another port?)"
    return reason.lower().replace("_", " ")


def _say(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
