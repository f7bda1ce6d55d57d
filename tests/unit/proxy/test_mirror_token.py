"""Where a registry's tokens come from, by its challenge."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

import pytest

from protocol.challenges import bearer
from protocol.headers import Headers
from protocol.http1 import Authority
from proxy.mirror import TokenScope
from proxy.mirror_token import token_target
from upstream.dialling import UpstreamError

REALM = {b"realm": b"https://t.test/t"}
CHALLENGES: List[Tuple[List[str], Optional[Dict[bytes, bytes]]]] = [
    ([], None),
    (['Bearer realm="https://t.test/t"'], REALM),
    (["bearer  Realm=https://t.test/t"], REALM),
    (['Bearer realm = "https://t.test/t" , service="s"'], {**REALM, b"service": b"s"}),
    (['Bearer realm="a",realm="b"'], {b"realm": b"a"}),
    (['Bearer realm="a\\"b, c",service="d\\\\"'], {b"realm": b'a"b, c', b"service": b"d\\"}),
    (['Basic realm="x"', 'Bearer realm="https://t.test/t"'], REALM),
    (['Bearer realm="https://t.test/t"', 'Basic realm="x"'], REALM),
    (['Basic realm="x", service="no", Bearer realm="https://t.test/t"'], REALM),
    (['Bearer realm="https://t.test/t", Basic realm="x", service="no"'], REALM),
    (['Negotiate, Bearer realm="https://t.test/t"'], REALM),
    (['Bearer realm="https://t.test/t", Negotiate, service="no"'], REALM),
    (['Basic realm="x"'], None),
    (["Bearer"], None),
    (['Bearer service="s"'], None),
    (['Bearer error="invalid_token", Bearer realm="https://t.test/t"'], REALM),
    (['Bearer realm="https://t.test/t'], None),
    (["\x00\xff, =, Bearer x y=z"], None),
]


@pytest.mark.parametrize(("values", "found"), CHALLENGES)
def test_a_challenge_is_read_as_its_parameters(values: List[str], found: Optional[Dict[bytes, bytes]]) -> None:
    headers = Headers([(b"WWW-Authenticate", value.encode("latin-1")) for value in values])
    assert bearer(headers) == found


WANTED = TokenScope(Authority("reg.test", 443), "repository:a/b:pull")


@pytest.mark.parametrize(
    ("challenge", "url"),
    [
        (REALM, "https://t.test/t?scope=repository:a/b:pull"),
        ({**REALM, b"service": b"a b&c"}, "https://t.test/t?service=a%20b%26c&scope=repository:a/b:pull"),
        ({b"realm": b"https://t.test:8443/?x=1"}, "https://t.test:8443/?x=1&scope=repository:a/b:pull"),
        ({b"realm": b"https://t.test"}, "https://t.test/?scope=repository:a/b:pull"),
        ({**REALM, b"service": b"\xff"}, "https://t.test/t?service=%FF&scope=repository:a/b:pull"),
    ],
)
def test_a_token_is_asked_for_at_the_realm(challenge: Dict[bytes, bytes], url: str) -> None:
    assert str(token_target(challenge, WANTED)) == url


@pytest.mark.parametrize(
    "realm", [b"http://t.test/t", b"t.test/t", b"", b"ftp://t.test", b"https://a@t.test/", b"https://"]
)
def test_a_realm_that_is_not_safe_is_not_asked(realm: bytes) -> None:
    with pytest.raises(UpstreamError, match="token server") as caught:
        token_target({b"realm": realm}, WANTED)
    assert caught.value.status == 502 and "\n" not in str(caught.value)
