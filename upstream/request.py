"""A request to an origin, as a value."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Callable, Optional

from net.addresses import Reach
from net.body import BodyReader
from protocol import http1
from protocol.headers import Headers
from protocol.http1 import BodyFraming, ResponseHead, Target
from protocol.request_fields import DEFAULT, RequestFields


class Purpose(enum.Enum):
    """What a response is for; this decides how long its origin may be silent."""

    FILL = "may be kept: others may wait for it, and it can be asked for again"
    RELAY = "for one client alone, who may give up by themselves: long polls, events, slow reports"


@dataclass(frozen=True)
class Request:
    """A request to an origin: `headers` are end-to-end fields without Host and framing.

    `expects`: the origin first says whether it wants the body; `upgrade`: it may answer 101 and switch protocols;
    `on_interim` gets every interim response (RFC 9110 §15.2) but 100. `reach`: what of dduct's machine the client may
    reach. `confirms`: whether a response with `confirming_status` is proof enough on a connection that brings nothing
    else; None where none is.
    `expects_redirect`: the origin will redirect the request, and `confirms` is about the redirect's target.
    """

    method: bytes
    target: Target
    headers: Headers
    reach: Reach
    purpose: Purpose
    framing: BodyFraming = http1.NO_BODY
    body: Optional[BodyReader] = None
    expects: bool = False
    upgrade: bool = False
    on_interim: Callable[[ResponseHead], None] = lambda _: None
    confirms: Optional[Callable[[ResponseHead], bool]] = None
    confirming_status: int = 304
    expects_redirect: bool = False
    names: RequestFields = DEFAULT  # which of its fields may be credentials
    lent: bool = False  # its credentials are dduct's own, and for its target alone
    credentials: Optional[bytes] = None  # for which a refusal counts (`upstream/refusals`); None: for this one alone

    def redirected(self, target: Target) -> Request:
        """The same at another URL. Credentials are dropped when host, port or scheme change: S3 answers 400 to them.

        Those that are `lent` always are: they are for certain paths, and an origin may redirect wherever a client says.
        """
        headers = self.headers
        if self.lent or (target.scheme, target.authority) != (self.target.scheme, self.target.authority):
            headers = Headers(field for field in headers if not self.names.opens(field[0]))
        return replace(self, target=target, headers=headers, expects_redirect=False)
