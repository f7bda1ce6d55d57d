"""A connection with a read buffer, and all that can be done with it without waiting.

The poller's thread uses streams by this class only: what is not here might wait.
"""

from __future__ import annotations

import select
import socket
import ssl
from typing import List, Optional

from net.endpoint import ConnectionLost, Endpoint
from net.read_buffer import ReadBuffer
from protocol import http1
from tls.tls_in_tls import Buffer, NestedTls

HEAD_SIZE = 16 * 1024  # bytes per read of a line or a head


class NonblockingStream(Endpoint):
    """What is received is kept in the buffer until it is read. Any method may raise OSError of the connection."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        super().__init__(sock, timeout)
        self._buffer = ReadBuffer()
        self.eof = False  # the peer sends no more, as found by `arrived` or `peer_closed_silently`
        self.handshaking = False  # from `begin_tls` to the end of the handshake

    @property
    def buffered(self) -> int:
        """The number of bytes received and not read yet."""
        return len(self._buffer)

    def holds_bytes(self) -> bool:
        """Whether a read would return at once without the kernel: poll does not see these bytes."""
        if self._buffer:
            return True
        tls = self._transport if isinstance(self._transport, NestedTls) else self._tls
        return tls is not None and tls.pending() > 0

    def arrived(self) -> bool:
        """Buffer received bytes; returns whether there are any to read."""
        if not self._buffer:
            self._wait(0)
            try:
                received = self._receive_bytes(HEAD_SIZE)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            self.eof = not received
            self._buffer += received
        return bool(self._buffer)

    def take_in(self) -> bool:
        """Append received bytes to the buffer; False at the end of the stream."""
        self._wait(0)
        try:
            received = self._receive_bytes(HEAD_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        self._buffer += received
        return bool(received)

    def heads_ahead(self, most: int, limit: int) -> List[bytes]:
        """Complete message heads that have been received, at most `most` within `limit` bytes; they stay in the buffer.

        Raises OSError.
        """
        heads = self._buffer.heads(most, limit)
        while len(heads) < most and len(self._buffer) < limit:
            before = len(self._buffer)
            self.take_in()  # one TLS record
            if len(self._buffer) == before:
                break
            heads = self._buffer.heads(most, limit)
        return heads

    def peek(self) -> bytes:
        """All received bytes, or b""; they stay for `consume` or `read_head`."""
        return bytes(self._buffer) if self.arrived() else b""

    def head_arrived(self) -> bytes:
        """A complete message head, or b""; it stays for `consume` or `read_head`."""
        if not self.arrived():
            return b""
        end = http1.head_end(self._buffer, 0)
        return bytes(self._buffer[:end]) if 0 <= end <= http1.HEAD_LIMIT else b""

    def look_ahead(self, count: int) -> Optional[bytes]:
        """Up to `count` next bytes; b"" at the end, None where none have come.

        A plain connection keeps them in the socket; under TLS they move to the buffer.
        """
        if not self._buffer and not self.encrypted:
            try:
                self._wait(0)
                return self._socket.recv(count, socket.MSG_PEEK)
            except BlockingIOError:
                return None
        if not self.arrived():
            return b"" if self.eof else None
        return bytes(self._buffer[:count])

    def start_of_buffer(self, count: int) -> bytes:
        """Up to `count` bytes of the buffer; they stay in it."""
        return bytes(self._buffer[:count])

    def consume(self, count: int) -> None:
        """Remove `count` bytes from the buffer."""
        del self._buffer[:count]

    def readinto_nowait(self, view: memoryview) -> Optional[int]:
        """Read at least one byte; returns the count, 0 at the end of the stream, None where none have come."""
        if self._buffer:
            return self._buffer.move_into(view)
        self._wait(0)
        try:
            return self._receive(view)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def send_nowait(self, view: Buffer) -> int:
        """Send some bytes; returns the count, perhaps 0. The next send must begin with the rest."""
        self._wait(0)
        tls = self._tls
        try:
            return self._transport.send(view) if tls is None else int(tls.write(view))
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0

    def begin_tls(self, context: ssl.SSLContext) -> None:
        """Start TLS as server; `continue_tls` or `Stream.finish_tls` goes on.

        Only for plain streams with an empty buffer.
        """
        self._wait(0)
        self._use_tls(
            context.wrap_socket(
                self._socket, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
            )
        )
        self.handshaking = self._serves = True
        if self._tls is None:
            raise ConnectionLost("connection closed before its TLS began")  # SSLSocket considers it unconnected

    def continue_tls(self) -> bool:
        """Advance the handshake; returns whether it is complete."""
        self._wait(0)
        try:
            self._tls.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        self.handshaking = False
        return True

    def peer_closed_silently(self) -> bool:
        """Whether the peer, which has closed its side, has left no bytes to read: no request and no close_notify.

        Asked of the socket: OpenSSL would send the peer an alert, and Python raise an exception, at ten times the cost.
        """
        self._wait(0)
        try:
            gone = not self.holds_bytes() and not socket.socket.recv(self._socket, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            gone = True  # a reset; the kernel reports it only once
        self.eof = self._peer_closed_silently = gone
        return gone

    def unusable(self) -> bool:
        """Whether an idle connection was closed or has unexpected bytes, and cannot be used again."""
        if self.holds_bytes():
            return True
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(0))
