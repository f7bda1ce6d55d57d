"""A byte stream over one socket: its own read buffer, a deadline on every wait, TLS on top at any moment.

Rules of this room:

* Nothing waits for ever: every wait for the peer ends in `socket.timeout` (TimeoutError).
* What was read ahead is never lost: TLS started on a stream with buffered octets begins with those octets.
* One thread at a time. A stream has no lock; `cancel()` alone may be called from outside.
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

_HEAD_SIZE = 16 * 1024  # octets that are read at once where a line or a head is wanted
_SOL_TLS, _TLS_TX, _CRYPTO_INFO_SIZE = 282, 1, 4  # linux/tls.h; the socket module has no names for them
_OP_IGNORE_UNEXPECTED_EOF = 1 << 7  # ssl has a name for it from 3.10 on
_READ_AHEAD_AT_MOST = 64  # reads of READ_SIZE
_MOMENT = 1  # milliseconds


_Result = TypeVar("_Result")


class ConnectionLost(OSError):
    """The peer went away in the middle of something."""


class NamedSocket(ssl.SSLSocket):
    """A TLS socket that remembers for which name its client asked; set by the context's sni_callback."""

    server_name: Optional[str] = None


def tell_cut_from_end(context: ssl.SSLContext) -> ssl.SSLContext:
    """Make a context report a connection that ends without close_notify, and return it.

    Python 3.9 has OpenSSL 3 take that for an end in good order (SSL_OP_IGNORE_UNEXPECTED_EOF, bpo-43794), and with it
    a body that is cut off for a complete one. OpenSSL 1.1 knows no such option, and reports it always.
    """
    context.options &= ~_OP_IGNORE_UNEXPECTED_EOF
    return context


class Stream:
    """One connection. `timeout` is the longest wait, in seconds, for the peer's next octets or next room."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._socket = sock  # the TCP socket, or the TLS socket that took over its descriptor
        self._transport: Transport = sock
        self._buffer = bytearray()
        self._timeout: Optional[float] = None
        self._closed = False
        self._serves = False  # TLS runs on it, and we are its server
        self._deserted = False  # the peer has ended TCP without a word of TLS
        self._postponed: Optional[OSError] = None  # an error that came behind octets which were still good
        self.timeout = timeout
        self.of_origin = False  # whoever waits for it looks at its own client meanwhile
        self.ended = False  # `arrived` has found out that the peer sends no more
        self.handshaking = False  # between `begin_tls` and the end of the handshake
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def encrypted(self) -> bool:
        """Whether TLS runs on it."""
        return isinstance(self._transport, (ssl.SSLSocket, NestedTls))

    @property
    def takes_files(self) -> bool:
        """Whether octets given to the kernel arrive as they are meant: nothing encrypts, or the kernel itself does.

        It has to be asked: without its consent to this very connection they would leave as plaintext.
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
        """The SNI of a client whose handshake went through a `NamedSocket`, lower-case; None where it sent none."""
        return getattr(self._socket, "server_name", None)

    @property
    def peer(self) -> str:
        """The address at the other end; empty once that is gone."""
        try:
            return str(self._socket.getpeername()[0])
        except (OSError, IndexError):
            return ""

    @property
    def address(self) -> Tuple[str, int]:
        """Our end's. Raises OSError."""
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    @property
    def buffered(self) -> int:
        """Octets that were received and not read yet."""
        return len(self._buffer)

    def fileno(self) -> int:
        """The descriptor under all layers, for polling."""
        return self._socket.fileno()

    # Reading

    def read_head(self, idle: float, limit: int = http1.HEAD_LIMIT) -> bytes:
        """One message head through its empty line; b"" when the peer closed before sending any of it.

        Waits up to `idle` seconds for the first octet and then up to the stream's time-out for all the rest,
        however slowly it drips. Raises ProtocolError(431) beyond `limit`, ConnectionLost on a torn head.
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
        """One line with its LF; raises ProtocolError beyond `limit` octets, ConnectionLost on a torn one."""
        while True:
            end = self._buffer.find(b"\n") + 1
            if 0 < end <= limit:
                return self._take(end)
            if end or len(self._buffer) >= limit:
                raise http1.ProtocolError("over-long line in a chunked body")
            if not self._fill(self.timeout):
                raise ConnectionLost("connection closed inside a chunked body")

    def readinto(self, view: memoryview) -> int:
        """Some octets, at least one; 0 at the end of the stream."""
        if self._buffer:
            count = min(len(view), len(self._buffer))
            view[:count] = memoryview(self._buffer)[:count]
            del self._buffer[:count]
            return count
        return self._receive_within(view, self.timeout)

    def read_much(self, view: memoryview) -> int:
        """Like `readinto`, but all that comes within a moment: TLS gives no more than a record of 16 KiB at a time."""
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
                break  # as below
            except OSError as error:
                self._postponed = error  # what came before it counts
                break
            if not more:
                break  # the end, which the next read finds again
            count += more
        return count

    def readinto_nowait(self, view: memoryview) -> Optional[int]:
        """Like `readinto`, but None where it would have to wait."""
        if self._buffer:
            return self.readinto(view)
        self._wait(0)
        try:
            return self._receive(view)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def holds_octets(self) -> bool:
        """Whether a read would return at once without asking the kernel (poll knows nothing of these octets)."""
        if self._buffer:
            return True
        tls = self._transport if isinstance(self._transport, NestedTls) else self._tls
        return tls is not None and tls.pending() > 0

    def arrived(self) -> bool:
        """Take in what the peer has sent, without waiting; whether there is anything to read now."""
        if not self._buffer:
            self._wait(0)
            chunk = bytearray(_HEAD_SIZE)
            try:
                count = self._receive(chunk)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            self.ended = not count
            self._buffer += memoryview(chunk)[:count]
        return bool(self._buffer)

    def peek(self) -> bytes:
        """All that has arrived, without waiting; it stays, for `skip` or `read_head`. b"" where nothing has."""
        return bytes(self._buffer) if self.arrived() else b""

    def look_ahead(self, count: int) -> Optional[bytes]:
        """The next bytes, without waiting for them, and without taking them out of the socket; b"" at the end.

        None where nothing has come. Under TLS, what it takes to know is read. Raises OSError.
        """
        if not self._buffer and not self.encrypted:
            try:
                self._wait(0)
                return self._socket.recv(count, socket.MSG_PEEK)
            except BlockingIOError:
                return None
        if not self.arrived():
            return b"" if self.ended else None
        return bytes(self._buffer[:count])

    def take_in(self) -> None:
        """Read what has arrived behind what is buffered already, without waiting; it stays. Raises OSError."""
        self._wait(0)
        chunk = bytearray(_HEAD_SIZE)
        try:
            self._buffer += memoryview(chunk)[: self._receive(chunk)]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass

    def start_of_buffer(self, count: int) -> bytes:
        """What has been read and not been used yet."""
        return bytes(self._buffer[:count])

    def give_away(self) -> socket.socket:
        """The socket, for somebody else to close. Only where nothing encrypts."""
        self._closed = True
        return self._socket

    def deserted(self) -> bool:
        """Whether the peer, which sends no more, has left nothing to be read either: no request, and no close_notify.

        For OpenSSL that is an error which it wants to tell the peer, and for Python an exception: ten times as costly.
        """
        self._wait(0)
        try:
            gone = not self.holds_octets() and not socket.socket.recv(self._socket, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            gone = True  # a reset, of which the kernel tells but once
        self.ended = self._deserted = gone
        return gone

    def head_arrived(self) -> bytes:
        """A message head, if all of it is here without waiting; it stays, for `skip` or `read_head`. b"" otherwise."""
        if not self.arrived():
            return b""
        end = http1.head_end(self._buffer, 0)
        return bytes(self._buffer[:end]) if 0 <= end <= http1.HEAD_LIMIT else b""

    def skip(self, count: int) -> None:
        """Forget octets that have arrived."""
        del self._buffer[:count]

    def dead(self) -> bool:
        """Whether an idle connection has been closed, or speaks out of turn; either way it is of no more use."""
        if self.holds_octets():
            return True
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    # Writing

    def send(self, data: Buffer) -> None:
        """All of `data`; a peer that takes nothing for a whole time-out is given up, a slow one is not."""
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
        """Some octets of a file, at most `count`, without their passing through this process; 0 at its end.

        Only where `takes_files`. Raises OSError of either side: EIO is the file's.
        """
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        patience, outstanding = self.timeout, None
        while True:
            if not poll.poll(1000 * patience):
                outstanding = self._still_outstanding(outstanding)
                patience = self.timeout / 2
                continue
            try:
                return os.sendfile(self.fileno(), fd, offset, count)
            except BlockingIOError:
                continue  # less room than the kernel thought

    def send_nowait(self, view: Buffer) -> int:
        """As much as the peer takes at once, perhaps nothing; what it did not take has to be sent next."""
        self._wait(0)
        tls = self._tls
        try:
            return self._transport.send(view) if tls is None else int(tls.write(view))
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0

    # TLS and the end

    def start_tls(self, context: ssl.SSLContext, server_name: Optional[str] = None) -> None:
        """Start TLS on this very connection: as client of `server_name`, or as server when it is None.

        Raises ssl.SSLError, socket.timeout or ConnectionLost; the stream is then only good for closing.
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

        Only where nothing is buffered and nothing encrypts yet. Raises OSError.
        """
        self._wait(0)
        self._socket = self._transport = context.wrap_socket(
            self._socket, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        self.handshaking = self._serves = True
        if self._tls is None:
            raise ConnectionLost("connection closed before its TLS began")  # SSLSocket takes it for not connected

    def continue_tls(self) -> bool:
        """Take the handshake as far as it goes with what has arrived; whether it is over. Raises OSError."""
        self._wait(0)
        try:
            self._tls.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        self.handshaking = False
        return True

    def finish_tls(self) -> None:
        """Take the handshake to its end. Raises OSError."""
        self._handshake()

    def shutdown_write(self) -> None:
        """Say that nothing more is coming, and go on reading: close_notify under TLS, FIN otherwise."""
        if self.encrypted:
            self._read_ahead()
            self._close_notify(self.timeout if isinstance(self._transport, NestedTls) else 0)
        else:
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close in good order; the peer can tell this end from a broken one. Harmless twice, like every close.

        Waits for nothing: a peer that takes nothing any more is not told.
        """
        if self.encrypted and not (self._closed or self._deserted):
            self._close_notify(0)
        self.cut()

    def cut(self) -> None:
        """Close without close_notify: what was sent arrives, and under TLS is known to be incomplete."""
        if not self._closed:
            self._closed = True
            self._socket.close()

    def abort(self) -> None:
        """Close with a reset, so that nobody takes what was sent for complete."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # already gone
        self.cut()

    def linger(self, seconds: float) -> None:
        """Say that nothing more is coming and read what the peer still sends, so that a reset does not destroy
        the last answer before the peer has read it (RFC 9112 §9.6); then close."""
        if self._closed:
            return
        deadline = time.monotonic() + seconds
        scrap = memoryview(bytearray(READ_SIZE))
        try:
            if self.encrypted:
                self._close_notify(0)
            # Under TLS too: what is read here is only thrown away, and SSLSocket has no half-close.
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
            while time.monotonic() < deadline:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                if not socket.socket.recv_into(self._socket, scrap):
                    break
        except (OSError, ValueError):
            pass  # gone, or nothing more in time
        self.cut()

    def cancel(self) -> None:
        """Wake whoever waits on this stream, from another thread: its read ends, its write fails."""
        try:
            # SSLSocket.shutdown() would drop the TLS layer under a thread that is using it.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            pass  # already gone

    def makefile(self, mode: str) -> io.BytesIO:
        """What http.client holds while a response is open: closing that must not close the stream."""
        return io.BytesIO()

    def sendall(self, data: Buffer) -> None:
        """The name under which http.client knows `send`."""
        self.send(data)

    # Innards

    @property
    def _tls(self) -> Any:
        """What does the work of an SSLSocket, whose frames around each call cost as much as decrypting a record.

        It waits as long as the socket does.
        """
        return getattr(self._transport, "_sslobj", None)

    def _handshake(self) -> None:
        assert isinstance(self._transport, ssl.SSLSocket)
        self._awaited(self._transport.do_handshake, self.timeout)
        self.handshaking = False

    def _still_outstanding(self, before: Optional[int]) -> int:
        """Octets that the peer has yet to take, when it has made no room for a time-out.

        The kernel tells of room only when a third of its buffer is free, which may be a megabyte: whoever takes less
        than that is slow, and not gone. Raises socket.timeout where they are as many as `before`.
        """
        octets = int.from_bytes(fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        if before is not None and octets >= before:
            raise socket.timeout("the peer takes nothing")
        return octets

    def _wait(self, seconds: float) -> None:
        # settimeout() costs a system call, and most waits are like the one before.
        if seconds != self._timeout:
            self._timeout = seconds
            self._transport.settimeout(seconds)

    def _fill(self, seconds: float) -> bool:
        chunk = bytearray(_HEAD_SIZE)
        count = self._receive_within(chunk, seconds)
        self._buffer += memoryview(chunk)[:count]
        return count > 0

    def _receive_within(self, view: Buffer, seconds: float) -> int:
        """Some bytes, waited for; for a client, only as long as that is there. Raises ClientGone, too."""
        return self._awaited(partial(self._receive, view), seconds)

    def _awaited(self, operation: Callable[[], _Result], seconds: float) -> _Result:
        """Do what needs bytes of the peer. Raises ClientGone, too, where that is an origin."""
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
            return 0  # the peer's close_notify; Python raises it where ours has left already
        except ssl.SSLEOFError:
            if not self._serves:
                raise  # an origin's body may end here, and must not seem complete
            self._deserted = True
            return 0

    def _read(self, limit: int, view: memoryview) -> int:
        return self._transport.recv_into(view)

    def _read_ahead(self) -> None:
        """Take in what has arrived: OpenSSL, which looks for a close_notify when it sends one, loses all else."""
        self._wait(0)
        chunk = bytearray(READ_SIZE)
        for _ in range(_READ_AHEAD_AT_MOST):
            try:
                count = self._receive(chunk)
            except OSError:
                return  # nothing more for now, or nothing any more: the next read will say
            if not count:
                return
            self._buffer += memoryview(chunk)[:count]

    def _take(self, end: int) -> bytes:
        taken = bytes(self._buffer[:end])
        del self._buffer[:end]
        return taken

    def _close_notify(self, seconds: float) -> None:
        # SSLSocket.unwrap() would wait for the peer's own close_notify; ours leaves before that.
        self._wait(seconds)
        try:
            self._transport.unwrap()  # type: ignore[union-attr]
        except (OSError, ValueError):
            pass  # a peer that is gone, or whose window is full, gets none


def _wrap(sock: socket.socket, context: ssl.SSLContext, server_name: Optional[str]) -> ssl.SSLSocket:
    return context.wrap_socket(
        sock,
        server_side=server_name is None,
        server_hostname=server_name,
        suppress_ragged_eofs=False,  # `Stream` tells what they mean
        do_handshake_on_connect=False,  # until this returns, nobody could cancel it
    )
