"""`GET /v2/` of a registry that cannot be asked: dduct answers, so that clients go on to what is stored.

docker, podman, skopeo and containerd ask for it first, to learn whether they need a token. A registry's own answer
would send them to its token server, which is away, too. Nothing is opened by this: each object is judged by itself.
"""

from __future__ import annotations

import os

from fetching.filler import Services
from monitoring.details import Detail, with_detail
from net.response import Reply
from protocol.http1 import RequestHead, Target
from storage.record import Unstorable

_PATHS = ("/v2/", "/v2")
_FIELDS = [(b"Content-Type", b"application/json"), (b"Docker-Distribution-Api-Version", b"registry/2.0")]


def may_answer(services: Services, target: Target, head: RequestHead) -> bool:
    """Whether a request is such a question, of nobody in particular, to a registry of which something is stored."""
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


def answer(reply: Reply) -> None:
    """Say that no token is needed."""
    reply.note = with_detail("", Detail.OFFLINE)
    reply.send_complete(200, _FIELDS, "{}")
