"""The bytes of a fill that come ahead: who asks for them, who waits, and who takes them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Iterator, List, Union

import pytest

from cache import Cache, Lead
from storage.record import Metadata
from storage.store import Key
from transfers import far_bytes as module
from transfers.cells import Cells
from transfers.far_bytes import WORTH, FarBytes, FarSnapshot, Step
from transfers.pace import Pace
from transfers.spans import Span

LENGTH = 100 * WORTH
DATA = memoryview(bytes(range(256)) * (WORTH // 256))


class Slow(Pace):
    """A pace that the test sets."""

    rate: float = 1000.0


@pytest.fixture
def pace() -> Slow:
    return Slow()


@pytest.fixture
def far(tmp_path: Path, pace: Slow) -> Iterator[FarBytes]:
    cache = Cache(tmp_path)
    claim = cache.claim(Key("https/some.thing/x.deb"))
    assert isinstance(claim, Lead)
    made = FarBytes(cache.store, claim.fill.file, LENGTH, threading.BoundedSemaphore(20), pace=pace)
    yield made
    made.close()
    claim.fill.close()


def asked(step: Union[Step, Span]) -> Span:
    assert isinstance(step, Span), step
    return step


def bring(far: FarBytes, start: int, end: int, reader: object = "someone") -> Span:
    """Bytes that come ahead."""
    span = asked(far.look(reader, start, end))
    for _ in range((end - start) // WORTH):
        far.store(span, DATA)
    far.finish(span)
    return span


def read(far: FarBytes, offset: int, count: int) -> bytes:
    view = memoryview(bytearray(count))
    return bytes(view[: far.read(view, offset)])


def test_what_is_far_is_asked_for_and_then_read(far: FarBytes) -> None:
    span = asked(far.look("a", 10 * WORTH, 12 * WORTH))
    assert (span.start, span.end) == (10 * WORTH, 12 * WORTH)
    assert far.look("b", 10 * WORTH, 12 * WORTH) is Step.WAIT
    assert far.store(span, DATA) and not far.store(span, DATA)
    assert far.look("b", 11 * WORTH, 12 * WORTH) is Step.READ
    assert read(far, 10 * WORTH, 3 * WORTH) == DATA.tobytes() * 2
    far.finish(span)
    assert far.snapshot() == FarSnapshot(2 * WORTH, 0)


@pytest.mark.parametrize("rate", [0.0, 1.0, WORTH, 20.0 * WORTH])
def test_what_the_fill_brings_soon_is_waited_for(far: FarBytes, pace: Slow, rate: float) -> None:
    pace.rate = rate
    assert far.look("a", WORTH, LENGTH) is Step.FILL
    second = int(max(rate, WORTH))
    assert far.look("a", second, LENGTH) in (Step.FILL, Step.SOON)
    asked(far.look("a", second + 1, LENGTH))


def test_nothing_is_asked_for_before_the_pace_is_known(far: FarBytes, pace: Slow) -> None:
    pace.rate = None  # type: ignore[assignment]
    assert far.look("a", 50 * WORTH, LENGTH) is Step.WAIT


def test_a_reader_that_may_not_ask_reads_what_others_bring(far: FarBytes) -> None:
    assert far.look("a", 10 * WORTH, LENGTH, may_ask=False) is Step.FILL
    span = asked(far.look("b", 10 * WORTH, LENGTH))
    assert far.look("a", 10 * WORTH, LENGTH, may_ask=False) is Step.WAIT
    far.store(span, DATA)
    assert far.look("a", 10 * WORTH, LENGTH, may_ask=False) is Step.READ


def test_only_the_gaps_between_ranges_are_asked_for(far: FarBytes) -> None:
    bring(far, 20 * WORTH, 22 * WORTH)
    span = asked(far.look("a", 10 * WORTH, 30 * WORTH))
    assert span.end == 20 * WORTH
    span = asked(far.look("a", 22 * WORTH, 30 * WORTH))
    assert (span.start, span.end) == (22 * WORTH, 30 * WORTH)


def test_what_lies_far_ahead_in_a_range_that_runs_is_asked_for_by_itself(far: FarBytes) -> None:
    first = asked(far.look("a", 10 * WORTH, LENGTH))
    far.store(first, DATA)
    assert far.look("b", 12 * WORTH - 1, LENGTH) is Step.WAIT
    second = asked(far.look("b", 50 * WORTH, LENGTH))
    assert first.end == 50 * WORTH and second.end == LENGTH


def test_ranges_are_limited_for_a_fill_and_for_the_process(far: FarBytes, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = [asked(far.look(place, (10 + 2 * place) * WORTH, (11 + 2 * place) * WORTH)) for place in range(16)]
    assert far.look("late", 90 * WORTH, LENGTH) is Step.WAIT
    far.finish(spans[0])
    spans.append(asked(far.look("late", 90 * WORTH, LENGTH)))
    monkeypatch.setattr(module, "_MAX_RUNNING", 100)
    for place in range(4):
        spans.append(asked(far.look(("more", place), (50 + 2 * place) * WORTH, (51 + 2 * place) * WORTH)))
    assert far.look("too many", 80 * WORTH, LENGTH) is Step.WAIT


def test_what_is_scattered_too_much_waits_for_the_fill(far: FarBytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_SPANS", 2)
    bring(far, 10 * WORTH, 11 * WORTH)
    bring(far, 20 * WORTH, 21 * WORTH)
    assert far.look("a", 30 * WORTH, LENGTH) is Step.FILL


def test_a_range_without_readers_ends_once_it_is_worth_its_connection(far: FarBytes) -> None:
    span = asked(far.look("a", 10 * WORTH, 20 * WORTH))
    far.leave("a")
    assert not far.wants(span)
    assert far.look("a", 10 * WORTH, 20 * WORTH) is Step.WAIT and far.wants(span)
    assert far.store(span, DATA[: WORTH // 2])
    far.leave("a")
    assert far.wants(span)
    assert not far.store(span, DATA[: WORTH // 2]) and not far.wants(span)


def test_a_range_that_the_filler_has_reached_goes_on_without_readers(far: FarBytes) -> None:
    span = asked(far.look("a", 10 * WORTH, 20 * WORTH))
    far.store(span, DATA)
    far.leave("a")
    far.advance(10 * WORTH, WORTH)
    assert far.wants(span) and far.store(span, DATA)
    view = memoryview(bytearray(4 * WORTH))
    assert far.take(view, 10 * WORTH) == 2 * WORTH


def test_a_range_that_the_filler_has_overtaken_ends(far: FarBytes) -> None:
    span = asked(far.look("a", 10 * WORTH, 20 * WORTH))
    far.store(span, DATA)
    far.advance(12 * WORTH, WORTH)
    assert not far.wants(span) and not far.store(span, DATA)
    far.finish(span)
    assert far.snapshot() == FarSnapshot(0, 0)


def test_the_filler_skips_what_is_worth_it(far: FarBytes) -> None:
    assert far.next_part(0) == (LENGTH, LENGTH)
    running = asked(far.look("b", 30 * WORTH, 40 * WORTH))
    assert far.next_part(0) == (LENGTH, LENGTH)  # it has no bytes yet
    far.store(running, DATA[:1])
    assert far.next_part(0) == (30 * WORTH, 40 * WORTH)
    bring(far, 10 * WORTH, 12 * WORTH)
    assert far.next_part(0) == (10 * WORTH, 12 * WORTH)
    assert far.next_part(11 * WORTH) == (11 * WORTH, 12 * WORTH)
    assert far.next_part(12 * WORTH - 1) == (30 * WORTH, 40 * WORTH)  # less than what a question costs
    last = asked(far.look("c", LENGTH - 10, LENGTH))
    far.store(last, DATA[:10])
    far.finish(last)
    assert far.next_part(40 * WORTH) == (LENGTH - 10, LENGTH)  # nothing lies behind


def test_a_range_that_stalls_is_not_waited_for(far: FarBytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STALLED", 0.01)
    span = asked(far.look("a", 10 * WORTH, 20 * WORTH))
    far.store(span, DATA)
    far.advance(11 * WORTH, 0)
    assert far.take(memoryview(bytearray(10)), 11 * WORTH) == 0
    assert far.next_part(11 * WORTH) == (LENGTH, LENGTH)


def test_a_waiting_reader_hears_of_its_bytes(far: FarBytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_AGAIN", 60.0)
    span = asked(far.look("a", 10 * WORTH, 20 * WORTH))
    waiting = threading.Thread(target=far.wait, args=(10 * WORTH,))
    waiting.start()
    far.store(span, DATA)
    waiting.join(20.0)
    assert not waiting.is_alive()


def test_what_is_stopped_or_closed_asks_for_nothing(far: FarBytes) -> None:
    bring(far, 10 * WORTH, 11 * WORTH)
    far.stop()
    assert far.look("a", 50 * WORTH, LENGTH) is Step.FILL
    assert far.look("a", 10 * WORTH, LENGTH) is Step.READ
    far.close()
    assert read(far, 10 * WORTH, 10) == b""


def test_what_came_ahead_counts_as_growth_of_its_fill(tmp_path: Path, pace: Slow) -> None:
    cache = Cache(tmp_path)
    claim = cache.claim(Key("https/some.thing/x.deb"))
    assert isinstance(claim, Lead)
    fill = claim.fill
    far = fill.far = FarBytes(cache.store, fill.file, LENGTH, threading.BoundedSemaphore(20), pace=pace)
    fill.start(Metadata("https://some.thing/x.deb", (), 1000.0), LENGTH)
    bring(far, 20 * WORTH, 30 * WORTH)
    fill.write(DATA)
    assert cache.store.space.situation().known == 10 * WORTH
    fill.write(DATA)
    far.advance(25 * WORTH, 0)
    assert fill.file.beside == 5 * WORTH
    fill.close()
    assert cache.store.space.situation().known == 0


def test_a_range_that_ends_earlier_while_it_writes_has_no_byte_of_the_next(
    far: FarBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asked(far.look("a", 10 * WORTH, LENGTH))
    real = Cells.write
    others: List[Span] = []

    def write(cells: Cells, data: memoryview, offset: int) -> None:
        real(cells, data, offset)
        if not others:
            others.append(asked(far.look("b", 12 * WORTH, 20 * WORTH)))

    monkeypatch.setattr(Cells, "write", write)
    assert not far.store(first, memoryview(bytes(3 * WORTH)))
    assert first.position == first.end == others[0].start == others[0].position
