"""The tunnels of a client connection: after CONNECT, or after a 101."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Optional

from monitoring.details import Side
from monitoring.metrics import Counter
from net.endpoint import ConnectionLost
from net.response import Reply
from net.stream import Stream
from net.tunnel import Carried, tunnel
from protocol.http1 import Authority
from proxy.access import Access
from proxy.opening import Opening, Spoken, established
from proxy.session_state import SessionState
from upstream.dialling import UpstreamError

_log = logging.getLogger("dduct.session")

_TIMEOUT_FACTOR = 10  # the timeout of a tunnel is this multiple of idle_timeout


class ClientTunnel:
    """The tunnel of a client connection, once it has one. The session's thread uses it.

    Any other thread may call `cancel` and `barred`.
    """

    def __init__(self, state: SessionState) -> None:
        self._state = state
        self._origin: Optional[Stream] = None  # the other end
        self.cancelled = False

    def cancel(self) -> None:
        """End the connection from another thread, with or without a tunnel."""
        self.cancelled = True
        self._state.stream.cancel()
        origin = self._origin
        if origin is not None:
            origin.cancel()  # wakes a tunnel that waits for a silent origin

    def barred(self, access: Access) -> Optional[str]:
        """Why the client may not go on; None if it may."""
        return self._state.client.barred(access, self._state.arrival, self._origin is not None)

    def establish(self, reply: Reply) -> None:
        """Answer a CONNECT."""
        reply.status = 200
        self._state.stream.send(established(self._state.via))

    def make_opening(self, authority: Authority) -> Opening:
        """The wait for the client's first bytes inside a CONNECT to `authority`."""
        state = self._state
        arrival = replace(state.arrival, connect_target=authority)
        return Opening(state.stream, arrival, state.runtime.rules, state.runtime.idle_timeout)

    def connect(self, authority: Authority, reply: Reply) -> bool:
        """Tunnel and return False; or True, without tunnelling, where the SNI names a host to intercept.

        Raises UpstreamError before the answer.
        """
        origins = self._state.runtime.services.origins
        origin = origins.dial(authority, self._state.arrival.reach)
        broken = True
        try:
            self.establish(reply)
            if self._names_a_listed_host(authority, origin):
                reply.note = "intercept"
                return True
            self.carry(origin, reply.carried)
            broken = False
        finally:
            origins.hang_up(origin, broken)
        return False

    def pass_through(self, authority: Authority, spoken: Spoken) -> None:
        """Tunnel a CONNECT to a listed host whose client does not speak TLS."""
        state = self._state
        state.busy = True
        services, started, carried = state.runtime.services, time.monotonic(), Carried()
        services.counters.add(Counter.NOT_TLS)
        outcome = f"tunnel; not TLS, but {spoken.value}"
        try:
            origin = services.origins.dial(authority, state.arrival.reach)
            broken = True
            try:
                self.carry(origin, carried)
                broken = False
            finally:
                services.origins.hang_up(origin, broken)
        except UpstreamError as error:
            # The client has its 200 already: only a reset can report the error.
            outcome += f"; its origin cannot be reached: {error}"
            state.stream.reset()
        except OSError as error:
            outcome += f"; cut by {(carried.cut_by or Side.CLIENT).value}: {error}"
            raise
        finally:
            line = f"{state.client.who} CONNECT {authority} 200 {carried.received}"
            _log.info("%s %.3fs %s; sent=%d", line, time.monotonic() - started, outcome, carried.sent)

    def carry(self, origin: Stream, carried: Carried) -> None:
        """Relay bytes both ways to the end. Resets the client and raises OSError where the tunnel breaks."""
        state = self._state
        self._origin = origin
        try:
            # _origin is set before the check: a reload ends this tunnel, or the check sees the new rules.
            why = self.barred(state.current_runtime().access)
            if why is not None:
                raise ConnectionLost(why)
            tunnel(state.stream, origin, state.runtime.idle_timeout * _TIMEOUT_FACTOR, carried)
            if self.cancelled:  # both ends only looked as if they had ended
                raise ConnectionLost("the connection has been ended")
        except OSError:
            if self.cancelled or carried.cut_by is None:  # by a reload, or by the timeout
                carried.cut_by = Side.DDUCT
            state.stream.reset()  # a FIN would mean that the data is complete
            raise

    def _names_a_listed_host(self, authority: Authority, origin: Stream) -> bool:
        """Whether the SNI inside a CONNECT to an address, which is not listed, names a listed host."""
        opening = self.make_opening(authority)
        if not opening.wants_name or opening.wait(origin) is not Spoken.TLS or opening.server_name is None:
            return False
        self._state.runtime.services.counters.add(Counter.INTERCEPTED)
        self._state.opening = opening
        return True
