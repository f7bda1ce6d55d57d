"""The log line of each request, and Cache-Status (RFC 9211) for requests that bypass the cache."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Optional

from monitoring.details import Detail, Side, with_detail
from monitoring.log_text import one_line
from net.response import Reply
from protocol.http1 import BodyFraming, Framing, RequestHead
from proxy.routing import BuiltinPage, Decision, Fetch, Intercept, MaxForwardsReached, MirrorToken, Rules, Tunnel

TUNNEL = "tunnel"  # `Reply.note` of a tunnel
_QUIET_PAGES = ("/healthz", "/metrics")


def of_decision(decision: Decision, head: RequestHead, framing: BodyFraming, rules: Rules, longest: int) -> str:
    """Cache-Status parameters of a request that bypasses the cache; empty where the cache may take part."""
    if isinstance(decision, BuiltinPage):
        return with_detail("", Detail.OWN_PAGE)
    if isinstance(decision, MaxForwardsReached):
        return with_detail("", Detail.MAX_FORWARDS)
    if isinstance(decision, MirrorToken):
        return "fwd=bypass"
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
    """The log line of a request, written after its answer. `remark`: why the answer is missing or incomplete."""

    method: bytes
    what: str  # the target, as shown in the log
    decision: Optional[Decision] = None
    remark: str = ""
    cut_by: Optional[Side] = None

    def note_break(self, error: Exception, reply: Reply, by: Side) -> None:
        """Record that the connection broke, or that the request was given up."""
        self.cut_by = reply.carried.cut_by or by
        self.remark = f"{self._outcome(reply)}; cut by {self.cut_by.value}: {error}".lstrip("; ")

    def write(self, log: logging.Logger, who: str, reply: Reply, seconds: float) -> None:
        """Write the line. `seconds` is the duration of the request."""
        outcome = self.remark or self._outcome(reply)
        if reply.cut_by is not None and self.cut_by is None:
            outcome = f"{outcome}; cut by {reply.cut_by.value}"
        if reply.status == 101 or (reply.status == 200 and reply.note == TUNNEL):
            outcome = f"{outcome}; sent={reply.carried.sent}"
        size = reply.bytes_sent + reply.carried.received
        method = one_line(self.method)
        log.log(
            self._level(reply), "%s %s %s %d %d %.3fs %s", who, method, self.what, reply.status, size, seconds, outcome
        )

    def _outcome(self, reply: Reply) -> str:
        return reply.outcome or reply.note

    def _level(self, reply: Reply) -> int:
        """WARNING for failures of origins, DEBUG for health checks and intercepts, INFO for the rest.

        INFO, too, where a client leaves or either end breaks a tunnel: these are no failures.
        """
        if reply.status in (502, 504) or Side.ORIGIN in (self.cut_by, reply.cut_by):
            return logging.INFO if isinstance(self.decision, Tunnel) and reply.status == 200 else logging.WARNING
        if self.cut_by is not None or reply.status != 200:
            return logging.INFO
        quiet = isinstance(self.decision, BuiltinPage) and self.decision.path in _QUIET_PAGES
        return logging.DEBUG if quiet or isinstance(self.decision, Intercept) else logging.INFO
