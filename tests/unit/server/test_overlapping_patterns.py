"""Filters that are too slow because alternatives overlap, or wildcards follow one another."""

from __future__ import annotations

import time

import pytest

from server.patterns import too_slow

SLOW = [
    r"^/(a|aa)+$",
    r"^/(?:foo|foo)+\.deb$",
    r"^/(?:\d+|[a-z\d]+)+\.gz$",
    r"^/x$|^/(?:%[0-9A-F]{2}|[^/])+\.gz$",
    r"(.*)*x",
    r".*.*.*x",
    r"^/.*.*.*.*x",
    r"^(?=(?:[a-z]+)+!)",
]


@pytest.mark.parametrize("text", SLOW)
def test_a_filter_whose_parts_overlap_is_found_quickly(text: str) -> None:
    started = time.thread_time()
    assert too_slow(text)
    assert time.thread_time() - started < 10
