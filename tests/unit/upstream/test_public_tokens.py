"""Which tokens are known to be for anybody: those that a named token server gave to a request from nobody."""

from __future__ import annotations

import gzip
import json
from typing import List, Optional, Tuple

import pytest

from protocol.headers import Headers
from protocol.http1 import RequestHead, ResponseHead, Target, parse_absolute
from protocol.request_fields import DEFAULT
from storage.shared_table import SharedTable
from upstream.public_tokens import PublicTokens

REGISTRY, OTHER = "https://registry.example/v2/a/manifests/1", "https://other.example/v2/a/manifests/1"
TOKEN_SERVER = "https://auth.example/token"
ASKED = TOKEN_SERVER + "?service=registry&scope=repository:a:pull"


def target(url: str) -> Target:
    return parse_absolute(url.encode())


def challenge(realm: str = TOKEN_SERVER, status: int = 401, scheme: str = "Bearer") -> ResponseHead:
    value = f'{scheme} realm="{realm}",service="registry"'.encode()
    return ResponseHead(status, b"", 1, Headers([(b"WWW-Authenticate", value)]))


def asks(*fields: Tuple[bytes, bytes], method: bytes = b"GET") -> RequestHead:
    return RequestHead(method, b"/token", 1, Headers(fields))


def answer(status: int = 200, coding: Optional[bytes] = None) -> ResponseHead:
    return ResponseHead(status, b"", 1, Headers([(b"Content-Encoding", coding)] if coding else []))


class Around:
    """What is known, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tokens = PublicTokens(SharedTable(64), ["identified.example"], lambda: self.now)
        self.tokens.note_challenge(target(REGISTRY), challenge(), Headers([]), DEFAULT)

    def issue(self, values: object, url: str = ASKED, head: Optional[ResponseHead] = None) -> None:
        body = values if isinstance(values, bytes) else json.dumps(values).encode()
        self.tokens.note_issued(target(url), head or answer(), body)

    def may_issue(self, url: str = ASKED, head: Optional[RequestHead] = None) -> bool:
        return self.tokens.may_issue(target(url), head or asks(), DEFAULT)

    def is_public(self, token: str = "t", url: str = REGISTRY) -> bool:
        return self.tokens.is_public(target(url), b"Bearer " + token.encode())


@pytest.fixture
def around() -> Around:
    return Around()


# --- requests for tokens ----------------------------------------------------------------------------


def test_a_request_of_nobody_at_a_named_realm_may_bring_a_public_token(around: Around) -> None:
    assert around.may_issue()
    assert around.may_issue(TOKEN_SERVER)
    assert around.may_issue(head=asks((b"User-Agent", b"docker"), (b"Accept-Encoding", b"gzip")))


@pytest.mark.parametrize(
    "head",
    [
        asks((b"Authorization", b"Basic YTpi")),
        asks((b"Cookie", b"a=b")),
        asks((b"X-Api-Key", b"1")),
        asks(method=b"POST"),
        asks(method=b"HEAD"),
    ],
)
def test_a_request_of_somebody_brings_none(around: Around, head: RequestHead) -> None:
    assert not around.may_issue(head=head)


@pytest.mark.parametrize(
    "query", ["account=alice", "service=x&password=p", "key=1", "refresh_token=r", "scope=a&Account=b", "x"]
)
def test_a_parameter_that_may_name_a_user_makes_it_somebodys(around: Around, query: str) -> None:
    assert not around.may_issue(f"{TOKEN_SERVER}?{query}")


@pytest.mark.parametrize(
    "url", ["https://auth.example/other", "http://auth.example/token", "https://auth.example:8443/token", REGISTRY]
)
def test_only_a_realm_that_an_origin_has_named_gives_tokens(around: Around, url: str) -> None:
    assert not around.may_issue(url)


@pytest.mark.parametrize(
    "named",
    [
        challenge("https://new.example/token", status=403),
        challenge("https://new.example/token", scheme="Basic"),
        challenge("new.example/token"),
        challenge("ftp://new.example/token"),
        challenge("http://new.example/token"),
    ],
)
def test_what_is_no_challenge_names_no_realm(around: Around, named: ResponseHead) -> None:
    around.tokens.note_challenge(target(REGISTRY), named, Headers([]), DEFAULT)
    assert not around.may_issue("https://new.example/token")
    assert not around.may_issue("http://new.example/token")


def test_where_dduct_shows_its_own_certificate_nobody_is_nobody(around: Around) -> None:
    around.tokens.note_challenge(target(REGISTRY), challenge("https://identified.example/token"), Headers([]), DEFAULT)
    assert not around.may_issue("https://identified.example/token")


# --- tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{"token": "t"}, {"access_token": "t"}, {"token": "x", "access_token": "t"}])
def test_an_issued_token_is_public(around: Around, values: object) -> None:
    around.issue(values)
    assert around.is_public()
    assert around.tokens.is_public(target(REGISTRY), b"bearer t")
    assert not around.is_public("other")
    assert not around.tokens.is_public(target(REGISTRY), b"Basic t")
    assert not around.tokens.is_public(target(REGISTRY), b"t")


def test_a_token_is_public_only_for_origins_that_named_its_realm(around: Around) -> None:
    around.issue({"token": "t"})
    assert not around.is_public(url=OTHER)
    around.tokens.note_challenge(target(OTHER), challenge("https://evil.example/token"), Headers([]), DEFAULT)
    assert not around.is_public(url=OTHER)
    around.tokens.note_challenge(target(OTHER), challenge(), Headers([]), DEFAULT)
    assert around.is_public(url=OTHER)


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({}, 60),
        ({"expires_in": 300}, 300),
        ({"expires_in": "x"}, 60),
        ({"expires_in": -1}, 60),
        ({"expires_in": 1e9}, 86400),
    ],
)
def test_a_token_ends_when_its_server_says(around: Around, values: dict[str, object], seconds: float) -> None:
    around.issue({"token": "t", **values})
    around.now += 86000.0 if seconds > 86000 else 0.0
    around.tokens.note_challenge(target(REGISTRY), challenge(), Headers([]), DEFAULT)
    around.now += (seconds - 86000 if seconds > 86000 else seconds) - 1
    assert around.is_public()
    around.now += 1
    assert not around.is_public()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"t"', b'{"token": 5}', b'{"token": ""}', b"[" * 60_000, b'{"token": "t"} x', b"\xff"],
)
def test_what_is_no_token_is_nothing(around: Around, body: bytes) -> None:
    around.issue(body)
    assert not around.is_public()
    assert not around.is_public("")


def test_a_refusal_brings_no_token(around: Around) -> None:
    around.issue({"token": "t"}, head=answer(401))
    assert not around.is_public()


def test_a_packed_response_is_read(around: Around) -> None:
    around.issue(gzip.compress(b'{"token": "t"}', mtime=0), head=answer(coding=b"gzip"))
    assert around.is_public()


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (gzip.compress(b'{"token": "t"}', mtime=0)[:-9], b"gzip"),
        (gzip.compress(b'{"token": "t"}' + b" " * 200_000, mtime=0), b"gzip"),
        (b'{"token": "t"}', b"gzip"),
        (b'{"token": "t"}', b"br"),
    ],
)
def test_what_cannot_be_unpacked_brings_none(around: Around, body: bytes, coding: bytes) -> None:
    around.issue(body, head=answer(coding=coding))
    assert not around.is_public()


# --- credentials ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ([(b"Authorization", b"Bearer t")], []),
        ([(b"authorization", b"Bearer t"), (b"Accept", b"*/*")], []),
        ([(b"Authorization", b"Bearer t"), (b"Cookie", b"a")], [b"Cookie"]),
        ([(b"Authorization", b"Bearer t"), (b"Authorization", b"Bearer u")], [b"Authorization"] * 2),
        ([(b"Authorization", b"Bearer t"), (b"Authorization", b"Bearer t")], [b"Authorization"] * 2),
        ([(b"Authorization", b"Bearer u")], [b"Authorization"]),
        ([(b"X-Authorization", b"Bearer t")], [b"X-Authorization"]),
    ],
)
def test_a_public_token_identifies_nobody(around: Around, fields: List[Tuple[bytes, bytes]], left: List[bytes]) -> None:
    around.issue({"token": "t"})
    found = around.tokens.identifying(target(REGISTRY), Headers(fields), DEFAULT)
    assert [name for name, _ in found] == left


# --- what origins and clients may send --------------------------------------------------------------


def test_a_request_with_too_many_parameters_brings_no_public_token(around: Around) -> None:
    assert not around.may_issue(TOKEN_SERVER + "?" + "&".join(["scope=a"] * 100))


@pytest.mark.parametrize("query", ["?scope=a;account=alice", "?scope=a;password=x&service=b"])
def test_a_parameter_behind_a_semicolon_may_name_a_user(around: Around, query: str) -> None:
    assert not around.may_issue(TOKEN_SERVER + query)


def test_a_token_that_no_field_can_hold_is_none(around: Around) -> None:
    around.issue(b'{"token": "\\ud800", "access_token": "t"}')
    assert around.is_public("t")


@pytest.mark.parametrize("field", [(b"Authorization", b"Bearer x"), (b"X-Forwarded-Host", b"evil.example")])
def test_a_challenge_to_somebody_or_with_a_chosen_host_names_no_realm(
    around: Around, field: Tuple[bytes, bytes]
) -> None:
    """A registry may make its realm of what such a request says."""
    realm = "https://evil.example/token"
    around.tokens.note_challenge(target(REGISTRY), challenge(realm), Headers([field]), DEFAULT)
    assert not around.may_issue(realm)
    around.tokens.note_challenge(target(REGISTRY), challenge(realm), Headers([(b"Accept", b"a/b")]), DEFAULT)
    assert around.may_issue(realm)


# --- a token server that cannot be asked ------------------------------------------------------------


def test_a_stand_in_is_a_public_token_for_a_minute_and_known_as_one(around: Around) -> None:
    values = json.loads(around.tokens.stand_in(target(ASKED)))
    assert values["token"] == values["access_token"] and values["expires_in"] == 60
    headers = Headers([(b"Authorization", f"Bearer {values['token']}".encode())])
    assert around.is_public(values["token"]) and not around.is_public(values["token"], OTHER)
    assert around.tokens.is_stand_in(headers)
    around.now += 61
    assert not around.is_public(values["token"]) and not around.tokens.is_stand_in(headers)


def test_each_stand_in_is_another_one(around: Around) -> None:
    assert around.tokens.stand_in(target(ASKED)) != around.tokens.stand_in(target(ASKED))


@pytest.mark.parametrize("value", [b"", b"Bearer t", b"Basic dduct-0", b"Bearer dduct-" + b"0" * 32])
def test_no_other_token_is_a_stand_in(around: Around, value: bytes) -> None:
    around.issue({"token": "t"})
    around.tokens.stand_in(target(ASKED))
    assert not around.tokens.is_stand_in(Headers([(b"Authorization", value)] if value else []))
