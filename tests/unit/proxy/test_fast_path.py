"""What the poller's thread answers, and what it leaves to a session thread, with all its bytes."""

from __future__ import annotations

import select
import socket
import threading
from types import SimpleNamespace
from typing import Dict, Iterator, List, Optional, Tuple, cast

import pytest
from support.pairs import TIMEOUT, Pairs, server_context

from fetching.naming import Naming, Parameters
from fetching.small_hit import Answer
from monitoring import request_number
from monitoring.request_number import Number, RequestNumbers
from net.addresses import Reach
from net.arrival import Arrival
from net.poller import Next
from net.stream import Stream
from protocol.http1 import Authority
from proxy.access import Access
from proxy.fast_path import FastPath, Watcher
from proxy.routing import Hosts, Rules
from proxy.runtime import Runtime
from proxy.session_client import SessionClient
from proxy.session_state import SessionState

ADDRESS = "192.0.2.1"
ARRIVAL = Arrival(Authority("192.0.2.2", 3128), Reach.NOTHING)
GET = b"GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n"
OTHER = b"GET http://a.example/other HTTP/1.1\r\nHost: a.example\r\n\r\n"
CONNECT = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"
ITERATION = 7.0
RULES = Rules(Hosts([]), Hosts([]), Naming((), Parameters(())))


class Known:
    """The three memories of a runtime: they know what they are told."""

    def __init__(self) -> None:
        self.answers: Dict[bytes, Answer] = {}
        self.contexts: Dict[str, object] = {}
        self.iterations: List[float] = []

    def known(self, block: bytes, arrival: Arrival) -> Optional[bytes]:
        return None

    def read(self, block: bytes, arrival: Arrival) -> Optional[bytes]:
        assert arrival is ARRIVAL
        return block if block in self.answers else None

    def answer(self, request: bytes, iteration: Optional[float]) -> Optional[Answer]:
        assert iteration is not None
        self.iterations.append(iteration)
        return self.answers[request]

    def get_cached(self, host: str) -> object:
        return self.contexts.get(host)

    def know(self, request: bytes, data: bytes) -> None:
        self.answers[request] = Answer(data, len(data), "http://a.example/x", "hit", "x", guessed=False)


class Path:
    """A fast path, its state, and the client's end of the connection."""

    def __init__(self, stream: Stream, far: socket.socket) -> None:
        self.known, self.far, self.proved = Known(), far, 0
        self.draining = threading.Event()
        self.numbers: List[Optional[Number]] = []  # of the requests that are counted
        counters = SimpleNamespace(add=lambda *_: self.numbers.append(request_number.current()))
        self.connect_cache: Dict[Tuple[str, bytes], Arrival] = {}
        runtime = SimpleNamespace(
            services=SimpleNamespace(via=b"1.1 dduct", counters=counters),
            access=cast(Access, SimpleNamespace(clients={ADDRESS}, certificates=False, users=None)),
            rules=RULES,
            memory_cache=self.known,
            plain_requests=self.known,
            leaf_certificates=self.known,
            connect_cache=self.connect_cache,
            idle_timeout=60.0,
            draining=self.draining,
            repeated=SimpleNamespace(write=lambda *_: None),
        )
        client = SessionClient(ADDRESS, certified=False)
        self.state = SessionState(stream, client, ARRIVAL, lambda: cast(Runtime, runtime), self._prove)
        self.state.waiting_since = 1.0
        self.fast = FastPath(self.state, RequestNumbers(17), cast(Watcher, None))

    def _prove(self) -> None:
        self.proved += 1

    def say(self, data: bytes) -> Next:
        """What is next after the client has sent `data`."""
        self.far.sendall(data)
        return self.poll()

    def poll(self) -> Next:
        """What is next after the event for which the poller would have waited."""
        assert select.select([self.fast], [], [], TIMEOUT)[0]
        return self.fast.answer_at_once(ITERATION)


@pytest.fixture
def path() -> Iterator[Path]:
    with Pairs() as pairs:
        yield Path(*pairs.plain())


def test_a_known_request_is_answered_and_the_client_waited_for(path: Path) -> None:
    path.known.know(GET, b"answer")
    for _ in range(2):
        assert path.say(GET) is Next.WAIT
        assert path.far.recv(100) == b"answer"
    assert path.proved == 1
    assert (path.numbers, request_number.current()) == ([(17, 1), (17, 2)], None)
    assert (path.state.busy, path.state.waiting_since) == (False, ITERATION)
    assert not path.state.stream.buffered


def test_pipelined_requests_are_answered_in_order(path: Path) -> None:
    path.known.know(GET, b"answer")
    path.known.know(OTHER, b"another")
    assert path.say(GET + OTHER + GET) is Next.WAIT
    assert path.far.recv(100) == b"answeranotheranswer"
    # What has come after the start of the iteration is validated again.
    assert path.known.iterations[0] == ITERATION and ITERATION not in path.known.iterations[1:]


def test_pipelined_requests_take_a_thread_from_the_first_that_needs_one(path: Path) -> None:
    path.known.know(GET, b"answer")
    assert path.say(GET + OTHER + GET) is Next.NEEDS_THREAD
    assert path.far.recv(100) == b"answer"
    assert path.state.stream.peek() == OTHER + GET


def test_a_client_that_pipelines_without_end_does_not_keep_the_poller(path: Path) -> None:
    path.known.know(GET, b"answer")
    assert path.say(17 * GET) is Next.NEEDS_THREAD
    assert path.far.recv(200) == 16 * b"answer"
    assert path.state.stream.peek() == GET


@pytest.mark.parametrize("data", [GET, GET[:-1], CONNECT[:-1], b"\x16\x03\x01"])
def test_an_unknown_request_takes_a_thread_and_keeps_its_bytes(path: Path, data: bytes) -> None:
    assert path.say(data) is Next.NEEDS_THREAD
    assert path.state.stream.peek() == data
    assert path.proved == 0


def test_the_rest_of_an_answer_is_left_to_a_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.known.know(GET, b"answer")
    sent: List[bytes] = []

    def send_some(view: memoryview) -> int:
        sent.append(bytes(view))
        return 2

    monkeypatch.setattr(path.state.stream, "send_nowait", send_some)
    assert path.say(GET) is Next.NEEDS_THREAD
    assert sent == [b"answer"]
    assert (path.state.busy, bytes(path.state.unsent)) == (True, b"swer")
    path.fast.give_up()
    assert (path.state.ending, bytes(path.state.unsent)) == (True, b"")


def test_a_client_that_has_ended_is_closed_without_a_thread(path: Path) -> None:
    path.far.shutdown(socket.SHUT_WR)
    assert path.poll() is Next.CLOSE
    assert path.fast.peer_closed()


def test_a_stop_leaves_requests_to_threads_which_close(path: Path) -> None:
    path.known.know(GET, b"answer")
    path.draining.set()
    assert path.say(GET) is Next.NEEDS_THREAD


def test_connect_to_a_host_with_a_cached_leaf_is_answered_and_its_first_bytes_waited_for(path: Path) -> None:
    inside = Authority("a.example", 443)
    path.connect_cache[ARRIVAL.kind, CONNECT] = Arrival(ARRIVAL.local, ARRIVAL.reach, connect_target=inside)
    assert path.say(CONNECT) is Next.NEEDS_THREAD  # no leaf
    path.known.contexts[inside.host] = server_context()
    assert path.fast.answer_at_once(ITERATION) is Next.WAIT
    assert path.far.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert path.proved == 1
    opening = path.state.opening
    assert opening is not None and opening.authority == inside
    assert path.fast.timed_out() is Next.CLOSE  # on port 443 the client speaks first
    assert path.fast.answer_at_once(ITERATION) is Next.WAIT
    assert path.say(b"\x16\x03\x01") is Next.WAIT  # the handshake has begun
    assert (path.state.opening, path.state.stream.handshaking) == (None, True)
    assert path.state.arrival.connect_target == inside


def test_another_protocol_inside_connect_takes_a_thread(path: Path) -> None:
    inside = Authority("a.example", 22)
    path.connect_cache[ARRIVAL.kind, CONNECT] = Arrival(ARRIVAL.local, ARRIVAL.reach, connect_target=inside)
    path.known.contexts[inside.host] = server_context()
    assert path.say(CONNECT) is Next.WAIT
    assert path.fast.timed_out() is Next.NEEDS_THREAD  # its client may wait for the server's first bytes
    assert path.say(b"SSH-2.0-x\r\n") is Next.NEEDS_THREAD
    assert path.state.stream.peek() == b"SSH-2.0-x\r\n"


def test_a_handshake_that_is_not_complete_after_three_poll_iterations_takes_a_thread(path: Path) -> None:
    inside = Authority("a.example", 443)
    path.connect_cache[ARRIVAL.kind, CONNECT] = Arrival(ARRIVAL.local, ARRIVAL.reach, connect_target=inside)
    path.known.contexts[inside.host] = server_context()
    assert path.say(CONNECT) is Next.WAIT
    steps = [path.say(bytes([byte])) for byte in b"\x16\x03\x01"]
    assert steps[-1] is Next.NEEDS_THREAD and path.state.stream.handshaking
