"""RFC 9111 §4.3 and §4.4 as decisions: how a stored response is validated, and how the answers change it.

Values in, a value out, as in `freshness`.
"""

from __future__ import annotations

import re
from typing import Iterable, List, Optional, Tuple

from protocol import field_values
from protocol.freshness import NOT_STORED, FieldText, fits, without_dispensable
from protocol.headers import Field, Headers
from protocol.http1 import ResponseHead

# --- validation ---------------------------------------------------------------------------------


def validators(fields: Headers) -> List[Field]:
    """The conditions of a request that validates a stored response (RFC 9111 §4.3.1)."""
    conditions = []
    etag, modified = fields.get(b"etag"), fields.get(b"last-modified")
    if etag is not None:
        conditions.append((b"If-None-Match", etag))
    if modified is not None:
        conditions.append((b"If-Modified-Since", modified))
    return conditions


def selects(response: ResponseHead, fields: Headers) -> bool:
    """Whether a 304 selects the response stored with `fields` (RFC 9111 §4.3.4): it names no other validator.

    The RFC would let a strong ETag alone decide; but a date that differs makes the match doubtful.
    """
    for name in (b"etag", b"last-modified"):
        sent, stored = response.headers.get(name), fields.get(name)
        if sent is not None and stored is not None and weak(sent) != weak(stored):
            return False
    return True


def confirms(response: ResponseHead, fields: Headers) -> bool:
    """Whether a 304 names a validator of the response stored with `fields`, or has no relevant field at all.

    For a connection that may carry unrelated messages: none of their fields is taken over.
    """
    if b"etag" in response.headers and b"etag" in fields and selects(response, fields):
        return True
    modified = response.headers.get(b"last-modified")
    if b"etag" in response.headers or b"etag" in fields or modified is None:
        return all(name.lower() in _SAYING_NOTHING for name, _ in response.headers)
    return modified == fields.get(b"last-modified")


_SAYING_NOTHING = frozenset([b"date", b"server", b"connection", b"keep-alive", b"content-length"])


def same_coding(response: ResponseHead, fields: Headers) -> bool:
    """Whether an answer has the content coding of the response stored with `fields`."""
    return response.headers.get(b"content-encoding") == fields.get(b"content-encoding")


def repeats(response: ResponseHead, fields: Headers, length: Optional[int], elsewhere: bool) -> bool:
    """Whether a 200 repeats the stored bytes: some origins ignore conditions and send everything again.

    `elsewhere`: it comes from another mirror than the stored one. Mirrors keep times, but make their own ETags.
    """
    if response.status != 200 or length is None or response.headers.get(b"content-length") != b"%d" % length:
        return False
    etag, modified = strong_etag(response.headers), response.headers.get(b"last-modified")
    if etag is not None and etag == strong_etag(fields):
        return True
    return elsewhere and modified is not None and modified == fields.get(b"last-modified")


def strong_etag(fields: Headers) -> Optional[bytes]:
    """The strong ETag, the only proof that two parts are of one representation (RFC 9110 §13.1.5, §14.2)."""
    etag = fields.get(b"etag")
    return etag if etag is not None and etag.startswith(b'"') else None


def rest_conditions(etag: Optional[bytes], offset: int, end: Optional[int] = None) -> List[Field]:
    """The fields that request the bytes from `offset` on, up to `end`, if the representation still has this `etag`.

    `etag` None, here and below: a digest will prove the whole, with any validator of the origin.
    """
    condition = [] if etag is None else [(b"If-Range", etag)]
    last = b"" if end is None else b"%d" % (end - 1)
    return [(b"Range", b"bytes=%d-%s" % (offset, last)), *condition]


def is_part(response: ResponseHead, etag: Optional[bytes], start: int, end: int, length: int) -> bool:
    """Whether an answer is exactly the bytes from `start` to `end` that `rest_conditions` requested, of `length`."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get(b"content-range") or b"")
    if response.status != 206 or match is None or (etag is not None and response.headers.get(b"etag") != etag):
        return False
    if response.headers.get(b"content-length") not in (None, b"%d" % (end - start)):
        return False
    return match.groups() == (b"%d" % start, b"%d" % (end - 1), b"%d" % length)


def is_rest(response: ResponseHead, etag: Optional[bytes], offset: int, length: Optional[int]) -> bool:
    """Whether an answer is exactly the rest that `rest_conditions` requested, of `length` bytes in total where known.

    The origin need not know the total length, but must send all missing bytes.
    """
    match = _CONTENT_RANGE.fullmatch(response.headers.get(b"content-range") or b"")
    if response.status != 206 or match is None or (etag is not None and response.headers.get(b"etag") != etag):
        return False
    first, last = int(match[1]), int(match[2])
    total = length if match[3] == b"*" else int(match[3])
    if total is None:
        return first == offset and etag is None
    return first == offset and last == total - 1 and length in (None, total)


def is_whole_again(response: ResponseHead, etag: Optional[bytes], length: Optional[int]) -> bool:
    """Whether an answer to `rest_conditions` is the same representation, in full: the origin supports no ranges."""
    sent = response.headers.get(b"content-length")
    if response.status != 200 or b"content-encoding" in response.headers or b"content-range" in response.headers:
        return False
    if etag is not None and response.headers.get(b"etag") != etag:
        return False
    return None in (sent, length) or sent == b"%d" % (length or 0)


_CONTENT_RANGE = re.compile(rb"(?i:bytes) +([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


# RFC 9111 §3.2: a 304 must not change fields that describe the stored bytes.
_NOT_UPDATED = frozenset([b"content-encoding", b"content-range", b"content-type", *NOT_STORED])


def updated_fields(fields: Headers, response: ResponseHead, now: float) -> Tuple[FieldText, ...]:
    """The stored fields after a 304: its fields replace those of the same name (RFC 9111 §3.2).

    Where there would be too many, only fields for freshness and validators are replaced; the object stays as it is.
    """
    fresh = Headers(response.headers.end_to_end_fields(_NOT_UPDATED))
    kept = fields.without([*(name.lower() for name, _ in fresh), b"date"])
    date = [] if b"date" in fresh else [(b"Date", field_values.format_date(now))]
    merged = without_dispensable([*kept, *fresh, *date])
    if fits(_as_bytes(merged)):
        return merged
    renewing = [field for field in fresh if field[0].lower() in _RENEWING and len(field[1]) <= _MAX_RENEWING]
    kept = fields.without([*(name.lower() for name, _ in renewing), b"date"])
    return without_dispensable([*kept, *renewing, *date])


def _as_bytes(fields: Iterable[FieldText]) -> Iterable[Field]:
    return ((name.encode("latin-1"), value.encode("latin-1")) for name, value in fields)


_RENEWING = frozenset([b"cache-control", b"date", b"expires", b"etag", b"last-modified"])
_MAX_RENEWING = 256  # bytes of one such value


def weak(etag: bytes) -> bytes:
    """An ETag for weak comparison (RFC 9110 §8.8.3.2)."""
    return etag[2:] if etag.startswith(b"W/") else etag


# --- invalidation -------------------------------------------------------------------------------

_SAFE = frozenset([b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"REPORT", b"SEARCH"])


def invalidates(method: bytes, status: int) -> bool:
    """Whether an answer to a method makes the target's stored response outdated (RFC 9111 §4.4)."""
    return method not in _SAFE and 200 <= status < 400
