"""One request of a client: its answer, its line in the log, and whether another may follow."""

from __future__ import annotations

import logging
import socket
from types import SimpleNamespace
from typing import Iterator, List, cast

import pytest
from support.pairs import Pairs, reset
from support.sessions import ADDRESS, ARRIVAL, LISTED, Surroundings

from monitoring.metrics import Counter
from net.body import IncompleteBody
from protocol import http1
from protocol.headers import Headers
from protocol.http1 import ResponseHead
from proxy.client_request import ClientRequest
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange
from upstream.request import Request

ORIGIN = "http://a.example"


@pytest.fixture
def around(caplog: pytest.LogCaptureFixture) -> Iterator[Surroundings]:
    caplog.set_level(logging.DEBUG, "dduct.session")
    with Pairs() as pairs:
        yield Surroundings(pairs)


def ask(around: Surroundings, method: str, target: str, *fields: str, body: bytes = b"") -> bool:
    """Serve a request, whose body is there already; returns whether another may follow."""
    block = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: a.example", *fields, "", ""]).encode()
    if body:
        around.far.sendall(body)
    head = http1.parse_request(block)
    return ClientRequest(around.state, around.tunnel, head, http1.request_framing(head)).answer(block)


class Answer:
    """An origin's response, as an exchange; it notes its end."""

    def __init__(self, pieces: List[bytes], length: int, whole: bool = True) -> None:
        self.head = ResponseHead(200, b"OK", 1, Headers([(b"Content-Length", b"%d" % length)]))
        self.body = SimpleNamespace(length=length, chunks=self._chunks, trailers=())
        self.closed, self.unhelpful = 0, False
        self._pieces = pieces
        self._whole = whole

    def _chunks(self, _: memoryview) -> Iterator[memoryview]:
        for piece in self._pieces:
            yield memoryview(piece)
        if not self._whole:
            raise IncompleteBody("connection closed inside the body")

    def relayed(self) -> None: ...

    def close(self) -> None:
        self.closed += 1


def answers(around: Surroundings, answer: Answer) -> List[Request]:
    """Let the origins give this answer; returns the requests that they get."""
    asked: List[Request] = []

    def give(request: Request) -> Exchange:
        asked.append(request)
        return cast(Exchange, answer)

    around.origins.answer = give
    return asked


def test_a_relayed_answer_passes_and_its_line_is_written_after_it(
    around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    answer = Answer([b"o", b"k"], 2)
    asked = answers(around, answer)
    assert ask(around, "GET", f"{ORIGIN}/x?q=secret", "X: y", "Connection: x-hop", "X-Hop: z") is True
    head = around.read()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"Cache-Status: dduct; fwd=bypass; detail=no-filter\r\n" in head
    assert around.far.recv(10) == b"ok"
    assert [*asked[0].headers] == [(b"X", b"y"), (b"Via", b"1.1 dduct")]
    assert (answer.closed, around.proved) == (1, 1)
    (line,) = caplog.messages
    assert line.startswith(f"{ADDRESS} GET {ORIGIN}/x 200 2 ") and line.endswith(" fwd=bypass; detail=no-filter")


def test_an_origin_that_breaks_off_cuts_the_answer_and_is_named(
    around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    answer = Answer([b"half"], 9, whole=False)
    answers(around, answer)
    assert ask(around, "GET", f"{ORIGIN}/x") is False
    assert around.read().startswith(b"HTTP/1.1 200 ") and around.far.recv(10) == b"half" and around.far.recv(1) == b""
    (record,) = caplog.records
    assert record.getMessage().endswith("; cut by its origin") and record.levelno == logging.WARNING
    assert answer.closed == 1


def test_an_origin_that_cannot_be_asked_is_an_error_after_which_the_connection_goes_on(
    around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    around.origins.error = UpstreamError("no answer from a.example:80", 504)
    assert ask(around, "GET", f"{ORIGIN}/x") is True
    assert around.read().startswith(b"HTTP/1.1 504 ")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.getMessage().endswith("no answer from a.example:80")
    assert Counter.REFUSED not in around.counted


def test_a_target_on_dducts_own_machine_counts_as_refused(around: Surroundings) -> None:
    around.origins.error = UpstreamError("a.example:80 is on dduct's own machine", 403)
    assert ask(around, "GET", f"{ORIGIN}/x") is True
    assert around.read().startswith(b"HTTP/1.1 403 ") and around.counted == [Counter.REFUSED]


def test_a_client_that_is_gone_ends_the_request_and_its_origin_is_not_blamed(
    around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    answer = Answer([b"x" * 65536] * 1000, 65536 * 1000)
    answers(around, answer)
    reset(around.far)
    with pytest.raises(OSError):
        ask(around, "GET", f"{ORIGIN}/x")
    (record,) = caplog.records
    assert "; cut by the client: " in record.getMessage() and record.levelno == logging.INFO
    assert answer.closed == 1


@pytest.mark.parametrize(
    ("field", "status", "more"),
    [
        ("Via: 1.1 dduct", 508, True),
        ("Expect: a-miracle", 417, False),  # client and dduct may disagree about where the next request begins
    ],
)
def test_a_request_that_is_refused_gets_its_status(around: Surroundings, field: str, status: int, more: bool) -> None:
    around.far.shutdown(socket.SHUT_WR)
    assert ask(around, "GET", f"{ORIGIN}/x", field) is more
    head = around.read()
    assert head.startswith(b"HTTP/1.1 %d " % status) and (b"Connection: close" not in head) is more


def test_the_unread_body_of_a_refused_request_is_read_if_it_is_short(around: Surroundings) -> None:
    around.origins.error = UpstreamError("it is not there", 502)
    assert ask(around, "POST", f"{ORIGIN}/x", "Content-Length: 10", body=b"0123456789") is True
    assert around.read().startswith(b"HTTP/1.1 502 ") and not around.state.stream.arrived()


def test_after_an_error_nobody_waits_for_a_body_that_was_to_be_asked_for(around: Surroundings) -> None:
    around.origins.error = UpstreamError("it is not there", 502)
    around.far.shutdown(socket.SHUT_WR)  # it has read the answer
    assert ask(around, "POST", f"{ORIGIN}/x", "Content-Length: 10", "Expect: 100-continue") is False
    assert b"Connection: close" in around.read()


def test_a_page_of_dduct_is_answered_without_any_origin(around: Surroundings, caplog: pytest.LogCaptureFixture) -> None:
    around.origins.error = UpstreamError("never asked")
    target = f"http://{ARRIVAL.local}/healthz"
    assert ask(around, "GET", target) is True
    head = around.read()
    assert head.startswith(b"HTTP/1.1 200 ") and b"detail=own-page" in head and around.far.recv(10) == b"ok\n"
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]


def test_max_forwards_ends_here(around: Surroundings) -> None:
    assert ask(around, "TRACE", f"{ORIGIN}/x", "Max-Forwards: 0") is True
    assert around.read().startswith(b"HTTP/1.1 200 ") and around.read().startswith(b"TRACE http://a.example/x ")


def test_connect_to_a_listed_host_has_its_leaf_before_its_answer(
    around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(around, "CONNECT", f"{LISTED}:443") is True
    assert around.read().startswith(b"HTTP/1.1 200 ")
    assert around.leaves == [LISTED] and around.counted == [Counter.INTERCEPTED]
    opening = around.state.opening
    assert opening is not None and str(opening.authority) == f"{LISTED}:443"
    assert caplog.messages[0].endswith(" intercept") and not around.origins.dialled


def test_a_client_that_may_no_longer_use_dduct_gets_403_and_the_end(around: Surroundings) -> None:
    around.clients.remove(ADDRESS)
    around.far.shutdown(socket.SHUT_WR)
    assert ask(around, "GET", f"{ORIGIN}/x") is False
    assert around.read().startswith(b"HTTP/1.1 403 ")
    assert (around.state.ending, around.proved) == (True, 0)
