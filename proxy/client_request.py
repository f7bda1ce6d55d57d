"""One request of a client: decided once, answered, logged."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Optional, Union

from fetching.cached_fetch import CachedFetch
from fetching.naming import LONGEST_PATH, Name
from fetching.outcomes import Polled
from monitoring.details import Side
from monitoring.log_text import target_shown
from monitoring.metrics import Counter
from monitoring.redaction import shown
from net.body import BodyReader, IncompleteBody
from net.client_watch import ClientGone
from net.response import Reply
from net.stream import Stream
from pages import builtin
from protocol.http1 import BodyFraming, Framing, ProtocolError, RequestHead, Target
from proxy import mirror, request_log
from proxy.client_tunnel import ClientTunnel
from proxy.look_ahead import LookAhead
from proxy.mirror_token import send_token
from proxy.other_requests import is_quick
from proxy.own_credentials import ask_with, use_for
from proxy.request_log import Line
from proxy.routing import BuiltinPage, Decision, Fetch, Intercept, MaxForwardsReached, MirrorToken, Refuse, Tunnel
from proxy.session_state import SessionState
from proxy.uncached import Asked, answer_from_origin
from upstream.credentials import Use
from upstream.dialling import UpstreamError
from upstream.relay import expects_continue

_log = logging.getLogger("dduct.session")

LINGER = 1.0  # seconds for a refused client to read the reason
_MAX_UNREAD = 64 * 1024  # bytes of an unwanted request body to read to keep the connection


class ClientRequest:
    """A request with its unread body, and the reply to it."""

    def __init__(
        self,
        state: SessionState,
        tunnel: ClientTunnel,
        head: RequestHead,
        framing: BodyFraming,
        look_ahead: Optional[LookAhead] = None,
    ) -> None:
        self._state = state
        self._look_ahead = look_ahead
        self._tunnel = tunnel
        self._head = head
        self._framing = framing
        self._reply = reply = Reply(state.stream, head, state.via)
        self.was_small = False  # such that the poller's thread could probably have answered by itself
        self._awaits_continue = expects_continue(head, framing)
        if self._awaits_continue:
            self._body = BodyReader(state.stream, framing, partial(_go_ahead, state.stream, head, reply))
            reply.persistent = False  # before 100 Continue, the body may come after the answer, or never
        else:
            self._body = BodyReader(state.stream, framing)

    def answer(self, block: bytes) -> bool:
        """Answer and log the request, whose head was received as `block`; returns whether another may follow.

        Raises OSError, IncompleteBody or ClientGone when the client is gone.
        """
        started = time.monotonic()
        reply = self._reply
        line = Line(self._head.method, self._shown_target())
        try:
            decision = self._decide(line)
            if isinstance(decision, (Tunnel, Intercept)):
                return self._connect(decision)
            self._carry_out(decision, block)
        except (ProtocolError, UpstreamError) as error:
            line.remark = str(error)
            self._report(error)
        except (OSError, IncompleteBody, ClientGone) as error:
            # Errors of the origin are UpstreamErrors, or noted in `reply.carried`.
            line.note_break(error, reply, Side.DDUCT if self._tunnel.cancelled else Side.CLIENT)
            raise
        finally:
            line.write(_log, self._state.client.who, reply, time.monotonic() - started)
        if self._body.complete or (reply.persistent and self._body.drain(_MAX_UNREAD)):
            return reply.persistent
        self._state.stream.linger(LINGER)
        return False

    def _shown_target(self) -> str:
        what = target_shown(self._head.target)
        host = self._state.arrival.connect_target
        return f"https://{host}{what}" if host is not None and what.startswith("/") else what

    def _decide(self, line: Line) -> Decision:
        """Decide on the request, and note the decision in its log line."""
        state, reply = self._state, self._reply
        line.decision = decision = state.decide(self._head, self._framing)
        # Where passwords are required, a page that anybody gets proves nothing.
        known = state.client.user is not None or state.runtime.access.users is None
        if not isinstance(decision, Refuse) and known:
            state.prove()
        elif state.ending:
            reply.persistent = False
        if isinstance(decision, Fetch):
            line.what = shown(str(decision.target))
            if decision.mirrored:
                self._head = mirror.without_empty_token(self._head)
        elif isinstance(decision, Refuse):
            line.remark = decision.reason
        reply.note = request_log.of_decision(decision, self._head, self._framing, state.runtime.rules, LONGEST_PATH)
        return decision

    def _carry_out(self, decision: Decision, block: bytes) -> None:
        """Carry out a decision other than CONNECT's."""
        state, reply = self._state, self._reply
        if isinstance(decision, BuiltinPage):
            runtime = state.runtime
            page = builtin.page(self._head, decision.path, state.arrival, runtime.about, runtime.services.counters)
            reply.send_complete(page.status, page.fields, page.body)
        elif isinstance(decision, MaxForwardsReached):
            page = builtin.max_forwards_reached(self._head)
            reply.send_complete(page.status, page.fields, page.body)
        elif isinstance(decision, Refuse):
            state.runtime.services.counters.add(Counter.REFUSED)
            fields = [(b"Allow", decision.allow)] if decision.allow else []
            if decision.status == 407:
                fields.append((b"Proxy-Authenticate", b'Basic realm="dduct", charset="UTF-8"'))
            reply.error(decision.status, decision.reason, fields)
        elif isinstance(decision, MirrorToken):
            send_token(state.runtime.services, decision.wanted, self._head, reply, state.arrival.reach)
        elif isinstance(decision, Fetch):
            self._fetch(decision, block)

    def _fetch(self, decision: Fetch, block: bytes) -> None:
        """Answer from the cache or the origin."""
        state, reply, reach = self._state, self._reply, self._state.arrival.reach
        if decision.name is not None and self._framing.kind is Framing.NONE:
            polled = self._fetch_through_cache(decision.target, decision.name)
            if polled is not Polled.NONE:
                plain = state.runtime.plain_requests.read(block, state.arrival) is not None
                self.was_small = plain or (polled is Polled.QUICK and is_quick(self._head))
            return
        asked = Asked(state.client.asker, decision.target, self._head, self._framing, self._body)
        answer_from_origin(state.runtime, asked, reply, reach, partial(self._tunnel.carry, carried=reply.carried))

    def _fetch_through_cache(self, target: Target, name: Name) -> Polled:
        """Answer from the cache; what was received behind this request is fetched ahead while its origin is asked."""
        state, reply = self._state, self._reply
        # Behind the last request of a connection, nothing is a request (RFC 9112 §9.6).
        look_ahead = self._look_ahead if reply.persistent else None
        begin = None if look_ahead is None else look_ahead.begin
        services, asker, reach = state.runtime.services, state.client.asker, state.arrival.reach

        def fetch(head: RequestHead, use: Optional[Use]) -> Polled:
            reply.outcome = ""  # of an attempt without credentials
            begun = state.take_fetch(services, name)
            one = CachedFetch(services, reply, head, target, name, reach, asker, begin, begun, use)
            one.run()
            return one.polled

        if look_ahead is not None and look_ahead.active:
            look_ahead.begin()
        try:
            return ask_with(
                services.names, self._head, use_for(state.runtime, self._head, target, asker, reach, name), fetch
            )
        finally:
            if self._look_ahead is not None:
                self._look_ahead.turn_over(name.path)

    def _connect(self, decision: Union[Tunnel, Intercept]) -> bool:
        """Serve CONNECT; returns whether requests follow inside. Raises UpstreamError before the answer."""
        runtime, reply = self._state.runtime, self._reply
        if isinstance(decision, Tunnel):
            reply.note = request_log.TUNNEL
            runtime.services.counters.add(Counter.TUNNELS)
            return self._tunnel.connect(decision.authority, reply)
        reply.note = "intercept"
        runtime.services.counters.add(Counter.INTERCEPTED)
        runtime.leaf_certificates.context(decision.authority.host)
        self._tunnel.establish(reply)
        self._state.opening = self._tunnel.make_opening(decision.authority)
        return True

    def _report(self, error: Union[ProtocolError, UpstreamError]) -> None:
        """Answer with an error."""
        counters = self._state.runtime.services.counters
        if isinstance(error, ProtocolError):
            counters.add(Counter.REFUSED)
            self._reply.persistent = False  # this client and dduct may disagree on the framing, too
        elif error.status == 403:
            counters.add(Counter.REFUSED)
        later = None if isinstance(error, ProtocolError) else error.retry_after
        again = [] if later is None else [(b"Retry-After", b"%d" % later)]
        self._reply.error(error.status, str(error), again)


def _go_ahead(stream: Stream, head: RequestHead, reply: Reply) -> None:
    reply.persistent = head.persistent
    stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
