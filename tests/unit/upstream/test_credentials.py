"""Which rule is for whom, and how it answers a challenge."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any, List, Optional, Union

import pytest
from support.fetching import Answer, FakeOrigins, ok

from monitoring.metrics import Counter, Counters
from net.addresses import Networks, Reach
from protocol.headers import Headers
from protocol.http1 import RequestHead, Target, parse_absolute
from protocol.request_fields import DEFAULT
from upstream.credentials import AskAgain, Credentials, Places, Rule, Use
from upstream.dialling import UpstreamError
from upstream.request import Purpose, Request
from upstream.secret_sources import Secret, SecretError
from upstream.token_server import TokenServers

HOST = "registry.lab"
URL = f"https://{HOST}/v2/a/manifests/1"
BEARER = f'Bearer realm="https://{HOST}/token",service="s",scope="repository:a:pull"'
BASIC = 'Basic realm="registry"'
CLIENT = ("10.0.0.1", "")
BY_PASSWORD = b"Basic Ym90Omh1bnRlcjI="  # bot:hunter2


class Fixed:
    """A secret that is always the same, or missing."""

    def __init__(self, secret: Optional[Secret]) -> None:
        self.secret = secret
        self.refusals = 0

    def get(self, target: Target) -> Secret:
        if self.secret is None:
            raise SecretError("there is none")
        return self.secret

    def known(self, target: Target) -> Optional[Secret]:
        return self.secret

    def refused(self, target: Target, secret: Secret) -> None:
        self.refusals += 1


def places(*hosts: str, port: int = 0) -> Places:
    return Places({port: hosts})


class Around:
    """One rule, and an origin that gives these answers."""

    def __init__(self, *answers: Union[Answer, UpstreamError], **rule: Any) -> None:
        self.now = 1000.0
        self.origins = FakeOrigins(*answers)
        self.counters = Counters()
        self.source = Fixed(Secret("hunter2", "bot"))
        given = {"title": HOST, "hosts": places(HOST), "realms": places(), "users": None, "clients": None, **rule}
        self.rule = Rule(**{"source": self.source, **given})
        servers = TokenServers(self.origins.exchange, b"1.1 dduct", lambda: self.now)
        self.credentials = Credentials([self.rule], ("unverified.lab",), servers, self.counters)

    def use(self, url: str = URL) -> Use:
        found = self.credentials.use(parse_absolute(url.encode()), CLIENT, Reach.NOTHING)
        assert found is not None
        return found

    def answered(self, *challenges: str, use: Optional[Use] = None, status: int = 401, url: str = URL) -> Optional[Use]:
        """What a response with these challenges leads to."""
        use = use or self.use()
        fields = tuple((b"WWW-Authenticate", one.encode()) for one in challenges)
        self.origins.answers.insert(0, Answer(status, fields))
        request = Request(b"GET", parse_absolute(url.encode()), Headers(), Reach.NOTHING, Purpose.FILL)
        with closing(self.origins.exchange(request)) as exchange:
            try:
                use.look_at(exchange)
            except AskAgain as again:
                return again.use
        return None


def authorization(use: Optional[Use]) -> Optional[bytes]:
    if use is None:
        return None
    head = use.head(RequestHead(b"GET", b"/", 1, Headers([(b"authorization", b""), (b"Accept", b"*/*")])), DEFAULT)
    assert head.headers.get(b"accept") == b"*/*"
    return head.headers.get(b"authorization")


TOKEN = ok(json.dumps({"token": "t", "expires_in": 300}).encode())

# --- for whom ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "clients", "address", "user", "is_for"),
    [
        (None, None, "192.0.2.1", "", True),
        ({"alice"}, None, "192.0.2.1", "alice", True),
        ({"alice"}, None, "192.0.2.1", "bob", False),
        ({"alice"}, None, "192.0.2.1", "", False),
        (None, ["10.0.0.0/8"], "10.1.2.3", "", True),
        (None, ["10.0.0.0/8"], "::ffff:10.1.2.3", "", True),
        (None, ["10.0.0.0/8"], "11.0.0.1", "", False),
        ({"alice"}, ["10.0.0.0/8"], "10.0.0.1", "bob", False),
        ({"alice"}, ["10.0.0.0/8"], "11.0.0.1", "alice", False),
        ({"alice"}, ["10.0.0.0/8"], "10.0.0.1", "alice", True),
    ],
)
def test_a_rule_is_for_its_users_and_clients(users: Any, clients: Any, address: str, user: str, is_for: bool) -> None:
    rule = Around(users=users, clients=None if clients is None else Networks(clients)).rule
    assert rule.is_for(address, user) is is_for


@pytest.mark.parametrize(
    ("url", "unprotected", "used"),
    [
        (f"https://{HOST}/x", False, True),
        (f"https://{HOST}:443/x", False, True),
        (f"https://{HOST}:444/x", False, False),
        (f"https://{HOST}:80/x", False, False),
        (f"http://{HOST}/x", False, False),
        (f"http://{HOST}/x", True, True),
        (f"http://{HOST}:443/x", True, False),
        ("https://other.lab/x", True, False),
        ("https://unverified.lab/x", False, False),
        ("https://unverified.lab/x", True, True),
    ],
)
def test_a_rule_is_for_its_hosts_and_ports(url: str, unprotected: bool, used: bool) -> None:
    around = Around(hosts=places(HOST, "unverified.lab"), unprotected=unprotected)
    found = around.credentials.use(parse_absolute(url.encode()), CLIENT, Reach.NOTHING)
    assert (found is not None) is used


def test_the_first_rule_for_a_client_counts() -> None:
    one, other, last = (Around(users=users).rule for users in (frozenset(["alice"]), None, None))
    over_http = Around(unprotected=True).rule
    credentials = Credentials([one, other, last, over_http], (), TokenServers(FakeOrigins().exchange, b""), Counters())
    for user, url, rule in (("alice", URL, one), ("bob", URL, other), ("bob", f"http://{HOST}/x.deb", over_http)):
        use = credentials.use(parse_absolute(url.encode()), ("10.0.0.1", user), Reach.NOTHING)
        assert use is not None and use.rule is rule


# --- challenges -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("challenges", "sent"),
    [
        ([BASIC], BY_PASSWORD),
        ([BEARER], b"Bearer t"),
        ([f"{BASIC}, {BEARER}"], b"Bearer t"),
        ([BASIC, BEARER], b"Bearer t"),
        (["Negotiate", BASIC], BY_PASSWORD),
        (['Bearer realm="somewhere"', BASIC], BY_PASSWORD),
        ([], None),
        (["Negotiate", "Digest realm=x"], None),
        (['Bearer realm="somewhere"'], None),
        (["Bearer"], None),
        (['Bearer realm="ftp://registry.lab/"'], None),
        (['Bearer realm="https://bot:x@registry.lab/"'], None),
    ],
)
def test_a_challenge_is_answered_with_what_it_asks_for(challenges: List[str], sent: Optional[bytes]) -> None:
    assert authorization(Around(TOKEN).answered(*challenges)) == sent


@pytest.mark.parametrize(
    ("registry", "realm", "asked"),
    [
        (HOST, f"https://{HOST}/token", True),
        (HOST, f"https://{HOST}:8443/token", False),
        (HOST, f"http://{HOST}/token", False),
        (HOST, "https://auth.lab/token", True),
        (HOST, "https://auth.lab:444/token", False),
        (HOST, "https://evil.example/token", False),
        (HOST, f"https://evil.example/?{HOST}", False),
        (HOST, f"https://{HOST}.evil.example/token", False),
        (HOST, "https://auth.docker.io/token", False),
        (HOST, "https://unverified.lab/token", False),
        ("registry-1.docker.io", "https://auth.docker.io/token", True),
        ("registry-1.docker.io", "https://auth.docker.io:8443/token", False),
        ("registry-1.docker.io", "https://evil.example/token", False),
    ],
)
def test_a_password_goes_to_token_servers_of_its_rule_only(registry: str, realm: str, asked: bool) -> None:
    hosts, realms = places(HOST, "registry-1.docker.io", "unverified.lab"), places("auth.lab")
    around, url = Around(TOKEN, hosts=hosts, realms=realms), f"https://{registry}/v2/"
    found = around.answered(f'Bearer realm="{realm}",service="s"', use=around.use(url), url=url)
    assert authorization(found) == (b"Bearer t" if asked else None)
    assert len(around.origins.asked) == 1 + asked
    assert around.counters.value(Counter.CREDENTIALS_FAILED) == (not asked)


@pytest.mark.parametrize("status", [200, 302, 403, 404, 407, 500])
def test_nothing_but_a_401_is_answered(status: int) -> None:
    assert Around().answered(BASIC, status=status) is None


@pytest.mark.parametrize("url", [f"http://{HOST}/v2/", f"https://{HOST}:444/v2/", "https://other.lab/v2/"])
def test_a_challenge_of_another_origin_is_not_answered(url: str) -> None:
    assert Around().answered(BASIC, url=url) is None


def test_a_token_goes_as_it_is_and_in_answer_to_bearer_only() -> None:
    around = Around()
    around.source.secret = Secret("hunter2")
    assert authorization(around.answered('Bearer realm="https://evil.example/"')) == b"Bearer hunter2"
    assert around.answered(BASIC) is None
    assert len(around.origins.asked) == 2


def test_a_client_cannot_keep_the_credentials_back() -> None:
    use = Around().answered(BASIC)
    assert use is not None
    fields = [(b"Connection", b"authorization, x-mine"), (b"X-Mine", b"1"), (b"X-Original-URL", b"/admin")]
    head = use.head(RequestHead(b"GET", b"/", 1, Headers(fields)), DEFAULT)
    assert list(head.headers.end_to_end()) == [(b"Authorization", BY_PASSWORD)]


# --- refusals ---------------------------------------------------------------------------------------


def test_refused_passwords_are_not_sent_again() -> None:
    around = Around()
    use = around.answered(BASIC)
    assert use is not None and around.answered(BASIC, use=use) is None
    assert (around.source.refusals, around.counters.value(Counter.CREDENTIALS_FAILED)) == (1, 1)


def test_a_refused_token_is_replaced_once_if_it_is_not_new() -> None:
    other = ok(json.dumps({"token": "u", "expires_in": 300}).encode())
    around = Around(TOKEN, other, other)
    first = around.answered(BEARER)
    assert first is not None and around.answered(BEARER, use=first) is None  # it was just made
    around.now += 60.0
    kept = around.answered(BEARER)
    assert authorization(kept) == b"Bearer t"
    second = around.answered(BEARER, use=kept)
    assert authorization(second) == b"Bearer u"
    around.now += 60.0
    assert around.answered(BEARER, use=second) is None


def test_a_missing_secret_leaves_the_origins_answer() -> None:
    around = Around()
    around.source.secret = None
    assert around.answered(BASIC) is None
    assert around.counters.value(Counter.CREDENTIALS_FAILED) == 1
    assert around.use().grantee is None


# --- what is remembered and passed on ----------------------------------------------------------------


def test_permissions_are_for_a_rule_a_user_and_a_secret() -> None:
    around = Around()
    seen = {around.use().grantee}
    sent = around.answered(BASIC)
    assert sent is not None and {sent.grantee} == seen
    for secret in (Secret("hunter3", "bot"), Secret("hunter2", "b"), Secret("hunter2")):
        around.source.secret = secret
        seen.add(around.use().grantee)
    assert sent.grantee != around.use().grantee
    seen.add(Around(title="other.lab").use().grantee)
    assert len(seen) == 5 and not any(b"hunter" in (one or b"") for one in seen)


def test_a_response_to_credentials_is_private_and_brings_no_cookies() -> None:
    around = Around(ok(b"x", (b"Set-Cookie", b"s=1"), (b"ETag", b'"1"')), ok(b"x", (b"Set-Cookie", b"s=1")))
    for use, private in ((around.answered(BASIC), b"private"), (around.use(), None)):
        assert use is not None
        request = Request(b"GET", parse_absolute(URL.encode()), Headers(), Reach.NOTHING, Purpose.FILL)
        with closing(around.origins.exchange(request)) as exchange:
            use.look_at(exchange)
            assert exchange.head.headers.get(b"cache-control") == private
            assert (exchange.head.headers.get(b"set-cookie") is None) is (private is not None)


def test_nothing_shows_a_secret() -> None:
    around = Around(TOKEN)
    for challenge in (BASIC, BEARER):
        use = around.answered(challenge)
        assert use is not None and "hunter2" not in repr(use) and "Bearer t" not in repr(use)
        assert "hunter2" not in repr(vars(use))
