"""Small misses are led by the poller's thread: the same bytes, files and figures as with threads."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Tuple

import pytest
from support.client import Answer, Client, wait_until
from support.origin import Asked, Connection, Gate, Origin
from support.running import HOST, RunningDduct
from support.told import BODY, FRESH, HINTS, WHOLE, Reaction, Told, confirms, primed, responds, send_get, sends, tagged

from fetching import polled_fetch
from fetching.negative import MAX_BODY
from fetching.polled_fetch import PolledFetch
from fetching.small_hit import SMALL
from monitoring.metrics import Counter
from monitoring.request_number import Number, current
from net.nonblocking import HEAD_SIZE
from net.poller import Next
from proxy.fast_path import AwaitedOrigin, FastPath
from storage.disk_watch import DiskWatch
from storage.entry import Entry
from storage.record import Unstorable
from storage.store import Store

pytestmark = pytest.mark.one_process

DIGEST = hashlib.sha256(BODY).hexdigest()
BLOB = f"/v2/a/blobs/sha256:{DIGEST}"
FALSE_BLOB = f"/v2/a/blobs/sha256:{'0' * 64}"
LONG_AGO = ("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT")


def redirects(asked: Asked, connection: Connection) -> None:
    if asked.target == "/target.deb":
        connection.respond(200, [FRESH], BODY)
    else:
        connection.respond(302, [("Location", "/target.deb")])


def moves(asked: Asked, connection: Connection) -> None:
    if asked.target == "/target.deb":
        connection.respond(200, [FRESH], BODY)
    else:
        connection.respond(301, [FRESH, ("Location", "/target.deb")])


def breaks_off(_: Asked, connection: Connection) -> None:
    connection.head(200, [FRESH, ("Content-Length", "5120")])
    connection.send(BODY[:100])
    connection.reset()


CHUNKED = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nConnection: close\r\n\r\nhello"
LONG_HEAD = b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * (HEAD_SIZE + 1) + b"\r\nContent-Length: 5120\r\n\r\n" + BODY


def closes(_: Asked, connection: Connection) -> None:
    connection.send(UNTIL_CLOSE)
    connection.fin()


class Case(NamedTuple):
    """`polled`: the poller's thread answers."""

    name: str
    react: Reaction
    polled: bool = True
    path: str = "/object.deb"
    fields: str = ""
    line: str = "GET {path} HTTP/1.1"


CASES = [
    Case("fresh", responds(200, FRESH, ("ETag", '"1"'), ("Content-Type", "application/x-deb"), ("X-Odd", "a\xe9b"))),
    Case("guessed", responds(200, LONG_AGO)),
    Case("aged", responds(200, FRESH, ("Age", "7"))),
    Case("set-cookie", responds(200, FRESH, ("Set-Cookie", "a=b"))),
    Case("digest", responds(200), path=BLOB),
    Case("false digest", responds(200), polled=False, path=FALSE_BLOB),
    Case("vary", responds(200, FRESH, ("Vary", "User-Agent")), fields="User-Agent: x\r\n"),
    Case("vary star", responds(200, FRESH, ("Vary", "*")), polled=False),
    Case("one byte", responds(200, FRESH, body=b"x")),
    Case("largest", responds(200, FRESH, body=bytes(SMALL))),
    Case("larger", responds(200, FRESH, body=bytes(SMALL + 1)), polled=False),
    Case("empty", responds(200, FRESH, body=b""), polled=False),
    Case("close", responds(200, FRESH, ("Connection", "close"))),
    Case("chunked", sends(CHUNKED), polled=False),
    Case("until close", closes, polled=False),
    Case("pieces of the head", sends(WHOLE[:20], WHOLE[20:60], WHOLE[60:])),
    Case("pieces of the body", sends(WHOLE[:-5000], WHOLE[-5000:-1], WHOLE[-1:])),
    Case("interim", sends(HINTS + WHOLE), polled=False),
    Case("interim first", sends(HINTS, WHOLE), polled=False),
    Case("long head", sends(LONG_HEAD), polled=False),
    Case("no HTTP", sends(b"nonsense\r\n\r\n"), polled=False),
    Case("two lengths", sends(WHOLE.replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\n", 1)), polled=False),
    Case("not found", responds(404), polled=False),
    Case("not found for a while", responds(404, FRESH, ("Age", "7"), ("Server", "x"), ("Accept-Ranges", "bytes"))),
    Case("gone for a while, and empty", responds(410, FRESH, body=b"")),
    Case("not found, at length", responds(404, FRESH, body=bytes(MAX_BODY + 1)), polled=False),
    Case("not found, privately", responds(404, FRESH, ("Set-Cookie", "a=b")), polled=False),
    Case("not found, chunked", sends(CHUNKED.replace(b"200 OK", b"404 Gone")), polled=False),
    Case("not found, and close", sends(WHOLE.replace(b"200 OK\r\n", b"404 Gone\r\nConnection: close\r\n"))),
    Case("not found, in pieces", sends(WHOLE[:20].replace(b"200 OK", b"404 No"), WHOLE[20:-9], WHOLE[-9:])),
    Case("moved for a while", moves, polled=False),
    Case("error", responds(503, ("Retry-After", "1")), polled=False),
    Case("no content", responds(204, body=b""), polled=False),
    Case("private", responds(200, ("Cache-Control", "private, max-age=600")), polled=False),
    Case("no-store", responds(200, ("Cache-Control", "no-store")), polled=False),
    Case("must be validated", responds(200, ("Cache-Control", "no-cache"), ("ETag", '"1"'))),
    Case("html", responds(200, FRESH, ("Content-Type", "text/html")), polled=False),
    Case("encoded", responds(200, FRESH, ("Content-Encoding", "gzip"))),
    Case("redirect", redirects, polled=False),
    Case("hangs up", lambda _, connection: connection.reset(), polled=False),
    Case("range", responds(200, FRESH), polled=False, fields="Range: bytes=1-9\r\n"),
    Case("credentials", responds(200, FRESH), polled=False, fields="Authorization: Basic eDp5\r\n"),
    Case("close after it", responds(200, FRESH), polled=False, fields="Connection: close\r\n"),
    Case("HEAD", responds(200, FRESH), polled=False, line="HEAD {path} HTTP/1.1"),
    Case("HTTP/1.0", responds(200, FRESH), polled=False, line="GET {path} HTTP/1.0"),
    Case("no filter", responds(200, FRESH), polled=False, path="/page"),
]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine's disk is, the poller uses it."""
    monkeypatch.setattr(DiskWatch, "may_poll", lambda *_: True)


def ask(dduct: RunningDduct, origin: Origin, case: Case) -> Optional[Answer]:
    line = case.line.format(path=case.path)
    with dduct.intercepted(origin) as client:
        client.send(f"{line}\r\nHost: {HOST}:{origin.port}\r\n{case.fields}\r\n".encode("latin-1"))
        try:
            answer = client.read(line.partition(" ")[0])
            while answer.status < 200:
                answer = client.read(line.partition(" ")[0])
            return answer
        except ConnectionError:
            return None


def comparable(case: Case, dduct: RunningDduct, answer: Optional[Answer], log: List[str]) -> Any:
    """What both ways have in common: the response, the files, the log."""
    files = {name: (dduct.files / name).read_bytes() for name in dduct.stored()}
    about_it = [line for line in log if "/object" in line or "/v2/" in line]
    lines = [re.sub(r"(:|\.)\d+|\d\.\d+s|takes \d+", "N", line) for line in about_it if "Broken off" not in line]
    if answer is None:
        return None, len(files), lines
    changing = ("Date", "Age", "Via")
    fields = [(name, re.sub(r":\d+", ":N", value)) for name, value in answer.headers if name not in changing]
    if case.name == "chunked":  # its length may be known by then
        fields = fields[:2]
    named = {re.sub(r":\d+/", ":N/", name): content for name, content in files.items()}
    return answer.status, fields, re.sub(rb":\d+", b"", answer.body), answer.whole, named, lines


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_poller_does_what_threads_would_do(
    start_dduct: Callable[..., RunningDduct],
    polled: List[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    case: Case,
) -> None:
    caplog.set_level("INFO")

    def attempt(dduct: RunningDduct) -> Any:
        told = Told()
        told.reactions[case.path] = told.reactions["/target.deb"] = case.react
        origin = primed(dduct, told)
        caplog.clear()
        answer = ask(dduct, origin, case)
        dduct.wait_until_durable()
        wait_until(lambda: not dduct.fills() and not dduct.server.connections)
        log = [record.getMessage() for record in caplog.records]
        return len(origin.requests), comparable(case, dduct, answer, log)

    found = attempt(start_dduct())
    assert bool(polled) is case.polled
    polled.clear()
    monkeypatch.setattr(polled_fetch, "begin", lambda *_: None)
    assert attempt(start_dduct()) == found
    assert not polled


def unexpected(_: Asked, connection: Connection) -> None:
    connection.head(304, [("ETag", '"1"'), ("Content-Length", "5")])
    connection.send(b"hello")


VALIDATIONS = [
    Case("confirmed", confirms(("ETag", '"1"'))),
    Case("nothing said", confirms()),
    Case("fresh from now on", confirms(("ETag", '"1"'), ("Cache-Control", "max-age=600"), ("X-New", "1"))),
    Case("weak", confirms(("ETag", 'W/"1"'))),
    Case("another", confirms(("ETag", '"2"')), polled=False),
    Case("private from now on", confirms(("ETag", '"1"'), ("Cache-Control", "private")), polled=False),
    Case("a body behind it", unexpected),
    Case("changed", tagged(body=b"new"), polled=False),
    Case("repeated", tagged(), polled=False),
    Case("gone", responds(404, body=b"gone"), polled=False),
    Case("away", responds(503), polled=False),
    Case("refused", responds(401), polled=False),
    Case("redirected", redirects, polled=False),
    Case("hangs up", lambda _, connection: connection.reset(), polled=False),
    Case("large now", tagged(body=bytes(SMALL + 1)), polled=False),
    Case("pieces", sends(b"HTTP/1.1 304 Not", b' Modified\r\nETag: "1"\r\n\r\n')),
    Case("range", confirms(("ETag", '"1"')), polled=False, fields="Range: bytes=1-9\r\n"),
    Case("own condition", confirms(("ETag", '"1"')), polled=False, fields='If-None-Match: "1"\r\n'),
    Case("credentials", confirms(("ETag", '"1"')), polled=False, fields="Authorization: Basic eDp5\r\n"),
]


@pytest.mark.parametrize("case", VALIDATIONS, ids=lambda case: case.name)
def test_the_poller_validates_as_threads_would_do(
    start_dduct: Callable[..., RunningDduct],
    polled: List[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    case: Case,
) -> None:
    caplog.set_level("INFO")

    def attempt(dduct: RunningDduct) -> Any:
        told = Told()
        told.reactions[case.path] = tagged()
        origin = primed(dduct, told)
        assert dduct.fetch(origin, case.path).body == BODY
        dduct.wait_until_durable()
        told.reactions[case.path] = told.reactions["/target.deb"] = case.react
        found = []
        for _ in range(2):  # the second one finds what the first one has left
            wait_until(lambda: not dduct.fills() and not dduct.server.connections)
            caplog.clear()
            answer = ask(dduct, origin, case)
            dduct.wait_until_durable()
            wait_until(lambda: not dduct.fills() and not dduct.server.connections)
            found.append(comparable(case, dduct, answer, [record.getMessage() for record in caplog.records]))
        figures = [dduct.counters.value(one) for one in (Counter.VALIDATED, Counter.FILLS, Counter.HITS)]
        return figures, found

    found = attempt(start_dduct())
    assert ("object.deb" in polled[1:]) is case.polled
    polled.clear()
    monkeypatch.setattr(polled_fetch, "begin", lambda *_: None)
    assert attempt(start_dduct()) == found
    assert not polled


def test_a_validation_makes_no_file_and_others_wait_for_it(
    dduct: RunningDduct, polled: List[str], begun: List[PolledFetch]
) -> None:
    told, gate = Told(), Gate()
    told.reactions["/object.deb"] = tagged()
    origin = primed(dduct, told, connections=2)
    assert dduct.fetch(origin, "/object.deb").body == BODY
    dduct.wait_until_durable()
    stored = dduct.stored()

    def react(asked: Asked, connection: Connection) -> None:
        gate.wait()
        connection.head(304, [("ETag", '"1"'), ("Cache-Control", "max-age=600")])

    told.reactions["/object.deb"] = react
    clients = [dduct.intercepted(origin) for _ in range(4)]
    for number, client in enumerate(clients):
        send_get(client, origin, "/object.deb")
        if not number:
            gate.reached()
    wait_until(lambda: bool(dduct.fills()) and dduct.fills()[0].snapshot().readers == 3)
    assert dduct.stored() == stored
    gate.open()
    for client in clients:
        assert client.read().body == BODY
        client.sock.close()
    assert origin.count("/object.deb") == 2 and len(begun) == 2


def test_an_object_that_has_changed_is_fetched_once_for_all(dduct: RunningDduct, begun: List[PolledFetch]) -> None:
    told, gate = Told(), Gate()
    told.reactions["/object.deb"] = tagged()
    origin = primed(dduct, told, connections=2)
    assert dduct.fetch(origin, "/object.deb").body == BODY

    def react(asked: Asked, connection: Connection) -> None:
        gate.wait()
        connection.respond(200, [FRESH, ("ETag", '"2"')], b"new")

    told.reactions["/object.deb"] = react
    clients = [dduct.intercepted(origin) for _ in range(4)]
    for number, client in enumerate(clients):
        send_get(client, origin, "/object.deb")
        if not number:
            gate.reached()
    wait_until(lambda: bool(dduct.fills()) and dduct.fills()[0].snapshot().readers == 3)
    gate.open()
    for client in clients:
        assert client.read().body == b"new"
        client.sock.close()
    assert origin.count("/object.deb") == 2 and len(begun) == 2


def test_requests_are_numbered_in_both_ways(
    dduct: RunningDduct, polled: List[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    told.reactions["/large.deb"] = responds(200, FRESH, body=bytes(SMALL + 1))
    origin = primed(dduct, told)
    numbers: List[Optional[Number]] = []

    def note(_: logging.LogRecord) -> bool:
        numbers.append(current())
        return True

    monkeypatch.setattr(logging.getLogger("dduct.session"), "filters", [note])
    caplog.set_level("INFO")
    with dduct.intercepted(origin) as client:
        for path in ("/a.deb", "/large.deb", "/a.deb", "/b.deb"):
            assert client.get(path, f"{HOST}:{origin.port}").status == 200
    assert polled == ["a.deb"]
    wait_until(lambda: len(numbers) == 4)
    assert [number[1] for number in numbers if number is not None] == [2, 3, 4, 5]  # CONNECT was the first


def test_many_misses_of_a_client_are_counted_stored_and_hit(dduct: RunningDduct, polled: List[str]) -> None:
    origin = primed(dduct, Told())
    paths = [f"/{number}.deb" for number in range(20)]
    with dduct.intercepted(origin) as client:
        for path in [*paths, *paths]:
            assert client.get(path, f"{HOST}:{origin.port}").body == path.encode()
    assert [f"/{name}" for name in polled] == paths
    assert len(origin.requests) == 21  # each once
    assert dduct.counted(Counter.PUBLISHED, 20) == dduct.counted(Counter.FILLS) == 20
    assert dduct.counted(Counter.HITS, 20) == 20
    assert dduct.counters.value(Counter.STORED_BYTES) == sum(len(path) for path in paths)
    dduct.wait_until_durable()
    assert len(dduct.stored()) == 20


def test_a_connection_goes_to_the_poller_after_two_small_misses(dduct: RunningDduct, polled: List[str]) -> None:
    origin = dduct.origin(Told())
    with dduct.intercepted(origin) as client:
        for number in range(8):
            client.get(f"/{number}.deb", f"{HOST}:{origin.port}")
            wait_until(lambda: dduct.server.runtime.services.origins.idle == 1)
    assert "7.deb" in polled and "0.deb" not in polled


def test_a_validation_that_says_nothing_new_is_not_recorded(
    dduct: RunningDduct, polled: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, refreshed = Told(), []
    told.reactions["/object.deb"] = tagged(("X-Last", "1"))
    origin = primed(dduct, told)
    assert dduct.fetch(origin, "/object.deb").body == BODY
    dduct.wait_until_durable()
    # Its fields come behind the others of the stored response, as its own.
    told.reactions["/object.deb"] = confirms(("ETag", '"1"'), ("Cache-Control", "no-cache"))
    real = Entry.refresh

    def refresh(entry: Entry, *arguments: Any) -> bool:
        refreshed.append(entry)
        return real(entry, *arguments)

    monkeypatch.setattr(Entry, "refresh", refresh)
    polled.clear()
    with dduct.intercepted(origin) as client:
        for _ in range(2):
            assert client.get("/object.deb", f"{HOST}:{origin.port}").body == BODY
        assert not refreshed
        told.reactions["/object.deb"] = confirms(("ETag", '"1"'), ("Cache-Control", "no-cache"), ("X-Last", "2"))
        assert client.get("/object.deb", f"{HOST}:{origin.port}").get("x-last") == "2"
    assert len(refreshed) == 1 and len(polled) == 3


def test_a_connection_goes_to_the_poller_after_two_small_validations(
    dduct: RunningDduct, polled: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    told.reactions["/object.deb"] = tagged()
    origin = primed(dduct, told)
    assert dduct.fetch(origin, "/object.deb").body == BODY
    dduct.wait_until_durable()
    told.reactions["/object.deb"] = confirms(("ETag", '"1"'))
    with dduct.intercepted(origin) as client:
        with monkeypatch.context() as patched:
            patched.setattr(polled_fetch, "begin", lambda *_: None)
            assert client.get("/object.deb", f"{HOST}:{origin.port}").body == BODY
        polled.clear()
        for _ in range(8):
            assert client.get("/object.deb", f"{HOST}:{origin.port}").body == BODY
    assert polled


@pytest.mark.parametrize(
    "path, field, said",
    [
        ("/latest/object.deb", "User-Agent: x", "keep-alive"),
        ("/object.deb", 'If-None-Match: "2"', "keep-alive"),
        ("/object.deb", "Range: bytes=0-", "keep-alive"),
        ("/object.deb", "User-Agent: x", "close"),
    ],
    ids=["volatile", "condition", "range", "no kept connection"],
)
def test_a_connection_keeps_its_thread_for_validations_that_take_one(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch, path: str, field: str, said: str
) -> None:
    told = Told()
    told.reactions[path] = tagged()
    origin = primed(dduct, told)
    assert dduct.fetch(origin, path).body == BODY
    dduct.wait_until_durable()
    told.reactions[path] = confirms(("ETag", '"1"'), ("Connection", said))
    handed = handed_over(monkeypatch)
    with dduct.intercepted(origin) as client:
        for _ in range(8):
            assert client.get(path, f"{HOST}:{origin.port}", field).body == BODY
    assert handed.count(Next.NEEDS_THREAD) == 1


def test_a_connection_keeps_its_thread_for_misses_without_a_kept_connection(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = dduct.origin(lambda _, connection: connection.respond(200, [FRESH, ("Connection", "close")], BODY))
    assert dduct.fetch(origin, "/first.deb").body == BODY  # now there is a leaf
    handed = handed_over(monkeypatch)
    with dduct.intercepted(origin) as client:
        for number in range(8):
            assert client.get(f"/{number}.deb", f"{HOST}:{origin.port}").body == BODY
    assert handed.count(Next.NEEDS_THREAD) == 1


def handed_over(monkeypatch: pytest.MonkeyPatch) -> List[Next]:
    """What the poller's thread has done with a connection each time, from now on."""
    handed = []
    real = FastPath.answer_at_once

    def answer_at_once(fast_path: FastPath, iteration: float) -> Next:
        handed.append(real(fast_path, iteration))
        return handed[-1]

    monkeypatch.setattr(FastPath, "answer_at_once", answer_at_once)
    return handed


@contextmanager
def waiting(dduct: RunningDduct, begun: List[PolledFetch], told: Told) -> Iterator[Tuple[Origin, Client, Gate]]:
    """A client whose miss the poller has begun; the origin answers once the gate is open."""
    gate = Gate()

    def react(asked: Asked, connection: Connection) -> None:
        gate.wait()
        connection.respond(200, [FRESH], BODY)

    told.reactions.setdefault("/object.deb", react)
    origin = primed(dduct, told, connections=2)
    try:
        with dduct.intercepted(origin) as client:
            send_get(client, origin, "/object.deb")
            gate.reached()
            wait_until(lambda: len(begun) == 1)
            yield origin, client, gate
    finally:
        gate.open()


def test_a_slow_origin_is_waited_for_by_a_thread(
    dduct: RunningDduct, polled: List[str], begun: List[PolledFetch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AwaitedOrigin, "timeout", 0.0)
    before = dduct.server.snapshot().threads
    with waiting(dduct, begun, Told()) as (origin, client, gate):
        wait_until(lambda: dduct.server.snapshot().threads > before)
        gate.open()
        assert client.read().body == BODY
    assert not polled and origin.count("/object.deb") == 1


def test_an_origin_that_sends_little_at_a_time_is_left_to_a_thread(
    dduct: RunningDduct, polled: List[str], begun: List[PolledFetch], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, gates = Told(), [Gate(), Gate()]

    def react(asked: Asked, connection: Connection) -> None:
        gates[0].wait()
        monkeypatch.setattr(AwaitedOrigin, "timeout", 1.0)  # the next bytes begin no new wait
        connection.send(WHOLE[:20])
        gates[1].wait()
        connection.send(WHOLE[20:])

    told.reactions["/object.deb"] = react
    monkeypatch.setattr(AwaitedOrigin, "timeout", -1.0)
    before = dduct.server.snapshot().threads
    origin = primed(dduct, told)
    with dduct.intercepted(origin) as client:
        send_get(client, origin, "/object.deb")
        gates[0].reached()
        gates[0].open()
        gates[1].reached()
        wait_until(lambda: dduct.server.snapshot().threads > before)
        gates[1].open()
        assert client.read().body == BODY
    assert begun and not polled and origin.count("/object.deb") == 1


def test_others_follow_what_the_poller_has_begun(
    dduct: RunningDduct, polled: List[str], begun: List[PolledFetch]
) -> None:
    with waiting(dduct, begun, Told()) as (origin, client, gate):
        others = [dduct.intercepted(origin) for _ in range(3)]
        for other in others:
            send_get(other, origin, "/object.deb")
        wait_until(lambda: dduct.fills()[0].snapshot().readers == 3)
        gate.open()
        for one in [client, *others]:
            assert one.read().body == BODY
    assert polled and origin.count("/object.deb") == 1
    assert dduct.counted(Counter.COLLAPSED, 3) == 3


def test_other_connections_are_served_meanwhile(dduct: RunningDduct, begun: List[PolledFetch]) -> None:
    with waiting(dduct, begun, Told()) as (origin, client, gate):
        assert dduct.fetch(origin, "/other.deb").body == b"/other.deb"
        assert len(begun) == 2
        gate.open()
        assert client.read().body == BODY


def test_a_client_that_leaves_meanwhile_leaves_the_object(dduct: RunningDduct, begun: List[PolledFetch]) -> None:
    with waiting(dduct, begun, Told()) as (origin, client, gate):
        client.reset()
        gate.open()
        wait_until(lambda: not dduct.server.connections and not dduct.fills())
        assert dduct.fetch(origin, "/object.deb").body == BODY
    assert origin.count("/object.deb") == 1


def test_a_stop_waits_for_the_response(start_dduct: Callable[..., RunningDduct], begun: List[PolledFetch]) -> None:
    dduct = start_dduct()
    with waiting(dduct, begun, Told()) as (_, client, gate):
        stop = threading.Thread(target=dduct.server.stop, args=(10,))
        stop.start()
        wait_until(lambda: dduct.server.snapshot().draining)
        gate.open()
        assert client.read().body == BODY
        stop.join(10)
    assert not stop.is_alive()


def test_a_reload_meanwhile_changes_nothing(dduct: RunningDduct, begun: List[PolledFetch]) -> None:
    with waiting(dduct, begun, Told()) as (origin, client, gate):
        dduct.reload(fresh_for=1.0)
        gate.open()
        assert client.read().body == BODY
    assert origin.count("/object.deb") == 1


def test_a_request_behind_it_is_answered_after_it(dduct: RunningDduct, begun: List[PolledFetch]) -> None:
    with waiting(dduct, begun, Told()) as (origin, client, gate):
        for path in ("/a.deb", "/page", "/b.deb"):
            send_get(client, origin, path)
        gate.open()
        assert [client.read().body for _ in range(4)] == [BODY, b"/a.deb", b"/page", b"/b.deb"]


def test_an_origin_that_breaks_off_leaves_nothing(dduct: RunningDduct, begun: List[PolledFetch]) -> None:
    told = Told()
    told.reactions["/object.deb"] = breaks_off
    origin = primed(dduct, told)
    answer = dduct.fetch(origin, "/object.deb")
    assert answer.status == 502 or not answer.whole
    wait_until(lambda: not dduct.fills())
    assert begun and dduct.stored() == []


def test_a_kept_connection_that_is_closed_meanwhile_is_replaced(dduct: RunningDduct, begun: List[PolledFetch]) -> None:
    told, times = Told(), []

    def react(asked: Asked, connection: Connection) -> None:
        times.append(asked)
        if len(times) == 1:
            connection.reset()
        else:
            connection.respond(200, [FRESH], BODY)

    told.reactions["/object.deb"] = react
    origin = primed(dduct, told)
    assert dduct.fetch(origin, "/object.deb").body == BODY
    assert len(times) == 2 and len(begun) == 1


def test_a_disk_that_is_full_keeps_nothing_and_loses_nothing(
    dduct: RunningDduct, begun: List[PolledFetch], polled: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = primed(dduct, Told())

    def refuse(*_: object) -> None:
        raise Unstorable("it is full")

    monkeypatch.setattr(Store, "check_space", refuse)
    monkeypatch.setattr(Store, "begin_growth", refuse)
    answer = dduct.fetch(origin, "/object.deb")
    assert answer.body == b"/object.deb" and "not stored" not in (answer.get("cache-status") or "")
    assert begun and not polled and origin.count("/object.deb") == 1
    assert dduct.stored() == []


def test_what_the_disk_refuses_in_the_end_is_sent(
    dduct: RunningDduct, polled: List[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    origin = primed(dduct, Told())
    caplog.set_level("INFO")

    def refused(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.tree.Tree.put_in_place", refused)
    answer = dduct.fetch(origin, "/object.deb")
    assert answer.body == b"/object.deb"
    assert polled and dduct.counted(Counter.UNKEPT) == 1 and dduct.stored() == []
    wait_until(lambda: any("not stored: No space left on device" in record.getMessage() for record in caplog.records))
