"""Warnings that come seldom."""

from __future__ import annotations

import logging

import pytest

from monitoring.log import Seldom


def test_one_line_in_a_while_and_the_count_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    seldom = Seldom(logging.getLogger("test"), 60, clock=lambda: now[0])
    for number in range(5):
        seldom.warning("trouble %d", number)
    now[0] = 60.0
    seldom.warning("trouble %d", 9)
    assert [record.getMessage() for record in caplog.records] == ["trouble 0", "trouble 9 (and 4 like it before)"]
