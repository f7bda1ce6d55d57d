"""Heads, chunk lines and targets that hypothesis damages: parsed or refused, and nothing else."""

from __future__ import annotations

from typing import Callable, Iterable, List, Tuple

from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpus import load
from support.effort import examples
from support.heads import (
    CHUNK_LINES,
    end_byte_by_byte,
    understand_request,
    understand_response,
    verdict,
)

from protocol import http1
from protocol.headers import canonical
from protocol.http1 import Authority, ProtocolError

REQUESTS = load("requests.txt")
RESPONSES = load("responses.txt")


def bytes_of(alphabet: Iterable[int], least: int = 0) -> st.SearchStrategy[bytes]:
    letters = sorted(alphabet)
    raw = st.binary(min_size=least, max_size=20)
    return raw.map(lambda choices: bytes(letters[choice % len(letters)] for choice in choices))


names = bytes_of(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", 1)
values = bytes_of({*b"\t", *range(0x20, 0x7F), *range(0x80, 0x100)}).map(lambda value: value.strip(b" \t"))


@settings(max_examples=examples(200), deadline=None, derandomize=True)
@given(st.lists(st.tuples(names, values), max_size=5), st.integers(100, 999), values)
def test_a_written_head_is_parsed_back(fields: List[Tuple[bytes, bytes]], status: int, reason: bytes) -> None:
    head = http1.parse_response(http1.serialise_response(status, reason, fields))
    assert head.status == status
    assert list(head.headers) == [(canonical(name), value) for name, value in fields]
    assert head.reason == reason or not reason


def heads(table: List[object]) -> List[bytes]:
    raw = [param.values[0].raw for param in table]  # type: ignore[attr-defined]
    return [head for head in raw if len(head) < 1000]


PIECES = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b'"',
    b"\x00",
    b"\x0b",
    b"\xff",
    b"[",
    b"@",
    b"%",
]


@st.composite
def mutated(draw: st.DrawFn, choice: st.SearchStrategy[bytes]) -> bytes:
    """A head with one to four pieces put in place of up to four bytes each; one draw, as draws take the time."""
    head, raw = draw(choice), draw(st.binary(min_size=8, max_size=32))
    for at in range(0, len(raw) - 7, 8):
        start = int.from_bytes(raw[at : at + 2], "big") % (len(head) + 1)
        cut, kind, count = raw[at + 2] % 5, raw[at + 3], raw[at + 4] % 4
        piece = PIECES[kind // 2 % len(PIECES)] if kind % 2 else raw[at + 5 : at + 5 + count]
        head = head[:start] + piece + head[start + cut :]
    return head


def check_mutation(data: bytes, understand: Callable[[bytes], object]) -> None:
    end = http1.head_end(bytearray(data))
    assert end_byte_by_byte(data) == end
    assert verdict(understand, data) != "ok" or end == len(data)
    if end < 0:
        return
    block = data[:end]
    if verdict(understand, block) == "ok":
        assert block.endswith(b"\r\n\r\n")
        assert b"\r\n\r\n" not in block[:-4]
        assert block.count(b"\r") == block.count(b"\n") == block.count(b"\r\n")
        assert b"\x00" not in block


@settings(max_examples=examples(1000), deadline=None, derandomize=True)
@given(mutated(st.sampled_from(heads(REQUESTS))))
def test_a_mutated_request_is_parsed_or_refused(data: bytes) -> None:
    check_mutation(data, understand_request)


@settings(max_examples=examples(500), deadline=None, derandomize=True)
@given(mutated(st.sampled_from(heads(RESPONSES))))
def test_a_mutated_response_is_parsed_or_refused(data: bytes) -> None:
    check_mutation(data, understand_response)


@settings(max_examples=examples(500), deadline=None, derandomize=True)
@given(st.binary(max_size=40), st.sampled_from([line for line, _ in CHUNK_LINES]))
def test_no_chunk_line_raises_another_error(noise: bytes, line: bytes) -> None:
    for data in (noise, line[: len(line) // 2] + noise + line[len(line) // 2 :]):
        try:
            assert http1.parse_chunk_line(data) >= 0
        except ProtocolError:
            pass
        try:
            http1.parse_trailer_line(data)
        except ProtocolError:
            pass


@settings(max_examples=examples(500), deadline=None, derandomize=True)
@given(st.text("http://s[]:.@?#%*-_a0A~ü/\\ ", max_size=30))
def test_no_target_raises_another_error(text: str) -> None:
    data = text.encode()
    for parse in (
        http1.parse_absolute,
        lambda data: http1.parse_authority(data, 80),
        lambda data: http1.parse_origin_form(data, "https", Authority("a.example", 443)),
    ):
        try:
            parsed = parse(data)
        except ProtocolError:
            continue
        assert str(parsed).isascii()
