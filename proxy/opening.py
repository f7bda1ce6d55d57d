"""After an answered CONNECT: the client's first bytes show whether it speaks TLS, and its SNI.

On a plain connection these bytes stay in the socket (MSG_PEEK), so that TLS starts on the socket itself.
"""

from __future__ import annotations

import enum
import select
import ssl
import time
from dataclasses import replace
from functools import lru_cache
from typing import Optional

from net.arrival import Arrival
from net.nonblocking import NonblockingStream
from protocol.http1 import Authority, serialise_response
from proxy.first_bytes import looks_like_tls
from proxy.routing import Rules
from tls import client_hello
from tls.client_hello import Incomplete

_SILENCE = 1.0  # seconds; a client silent for longer waits for the server's first bytes: ssh, SMTP, MySQL
_HTTPS = 443  # servers never speak first on this port
_HELLO = 4096  # bytes; nearly all ClientHellos are shorter
_START = 2  # bytes, where the SNI is not needed


class Spoken(enum.Enum):
    """The kind of a client's first bytes."""

    TLS = "a handshake"
    OTHER = "another protocol"
    NOTHING = "silence, for as long as it was waited for"
    END = "the end"


class Opening:
    """The phase between the answer to a CONNECT and its client's first bytes. `arrival` is for the requests inside.

    For a CONNECT to an address, `server_name` is the SNI of the handshake, if that host is to be intercepted.
    `context` is the TLS context for the CONNECT's host, where it was cached.
    """

    def __init__(
        self,
        stream: NonblockingStream,
        arrival: Arrival,
        rules: Rules,
        timeout: float,
        context: Optional[ssl.SSLContext] = None,
    ) -> None:
        assert arrival.connect_target is not None
        self._stream = stream
        self._rules = rules
        self.authority = arrival.connect_target
        self.arrival = arrival
        self.context = context
        self.wants_name = arrival.connect_target_is_address
        self.may_be_silent = self.authority.port != _HTTPS
        self._deadline = time.monotonic() + (min(_SILENCE, timeout) if self.may_be_silent else timeout)
        self.server_name: Optional[str] = None

    @property
    def seconds(self) -> float:
        """Seconds left to wait."""
        return max(0.0, self._deadline - time.monotonic())

    @property
    def host(self) -> str:
        """The host whose leaf certificate the client gets."""
        return self.server_name or self.authority.host

    def named_arrival(self) -> Arrival:
        """The arrival of the requests inside, at the host of the SNI.

        The origin is dialled by that name, never at the client's address: a client must not choose what others get.
        """
        return self.arrival if self.server_name is None else _named(self.arrival, self.server_name)

    def look(self) -> Optional[Spoken]:
        """The kind of the first bytes, without waiting; None while it is unknown. Raises OSError."""
        usual = _HELLO if self.wants_name else _START
        while True:
            data = self._stream.look_ahead(client_hello.LONGEST if self._stream.buffered else usual)
            if not data:
                return data if data is None else Spoken.END
            if not looks_like_tls(data):
                return Spoken.OTHER
            if not self.wants_name:
                return Spoken.TLS
            name = client_hello.server_name(data)
            if not isinstance(name, Incomplete):
                break
            if len(data) >= client_hello.LONGEST or not self.seconds:
                return Spoken.TLS
            # What stays in the socket is reported by poll again and again, and so is the end of the stream.
            if not self._stream.take_in():
                return Spoken.END
            if self._stream.buffered <= len(data):
                return None
            # poll does not report again what was taken in: it may be the rest, after which the client sends no more.
        if name is not None and name != self.authority.host and self._is_listed(name):
            self.server_name = name
        return Spoken.TLS

    def _is_listed(self, name: str) -> bool:
        return name in self._rules.intercept and name not in self._rules.own_names

    def wait(self, other: Optional[NonblockingStream] = None) -> Spoken:
        """Wait for the kind of the first bytes. NOTHING at the deadline, or once `other` has bytes to read."""
        poll = select.poll()
        poll.register(self._stream.fileno(), select.POLLIN)
        if other is not None:
            poll.register(other.fileno(), select.POLLIN)
        while True:
            spoken = self.look()
            if spoken is not None:
                return spoken
            if not self.seconds:
                return Spoken.NOTHING
            ready = poll.poll(1000 * self.seconds)
            if other is not None and any(fd == other.fileno() for fd, _ in ready):
                return Spoken.NOTHING


@lru_cache(maxsize=1024)  # keys hold host names only, whose length client_hello limits
def _named(arrival: Arrival, name: str) -> Arrival:
    assert arrival.connect_target is not None
    return replace(arrival, connect_target=Authority(name, arrival.connect_target.port))


@lru_cache(maxsize=1)
def established(via: bytes) -> bytes:
    """The answer to a CONNECT."""
    # librepo looks for these words, apt for the status; one apk version stalls without a field after the status line.
    return serialise_response(200, b"Connection established", [(b"Via", via)])
