"""Warnings that come limited."""

from __future__ import annotations

import logging

import pytest

from monitoring.log import RateLimitedLog


def test_a_rate_limited_log_counts_the_suppressed_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    limited = RateLimitedLog(logging.getLogger("test"), 60, clock=lambda: now[0])
    for number in range(5):
        limited.warning("trouble %d", number)
    now[0] = 60.0
    limited.warning("trouble %d", 9)
    assert [record.getMessage() for record in caplog.records] == ["trouble 0", "trouble 9 (and 4 like it before)"]
