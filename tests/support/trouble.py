"""A TCP relay that does to connections what networks do: cuts, resets, silence, single bytes, flipped bits, delay."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios
import threading
import time
from dataclasses import dataclass
from typing import Callable, List, Optional, Tuple

TIMEOUT = 20.0
_PIECE = 65536


@dataclass(frozen=True)
class Plan:
    """What happens to the bytes of one connection on their way from the server: `at` so many of them.

    `end`: how the connection is cut there (None: it is not); `flip`: that byte is changed; `hang`: nothing follows
    until a peer times out; `piece`: bytes per segment; `delay`: seconds before each.
    """

    at: int = 1 << 62
    end: Optional[str] = None
    flip: bool = False
    hang: bool = False
    piece: int = _PIECE
    delay: float = 0.0


class Trouble:
    """Relays to `port`; `plan` says for each connection what happens to it. A context manager."""

    def __init__(self, port: int, plan: Callable[[], Plan]) -> None:
        self._target = port
        self._plan = plan
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()  # guards the three below
        self._sockets: List[socket.socket] = []
        self._threads: List[threading.Thread] = []
        self.carried = 0  # bytes from the server that were handed on
        self._accepting = threading.Thread(target=self._accept, name="trouble")
        self._accepting.start()

    def __enter__(self) -> Trouble:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(TIMEOUT)
        with self._lock:
            sockets, threads = list(self._sockets), list(self._threads)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a relay hangs"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target), TIMEOUT)
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            relay = threading.Thread(target=self._relay, args=(server, client, self._plan()), name="relay")
            with self._lock:
                self._sockets += [client, server]
                self._threads.append(relay)
            relay.start()

    def _relay(self, server: socket.socket, client: socket.socket, plan: Plan) -> None:
        """One thread for both ways: a descriptor that another thread waits on could not be reset."""
        passed, over = 0, False
        poll = select.poll()
        for sock in (server, client):
            poll.register(sock, select.POLLIN)
        with contextlib.suppress(OSError):
            while not over:
                ready = [fd for fd, _ in poll.poll(1000 * TIMEOUT)]
                if not ready:
                    break
                if client.fileno() in ready:
                    data = client.recv(_PIECE)
                    over = not data
                    server.sendall(data)
                if server.fileno() in ready and not over:
                    data, over = self._spoilt(server.recv(min(plan.piece, _PIECE)), plan, passed)
                    passed += len(data)
                    client.sendall(data)
                    if over and plan.hang:
                        poll.unregister(server)
                        over = False
        with contextlib.suppress(OSError):
            self._end(client, plan)
        server.close()
        client.close()

    def _spoilt(self, data: bytes, plan: Plan, passed: int) -> Tuple[bytes, bool]:
        """What becomes of a piece, and whether it is the last one."""
        here = plan.at - passed
        if plan.flip and 0 <= here < len(data):
            data = data[:here] + bytes([data[here] ^ 1]) + data[here + 1 :]
        cut = (plan.end is not None or plan.hang) and here < len(data)
        over = cut or not data
        data = data[: max(0, here)] if cut else data
        if plan.delay:
            time.sleep(plan.delay)
        with self._lock:
            self.carried += len(data)
        return data, over

    def _end(self, client: socket.socket, plan: Plan) -> None:
        _drain(client)
        if plan.end == "rst":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _drain(sock: socket.socket) -> None:
    """Wait until the peer's kernel has everything: what is lost then is lost by the reset alone."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        (unsent,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))
        if not unsent:
            return
        time.sleep(0.001)
