"""What a session's own thread and the poller's thread share of one client connection."""

from __future__ import annotations

import logging
import time
from typing import Callable, Optional

from fetching.small_hit import Answer, PlainRequest
from monitoring.metrics import Counter
from net.arrival import Arrival
from net.stream import Stream
from protocol.http1 import BodyFraming, Framing, ProtocolError, RequestHead
from proxy import routing
from proxy.opening import Opening
from proxy.other_requests import other_request
from proxy.runtime import Runtime
from proxy.session_client import SessionClient
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
        self.via = self.runtime.services.via
        self.waiting_since = time.monotonic()  # since when it waits for the client; valid unless busy
        self.busy = False  # from the head of a request to the last byte of its response
        self.unsent = memoryview(b"")  # rest of an answer of the poller's thread, for the session's to send
        self.ending = False  # the owner only closes the connection
        self.opening: Optional[Opening] = None  # from a CONNECT to the client's first bytes
        self._proved: Optional[Callable[[], None]] = proved

    def give_up(self) -> None:
        """Make the session close the connection at once; unsent bytes are dropped."""
        self.ending, self.unsent = True, memoryview(b"")

    def prove(self) -> None:
        """Report the first accepted request."""
        proved, self._proved = self._proved, None
        if proved is not None:
            proved()

    def answer(self, request: Optional[PlainRequest], iteration: Optional[float] = None) -> Optional[Answer]:
        """The answer to a request, if that takes no waiting and this client may have it.

        `iteration`: that of the poller's thread, None in a session thread.
        """
        if request is None or not self._may_ask():
            return None
        answer = self.runtime.memory_cache.answer(request, iteration)
        return None if answer is None or (answer.guessed and self._asks_again(answer)) else answer

    def answer_other(self, block: bytes, iteration: float) -> Optional[Answer]:
        """The answer of the poller's thread to a request that is not plain, and whose head is `block`; see `answer`."""
        if not self._may_ask():
            return None
        runtime = self.runtime
        request = other_request(block, self.arrival, runtime.rules, runtime.services)
        if request is None:
            return None
        answer = runtime.memory_cache.answer_other(request, iteration)
        return None if answer is None or (answer.guessed and self._asks_again(answer)) else answer

    def _may_ask(self) -> bool:
        """Whether the client may have an answer without a decision on its request."""
        runtime = self.runtime
        if self.client.is_barred(runtime, self.arrival):
            return False
        return runtime.access.users is None or self.arrival.connect_target is not None

    def _asks_again(self, answer: Answer) -> bool:
        """Whether the client has just had the same, and perhaps found it outdated."""
        return self.runtime.services.deliveries.asks_again(self.client.asker, answer.name)

    def note(self, answer: Answer, seconds: float) -> None:
        """Count and log a request that a known answer has served in `seconds`."""
        if self._proved is not None:
            self.prove()
        services = self.runtime.services
        services.counters.add(Counter.HITS)
        if answer.guessed:
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
