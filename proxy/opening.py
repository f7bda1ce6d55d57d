"""What follows an answered CONNECT: the client's first bytes say whether it is TLS, and sometimes for which name.

Nothing is taken out of the socket for that where nothing encrypts, so that TLS starts on it as it would without.
"""

from __future__ import annotations

import enum
import select
import ssl
import time
from dataclasses import replace
from functools import lru_cache
from typing import Optional

from net.arrival import Where
from net.stream import Stream
from protocol.http1 import Authority, serialise_response
from proxy.first_bytes import looks_like_tls
from proxy.routing import Rules
from tls import client_hello
from tls.client_hello import Incomplete

_SILENCE = 1.0  # seconds; who says nothing for so long waits for the server to speak: ssh, SMTP, MySQL
_HTTPS = 443  # where servers never speak first
_HELLO = 4096  # bytes, within which nearly all hellos are
_START = 2  # bytes, if no name is wanted


class Spoken(enum.Enum):
    """What a client has begun with."""

    TLS = "a handshake"
    OTHER = "another protocol"
    NOTHING = "silence, for as long as it was waited for"
    END = "the end"


class Opening:
    """The time between the answer to a CONNECT and its client's first bytes. `inside` is where requests would arrive.

    For a CONNECT to an address, `server_name` is the host that the handshake names, if that is to be intercepted.
    `context` is what the host of the CONNECT is answered with, where that was at hand.
    """

    def __init__(
        self,
        stream: Stream,
        inside: Where,
        rules: Rules,
        timeout: float,
        context: Optional[ssl.SSLContext] = None,
    ) -> None:
        assert inside.inside is not None
        self._stream = stream
        self._rules = rules
        self.authority = inside.inside
        self.inside = inside
        self.context = context
        self.wants_name = inside.inside_address
        self.may_be_silent = self.authority.port != _HTTPS
        self._deadline = time.monotonic() + (min(_SILENCE, timeout) if self.may_be_silent else timeout)
        self.server_name: Optional[str] = None

    @property
    def seconds(self) -> float:
        """How long it is still waited."""
        return max(0.0, self._deadline - time.monotonic())

    @property
    def host(self) -> str:
        """In whose name the client is answered."""
        return self.server_name or self.authority.host

    def place(self) -> Where:
        """Where the requests inside arrive: at the host that was named.

        Its origin is dialled by that name, never at the client's address, which would choose what everybody gets.
        """
        return self.inside if self.server_name is None else _named(self.inside, self.server_name)

    def look(self) -> Optional[Spoken]:
        """What the client speaks, without waiting; None where that is still open. Raises OSError."""
        usual = _HELLO if self.wants_name else _START
        data = self._stream.look_ahead(client_hello.LONGEST if self._stream.buffered else usual)
        if not data:
            return data if data is None else Spoken.END
        if not looks_like_tls(data):
            return Spoken.OTHER
        if not self.wants_name:
            return Spoken.TLS
        name = client_hello.server_name(data)
        if isinstance(name, Incomplete):
            if len(data) >= client_hello.LONGEST or not self.seconds:
                return Spoken.TLS
            self._stream.take_in()  # or poll would tell of what has come again and again
            return None
        if name is not None and name != self.authority.host and self._is_listed(name):
            self.server_name = name
        return Spoken.TLS

    def _is_listed(self, name: str) -> bool:
        return name in self._rules.intercept and name not in self._rules.own_names

    def wait(self, other: Optional[Stream] = None) -> Spoken:
        """What the client speaks. NOTHING, too, as soon as there is something to read from `other`."""
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


@lru_cache(maxsize=1024)  # of host names alone, which client_hello bounds
def _named(inside: Where, name: str) -> Where:
    assert inside.inside is not None
    return replace(inside, inside=Authority(name, inside.inside.port))


@lru_cache(maxsize=1)
def established(via: bytes) -> bytes:
    """The answer to a CONNECT."""
    # librepo looks for these words, apt for the status; one apk stalls where no field follows the status line.
    return serialise_response(200, b"Connection established", [(b"Via", via)])
