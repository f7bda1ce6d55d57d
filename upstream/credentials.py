"""dduct's own credentials for origins, for clients that have none (`[[credentials]]`).

Rules of this module:

* A rule is used for a client for which it is meant, and only once the origin has answered that client's own request
  with a challenge. It is used to read: for GET and HEAD, of what may be stored (and a few questions of registries).
* A secret goes to the rule's hosts and realms, over verified TLS, and nowhere else. A challenge cannot add to these.
* What a rule brings is restricted, as if its client had sent the credentials itself. `grantee` stands for them where
  permissions are remembered: a changed secret has none of the old one's.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Container, FrozenSet, Mapping, Optional, Sequence, Tuple

from monitoring.log import RateLimitedLog
from monitoring.metrics import Counter, Counters
from net.addresses import Reach
from protocol import http1
from protocol.challenges import Challenge, challenges
from protocol.headers import Headers
from protocol.http1 import ProtocolError, RequestHead, Target
from protocol.request_fields import RequestFields
from upstream.exchange import Exchange
from upstream.secret_sources import Secret, SecretError, Source
from upstream.token_server import NoToken, Token, TokenRequest, TokenServers, basic

_log = logging.getLogger("dduct.credentials")

# The client's request shows no credentials: without this, another cache on its way would take the response for public.
FOR_ITS_CLIENT = (b"Cache-Control", b"private")

_UNAUTHORIZED = 401
_USUAL_PORT = {"http": 80, "https": 443}
_MOST_CHALLENGES = 8  # of one response
# Registries whose token server is another host, and which that is.
_REALMS = {"registry-1.docker.io": "auth.docker.io", "registry.gitlab.com": "gitlab.com"}
# Of a response: what would let its client in without dduct, and for more than it has asked for.
_KEPT_BACK = (b"set-cookie", b"set-cookie2", b"authentication-info", b"proxy-authentication-info")


class Places:
    """Hosts, each with its port; port 0 stands for the usual one of the scheme."""

    def __init__(self, by_port: Mapping[int, Container[str]]) -> None:
        self._by_port = by_port

    def __contains__(self, target: object) -> bool:
        if not isinstance(target, Target):
            return False
        host, port = target.authority.host, target.authority.port
        usual = port == _USUAL_PORT[target.scheme] and host in self._by_port.get(0, ())
        return usual or host in self._by_port.get(port, ())


@dataclass(frozen=True, eq=False)
class Rule:
    """One table of `[[credentials]]`. `users`, `clients`: None stands for all; with both, a client needs both.

    `unprotected`: the secret may go over plain http, and to hosts whose certificate is not verified.
    """

    title: str  # for the log
    hosts: Places
    realms: Places
    users: Optional[FrozenSet[str]]
    clients: Optional[Container[str]]
    source: Source
    unprotected: bool = False
    trouble: RateLimitedLog = field(default_factory=lambda: RateLimitedLog(_log))

    def is_for(self, address: str, user: str) -> bool:
        """Whether a client may use it: its address, and its user's name or an empty text."""
        if self.users is not None and user not in self.users:
            return False
        return self.clients is None or address in self.clients


class AskAgain(Exception):
    """A request is to be sent again, with credentials: by `use`."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.use = use


@dataclass(frozen=True)
class _Sent:
    """Credentials that go with a request; `token` if they are one that can be replaced."""

    authorization: bytes = field(repr=False)
    secret: Secret
    token: Optional[Tuple[TokenRequest, Token]] = None


@dataclass(frozen=True, eq=False)
class Use:
    """A rule for one request of one client; with `sent`, the request has its credentials."""

    credentials: Credentials
    rule: Rule
    target: Target
    reach: Reach
    sent: Optional[_Sent] = None
    may_repeat: bool = True  # a kept token that is refused may be replaced, once

    @property
    def grantee(self) -> Optional[bytes]:
        """What permissions for these credentials are remembered by; None while they are not known."""
        secret = self.rule.source.known(self.target) if self.sent is None else self.sent.secret
        return None if secret is None else _grantee(self.rule, secret)

    def head(self, head: RequestHead, names: RequestFields) -> RequestHead:
        """A client's request with the credentials in place of its own, and without what could turn it into another."""
        assert self.sent is not None
        # Connection may name any field, which would stay behind: the credentials, too.
        kept = names.on_behalf_of_all(head.headers.end_to_end()).without([b"authorization"])
        return replace(head, headers=Headers([*kept, (b"Authorization", self.sent.authorization)]))

    def look_at(self, exchange: Exchange) -> None:
        """Look at the response that a client is about to get. Raises AskAgain where the rule has an answer to it."""
        if exchange.head.status == _UNAUTHORIZED and not exchange.hops and _same_origin(exchange.target, self.target):
            found = self.credentials.answer(self, exchange)
            if found is not None:
                raise AskAgain(found)
        if self.sent is not None:
            head = exchange.head
            exchange.head = replace(head, headers=Headers([*head.headers.without(_KEPT_BACK), FOR_ITS_CLIENT]))


class Credentials:
    """All rules. `insecure`: hosts whose certificate is not verified."""

    def __init__(
        self, rules: Sequence[Rule], insecure: Container[str], servers: TokenServers, counters: Counters
    ) -> None:
        self._rules = rules
        self._insecure = insecure
        self._servers = servers
        self._counters = counters

    def use(self, target: Target, client: Tuple[str, str], reach: Reach) -> Optional[Use]:
        """The first rule for a target and a client (its address, its user); None where there is none."""
        for rule in self._rules:
            if target in rule.hosts and rule.is_for(*client) and self._is_safe(rule, target):
                return Use(self, rule, target, reach)
        return None

    def answer(self, use: Use, exchange: Exchange) -> Optional[Use]:
        """The use that answers the challenge in a response; None where there is none, and the client gets the response.

        Raises ClientGone.
        """
        if use.sent is not None and not self._may_repeat(use, use.sent):
            self._failed(use.rule, f"{use.target.authority} does not accept them")
            use.rule.source.refused(use.target, use.sent.secret)
            return None
        try:
            sent = self._answered(use, exchange)
        except (SecretError, NoToken) as error:
            self._failed(use.rule, str(error))
            return None
        if sent is None:
            return None
        self._counters.add(Counter.CREDENTIALS_USED)
        return replace(use, sent=sent, may_repeat=use.sent is None)

    def _may_repeat(self, use: Use, sent: _Sent) -> bool:
        """Whether a refused token may be replaced: it may have ended early."""
        if not use.may_repeat or sent.token is None:
            return False
        wanted, token = sent.token
        return self._servers.replace(wanted, sent.secret, use.reach, token)

    def _answered(self, use: Use, exchange: Exchange) -> Optional[_Sent]:
        """The credentials that a response asks for; None where it asks for none that the rule has.

        Raises SecretError, NoToken, ClientGone.
        """
        offered = _offered(exchange)
        if not offered:
            return None
        secret = use.rule.source.get(use.target)
        if secret.username is None:
            if offered[0].scheme != b"bearer":
                raise NoToken(f"{use.target.authority} asks for a user and a password")
            return _Sent(b"Bearer " + secret.value.encode(), secret)
        strangers = ""
        for one in offered:
            if one.scheme == b"basic":
                return _Sent(basic(secret), secret)
            wanted = _token_request(one)
            if wanted is None:
                continue
            if not self._may_ask(use, wanted.realm):
                strangers = str(wanted.realm.authority)
                continue
            try:
                token = self._servers.token(wanted, secret, use.reach)
            except NoToken:
                use.rule.source.refused(use.target, secret)
                raise
            return _Sent(b"Bearer " + token.value.encode(), secret, (wanted, token))
        if strangers:
            raise NoToken(f"{use.target.authority} names the token server {strangers}, which is not in their realms")
        return None

    def _may_ask(self, use: Use, realm: Target) -> bool:
        """Whether a rule's password may go to a token server that an origin names."""
        if not self._is_safe(use.rule, realm):
            return False
        known = _REALMS.get(use.target.authority.host) == realm.authority.host and realm.authority.port == 443
        return realm in use.rule.hosts or realm in use.rule.realms or known

    def _is_safe(self, rule: Rule, target: Target) -> bool:
        return rule.unprotected or (target.scheme == "https" and target.authority.host not in self._insecure)

    def _failed(self, rule: Rule, reason: str) -> None:
        self._counters.add(Counter.CREDENTIALS_FAILED)
        rule.trouble.warning("Credentials for %s are of no use: %s", rule.title, reason)


def _offered(exchange: Exchange) -> Sequence[Challenge]:
    """The challenges of a response that a rule may have an answer to, Bearer first."""
    values = exchange.head.headers.get_all(b"www-authenticate")[:_MOST_CHALLENGES]
    found = [one for value in values for one in challenges(value) if one.scheme in (b"bearer", b"basic")]
    return sorted(found[:_MOST_CHALLENGES], key=lambda one: one.scheme != b"bearer")


def _token_request(challenge: Challenge) -> Optional[TokenRequest]:
    parameters = challenge.parameters
    with suppress(ProtocolError):
        realm = http1.parse_absolute(parameters.get(b"realm", b""))
        return TokenRequest(realm, parameters.get(b"service", b""), parameters.get(b"scope", b""))
    return None


def _same_origin(one: Target, other: Target) -> bool:
    return (one.scheme, one.authority) == (other.scheme, other.authority)


def _grantee(rule: Rule, secret: Secret) -> bytes:
    """No client can send this: a field value has no NUL."""
    parts = (rule.title, secret.username or "", secret.value)
    return b"rule\0" + hashlib.sha256("\0".join(parts).encode()).digest()
