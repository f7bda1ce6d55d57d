"""Lines with the number of their request, and warnings that come limited."""

from __future__ import annotations

import logging

import pytest

from monitoring import request_number
from monitoring.log import LineFormatter, RateLimitedLog
from monitoring.request_number import RequestNumbers


def written(record: logging.LogRecord) -> str:
    return LineFormatter().format(record).partition("Z ")[2]


def test_a_line_has_the_number_of_the_request_for_which_its_thread_works() -> None:
    record = logging.LogRecord("dduct.session", logging.INFO, "", 0, "%s went", ("it",), None)
    numbers = RequestNumbers(17)
    assert written(record) == "INFO  dduct.session] it went"
    for request in (1, 2):
        with numbers:
            assert written(record) == f"INFO  dduct.session 17.{request - 1}] it went"
            numbers.begin()
            assert written(record) == f"INFO  dduct.session 17.{request}] it went"
        assert request_number.current() is None


def test_a_rate_limited_log_counts_the_suppressed_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    limited = RateLimitedLog(logging.getLogger("test"), 60, clock=lambda: now[0])
    for number in range(5):
        limited.warning("trouble %d", number)
    now[0] = 60.0
    limited.warning("trouble %d", 9)
    assert [record.getMessage() for record in caplog.records] == ["trouble 0", "trouble 9 (and 4 like it before)"]
