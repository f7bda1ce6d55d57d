"""TLS over transports that ssl sockets do not support: TLS in TLS, or bytes read ahead."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import Callable, Optional, TypeVar, Union

READ_SIZE = 64 * 1024
_RECORD_HEAD = 5  # bytes: type, version, and the body's length in the last two
Buffer = Union[bytes, bytearray, memoryview]
_Result = TypeVar("_Result")


class NestedTls:
    """A TLS connection inside `inner`, as client of `server_name`, or as server if that is None.

    It has the few socket methods that `Stream` uses. As with OpenSSL itself, the caller repeats an unfinished `send`
    with the same bytes.
    """

    def __init__(self, inner: Transport, context: ssl.SSLContext, early: bytes, server_name: Optional[str]) -> None:
        self._inner = inner
        self._timeout: Optional[float] = inner.gettimeout()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._unsent = b""
        self._accepted = 0  # the caller's bytes that are encrypted in _unsent
        self._ragged_end_is_error = server_name is not None
        self._incoming.write(early)
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )

    def do_handshake(self) -> None:
        try:
            self._run(self._tls.do_handshake)
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                self._flush()  # the alert that tells the peer why
            raise
        self._flush()

    def recv_into(self, buffer: Buffer) -> int:
        try:
            # Given a buffer, SSLObject.read() fills it and returns the count.
            return int(self._run(lambda: self._tls.read(len(buffer), buffer)))
        except ssl.SSLEOFError:
            if self._ragged_end_is_error:
                raise
            return 0

    def send(self, data: Buffer) -> int:
        if not self._accepted:
            self._flush()
            with memoryview(data) as view:
                self._accepted = self._tls.write(view[:READ_SIZE])
        self._flush()
        accepted, self._accepted = self._accepted, 0
        return accepted

    def unwrap(self) -> None:
        # OpenSSL would also look for the peer's close_notify, and fail on data before it.
        aside = self._incoming.read()
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # no wait for the peer's own close_notify
        if aside:
            self._incoming.write(aside)
        self._flush()

    def pending(self) -> int:
        return self._tls.pending() or self._holds_record()

    def gettimeout(self) -> Optional[float]:
        return self._timeout

    def settimeout(self, seconds: Optional[float]) -> None:
        self._timeout = seconds
        self._inner.settimeout(seconds)

    def fileno(self) -> int:
        return self._inner.fileno()

    def close(self) -> None:
        self._inner.close()

    def _run(self, operation: Callable[[], _Result]) -> _Result:
        """Run an operation that may need the peer's bytes; one timeout covers all of them."""
        deadline = time.monotonic() + (self._timeout or 0)
        curtailed = False
        try:
            while True:
                try:
                    return operation()
                except ssl.SSLWantReadError:
                    self._flush()
                    self._fetch()
                if self._timeout:
                    curtailed = True
                    self._inner.settimeout(max(0.001, deadline - time.monotonic()))
        finally:
            if curtailed:
                self._inner.settimeout(self._timeout)

    def _holds_record(self) -> bool:
        """Whether a complete record waits in the BIO; OpenSSL leaves bytes there only from a record's start on."""
        data = self._incoming.read()
        if data:
            self._incoming.write(data)
        return len(data) >= _RECORD_HEAD and len(data) >= _RECORD_HEAD + int.from_bytes(data[3:_RECORD_HEAD], "big")

    def _fetch(self) -> None:
        data = bytearray(READ_SIZE)
        count = self._inner.recv_into(data)
        if count:
            self._incoming.write(memoryview(data)[:count])
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self._inner.send(self._unsent) :]


Transport = Union[socket.socket, NestedTls]
