"""Several addresses of one name, and origins that do not answer."""

from __future__ import annotations

import socket
import time
from typing import Any, Callable, List, Tuple

import pytest
from support.origin import Asked, Connection, Files, Gate, Origin, deaf
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter
from storage.shared_table import SharedTable
from upstream import connecting, dialling, reachability
from upstream.connecting import Candidate, connect_first, in_order
from upstream.dialling import Parent
from upstream.reachability import Outages, WorkingAddresses

Build = Callable[..., RunningDduct]
BODY = b"body" * 100
V4, V6 = socket.AF_INET, socket.AF_INET6


def candidate(host: str, port: int = 80) -> Candidate:
    if ":" in host:
        return Candidate(V6, socket.SOCK_STREAM, 6, "", (host, port, 0, 0))
    return Candidate(V4, socket.SOCK_STREAM, 6, "", (host, port))


# --- the order --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "worked", "order"),
    [
        (["::1", "::2", "1.1.1.1", "2.2.2.2"], None, ["::1", "1.1.1.1", "::2", "2.2.2.2"]),
        (["1.1.1.1", "2.2.2.2", "::1"], None, ["1.1.1.1", "::1", "2.2.2.2"]),
        (["::1", "::2", "1.1.1.1", "2.2.2.2"], "2.2.2.2", ["2.2.2.2", "::1", "1.1.1.1", "::2"]),
        (["::1", "1.1.1.1"], "3.3.3.3", ["::1", "1.1.1.1"]),  # it is none of this name's any more
        (["1.1.1.1", "1.1.1.1"], None, ["1.1.1.1"]),
        ([], None, []),
    ],
)
def test_addresses_that_worked_come_first_and_families_alternate(
    found: List[str], worked: Any, order: List[str]
) -> None:
    assert [one.host for one in in_order(map(candidate, found), worked)] == order


def test_the_number_of_addresses_tried_is_limited() -> None:
    found = [candidate(f"10.0.0.{number}") for number in range(200)]
    assert len(in_order(found)) == connecting.MAX_ATTEMPTS


# --- attempts ---------------------------------------------------------------------------------------


def test_a_silent_address_does_not_delay_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.01)
    with deaf() as port, socket.create_server(("127.0.0.2", port)):
        sock, winner = connect_first([candidate(HOST, port), candidate("127.0.0.2", port)], time.monotonic() + 20)
        with sock:
            assert winner.host == "127.0.0.2" and sock.getpeername()[0] == "127.0.0.2"


def test_an_earlier_attempt_that_answers_first_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new attempt does not end the earlier ones."""
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.0)
    with deaf("127.0.0.3") as port, socket.create_server(("127.0.0.2", port)), deaf("127.0.0.4", port):
        order = [candidate(f"127.0.0.{number}", port) for number in (3, 2, 4)]
        sock, winner = connect_first(order, time.monotonic() + 20)
        sock.close()
        assert winner.host == "127.0.0.2"


def test_a_refusal_is_followed_by_the_next_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 1e6)
    with socket.create_server(("127.0.0.2", 0)) as listener:
        port = listener.getsockname()[1]
        sock, winner = connect_first([candidate(HOST, port), candidate("127.0.0.2", port)], time.monotonic() + 20)
        sock.close()
        assert winner.host == "127.0.0.2"


def test_an_unreachable_address_is_followed_by_the_next_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 1e6)
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        nowhere = Candidate(V6, socket.SOCK_STREAM, 6, "", ("fe80::1", port, 0, 0))  # link-local without a link
        sock, winner = connect_first([nowhere, candidate(HOST, port)], time.monotonic() + 20)
        sock.close()
        assert winner.host == HOST


def test_all_refusals_are_an_error_and_all_silence_is_a_timeout() -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        with pytest.raises(ConnectionRefusedError):
            connect_first([candidate(HOST, free.getsockname()[1])], time.monotonic() + 20)
    with deaf() as port, pytest.raises(socket.timeout):
        connect_first([candidate(HOST, port)], 0.0)
    with pytest.raises(OSError, match="no address"):
        connect_first([], 0.0)


# --- what is remembered -----------------------------------------------------------------------------


def test_an_address_that_has_worked_is_remembered_for_a_while() -> None:
    now = [0.0]
    working = WorkingAddresses(lambda: now[0])
    working.worked("a", "1.1.1.1")
    now[0] = 599.0
    assert working.get("a") == "1.1.1.1" and working.get("b") is None
    now[0] = 601.0
    assert working.get("a") is None
    working.worked("a", "2.2.2.2")
    working.forget("a")
    assert working.get("a") is None


def test_after_a_failure_requests_fail_at_once_until_one_retries() -> None:
    now = [0.0]
    outages = Outages(3.0, SharedTable(64), "x", lambda: now[0])
    assert outages.wait(("a",)) == 0.0
    assert outages.failed(("a",), 0.0) == 5.0  # which is news
    assert outages.wait(("a",)) == 5.0 and outages.wait(("b",)) == 0.0
    now[0] = 5.0
    assert [outages.wait(("a",)) for _ in range(3)] == [0.0, 3.0, 3.0]
    now[0] = 8.0  # the request that tried has no result yet
    assert [outages.wait(("a",)) for _ in range(2)] == [0.0, 3.0]
    assert outages.failed(("a",), 8.0) == 0.0  # no news
    assert outages.wait(("a",)) == 10.0  # and never longer
    now[0] = 18.0
    assert outages.wait(("a",)) == 0.0
    assert outages.worked(("a",)) and not outages.worked(("a",))
    assert [outages.wait(("a",)) for _ in range(2)] == [0.0, 0.0]


def test_a_late_failure_does_not_hide_a_recovery() -> None:
    now = [0.0]
    outages = Outages(3.0, SharedTable(64), "x", lambda: now[0])
    outages.failed(("a",), 0.0)
    now[0] = 10.0
    outages.worked(("a",))
    now[0] = 12.0
    assert outages.failed(("a",), 9.0) == 0.0  # of a request from before
    assert outages.wait(("a",)) == 0.0


def test_the_number_of_remembered_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "_MAX_NAMES", 10)
    outages, working = Outages(3.0, SharedTable(64), "x"), WorkingAddresses()
    for name in range(50):
        outages.failed((name,), 0.0)
        working.worked(name, "x")
    assert len(outages._states) == len(working._worked) == 10


# --- end to end -------------------------------------------------------------------------------------


def several(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Have `several.test` mean these addresses, in this order."""
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        if host != "several.test":
            return real(host, port, *rest, **more)
        return [tuple(candidate(one, port)) for one in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.one_process
@pytest.mark.parametrize("way", ["kept", "relayed", "tunnel", "parent"])
def test_a_dead_address_delays_only_the_first_connection(
    start_dduct: Build, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.01)
    several(monkeypatch, "127.0.0.3", HOST)
    begun: List[str] = []
    real = connecting._begin

    def begin(one: Candidate) -> socket.socket:
        begun.append(one.host)
        return real(one)

    monkeypatch.setattr(connecting, "_begin", begin)

    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [("Connection", "close")], BODY if asked.method == "GET" else b"")
        connection.over = True

    with Origin(handler) as origin, deaf("127.0.0.3", origin.port):
        parent = Parent("several.test", origin.port) if way == "parent" else None
        dduct = start_dduct(upstream_proxy=parent, connect_timeout=60.0, upstream_timeout=60.0, relay_timeout=60.0)
        url = f"http://{'far.test' if way == 'parent' else 'several.test'}:{origin.port}"
        for number in range(2):
            with dduct.client() as client:
                if way == "tunnel":
                    assert client.connect(f"several.test:{origin.port}").status == 200
                else:
                    path = f"/{number}.deb" if way == "kept" else "/page"
                    assert client.get(url + path, "x").body == BODY
        assert begun == ["127.0.0.3", HOST, HOST]


@pytest.mark.one_process
def test_an_origin_that_cannot_be_reached_is_not_waited_for_again(start_dduct: Build) -> None:
    dduct = start_dduct(connect_timeout=0.05)
    with deaf() as port:
        url = f"http://{HOST}:{port}/page"
        with dduct.client() as client:
            assert client.get(url, "x").status == 504
            again = client.get(url, "x")
            assert again.status == 504 and b"tried again in" in again.body
        with dduct.client() as client:
            assert client.connect(f"localhost:{port}").status in (502, 504)
    assert dduct.counters.value(Counter.OUTAGES) >= 1
    assert dduct.counters.value(Counter.FAST_FAILURES) == 1


def hanging(gate: Gate, hangs: List[bool]) -> Callable[[Asked, Connection], None]:
    """Static objects; while `hangs` says so, nothing."""
    files = Files({"/x.deb": BODY, "/y.deb": BODY}, [("Cache-Control", "max-age=0")])

    def handler(asked: Asked, connection: Connection) -> None:
        if hangs[0]:
            gate.wait()
            connection.over = True
        else:
            files(asked, connection)

    return handler


@pytest.mark.one_process
def test_a_stale_object_does_not_wait_for_an_origin_that_hangs(
    start_dduct: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the first have the stale object at once; when the origin is back, all have what is new."""
    now = [1000.0]
    dduct = start_dduct(upstream_timeout=0.2)
    origins = dduct.server.runtime.services.origins
    monkeypatch.setattr(origins._silent, "_clock", lambda: now[0])
    monkeypatch.setattr(origins, "_clock", lambda: now[0])
    gate, hangs = Gate(), [False]
    origin = dduct.origin(hanging(gate, hangs))
    for path in ("/x.deb", "/y.deb"):
        assert dduct.fetch(origin, path).body == BODY
    hangs[0] = True
    asked = len(origin.requests)
    for path in ("/x.deb", "/x.deb", "/y.deb", "/y.deb"):
        now[0] += 0.1
        assert dduct.fetch(origin, path).body == BODY
    assert len(origin.requests) == asked + 1
    assert dduct.counted(Counter.STALE, 4) == 4 and dduct.counters.value(Counter.FAST_FAILURES) == 3
    hangs[0] = False
    gate.open()
    now[0] += 60.0
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert dduct.counted(Counter.VALIDATED) == 1
    assert dduct.fetch(origin, "/y.deb").body == BODY
    assert dduct.counted(Counter.VALIDATED, 2) == 2


@pytest.mark.one_process
def test_a_missing_object_is_requested_although_another_request_hangs(start_dduct: Build) -> None:
    """A URL that hangs is not an origin that does: only a stale object makes waiting unnecessary."""
    dduct = start_dduct(upstream_timeout=0.2)
    gate = Gate()

    def handler(asked: Asked, connection: Connection) -> None:
        if asked.target == "/slow.deb":
            gate.wait()
            connection.over = True
        else:
            connection.respond(200, [], BODY)

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, "/slow.deb").status == 504
    assert dduct.fetch(origin, "/x.deb").body == BODY and dduct.fetch(origin, "/page").body == BODY
    gate.open()


def test_slow_name_resolution_leaves_time_to_connect(start_dduct: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    real = connecting.connect_first
    deadlines: List[float] = []

    def note(order: Any, deadline: float, tick: Callable[[], float]) -> Tuple[socket.socket, Candidate]:
        deadlines.append(deadline - clock[0])
        return real(order, time.monotonic() + 20)

    monkeypatch.setattr(dialling, "connect_first", note)
    look_up = socket.getaddrinfo

    def slow(*arguments: Any, **more: Any) -> Any:
        clock[0] += 8.0
        return look_up(*arguments, **more)

    dduct = start_dduct(connect_timeout=10.0)
    origin = dduct.origin(Files({"/page": BODY}), tls=False)
    dialler = dduct.server.runtime.services.origins._dialler
    monkeypatch.setattr(dialler, "_clock", lambda: clock[0])
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with dduct.client() as client:
        taken = clock[0]
        assert client.get(f"http://{HOST}:{origin.port}/page", "x").body == BODY
        assert clock[0] - taken == 8.0
    assert deadlines == [2.0]
