"""A leader's failure by its own request is not shared with followers, and followers do not all ask the origin."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Iterator, List

import pytest
from support.client import Answer, wait_until
from support.origin import Asked, Connection, Gate
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter

BODY = b"good" * 1000
FRESH = ("Cache-Control", "max-age=1000")


class Picky:
    """An origin that does something else for requests with an odd field; it waits for its gate first."""

    def __init__(self, odd: Callable[[Connection], None]) -> None:
        self.odd = odd
        self.gate = Gate()

    def __call__(self, asked: Asked, connection: Connection) -> None:
        if asked.get("x-odd") is not None:
            self.gate.wait()
            self.odd(connection)
        else:
            connection.respond(200, [("ETag", '"1"'), FRESH], BODY)


def following(dduct: RunningDduct, count: int) -> Callable[[], bool]:
    """Whether so many read along, or wait to, beside the leader of the only fill."""
    return lambda: sum(fill.snapshot().readers for fill in dduct.fills()) >= count


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as executor:
        yield executor


Answers = List["Future[Answer]"]
FAILURES = {
    "hangs up": Connection.fin,
    "resets": Connection.reset,
    "sends no HTTP": lambda connection: connection.send(b"nonsense\r\n\r\n"),
    "sends two lengths": lambda connection: connection.send(
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_follower_with_another_request_does_not_share_the_leaders_failure(
    dduct: RunningDduct, pool: ThreadPoolExecutor, failure: str
) -> None:
    picky = Picky(FAILURES[failure])
    origin = dduct.origin(picky)
    leader = pool.submit(dduct.fetch, origin, "/x.deb", "X-Odd: 1")
    picky.gate.reached()
    clean = [pool.submit(dduct.fetch, origin, "/x.deb") for _ in range(5)]
    wait_until(following(dduct, 5))
    picky.gate.open()
    assert leader.result(20).status == 502
    assert [answer.result(20).body for answer in clean] == [BODY] * 5
    assert len(origin.requests) == 2


@pytest.mark.parametrize("failure", FAILURES)
def test_a_follower_with_the_same_request_shares_the_leaders_failure(
    dduct: RunningDduct, pool: ThreadPoolExecutor, failure: str
) -> None:
    picky = Picky(FAILURES[failure])
    origin = dduct.origin(picky)
    answers = [pool.submit(dduct.fetch, origin, "/x.deb", "X-Odd: 1") for _ in range(10)]
    picky.gate.reached()
    wait_until(following(dduct, 9))
    picky.gate.open()
    assert [answer.result(20).status for answer in answers] == [502] * 10
    assert len(origin.requests) == 1


def test_few_followers_retry_one_after_another(dduct: RunningDduct, pool: ThreadPoolExecutor) -> None:
    picky = Picky(Connection.fin)
    origin = dduct.origin(picky)
    answers = [pool.submit(dduct.fetch, origin, "/x.deb", f"X-Odd: {number}") for number in range(20)]
    picky.gate.reached()
    wait_until(following(dduct, 19))
    picky.gate.open()
    assert [answer.result(20).status for answer in answers] == [502] * 20
    assert len(origin.requests) <= 3


def test_an_origin_that_cannot_be_verified_is_tried_once_for_all(dduct: RunningDduct, pool: ThreadPoolExecutor) -> None:
    gate, tries = Gate(), []
    with socket.create_server((HOST, 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    sock = listener.accept()[0]
                except OSError:
                    return
                tries.append(1)
                gate.wait()
                sock.close()

        thread = threading.Thread(target=accept)
        thread.start()
        port = listener.getsockname()[1]

        def ask(number: int) -> Answer:
            with dduct.client() as client:
                assert client.connect(f"{HOST}:{port}").status == 200
                client.start_tls(dduct.trust, HOST)
                return client.get("/x.deb", f"{HOST}:{port}", f"X-Odd: {number}")

        answers = [pool.submit(ask, number) for number in range(10)]
        gate.reached()
        wait_until(following(dduct, 9))
        gate.open()
        assert [answer.result(20).status for answer in answers] == [502] * 10
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert len(tries) == 1


# --- slow to the leader -----------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetching.following._SLOW_HEAD", 0.05)


@pytest.mark.usefixtures("impatient")
def test_an_origin_that_is_slow_to_the_leader_is_asked_once_more(dduct: RunningDduct, pool: ThreadPoolExecutor) -> None:
    picky = Picky(lambda connection: connection.respond(200, [("ETag", '"1"'), FRESH], BODY))
    origin = dduct.origin(picky)
    leader = pool.submit(dduct.fetch, origin, "/x.deb", "X-Odd: 1")
    picky.gate.reached()
    clean = [pool.submit(dduct.fetch, origin, "/x.deb", f"User-Agent: {number}") for number in range(10)]
    assert [answer.result(20).body for answer in clean] == [BODY] * 10  # and the leader still waits
    assert len(origin.requests) == 2 and dduct.counted(Counter.PUBLISHED) == 1
    picky.gate.open()
    answer = leader.result(20)
    assert answer.body == BODY and "hit" in (answer.get("cache-status") or "")
    assert dduct.counted(Counter.PUBLISHED) == 1 and len(origin.requests) <= 3  # perhaps, whether it may have it


@pytest.mark.usefixtures("impatient")
def test_a_slow_leader_may_still_be_answered_first(dduct: RunningDduct, pool: ThreadPoolExecutor) -> None:
    gates = [Gate(), Gate()]

    def answer(asked: Asked, connection: Connection) -> None:
        gates[asked.get("user-agent") == "second"].wait()
        connection.respond(200, [("ETag", '"1"'), FRESH], BODY)

    origin = dduct.origin(answer)
    leader = pool.submit(dduct.fetch, origin, "/x.deb", "User-Agent: first")
    gates[0].reached()
    second = pool.submit(dduct.fetch, origin, "/x.deb", "User-Agent: second")
    gates[1].reached()
    third = pool.submit(dduct.fetch, origin, "/x.deb", "User-Agent: third")
    gates[0].open()
    assert leader.result(20).body == third.result(20).body == BODY
    gates[1].open()
    assert second.result(20).body == BODY and len(origin.requests) == 2
    assert dduct.counted(Counter.PUBLISHED) == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("first_to_fail", ["leader", "second"])
def test_one_of_two_asking_requests_fails_and_the_other_is_answered(
    dduct: RunningDduct, pool: ThreadPoolExecutor, first_to_fail: str
) -> None:
    gates = {"leader": Gate(), "second": Gate()}

    def answer(asked: Asked, connection: Connection) -> None:
        who = asked.get("user-agent") or ""
        gates[who].wait()
        if who == first_to_fail:
            connection.fin()
        else:
            connection.respond(200, [("ETag", '"1"'), FRESH], BODY)

    origin = dduct.origin(answer)
    leader = pool.submit(dduct.fetch, origin, "/x.deb", "User-Agent: leader")
    gates["leader"].reached()
    second = pool.submit(dduct.fetch, origin, "/x.deb", "User-Agent: second")
    gates["second"].reached()
    gates[first_to_fail].open()
    third = pool.submit(dduct.fetch, origin, "/x.deb", "User-Agent: leader")
    wait_until(lambda: len(dduct.fills()) == 1 and dduct.fills()[0].snapshot().readers >= 2)
    for gate in gates.values():
        gate.open()
    assert [one.result(20).body for one in (leader, second, third)] == [BODY] * 3
    assert len(origin.requests) == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("validated", [False, True])
def test_many_equal_requests_ask_the_origin_once(
    dduct: RunningDduct, pool: ThreadPoolExecutor, validated: bool
) -> None:
    gate = Gate()
    slow = [not validated]

    def answer(asked: Asked, connection: Connection) -> None:
        if slow:
            gate.wait()
        if asked.get("if-none-match") == '"1"':
            connection.head(304, [("ETag", '"1"')])
        else:
            connection.respond(200, [("ETag", '"1"'), ("Cache-Control", "max-age=0")], BODY)

    origin = dduct.origin(answer)
    slow.clear()
    if validated:
        assert dduct.fetch(origin, "/x.deb").body == BODY
        wait_until(lambda: not dduct.fills())
    slow.append(True)
    before = len(origin.requests)
    answers = [pool.submit(dduct.fetch, origin, "/x.deb") for _ in range(30)]
    gate.reached()
    wait_until(following(dduct, 29))
    waited = threading.Event()
    waited.wait(0.2)  # four times the longest wait for a leader with another request
    gate.open()
    assert [one.result(20).body for one in answers] == [BODY] * 30
    assert len(origin.requests) == before + 1


@pytest.mark.usefixtures("impatient")
def test_followers_of_a_response_that_is_not_stored_each_ask_the_origin(
    dduct: RunningDduct, pool: ThreadPoolExecutor
) -> None:
    picky = Picky(lambda connection: connection.respond(200, [("Cache-Control", "no-store")], b"odd"))

    def answer(asked: Asked, connection: Connection) -> None:
        if asked.get("x-odd") is None:
            connection.respond(200, [("Cache-Control", "no-store")], BODY)
        else:
            picky(asked, connection)

    origin = dduct.origin(answer)
    leader = pool.submit(dduct.fetch, origin, "/x.deb", "X-Odd: 1")
    picky.gate.reached()
    assert dduct.fetch(origin, "/x.deb").body == BODY
    picky.gate.open()
    assert leader.result(20).body == b"odd" and dduct.stored() == []


def test_a_request_with_no_store_leads_no_followers(dduct: RunningDduct, pool: ThreadPoolExecutor) -> None:
    gate = Gate()

    def answer(asked: Asked, connection: Connection) -> None:
        if asked.get("cache-control") == "no-store":
            gate.wait()
        connection.respond(200, [("ETag", '"1"'), FRESH], BODY)

    origin = dduct.origin(answer)
    first = pool.submit(dduct.fetch, origin, "/x.deb", "Cache-Control: no-store")
    gate.reached()
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert dduct.counted(Counter.PUBLISHED) == 1
    gate.open()
    assert first.result(20).body == BODY


def test_followers_in_another_worker_do_not_share_the_leaders_failure(
    start_dduct: Callable[..., RunningDduct], pool: ThreadPoolExecutor
) -> None:
    dduct = start_dduct(workers=2)
    picky = Picky(Connection.fin)
    origin = dduct.origin(picky)
    leader = pool.submit(dduct.fetch, origin, "/x.deb", "X-Odd: 1")
    picky.gate.reached()
    clean: Answers = [pool.submit(dduct.fetch, origin, "/x.deb") for _ in range(8)]
    picky.gate.open()
    assert leader.result(20).status == 502
    assert [answer.result(30).body for answer in clean] == [BODY] * 8
    assert len(origin.requests) <= 4
