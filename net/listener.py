"""A thread pool that can be joined, and listening sockets."""

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

from monitoring import request_number
from monitoring.log import RateLimitedLog
from monitoring.request_number import Number
from net.poller import Next, Poller

_log = logging.getLogger("dduct")

_Job = Tuple[str, Callable[[], None], Optional[Number]]  # name, work, and the request that it is for

_MAX_WAITING = 64  # threads without work
_WAITING_FOR = 5.0  # seconds until a thread without work ends
_BACKLOG = 1024
LONGEST_STOP = 5.0  # seconds for an accepting thread to leave its loop
_SCARCITY_PAUSE = 0.1  # seconds without accepting
_END_OF_IDLE, _END_OF_ALL = b"?", b"!"  # bytes for a listener's bell


class ThreadPool:
    """Reused threads, joined at the end: creating a thread costs as much as half a TLS handshake."""

    def __init__(self) -> None:
        lock = threading.Lock()  # guards the five fields after the conditions
        self._came = threading.Condition(lock)  # notified of new work, and of the close
        self._ended = threading.Condition(lock)  # notified of finished work
        self._jobs: Deque[_Job] = deque()
        self._threads: Set[threading.Thread] = set()
        self._running = 0
        self._waiting = 0  # threads without work
        self._closing = False

    def spawn(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` in a thread of its own. Raises RuntimeError where the system allows no more threads."""
        job = name, work, request_number.current()
        with self._came:
            self._running += 1
            if self._waiting > len(self._jobs):
                self._jobs.append(job)
                self._came.notify()
                return
            thread = threading.Thread(target=self._run, args=job, name=name, daemon=True)
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            with self._came:
                self._running -= 1
                self._threads.discard(thread)
            raise

    def __repr__(self) -> str:
        return f"<ThreadPool: {self._running} running, {self._waiting} waiting for work>"

    @property
    def running(self) -> int:
        """How many threads work, or are about to."""
        return self._running

    def join(self, seconds: float) -> bool:
        """Wait up to `seconds` until all work is done, including new work; returns whether it is."""
        deadline = time.monotonic() + seconds
        with self._ended:
            if not self._ended.wait_for(lambda: not self._running, seconds):
                return False
            self._closing = True
            self._came.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return True

    def _run(self, name: str, work: Callable[[], None], number: Optional[Number]) -> None:
        job: Optional[_Job] = (name, work, number)
        while job is not None:
            threading.current_thread().name, work, number = job
            request_number.set_current(number)
            try:
                work()
            except Exception:  # noqa: BLE001 - the boundary of a thread: a bug is logged and ends only its own work
                _log.exception("A bug in dduct ended the thread %s", threading.current_thread().name)
            finally:
                del work  # frees the objects it holds
            job = self._next()

    def _next(self) -> Optional[_Job]:
        """The next work for this thread; None after `_WAITING_FOR` seconds without any."""
        with self._came:
            self._running -= 1
            self._ended.notify_all()
            self._waiting += 1
            if self._waiting <= _MAX_WAITING:
                self._came.wait_for(lambda: self._jobs or self._closing, _WAITING_FOR)
            self._waiting -= 1
            if self._jobs:
                return self._jobs.popleft()
            self._threads.discard(threading.current_thread())
            return None


def binding_remedy(error: OSError, port: int) -> str:
    """The remedy for a bind error, as the end of a log line; empty where unknown."""
    if error.errno == errno.EADDRINUSE:
        return f"; another process has it (ss -ltnp 'sport = :{port}' says which)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "; no interface of this machine has that address (ip addr says which there are)"
    if error.errno == errno.EACCES and port < 1024:
        return "; ports below 1024 take root or CAP_NET_BIND_SERVICE"
    return ""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket that several processes may share. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)  # another process may accept between our wake-up and our accept
    except BaseException:
        sock.close()
        raise
    return sock


class Listener(socketserver.ThreadingTCPServer):
    """A listening socket; `serve` gets each connection, as its socket and the client's address.

    `serve` must not wait, and owns the socket.

    The poller's thread accepts while accepting needs no waiting: a second thread would compete with it for the
    interpreter, at the cost of a sixth of all new connections. The listener's own thread takes over where accepting has
    to wait for a free descriptor.
    """

    daemon_threads = True
    block_on_close = False
    timeout = float("inf")

    def __init__(
        self,
        sock: socket.socket,
        threads: ThreadPool,
        serve: Callable[[socket.socket, str], None],
        poller: Poller,
    ) -> None:
        self._spawn = threads.spawn
        self._serve = serve
        self._poller = poller
        self._trouble = RateLimitedLog(_log)
        self.address_family = sock.family
        super().__init__(sock.getsockname()[:2], socketserver.BaseRequestHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        # Created by `start`, after any fork: a bell from before a fork would wake the other processes, too.
        self._bell: Optional[Tuple[socket.socket, socket.socket]] = None
        self._ended = threading.Event()
        self._accepting = threading.Lock()  # guards the descriptors: held over each non-blocking accept

    @property
    def address(self) -> Tuple[str, int]:
        """The bound address, with the real port in place of 0."""
        host, port = self.socket.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Start to accept."""
        self._bell = socket.socketpair()
        self._spawn("listener", self.serve_forever)

    def begin_stop(self) -> None:
        """Tell the accepting thread to leave its loop. Idempotent; `stop` waits for that."""
        if self._bell is not None:
            self._bell[1].send(_END_OF_ALL)

    def stop(self, seconds: float = LONGEST_STOP) -> None:
        """Stop accepting, and wait up to `seconds` until the accepting thread has left its loop. Idempotent."""
        self.begin_stop()
        if self._bell is not None:
            self._ended.wait(seconds)
        self.server_close()

    def stop_all(self) -> None:
        """Stop accepting in all processes that share this socket."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # ENOTCONN on BSD; Linux wakes the waiting threads
        self.stop()

    def serve_forever(self, poll_interval: float = 0.0) -> None:
        """Accept where the poller cannot, until `begin_stop` or the socket's end; each of these wakes it."""
        assert self._bell is not None
        bell = self._bell[0]
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        poll.register(bell, select.POLLIN)
        try:
            while not (self._poller.watch(self, self._take_over) and bell.recv(1) == _END_OF_ALL):
                if poll.poll() != [(self.socket.fileno(), select.POLLIN)]:
                    break
                self._handle_request_noblock()  # type: ignore[attr-defined]
        finally:
            self._poller.forget(self)
            self._ended.set()

    def server_close(self) -> None:
        """Close the socket and the bell."""
        with self._accepting:
            bell, self._bell = self._bell, None
            for sock in (self.socket, *(bell or ())):
                sock.close()

    # As a `Pollable`

    def peer_closed(self) -> bool:
        """Always false: accepting detects errors of the socket."""
        return False

    def answer_at_once(self, iteration: float) -> Next:
        """Accept a connection. CLOSE where accepting has to wait: the poller drops it, and its own thread goes on."""
        with self._accepting:
            if self._bell is None:
                return Next.CLOSE
            try:
                request, client_address = super().get_request()
            except OSError as error:
                return Next.WAIT if isinstance(error, BlockingIOError) else Next.CLOSE  # another process was faster
            self._hand_on(request, client_address)
            return Next.WAIT

    def timed_out(self) -> Next:
        """Never called: the timeout is infinite."""
        return Next.CLOSE

    def give_up(self) -> None:
        """Do nothing: `_take_over` follows."""

    def _take_over(self) -> None:
        """Wake the listener's own thread."""
        with self._accepting:
            if self._bell is not None:
                self._bell[1].send(_END_OF_IDLE)

    # As a socketserver.TCPServer

    def process_request(self, request: socket.socket, client_address: Tuple[str, int]) -> None:  # type: ignore[override]
        """Give an accepted connection to `serve`."""
        self._hand_on(request, client_address)

    def get_request(self) -> Tuple[socket.socket, Tuple[str, int]]:
        """Accept a connection. Pauses if descriptors or memory run out, so that the loop does not spin."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._trouble.warning("No resources for a connection: %s", error.strerror)
                time.sleep(_SCARCITY_PAUSE)
            raise

    def _hand_on(self, request: socket.socket, client_address: Tuple[str, int]) -> None:
        try:
            self._serve(request, client_address[0])
        except BaseException:
            request.close()
            raise
