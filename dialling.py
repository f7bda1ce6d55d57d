"""Connections to origins: resolved, judged, dialled, through a parent proxy where there is one, and verified.

Rules of this module:

* Every origin's certificate is verified, save those of hosts that the configuration names.
* An address is judged when it is dialled: a name that resolves to dduct's own listener leads nowhere.
"""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from dataclasses import dataclass
from typing import Container, NoReturn, Optional, Set, Tuple

import http1
from addresses import is_listener, is_private_affair
from http1 import Authority, Field
from origin_tls import OriginTls, TlsSettings
from response_head import AnswerHeads
from stream import ConnectionLost, Stream


class UpstreamError(Exception):
    """The origin could not be asked, or did not answer properly; `status` is what the client is told."""

    def __init__(self, reason: str, status: int = 502) -> None:
        super().__init__(reason)
        self.status = status


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
    """Times in seconds. `connect_timeout`: to look a name up and connect, to shake hands, and for a parent's CONNECT.
    `fill_timeout` (what may be kept) and `relay_timeout` (all else): for an answer, and for each wait within it.

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


class Dialler:
    """Makes connections, and knows those in use. Raises UnusableCertificate."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tls = OriginTls(settings.tls)
        self._lock = threading.Lock()  # guards the two below
        self._in_use: Set[Stream] = set()
        self._closed = False

    def dial(self, authority: Authority, near: bool) -> Stream:
        """A connection for a tunnel; `hang_up()` ends it. Raises UpstreamError (403, 502, 504, 508)."""
        parent = self.parent_for(authority.host)
        if parent is None:
            return self._dial(authority, near)
        stream = self.dial_parent(parent, authority, near)
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

    def dial_parent(self, parent: Parent, authority: Authority, near: bool) -> Stream:
        """A connection to a parent, for what is at `authority`. Raises UpstreamError (403 too)."""
        _check_whose_affair(authority.host, authority, near)
        stream = self._dial(Authority(parent.host, parent.port), near=True)
        if not near and _is_private_behind(stream, authority.host):
            self.hang_up(stream, broken=True)
            _refuse(authority)
        if parent.tls:
            self.start_tls(stream, Authority(parent.host, parent.port))
        return stream

    def start_tls(self, stream: Stream, authority: Authority) -> None:
        """TLS to an origin. Raises UpstreamError; the connection is closed then."""
        try:
            stream.start_tls(self._tls.context(authority.host), authority.host)
        except (OSError, ValueError) as error:
            self.hang_up(stream, broken=True)
            raise translated(error, f"no trusted TLS connection to {authority}") from error

    def is_private(self, stream: Stream, host: str) -> bool:
        """Whether a connection leads to what is this machine's own affair."""
        if self.parent_for(host) is not None:
            return _is_private_behind(stream, host)
        return is_private_affair(host) or is_private_affair(stream.peer)

    def use(self, stream: Stream) -> None:
        """An idle connection is in use again."""
        with self._lock:
            self._in_use.add(stream)

    def release(self, stream: Stream) -> None:
        """A connection is not in use any more."""
        with self._lock:
            self._in_use.discard(stream)

    def hang_up(self, stream: Stream, broken: bool = False) -> None:
        """End a connection that `dial` made."""
        self.release(stream)
        if broken:
            stream.abort()
        else:
            stream.close()

    def close(self) -> None:
        """End the connections in use, and make no more."""
        with self._lock:
            self._closed = True
            in_use = list(self._in_use)
        for stream in in_use:
            stream.cancel()

    # Innards

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
                return self._track(
                    Stream(self._connect(family, kind, protocol, address), self._settings.connect_timeout)
                )
            except OSError as error:
                failure = error
        raise translated(failure, f"cannot connect to {authority}")

    def _connect_through(self, stream: Stream, parent: Parent, authority: Authority) -> None:
        """RFC 9110 §9.3.6, from a client's side. Raises UpstreamError, ProtocolError, OSError."""
        fields = [(b"Host", str(authority).encode()), (b"Via", self._settings.via), *parent.fields]
        lines = [b"CONNECT %s HTTP/1.1" % str(authority).encode(), *(b"%s: %s" % field for field in fields)]
        stream.send(b"\r\n".join([*lines, b"", b""]))
        head = AnswerHeads(stream).final(stream.timeout)
        if not 200 <= head.status < 300:
            reason = head.reason.decode("latin-1")
            remedy = "; proxy.upstream_proxy wants user:password" if head.status == 407 else ""
            raise UpstreamError(f"the parent proxy refuses {authority}: {head.status} {reason}{remedy}")

    def _connect(self, family: int, kind: int, protocol: int, address: object) -> socket.socket:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(self._settings.connect_timeout)
            sock.connect(address)  # type: ignore[arg-type]
        except BaseException:
            sock.close()
            raise
        return sock

    def _track(self, stream: Stream) -> Stream:
        with self._lock:
            closed = self._closed
            if not closed:
                self._in_use.add(stream)
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


def translated(error: BaseException, what: str, key: str = "proxy.connect_timeout") -> UpstreamError:
    """An error of the network or of the origin as one line for a client, with the remedy where there is one.

    `key` is the one that has bounded a wait.
    """
    if isinstance(error, UpstreamError):
        return error
    if isinstance(error, http1.ProtocolError):
        return UpstreamError(str(error), error.status)
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = "name its authority in proxy.upstream_ca, or the host in proxy.upstream_insecure"
        return UpstreamError(f"{what}: {error.verify_message.rstrip('.')}; {remedy}")
    if isinstance(error, socket.timeout):
        return UpstreamError(f"{what}: nothing for too long ({key})", 504)
    return UpstreamError(f"{what}: {_say(error)}")


def _say(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
