"""A request that was sent to an origin and its response, until its connection can be used again.

Rules of this module:

* A connection that has brought a response without a body (HEAD, 204, 304, Content-Length: 0) brings nothing after that
  but a 304 that confirms the stored object. A broken origin may send a body all the same, and late: dduct would take
  it for the response to the next request, which may be for another URL.
* A connection that a client has authenticated as such (NTLM, Negotiate) is not kept: others would use its identity.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Callable, NamedTuple, Optional, Tuple

from net.addresses import Scope
from net.stream import Stream
from protocol import http1
from protocol.http1 import ResponseHead, Target
from upstream.dialling import UpstreamError
from upstream.origin_connection import OriginConnection, OriginResponse
from upstream.request import Request

_SERVER_ERRORS, _TOO_MANY = 500, 429
_MAX_DIGITS = 9  # of Retry-After
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_DRAINED = 64 * 1024  # bytes that are read to keep a connection
_DRAINED_FOR = 1.0  # seconds that this may take
_LOGS_CONNECTIONS_IN = re.compile(rb"(?i)(?:^|[\s,])(?:ntlm|negotiate)(?:$|[\s,])")


class Hop(NamedTuple):
    """A redirect that was followed: its head, its target, and the scope of what it came from."""

    head: ResponseHead
    target: Target
    scope: Scope


class Exchange:
    """A request that was sent and its response: read `body`, then `close()`, on every path.

    `relay_timeout`: the longest silence in a relayed body, in seconds. `give_back` gets the connection at the end, and
    whether it may be kept.
    """

    def __init__(
        self,
        connection: OriginConnection,
        response: OriginResponse,
        request: Request,
        relay_timeout: float,
        give_back: Callable[[OriginConnection, bool], None],
    ) -> None:
        self._connection = connection
        self._relay_timeout = relay_timeout
        self._give_back = give_back
        self._response = response
        self._closed = False
        self._logs_in = _logs_in(request, response.head)
        self._bodiless = response.body.complete  # nothing of it has been read yet
        self.method = request.method
        self.target = request.target
        self.hops: Tuple[Hop, ...] = ()  # the redirects that `follow` has followed
        self.head = response.head
        self.body = response.body

    def __repr__(self) -> str:
        state = "closed" if self._closed else "body read" if self.body.complete else "open"
        return f"<Exchange: {self.method.decode()} to {self.target.authority}, {self.head.status}, {state}>"

    @property
    def scope(self) -> Scope:
        """The scope of the response: the largest of its own and those of the redirects that led to it."""
        return max([self._connection.scope, *(hop.scope for hop in self.hops)])

    @property
    def redirected_to(self) -> Optional[Target]:
        """The target of the first redirect, if any."""
        return self.hops[0].target if self.hops else None

    @property
    def stream(self) -> Stream:
        """The connection itself, for the protocol after a 101."""
        return self._connection.stream

    @property
    def unhelpful(self) -> bool:
        """Whether the response says nothing of its target, but that the origin cannot answer now (5xx, 429)."""
        return self.head.status >= _SERVER_ERRORS or self.head.status == _TOO_MANY

    def failure(self) -> UpstreamError:
        """The error for a client where the response is `unhelpful`, and nothing stored may be sent."""
        later = self.head.headers.get(b"retry-after") or b""
        seconds = int(later) if later.isdigit() and len(later) <= _MAX_DIGITS else None
        return UpstreamError(f"the origin answers {self.head.status}", self.head.status, seconds)

    def relayed(self) -> None:
        """Apply the timeout for relays: the rest of the body is for one client alone."""
        self._connection.stream.timeout = self._relay_timeout

    def redirect(self) -> Optional[Target]:
        """The target of a redirect; None without one, or where http1 cannot resolve it.

        The client itself follows a redirect that sets a cookie: the target may be another thing without that cookie.
        """
        location = self.head.headers.get(b"location")
        if self.head.status not in _REDIRECTS or location is None or b"set-cookie" in self.head.headers:
            return None
        return http1.resolve(self.target, location)

    def close(self) -> None:
        """Keep the connection for another request if its body was read to the end, or nearly; else close it."""
        if self._closed:
            return
        self._closed = True
        self._response.close()
        reusable = False
        try:
            reusable = self._may_be_kept()
        finally:
            if self._bodiless:
                self._connection.origin = replace(self._connection.origin, bodiless=True)
            self._give_back(self._connection, reusable)

    def _may_be_kept(self) -> bool:
        """Whether the connection may be kept; reads the rest of the body, for a moment. Raises ClientGone."""
        reusable = self.head.persistent and self.body.delimited and not self._connection.request_incomplete
        if not reusable or self.head.status == 101 or self._logs_in:
            return False
        # The client waits meanwhile: only afterwards a redirect is followed, or a validated hit sent.
        self._connection.stream.timeout = min(self._connection.stream.timeout, _DRAINED_FOR)
        return self.body.drain(_MAX_DRAINED, _DRAINED_FOR)

    def discard(self) -> None:
        """Close the connection, however the response ends; a no-op on a closed exchange."""
        if self._closed:
            return
        self._closed = True
        self._response.close()
        self._give_back(self._connection, False)


def _logs_in(request: Request, head: ResponseHead) -> bool:
    """Whether a connection may have an identity after this: NTLM and Negotiate (RFC 4559) authenticate connections."""
    schemes = (*request.headers.get_all(b"authorization"), *head.headers.get_all(b"www-authenticate"))
    return any(_LOGS_CONNECTIONS_IN.search(value) for value in schemes)
