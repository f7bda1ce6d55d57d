"""Interim answers are passed on, and have an end."""

from __future__ import annotations

import socket
from typing import Iterator, List, Tuple

import pytest
from support.running import HOST

from net.stream import Stream
from protocol.http1 import ResponseHead
from upstream import response_head
from upstream.response_head import MAX_INTERIM, AnswerHeads, InterimFlood

FINAL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def pair() -> Iterator[Tuple[Stream, socket.socket]]:
    with socket.create_server((HOST, 0)) as listener:
        near = Stream(socket.create_connection(listener.getsockname()), 20.0)
        far, _ = listener.accept()
    with far:
        yield near, far
        near.close()


def interim(status: int, *fields: bytes) -> bytes:
    return b"HTTP/1.1 %d Wait\r\n%s\r\n" % (status, b"".join(field + b"\r\n" for field in fields))


def test_interim_responses_come_before_the_final_one(pair: Tuple[Stream, socket.socket]) -> None:
    stream, far = pair
    seen: List[int] = []

    def note(head: ResponseHead) -> None:
        seen.append(head.status)

    far.sendall(interim(100) + interim(103, b"Link: </x>") + interim(102) + FINAL)
    assert AnswerHeads(stream, note).final(20.0).status == 200
    assert seen == [103, 102]  # 100 is not passed on


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_the_number_of_interim_responses_is_bounded(pair: Tuple[Stream, socket.socket], status: int) -> None:
    stream, far = pair
    far.sendall(interim(status) * (MAX_INTERIM + 1) + FINAL)
    with pytest.raises(InterimFlood):
        AnswerHeads(stream, clock=lambda: 0.0).final(20.0)


def test_one_interim_response_a_second_is_no_flood(pair: Tuple[Stream, socket.socket]) -> None:
    """An upload reports its progress (104) for as long as it takes."""
    stream, far = pair
    now = [0.0]
    heads = AnswerHeads(stream, clock=lambda: now[0])
    for _ in range(10 * MAX_INTERIM):
        far.sendall(interim(104))
        now[0] += 1.0
        assert heads.next(20.0).status == 104


def test_the_size_of_interim_responses_is_bounded(pair: Tuple[Stream, socket.socket]) -> None:
    stream, far = pair
    far.sendall(interim(103, b"Link: " + b"x" * response_head.MAX_INTERIM_HEAD))
    with pytest.raises(InterimFlood):
        AnswerHeads(stream).final(20.0)


def test_interim_responses_do_not_extend_the_timeout(pair: Tuple[Stream, socket.socket]) -> None:
    stream, far = pair
    now = [0.0]

    def later(_: ResponseHead) -> None:
        now[0] += 0.6
        far.sendall(interim(102))

    far.sendall(interim(102))
    with pytest.raises(socket.timeout):
        AnswerHeads(stream, later, lambda: now[0]).final(1.0)
    assert now[0] == pytest.approx(1.2)
