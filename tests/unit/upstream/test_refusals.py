"""Which requests are not sent because their origin wants none, for how long, and which one finds out."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Optional

import pytest

from net.addresses import Reach
from protocol import field_values
from protocol.headers import Headers
from protocol.http1 import ResponseHead, parse_absolute
from storage.shared_table import SharedTable
from upstream.refusals import Refusals
from upstream.request import Purpose, Request


def asks(credentials: Optional[bytes] = b"", url: str = "https://registry.example/v2/a/manifests/1") -> Request:
    request = Request(b"GET", parse_absolute(url.encode()), Headers(), Reach.NOTHING, Purpose.FILL)
    return replace(request, credentials=credentials)


def answer(status: int = 429, later: Optional[bytes] = b"60") -> ResponseHead:
    return ResponseHead(status, b"", 1, Headers([] if later is None else [(b"Retry-After", later)]))


class Around:
    def __init__(self) -> None:
        self.now = 1000.0
        self.table = SharedTable(64)
        self.refusals = Refusals(self.table, lambda: self.now)


@pytest.fixture
def around() -> Around:
    return Around()


@pytest.mark.parametrize("status", [429, 503])
def test_an_origin_that_refuses_is_not_asked_until_it_said(around: Around, status: int) -> None:
    assert around.refusals.wait(asks()) is None
    assert around.refusals.note(asks(), answer(status)) == 60.0
    assert around.refusals.note(asks(), answer(status)) == 0.0  # no news
    around.now += 59
    assert around.refusals.wait(asks()) == (status, 1.0)
    around.now += 1
    assert around.refusals.wait(asks()) is None
    assert around.refusals.wait(asks()) == (status, 10.0)  # one finds out


@pytest.mark.parametrize(
    ("response", "seconds"),
    [
        (answer(503, None), 0.0),
        (answer(200), 0.0),
        (answer(404), 0.0),
        (answer(500), 0.0),
        (answer(429, None), 10.0),
        (answer(429, b"soon"), 10.0),
        (answer(429, b"0"), 1.0),
        (answer(429, b"-5"), 10.0),
        (answer(429, b"9" * 400), 600.0),
        (answer(429, b"86400"), 600.0),
        (answer(429, b"Thu, 01 Jan 1970 00:00:00 GMT"), 1.0),
    ],
)
def test_how_long_a_response_refuses(around: Around, response: ResponseHead, seconds: float) -> None:
    assert around.refusals.note(asks(), response) == seconds


def test_a_date_says_how_long(around: Around) -> None:
    date = field_values.format_date(time.time() + 100)
    assert 90 < around.refusals.note(asks(), answer(429, date)) <= 100


def test_any_other_answer_ends_a_refusal(around: Around) -> None:
    around.refusals.note(asks(), answer())
    around.refusals.note(asks(), answer(200))
    assert around.refusals.wait(asks()) is None


def test_credentials_and_origins_are_refused_each_for_itself(around: Around) -> None:
    around.refusals.note(asks(b"Bearer a"), answer())
    assert around.refusals.wait(asks(b"Bearer a")) is not None
    assert around.refusals.wait(asks(b"Bearer b")) is None
    assert around.refusals.wait(asks()) is None
    assert around.refusals.wait(asks(b"Bearer a", "https://registry.example:444/x")) is None
    assert around.refusals.wait(asks(b"Bearer a", "http://registry.example/x")) is None
    assert around.refusals.wait(asks(b"Bearer a", "https://registry.example/other")) is not None


def test_what_concerns_one_request_alone_is_not_noted(around: Around) -> None:
    assert around.refusals.note(asks(None), answer()) == 0.0
    around.refusals.note(asks(), answer())
    assert around.refusals.wait(asks(None)) is None


def test_another_process_knows(around: Around) -> None:
    around.refusals.note(asks(), answer())
    assert Refusals(around.table, lambda: around.now).wait(asks()) is not None
