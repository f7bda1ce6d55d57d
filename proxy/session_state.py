"""What a session's own thread and the poller's thread share of one client connection."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Callable, Optional

from fetching.filler import Services
from fetching.naming import Name
from fetching.polled_fetch import PolledFetch
from fetching.small_hit import Answer, PlainRequest
from net.arrival import Arrival
from net.stream import Stream
from protocol.http1 import BodyFraming, Framing, ProtocolError, RequestHead
from proxy import routing
from proxy.opening import Opening
from proxy.other_requests import other_request
from proxy.runtime import Runtime
from proxy.session_client import SessionClient
from storage.record import Unstorable
from upstream.dialling import UpstreamError

_log = logging.getLogger("dduct.session")


class SessionState:
    """The state of one client connection, and what both threads ask of it.

    It has no lock: one thread at a time owns the connection (the table in proxy/session.py). Other threads only read.
    """

    def __init__(
        self,
        stream: Stream,
        client: SessionClient,
        arrival: Arrival,
        current_runtime: Callable[[], Runtime],
        proved: Callable[[], None],
    ) -> None:
        self.stream = stream
        self.client = client
        self.arrival = arrival
        self.current_runtime = current_runtime
        self.runtime = current_runtime()  # of the arrival of the current request
        self.waiting_since = time.monotonic()  # since when it waits for the client; valid unless busy
        self.busy = False  # from the head of a request to the last byte of its response
        self.unsent = memoryview(b"")  # rest of an answer of the poller's thread, for the session's to send
        self.ending = False  # the owner only closes the connection
        self.fetch: Optional[PolledFetch] = None  # a miss that the poller's thread has begun
        self.opening: Optional[Opening] = None  # from a CONNECT to the client's first bytes
        self._proved: Optional[Callable[[], None]] = proved

    @property
    def via(self) -> bytes:
        """dduct's own entry in Via."""
        return self.runtime.services.via

    def give_up(self) -> None:
        """In the poller's thread, make the session close the connection at once; what it waits for is dropped."""
        self.ending, self.unsent = True, memoryview(b"")
        if self.fetch is not None:
            with contextlib.suppress(Unstorable):  # then the session drops it
                self.runtime.services.cache.disk.poll(self.drop_fetch)

    def prove(self) -> None:
        """Report the first accepted request."""
        proved, self._proved = self._proved, None
        if proved is not None:
            proved()

    def answer(self, request: Optional[PlainRequest], iteration: Optional[float] = None) -> Optional[Answer]:
        """The answer to a request, if that takes no waiting and this client may have it.

        `iteration`: that of the poller's thread, None in a session thread.
        """
        if request is None or not self.may_ask():
            return None
        answer = self.runtime.memory_cache.answer(request, iteration)
        return None if answer is None or (answer.guessed and self._asks_again(answer)) else answer

    def answer_other(self, block: bytes, iteration: float) -> Optional[Answer]:
        """The answer of the poller's thread to a request that is not plain, and whose head is `block`; see `answer`."""
        if not self.may_ask():
            return None
        runtime = self.runtime
        request = other_request(block, self.arrival, runtime.rules, runtime.services)
        if request is None:
            return None
        answer = runtime.memory_cache.answer_other(request, iteration)
        return None if answer is None or (answer.guessed and self._asks_again(answer)) else answer

    def _asks_again(self, answer: Answer) -> bool:
        """Whether the client has just had the same, and perhaps found it outdated."""
        deliveries = self.runtime.services.deliveries
        return answer.may_be_doubted and deliveries.asks_again(self.client.asker, answer.name)

    def may_ask(self) -> bool:
        """Whether this client may ask for anything, as far as its connection shows."""
        runtime = self.runtime
        needs_password = runtime.access.users is not None and self.arrival.connect_target is None
        return not (needs_password or self.client.is_barred(runtime, self.arrival))

    def take_fetch(self, services: Services, name: Name) -> Optional[PolledFetch]:
        """The miss that the poller's thread has begun, if it is of this name; the caller takes it over."""
        fetch = self.fetch
        if fetch is None or not fetch.serves(services, name):
            self.drop_fetch()
            return None
        self.fetch = None
        return fetch

    def drop_fetch(self) -> None:
        """Give up the miss that the poller's thread has begun, if there is one."""
        fetch, self.fetch = self.fetch, None
        if fetch is not None:
            fetch.give_up()

    def note(self, answer: Answer, seconds: float) -> None:
        """Count and log a request that a known answer has served in `seconds`."""
        if self._proved is not None:
            self.prove()
        services = self.runtime.services
        services.counters.add(answer.counter)
        if answer.guessed and answer.delivers:
            services.deliveries.note(self.client.asker, answer.name)
        if _log.isEnabledFor(logging.INFO):
            what = self.client.who, answer.method, answer.url, answer.status, answer.length, seconds, answer.note
            _log.info("%s %s %s %d %d %.3fs %s", *what)

    def decide(self, head: RequestHead, framing: BodyFraming) -> routing.Decision:
        """The decision on a request. Raises ProtocolError, and UpstreamError(508) on a loop through dduct."""
        if self.via.split()[1] in b" ".join(head.headers.get_all(b"via")).split():
            raise UpstreamError("this request has come back to dduct", 508)
        expectation = head.headers.get(b"expect")
        if expectation is not None and expectation.lower() != b"100-continue":
            raise ProtocolError("an expectation other than 100-continue", 417)
        if head.method in (b"CONNECT", b"TRACE") and framing.kind is not Framing.NONE:
            raise ProtocolError(f"{head.method.decode()} with a body")  # RFC 9110 §9.3.6, §9.3.8
        if self.client.is_barred(self.runtime, self.arrival):
            self.ending = True
            return routing.Refuse(403, self.client.why_barred or "")
        decision = routing.decide(head, self.arrival, self.runtime.rules)
        return self.client.authenticated(head, decision, self.runtime, self.arrival)

    def take_tls_on(self, step: Callable[[], object]) -> bool:
        """Take a step of the handshake inside a CONNECT; False where it failed."""
        try:
            step()
        except OSError as error:
            target = self.arrival.connect_target
            key = f"tls {self.client.address} {target}"
            message = "%s makes no TLS connection with us as %s: %s"
            self.runtime.repeated.write(logging.INFO, key, message, self.client.who, target, error)
            self.give_up()
            return False
        return True
