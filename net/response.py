"""One response on a client connection: one head, a body in a framing that the client understands, one end.

A response has one head. So an error after the head closes the connection: the client then sees that the response is
incomplete.
"""

from __future__ import annotations

import time
from typing import Iterable, List, Optional, Union

from monitoring.details import Side, of_error, side_of_error, with_detail
from monitoring.redaction import printable
from net.body import BodyWriter
from net.stream import Stream
from net.tunnel import Carried
from protocol import field_values, http1
from protocol.headers import Field
from protocol.http1 import BodyFraming, Framing, RequestHead, ResponseHead

# Other web sites must not use responses of dduct as scripts, styles or frames.
_FOR_BROWSERS = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Content-Security-Policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"Referrer-Policy", b"no-referrer"),
)


class Reply:
    """The answer to `request`; `via` is dduct's Via entry (RFC 9110 §7.6.3)."""

    def __init__(self, stream: Stream, request: Optional[RequestHead], via: bytes) -> None:
        self._stream = stream
        self._request = request
        self._via = via
        self._writer: Optional[BodyWriter] = None  # once the head is sent or held
        self.head = b""  # the bytes sent
        self.persistent = request is not None and request.persistent
        self.status = 0
        self.carried = Carried()  # by a tunnel after a 101 or the answer to CONNECT
        self.cut_by: Optional[Side] = None  # the side that cut the response, unless it was the client
        self.bytes_sent = 0  # of the body
        self.note = ""  # Cache-Status parameters (RFC 9211)
        self.outcome = ""  # replaces `note` in the log, where the end shows more

    @property
    def started(self) -> bool:
        """Whether the head was sent or held."""
        return self._writer is not None

    def send_head(
        self,
        status: int,
        fields: Iterable[Field],
        length: Optional[int],
        reason: bytes = b"",
        hold: bool = False,
    ) -> None:
        """Send the head. `length` is that of the body, for HEAD that of the GET's body; None if unknown.

        `fields` are end-to-end fields; Content-Length among them is used only where no body follows. `hold`: the body
        follows at once, so the head may wait for its first bytes.
        """
        self.status = status
        answers_head = self._request is not None and self._request.method == b"HEAD"
        framing = http1.NO_BODY if answers_head else self._choose_framing(status, length)
        head = head_fields(fields, status, framing, length, answers_head, self._via, self.note)
        if not self.persistent:
            head.append((b"Connection", b"close"))
        self.head = data = http1.serialise_response(status, reason, head)
        if hold and framing.kind is Framing.LENGTH and length:
            self._writer = BodyWriter(self._stream, framing, data)
        else:
            self._writer = BodyWriter(self._stream, framing)
            self._stream.send(data)

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head."""
        return self._writer is not None and self._writer.framing.kind is not Framing.NONE

    def write(self, piece: memoryview) -> None:
        """Send a piece of the body."""
        assert self._writer is not None
        self._writer.write(piece)
        self.bytes_sent += len(piece)

    @property
    def takes_files(self) -> bool:
        """Whether `send_file` may be used: no chunk framing, and no encryption except by the kernel."""
        writer = self._writer
        return writer is not None and writer.framing.kind is Framing.LENGTH and self._stream.takes_files

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """Send bytes of the body from a file by sendfile(2); returns how many, 0 at the file's end."""
        assert self._writer is not None
        sent = self._writer.write_file(fd, offset, count)
        self.bytes_sent += sent
        return sent

    def finish(self, trailers: Iterable[Field] = ()) -> None:
        """End the body."""
        assert self._writer is not None
        self._writer.finish(trailers)

    def interim(self, head: ResponseHead) -> None:
        """Pass on a 1xx response (RFC 9110 §15.2); HTTP/1.0 clients get none."""
        if not self.started and self._request is not None and self._request.version >= 1:
            self._stream.send(head.serialise(head.headers.end_to_end()))

    def switch(self, head: ResponseHead) -> None:
        """Pass on a 101: another protocol follows on this connection."""
        self.status, self.persistent = head.status, False
        self._writer = BodyWriter(self._stream, http1.NO_BODY)
        protocol = head.headers.get(b"upgrade") or b""
        options = [(b"Upgrade", protocol), (b"Connection", b"Upgrade"), (b"Via", self._via)]
        self._stream.send(head.serialise([*head.headers.end_to_end(), *options]))

    def close_abruptly(self, by: Side) -> None:
        """End the connection so that the client sees an incomplete body; `by` is the side that cut it."""
        self.cut_by = by
        self.persistent = False
        if self._writer is not None and self._writer.framing.kind is Framing.CLOSE:
            self._stream.reset()
        else:
            self._stream.close_abruptly()

    def send_complete(self, status: int, fields: Iterable[Field], body: Union[bytes, str]) -> None:
        """Send a complete response of dduct in one piece."""
        data = body.encode() if isinstance(body, str) else body
        fields = [*fields, *_FOR_BROWSERS, (b"Date", field_values.format_date(time.time()))]
        self.send_head(status, fields, len(data), hold=True)
        if self.has_body and data:
            self.write(memoryview(data))
        self.finish()

    def error(self, status: int, reason: str, fields: Iterable[Field] = ()) -> None:
        """Send an error as one line of plain text; after a head, only cut the connection."""
        if self.started:
            if self.cut_by is None:  # the first cause is the true one
                self.close_abruptly(side_of_error(status))
            return
        self.note = self.note or with_detail("", of_error(status))
        line = f"dduct: {printable(reason)}\n"
        self.send_complete(status, [(b"Content-Type", b"text/plain; charset=utf-8"), *fields], line)

    def _choose_framing(self, status: int, length: Optional[int]) -> BodyFraming:
        if status < 200 or status in (204, 304):
            return http1.NO_BODY
        if length is not None:
            return BodyFraming(Framing.LENGTH, length)
        if self._request is not None and self._request.version >= 1:
            return http1.CHUNKED
        self.persistent = False
        return http1.UNTIL_CLOSE


def head_fields(
    fields: Iterable[Field],
    status: int,
    framing: BodyFraming,
    length: Optional[int],
    answers_head: bool,
    via: bytes,
    note: str,
) -> List[Field]:
    """All fields of a response on a connection that stays open; see `Reply.send_head`."""
    # RFC 9110 §8.6: in a 304, Content-Length is that of the 200, not the length that follows.
    like_a_get = answers_head and status not in (204, 304)
    described = length is not None and (framing.kind is Framing.LENGTH or like_a_get)
    keeps_length = framing.kind is Framing.NONE and not described
    head = [field for field in fields if keeps_length or field[0].lower() != b"content-length"]
    if described:
        head.append((b"Content-Length", b"%d" % (length or 0)))
    elif framing.kind is Framing.CHUNKED:
        head.append((b"Transfer-Encoding", b"chunked"))
    head.append((b"Via", via))
    # RFC 9211 §2: each cache appends its entry after those from the origin.
    head.append((b"Cache-Status", b"dduct; " + note.encode() if note else b"dduct"))
    return head
