"""One connection to an origin: a request sent and the head of its response read, on top of http.client.

Rules of this module:

* http.client sends requests and tracks a connection's state. dduct's own strict parser reads heads and bodies, because
  http.client's lenient one ends short bodies silently, splits heads at bare CRs, ends them at lines without a colon,
  and accepts two Content-Lengths and `0x_3` as a chunk size.
"""

from __future__ import annotations

import http.client
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional, Tuple

from net.addresses import Reach, Scope
from net.body import BodyReader, BodyWriter
from net.stream import Stream
from protocol import http1
from protocol.headers import Field, canonical
from protocol.http1 import Authority, ResponseHead
from upstream.request import Request
from upstream.response_head import AnswerHeads

_CONTINUE_TIMEOUT = 1.0  # seconds; curl waits as long


@dataclass(frozen=True)
class Origin:
    """What a connection leads to: two requests may share one only where all of this is the same."""

    scheme: str
    authority: Authority
    reach: Reach  # of the client: what was dialled for one is not for those that reach less
    bodiless: bool = False  # its connections have brought a response without a body


class OriginResponse(http.client.HTTPResponse):
    """http.client's response with dduct's parser: `head` and `body` replace its own attributes."""

    head: ResponseHead
    body: BodyReader

    def __init__(
        self, sock: Stream, request: Request, heads: AnswerHeads, early: Optional[ResponseHead], **_: object
    ) -> None:
        super().__init__(sock, method=request.method.decode("ascii"))  # type: ignore[arg-type]
        self._stream = sock
        self._request = request
        self._heads = heads
        self._early = early

    def begin(self, **_: object) -> None:
        """Read the final head, unless it came early. Raises ProtocolError(502), ConnectionLost, or another OSError."""
        head = self._early or self._heads.final(self._stream.timeout)
        if head.status == 101 and not self._request.upgrade:
            raise http1.ProtocolError("origin switched protocols without being asked to", 502)
        self.head = head
        framing = http1.response_framing(self._request.method, head)
        self.body = BodyReader(self._stream, framing, sender=http1.Sender.ORIGIN)
        self.code = self.status = self.head.status
        self.reason = self.head.reason.decode("latin-1")
        self.version = 10 + self.head.version
        # http.client closes its socket at a response with `close`; here the reader of the body closes the connection.
        self.will_close = False


class OriginConnection(http.client.HTTPConnection):
    """An established connection, as http.client's type."""

    response_class = OriginResponse

    def __init__(
        self, origin: Origin, stream: Stream, scope: Scope, to_parent: Optional[Tuple[Field, ...]] = None
    ) -> None:
        super().__init__(origin.authority.host, origin.authority.port)
        self.sock = stream
        self.auto_open = 0  # a request on a closed connection is an error, not a new connection
        self.origin = origin
        self.stream = stream
        self.to_parent = to_parent  # fields for a parent proxy, which needs absolute targets; None without one
        self.idle_since = 0.0
        self.fileno = stream.fileno
        self.scope = scope  # of its target
        self.request_incomplete = False  # the end of the request was not sent
        self._may_wait = True

    def __repr__(self) -> str:
        return f"<OriginConnection: {self.origin.scheme}://{self.origin.authority}, {self.stream!r}>"

    def send(self, data: Any) -> None:
        """Send a head, which http.client has put together. Raises OSError; BlockingIOError instead of waiting."""
        if self._may_wait:
            self.stream.send(data)
        elif self.stream.send_nowait(data) < len(data):
            raise BlockingIOError

    def end_head(self, may_wait: bool) -> None:
        """Send the head. Raises like `send`; then the connection can only be closed."""
        self._may_wait = may_wait
        self.endheaders()
        self._may_wait = True


def send(connection: OriginConnection, request: Request) -> OriginResponse:
    """Send a request and read the head of its response. Raises OSError, ProtocolError or http.client's errors."""
    _write_head(connection, request)
    connection.end_head(may_wait=True)
    heads = AnswerHeads(connection.stream, request.on_interim)
    return _read_response(connection, request, heads, _send_body(connection, request, heads))


def send_without_waiting(connection: OriginConnection, request: Request) -> None:
    """Send a request without a body; `receive` reads the head of its response. Raises like `send`."""
    _write_head(connection, request)
    connection.end_head(may_wait=False)


def receive(connection: OriginConnection, request: Request) -> OriginResponse:
    """Read the head of the response to a request that was sent. Raises like `send`."""
    return _read_response(connection, request, AnswerHeads(connection.stream, request.on_interim), None)


def _write_head(connection: OriginConnection, request: Request) -> None:
    target = str(request.target) if connection.to_parent is not None else request.target.path_query
    connection.putrequest(request.method.decode("ascii"), target, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", request.target.host_field)
    for name, value in (*request.headers, *(connection.to_parent or ())):
        connection.putheader(canonical(name), value)
    if request.framing.kind is http1.Framing.CHUNKED:
        connection.putheader("Transfer-Encoding", "chunked")
    elif request.framing.kind is http1.Framing.LENGTH:
        connection.putheader("Content-Length", str(request.framing.length))
    if request.expects:
        connection.putheader("Expect", "100-continue")


def _read_response(
    connection: OriginConnection, request: Request, heads: AnswerHeads, early: Optional[ResponseHead]
) -> OriginResponse:
    response_class = partial(OriginResponse, request=request, heads=heads, early=early)
    connection.response_class = response_class  # type: ignore[assignment]
    response = connection.getresponse()
    assert isinstance(response, OriginResponse)
    return response


def _send_body(connection: OriginConnection, request: Request, heads: AnswerHeads) -> Optional[ResponseHead]:
    """Send the body as far as the origin wants it. Returns the final head if that comes before the end."""
    if request.body is None:
        return None
    stream = connection.stream
    head = _await_go_ahead(heads) if request.expects else None
    if head is not None:
        connection.request_incomplete = True
        return head
    writer = BodyWriter(stream, request.framing)
    for piece in request.body.chunks(memoryview(bytearray(64 * 1024))):
        if stream.arrived():
            head = heads.next(stream.timeout)
            if not head.interim:
                connection.request_incomplete = True
                return head
        try:
            writer.write(piece)
        except ConnectionError:
            connection.request_incomplete = True
            return None  # an early response, if there is one, says more than this error
    writer.finish(request.body.trailers)
    return None


def _await_go_ahead(heads: AnswerHeads) -> Optional[ResponseHead]:
    """Wait a little for 100 Continue (RFC 9110 §10.1.1). Returns the final head if that comes instead."""
    deadline = time.monotonic() + _CONTINUE_TIMEOUT
    while True:
        try:
            head = heads.next(max(0.001, deadline - time.monotonic()))
        except socket.timeout:
            return None  # an origin that does not know Expect waits for the body
        if head.status == 100:
            return None
        if not head.interim:
            return head
