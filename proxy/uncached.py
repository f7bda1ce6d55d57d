"""A request that bypasses the cache: the origin answers it, for this client alone."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Callable, Optional, Tuple

from fetching.recent import Client
from monitoring.metrics import Counter
from net.addresses import Reach
from net.body import BodyReader
from net.response import Reply
from net.stream import Stream
from protocol import validation
from protocol.http1 import BodyFraming, Framing, RequestHead, Target
from proxy import registry_ping
from proxy.own_credentials import ask_with, use_for
from proxy.runtime import Runtime
from upstream.credentials import Use
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange
from upstream.public_tokens import MAX_RESPONSE, PublicTokens
from upstream.relay import expects_continue, forward, outgoing, wants_upgrade
from upstream.request import Purpose, Request

_AWAY = (502, 503, 504)  # an error's status where the origin could not be asked
_MOST_PIECES = 16  # of a token server's response that are looked at


@dataclass(frozen=True)
class Asked:
    """A client's request to an origin, with its unread body."""

    client: Client
    target: Target
    head: RequestHead
    framing: BodyFraming
    body: BodyReader


def answer_from_origin(
    runtime: Runtime, asked: Asked, reply: Reply, reach: Reach, carry: Callable[[Stream], None]
) -> None:
    """Relay a request of any method to the origin; `carry` relays the protocol after a 101.

    Raises UpstreamError before the answer has begun, OSError when the client is gone.
    """
    services, head = runtime.services, asked.head
    try:
        exchange, for_anybody = _ask(runtime, asked, reply, reach)
    except UpstreamError as error:
        if error.status not in _AWAY or not registry_ping.may_answer(services, asked.target, head):
            raise
        registry_ping.answer(reply)
        return
    try:
        if exchange.unhelpful and registry_ping.may_answer(services, asked.target, head):
            registry_ping.answer(reply)
            return
        if validation.invalidates(head.method, exchange.head.status):
            services.invalidate(asked.target, exchange.head, runtime.rules.naming)
        services.counters.add(Counter.RELAYED)
        if exchange.head.status == 101:
            reply.switch(exchange.head)
            reply.outcome = f"{reply.note}; upgraded"
            carry(exchange.stream)
        else:
            forward(reply, exchange, _reads_along(runtime, asked, exchange) if for_anybody else lambda _: None)
    finally:
        exchange.close()


def _ask(runtime: Runtime, asked: Asked, reply: Reply, reach: Reach) -> Tuple[Exchange, bool]:
    """The response of the origin, and whether anybody may have got it with the same request. Raises UpstreamError."""

    def ask(head: RequestHead, use: Optional[Use]) -> Tuple[Exchange, bool]:
        exchange = runtime.services.origins.exchange(_request(runtime, replace(asked, head=head), reply, reach))
        if use is None:
            return exchange, True
        with ExitStack() as cleanup:
            cleanup.callback(exchange.close)
            use.look_at(exchange)
            cleanup.pop_all()
        return exchange, use.sent is None

    use = None
    if asked.framing.kind is Framing.NONE:
        use = use_for(runtime, asked.head, asked.target, asked.client, reach, None)
    return ask_with(runtime.services.names, asked.head, use, ask)


def _request(runtime: Runtime, asked: Asked, reply: Reply, reach: Reach) -> Request:
    head, framing, via = asked.head, asked.framing, runtime.services.via
    # kubectl and docker send a POST with `Content-Length: 0` to switch protocols. The field is passed on unchanged.
    empty = framing.kind is Framing.NONE or framing.length == 0
    upgrade = empty and wants_upgrade(head)
    return Request(
        method=head.method,
        target=asked.target,
        headers=outgoing(head, via, upgrade),
        reach=reach,
        purpose=Purpose.RELAY,
        framing=framing,
        body=None if empty else asked.body,
        expects=expects_continue(head, framing),
        upgrade=upgrade,
        on_interim=reply.interim,
    )


class _TokenReader:
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


def _reads_along(runtime: Runtime, asked: Asked, exchange: Exchange) -> Callable[[memoryview], object]:
    services = runtime.services
    if not services.public_tokens.may_issue(asked.target, asked.head, services.names):
        return lambda _: None
    return _TokenReader(services.public_tokens, exchange).look
