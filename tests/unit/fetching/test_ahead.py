"""Which answers end looking ahead; an origin and a cache in memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Callable

import pytest
from support.fetching import Answer, Around

from fetching.ahead import Ahead

GOOD_FOR = (b"Cache-Control", b"max-age=60")


class Waiting:
    """A request whose turn has not come."""

    def __init__(self) -> None:
        self.is_useless = False

    def started(self, release: Callable[[], None]) -> None:
        release()

    def useless(self) -> None:
        self.is_useless = True


@pytest.mark.parametrize(
    ("answer", "useless"),
    [(Answer(200, (), b"here"), False), (Answer(404, (GOOD_FOR,), b"gone"), False), (Answer(404, (), b"gone"), True)],
)
def test_an_answer_that_would_be_asked_for_again_is_useless(tmp_path: Path, answer: Answer, useless: bool) -> None:
    around, waiting = Around(tmp_path, answer), Waiting()
    ahead = Ahead(lambda _, work: work(), threading.Event())
    assert ahead.begin(around.services, around.request(), waiting)
    assert waiting.is_useless is useless
    if not useless:
        assert ahead.begin(around.services, around.request(), waiting)  # it is there, or known to be missing
    assert len(around.origins.asked) == 1
