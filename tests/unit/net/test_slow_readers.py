"""Readers that are slow: a stream waits for them as long as they go on."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Callable, Dict

import pytest
from support.layers import (
    LAYERS,
    MEGABYTES,
    connect,
)
from support.pairs import TIMEOUT, Pairs, in_thread

from net.stream import Stream

SLOW = 0.3  # seconds; the time-out of those who send to slow readers


@pytest.fixture(scope="module")
def slow_readings(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Future[None]]:
    """What became of slow readers of each layer, and of one of a file, by name: all at once, as each takes its time."""
    path = tmp_path_factory.mktemp("slow") / "file"
    path.write_bytes(MEGABYTES)
    with Pairs() as pairs, path.open("rb") as file, ThreadPoolExecutor(2 * len(LAYERS) + 1) as pool:
        readings = {}
        for name in LAYERS:
            stream, far = connect(pairs, name)
            readings[name] = pool.submit(read_slowly, stream, far, partial(send_a_piece, stream))
            readings[f"{name} in small pieces"] = pool.submit(read_in_small_pieces, *connect(pairs, name))
        stream, far = connect(pairs, "plain")
        send_file = partial(stream.send_file, file.fileno(), 0, 1 << 16)
        readings["file"] = pool.submit(read_slowly, stream, far, send_file)
        wait(readings.values())
    return readings


def read_in_small_pieces(stream: Stream, far: Stream) -> None:
    """It takes longer than the time-out in all, and never so long for a piece."""
    stream.timeout = SLOW
    sending = in_thread(stream.send, MEGABYTES)
    got = 0
    pace = threading.Event()
    view = memoryview(bytearray(200_000))
    while got < len(MEGABYTES):
        got += far.readinto(view)
        if not sending.done():
            pace.wait(0.002)
    sending.result(TIMEOUT)


def test_a_slow_reader_does_not_time_out(slow_readings: Dict[str, Future[None]], layer: str) -> None:
    slow_readings[f"{layer} in small pieces"].result(0)


def send_a_piece(stream: Stream) -> int:
    stream.send(memoryview(MEGABYTES)[: 1 << 16])
    return 1 << 16


def test_a_reader_that_frees_less_than_a_third_of_its_buffer_does_not_time_out(
    slow_readings: Dict[str, Future[None]], layer: str
) -> None:
    """The kernel tells of room when a third of its buffer is free: with megabytes in it, that may take long."""
    slow_readings[layer].result(0)


def test_a_slow_reader_of_a_file_does_not_time_out(slow_readings: Dict[str, Future[None]]) -> None:
    slow_readings["file"].result(0)


def read_slowly(stream: Stream, far: Stream, go_on: Callable[[], int]) -> None:
    """Fill all buffers, and read a quarter of a megabyte in each timeout, while `go_on` sends what it says."""
    sent = 0
    while count := stream.send_nowait(memoryview(MEGABYTES)[: 1 << 16]):
        sent += count
    stream.timeout = SLOW
    sending = in_thread(go_on)
    view, got = memoryview(bytearray(25_000)), 0
    pace, began = threading.Event(), time.monotonic()
    # the sender looks at its progress after 1 and 1.5
    while (elapsed := time.monotonic() - began) < 1.7 * stream.timeout:
        if got < 250_000 * elapsed / stream.timeout:
            got += far.readinto(view)  # also what it was late for
        else:
            pace.wait(0.02)
    drained = in_thread(read_much, far, view, got, sent)
    sent += sending.result(TIMEOUT)
    stream.close_abruptly()
    assert drained.result(TIMEOUT) + len(read_rest(far)) == sent


def read_much(far: Stream, view: memoryview, got: int, wanted: int) -> int:
    while got < wanted:
        got += far.readinto(view[: wanted - got])
    return got


def read_rest(far: Stream) -> bytes:
    """Up to an end of whatever kind."""
    rest = b""
    view = memoryview(bytearray(1 << 16))
    try:
        while count := far.readinto(view):
            rest += view[:count]
    except OSError:
        pass  # without close_notify
    return rest
