"""Requests that are not plain, but that the poller's thread may answer: HEAD, ranges, conditions, credentials.

They are decided on by `routing.decide`, like all: this takes longer than reading a plain request, and a tenth
of what a thread takes.
"""

from __future__ import annotations

from typing import Optional

from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services
from net.arrival import Arrival
from protocol import http1
from protocol.http1 import Framing, ProtocolError, RequestHead
from proxy import mirror, routing
from proxy.routing import Fetch, Rules

_MAX_REQUEST = 4096  # bytes of a head: tokens are long
_METHODS = (b"GET ", b"HEAD ")
# They say how the stored object may be used, or need a closer look.
_DECIDING = (b"cache-control", b"pragma", b"expect", b"upgrade", b"via")


def other_request(block: bytes, arrival: Arrival, rules: Rules, services: Services) -> Optional[CacheableRequest]:
    """The request whose head is `block`; None where it takes a thread, or is not valid."""
    if len(block) > _MAX_REQUEST or not block.startswith(_METHODS):
        return None
    try:
        head = http1.parse_request(block)
        if http1.request_framing(head).kind is not Framing.NONE or not is_quick(head):
            return None
        decision = routing.decide(head, arrival, rules)
    except ProtocolError:
        return None
    name = decision.name if isinstance(decision, Fetch) else None
    if not isinstance(decision, Fetch) or name is None or name.volatile or name.unasked is not None or name.manifest:
        return None
    if decision.mirrored:
        head = mirror.without_empty_token(head)
    return CacheableRequest(services, head, decision.target, name, arrival.reach)


def is_quick(head: RequestHead) -> bool:
    """Whether the poller's thread may answer such a request, if its object is small, fresh and at hand."""
    return head.persistent and not any(name in head.headers for name in _DECIDING)
