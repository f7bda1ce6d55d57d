"""Threads that are waited for, and listening sockets whose connections get one each."""

from __future__ import annotations

import errno
import logging
import select
import socket
import socketserver
import threading
import time
from collections import deque
from typing import Callable, Deque, Optional, Set, Tuple

from monitoring.log import Seldom
from net.poller import Idle, Next

_log = logging.getLogger("dduct")

_Job = Tuple[str, Callable[[], None]]

_WAITING_AT_MOST = 64  # threads without work
_WAITING_FOR = 5.0  # seconds
_BACKLOG = 1024
_END = 5.0  # seconds for an accepting thread to be out of its loop
_SCARCITY_PAUSE = 0.1  # seconds
_END_OF_IDLE, _END_OF_ALL = b"?", b"!"  # what rings a listener's bell


class Threads:
    """Threads that are waited for at the end, and used again: to make one costs as much as half a handshake."""

    def __init__(self) -> None:
        lock = threading.Lock()  # guards the five below
        self._came = threading.Condition(lock)  # work, for a thread that has none
        self._ended = threading.Condition(lock)  # some work
        self._jobs: Deque[_Job] = deque()
        self._threads: Set[threading.Thread] = set()
        self._running = 0
        self._waiting = 0  # threads without work
        self._closing = False

    def spawn(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` in a thread of its own. Raises RuntimeError where the system has no room for one."""
        with self._came:
            self._running += 1
            if self._waiting > len(self._jobs):
                self._jobs.append((name, work))
                self._came.notify()
                return
            thread = threading.Thread(target=self._run, args=(name, work), name=name, daemon=True)
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            with self._came:
                self._running -= 1
                self._threads.discard(thread)
            raise

    def join(self, seconds: float) -> bool:
        """Wait until all work is done, also that which comes meanwhile; whether it was in time."""
        with self._ended:
            if not self._ended.wait_for(lambda: not self._running, seconds):
                return False
            self._closing = True
            self._came.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join(seconds)
        return True

    def _run(self, name: str, work: Callable[[], None]) -> None:
        job: Optional[_Job] = (name, work)
        while job is not None:
            threading.current_thread().name, work = job
            try:
                work()
            except Exception:  # noqa: BLE001 - the one boundary: a bug is logged and ends its work alone
                _log.exception("A bug in dduct ended the thread %s", threading.current_thread().name)
            finally:
                del work  # and all that it holds
            job = self._next()

    def _next(self) -> Optional[_Job]:
        """More work for this thread; None where none comes for a while."""
        with self._came:
            self._running -= 1
            self._ended.notify_all()
            self._waiting += 1
            if self._waiting <= _WAITING_AT_MOST:
                self._came.wait_for(lambda: self._jobs or self._closing, _WAITING_FOR)
            self._waiting -= 1
            if self._jobs:
                return self._jobs.popleft()
            self._threads.discard(threading.current_thread())
            return None


def binding_remedy(error: OSError, port: int) -> str:
    """What to do about an address that cannot be bound, as the end of a line; nothing where that is unknown."""
    if error.errno == errno.EADDRINUSE:
        return f"; another process has it (ss -ltnp 'sport = :{port}' says which)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "; no interface of this machine has that address (ip addr says which there are)"
    if error.errno == errno.EACCES and port < 1024:
        return "; ports below 1024 take root or CAP_NET_BIND_SERVICE"
    return ""


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
    """A listening socket; every connection is for `serve`, which is given the socket and the client's address.

    It must not wait for anything, and the socket is its own from then on.

    As long as accepting takes no waiting, the thread does it that watches all idle connections: a second thread would
    fight with that one for the interpreter, at the cost of a sixth of all new connections. The listener's own thread
    takes over where there is something to wait for: a descriptor.
    """

    daemon_threads = True
    block_on_close = False
    patience = float("inf")

    def __init__(
        self,
        sock: socket.socket,
        threads: Threads,
        serve: Callable[[socket.socket, str], None],
        idle: Idle,
    ) -> None:
        self._spawn = threads.spawn
        self._serve = serve
        self._idle = idle
        self._trouble = Seldom(_log)
        self.address_family = sock.family
        super().__init__(sock.getsockname()[:2], socketserver.BaseRequestHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        # Since it accepts: one that was made before a fork would wake the other processes as well.
        self._bell: Optional[Tuple[socket.socket, socket.socket]] = None
        self._ended = threading.Event()
        self._accepting = threading.Lock()  # guards the descriptors: none is closed under an accept (a quick one)

    @property
    def address(self) -> Tuple[str, int]:
        """Where it really listens: port 0 has become a real one."""
        host, port = self.socket.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Begin to accept."""
        self._bell = socket.socketpair()
        self._spawn("listener", self.serve_forever)

    def stop(self) -> None:
        """Accept no more. Waits until the accepting thread is out of its loop. Harmless twice."""
        self.shutdown()
        self.server_close()

    def stop_all(self) -> None:
        """Accept no more, in whatever process that has this socket."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # not connected, says BSD; Linux wakes who waits for it
        self.stop()

    def serve_forever(self, poll_interval: float = 0.0) -> None:
        """Accept what takes waiting, until `shutdown`, or until the socket listens no more; all of these wake it."""
        assert self._bell is not None
        bell = self._bell[0]
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        poll.register(bell, select.POLLIN)
        try:
            while not (self._idle.watch(self, self._take_over) and bell.recv(1) == _END_OF_ALL):
                if poll.poll() != [(self.socket.fileno(), select.POLLIN)]:
                    break
                self._handle_request_noblock()  # type: ignore[attr-defined]
        finally:
            self._idle.forget(self)
            self._ended.set()

    def shutdown(self) -> None:
        """Have `serve_forever` end, if it runs, and wait for that. `Idle` may still be about to accept one."""
        if self._bell is not None:
            self._bell[1].send(_END_OF_ALL)
            self._ended.wait(_END)

    def server_close(self) -> None:
        """Give everything back."""
        with self._accepting:
            bell, self._bell = self._bell, None
            for sock in (self.socket, *(bell or ())):
                sock.close()

    # As somebody whom `Idle` watches

    def has_left(self) -> bool:
        """No: what is wrong with it, accepting finds out."""
        return False

    def answer_at_once(self, turn: float) -> Next:
        """Accept a connection. END where something has to be waited for: then this is over for `Idle`, not for us."""
        with self._accepting:
            if self._bell is None:
                return Next.END
            try:
                request, client_address = super().get_request()
            except OSError as error:
                return Next.WATCH if isinstance(error, BlockingIOError) else Next.END  # another process was faster
            self._hand_on(request, client_address)
            return Next.WATCH

    def timed_out(self) -> Next:
        """Never."""
        return Next.END

    def give_up(self) -> None:
        """Nothing that `_take_over` would not do."""

    def _take_over(self) -> None:
        """Have the listener's own thread go on."""
        with self._accepting:
            if self._bell is not None:
                self._bell[1].send(_END_OF_IDLE)

    # As a socketserver

    def process_request(self, request: socket.socket, client_address: Tuple[str, int]) -> None:  # type: ignore[override]
        """Hand an accepted connection on."""
        self._hand_on(request, client_address)

    def get_request(self) -> Tuple[socket.socket, Tuple[str, int]]:
        """Accept a connection. One that cannot be had for want of descriptors waits a little, and is not spun for."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._trouble.warning("No room for a connection: %s", error.strerror)
                time.sleep(_SCARCITY_PAUSE)
            raise

    def _hand_on(self, request: socket.socket, client_address: Tuple[str, int]) -> None:
        try:
            self._serve(request, client_address[0])
        except BaseException:
            request.close()
            raise
