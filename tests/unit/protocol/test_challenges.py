"""Challenges in WWW-Authenticate, as origins write them."""

from __future__ import annotations

from typing import Dict, List, Tuple

import pytest

from protocol.challenges import challenges

REGISTRY = b'Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull,push"'
OF_REGISTRY = (
    b"bearer",
    {b"realm": b"https://auth.example/token", b"service": b"registry", b"scope": b"repository:a/b:pull,push"},
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", []),
        (b"Negotiate", [(b"negotiate", {})]),
        (b'Basic realm="x"', [(b"basic", {b"realm": b"x"})]),
        (REGISTRY, [OF_REGISTRY]),
        (b'Basic realm="x", ' + REGISTRY, [(b"basic", {b"realm": b"x"}), OF_REGISTRY]),
        (REGISTRY + b', Basic realm="x"', [OF_REGISTRY, (b"basic", {b"realm": b"x"})]),
        (b"BEARER REALM=x , Scope = y", [(b"bearer", {b"realm": b"x", b"scope": b"y"})]),
        (rb'Bearer realm="a\"b\\c"', [(b"bearer", {b"realm": rb'a"b\c'})]),
        (b'Bearer realm="a", realm="b"', [(b"bearer", {b"realm": b"a"})]),
        (b'Bearer realm="a,b=c, d"', [(b"bearer", {b"realm": b"a,b=c, d"})]),
        (b"Negotiate YII==, Bearer realm=x", [(b"negotiate", {}), (b"bearer", {b"realm": b"x"})]),
        (b'realm="a"', []),
        (b',,"x",=,Bearer', [(b"bearer", {})]),
        (b'Bearer realm="unclosed', [(b"bearer", {})]),
    ],
)
def test_challenges_are_read(value: bytes, expected: List[Tuple[bytes, Dict[bytes, bytes]]]) -> None:
    assert [tuple(one) for one in challenges(value)] == expected


def test_a_long_value_is_not_read() -> None:
    assert not list(challenges(b"Bearer realm=" + b"x" * 5000))
