"""Plain requests, read at a glance: nearly all requests of a client differ in the path only.

What the fields mean is worked out once, and remembered for all requests with the same fields on connections of the same
kind. `routing.decide` and `CacheableRequest` decide on all other requests, and would decide the same on these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

from fetching.cacheable_request import bare, sent_for_all
from fetching.naming import name_below
from fetching.small_hit import PlainRequest
from net.arrival import Arrival
from protocol import http1, selection
from protocol.headers import Headers
from protocol.http1 import Framing, ProtocolError, RequestHead, Target
from protocol.remembering import Doorkeeper, Generations
from protocol.request_fields import RequestFields
from proxy import routing
from proxy.routing import Fetch, Rules

_MAX_REQUEST = 2048  # bytes of a head
_MAX_REMEMBERED = 4096  # requests in each of two generations
_MAX_HELD = 2 * 1024 * 1024  # bytes of their heads, likewise
_MAX_KINDS = 256  # sets of fields, likewise
_METHOD, _VERSION = b"GET ", b" HTTP/1.1"
# Fields that make the response to a request differ from that to the next one, or need a closer look.
_OF_ITS_OWN = frozenset([*selection.CONDITIONS, b"cache-control", b"pragma", b"expect", b"upgrade"])


@dataclass(frozen=True)
class _Common:
    """What all requests with certain fields have in common.

    `origin`: that of targets without an authority, with an empty path; None where such targets are not plain. `url` and
    `place`: the beginnings of their URLs and names.
    """

    headers: Headers
    sent: Headers
    origin: Optional[Target]
    url: str
    place: str


class PlainRequests:
    """Reads requests by certain rules. The poller's thread and session threads use it at once.

    `via`: dduct's own entry in Via.
    """

    def __init__(self, rules: Rules, names: RequestFields, via: bytes) -> None:
        self._rules = rules
        self._names = names
        self._via = via
        # Operations on them are atomic; a lost one costs a little time.
        self._known: Generations[Tuple[str, bytes], PlainRequest] = Generations(_MAX_REMEMBERED, _MAX_HELD)
        self._doorkeeper = Doorkeeper(_MAX_REMEMBERED)
        self._kinds: Generations[Tuple[str, bytes], _Common] = Generations(_MAX_KINDS)

    def known(self, block: bytes, arrival: Arrival) -> Optional[PlainRequest]:
        """A request that was read before."""
        return self._known.get((arrival.kind, block))

    def read(self, block: bytes, arrival: Arrival) -> Optional[PlainRequest]:
        """The request whose head is `block`; None where it is not plain, or not valid."""
        known = self._known.get((arrival.kind, block))
        if known is not None or len(block) > _MAX_REQUEST or not block.startswith(_METHOD):
            return known
        line, _, fields = block.partition(b"\r\n")
        if not line.endswith(_VERSION):
            return None
        try:
            common = self._common(fields, arrival)
            if common is None:
                return None
            request = self._plain(line[len(_METHOD) : -len(_VERSION)], common, arrival)
        except ProtocolError:
            return None
        if request is not None and self._doorkeeper.knows(block):
            self._known.put((arrival.kind, block), request, len(block))
        return request

    def _plain(self, target: bytes, common: _Common, arrival: Arrival) -> Optional[PlainRequest]:
        """The request as a value. Raises ProtocolError."""
        base = common.origin
        if base is not None and target.startswith(b"/"):
            path, query = http1.split_origin_form(target)
            name = name_below(common.place, path, query, self._rules.naming)
            url = common.url + path
        else:
            decision = routing.decide(RequestHead(b"GET", target, 1, common.headers), arrival, self._rules)
            if not isinstance(decision, Fetch):
                return None
            base, name, url = decision.target, decision.name, bare(decision.target)
            if decision.mirrored:
                target = base.path_query.encode()  # not what the client has sent: that names the registry, too
        if name is None or name.volatile or name.signature or name.secrets or name.unasked is not None or name.manifest:
            return None
        return PlainRequest(target, base, common.headers, name, url, common.sent, arrival.reach)

    def _common(self, fields: bytes, arrival: Arrival) -> Optional[_Common]:
        """What these fields mean; None where they are not plain. Raises ProtocolError."""
        key = (arrival.kind, fields)
        common = self._kinds.get(key)
        if common is None:
            head = http1.parse_request(b"GET / HTTP/1.1\r\n" + fields)
            if self._is_plain(head):
                sent, origin = sent_for_all(head, self._via, self._names), self._origin(head, arrival)
                url = "" if origin is None else str(origin)
                common = _Common(head.headers, sent, origin, url, url.replace("://", "/", 1))
                self._kinds.put(key, common)
        return common

    def _is_plain(self, head: RequestHead) -> bool:
        if http1.request_framing(head).kind is not Framing.NONE or not head.persistent:
            return False
        if any(name in head.headers for name in _OF_ITS_OWN) or b"via" in head.headers:
            return False
        return not self._names.opening(head.headers)

    def _origin(self, head: RequestHead, arrival: Arrival) -> Optional[Target]:
        """The origin of an intercepted connection, if these fields name it, too; it has an empty path.

        Raises ProtocolError.
        """
        decision = None if arrival.connect_target is None else routing.decide(head, arrival, self._rules)
        if not isinstance(decision, Fetch) or decision.target.authority.host not in self._rules.intercept:
            return None
        return Target(decision.target.scheme, decision.target.authority, "")
