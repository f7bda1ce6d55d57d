"""The summary of a record: all that a hit of a small object needs of it, read in a microsecond.

It stands in front of the record that it summarizes, in the same attribute:

    {"v":1,"quick":"<base64>","metadata":…}

Rules of this module:

* A summary counts only in front of exactly the text that it was made of: it begins with a checksum of both. So a
  version that does not know of summaries may change a record, and drop or keep them.
* Only objects that any client may have, and that are complete, have one; other records are read as a whole.
* Nothing in it depends on the configuration: it has what the origin said, and no decision.
"""

from __future__ import annotations

import binascii
import math
import struct
import zlib
from typing import NamedTuple, Optional, Tuple

from protocol import freshness, http1
from protocol.freshness import Lifetime, Stored
from protocol.headers import Headers

_START = b'{"v":1,'
_BEFORE = _START + b'"quick":"'
_AFTER = b'",'
# Checksum; version, flags, length, fetched_at, age, the two lifetimes, boot, length of the alias; alias; fields
_CHECKSUM = struct.Struct("<I")
_FORM = struct.Struct("<IBBQdddd36sB")
_FLAGS_AT = 5  # behind the checksum and the version
_VERSION = 1
_DURABLE, _NEAR, _OWN, _STATED, _GUESSED = 1, 2, 4, 8, 16
_MAX_BOOT, _MAX_ALIAS = 36, 255


class Summary(NamedTuple):
    """What a record says. `fields`: the lines of the response's head. For the others see `Record` and `Metadata`."""

    length: int
    durable: bool
    boot: str
    alias: str
    fetched_at: float
    age: float
    near: bool
    own: bool
    lifetime: Lifetime
    fields: bytes


class Facts(NamedTuple):
    """What is to be summarized of a record; `fields` are the stored ones."""

    length: int
    durable: bool
    boot: str
    alias: str
    fetched_at: float
    age: float
    near: bool
    own: bool
    fields: Tuple[Tuple[str, str], ...]


def summarized(text: bytes, facts: Facts) -> bytes:
    """A record's text with a summary of it; unchanged where these facts fit into none."""
    rest = text[len(_START) :]
    try:
        summary = _pack(facts)
    except (UnicodeEncodeError, struct.error, AttributeError, TypeError, ValueError, OverflowError):
        return text  # a record that was edited by hand may have anything
    if summary is None or not text.startswith(_START):
        return text
    return _put_together(summary, rest)


def summary_of(data: bytes) -> Optional[Summary]:
    """The summary in an attribute; None where it has none that counts."""
    if not data.startswith(_BEFORE):
        return None
    start = len(_BEFORE)
    end = data.find(_AFTER, start)
    try:
        packed = binascii.a2b_base64(data[start:end])
        checksum, version, flags, length, fetched_at, age, stated, guessed, boot, size = _FORM.unpack_from(packed)
    except (binascii.Error, struct.error):
        return None
    if version != _VERSION or checksum != zlib.crc32(data[end + len(_AFTER) :], zlib.crc32(packed[_CHECKSUM.size :])):
        return None
    middle = _FORM.size + size
    return Summary(
        length,
        flags & _DURABLE != 0,
        boot.rstrip(b"\0").decode("ascii"),
        packed[_FORM.size : middle].decode("ascii"),
        fetched_at,
        age,
        flags & _NEAR != 0,
        flags & _OWN != 0,
        Lifetime(stated if flags & _STATED else None, guessed if flags & _GUESSED else None),
        packed[middle:],
    )


def durably(data: bytes, text: bytes) -> Optional[bytes]:
    """`text`, which the record in `data` becomes once it is synced, with the summary of `data` that says so, too.

    None where `data` has no summary that counts.
    """
    end = data.find(_AFTER, len(_BEFORE))
    try:
        packed = bytearray(binascii.a2b_base64(data[len(_BEFORE) : end]))
        (checksum,) = _CHECKSUM.unpack_from(packed)
        if checksum != zlib.crc32(data[end + len(_AFTER) :], zlib.crc32(packed[_CHECKSUM.size :])):
            return None
        if packed[_FLAGS_AT - 1] != _VERSION:
            return None  # of another version, which may have its flags elsewhere
        packed[_FLAGS_AT] |= _DURABLE
    except (binascii.Error, struct.error, IndexError):
        return None
    return _put_together(bytes(packed[_CHECKSUM.size :]), text[len(_START) :])


def _put_together(summary: bytes, rest: bytes) -> bytes:
    packed = _CHECKSUM.pack(zlib.crc32(rest, zlib.crc32(summary))) + summary
    return b"".join((_BEFORE, binascii.b2a_base64(packed, newline=False), _AFTER, rest))


def _pack(facts: Facts) -> Optional[bytes]:
    """A summary without its checksum; None for an object that is validated with each request."""
    fields = Headers([(name.encode("latin-1"), value.encode("latin-1")) for name, value in facts.fields])
    if b"no-cache" in freshness.directives_of(fields):
        return None
    lifetime = freshness.lifetime_of(Stored(fields, facts.fetched_at, facts.age))
    known = (lifetime.stated is not None) * _STATED | (lifetime.guessed is not None) * _GUESSED
    flags = facts.durable * _DURABLE | facts.near * _NEAR | facts.own * _OWN | known
    boot, alias = facts.boot.encode("ascii"), facts.alias.encode("ascii")
    if len(boot) > _MAX_BOOT or len(alias) > _MAX_ALIAS:
        return None
    times = facts.fetched_at, facts.age, lifetime.stated or 0.0, lifetime.guessed or 0.0
    if not all(map(math.isfinite, times)):
        return None
    packed = _FORM.pack(0, _VERSION, flags, facts.length, *times, boot, len(alias))
    return packed[_CHECKSUM.size :] + alias + http1.field_lines(fields)
