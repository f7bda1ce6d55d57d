"""Proofs that an origin gives this client the stored object. Values in, a value out.

Rules of this module:

* A proof is about authorization, and stricter than validation: equal bytes have to follow, not only be likely.
* A strong entity tag is a proof, and so is a digest that the origin itself states. A weak tag, a date, a length and a
  Content-Type prove nothing: an origin that makes an export for each client may give all of them the same.
* A contradiction voids a proof (RFC 9111 §4.3.4).
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from typing import Iterator, List, Mapping, Optional, Tuple

from protocol.headers import Field, Headers
from protocol.http1 import ResponseHead
from protocol.validation import selects, strong_etag
from storage.record import Digest


class Verdict(enum.Enum):
    """What a response says of the stored object."""

    SAME = "its origin gives this client the very same"
    OTHER = "its origin gives this client something else"
    UNKNOWN = "nothing shows what it is"


def question(fields: Headers) -> List[Field]:
    """The condition for a 304 that proves something; If-Modified-Since is none."""
    etag = strong_etag(fields)
    return [] if etag is None else [(b"If-None-Match", etag)]


def judge(response: ResponseHead, fields: Headers, length: Optional[int], digests: Mapping[str, str]) -> Verdict:
    """What the response to `question` says of the stored object with these fields, this length and these digests."""
    stated = [digests[name] == value for name, value in _stated(response) if name in digests]
    if response.status == 304:
        return Verdict.SAME if False not in stated and _names_no_other(response, fields) else Verdict.UNKNOWN
    if response.status != 200:
        return Verdict.UNKNOWN
    if stated:
        return Verdict.SAME if all(stated) else Verdict.OTHER
    if _tag_is(response, digests.get("sha256")):
        return Verdict.SAME
    sent, stored = response.headers.get(b"etag"), fields.get(b"etag")
    if sent is not None and stored is not None and sent != stored:
        return Verdict.OTHER
    if sent is not None and sent == strong_etag(fields):
        wrong = length is not None and response.headers.get(b"content-length") not in (None, b"%d" % length)
        return Verdict.UNKNOWN if wrong else Verdict.SAME
    modified, was_modified = response.headers.get(b"last-modified"), fields.get(b"last-modified")
    differs = modified is not None and was_modified is not None and modified != was_modified
    return Verdict.OTHER if differs else Verdict.UNKNOWN


def names(response: ResponseHead, fields: Headers) -> bool:
    """Whether a 304 itself repeats the stored strong tag: for connections that may bring another request's response."""
    return b"etag" in response.headers and _names_no_other(response, fields)


def states(response: ResponseHead, algorithm: str, value: str) -> bool:
    """Whether the origin states this digest for its response, and no other one."""
    stated = [one == value for name, one in _stated(response) if name == algorithm]
    return all(stated) if stated else algorithm == "sha256" and _tag_is(response, value)


def of_manifest(fields: Headers) -> Optional[Digest]:
    """The digest that a registry states for a manifest; None where it states none that bytes can have."""
    match = _HEX.fullmatch(_text(fields.get(_REGISTRYS)))
    digest = None if match is None else Digest(match.group(1), match.group(2))
    return digest if digest is not None and digest.valid else None


def _names_no_other(response: ResponseHead, fields: Headers) -> bool:
    etag = strong_etag(fields)
    return etag is not None and response.headers.get(b"etag") in (None, etag) and selects(response, fields)


_HEX = re.compile(r"(sha256|sha512|blake2b):([0-9a-f]{64,128})")
_REGISTRYS = b"docker-content-digest"
_TAG = re.compile(rb'"(?:sha256:)?([0-9a-f]{64})"')
_SHA256 = re.compile("[0-9A-Fa-f]{64}")
_MEMBER = re.compile(r"(sha-256|sha-512)=:?([A-Za-z0-9+/]{43,86}={1,2}):?", re.IGNORECASE)
_VALUE_LIMIT = 1024  # bytes of a field; no digest is longer


def _stated(response: ResponseHead) -> Iterator[Tuple[str, str]]:
    """The digests of the whole representation that a response states, as (algorithm, hexadecimal)."""
    get = response.headers.get
    match = _HEX.fullmatch(_text(get(_REGISTRYS)))
    if match is not None:
        yield match.group(1), match.group(2)
    if _SHA256.fullmatch(_text(get(b"x-checksum-sha256"))):  # Artifactory, Nexus
        yield "sha256", _text(get(b"x-checksum-sha256")).lower()
    yield from _decoded("sha-256", _text(get(b"x-amz-checksum-sha256")))  # not of a composite: that ends in `-N`
    for name in (b"repr-digest", b"digest"):  # RFC 9530, RFC 3230
        for member in _text(get(name)).split(","):
            found = _MEMBER.fullmatch(member.strip(" \t"))
            if found is not None:
                yield from _decoded(found.group(1).lower(), found.group(2))


def _tag_is(response: ResponseHead, sha256: Optional[str]) -> bool:
    """Whether the strong entity tag is this digest, as registries and stores make it; no other tag counts."""
    tag = _TAG.fullmatch(response.headers.get(b"etag") or b"")
    return tag is not None and tag.group(1).decode() == sha256


def _decoded(algorithm: str, value: str) -> Iterator[Tuple[str, str]]:
    name, size = {"sha-256": ("sha256", 32), "sha-512": ("sha512", 64)}[algorithm]
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return
    if len(raw) == size:
        yield name, raw.hex()


def _text(value: Optional[bytes]) -> str:
    return "" if value is None or len(value) > _VALUE_LIMIT else value.decode("latin-1")
