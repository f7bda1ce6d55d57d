"""Reading along in the responses of token servers: a token for anybody is noted before its client has the end of it."""

from __future__ import annotations

from typing import Callable

from fetching.filler import Services
from protocol.http1 import RequestHead, Target
from upstream.exchange import Exchange
from upstream.public_tokens import MAX_RESPONSE, PublicTokens

_MOST_PIECES = 16  # of a response that are looked at


def reader(services: Services, target: Target, head: RequestHead, exchange: Exchange) -> Callable[[memoryview], object]:
    """What gets each piece of a response's body; most responses have no token for anybody."""
    if not services.public_tokens.may_issue(target, head, services.names):
        return lambda _: None
    return _Reader(services.public_tokens, exchange).look


class _Reader:
    """Reads along in a token server's response, and notes its token before its client gets the end of it."""

    def __init__(self, tokens: PublicTokens, exchange: Exchange) -> None:
        self._tokens = tokens
        self._exchange = exchange
        self._body = bytearray()
        self._pieces = 0

    def look(self, piece: memoryview) -> None:
        """Take one more piece of the body."""
        self._pieces += 1
        if self._pieces <= _MOST_PIECES and len(self._body) + len(piece) <= MAX_RESPONSE:
            self._body += piece
            self._tokens.note_issued(self._exchange.target, self._exchange.head, bytes(self._body))
