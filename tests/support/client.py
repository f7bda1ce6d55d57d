"""A raw client: what is sent is what the test says, what comes back is read strictly."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from dataclasses import dataclass
from typing import Callable, List, Optional, Tuple

TIMEOUT = 60.0


def wait_until(holds: Callable[[], bool]) -> None:
    """Until something holds that no event tells of."""
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


@dataclass(frozen=True)
class Answer:
    """One response; `complete` says that its framing ended properly."""

    status: int
    headers: Tuple[Tuple[str, str], ...]
    body: bytes
    complete: bool

    @property
    def whole(self) -> bool:
        """Whether the response is complete: neither cut off nor an error page."""
        return self.complete and self.status in (200, 206)

    def get(self, name: str) -> Optional[str]:
        """The first value of a field, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Client:
    """A connection to dduct, through CONNECT where `tunnel` says so, with TLS inside where `ca` is given."""

    def __init__(self, port: int, host: str = "127.0.0.1", source: str = "") -> None:
        come_from = (source, 0) if source else None
        self.sock: socket.socket = socket.create_connection((host, port), TIMEOUT, come_from)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def connect(self, authority: str) -> Answer:
        """Send CONNECT and read its answer."""
        self.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        return self.read(method="CONNECT")

    def start_tls(self, context: ssl.SSLContext, name: str, session: Optional[ssl.SSLSession] = None) -> None:
        """Go on inside TLS, with the session of an earlier connection where there is one."""
        self.sock = context.wrap_socket(self.sock, server_hostname=name, suppress_ragged_eofs=False, session=session)

    @property
    def tls(self) -> ssl.SSLSocket:
        """What it goes on inside."""
        assert isinstance(self.sock, ssl.SSLSocket)
        return self.sock

    def send(self, data: bytes) -> None:
        """Raw bytes."""
        self.sock.sendall(data)

    def reset(self) -> None:
        """End with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def get(self, target: str, host: str, *fields: str, method: str = "GET") -> Answer:
        """One request and its answer."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        return self.read(method)

    def read(self, method: str = "GET") -> Answer:
        """The next response. A head that does not come is a ConnectionError."""
        head = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, _, rest = head[0].partition(" ")
        assert version in ("HTTP/1.0", "HTTP/1.1"), f"no beginning of a response: {head[0]!r}"
        status = int(rest[:3])
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:]))
        answer = Answer(status, headers, b"", True)
        if method == "HEAD" or status in (204, 304) or status < 200 or (method == "CONNECT" and status == 200):
            return answer
        if answer.get("transfer-encoding") == "chunked":
            body, complete = self._chunks()
        elif answer.get("content-length") is not None:
            length = int(answer.get("content-length") or 0)
            body = self._exactly(length)
            complete = len(body) == length
        else:
            body, complete = self._rest()
        return Answer(status, headers, body, complete)

    def read_until(self, end: bytes) -> bytes:
        """Bytes up to `end`, which is dropped."""
        while end not in self._buffer:
            if not self._fill():
                raise ConnectionError("connection closed before the head")
        found, _, self._buffer = self._buffer.partition(end)
        return found

    def at_end(self) -> bool:
        """Whether the connection is over and nothing more came."""
        try:
            return not self._buffer and not self._fill()
        except OSError:
            return True

    def _fill(self) -> bool:
        data = self.sock.recv(262144)
        self._buffer += data
        return bool(data)

    def _exactly(self, count: int) -> bytes:
        parts: List[bytes] = []
        try:
            while count > 0 and (self._buffer or self._fill()):
                part, self._buffer = self._buffer[:count], self._buffer[count:]
                parts.append(part)
                count -= len(part)
        except (ConnectionError, ssl.SSLError):
            pass
        return b"".join(parts)

    def _chunks(self) -> Tuple[bytes, bool]:
        parts: List[bytes] = []
        try:
            while True:
                size = int(self.read_until(b"\r\n"), 16)
                if not size:
                    return b"".join(parts), self.read_until(b"\r\n") == b""
                part = self._exactly(size)
                parts.append(part)
                if len(part) < size or self._exactly(2) != b"\r\n":
                    break
        except (ConnectionError, ssl.SSLError):
            pass
        return b"".join(parts), False

    def _rest(self) -> Tuple[bytes, bool]:
        try:
            while self._fill():
                pass
        except (ConnectionError, ssl.SSLError):
            return self._buffer, False
        body, self._buffer = self._buffer, b""
        return body, True
