"""The line in the log of each request, and Cache-Status (RFC 9211) where the cache has no part in it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Optional

from monitoring.details import Detail, Side, with_detail
from monitoring.log_text import one_line
from net.response import Reply
from protocol.http1 import BodyFraming, Framing, RequestHead
from proxy.routing import Decision, Fetch, Intercept, LastStop, Own, Rules, Tunnel

TUNNEL = "tunnel"  # the note of an answer to CONNECT
_QUIET_PAGES = ("/healthz", "/metrics")


def of_decision(decision: Decision, head: RequestHead, framing: BodyFraming, rules: Rules, longest: int) -> str:
    """The parameters of Cache-Status for what the cache has no part in; nothing where it has, or may have."""
    if isinstance(decision, Own):
        return with_detail("", Detail.OWN_PAGE)
    if isinstance(decision, LastStop):
        return with_detail("", Detail.MAX_FORWARDS)
    if not isinstance(decision, Fetch):
        return ""
    if head.method not in (b"GET", b"HEAD"):
        return "fwd=method"
    if decision.name is not None:
        return "" if framing.kind is Framing.NONE else with_detail("fwd=bypass", Detail.BODY)
    detail = Detail.NO_FILTER
    if decision.target.scheme == "https" and decision.target.authority.host not in rules.intercept:
        detail = Detail.NOT_INTERCEPTED
    elif len(decision.target.path) > longest:
        detail = Detail.PATH_TOO_LONG
    return with_detail("fwd=bypass", detail)


@dataclass
class Line:
    """What is to be said of a request once it has been answered. `remark` says why it was not, or not to its end."""

    method: bytes
    what: str  # was asked for
    decision: Optional[Decision] = None
    remark: str = ""
    cut_by: Optional[Side] = None

    def cut(self, error: Exception, reply: Reply, by: Side) -> None:
        """The connection has broken, or was not gone on with."""
        self.cut_by = reply.carried.cut_by or by
        self.remark = f"{self._said(reply)}; cut by {self.cut_by.value}: {error}".lstrip("; ")

    def write(self, log: logging.Logger, who: str, reply: Reply, seconds: float) -> None:
        """Write it."""
        said = self.remark or self._said(reply)
        if reply.cut_by is not None and self.cut_by is None:
            said = f"{said}; cut by {reply.cut_by.value}"
        if reply.status == 101 or (reply.status == 200 and reply.note == TUNNEL):
            said = f"{said}; sent={reply.carried.sent}"
        size = reply.octets + reply.carried.received
        method = one_line(self.method)
        log.log(
            self._level(reply), "%s %s %s %d %d %.3fs %s", who, method, self.what, reply.status, size, seconds, said
        )

    def _said(self, reply: Reply) -> str:
        return reply.outcome or reply.note

    def _level(self, reply: Reply) -> int:
        """What failed is more important than what worked, and what only asks for our health is less.

        Clients leave, and both ends of a tunnel break it off, as they like.
        """
        if reply.status in (502, 504) or Side.ORIGIN in (self.cut_by, reply.cut_by):
            return logging.INFO if isinstance(self.decision, Tunnel) and reply.status == 200 else logging.WARNING
        if self.cut_by is not None or reply.status != 200:
            return logging.INFO
        quiet = isinstance(self.decision, Own) and self.decision.path in _QUIET_PAGES
        return logging.DEBUG if quiet or isinstance(self.decision, Intercept) else logging.INFO
