"""Which part of a stored representation answers a request: preconditions (RFC 9110 §13) and ranges (§14)."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import List, Optional, Tuple

from protocol import field_values
from protocol.headers import Field, Headers
from protocol.http1 import RequestHead
from protocol.validation import weak

# Fields by which a request asks for less, or for something else, than the whole representation.
CONDITIONS = (
    b"range",
    b"if-range",
    b"if-match",
    b"if-none-match",
    b"if-modified-since",
    b"if-unmodified-since",
)
_ETAG = re.compile(rb'(?:W/)?"[^"]*"')


@dataclass(frozen=True)
class Part:
    """A half-open span of the representation, and the bytes sent before it (the head of a multipart body's part)."""

    start: int
    end: Optional[int]  # None: up to an end that is not known yet
    preface: bytes = b""


@dataclass(frozen=True)
class Selection:
    """A status, the fields that describe the selected part, the parts, and the bytes after the last of them."""

    status: int
    fields: Tuple[Field, ...] = ()
    parts: Tuple[Part, ...] = ()
    closing: bytes = b""

    @property
    def length(self) -> Optional[int]:
        """Bytes of the body; None where unknown."""
        size = len(self.closing)
        for part in self.parts:
            if part.end is None:
                return None
            size += len(part.preface) + part.end - part.start
        return size


def select(request: RequestHead, fields: Headers, length: Optional[int]) -> Optional[Selection]:
    """Apply preconditions and Range to a representation of `length` bytes, or of unknown length.

    None where a precondition asks for another representation than the stored one: the origin must answer (RFC 9110
    §13.1.1 and §13.1.4).
    """
    whole = Selection(200, (), (Part(0, length),))
    if not any(name in request.headers for name in CONDITIONS):
        return whole
    if _wants_another(request, fields):
        return None
    if _unchanged(request, fields):
        return Selection(304)
    wanted = request.headers.get(b"range")
    if wanted is None or length is None or request.method != b"GET" or not _same_representation(request, fields):
        return whole
    ranges = field_values.parse_ranges(wanted)
    if not ranges:
        return whole
    windows = [window for window in (one.window(length) for one in ranges) if window is not None]
    if not windows:
        return Selection(416, ((b"Content-Range", b"bytes */%d" % length),))
    if len(windows) == 1:
        return Selection(206, (_content_range(windows[0], length),), (Part(*windows[0]),))
    # RFC 9110 §17.15: many overlapping ranges are an attack or a mistake; no response is longer than the whole.
    if sum(end - start for start, end in windows) >= length:
        return whole
    return _multipart(windows, fields.get(b"content-type"), length)


def _multipart(windows: List[Tuple[int, int]], kind: Optional[bytes], length: int) -> Selection:
    """A multipart/byteranges selection (RFC 9110 §14.6 and §15.3.7.2)."""
    boundary = secrets.token_hex(12).encode()
    parts = []
    for position, window in enumerate(windows):
        lines = [b"\r\n" if position else b"", b"--" + boundary + b"\r\n"]
        if kind is not None:
            lines.append(b"Content-Type: " + kind + b"\r\n")
        lines.append(b"%s: %s\r\n\r\n" % _content_range(window, length))
        parts.append(Part(*window, b"".join(lines)))
    content_type = (b"Content-Type", b"multipart/byteranges; boundary=" + boundary)
    return Selection(206, (content_type,), tuple(parts), b"\r\n--" + boundary + b"--\r\n")


def _content_range(window: Tuple[int, int], length: int) -> Field:
    return b"Content-Range", b"bytes %d-%d/%d" % (window[0], window[1] - 1, length)


def _wants_another(request: RequestHead, fields: Headers) -> bool:
    """Whether RFC 9110 §13.2.2 step 1 or 2 is false."""
    match = request.headers.get(b"if-match")
    if match is not None:
        etag = fields.get(b"etag")
        return match != b"*" and (etag is None or etag.startswith(b"W/") or etag not in _ETAG.findall(match))
    unmodified = field_values.parse_date(request.headers.get(b"if-unmodified-since") or b"")
    modified = field_values.parse_date(fields.get(b"last-modified") or b"")
    return unmodified is not None and modified is not None and modified > unmodified


def _unchanged(request: RequestHead, fields: Headers) -> bool:
    """Whether RFC 9110 §13.2.2 step 3 or 4 is false."""
    none_match = request.headers.get(b"if-none-match")
    if none_match is not None:
        etag = fields.get(b"etag")
        return none_match == b"*" or (etag is not None and weak(etag) in map(weak, _ETAG.findall(none_match)))
    since = field_values.parse_date(request.headers.get(b"if-modified-since") or b"")
    # RFC 9111 §4.3.2: Date replaces a missing Last-Modified.
    modified = field_values.parse_date(fields.get(b"last-modified") or fields.get(b"date") or b"")
    return since is not None and modified is not None and modified <= since


def _same_representation(request: RequestHead, fields: Headers) -> bool:
    """Whether If-Range, an ETag or an exact date, matches strongly (RFC 9110 §13.1.5)."""
    condition = request.headers.get(b"if-range")
    if condition is None:
        return True
    if condition.startswith(b'"'):
        return condition == fields.get(b"etag")
    return not condition.startswith(b"W/") and condition == fields.get(b"last-modified")
