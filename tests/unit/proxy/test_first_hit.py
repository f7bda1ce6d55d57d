"""What the first hit of a small object may cost the poller's thread: the table "First hits" in ARCHITECTURE."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, List, Tuple, cast

import pytest
from support.fetching import Around
from support.pairs import HOST, Pairs

from fetching.memory_cache import MemoryCache
from fetching.naming import Naming, Parameters
from fetching.small_hit import SMALL
from monitoring.request_number import RequestNumbers
from net.addresses import Reach
from net.arrival import Arrival
from net.poller import Next
from protocol.http1 import Authority
from proxy.fast_path import FastPath, Watcher
from proxy.plain_requests import PlainRequests
from proxy.routing import Hosts, Rules
from proxy.runtime import Runtime
from proxy.session_client import SessionClient
from proxy.session_state import SessionState
from server import config
from server.joined_patterns import joined
from storage.disk_watch import DiskWatch
from storage.record import Metadata
from storage.store import Key

BODY = b"x" * 4096
ARRIVAL = Arrival(Authority("192.0.2.2", 3128), Reach.NOTHING, encrypted=True, connect_target=Authority(HOST, 443))
FIELDS = (("Date", "Tue, 01 Dec 2026 04:30:00 GMT"), ("ETag", '"1"'), ("Cache-Control", "public, max-age=86400"))
FIRST_HIT = ["_SSLSocket.read", "open", "fstat", "getxattr", "preadv", "close", "_SSLSocket.write"]
MOST_CALLS = 70  # of Python functions
_SYSTEM = ("posix", "_socket", "_ssl", "select")
_FREE = ("_SSLSocket.pending", "fspath")  # no system calls


class Calls:
    """The calls of this thread: `system` ones in their order, and `functions` in Python, by name."""

    def __init__(self) -> None:
        self.system: List[str] = []
        self.functions: Counter[str] = Counter()

    def __enter__(self) -> Calls:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            self.functions[frame.f_code.co_name] += 1
        elif event == "c_call":
            module = argument.__module__ or type(argument.__self__).__module__
            if module in _SYSTEM and argument.__qualname__ not in _FREE:
                self.system.append(argument.__qualname__)


class Poller:
    """A fast path over TLS with a real cache behind it, and its client."""

    def __init__(self, directory: Path, pairs: Pairs) -> None:
        self.around = Around(directory)
        defaults = config.defaults(directory)
        naming = Naming(
            defaults.proxy.filters, Parameters(defaults.cache.ignore_query), joined(defaults.cache.volatile)
        )
        rules, services = Rules(Hosts([HOST]), Hosts([]), naming), self.around.services
        # The kernel is asked for its figure every 5 ms at most, however many requests there are.
        services.cache.disk = DiskWatch(run_delay=lambda: 0.0)
        runtime = SimpleNamespace(
            services=services,
            access=SimpleNamespace(clients={"192.0.2.1"}, certificates=False, users=None),
            rules=rules,
            memory_cache=MemoryCache(services),
            plain_requests=PlainRequests(rules, services.names, services.via),
            idle_timeout=60.0,
            draining=threading.Event(),
        )
        stream, self.far = pairs.tls()
        client = SessionClient("192.0.2.1", certified=False)
        state = SessionState(stream, client, ARRIVAL, lambda: cast(Runtime, runtime), lambda: None)
        self.fast = FastPath(state, RequestNumbers(1), cast(Watcher, None))

    def put(self, path: str) -> None:
        """Store an object."""
        self.around.put(BODY, Metadata(f"https://{HOST}{path}", FIELDS, time.time()), Key(f"https/{HOST}{path}"))

    def ask(self, path: str, field: str = "", method: str = "GET") -> Tuple[Calls, Next]:
        """What it takes to answer this request."""
        self.far.sendall(f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: x\r\n{field}\r\n".encode())
        with Calls() as calls:
            following = self.fast.answer_at_once(time.monotonic())
        received = b""
        while following is Next.WAIT and b"\r\n\r\n" not in received:
            received += self.far.recv(2 * SMALL)
        return calls, following


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Poller]:
    with Pairs() as pairs:
        yield Poller(tmp_path, pairs)


def test_a_first_hit_takes_so_many_system_calls_and_functions(path: Poller) -> None:
    for name in ("/known.deb", "/first.deb", "/second.deb"):
        path.put(name)
    path.ask("/known.deb")  # the client's fields are known now
    for name in ("/first.deb", "/second.deb"):
        calls, following = path.ask(name)
        assert following is Next.WAIT and calls.system == FIRST_HIT
        assert sum(calls.functions.values()) <= MOST_CALLS, calls.functions.most_common()


def test_a_hit_from_memory_takes_one_stat(path: Poller) -> None:
    path.put("/x.deb")
    for _ in range(2):
        path.ask("/x.deb")
    calls, following = path.ask("/x.deb")
    assert following is Next.WAIT and calls.system == ["_SSLSocket.read", "stat", "_SSLSocket.write"]


def test_a_head_or_a_range_takes_no_more_system_calls(path: Poller) -> None:
    path.put("/x.deb")
    for method, field, without in (("HEAD", "", "preadv"), ("GET", "Range: bytes=1-9\r\n", "")):
        calls, following = path.ask("/x.deb", field, method)
        assert following is Next.WAIT
        assert calls.system == [one for one in FIRST_HIT if one != without]
