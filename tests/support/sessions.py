"""What surrounds one client connection, without a dduct: a runtime of fakes, and origins that the test plays."""

from __future__ import annotations

import queue
import socket
import threading
from types import SimpleNamespace
from typing import Callable, List, Optional, Set, Tuple, cast

from fetching.naming import Naming, Parameters
from monitoring.metrics import Counter
from net.addresses import Reach
from net.arrival import Arrival
from net.stream import Stream
from protocol.http1 import Authority
from protocol.request_fields import DEFAULT
from proxy.client_tunnel import ClientTunnel
from proxy.routing import Hosts, Rules
from proxy.runtime import Runtime
from proxy.session_client import SessionClient
from proxy.session_state import SessionState
from storage.shared_table import SharedTable
from support.pairs import TIMEOUT, Pairs, server_context
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange
from upstream.public_tokens import PublicTokens
from upstream.request import Request

ADDRESS = "192.0.2.1"
ARRIVAL = Arrival(Authority("192.0.2.2", 3128), Reach.NOTHING)
LISTED = "listed.example"


class FakeOrigins:
    """Dials pairs of sockets, whose far ends are in `far`; answers requests by `answer`."""

    def __init__(self, pairs: Pairs) -> None:
        self.far: queue.Queue[socket.socket] = queue.Queue()
        self.dialled: List[Tuple[Authority, Reach]] = []
        self.hung_up: List[bool] = []  # of each tunnel that has ended, whether it was broken
        self.error: Optional[UpstreamError] = None  # in place of every connection and answer
        self.answer: Callable[[Request], Exchange]
        self._pairs = pairs

    def dial(self, authority: Authority, reach: Reach) -> Stream:
        """See Origins.dial."""
        self.dialled.append((authority, reach))
        if self.error is not None:
            raise self.error
        stream, far = self._pairs.plain()
        self.far.put(far)
        return stream

    def hang_up(self, stream: Stream, broken: bool = False) -> None:
        """See Origins.hang_up."""
        self.hung_up.append(broken)
        (stream.reset if broken else stream.close)()

    def exchange(self, request: Request) -> Exchange:
        """See Origins.exchange."""
        if self.error is not None:
            raise self.error
        return self.answer(request)


class Surroundings:
    """A client connection with all that its requests touch; `far` is the client's end."""

    def __init__(self, pairs: Pairs, arrival: Arrival = ARRIVAL) -> None:
        self.stream, self.far = pairs.plain()
        self.origins = FakeOrigins(pairs)
        self.counted: List[Counter] = []
        self.leaves: List[str] = []  # hosts for which a leaf was minted
        self.remembered: List[bytes] = []  # requests whose answer the memory cache got
        self.clients: Set[str] = {ADDRESS}
        self.proved = 0
        services = SimpleNamespace(
            via=b"1.1 dduct",
            counters=SimpleNamespace(add=lambda counter, _=1: self.counted.append(counter)),
            origins=self.origins,
            invalidate=lambda *_: None,
            public_tokens=PublicTokens(SharedTable(64)),
            names=DEFAULT,
        )
        runtime = SimpleNamespace(
            services=services,
            access=SimpleNamespace(clients=self.clients, certificates=False, users=None),
            credentials=SimpleNamespace(use=lambda *_: None),
            rules=Rules(Hosts([LISTED]), Hosts(["proxy.example"]), Naming((), Parameters(()))),
            leaf_certificates=SimpleNamespace(context=self._mint),
            memory_cache=SimpleNamespace(remember=lambda _, block, *__: self.remembered.append(block)),
            about=None,
            idle_timeout=TIMEOUT,
            draining=threading.Event(),
            repeated=SimpleNamespace(write=lambda *_: None),
        )
        self.runtime = cast(Runtime, runtime)
        client = SessionClient(ADDRESS, certified=False)
        self.state = SessionState(self.stream, client, arrival, lambda: self.runtime, self._prove)
        self.tunnel = ClientTunnel(self.state)

    def _prove(self) -> None:
        self.proved += 1

    def _mint(self, host: str) -> object:
        self.leaves.append(host)
        return server_context()

    def read(self, end: bytes = b"\r\n\r\n") -> bytes:
        """What the client gets, up to `end`."""
        return read_until(self.far, end)


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """The bytes up to `end`, or to the end of the stream."""
    data = b""
    while not data.endswith(end):
        piece = sock.recv(1)
        if not piece:
            break
        data += piece
    return data


def is_reset(sock: socket.socket) -> bool:
    """Whether the peer has reset the connection; waits for its end."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        return True
    return False
