"""Tokens for a registry, as its token server gives them for a user's password (the token protocol of registries).

A token server is asked over its own connection, without redirects, and with a limit on time and bytes. A token is kept
until shortly before its end, for all that its rule is for.
"""

from __future__ import annotations

import base64
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Callable, Dict, List, Tuple, Union
from urllib.parse import quote, urlencode

from net.addresses import Reach
from net.body import IncompleteBody
from protocol.headers import Headers
from protocol.http1 import Target
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange
from upstream.made_once import MadeOnce
from upstream.public_tokens import MAX_RESPONSE, MAX_TOKEN, lifetime_of, token_values
from upstream.request import Purpose, Request
from upstream.secret_sources import Secret

_MOST_TOKENS = 1024
_WAIT = 30.0  # seconds for a token that another request gets
_BODY_TIME = 10.0  # seconds that the body of a response may take
_REFUSED_FOR = 30.0  # seconds for which a token server that refuses is not asked again for the same,
_AWAY_FOR = 5.0  # or one that does not answer
_JUST_MADE = 5.0  # seconds in which a token that its registry refuses is not replaced
_MOST_SCOPE = 2048  # bytes of service and scope: each


class NoToken(Exception):
    """There is no token; the message is one line for the log."""


@dataclass(frozen=True)
class TokenRequest:
    """What a challenge asks for: the token of `service` and `scope` from `realm`."""

    realm: Target
    service: bytes
    scope: bytes

    @property
    def target(self) -> Target:
        """Where the token is asked for."""
        parameters: Dict[str, Union[bytes, List[bytes]]] = {}
        if self.service:
            parameters["service"] = self.service
        if self.scope:
            parameters["scope"] = self.scope.split()
        query = "&".join(
            filter(None, (self.realm.query, urlencode(parameters, doseq=True, safe=":/,", quote_via=quote)))
        )
        return replace(self.realm, query=query or None)


@dataclass(frozen=True)
class Token:
    """A token; two are the same if they were given at the same time and have the same value."""

    value: str = field(repr=False)


class TokenServers:
    """Asks token servers by `ask`; `via` is dduct's own entry in Via."""

    def __init__(
        self, ask: Callable[[Request], Exchange], via: bytes, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._via = via
        self._clock = clock
        self._tokens: MadeOnce[Tuple[Secret, TokenRequest, Reach], Union[Token, str]] = MadeOnce(_MOST_TOKENS, clock)

    def token(self, wanted: TokenRequest, secret: Secret, reach: Reach) -> Token:
        """A token for a user. `reach`: what of dduct's machine the client may reach. Raises NoToken, ClientGone."""
        if max(len(wanted.service), len(wanted.scope)) > _MOST_SCOPE:
            raise NoToken("the challenge is too long")
        made = self._tokens.get((secret, wanted, reach), lambda: self._made(wanted, secret, reach), _WAIT)
        if not isinstance(made, Token):
            raise NoToken(made or "the token server has not answered in time")
        return made

    def replace(self, wanted: TokenRequest, secret: Secret, reach: Reach, refused: Token) -> bool:
        """Whether another token may be used in place of one that its registry refuses."""
        return self._tokens.forget((secret, wanted, reach), refused, _JUST_MADE)

    def _made(self, wanted: TokenRequest, secret: Secret, reach: Reach) -> Tuple[Union[Token, str], float]:
        where = str(wanted.realm).partition("?")[0]
        try:
            with closing(self._ask(self._request(wanted, secret, reach))) as exchange:
                status = exchange.head.status
                if status != 200:
                    return f"the token server {where} answers {status}", _REFUSED_FOR
                values = token_values(exchange.head, read_answer(exchange, self._clock))
        except (UpstreamError, IncompleteBody) as error:
            return f"the token server {where} cannot be asked: {error}", _AWAY_FOR
        token = values.get("token") or values.get("access_token")
        if not isinstance(token, str) or len(token) > MAX_TOKEN or not _is_sendable(token):
            return f"the token server {where} gives no token", _REFUSED_FOR
        seconds = lifetime_of(values)
        return Token(token), max(0.8 * seconds, seconds - 30.0)

    def _request(self, wanted: TokenRequest, secret: Secret, reach: Reach) -> Request:
        fields = [
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"identity"),
            (b"Authorization", basic(secret)),
            (b"User-Agent", b"dduct"),
            (b"Via", self._via),
        ]
        return Request(b"GET", wanted.target, Headers(fields), reach, Purpose.FILL)


def read_answer(exchange: Exchange, clock: Callable[[], float] = time.monotonic) -> bytes:
    """The body of a token server's response. Raises UpstreamError where it is long or slow, and IncompleteBody."""
    body, deadline = b"", clock() + _BODY_TIME
    for piece in exchange.body.chunks(memoryview(bytearray(MAX_RESPONSE))):
        body += piece
        if len(body) > MAX_RESPONSE or clock() > deadline:
            raise UpstreamError("its answer is too long, or too slow")
    return body


def basic(secret: Secret) -> bytes:
    """The value of Authorization for a user (RFC 7617)."""
    return b"Basic " + base64.b64encode(f"{secret.username}:{secret.value}".encode())


def _is_sendable(token: str) -> bool:
    return token.isascii() and token.isprintable() and " " not in token and bool(token)
