"""What is not there is not asked for again at once, if its origin says for how long that holds."""

from __future__ import annotations

import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict, List, Optional, Tuple

import pytest
from support.client import Answer, wait_until
from support.origin import Asked, Connection, Gate, Origin
from support.running import HOST, RunningDduct
from support.told import Reaction, Told, confirms, primed, responds, send_get, sends

from cache import Cache, Claim
from fetching import small_hit
from fetching.negative import MAX_BODY
from monitoring.metrics import Counter
from net.addresses import Reach
from proxy.session_state import SessionState
from storage.disk_watch import DiskWatch
from storage.entry import Version
from storage.store import Key

GOOD_FOR = ("Cache-Control", "max-age=300")
TEXT = ("Content-Type", "text/plain")
GONE = b"no such file\n"
PATH = "/r/x_1_all.deb"
Start = Callable[..., RunningDduct]


def missing(*fields: Tuple[str, str], status: int = 404, body: bytes = GONE) -> Reaction:
    return responds(status, *(fields or (GOOD_FOR, TEXT)), body=body)


@pytest.fixture
def told() -> Told:
    told = Told()
    told.reactions[PATH] = missing()
    return told


@pytest.fixture
def origin(dduct: RunningDduct, told: Told) -> Origin:
    return dduct.origin(told)


def ask(dduct: RunningDduct, origin: Origin, *fields: str, method: str = "GET", path: str = PATH) -> Answer:
    with dduct.intercepted(origin) as client:
        return client.get(path, f"{HOST}:{origin.port}", *fields, method=method)


def from_memory(answer: Answer) -> bool:
    return re.fullmatch("dduct; hit; ttl=[0-9]+; detail=negative", answer.get("cache-status") or "") is not None


@pytest.mark.parametrize("status", [404, 410, 301, 308])
def test_an_answer_that_says_how_long_it_is_good_is_sent_again(
    dduct: RunningDduct, told: Told, origin: Origin, status: int
) -> None:
    elsewhere = ("Location", f"http://{HOST}:9/x_1_all.deb")  # from https to http: its client follows it, or does not
    told.reactions[PATH] = missing(GOOD_FOR, TEXT, elsewhere, status=status)
    first, second = ask(dduct, origin), ask(dduct, origin)
    assert first.get("cache-status") == "dduct; fwd=uri-miss; stored; detail=negative"
    assert from_memory(second)
    assert (first.status, first.body) == (second.status, second.body) == (status, GONE)
    for name in ("content-type", "cache-control", "location", "content-length"):
        assert first.get(name) == second.get(name) is not None
    assert 0 <= int(second.get("age") or "-1") < 60 and second.get("date")
    assert origin.count(PATH) == 1 and dduct.counted(Counter.NEGATIVE) == 1


KEPT: Dict[str, Reaction] = {
    "s-maxage": missing(("Cache-Control", "max-age=0, s-maxage=60")),
    "Expires": missing(("Expires", "Fri, 01 Jan 2100 00:00:00 GMT")),
    "Age": missing(GOOD_FOR, ("Age", "100")),
    "no body": missing(GOOD_FOR, body=b""),
    "largest": missing(GOOD_FOR, body=bytes(MAX_BODY)),
    "chunked": sends(
        b"HTTP/1.1 404 Not Found\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
    ),
    "pieces": sends(b"HTTP/1.1 404 Not Found\r\nCache-Control: max-age=60\r\nContent-Length: 5\r\n\r\n", b"hel", b"lo"),
}


@pytest.mark.parametrize("kind", KEPT)
def test_it_is_kept_in_every_framing_and_with_every_explicit_lifetime(
    dduct: RunningDduct, told: Told, origin: Origin, kind: str
) -> None:
    told.reactions[PATH] = KEPT[kind]
    first, second = ask(dduct, origin), ask(dduct, origin)
    assert first.body == second.body and second.complete and from_memory(second)
    assert int(second.get("age") or 0) >= int(first.get("age") or 0)
    assert origin.count(PATH) == 1


NOT_KEPT: Dict[str, Reaction] = {
    "no lifetime": missing(TEXT),
    "Last-Modified": missing(("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT")),
    "immutable": missing(("Cache-Control", "immutable")),
    "max-age=0": missing(("Cache-Control", "max-age=0")),
    "s-maxage=0": missing(("Cache-Control", "max-age=60, s-maxage=0")),
    "no number": missing(("Cache-Control", "max-age=soon")),
    "Expires in the past": missing(("Expires", "Wed, 01 Jan 2020 00:00:00 GMT")),
    "Expires=0": missing(("Expires", "0")),
    "older than its lifetime": missing(GOOD_FOR, ("Age", "301")),
    "no-store": missing(("Cache-Control", "max-age=300, no-store")),
    "private": missing(("Cache-Control", "max-age=300, private")),
    "private for some fields": missing(("Cache-Control", 'max-age=300, private="x"')),
    "no-cache": missing(("Cache-Control", "max-age=300, no-cache")),
    "Set-Cookie": missing(GOOD_FOR, ("Set-Cookie", "a=b")),
    "Vary: *": missing(GOOD_FOR, ("Vary", "*")),
    "too long": missing(GOOD_FOR, body=bytes(MAX_BODY + 1)),
    "too many fields": missing(GOOD_FOR, *(("X-Long", "x" * 1000) for _ in range(30))),
    "401": missing(GOOD_FOR, status=401),
    "403": missing(GOOD_FOR, status=403),
    "402": missing(GOOD_FOR, status=402),
    "405": missing(GOOD_FOR, status=405),
    "400": missing(GOOD_FOR, status=400),
    "414": missing(GOOD_FOR, status=414),
    "500": missing(GOOD_FOR, status=500),
    "503": missing(GOOD_FOR, status=503),
    "302": missing(GOOD_FOR, ("Location", f"http://{HOST}:9/x"), status=302),
    "307": missing(GOOD_FOR, ("Location", f"http://{HOST}:9/x"), status=307),
}


@pytest.mark.parametrize("kind", NOT_KEPT)
def test_an_answer_that_may_not_be_kept_is_asked_for_each_time(
    dduct: RunningDduct, told: Told, origin: Origin, kind: str
) -> None:
    told.reactions[PATH] = NOT_KEPT[kind]
    answers = [ask(dduct, origin) for _ in range(2)]
    assert not any(from_memory(answer) for answer in answers)
    assert origin.count(PATH) == 2 and dduct.counters.value(Counter.NEGATIVE) == 0


def test_a_body_whose_end_nothing_shows_is_not_kept(dduct: RunningDduct, told: Told, origin: Origin) -> None:
    def closes(_: Asked, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 404 Not Found\r\nCache-Control: max-age=300\r\nConnection: close\r\n\r\n" + GONE)
        connection.close_notify()

    told.reactions[PATH] = closes
    assert [ask(dduct, origin).body for _ in range(2)] == [GONE] * 2
    assert origin.count(PATH) == 2


def test_a_body_that_breaks_off_is_not_kept_and_its_client_sees_it(
    dduct: RunningDduct, told: Told, origin: Origin
) -> None:
    def breaks(_: Asked, connection: Connection) -> None:
        connection.head(404, [GOOD_FOR, ("Content-Length", "10")])
        connection.send(b"half")
        connection.reset()

    told.reactions[PATH] = breaks
    assert [ask(dduct, origin).complete for _ in range(2)] == [False] * 2
    assert origin.count(PATH) == 2


def test_a_slow_body_is_relayed_as_it_comes(
    dduct: RunningDduct, told: Told, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fetching.negative_answer._WAIT", 0.01)
    gate = Gate()

    def slow(_: Asked, connection: Connection) -> None:
        connection.head(404, [GOOD_FOR, ("Content-Length", "10")])
        connection.send(b"first")
        gate.wait()
        connection.send(b"later")

    told.reactions[PATH] = slow
    with dduct.intercepted(origin) as client:
        send_get(client, origin, PATH)
        assert b" 404 " in client.read_until(b"\r\n\r\n")  # before the rest of the body is there
        gate.open()
        wait_until(lambda: dduct.counters.value(Counter.RELAYED) == 1)
    assert ask(dduct, origin).body == b"firstlater"
    assert origin.count(PATH) == 2


def test_what_is_at_the_end_of_a_redirect_is_no_answer_of_its_beginning(
    dduct: RunningDduct, told: Told, origin: Origin
) -> None:
    told.reactions[PATH] = missing(GOOD_FOR, ("Location", "/r/y.deb"), status=301)
    told.reactions["/r/y.deb"] = missing()
    for _ in range(2):
        answer = ask(dduct, origin)
        assert (answer.status, answer.get("location")) == (301, "/r/y.deb")
    assert origin.count("/r/y.deb") == 2 and dduct.counters.value(Counter.NEGATIVE) == 0


def test_it_can_be_switched_off(start_dduct: Start, told: Told) -> None:
    dduct = start_dduct(negative=0.0)
    origin = dduct.origin(told)
    assert [ask(dduct, origin).status for _ in range(2)] == [404] * 2
    assert origin.count(PATH) == 2


@pytest.mark.one_process
def test_it_is_kept_no_longer_than_configured(start_dduct: Start, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    dduct = start_dduct(negative=20.0)
    origin = dduct.origin(told)
    ask(dduct, origin)
    second = ask(dduct, origin)
    assert re.search("ttl=(1[0-9]|20);", second.get("cache-status") or "")
    negatives, now = dduct.server.runtime.services.negatives, time.time
    monkeypatch.setattr(negatives, "_clock", lambda: now() + 21)
    ask(dduct, origin)
    assert origin.count(PATH) == 2


# --- for whom ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["Authorization: Basic YTpi", "Cookie: a=b", "X-Api-Key: k", "PRIVATE-TOKEN: t"])
def test_credentials_neither_bring_nor_get_it(dduct: RunningDduct, origin: Origin, field: str) -> None:
    ask(dduct, origin, field)
    ask(dduct, origin)
    assert origin.count(PATH) == 2  # what credentials got is not kept
    ask(dduct, origin, field)
    assert origin.count(PATH) == 3  # and what was kept is not for them
    assert from_memory(ask(dduct, origin))


@pytest.mark.parametrize("query", ["?X-Amz-Signature=a", "?token=a", "?password=a"])
def test_what_a_signed_query_got_is_not_kept(dduct: RunningDduct, told: Told, origin: Origin, query: str) -> None:
    told.reactions[PATH + query] = missing()
    for _ in range(2):
        ask(dduct, origin, path=PATH + query)
    assert origin.count(PATH + query) == 2
    ask(dduct, origin)
    ask(dduct, origin, path=PATH + query)
    assert origin.count(PATH + query) == 3 and origin.count(PATH) == 1


@pytest.mark.parametrize(
    "field", ["Cache-Control: no-cache", "Cache-Control: max-age=0", "Pragma: no-cache", "Cache-Control: min-fresh=301"]
)
def test_a_request_that_wants_a_new_answer_gets_one(dduct: RunningDduct, origin: Origin, field: str) -> None:
    ask(dduct, origin)
    ask(dduct, origin, field)
    assert origin.count(PATH) == 2
    assert from_memory(ask(dduct, origin)) and origin.count(PATH) == 2  # the new one was kept


@pytest.mark.parametrize("field", ["Cache-Control: only-if-cached", "Cache-Control: no-store"])
def test_a_request_that_stores_nothing_is_answered_from_memory(dduct: RunningDduct, origin: Origin, field: str) -> None:
    before = ask(dduct, origin, field)
    assert before.status == (404 if "no-store" in field else 504)
    asked = origin.count(PATH)
    ask(dduct, origin)
    assert origin.count(PATH) == asked + 1  # its answer was not kept
    assert from_memory(ask(dduct, origin, field)) and origin.count(PATH) == asked + 1


@pytest.mark.parametrize("field", ["Range: bytes=0-1", 'If-None-Match: "1"', 'If-Match: "1"', "If-Modified-Since: x"])
def test_conditions_and_ranges_do_not_matter(dduct: RunningDduct, origin: Origin, field: str) -> None:
    answers = [ask(dduct, origin, field) for _ in range(2)]
    assert [(answer.status, answer.body) for answer in answers] == [(404, GONE)] * 2
    assert from_memory(answers[1]) and origin.count(PATH) == 1


def test_head_is_answered_from_get_and_not_the_other_way_round(dduct: RunningDduct, told: Told, origin: Origin) -> None:
    told.reactions[PATH] = lambda asked, connection: connection.respond(
        404, [GOOD_FOR], GONE, head_only=asked.method == "HEAD"
    )
    assert ask(dduct, origin, method="HEAD").status == 404
    assert ask(dduct, origin).body == GONE and origin.count(PATH) == 1
    answer = ask(dduct, origin, method="HEAD")
    assert (answer.status, answer.get("content-length"), answer.body) == (404, str(len(GONE)), b"")
    assert from_memory(answer) and origin.count(PATH, "HEAD") == 1


@pytest.mark.parametrize("vary", ["Accept-Language", "X-Requested-With", ""])
def test_a_request_that_may_select_another_answer_asks(
    dduct: RunningDduct, told: Told, origin: Origin, vary: str
) -> None:
    """By Vary; or, although nothing says so, by a field by which some origins choose."""
    name = vary or "User-Agent"
    told.reactions[PATH] = missing(GOOD_FOR, ("Vary", vary)) if vary else missing()
    for value in ("a", "b"):
        ask(dduct, origin, f"{name}: {value}")
    assert origin.count(PATH) == 2
    assert from_memory(ask(dduct, origin, f"{name}: b"))


def test_a_volatile_name_is_asked_for_each_time(dduct: RunningDduct, told: Told, origin: Origin) -> None:
    index = "/debian/dists/stable/main/binary-amd64/Packages.xz"
    told.reactions[index] = missing()
    for _ in range(2):
        ask(dduct, origin, path=index)
    assert origin.count(index) == 2


def test_what_comes_from_this_machine_is_for_clients_there(
    dduct: RunningDduct, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = dduct.origin(told, tls=False)
    url = f"http://{HOST}:{origin.port}{PATH}"

    def get() -> Answer:
        with dduct.client() as client:
            return client.get(url, "x")

    get()
    assert from_memory(get())
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("proxy.connections.reach_of", lambda client, host: Reach.NOTHING)
        assert get().status == 403
    assert from_memory(get()) and origin.count(PATH) == 1


# --- its end -----------------------------------------------------------------------------------------


class Uploads(Told):
    """An origin to which an object is uploaded; `answer`: to the upload."""

    def __init__(self, *fields: Tuple[str, str], status: int = 201) -> None:
        super().__init__()
        self.there = False
        self.answer = (status, fields)

    def __call__(self, asked: Asked, connection: Connection) -> None:
        status, fields = self.answer
        if asked.method not in ("GET", "HEAD"):
            self.there = status < 400
            connection.respond(status, fields)
        elif self.there:
            connection.respond(200, [GOOD_FOR, ("ETag", '"1"')], b"here")
        else:
            connection.respond(404, [GOOD_FOR], GONE)


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
def test_a_request_that_may_change_it_ends_it(dduct: RunningDduct, method: str) -> None:
    origin = dduct.origin(Uploads())
    ask(dduct, origin)
    ask(dduct, origin, "Content-Length: 0", method=method)
    assert ask(dduct, origin).body == b"here"


def test_so_does_one_whose_answer_names_it(dduct: RunningDduct) -> None:
    origin = dduct.origin(Uploads(("Location", PATH)))
    ask(dduct, origin)
    ask(dduct, origin, "Content-Length: 0", method="POST", path="/uploads")
    assert ask(dduct, origin).body == b"here"


def test_a_request_that_failed_ends_nothing(dduct: RunningDduct) -> None:
    origin = dduct.origin(Uploads(status=403))
    ask(dduct, origin)
    ask(dduct, origin, "Content-Length: 0", method="PUT")
    assert from_memory(ask(dduct, origin))


def test_an_answer_to_a_question_from_before_a_change_is_not_kept(dduct: RunningDduct) -> None:
    gate, there = Gate(), Uploads()

    def late(asked: Asked, connection: Connection) -> None:
        if asked.method == "GET" and not there.there:
            gate.wait()
            connection.respond(404, [GOOD_FOR], GONE)
        else:
            there(asked, connection)

    origin = dduct.origin(late)
    with dduct.intercepted(origin) as client:
        send_get(client, origin, PATH)
        gate.reached()
        ask(dduct, origin, "Content-Length: 0", method="PUT")
        gate.open()
        assert client.read().status == 404
    assert ask(dduct, origin).body == b"here"


@pytest.mark.parametrize(
    ("method", "field"),
    [("GET", "Cache-Control: no-cache"), ("HEAD", "Cache-Control: no-cache"), ("GET", "Authorization: Basic YTpi")],
)
def test_it_ends_when_another_request_finds_the_object(
    dduct: RunningDduct, told: Told, origin: Origin, method: str, field: str
) -> None:
    ask(dduct, origin)
    told.reactions[PATH] = lambda asked, connection: connection.respond(
        200, [GOOD_FOR], GONE, head_only=asked.method == "HEAD"
    )
    assert ask(dduct, origin, field, method=method).status == 200
    dduct.wait_until_durable()
    for name in dduct.stored():
        (dduct.files / name).unlink()
    assert ask(dduct, origin).status == 200


def test_clients_follow_an_object_that_is_being_fetched(dduct: RunningDduct, told: Told, origin: Origin) -> None:
    ask(dduct, origin)
    gate = Gate()

    def slow(_: Asked, connection: Connection) -> None:
        connection.head(200, [GOOD_FOR, ("Content-Length", "8")])
        connection.send(b"half")
        gate.wait()
        connection.send(b"rest")

    told.reactions[PATH] = slow
    with dduct.intercepted(origin) as client:
        send_get(client, origin, PATH, "Cache-Control: no-cache\r\n")
        gate.reached()
        client.read_until(b"half")
        with dduct.intercepted(origin) as other:
            send_get(other, origin, PATH)
            assert b" 200 " in other.read_until(b"half")
            gate.open()
    assert origin.count(PATH) == 2


@pytest.mark.parametrize("fields", [(), ("Cache-Control: max-age=100",)])
def test_a_file_that_was_copied_in_is_served(
    dduct: RunningDduct, told: Told, origin: Origin, fields: Tuple[str, ...]
) -> None:
    """By the poller's thread, or by a session's."""
    ask(dduct, origin)
    place = dduct.files / "https" / f"{HOST}:{origin.port}" / PATH[1:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"by hand")
    told.reactions[PATH] = confirms()  # nothing says how long it is fresh
    for _ in range(3):
        assert ask(dduct, origin, *fields).body == b"by hand"


@pytest.mark.one_process
@pytest.mark.parametrize("keys", [{}, {"negative": 30.0}])
def test_a_reload_ends_it(dduct: RunningDduct, origin: Origin, keys: Dict[str, float]) -> None:
    ask(dduct, origin)
    dduct.reload(**keys)
    ask(dduct, origin)
    assert origin.count(PATH) == 2
    assert from_memory(ask(dduct, origin))


def test_a_stored_object_ends_as_before_and_that_it_is_gone_is_kept(
    dduct: RunningDduct, told: Told, origin: Origin
) -> None:
    told.reactions[PATH] = responds(200, ("Cache-Control", "max-age=0"), ("ETag", '"1"'))
    ask(dduct, origin)
    dduct.wait_until_durable()
    told.reactions[PATH] = missing()
    answer = ask(dduct, origin)
    assert answer.status == 404 and answer.get("cache-status") == "dduct; fwd=stale; stored; detail=negative"
    assert dduct.stored() == []
    assert from_memory(ask(dduct, origin)) and origin.count(PATH) == 2


# --- once --------------------------------------------------------------------------------------------


@pytest.mark.one_process
def test_clients_that_wait_for_the_same_answer_share_it(dduct: RunningDduct, told: Told, origin: Origin) -> None:
    gate = Gate()

    def late(asked: Asked, connection: Connection) -> None:
        gate.wait()
        missing()(asked, connection)

    told.reactions[PATH] = late
    clients = [dduct.intercepted(origin) for _ in range(5)]
    send_get(clients[0], origin, PATH)
    gate.reached()
    for client in clients[1:]:
        send_get(client, origin, PATH)
    wait_until(lambda: [fill.snapshot().readers for fill in dduct.fills()] == [4])
    gate.open()
    answers = [client.read() for client in clients]
    assert {(answer.status, answer.body) for answer in answers} == {(404, GONE)}
    assert answers[1].get("cache-status") == "dduct; fwd=uri-miss; collapsed; detail=negative"
    assert origin.count(PATH) == 1


def test_one_that_is_kept_before_a_request_leads_is_its_answer(
    dduct: RunningDduct, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not there when this request looked, and the fill that brought it is over."""
    real, asking = Cache.claim, [1]

    def claim(cache: Cache, key: Key, beyond: Optional[Version] = None) -> Claim:
        if asking:
            asking.pop()
            ask(dduct, origin)
        return real(cache, key, beyond)

    monkeypatch.setattr(Cache, "claim", claim)
    assert from_memory(ask(dduct, origin, "Cache-Control: max-age=100"))
    assert origin.count(PATH) == 1 and dduct.fills() == [] and dduct.stored() == []


def test_workers_share_it(start_dduct: Start, told: Told) -> None:
    dduct = start_dduct(workers=2)
    origin = dduct.origin(told)
    ask(dduct, origin)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(dduct, origin), range(64)))
    assert all(from_memory(answer) for answer in answers) and origin.count(PATH) == 1


@pytest.mark.one_process
def test_pipelined_requests_are_asked_for_once(dduct: RunningDduct, told: Told, origin: Origin) -> None:
    paths = [f"/r/{number}.deb" for number in range(6)]
    for path in paths:
        told.reactions[path] = missing(GOOD_FOR, body=path.encode())
    host = f"Host: {HOST}:{origin.port}\r\n"
    for _ in range(2):
        with dduct.intercepted(origin) as client:
            client.send("".join(f"GET {path} HTTP/1.1\r\n{host}\r\n" for path in paths).encode())
            assert [client.read().body for _ in paths] == [path.encode() for path in paths]
    assert sorted(asked.target for asked in origin.requests) == paths


@pytest.mark.one_process
def test_what_is_known_to_be_missing_is_not_asked_for_ahead(dduct: RunningDduct, told: Told, origin: Origin) -> None:
    paths, gate = [f"/r/{number}.deb" for number in range(5)], Gate()
    for path in paths:
        told.reactions[path] = missing()
        ask(dduct, origin, path=path)

    def slow(_: Asked, connection: Connection) -> None:
        gate.wait()
        connection.respond(200, [GOOD_FOR], b"first")

    def last(_: Asked, connection: Connection) -> None:
        gate.open()
        connection.respond(200, [GOOD_FOR], b"last")

    told.reactions.update({"/r/first.deb": slow, "/r/last.deb": last})
    host = f"Host: {HOST}:{origin.port}\r\n"
    with dduct.intercepted(origin) as client:
        asked = ["/r/first.deb", *paths, "/r/last.deb"]
        client.send("".join(f"GET {path} HTTP/1.1\r\n{host}\r\n" for path in asked).encode())
        assert [client.read().body for _ in asked] == [b"first", *([GONE] * 5), b"last"]
    assert dduct.counters.value(Counter.AHEAD) == 1
    assert all(origin.count(path) == 1 for path in asked)


# --- the poller's thread -----------------------------------------------------------------------------


@pytest.fixture
def polled(monkeypatch: pytest.MonkeyPatch) -> List[int]:
    """The statuses of what the poller's thread has sent; however busy this machine's disk is, it uses it."""
    statuses: List[int] = []
    real = SessionState.note

    def note(state: SessionState, answer: small_hit.Answer, seconds: float) -> None:
        statuses.append(answer.status)
        real(state, answer, seconds)

    monkeypatch.setattr(SessionState, "note", note)
    monkeypatch.setattr(DiskWatch, "may_poll", lambda *_: True)
    return statuses


def test_the_poller_s_thread_answers_as_a_session_s_thread_does(
    dduct: RunningDduct, origin: Origin, polled: List[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dduct.session"):
        ask(dduct, origin)
        fast = ask(dduct, origin)
        assert polled == [404]
        slow = ask(dduct, origin, "Cache-Control: max-age=100")
        assert polled == [404]
        wait_until(lambda: len([line for line in caplog.messages if " hit; " in line]) == 2)
    assert (fast.status, fast.body) == (slow.status, slow.body)
    for one, other in zip(fast.headers, slow.headers):
        assert one == other or one[0] == other[0] in ("Age", "Cache-Status")
    lines = [re.sub(r"[0-9.]+s hit; ttl=[0-9]+", "hit", line) for line in caplog.messages if " hit; " in line]
    assert lines[0] == lines[1] and lines[0].endswith(f" 404 {len(GONE)} hit; detail=negative")


def test_an_object_that_the_poller_s_thread_stores_ends_it(dduct: RunningDduct, told: Told, polled: List[int]) -> None:
    origin = primed(dduct, told)
    assert ask(dduct, origin).status == 404
    del told.reactions[PATH]
    assert ask(dduct, origin, "User-Agent: another").status == 200
    assert polled == [404, 200]
    dduct.wait_until_durable()
    for name in dduct.stored():
        (dduct.files / name).unlink()
    assert ask(dduct, origin).status == 200


def test_a_client_that_asks_again_and_again_needs_no_thread(
    dduct: RunningDduct, origin: Origin, polled: List[int]
) -> None:
    with dduct.intercepted(origin) as client:
        for _ in range(10):
            assert client.get(PATH, f"{HOST}:{origin.port}").body == GONE
    assert len(polled) >= 6 and origin.count(PATH) == 1
