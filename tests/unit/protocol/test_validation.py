"""Which answers are parts of a representation."""

from __future__ import annotations

from typing import Dict, Optional

import pytest

from protocol.headers import Headers
from protocol.http1 import ResponseHead
from protocol.validation import is_part, rest_conditions


def head(fields: Dict[str, str], status: int = 206) -> ResponseHead:
    """A head with these fields."""
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return ResponseHead(status, b"", 1, Headers(pairs))


RIGHT = {"content_range": "bytes 10-19/100", "etag": '"1"', "content_length": "10"}


@pytest.mark.parametrize("change", [{}, {"content_length": None}])
def test_exactly_what_was_asked_for_is_a_part(change: Dict[str, Optional[str]]) -> None:
    fields = {name: value for name, value in {**RIGHT, **change}.items() if value is not None}
    assert is_part(head(fields), b'"1"', 10, 20, 100)


@pytest.mark.parametrize(
    "change",
    [
        {"etag": '"2"'},
        {"etag": 'W/"1"'},
        {"etag": None},
        {"content_range": None},
        {"content_range": "bytes 10-19/*"},
        {"content_range": "bytes 10-19/101"},
        {"content_range": "bytes 10-18/100"},
        {"content_range": "bytes 9-19/100"},
        {"content_range": "bytes */100"},
        {"content_range": "items 10-19/100"},
        {"content_length": "11"},
    ],
)
def test_anything_else_is_none(change: Dict[str, Optional[str]]) -> None:
    fields = {name: value for name, value in {**RIGHT, **change}.items() if value is not None}
    assert not is_part(head(fields), b'"1"', 10, 20, 100)


def test_a_200_is_no_part() -> None:
    assert not is_part(head(RIGHT, 200), b'"1"', 10, 20, 100)


def test_with_a_digest_any_tag_will_do() -> None:
    assert is_part(head({**RIGHT, "etag": '"2"'}), None, 10, 20, 100)


def test_the_question_names_the_span_and_the_tag() -> None:
    assert rest_conditions(b'"1"', 10) == [(b"Range", b"bytes=10-"), (b"If-Range", b'"1"')]
    assert rest_conditions(None, 10, 20) == [(b"Range", b"bytes=10-19")]
