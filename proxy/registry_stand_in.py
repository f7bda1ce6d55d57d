"""What dduct answers for a registry, or a token server, that cannot be asked, so that clients go on to what is stored.

docker, podman, skopeo and containerd first ask for `GET /v2/`, to learn whether they need a token, and then for one.
A registry's own answer would send them to its token server, which is away, too. These answers open nothing: each object
is judged by itself, and a token of dduct's own is none for any origin.
"""

from __future__ import annotations

import os
from typing import Callable, List, Optional

from fetching.filler import Services
from monitoring.details import Detail, with_detail
from net.response import Reply
from protocol.headers import Field
from protocol.http1 import RequestHead, Target
from storage.record import Unstorable

_PATHS = ("/v2/", "/v2")
_JSON = [(b"Content-Type", b"application/json")]
_FIELDS = [*_JSON, (b"Docker-Distribution-Api-Version", b"registry/2.0")]


class StandIn:
    """dduct's answer to one request, for where its origin cannot be asked."""

    def __init__(self, fields: List[Field], body: Callable[[], bytes]) -> None:
        self._fields = fields
        self._body = body

    def send(self, reply: Reply) -> None:
        """Answer. Raises OSError when the client is gone."""
        reply.note = with_detail("", Detail.OFFLINE)
        reply.send_complete(200, self._fields, self._body())


def find(services: Services, target: Target, head: RequestHead) -> Optional[StandIn]:
    """The answer to a request if it asks for a registry, or for a token; None for all others."""
    if _asks_for_registry(services, target, head):
        return StandIn(_FIELDS, lambda: b"{}")
    if services.public_tokens.issues(target, head):
        return StandIn(_JSON, lambda: services.public_tokens.stand_in(target))
    return None


def _asks_for_registry(services: Services, target: Target, head: RequestHead) -> bool:
    """Whether a request asks, for nobody in particular, for a registry of which something is stored."""
    if target.path not in _PATHS or target.query is not None or head.method not in (b"GET", b"HEAD"):
        return False
    if services.public_tokens.identifying(target, head.headers, services.names):
        return False
    try:
        place = services.cache.store.place(f"{target.scheme}/{target.host_field}/v2")
    except Unstorable:
        return False
    with services.cache.disk.operation():
        return os.path.isdir(place)
