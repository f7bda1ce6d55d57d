"""A byte stream over one socket: its own read buffer, a deadline on every wait, TLS from any moment on.

Rules of this module:

* Every wait for the peer is limited: it ends in `socket.timeout` (TimeoutError).
* Bytes read ahead are never lost: TLS started on a stream with buffered bytes begins with those bytes.
* One thread at a time uses a stream. It has no lock; other threads may call only `cancel()`.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import socket
import ssl
import struct
import sys
import termios
import time
from functools import partial
from typing import Any, Callable, Optional, Tuple, TypeVar

from net import client_watch
from protocol import http1
from tls.tls_in_tls import READ_SIZE, Buffer, NestedTls, Transport

_HEAD_SIZE = 16 * 1024  # bytes per read of a line or a head
_SOL_TLS, _TLS_TX, _CRYPTO_INFO_SIZE = 282, 1, 4  # linux/tls.h; missing in the socket module
_OP_IGNORE_UNEXPECTED_EOF = 1 << 7  # missing in ssl before Python 3.10
_MAX_READ_AHEAD = 64  # reads of READ_SIZE
_MOMENT = 1  # milliseconds


_Result = TypeVar("_Result")


class ConnectionLost(OSError):
    """The connection ended inside a message, a handshake or a tunnel."""


class NamedSocket(ssl.SSLSocket):
    """A TLS socket with the SNI of its client, set by the context's sni_callback."""

    server_name: Optional[str] = None


def require_close_notify(context: ssl.SSLContext) -> ssl.SSLContext:
    """Make a context report the end of a connection without close_notify, and return the context.

    Python 3.9 makes OpenSSL 3 treat it as a regular end (SSL_OP_IGNORE_UNEXPECTED_EOF, bpo-43794), so that a truncated
    body seems complete. OpenSSL 1.1 has no such option, and always reports it.
    """
    context.options &= ~_OP_IGNORE_UNEXPECTED_EOF
    return context


class Stream:
    """One connection. `timeout` is the longest wait, in seconds, for the peer to send or accept bytes."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._socket = sock  # the TCP socket, or the TLS socket that took over its descriptor
        self._transport: Transport = sock
        self._buffer = bytearray()
        self._timeout: Optional[float] = None
        self._closed = False
        self._serves = False  # this end is the TLS server
        self._peer_closed_silently = False  # the peer has ended TCP without close_notify
        self._postponed: Optional[OSError] = None  # an error after valid bytes, raised by the next read
        self.timeout = timeout
        self.of_origin = False  # waits for an origin also watch the thread's client (client_watch)
        self.eof = False  # the peer sends no more, as found by `arrived` or `peer_closed_silently`
        self.handshaking = False  # from `begin_tls` to the end of the handshake
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def encrypted(self) -> bool:
        """Whether the stream uses TLS."""
        return isinstance(self._transport, (ssl.SSLSocket, NestedTls))

    @property
    def takes_files(self) -> bool:
        """Whether `send_file` may be used: the stream is plain, or the kernel encrypts it.

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

    @property
    def buffered(self) -> int:
        """The number of bytes received and not read yet."""
        return len(self._buffer)

    def fileno(self) -> int:
        """The socket's descriptor, for polling."""
        return self._socket.fileno()

    # Reading

    def read_head(self, idle: float, limit: int = http1.HEAD_LIMIT) -> bytes:
        """One message head with its empty line; b"" when the peer closed before its first byte.

        Waits up to `idle` seconds for the first byte, then up to the stream's `timeout` for all the rest.
        Raises ProtocolError(431) beyond `limit` bytes, ConnectionLost on an incomplete head.
        """
        if not self._buffer and not self._fill(idle):
            return b""
        deadline = time.monotonic() + self.timeout
        searched = 0
        while True:
            while self._buffer.startswith(b"\r\n"):  # RFC 9112 §2.2: empty lines before a message are skipped
                del self._buffer[:2]
                searched = 0
            end = http1.head_end(self._buffer, searched)
            if 0 <= end <= limit:
                return self._take(end)
            if len(self._buffer) > limit:
                raise http1.ProtocolError("head is longer than 64 KiB", 431)
            searched = len(self._buffer)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise socket.timeout("head took too long")
            if not self._fill(remaining):
                if not self._buffer:
                    return b""
                raise ConnectionLost("connection closed inside a head")

    def read_line(self, limit: int) -> bytes:
        """One line with its LF. Raises ProtocolError beyond `limit` bytes, ConnectionLost on an incomplete line."""
        while True:
            end = self._buffer.find(b"\n") + 1
            if 0 < end <= limit:
                return self._take(end)
            if end or len(self._buffer) >= limit:
                raise http1.ProtocolError("over-long line in a chunked body")
            if not self._fill(self.timeout):
                raise ConnectionLost("connection closed inside a chunked body")

    def readinto(self, view: memoryview) -> int:
        """Read at least one byte; returns the count, 0 at the end of the stream."""
        if self._buffer:
            count = min(len(view), len(self._buffer))
            view[:count] = memoryview(self._buffer)[:count]
            del self._buffer[:count]
            return count
        return self._receive_within(view, self.timeout)

    def read_much(self, view: memoryview) -> int:
        """Like `readinto`, but collects bytes until none come for 1 ms: TLS yields one record (16 KiB) at a time."""
        count = self.readinto(view)
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        self._wait(0)
        read = self._read if self._tls is None else self._tls.read
        while 0 < count < len(view):
            try:
                more = read(len(view) - count, view[count:])
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if poll.poll(_MOMENT):
                    continue
                break
            except ssl.SSLZeroReturnError:
                break  # the end, as below
            except OSError as error:
                self._postponed = error  # the bytes before it are valid
                break
            if not more:
                break  # the end; the next read finds it again
            count += more
        return count

    def readinto_nowait(self, view: memoryview) -> Optional[int]:
        """Like `readinto`, but returns None instead of waiting."""
        if self._buffer:
            return self.readinto(view)
        self._wait(0)
        try:
            return self._receive(view)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def holds_bytes(self) -> bool:
        """Whether a read would return at once without the kernel: poll does not see these bytes."""
        if self._buffer:
            return True
        tls = self._transport if isinstance(self._transport, NestedTls) else self._tls
        return tls is not None and tls.pending() > 0

    def arrived(self) -> bool:
        """Buffer received bytes without waiting; returns whether there are any to read."""
        if not self._buffer:
            self._wait(0)
            chunk = bytearray(_HEAD_SIZE)
            try:
                count = self._receive(chunk)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            self.eof = not count
            self._buffer += memoryview(chunk)[:count]
        return bool(self._buffer)

    def peek(self) -> bytes:
        """All received bytes, without waiting, or b""; they stay for `consume` or `read_head`."""
        return bytes(self._buffer) if self.arrived() else b""

    def look_ahead(self, count: int) -> Optional[bytes]:
        """Up to `count` next bytes, without waiting; b"" at the end, None where none have come.

        A plain connection keeps them in the socket; under TLS they move to the buffer. Raises OSError.
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

    def take_in(self) -> bool:
        """Append received bytes to the buffer without waiting; False at the end of the stream. Raises OSError."""
        self._wait(0)
        chunk = bytearray(_HEAD_SIZE)
        try:
            count = self._receive(chunk)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        self._buffer += memoryview(chunk)[:count]
        return bool(count)

    def start_of_buffer(self, count: int) -> bytes:
        """Up to `count` bytes of the buffer; they stay in it."""
        return bytes(self._buffer[:count])

    def give_away(self) -> socket.socket:
        """Give the socket to the caller, who closes it. Only for plain streams."""
        self._closed = True
        return self._socket

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

    def head_arrived(self) -> bytes:
        """A complete message head, without waiting, or b""; it stays for `consume` or `read_head`."""
        if not self.arrived():
            return b""
        end = http1.head_end(self._buffer, 0)
        return bytes(self._buffer[:end]) if 0 <= end <= http1.HEAD_LIMIT else b""

    def consume(self, count: int) -> None:
        """Remove `count` bytes from the buffer."""
        del self._buffer[:count]

    def unusable(self) -> bool:
        """Whether an idle connection was closed or has unexpected bytes, and cannot be used again."""
        if self.holds_bytes():
            return True
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    # Writing

    def send(self, data: Buffer) -> None:
        """Send all of `data`; a slow peer is accepted. Raises socket.timeout if it takes nothing for `timeout`."""
        self._wait(self.timeout)
        with memoryview(data) as view:
            sent, outstanding = 0, None
            while sent < len(view):
                try:
                    sent += self._transport.send(view[sent:])
                    outstanding = None
                except socket.timeout:
                    outstanding = self._still_outstanding(outstanding)
                    self._wait(self.timeout / 2)

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """Send up to `count` bytes of a file by sendfile(2); returns how many, 0 at its end.

        Only where `takes_files`. Raises OSError of the socket or the file: EIO is the file's.
        """
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        timeout, outstanding = self.timeout, None
        while True:
            if not poll.poll(1000 * timeout):
                outstanding = self._still_outstanding(outstanding)
                timeout = self.timeout / 2
                continue
            try:
                return os.sendfile(self.fileno(), fd, offset, count)
            except BlockingIOError:
                continue  # less buffer space than poll reported

    def send_nowait(self, view: Buffer) -> int:
        """Send without waiting; returns the count, perhaps 0. The next send must begin with the rest."""
        self._wait(0)
        tls = self._tls
        try:
            return self._transport.send(view) if tls is None else int(tls.write(view))
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0

    # TLS and close

    def start_tls(self, context: ssl.SSLContext, server_name: Optional[str] = None) -> None:
        """Start TLS on this connection: as client of `server_name`, or as server when it is None.

        Raises ssl.SSLError, socket.timeout or ConnectionLost; then the stream can only be closed.
        """
        self._wait(self.timeout)
        if not self._buffer and not self.encrypted:
            self._socket = self._transport = _wrap(self._socket, context, server_name)
            self._timeout = self.timeout
            self._serves = server_name is None
            self._handshake()
            return
        nested = NestedTls(self._transport, context, bytes(self._buffer), server_name)
        self._buffer.clear()
        self._transport = nested
        self._awaited(nested.do_handshake, self.timeout)

    def begin_tls(self, context: ssl.SSLContext) -> None:
        """Start TLS as server without waiting; `continue_tls` or `finish_tls` goes on.

        Only for plain streams with an empty buffer. Raises OSError.
        """
        self._wait(0)
        self._socket = self._transport = context.wrap_socket(
            self._socket, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        self.handshaking = self._serves = True
        if self._tls is None:
            raise ConnectionLost("connection closed before its TLS began")  # SSLSocket considers it unconnected

    def continue_tls(self) -> bool:
        """Advance the handshake without waiting; returns whether it is complete. Raises OSError."""
        self._wait(0)
        try:
            self._tls.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        self.handshaking = False
        return True

    def finish_tls(self) -> None:
        """Complete the handshake. Raises OSError."""
        self._handshake()

    def shutdown_write(self) -> None:
        """End the sending direction, and go on reading: close_notify under TLS, FIN otherwise."""
        if self.encrypted:
            self._read_ahead()
            self._close_notify(self.timeout if isinstance(self._transport, NestedTls) else 0)
        else:
            self._socket.shutdown(socket.SHUT_WR)

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
            self._socket.close()

    def reset(self) -> None:
        """Close with a reset, so that the peer does not take the sent bytes for complete."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # already gone
        self.close_abruptly()

    def linger(self, seconds: float) -> None:
        """End the sending direction, discard what the peer sends for up to `seconds`, then close: unread bytes would
        cause a reset, which destroys the last answer before the peer has read it (RFC 9112 §9.6)."""
        if self._closed:
            return
        deadline = time.monotonic() + seconds
        scrap = memoryview(bytearray(READ_SIZE))
        try:
            if self.encrypted:
                self._close_notify(0)
            # Under TLS too: the bytes are only discarded, and SSLSocket has no half-close.
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
            while time.monotonic() < deadline:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                if not socket.socket.recv_into(self._socket, scrap):
                    break
        except (OSError, ValueError):
            pass  # the peer is gone, or sent nothing in time
        self.close_abruptly()

    def cancel(self) -> None:
        """Wake the thread that waits on this stream, from another thread: its read ends, its write fails."""
        try:
            # SSLSocket.shutdown() would drop the TLS object while another thread uses it.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            pass  # already gone

    def makefile(self, mode: str) -> io.BytesIO:
        """An empty file for http.client, which closes it after a response: the stream must stay open."""
        return io.BytesIO()

    def sendall(self, data: Buffer) -> None:
        """`send`, under the name that http.client calls."""
        self.send(data)

    # Internals

    @property
    def _tls(self) -> Any:
        """The C object of an SSLSocket, called directly: the wrapper's calls cost as much as decrypting a record.

        It has the socket's timeout.
        """
        return getattr(self._transport, "_sslobj", None)

    def _handshake(self) -> None:
        assert isinstance(self._transport, ssl.SSLSocket)
        self._awaited(self._transport.do_handshake, self.timeout)
        self.handshaking = False

    def _still_outstanding(self, before: Optional[int]) -> int:
        """The number of bytes that the peer has not acknowledged; called when the socket stayed full for a timeout.

        The kernel reports space only when a third of its buffer is free, perhaps a megabyte: a peer that accepts less
        is slow, but alive. Raises socket.timeout where the number is not below `before`.
        """
        unsent = int.from_bytes(fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        if before is not None and unsent >= before:
            raise socket.timeout("the peer takes nothing")
        return unsent

    def _wait(self, seconds: float) -> None:
        # settimeout() costs a system call, and most waits have the same timeout as the one before.
        if seconds != self._timeout:
            self._timeout = seconds
            self._transport.settimeout(seconds)

    def _fill(self, seconds: float) -> bool:
        chunk = bytearray(_HEAD_SIZE)
        count = self._receive_within(chunk, seconds)
        self._buffer += memoryview(chunk)[:count]
        return count > 0

    def _receive_within(self, view: Buffer, seconds: float) -> int:
        """Read some bytes within `seconds`. Raises ClientGone, too: see `_awaited`."""
        return self._awaited(partial(self._receive, view), seconds)

    def _awaited(self, operation: Callable[[], _Result], seconds: float) -> _Result:
        """Run `operation` within `seconds`. Raises ClientGone if the client leaves during a wait for an origin."""
        waiting = client_watch.current() if self.of_origin else None
        if waiting is None:
            self._wait(seconds)
            return operation()
        self._wait(0)
        deadline = time.monotonic() + seconds
        while True:
            try:
                return operation()
            except (BlockingIOError, ssl.SSLWantReadError):
                events = select.POLLIN
            except ssl.SSLWantWriteError:
                events = select.POLLOUT
            poll = select.poll()
            poll.register(self.fileno(), events)
            if not waiting.wait(poll, deadline - time.monotonic()):
                raise socket.timeout("timed out")

    def _receive(self, view: Buffer) -> int:
        try:
            if self._postponed is not None:
                raise self._postponed
            tls = self._tls
            return self._transport.recv_into(view) if tls is None else int(tls.read(len(view), view))
        except ssl.SSLZeroReturnError:
            return 0  # the peer's close_notify, where ours was sent already
        except ssl.SSLEOFError:
            if not self._serves:
                raise  # a truncated body of an origin must not seem complete
            self._peer_closed_silently = True
            return 0

    def _read(self, limit: int, view: memoryview) -> int:
        return self._transport.recv_into(view)

    def _read_ahead(self) -> None:
        """Buffer received bytes: when OpenSSL sends a close_notify, it looks for the peer's and drops other data."""
        self._wait(0)
        chunk = bytearray(READ_SIZE)
        for _ in range(_MAX_READ_AHEAD):
            try:
                count = self._receive(chunk)
            except OSError:
                return  # no more for now, or an error that the next read finds again
            if not count:
                return
            self._buffer += memoryview(chunk)[:count]

    def _take(self, end: int) -> bytes:
        taken = bytes(self._buffer[:end])
        del self._buffer[:end]
        return taken

    def _close_notify(self, seconds: float) -> None:
        # SSLSocket.unwrap() sends our close_notify, then waits for the peer's: 0 seconds suffice to send.
        self._wait(seconds)
        try:
            self._transport.unwrap()  # type: ignore[union-attr]
        except (OSError, ValueError):
            pass  # the peer is gone, or its window is full


def _wrap(sock: socket.socket, context: ssl.SSLContext, server_name: Optional[str]) -> ssl.SSLSocket:
    return context.wrap_socket(
        sock,
        server_side=server_name is None,
        server_hostname=server_name,
        suppress_ragged_eofs=False,  # `_receive` handles ragged ends
        do_handshake_on_connect=False,  # `cancel` cannot reach the socket until this returns
    )
