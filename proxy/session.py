"""One client connection from accept to close.

    read a head → decide once → tunnel, intercept, fetch, built-in page or refusal → log → next request

Interception changes only the stream, which gets TLS, and the arrival; then the loop goes on.

One thread at a time owns the connection, its stream and its `SessionState`:

    state                                   known by            owner
    waits for the first request             not busy            poller; on tls_bind the session thread, which has
                                                                made the handshake
    a known request, or CONNECT, came       not busy            poller, which answers it (`FastPath`)
    a small miss, or a validation, began    fetch               poller, which watches the origin's connection
                                                                (`AwaitedOrigin`); session thread after a second, or
                                                                where the response is not the usual one
    any other bytes came                    not busy            session thread (`Session.run`)
    a head is complete                      busy                session thread
    part of an answer did not fit           unsent              session thread
    waits for the next request              not busy            the thread that answered; the session thread hands
                                                                it to the poller after `_SMALL_ANSWERS` small answers
    CONNECT answered, no bytes inside yet   opening             poller
    TLS handshake inside CONNECT            stream.handshaking  poller for a few iterations, then session thread
    tunnel                                  busy                session thread, which owns the origin's end too
    over                                                        session thread, or the poller: it only closes

An owner hands the connection on as the last thing it does with it. A session thread keeps it where the poller takes no
more connections. Other threads call only `end`, `barred`, `busy` and `silent_since`, and `cancel` of the stream.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Callable, Optional

from monitoring.metrics import Counter
from monitoring.request_number import RequestNumbers
from net.arrival import Arrival
from net.body import IncompleteBody
from net.client_watch import ClientGone, ClientWatch
from net.response import Reply
from net.stream import Stream
from protocol import http1
from protocol.http1 import ProtocolError
from proxy import first_bytes
from proxy.access import Access
from proxy.client_request import LINGER, ClientRequest
from proxy.client_tunnel import ClientTunnel
from proxy.connection_limit import GONE
from proxy.fast_path import FastPath, Watcher
from proxy.look_ahead import LookAhead
from proxy.opening import Opening, Spoken
from proxy.runtime import Runtime
from proxy.session_client import SessionClient
from proxy.session_state import SessionState

_log = logging.getLogger("dduct.session")

_SMALL_ANSWERS = 2  # in succession, before a connection goes to the poller


class Session:
    """Serves one connection. Each request is judged by the `current_runtime()` of its arrival.

    `proved` is called once, when the first request is accepted.
    """

    def __init__(
        self,
        stream: Stream,
        client: str,
        arrival: Arrival,
        current_runtime: Callable[[], Runtime],
        numbers: RequestNumbers,
        watcher: Watcher,
        proved: Callable[[], None] = lambda: None,
        certified: bool = False,
    ) -> None:
        self._stream = stream
        self._numbers = numbers
        self._client = SessionClient(client, certified)
        self._state = SessionState(stream, self._client, arrival, current_runtime, proved)
        self._tunnel = ClientTunnel(self._state)
        self.fast_path = FastPath(self._state, numbers, watcher)  # what the poller watches
        self._small_answers = 0  # in succession
        self._look_ahead = LookAhead(self._state)
        self._may_be_polled = True
        self.watch = ClientWatch(stream.fileno, lambda: stream.encrypted)

    @property
    def silent_since(self) -> Optional[float]:
        """When it began to wait for its client (`time.monotonic()`); None while it answers, GONE once half-closed."""
        if self.watch.half_closed:
            return GONE
        return None if self._state.busy else self._state.waiting_since

    @property
    def busy(self) -> bool:
        """Whether a request is in progress."""
        return self._state.busy

    def barred(self, access: Access) -> Optional[str]:
        """Why this client may not go on; None if it may."""
        return self._tunnel.barred(access)

    def end(self) -> None:
        """End the session from another thread, in any state."""
        self._tunnel.cancel()

    def keep_thread(self) -> None:
        """The poller takes no more connections: from now on a thread waits for this client."""
        self._may_be_polled = False

    def run(self) -> bool:
        """Serve requests until either side ends, then close and return False. Raises nothing but bugs.

        Returns True where the poller should wait for the next bytes: the fast path can probably serve them.
        """
        state, stream = self._state, self._stream
        try:
            if state.unsent:
                stream.send(state.unsent)
                state.unsent, state.busy = memoryview(b""), False
            if stream.handshaking and not state.ending and not state.take_tls_on(stream.finish_tls):
                return False
            while not state.ending and (state.fetch is not None or not state.runtime.draining.is_set()):
                if state.opening is None and not self._serve_one():
                    break
                state.drop_fetch()  # where this request did not want it
                state.busy, state.waiting_since = False, time.monotonic()
                if state.opening is not None:
                    if self._may_be_polled and state.opening.seconds and state.opening.look() is None:
                        return True  # only the poller waits for the client's first bytes
                    if not self._open(state.opening):
                        break
                if self._may_be_polled and self._small_answers >= _SMALL_ANSWERS and not stream.holds_bytes():
                    return True
            stream.close()
        except (OSError, IncompleteBody, ClientGone) as error:
            state.runtime.services.counters.add(Counter.CLIENTS_GONE, isinstance(error, ClientGone))
            _log.debug("%s went away: %s", self._client.address, error)
            stream.close_abruptly()
        except BaseException:
            stream.reset()
            raise
        finally:
            state.drop_fetch()
            self._look_ahead.end()
        return False

    def _serve_one(self) -> bool:
        """Serve one request; returns whether another may follow. Raises OSError when the client is gone."""
        state = self._state
        if self._speaks_otherwise():
            return False
        try:
            block = self._stream.read_head(state.runtime.idle_timeout)
            if not block:
                return False
            if state.fetch is None:  # else the poller's thread has begun with it
                self._numbers.begin()
            state.busy = True
            state.runtime = state.current_runtime()
            if self._answer_again(block):
                self._small_answers += 1
                return True
            head = http1.parse_request(block)
            framing = http1.request_framing(head)
        except ProtocolError as error:
            self._refuse(error)
            return False
        request = ClientRequest(state, self._tunnel, head, framing, self._look_ahead)
        goes_on = request.answer(block)
        self._small_answers = self._small_answers + 1 if request.was_small else 0
        return goes_on

    def _refuse(self, error: ProtocolError) -> None:
        """Answer an invalid message, and close: the start of the next one is unknown."""
        state = self._state
        state.runtime.services.counters.add(Counter.REFUSED)
        host = state.arrival.connect_target
        _log.info("%s - %s %d 0 0.000s %s", self._client.who, "-" if host is None else host, error.status, error)
        Reply(self._stream, None, state.via).error(error.status, str(error))
        self._stream.linger(LINGER)

    def _speaks_otherwise(self) -> bool:
        """Whether the received bytes cannot be HTTP/1; answers the client if so."""
        start = self._stream.start_of_buffer(first_bytes.ENOUGH)
        plain = not self._stream.encrypted
        if not start or (start[:1].isalpha() and not start.startswith(b"PRI")):
            return False
        wrong = first_bytes.wrong_on_plain(start) if plain else first_bytes.wrong_inside(start)
        if wrong is None:
            return False
        self._state.runtime.services.counters.add(Counter.WRONG_PROTOCOL)
        self._client.log_repeated(self._state.runtime.repeated, "protocol", wrong.line)
        self._stream.send(wrong.data)
        self._stream.linger(LINGER)
        return True

    def _answer_again(self, block: bytes) -> bool:
        """Answer a request from the memory cache, without parsing it; returns whether it was known."""
        state = self._state
        answer = state.answer(state.runtime.plain_requests.known(block, state.arrival))
        if answer is None:
            return False
        started = time.monotonic()
        try:
            self._stream.send(answer.data)
        finally:
            self._state.note(answer, time.monotonic() - started)
        return True

    def _open(self, opening: Opening) -> bool:
        """Go on after a CONNECT by the client's first bytes; returns whether requests follow."""
        state = self._state
        spoken = opening.wait()
        state.opening = None
        if spoken is Spoken.TLS:
            state.arrival = opening.named_arrival()
            context = state.runtime.leaf_certificates.context(opening.host)
            return state.take_tls_on(partial(self._stream.start_tls, context))
        if spoken is Spoken.OTHER or (spoken is Spoken.NOTHING and opening.may_be_silent):
            self._tunnel.pass_through(opening.authority, spoken)
        return False
