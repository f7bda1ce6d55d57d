"""What the log and Cache-Status (RFC 9211) say of a request: values in, text out."""

from __future__ import annotations

import enum
import logging
from typing import Optional

from http1 import BodyFraming, Framing, RequestHead
from policy import Decision, Fetch, LastStop, Own, Rules


class Detail(enum.Enum):
    """Why the cache had no part in an answer: the values of Cache-Status' `detail`. README.md has the same table."""

    NO_FILTER = "no-filter"
    PATH_TOO_LONG = "path-too-long"
    NOT_INTERCEPTED = "not-intercepted"
    BODY = "request-body"
    OWN_PAGE = "own-page"
    MAX_FORWARDS = "max-forwards"
    REFUSED = "refused"
    MALFORMED = "malformed"
    NO_ANSWER = "no-answer"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    LOOP = "loop"


_OF_ERRORS = {
    400: Detail.MALFORMED,
    414: Detail.MALFORMED,
    417: Detail.MALFORMED,
    431: Detail.MALFORMED,
    501: Detail.MALFORMED,
    505: Detail.MALFORMED,
    502: Detail.NO_ANSWER,
    503: Detail.UNAVAILABLE,
    504: Detail.TIMEOUT,
    508: Detail.LOOP,
}
_QUIET_PAGES = ("/healthz", "/metrics")


def of_error(status: int) -> str:
    """The parameters of Cache-Status for an error of our own."""
    return f"detail={_OF_ERRORS.get(status, Detail.REFUSED).value}"


def of_decision(decision: Decision, head: RequestHead, framing: BodyFraming, rules: Rules, longest: int) -> str:
    """The parameters of Cache-Status for what the cache has no part in; nothing where it has, or may have."""
    if isinstance(decision, Own):
        return f"detail={Detail.OWN_PAGE.value}"
    if isinstance(decision, LastStop):
        return f"detail={Detail.MAX_FORWARDS.value}"
    if not isinstance(decision, Fetch):
        return ""
    if head.method not in (b"GET", b"HEAD"):
        return "fwd=method"
    if decision.name is not None:
        return "" if framing.kind is Framing.NONE else f"fwd=bypass; detail={Detail.BODY.value}"
    detail = Detail.NO_FILTER
    if decision.target.scheme == "https" and decision.target.authority.host not in rules.intercept:
        detail = Detail.NOT_INTERCEPTED
    elif len(decision.target.path) > longest:
        detail = Detail.PATH_TOO_LONG
    return f"fwd=bypass; detail={detail.value}"


def level(decision: Optional[Decision], status: int, cut: bool) -> int:
    """How important the line of a request is: what failed more than what worked, what only asks for our health less."""
    if cut or status in (502, 504):
        return logging.WARNING
    if isinstance(decision, Own) and decision.path in _QUIET_PAGES and status == 200:
        return logging.DEBUG
    return logging.INFO
