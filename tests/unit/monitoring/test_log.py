"""Warnings that come limited."""

from __future__ import annotations

import logging

import pytest

from monitoring.log import RateLimitedLog


def test_one_line_in_a_while_and_the_count_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    limited = RateLimitedLog(logging.getLogger("test"), 60, clock=lambda: now[0])
    for number in range(5):
        limited.warning("trouble %d", number)
    now[0] = 60.0
    limited.warning("trouble %d", 9)
    assert [record.getMessage() for record in caplog.records] == ["trouble 0", "trouble 9 (and 4 like it before)"]
