"""dduct's own credentials for requests of clients that have none: which requests may have them, and the next attempt.

Rules of this module:

* A request with credentials of its client's is never sent with others. A token that anybody gets is none.
* Only what may be stored is asked for, and a few questions that registries are asked before a pull: other answers to
  GET may be made for one user, such as a token, and a client may ask for these with its own credentials.
"""

from __future__ import annotations

import re
from typing import Callable, Optional, TypeVar
from urllib.parse import parse_qsl

from fetching.naming import Name
from fetching.recent import Client
from net.addresses import Reach
from protocol.http1 import RequestHead, Target
from protocol.request_fields import RequestFields
from proxy.runtime import Runtime
from upstream.credentials import AskAgain, Use
from upstream.relay import wants_upgrade

_Answer = TypeVar("_Answer")

_READING = (b"GET", b"HEAD")
_OF_TOKENS = frozenset(["account", "scope", "service"])
# Of the OCI distribution specification: whether a token is needed, which tags there are, what refers to an image.
_QUESTION = re.compile("/v2/?|/v2/[^?#]+/(?:tags/list|referrers/[^/]+)")


def use_for(
    runtime: Runtime, head: RequestHead, target: Target, client: Client, reach: Reach, name: Optional[Name]
) -> Optional[Use]:
    """The credentials that a request without a body may have; None where there are none. `name`: of its object."""
    use = runtime.credentials.use(target, client, reach)
    if use is None or head.method not in _READING or wants_upgrade(head):
        return None
    if (name is None and _QUESTION.fullmatch(target.path) is None) or _asks_for_token(target):
        return None
    services = runtime.services
    signed = name is not None and (name.signature or name.secrets)
    if signed or services.public_tokens.identifying(target, head.headers, services.names):
        return None
    return use


def _asks_for_token(target: Target) -> bool:
    """Whether a query is one that token servers understand, whatever the path looks like."""
    names = [name for name, _ in parse_qsl(target.query or "", keep_blank_values=True)]
    return not _OF_TOKENS.isdisjoint(names)


def ask_with(
    names: RequestFields, head: RequestHead, use: Optional[Use], ask: Callable[[RequestHead, Optional[Use]], _Answer]
) -> _Answer:
    """What `ask` gives for a request, which is sent again with credentials where its origin wants some.

    Raises what `ask` raises but AskAgain, which a use raises twice at most.
    """
    while True:
        try:
            return ask(head if use is None or use.sent is None else use.head(head, names), use)
        except AskAgain as again:
            use = again.use
