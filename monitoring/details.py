"""The reasons in the log and in Cache-Status: README.md has the same tables."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Detail(enum.Enum):
    """Why the cache was not used for an answer, or does not keep it: values of Cache-Status' `detail` (RFC 9211)."""

    # Such requests bypass the cache.
    NO_FILTER = "no-filter"
    PATH_TOO_LONG = "path-too-long"
    NOT_INTERCEPTED = "not-intercepted"
    BODY = "request-body"
    OWN_PAGE = "own-page"
    MAX_FORWARDS = "max-forwards"
    # dduct answers itself.
    REFUSED = "refused"
    MALFORMED = "malformed"
    NO_ANSWER = "no-answer"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    LOOP = "loop"
    LIMITED = "limited"
    OFFLINE = "offline"
    ONLY_IF_CACHED = "only-if-cached"
    # The request puts no object into the cache.
    HEAD = "head"
    CONDITION = "condition"
    CREDENTIALS = "credentials"
    FAR_RANGE = "far-range"
    LOCAL = "local"
    # There is no object, and that is kept for a short time.
    NEGATIVE = "negative"
    # The answer is not kept.
    NO_STORE = "no-store"
    STATUS = "status"
    VARY_STAR = "vary-star"
    HTML = "html"
    NO_LENGTH = "no-length"
    TOO_LARGE = "too-large"
    NO_SPACE = "no-room"
    METADATA_TOO_LARGE = "metadata-too-large"
    NO_METADATA = "no-metadata"
    PATH = "path"
    DISK = "disk"
    BUSY = "busy"
    NOT_KEPT = "not-kept"


@dataclass(frozen=True)
class NotKept:
    """Why an answer is not kept: for Cache-Status, and for people."""

    detail: Detail
    text: str


class Side(enum.Enum):
    """Who broke off a transfer."""

    CLIENT = "the client"
    ORIGIN = "its origin"
    DDUCT = "dduct"


# dduct's own errors, by status.
_OF_ERRORS = {
    400: Detail.MALFORMED,
    414: Detail.MALFORMED,
    417: Detail.MALFORMED,
    429: Detail.LIMITED,
    431: Detail.MALFORMED,
    501: Detail.MALFORMED,
    505: Detail.MALFORMED,
    502: Detail.NO_ANSWER,
    503: Detail.UNAVAILABLE,
    504: Detail.TIMEOUT,
    508: Detail.LOOP,
}


def of_error(status: int) -> Detail:
    """The detail of dduct's own errors."""
    return _OF_ERRORS.get(status, Detail.REFUSED)


def side_of_error(status: int) -> Side:
    """Who is at fault for an error of dduct: the origin that fails, dduct that refuses or stops, else the client."""
    if status in (429, 502, 504):
        return Side.ORIGIN
    return Side.DDUCT if status in (403, 503, 508) else Side.CLIENT


def with_detail(note: str, detail: Detail) -> str:
    """Cache-Status parameters, and `detail`."""
    return f"{note}; detail={detail.value}" if note else f"detail={detail.value}"
