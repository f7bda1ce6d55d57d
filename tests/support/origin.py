"""A scripted origin on real sockets: what it does with a request is a function, what it has seen is kept."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Set, Tuple

TIMEOUT = 60.0

HeaderList = Iterable[Tuple[str, str]]


@dataclass(frozen=True)
class Asked:
    """One request as the origin saw it."""

    method: str
    target: str
    headers: Tuple[Tuple[str, str], ...]
    body: bytes

    def get(self, name: str) -> Optional[str]:
        """The first value of a field, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Connection:
    """The origin's end of one connection, for handlers."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""
        self.over = False
        self.body_sent = 0

    def send(self, data: bytes) -> None:
        """Raw bytes."""
        self.sock.sendall(data)

    def send_body(self, data: bytes) -> None:
        """Raw bytes that count as body."""
        self.body_sent += len(data)
        self.sock.sendall(data)

    def head(self, status: int, headers: HeaderList = ()) -> None:
        """A response head as it is told."""
        lines = [f"HTTP/1.1 {status} Whatever"] + [f"{name}: {value}" for name, value in headers]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def respond(self, status: int, headers: HeaderList = (), body: bytes = b"", head_only: bool = False) -> None:
        """A whole response with Content-Length."""
        self.head(status, [*headers, ("Content-Length", str(len(body)))])
        if body and not head_only:
            self.send_body(body)

    def fin(self) -> None:
        """End with a FIN and, under TLS, without close_notify."""
        self.over = True
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def close_notify(self) -> None:
        """End in good order: close_notify, then FIN."""
        self.over = True
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(0)
            with contextlib.suppress(OSError, ValueError):
                self.sock.unwrap()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def reset(self) -> None:
        """End with a RST."""
        self.over = True
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def read_request(self) -> Optional[Asked]:
        """The next request, or None when the client is gone."""
        head = self._until(b"\r\n\r\n")
        if head is None:
            return None
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:] if line))
        asked = Asked(method, target, headers, b"")
        if (asked.get("expect") or "").lower() == "100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if (asked.get("transfer-encoding") or "").lower() == "chunked":
            return Asked(method, target, headers, self._chunks())
        return Asked(method, target, headers, self._exactly(int(asked.get("content-length") or 0)))

    def _chunks(self) -> bytes:
        body = b""
        while True:
            line = self._until(b"\r\n") or b"0"
            size = int(line, 16)
            body += self._exactly(size)
            self._exactly(2)
            if not size:
                return body

    def _fill(self) -> bool:
        data = self.sock.recv(65536)
        self._buffer += data
        return bool(data)

    def _until(self, end: bytes) -> Optional[bytes]:
        while end not in self._buffer:
            if not self._fill():
                return None
        found, _, self._buffer = self._buffer.partition(end)
        return found

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if not self._fill():
                break
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found


Handler = Callable[[Asked, Connection], None]


class Origin:
    """Listens on `host` at a free port from construction on, a thread for each connection; a context manager."""

    def __init__(self, handler: Handler, tls: Optional[ssl.SSLContext] = None, host: str = "127.0.0.1") -> None:
        self._handler = handler
        self._tls = tls
        self._listener = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
        self.port = int(self._listener.getsockname()[1])
        self._changed = threading.Condition()  # guards the rest, notified on every request
        self._asked: List[Asked] = []
        self._connections: Set[Connection] = set()
        self._threads: List[threading.Thread] = []
        self._body_sent = 0
        self.accepted = 0
        self._closing = False
        self._accepting = threading.Thread(target=self._accept, name="origin")
        self._accepting.start()

    def __enter__(self) -> Origin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def requests(self) -> List[Asked]:
        """All requests so far."""
        with self._changed:
            return list(self._asked)

    def count(self, target: str, method: str = "GET") -> int:
        """How often a target was asked for."""
        return sum(asked.target == target and asked.method == method for asked in self.requests)

    @property
    def body_sent(self) -> int:
        """Bytes of bodies handed to the kernel so far, on all connections."""
        with self._changed:
            return self._body_sent + sum(connection.body_sent for connection in self._connections)

    def wait_for_requests(self, count: int) -> None:
        """Wait until so many requests have arrived; an AssertionError when they do not."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self._asked) >= count, TIMEOUT)
        assert arrived, f"{len(self._asked)} requests at the origin instead of {count}"

    def close(self) -> None:
        """End everything; an AssertionError when a thread does not end."""
        with self._changed:
            self._closing = True
            connections = list(self._connections)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
        for thread in [self._accepting, *self._threads]:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), f"{thread.name} hangs"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), name="origin-connection")
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._changed:
            self.accepted += 1
        connection = Connection(sock)
        try:
            if self._tls is not None:
                sock.getpeername()  # raises for one that is reset already, whose descriptor SSLSocket would lose
                connection.sock = sock = self._tls.wrap_socket(sock, server_side=True)
            with self._changed:
                self._connections.add(connection)
                if self._closing:
                    return
            while not connection.over:
                asked = connection.read_request()
                if asked is None:
                    break
                with self._changed:
                    self._asked.append(asked)
                    self._changed.notify_all()
                self._handler(asked, connection)
        except OSError:
            pass  # the client's end is the client's business
        finally:
            with self._changed:
                self._connections.discard(connection)
                self._body_sent += connection.body_sent
            connection.sock.close()


class Files:
    """A handler that serves static objects with validators and single ranges; 404 for the rest."""

    def __init__(self, files: Mapping[str, bytes], headers: HeaderList = ()) -> None:
        self._files: Dict[str, bytes] = dict(files)
        self._headers = list(headers)

    def __call__(self, asked: Asked, connection: Connection) -> None:
        body = self._files.get(asked.target)
        if body is None:
            connection.respond(404, [], b"no such file\n", head_only=asked.method == "HEAD")
            return
        fields = [("ETag", f'"{len(body)}"'), ("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT"), *self._headers]
        if asked.get("if-none-match") == f'"{len(body)}"':
            connection.head(304, fields)
            return
        wanted = asked.get("range")
        if wanted is not None:
            first, _, last = wanted.partition("=")[2].partition("-")
            end = min(int(last or len(body) - 1), len(body) - 1) + 1
            fields.append(("Content-Range", f"bytes {first}-{end - 1}/{len(body)}"))
            connection.respond(206, fields, body[int(first) : end])
            return
        connection.respond(200, fields, body, head_only=asked.method == "HEAD")


class Gate:
    """A place where an origin waits until the test opens it."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()

    def wait(self) -> None:
        """The origin's side."""
        self._reached.set()
        assert self._open.wait(TIMEOUT), "nobody opened the gate"

    def reached(self) -> None:
        """The test's side: wait until the origin is there."""
        assert self._reached.wait(TIMEOUT), "nobody reached the gate"

    def open(self) -> None:
        """Let it pass."""
        self._open.set()


@contextlib.contextmanager
def deaf(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port that accepts no connection: its queue is full, and further packets are dropped."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield int(listener.getsockname()[1])
