"""A byte stream over one connection: a deadline on every wait, TLS from any moment on.

Rules of this module:

* Every wait for the peer is limited: it ends in `socket.timeout` (TimeoutError).
* Bytes read ahead are never lost: TLS started on a stream with buffered bytes begins with those bytes.
* One thread at a time uses a stream. It has no lock; other threads may call only `cancel()`.

Whatever does not wait is in net/nonblocking.py.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import socket
import ssl
import sys
import termios
import time
from functools import partial
from typing import Callable, Optional, TypeVar

from net import client_watch
from net.endpoint import ConnectionLost
from net.nonblocking import HEAD_SIZE, NonblockingStream
from protocol import http1
from tls.tls_in_tls import READ_SIZE, Buffer, NestedTls

_MAX_READ_AHEAD = 64  # reads of READ_SIZE
_MOMENT = 1  # milliseconds

_Result = TypeVar("_Result")


class Stream(NonblockingStream):
    """One connection. Every wait for its peer ends after `timeout` seconds."""

    of_origin = False  # waits for an origin also watch the thread's client (client_watch)

    # Reading

    def read_head(self, idle: float, limit: int = http1.HEAD_LIMIT) -> bytes:
        """One message head with its empty line; b"" when the peer closed before its first byte.

        Waits up to `idle` seconds for the first byte, then up to the stream's `timeout` for all the rest.
        Raises ProtocolError(431) beyond `limit` bytes, ConnectionLost on an incomplete head.
        """
        if not self._buffer and not self.fill(idle):
            return b""
        deadline = time.monotonic() + self.timeout
        searched = 0
        while True:
            head = self._buffer.take_head(searched, limit)
            if head is not None:
                return head
            searched = len(self._buffer)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise socket.timeout("head took too long")
            if not self.fill(remaining):
                if not self._buffer:
                    return b""
                raise ConnectionLost("connection closed inside a head")

    def read_line(self, limit: int) -> bytes:
        """One line with its LF. Raises ProtocolError beyond `limit` bytes, ConnectionLost on an incomplete line."""
        while True:
            line = self._buffer.take_line(limit)
            if line is not None:
                return line
            if not self.fill(self.timeout):
                raise ConnectionLost("connection closed inside a chunked body")

    def fill(self, seconds: float) -> bool:
        """Append what comes within `seconds` to the buffer; False at the end of the stream.

        Raises OSError, and ClientGone like `readinto`.
        """
        chunk = bytearray(HEAD_SIZE)
        count = self._receive_within(chunk, seconds)
        self._buffer += memoryview(chunk)[:count]
        return count > 0

    def readinto(self, view: memoryview) -> int:
        """Read at least one byte; returns the count, 0 at the end of the stream."""
        if self._buffer:
            return self._buffer.move_into(view)
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

    def sendall(self, data: Buffer) -> None:
        """`send`, under the name that http.client calls."""
        self.send(data)

    def makefile(self, mode: str) -> io.BytesIO:
        """An empty file for http.client, which closes it after a response: the stream must stay open."""
        return io.BytesIO()

    # TLS and close

    def start_tls(self, context: ssl.SSLContext, server_name: Optional[str] = None) -> None:
        """Start TLS on this connection: as client of `server_name`, or as server when it is None.

        Raises ssl.SSLError, socket.timeout or ConnectionLost; then the stream can only be closed.
        """
        self._wait(self.timeout)
        if not self._buffer and not self.encrypted:
            self._use_tls(_wrap(self._socket, context, server_name))
            self._timeout = self.timeout
            self._serves = server_name is None
            self.finish_tls()
            return
        nested = NestedTls(self._transport, context, bytes(self._buffer), server_name)
        self._buffer.clear()
        self._transport, self._tls = nested, None
        self._awaited(nested.do_handshake, self.timeout)

    def finish_tls(self) -> None:
        """Complete the handshake. Raises OSError."""
        assert isinstance(self._transport, ssl.SSLSocket)
        self._awaited(self._transport.do_handshake, self.timeout)
        self.handshaking = False

    def shutdown_write(self) -> None:
        """End the sending direction, and go on reading: close_notify under TLS, FIN otherwise."""
        if self.encrypted:
            self._read_ahead()
            self._close_notify(self.timeout if isinstance(self._transport, NestedTls) else 0)
        else:
            self._socket.shutdown(socket.SHUT_WR)

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

    # Internals

    def _still_outstanding(self, before: Optional[int]) -> int:
        """The number of bytes that the peer has not acknowledged; called when the socket stayed full for a timeout.

        The kernel reports space only when a third of its buffer is free, perhaps a megabyte: a peer that accepts less
        is slow, but alive. Raises socket.timeout where the number is not below `before`.
        """
        unsent = int.from_bytes(fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        if before is not None and unsent >= before:
            raise socket.timeout("the peer takes nothing")
        return unsent

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


def _wrap(sock: socket.socket, context: ssl.SSLContext, server_name: Optional[str]) -> ssl.SSLSocket:
    return context.wrap_socket(
        sock,
        server_side=server_name is None,
        server_hostname=server_name,
        suppress_ragged_eofs=False,  # `_receive` handles ragged ends
        do_handshake_on_connect=False,  # `cancel` cannot reach the socket until this returns
    )
