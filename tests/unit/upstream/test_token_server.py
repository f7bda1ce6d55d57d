"""What a token server is asked, and which of its answers are tokens."""

from __future__ import annotations

import json
from typing import List, Union

import pytest
from support.fetching import Answer, FakeOrigins, ok

from net.addresses import Reach
from protocol.http1 import parse_absolute
from upstream.dialling import UpstreamError
from upstream.secret_sources import Secret
from upstream.token_server import NoToken, TokenRequest, TokenServers

SECRET = Secret("hunter2", "bot")
REALM = parse_absolute(b"https://auth.lab/token")
WANTED = TokenRequest(REALM, b"registry", b"repository:a/b:pull  repository:c:pull")


class Around:
    """A token server that gives these answers, on a clock of its own."""

    def __init__(self, *answers: Union[Answer, UpstreamError]) -> None:
        self.now = 1000.0
        self.origins = FakeOrigins(*answers)
        self.servers = TokenServers(self.origins.exchange, b"1.1 dduct", lambda: self.now)

    def token(self, wanted: TokenRequest = WANTED, secret: Secret = SECRET) -> str:
        return self.servers.token(wanted, secret, Reach.NOTHING).value

    def reason(self) -> str:
        with pytest.raises(NoToken) as caught:
            self.token()
        return str(caught.value)


def given(**values: object) -> Answer:
    return ok(json.dumps(values).encode())


def test_service_and_scopes_are_asked_for_with_the_password() -> None:
    around = Around(given(token="t"))
    assert around.token() == "t"
    (request,) = around.origins.asked
    assert (request.method, request.reach) == (b"GET", Reach.NOTHING)
    query = "service=registry&scope=repository:a/b:pull&scope=repository:c:pull"
    assert str(request.target) == f"https://auth.lab/token?{query}"
    assert request.headers.get(b"authorization") == b"Basic Ym90Omh1bnRlcjI="


@pytest.mark.parametrize(
    ("wanted", "url"),
    [
        (TokenRequest(REALM, b"", b""), "https://auth.lab/token"),
        (TokenRequest(parse_absolute(b"https://a/t?x=1"), b"s&t=u", b""), "https://a/t?x=1&service=s%26t%3Du"),
        (TokenRequest(parse_absolute(b"https://a:5/t"), b"", b"\xff#"), "https://a:5/t?scope=%FF%23"),
    ],
)
def test_a_challenge_cannot_add_to_the_question(wanted: TokenRequest, url: str) -> None:
    around = Around(given(token="t"))
    around.token(wanted)
    assert str(around.origins.asked[0].target) == url


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (given(token="t"), 48),
        (given(access_token="t", expires_in=300), 270),
        (given(token="t", expires_in=10), 8),
        (given(token="t", expires_in=10**9), 86370),
        (given(token="t", expires_in="soon"), 48),
        (given(token="t", expires_in=float("nan")), 48),
        (given(token="t", expires_in=float("inf")), 86370),
    ],
)
def test_a_token_is_kept_until_shortly_before_its_end(answer: Answer, seconds: float) -> None:
    around = Around(answer, given(token="u"))
    for now, token in ((0.0, "t"), (seconds - 0.01, "t"), (seconds, "u")):
        around.now = 1000.0 + now
        assert around.token() == token


def test_another_user_another_scope_or_another_server_is_another_token() -> None:
    wanted = [WANTED, TokenRequest(REALM, b"registry", b""), TokenRequest(parse_absolute(b"https://b/"), b"", b"")]
    around = Around(*(given(token=str(number)) for number in range(4)))
    assert [around.token(one) for one in wanted * 2] == ["0", "1", "2"] * 2
    assert around.token(secret=Secret("new", "bot")) == "3"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(401), "answers 401"),
        (Answer(302, ((b"Location", b"https://else.where/"),)), "answers 302"),
        (ok(b"nonsense"), "gives no token"),
        (given(token="a b"), "gives no token"),
        (given(token="a\nb"), "gives no token"),
        (given(token="ü"), "gives no token"),
        (given(token="x" * 20_000), "gives no token"),
        (given(token="x" * 70_000), "too long"),
        (ok(b"x" * 1000 + b"y" * 100_000), "too long"),
        (Answer(body=b"short", length=100), "cannot be asked"),
        (UpstreamError("nobody is there"), "nobody is there"),
    ],
)
def test_a_failure_is_kept_for_a_moment_and_names_the_server(answer: Union[Answer, UpstreamError], reason: str) -> None:
    around = Around(answer, given(token="t"))
    for _ in range(2):
        said = around.reason()
        assert "https://auth.lab/token" in said and reason in said and "hunter2" not in said
    around.now += 30.0
    assert around.token() == "t"


def test_a_client_does_not_get_the_token_of_one_that_reaches_more() -> None:
    around = Around(given(token="t"), UpstreamError("it is on dduct's own machine"))
    assert around.servers.token(WANTED, SECRET, Reach.EVERYTHING).value == "t"
    assert "own machine" in around.reason()
    assert around.servers.token(WANTED, SECRET, Reach.EVERYTHING).value == "t"


def test_a_challenge_that_is_too_long_is_not_asked_for() -> None:
    around = Around()
    with pytest.raises(NoToken):
        around.token(TokenRequest(REALM, b"", b"x" * 3000))


def test_a_refused_token_is_replaced_unless_it_was_just_made() -> None:
    around = Around(given(token="t"), given(token="u"))
    token = around.servers.token(WANTED, SECRET, Reach.NOTHING)
    assert not around.servers.replace(WANTED, SECRET, Reach.NOTHING, token)
    assert around.token() == "t"
    around.now += 6.0
    assert around.servers.replace(WANTED, SECRET, Reach.NOTHING, token)
    assert around.token() == "u"


def test_nothing_shows_a_secret() -> None:
    around = Around(given(token="hunter2-token"))
    token = around.servers.token(WANTED, SECRET, Reach.NOTHING)
    shown: List[str] = [repr(token), repr(SECRET), repr(WANTED), repr(around.servers), str(vars(around.servers))]
    assert not any("hunter2" in one for one in shown)
