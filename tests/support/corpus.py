"""Heads from tests/data, each with its verdict, the rule it comes from, and what is odd about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import List, NamedTuple

import pytest

DATA = Path(__file__).parent.parent / "data"
MACROS = {
    "get": b"GET / HTTP/1.1\r\nHost: a.example\r\n",
    "post": b"POST / HTTP/1.1\r\nHost: a.example\r\n",
    "ok": b"HTTP/1.1 200 OK\r\n",
    "end": b"\r\n",
}


class Case(NamedTuple):
    verdict: str
    rule: str
    raw: bytes


def literal(text: str) -> bytes:
    return text.encode("latin-1").decode("unicode_escape").encode("latin-1")


def expand(match: re.Match[str]) -> str:
    name, piece, count = match.groups()
    raw = MACROS[name] if name else literal(piece) * int(count)
    return raw.decode("latin-1").encode("unicode_escape").decode("ascii")


def load(name: str) -> List[object]:
    cases: List[object] = []
    for line in (DATA / name).read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        verdict, rule, what, text = (column.strip(" ") for column in line.split("|", 3))
        raw = literal(re.sub(r"\{(?:(get|post|ok|end)|([^{}]+)\*(\d+))\}", expand, text))
        cases.append(pytest.param(Case(verdict, rule, raw), id=f"{verdict} {what} ({rule})"))
    return cases
