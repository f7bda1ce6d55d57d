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
from proxy import registry_stand_in, token_reading
from proxy.own_credentials import ask_with, use_for
from proxy.runtime import Runtime
from upstream.credentials import Use
from upstream.dialling import UpstreamError
from upstream.exchange import Exchange
from upstream.relay import expects_continue, forward, outgoing, wants_upgrade
from upstream.request import Purpose, Request

_AWAY = (429, 502, 503, 504)  # an error's status where the origin could not be asked


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
    stand_in = registry_stand_in.find(services, asked.target, head)
    if stand_in is not None and services.origins.away(asked.target) is not None:
        stand_in.send(reply)
        return
    # Where dduct has another answer, clients wait no longer than for what is stored.
    purpose = Purpose.RELAY if stand_in is None else Purpose.FILL
    try:
        exchange, for_anybody = _ask(runtime, asked, reply, reach, purpose)
    except UpstreamError as error:
        if stand_in is None or error.status not in _AWAY:
            raise
        stand_in.send(reply)
        return
    try:
        if stand_in is not None and exchange.unhelpful:
            stand_in.send(reply)
            return
        if validation.invalidates(head.method, exchange.head.status):
            services.invalidate(asked.target, exchange.head, runtime.rules.naming)
        services.counters.add(Counter.RELAYED)
        if exchange.head.status == 101:
            reply.switch(exchange.head)
            reply.outcome = f"{reply.note}; upgraded"
            carry(exchange.stream)
        else:
            says_nothing = for_anybody and asked.framing.kind is Framing.NONE
            forward(reply, exchange, token_reading.reader(services, asked.target, head, exchange, says_nothing))
    finally:
        exchange.close()


def _ask(runtime: Runtime, asked: Asked, reply: Reply, reach: Reach, purpose: Purpose) -> Tuple[Exchange, bool]:
    """The response of the origin, and whether anybody may have got it with the same request. Raises UpstreamError."""

    def ask(head: RequestHead, use: Optional[Use]) -> Tuple[Exchange, bool]:
        request = _request(runtime, replace(asked, head=head), reply, reach, purpose)
        exchange = runtime.services.origins.exchange(request)
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


def _request(runtime: Runtime, asked: Asked, reply: Reply, reach: Reach, purpose: Purpose) -> Request:
    head, framing, via = asked.head, asked.framing, runtime.services.via
    # kubectl and docker send a POST with `Content-Length: 0` to switch protocols. The field is passed on unchanged.
    empty = framing.kind is Framing.NONE or framing.length == 0
    upgrade = empty and wants_upgrade(head)
    return Request(
        method=head.method,
        target=asked.target,
        headers=outgoing(head, via, upgrade),
        reach=reach,
        purpose=purpose,
        framing=framing,
        body=None if empty else asked.body,
        expects=expects_continue(head, framing),
        upgrade=upgrade,
        on_interim=reply.interim,
        names=runtime.services.names,
    )
