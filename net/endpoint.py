"""One end of a connection: its socket, plain or with TLS, and how it ends.

Three classes build on each other; none wraps another, for each call in between would cost every read and every send:

    Endpoint             what a connection is, and how it ends                  net/endpoint.py
    NonblockingStream    + a read buffer, and all that never waits              net/nonblocking.py
    Stream               + all that waits for the peer, with a deadline         net/stream.py
"""

from __future__ import annotations

import socket
import ssl
import struct
from typing import Any, Optional, Tuple

from tls.tls_in_tls import Buffer, NestedTls, Transport

_SOL_TLS, _TLS_TX, _CRYPTO_INFO_SIZE = 282, 1, 4  # linux/tls.h; missing in the socket module


class ConnectionLost(OSError):
    """The connection ended inside a message, a handshake or a tunnel."""


class NamedSocket(ssl.SSLSocket):
    """A TLS socket with the SNI of its client, set by the context's sni_callback."""

    server_name: Optional[str] = None


class Endpoint:
    """One connection. `timeout` is the longest wait, in seconds, for the peer to send or accept bytes."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._socket = sock  # the TCP socket, or the TLS socket that took over its descriptor
        self._transport: Transport = sock
        # The C object of an SSLSocket, while it has one. It is called directly, and asked for with every read: the
        # calls of the wrapper cost as much as decrypting a record. It has the socket's timeout.
        self._tls: Any = None
        self._timeout: Optional[float] = None  # the one that the transport has been given
        self._closed = False
        self._serves = False  # this end is the TLS server
        self._peer_closed_silently = False  # the peer has ended TCP without close_notify
        self._postponed: Optional[OSError] = None  # an error after valid bytes, raised by the next read
        self.timeout = timeout
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return isinstance(self._transport, (ssl.SSLSocket, NestedTls))

    @property
    def takes_files(self) -> bool:
        """Whether `Stream.send_file` may be used: the connection is plain, or the kernel encrypts it.

        The kernel is asked for each connection: where it does not encrypt, the bytes would leave as plaintext.
        """
        if not self.encrypted:
            return True
        if not isinstance(self._transport, ssl.SSLSocket):
            return False
        try:
            self._transport.getsockopt(_SOL_TLS, _TLS_TX, _CRYPTO_INFO_SIZE)
        except OSError:
            return False
        return True

    @property
    def server_name(self) -> Optional[str]:
        """The SNI of the client, lower-case, if the socket is a `NamedSocket`; None where it sent none."""
        return getattr(self._socket, "server_name", None)

    @property
    def peer(self) -> str:
        """The peer's address; empty once the connection is gone."""
        try:
            return str(self._socket.getpeername()[0])
        except (OSError, IndexError):
            return ""

    @property
    def address(self) -> Tuple[str, int]:
        """The local address and port. Raises OSError."""
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    def fileno(self) -> int:
        """The socket's descriptor, for polling."""
        return self._socket.fileno()

    def give_away(self) -> socket.socket:
        """Give the socket to the caller, who closes it. Only for plain connections."""
        self._closed = True
        return self._socket

    def close(self) -> None:
        """Close with close_notify under TLS, so that the peer knows the end is regular. Idempotent, like every close.

        Does not wait: a peer whose receive window is full gets no close_notify.
        """
        if self.encrypted and not (self._closed or self._peer_closed_silently):
            self._close_notify(0)
        self.close_abruptly()

    def close_abruptly(self) -> None:
        """Close without close_notify: sent bytes arrive, and under TLS the peer knows that they are incomplete."""
        if not self._closed:
            self._closed = True
            self._tls = None  # first: it would go on with the descriptor's number, which is soon another connection's
            self._socket.close()

    def reset(self) -> None:
        """Close with a reset, so that the peer does not take the sent bytes for complete."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # already gone
        self.close_abruptly()

    def cancel(self) -> None:
        """Wake the thread that waits on this connection, from another thread: its read ends, its write fails."""
        try:
            # SSLSocket.shutdown() would drop the TLS object while another thread uses it.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            pass  # already gone

    # For the classes that build on this one

    def _use_tls(self, sock: ssl.SSLSocket) -> None:
        """Go on with a TLS socket that has taken over the descriptor."""
        self._socket = self._transport = sock
        self._tls = getattr(sock, "_sslobj", None)  # None where the connection was gone already

    def _wait(self, seconds: float) -> None:
        """Let the next operations wait for up to `seconds`."""
        # settimeout() costs a system call, and most waits have the same timeout as the one before.
        if seconds != self._timeout:
            self._timeout = seconds
            self._transport.settimeout(seconds)

    def _receive(self, view: Buffer) -> int:
        """Read some bytes past all buffers, within the time of `_wait`; 0 at the end."""
        try:
            if self._postponed is not None:
                raise self._postponed
            tls = self._tls
            return self._transport.recv_into(view) if tls is None else int(tls.read(len(view), view))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError) as error:
            if not self._is_end(error):
                raise
            return 0

    def _receive_bytes(self, count: int) -> Buffer:
        """Like `_receive`, for up to `count` bytes, in a buffer of their own; b"" at the end."""
        tls = self._tls
        if tls is None or self._postponed is not None:
            view = bytearray(count)
            return memoryview(view)[: self._receive(view)]
        try:
            data: bytes = tls.read(count)  # a buffer of ours would be cleared first, for bytes that are mostly few
            return data
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError) as error:
            if not self._is_end(error):
                raise
            return b""

    def _is_end(self, error: ssl.SSLError) -> bool:
        """Whether the stream has ended regularly, which is noted.

        A close_notify is an end, reported as an error where ours was sent already. The caller raises any other:
        raised here, it would refer to itself by this frame, and keep the buffers of all frames until a collection.
        """
        if isinstance(error, ssl.SSLEOFError):
            if not self._serves:
                return False  # a truncated body of an origin must not seem complete
            self._peer_closed_silently = True
        return True

    def _close_notify(self, seconds: float) -> None:
        # SSLSocket.unwrap() sends our close_notify, then waits for the peer's: 0 seconds suffice to send.
        self._wait(seconds)
        try:
            self._transport.unwrap()  # type: ignore[union-attr]
            self._tls = None  # an SSLSocket is a plain socket from now on
        except (OSError, ValueError):
            pass  # the peer is gone, or its window is full
