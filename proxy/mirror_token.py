"""Tokens for clients of the mirror that name the registry in a path: podman, skopeo, CRI-O.

Such a client learns where tokens come from by asking for `/v2/` alone, which names no registry. So dduct sends it to
itself, and passes its question on to the token server of the registry that the scope names. The token is the client's:
dduct keeps none, and the registry judges it as any other.
"""

from __future__ import annotations

import json
from typing import Dict, Optional

from fetching.filler import Services
from monitoring.metrics import Counter
from net.addresses import Reach
from net.response import Reply
from protocol import http1
from protocol.challenges import bearer
from protocol.headers import Headers
from protocol.http1 import ProtocolError, RequestHead, Target
from proxy import mirror, token_reading
from proxy.mirror import TokenScope
from upstream.dialling import UpstreamError
from upstream.relay import forward, outgoing
from upstream.request import Purpose, Request
from upstream.token_server import TokenRequest

_SECONDS = 300  # that a token which stands for none is used


def send_token(services: Services, wanted: TokenScope, head: RequestHead, reply: Reply, reach: Reach) -> None:
    """Send the client what the registry's token server answers it, or a token for none where there is no such server.

    Raises UpstreamError before the answer has begun, OSError when the client is gone.
    """
    challenge = _ask_registry(services, wanted, head, reach)
    if challenge is None:
        token = {"token": mirror.ANONYMOUS, "access_token": mirror.ANONYMOUS, "expires_in": _SECONDS}
        kind = [(b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store")]
        reply.send_complete(200, kind, json.dumps(token))
        return
    target = token_target(challenge, wanted)
    fields = outgoing(head, services.via)
    exchange = services.origins.exchange(Request(b"GET", target, fields, reach, Purpose.RELAY))
    try:
        services.counters.add(Counter.RELAYED)
        forward(reply, exchange, token_reading.reader(services, target, head, exchange))
    finally:
        exchange.close()


def token_target(challenge: Dict[bytes, bytes], wanted: TokenScope) -> Target:
    """Where to ask for the token. Raises UpstreamError: without TLS, or to no URL, no password is sent."""
    try:
        realm = http1.parse_absolute(challenge[b"realm"])
    except ProtocolError as error:
        raise UpstreamError(f"{wanted.registry} names no usable token server: {error}") from error
    if realm.scheme != "https":
        raise UpstreamError(f"{wanted.registry} names a token server without TLS")
    return TokenRequest(realm, challenge.get(b"service", b""), wanted.scope.encode()).target


def _ask_registry(
    services: Services, wanted: TokenScope, head: RequestHead, reach: Reach
) -> Optional[Dict[bytes, bytes]]:
    """The challenge of a registry to a client without credentials; None where it wants no tokens."""
    fields = Headers(field for field in outgoing(head, services.via) if not services.names.opens(field[0]))
    target = Target("https", wanted.registry, mirror.BASE)
    exchange = services.origins.exchange(Request(b"GET", target, fields, reach, Purpose.FILL))
    try:
        status = exchange.head.status
        if status == 429 or status >= 500:  # it would want a token again later
            raise UpstreamError(f"{wanted.registry} answers {status} where it names its token server")
        return bearer(exchange.head.headers) if status == 401 else None
    finally:
        exchange.close()
