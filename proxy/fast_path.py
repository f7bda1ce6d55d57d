"""What the poller's thread does by itself for a client: answers that need no waiting and no decision.

These are requests with a known answer, CONNECT for a host whose leaf is cached, and the TLS handshake after it.
Anything else goes to a session thread, with all its bytes still in the stream.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import Callable, Optional, Protocol

from fetching import polled_fetch
from fetching.polled_fetch import PolledFetch, Step
from fetching.small_hit import Answer, PlainRequest
from monitoring.metrics import Counter
from monitoring.request_number import RequestNumbers, set_current
from net.arrival import Arrival
from net.nonblocking import NonblockingStream
from net.poller import Next, Pollable
from protocol import http1
from protocol.http1 import ProtocolError
from proxy.opening import Opening, Spoken, established
from proxy.routing import Intercept
from proxy.session_state import SessionState
from upstream.dialling import UpstreamError

_log = logging.getLogger("dduct.session")

_MAX_CONNECT_CACHE = 4096  # CONNECT heads in the connect cache; a full one is cleared
_MAX_CONNECT_HEAD = 2048  # bytes of one head
_MAX_PIPELINED = 16  # answers to one client in an iteration; a thread serves one that has sent more
_TLS_ITERATIONS = 3  # poll iterations: two flights of a client, and a third where one is split


class Watcher(Protocol):
    """The poller, for one connection. Whatever is watched is resumed in the session's thread."""

    def watch(self, pollable: Pollable) -> bool: ...

    def forget(self, pollable: Pollable) -> None: ...


class FastPath:
    """A session as the poller sees it (`Pollable`)."""

    def __init__(self, state: SessionState, numbers: RequestNumbers, watcher: Watcher) -> None:
        self._state = state
        self._watcher = watcher
        self._numbers = numbers
        self._stream: NonblockingStream = state.stream  # so mypy finds a wait in this thread
        self._tls_iterations = 0  # iterations left for a handshake
        self._pipelines = False  # its client has sent a request behind one that waited for its origin

    @property
    def timeout(self) -> float:
        """Seconds to wait for the next bytes."""
        opening = self._state.opening
        return self._state.runtime.idle_timeout if opening is None else opening.seconds

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._stream.fileno()

    def peer_closed(self) -> bool:
        """Whether the client is gone and has left no bytes to read."""
        return not self._stream.handshaking and self._stream.peer_closed_silently()

    def answer_at_once(self, iteration: float) -> Next:
        """Serve the received bytes, where that needs no waiting and no decision."""
        try:
            if self._stream.handshaking or self._state.opening is not None:
                with self._numbers:
                    return self._begin_tls()
            following = self._answer_one(iteration)
            for _ in range(_MAX_PIPELINED - 1):
                if following is not None:
                    break
                following = self._answer_one(time.monotonic())  # it may have arrived after the iteration had begun
            return following or Next.NEEDS_THREAD
        except OSError:
            pass  # the thread finds the error again
        finally:
            set_current(None)
        return Next.NEEDS_THREAD

    def timed_out(self) -> Next:
        """Close a silent client; after a CONNECT the client may be waiting for the server's first bytes."""
        opening = self._state.opening
        return Next.CLOSE if opening is None or not opening.may_be_silent else Next.NEEDS_THREAD

    def give_up(self) -> None:
        """Make the session only close the connection; unsent bytes are dropped."""
        self._state.give_up()

    def _answer_one(self, iteration: float) -> Optional[Next]:
        """Answer one request; None where another one may have been received already. Raises OSError."""
        state, stream = self._state, self._stream
        received = stream.peek()
        state.runtime = runtime = state.current_runtime()
        if not received or runtime.draining.is_set():
            return Next.CLOSE if stream.eof else Next.NEEDS_THREAD
        end = http1.head_end(received)
        block = received[:end] if 0 <= end <= http1.HEAD_LIMIT else b""
        if received.startswith(b"CONNECT "):
            with self._numbers:
                return self._intercept(block)
        request = runtime.plain_requests.read(block, state.arrival)
        answer = state.answer_other(block, iteration) if request is None else state.answer(request, iteration)
        if answer is None:
            return Next.NEEDS_THREAD if request is None else self._ask_origin(request, end, iteration)
        self._numbers.begin()
        return self._send(answer, end, iteration, 0.0)

    def _send(self, answer: Answer, length: int, iteration: float, seconds: float) -> Optional[Next]:
        """Answer a request whose head is the next `length` bytes, after so many seconds. Raises OSError."""
        state, stream = self._state, self._stream
        stream.consume(length)
        state.note(answer, seconds)
        state.waiting_since = iteration
        state.busy, sent = True, 0
        try:
            sent = stream.send_nowait(answer.data)
        finally:
            if sent < len(answer.data):
                state.unsent = memoryview(answer.data)[sent:]  # for the session's thread, which finds an error again
        if state.unsent:
            return Next.NEEDS_THREAD
        state.busy = False
        return None if stream.holds_bytes() else Next.WAIT

    def _ask_origin(self, request: PlainRequest, length: int, iteration: float) -> Next:
        """Begin a miss whose head is the next `length` bytes."""
        state, stream = self._state, self._stream
        if not state.may_ask() or stream.buffered > length or self._pipelines:
            return Next.NEEDS_THREAD  # a thread looks ahead at what is received behind it
        state.fetch = polled_fetch.begin(state.runtime.services, request, iteration)
        if state.fetch is None:
            return Next.NEEDS_THREAD
        self._numbers.begin()
        state.busy = True
        self._watcher.forget(self)
        answered = partial(self._fetched, length, time.monotonic())
        awaited = AwaitedOrigin(state, self._numbers, self._watcher, answered, iteration)
        return Next.HANDED_ON if self._watcher.watch(awaited) else Next.NEEDS_THREAD

    def _fetched(self, length: int, began: float, answer: Answer) -> Next:
        """Answer with what the origin has sent, and go on."""
        now, stream = time.monotonic(), self._stream
        try:
            stream.take_in()  # the client was not watched meanwhile: only now it shows what it has sent
            self._pipelines = self._pipelines or stream.buffered > length
            with self._numbers:
                following = self._send(answer, length, now, now - began)
        except OSError:
            following = Next.NEEDS_THREAD  # the thread finds the error again
        if following is None:
            following = self.answer_at_once(now)
        if following is Next.WAIT:
            return Next.HANDED_ON if self._watcher.watch(self) else Next.NEEDS_THREAD
        return following

    def _intercept(self, block: bytes) -> Next:
        """Answer CONNECT for a host whose leaf is cached, and wait for its TLS. Raises OSError."""
        state, stream = self._state, self._stream
        arrival = self._connect_target(block)
        if arrival is None or arrival.connect_target is None or stream.buffered > len(block) or stream.encrypted:
            return Next.NEEDS_THREAD
        runtime = state.runtime
        context = runtime.leaf_certificates.get_cached(arrival.connect_target.host)
        if context is None:
            return Next.NEEDS_THREAD
        self._numbers.begin()
        stream.consume(len(block))
        state.prove()
        runtime.services.counters.add(Counter.INTERCEPTED)
        _log.debug("%s CONNECT %s 200", state.client.address, arrival.connect_target)
        answer = established(state.via)
        if stream.send_nowait(answer) < len(answer):
            return Next.CLOSE  # the client's receive window is full already
        state.opening = Opening(stream, arrival, runtime.rules, runtime.idle_timeout, context)
        return Next.WAIT

    def _begin_tls(self) -> Next:
        """Go on with a CONNECT's TLS. Raises OSError."""
        opening = self._state.opening
        return self._continue_tls() if opening is None else self._open(opening)

    def _open(self, opening: Opening) -> Next:
        """Start TLS if the client has begun it and the leaf is cached. Raises OSError."""
        spoken = opening.look()
        if spoken is None or spoken is Spoken.END:
            return Next.WAIT if spoken is None else Next.CLOSE
        if spoken is not Spoken.TLS or self._stream.encrypted or self._stream.buffered:
            return Next.NEEDS_THREAD
        state = self._state
        context = (
            opening.context
            if opening.server_name is None
            else state.runtime.leaf_certificates.get_cached(opening.server_name)
        )
        if context is None:
            return Next.NEEDS_THREAD
        state.opening, state.arrival = None, opening.named_arrival()
        self._tls_iterations = _TLS_ITERATIONS
        if not state.take_tls_on(partial(self._stream.begin_tls, context)):
            return Next.CLOSE
        return self._continue_tls()

    def _continue_tls(self) -> Next:
        self._tls_iterations -= 1
        if not self._state.take_tls_on(self._stream.continue_tls):
            return Next.CLOSE
        return Next.WAIT if self._tls_iterations or not self._stream.handshaking else Next.NEEDS_THREAD

    def _connect_target(self, block: bytes) -> Optional[Arrival]:
        """The arrival inside a CONNECT to intercept; None for all other requests, which take a thread."""
        state = self._state
        access, connect_cache = state.runtime.access, state.runtime.connect_cache
        if state.client.is_barred(state.runtime, state.arrival):
            return None
        anybody = access.users is None
        known = connect_cache.get((state.arrival.kind, block)) if anybody else None
        if known is not None:
            return known
        try:
            head = http1.parse_request(block)
            if access.users is not None:
                user = access.users.recognise(head.headers.get(b"proxy-authorization"))
                if user is None:
                    return None  # hashing a password takes a thread
                state.client.is_user(user)
            decision = state.decide(head, http1.request_framing(head))
        except (ProtocolError, UpstreamError):
            return None
        if not isinstance(decision, Intercept):
            return None
        arrival = replace(state.arrival, connect_target=decision.authority)
        if anybody and len(block) <= _MAX_CONNECT_HEAD:
            if len(connect_cache) >= _MAX_CONNECT_CACHE:
                connect_cache.clear()
            connect_cache[state.arrival.kind, block] = arrival
        return arrival


class AwaitedOrigin:
    """A client that waits for its origin, as the poller sees it (`Pollable`): the descriptor is the origin's.

    The client itself is not watched meanwhile. After a second a thread takes over: that notices when its client leaves.
    """

    timeout = 1.0  # seconds

    def __init__(
        self,
        state: SessionState,
        numbers: RequestNumbers,
        watcher: Watcher,
        answered: Callable[[Answer], Next],
        began: float,
    ) -> None:
        assert state.fetch is not None
        self._state = state
        self._fetch: PolledFetch = state.fetch
        self._numbers = numbers
        self._watcher = watcher
        self._answered = answered
        self._until = began + self.timeout  # however much of a response comes by then

    def fileno(self) -> int:
        """The descriptor of the origin's connection."""
        return self._fetch.fileno()

    def peer_closed(self) -> bool:
        """Never by itself: `answer_at_once` reads what an origin has left behind."""
        return False

    def answer_at_once(self, iteration: float) -> Next:
        """Read what has come, and answer the client once that is all."""
        with self._numbers:
            step = self._fetch.advance()
            if step is Step.WAIT:
                return Next.WAIT if iteration < self._until else Next.NEEDS_THREAD
            self._watcher.forget(self)  # before another request can have the connection
            answer = self._fetch.keep() if step is Step.READY else None
            if answer is None:
                return Next.NEEDS_THREAD
            self._state.fetch = None
        return self._answered(answer)

    def timed_out(self) -> Next:
        """Leave the wait to a thread."""
        return Next.NEEDS_THREAD

    def give_up(self) -> None:
        """Make the session only close the connection."""
        self._state.give_up()
