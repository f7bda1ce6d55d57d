"""One response: after its head, an error can only cut it, and the log says who is at fault."""

from __future__ import annotations

import pytest
from support.pairs import Pairs, read_all

from monitoring.details import Side
from net.response import Reply
from protocol import http1

REQUEST = http1.parse_request(b"GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n")


def test_an_error_before_the_head_is_one_line_of_text() -> None:
    with Pairs() as pairs:
        stream, far = pairs.plain()
        reply = Reply(stream, REQUEST, b"1.1 dduct")
        reply.error(502, "no\nanswer")
        stream.close()
        head, _, body = read_all(far).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ") and body == b"dduct: no?answer\n"
    assert (reply.status, reply.note, reply.cut_by) == (502, "detail=no-answer", None)


@pytest.mark.parametrize(
    ("status", "side"),
    [
        *((502, Side.ORIGIN), (504, Side.ORIGIN)),
        *((403, Side.DDUCT), (503, Side.DDUCT), (508, Side.DDUCT)),
        *((400, Side.CLIENT), (413, Side.CLIENT)),
    ],
)
def test_an_error_after_the_head_cuts_the_response_and_names_its_side(status: int, side: Side) -> None:
    with Pairs() as pairs:
        stream, far = pairs.plain()
        reply = Reply(stream, REQUEST, b"1.1 dduct")
        reply.send_head(200, [], 10)
        reply.error(status, "too late")
        sent = read_all(far)
    assert sent.startswith(b"HTTP/1.1 200 ") and sent.endswith(b"\r\n\r\n")
    assert (reply.status, reply.cut_by, reply.persistent) == (200, side, False)


def test_the_first_cause_of_a_cut_response_stays() -> None:
    with Pairs() as pairs:
        stream, _ = pairs.plain()
        reply = Reply(stream, REQUEST, b"1.1 dduct")
        reply.send_head(200, [], 10)
        reply.close_abruptly(Side.DDUCT)
        reply.error(502, "the transfer broke off")
    assert reply.cut_by is Side.DDUCT
