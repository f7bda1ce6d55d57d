"""How many further requests origins say that they answer."""

from __future__ import annotations

import os
from typing import Optional

import pytest

from monitoring.metrics import Counters
from protocol.headers import Headers
from protocol.http1 import ResponseHead, parse_absolute
from storage.shared_table import SharedNumbers
from upstream.rate_limits import RateLimits

TARGET, OTHER = parse_absolute(b"https://registry.example/v2/a/manifests/1"), parse_absolute(b"http://other.example/x")


def answer(name: str, value: str) -> ResponseHead:
    return ResponseHead(200, b"", 1, Headers([(name.encode(), value.encode())]))


def noted(name: str, value: str) -> Optional[int]:
    limits = RateLimits(SharedNumbers(4), 10, lambda: 0.0)
    limits.note(TARGET, answer(name, value))
    return dict(limits.all()).get("https://registry.example:443")


@pytest.mark.parametrize(
    ("name", "value", "remaining"),
    [
        ("RateLimit-Remaining", "76;w=21600", 76),
        ("ratelimit-remaining", " 0 ", 0),
        ("X-RateLimit-Remaining", "4999", 4999),
        ("X-Rate-Limit-Remaining", "12", 12),
        ("RateLimit", "limit=100, remaining=50, reset=5", 50),
        ("RateLimit", '"default";r=7;t=30', 7),
        ("RateLimit-Remaining", "-1", None),
        ("RateLimit-Remaining", "many", None),
        ("RateLimit-Remaining", "9" * 10, None),
        ("RateLimit-Remaining", "1" + " " * 300, None),
        ("RateLimit", "limit=100", None),
        ("RateLimit", "x" * 300, None),
        ("X-Other", "5", None),
    ],
)
def test_what_a_response_says(name: str, value: str, remaining: Optional[int]) -> None:
    assert noted(name, value) == remaining


def test_a_number_below_the_floor_is_low_until_it_is_out_of_date() -> None:
    now = [0.0]
    limits = RateLimits(SharedNumbers(4), 10, lambda: now[0])
    assert not limits.is_low(TARGET)
    limits.note(TARGET, answer("RateLimit-Remaining", "9"))
    assert limits.is_low(TARGET) and not limits.is_low(OTHER)
    limits.note(TARGET, answer("RateLimit-Remaining", "10"))
    assert not limits.is_low(TARGET)
    limits.note(TARGET, answer("RateLimit-Remaining", "0"))
    now[0] = 7 * 3600.0
    assert not limits.is_low(TARGET) and not list(limits.all())


def test_without_a_floor_nothing_is_low() -> None:
    limits = RateLimits(SharedNumbers(4), 0, lambda: 0.0)
    limits.note(TARGET, answer("RateLimit-Remaining", "0"))
    assert not limits.is_low(TARGET)


def test_numbers_are_bounded_and_shared_with_other_processes() -> None:
    numbers = SharedNumbers(2)
    child = os.fork()
    if not child:
        for name, until in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("x" * 300, 4.0)):
            numbers.set(name, 5, until)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(numbers.items(0.0)) == [("b", 5), ("c", 5)]
    assert numbers.get("b", 2.0) is None


def test_metrics_have_a_number_for_each_origin() -> None:
    counters = Counters()
    counters.remaining = lambda: [('https://a"b', 7), ("https://c", 8)]
    text = counters.render()
    assert 'dduct_ratelimit_remaining{origin="https://a\\"b"} 7\n' in text
    assert 'dduct_ratelimit_remaining{origin="https://c"} 8\n' in text
