"""What dduct answers for a registry, or a token server, that cannot be asked, so that clients go on to what is stored.

docker, podman, skopeo and containerd first ask for `GET /v2/`, to learn whether they need a token, and then for one.
A registry's own answer would send them to its token server, which is away, too. These answers open nothing: each object
is judged by itself, and a token of dduct's own is none for any origin.
"""

from __future__ import annotations

import os

from fetching.filler import Services
from monitoring.details import Detail, with_detail
from net.response import Reply
from protocol.http1 import RequestHead, Target
from storage.record import Unstorable

_PATHS = ("/v2/", "/v2")
_JSON = [(b"Content-Type", b"application/json")]
_FIELDS = [*_JSON, (b"Docker-Distribution-Api-Version", b"registry/2.0")]


def answer(services: Services, target: Target, head: RequestHead, reply: Reply) -> bool:
    """Answer a request whose origin cannot be asked, if it is such a question; returns whether it is one."""
    if _asks_for_registry(services, target, head):
        fields, body = _FIELDS, b"{}"
    elif services.public_tokens.may_issue(target, head, services.names):
        fields, body = _JSON, services.public_tokens.stand_in(target)
    else:
        return False
    reply.note = with_detail("", Detail.OFFLINE)
    reply.send_complete(200, fields, body)
    return True


def _asks_for_registry(services: Services, target: Target, head: RequestHead) -> bool:
    """Whether a request asks, for nobody in particular, for a registry of which something is stored."""
    if target.path not in _PATHS or head.method not in (b"GET", b"HEAD"):
        return False
    if services.public_tokens.identifying(target, head.headers, services.names):
        return False
    try:
        place = services.cache.store.place(f"{target.scheme}/{target.host_field}/v2")
    except Unstorable:
        return False
    with services.cache.disk.operation():
        return os.path.isdir(place)
