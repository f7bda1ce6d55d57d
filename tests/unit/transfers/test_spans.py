"""Which bytes have come ahead of their turn."""

from __future__ import annotations

import threading
from typing import List, Tuple

from transfers.spans import Span, Spans


def add(spans: Spans, start: int, end: int, count: int = -1) -> Span:
    """A span that has had `count` bytes, and runs; all of them, and it runs no more, by default."""
    span = spans.add(start, end, threading.Condition())
    span.position = start + (end - start if count < 0 else count)
    if count < 0:
        spans.finish(span)
    return span


def shown(spans: Spans) -> List[Tuple[int, int, int]]:
    return [(span.start, span.position, span.reach) for span in spans]


def test_finished_spans_that_touch_are_one() -> None:
    spans = Spans()
    for start in (20, 0, 10, 40):
        add(spans, start, start + 10)
    assert shown(spans) == [(0, 30, 30), (40, 50, 50)]
    assert spans.size == 40 and len(spans) == 2 and spans.running == 0


def test_a_new_span_ends_where_the_next_begins() -> None:
    spans = Spans()
    add(spans, 20, 30)
    assert add(spans, 5, 100, count=0).end == 20


def test_a_new_span_inside_one_that_runs_ends_that_one() -> None:
    spans = Spans()
    first = add(spans, 0, 100, count=10)
    second = add(spans, 50, 100, count=0)
    assert (first.end, second.start, second.end) == (50, 50, 100)
    assert spans.covering(49) is first and spans.covering(50) is second and spans.covering(100) is None


def test_of_a_span_that_ends_early_the_bytes_stay_that_are_here() -> None:
    spans = Spans()
    spans.finish(add(spans, 0, 100, count=10))
    assert shown(spans) == [(0, 10, 10)] and spans.covering(10) is None
    spans.finish(add(spans, 50, 60, count=0))
    assert len(spans) == 1


def test_bytes_are_counted_between_offsets() -> None:
    spans = Spans()
    add(spans, 10, 20)
    add(spans, 30, 60, count=10)
    assert [spans.here_between(*window) for window in ((0, 100), (15, 35), (20, 30), (0, 5))] == [20, 10, 0, 0]
    following = spans.following(10)
    assert following is not None and following.start == 30 and spans.following(30) is None


def test_bytes_before_an_offset_are_forgotten() -> None:
    spans = Spans()
    add(spans, 10, 20)
    running = add(spans, 30, 60, count=10)
    spans.drop_before(5)
    assert spans.size == 20
    spans.drop_before(15)
    assert shown(spans) == [(15, 20, 20), (30, 40, 60)]
    spans.drop_before(40)
    assert shown(spans) == [(40, 40, 60)] and running.running


def test_a_span_that_is_overtaken_runs_no_more() -> None:
    spans = Spans()
    running = add(spans, 30, 60, count=10)
    spans.drop_before(41)
    assert len(spans) == 0 and not running.running
    spans.finish(running)
    assert len(spans) == 0
