"""Threads that are waited for, and listening sockets whose connections get one each."""

from __future__ import annotations

import errno
import logging
import socket
import socketserver
import threading
import time
from functools import partial
from typing import Callable, Optional, Set, Tuple

from notices import Seldom

_log = logging.getLogger("dduct")

_BACKLOG = 1024
_SLOT_PATIENCE = 1.0  # seconds for another connection to end
_SCARCITY_PAUSE = 0.1  # seconds
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Threads:
    """Threads that are waited for at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _alive
        self._alive: Set[threading.Thread] = set()

    def spawn(self, name: str, work: Callable[[], None]) -> threading.Thread:
        """Run `work` in a thread of its own. Raises RuntimeError where the system has no room for one."""
        thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        with self._lock:
            self._alive.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._forget(thread)
            raise
        return thread

    def join(self, seconds: float) -> bool:
        """Wait for all of them, and for those that they start; whether they ended in time."""
        deadline = time.monotonic() + seconds
        while True:
            with self._lock:
                thread = next(iter(self._alive), None)
            if thread is None:
                return True
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return False
            self._forget(thread)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # noqa: BLE001 - the one boundary: a bug is logged and ends its thread alone
            _log.exception("A bug in dduct ended the thread %s", threading.current_thread().name)
        finally:
            self._forget(threading.current_thread())

    def _forget(self, thread: threading.Thread) -> None:
        with self._lock:
            self._alive.discard(thread)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket that several processes may accept from. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)  # another process may be faster between our being woken and our accepting
    except BaseException:
        sock.close()
        raise
    return sock


class Listener(socketserver.ThreadingTCPServer):
    """A listening socket; every connection goes to `serve` in a thread of its own, if one of `slots` is free for it."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        sock: socket.socket,
        threads: Threads,
        slots: threading.Semaphore,
        serve: Callable[[socket.socket, str], None],
    ) -> None:
        self._spawn = threads.spawn
        self.slots = slots
        self._serve = serve
        self._trouble = Seldom(_log)
        self.address_family = sock.family
        super().__init__(sock.getsockname()[:2], socketserver.BaseRequestHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.thread: Optional[threading.Thread] = None

    @property
    def address(self) -> Tuple[str, int]:
        """Where it really listens: port 0 has become a real one."""
        host, port = self.socket.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Begin to accept."""
        self.thread = self._spawn("listener", self.serve_forever)

    def stop(self) -> None:
        """Accept no more. Waits until the accepting thread is out of its loop."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)  # close() alone would not wake it
        except OSError:
            pass  # not connected, says BSD; Linux wakes the thread
        if self.thread is not None:
            self.shutdown()
        self.server_close()

    def process_request(self, request: socket.socket, client_address: Tuple[str, int]) -> None:  # type: ignore[override]
        """Hand an accepted connection to a thread, when there is a place for it."""
        slots = self.slots
        if not slots.acquire(timeout=_SLOT_PATIENCE):
            self._turn_away(request)
            return
        try:
            self._spawn("session", partial(self._occupy, slots, request, client_address[0]))
        except RuntimeError as error:
            slots.release()
            self._trouble.warning("No thread for a connection: %s", error)
            self._turn_away(request)

    def get_request(self) -> Tuple[socket.socket, Tuple[str, int]]:
        """Accept a connection. One that cannot be had for want of descriptors waits a little, and is not spun for."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._trouble.warning("No room for a connection: %s", error.strerror)
                time.sleep(_SCARCITY_PAUSE)
            raise

    def _occupy(self, slots: threading.Semaphore, request: socket.socket, client: str) -> None:
        try:
            self._serve(request, client)
        finally:
            slots.release()

    def _turn_away(self, request: socket.socket) -> None:
        """Say that there are too many, to a client that can be told without waiting for it."""
        request.setblocking(False)
        try:
            request.send(_TOO_MANY)
        except OSError:
            pass  # it may as well find out by itself
        request.close()
