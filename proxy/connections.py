"""All client connections from accept to end: slots, handshakes, sessions, refusals.

    accepted → allowed? → slot → first bytes (tls_bind) → handshake → Session, in a thread or in the poller → end

A client that is not allowed costs no slot, no thread, no handshake and no leaf.
"""

from __future__ import annotations

import itertools
import logging
import socket
import threading
from dataclasses import replace
from functools import lru_cache, partial
from typing import Callable, Dict, Optional

from monitoring.metrics import Counter
from monitoring.request_number import RequestNumbers
from net.addresses import Reach, reach_of, unmapped
from net.arrival import Arrival
from net.client_watch import working_for
from net.nonblocking import NonblockingStream
from net.poller import Next, Pollable, Poller
from net.stream import Stream
from protocol.http1 import Authority
from proxy import first_bytes
from proxy.access import Access
from proxy.connection_limit import ConnectionLimit, Holder, TooManyConnections
from proxy.first_bytes import ACCESS_DENIED, INTERNAL_ERROR
from proxy.refusals import Refusals
from proxy.runtime import Runtime
from proxy.session import Session

_log = logging.getLogger("dduct")


class Connection:
    """One client connection, which holds a slot. `session` is set from the time when requests may come to the end."""

    def __init__(self, stream: Stream, address: str, since: float, numbers: RequestNumbers) -> None:
        self.stream = stream
        self.address = address
        self.numbers = numbers
        self.session: Optional[Session] = None
        self._since = since

    @property
    def silent_since(self) -> Optional[float]:
        """See connection_limit.Holder; a connection is silent during its handshake, too."""
        session = self.session
        return self._since if session is None else session.silent_since

    @property
    def busy(self) -> bool:
        """Whether a request is in progress."""
        session = self.session
        return session is not None and session.busy

    def barred(self, access: Access) -> Optional[str]:
        """Why the client may not go on; None if it may."""
        session = self.session
        if session is not None:
            return session.barred(access)
        return None if self.address in access.clients else f"{self.address} is not in proxy.allow_clients"

    def end(self) -> None:
        """End the connection from another thread."""
        session = self.session
        if session is not None:
            session.end()
        else:
            self.stream.cancel()


class Connections:
    """The connections of one process. `spawn` starts a thread; `current_runtime` is called from `accept` on."""

    def __init__(
        self,
        poller: Poller,
        spawn: Callable[[str, Callable[[], None]], None],
        limit: ConnectionLimit,
        clock: Callable[[], float],
        current_runtime: Callable[[], Runtime],
    ) -> None:
        self._poller = poller
        self._spawn = spawn
        self._clock = clock
        self.limit = limit
        self._refusals = Refusals(poller)
        self._lock = threading.Lock()  # guards _all
        self._all: Dict[Stream, Connection] = {}
        self._current_runtime = current_runtime
        self._numbers = itertools.count(1)  # two threads may accept: `next` is atomic

    def number_from(self, first: int, step: int) -> None:
        """Number connections from `first` on, in steps: with one for each worker, no two have the same number."""
        self._numbers = itertools.count(first, step)

    def __len__(self) -> int:
        with self._lock:
            return len(self._all)

    def accept(self, encrypted: bool, sock: socket.socket, address: str) -> None:
        """Accept or refuse a new connection without waiting. Raises nothing but bugs."""
        runtime = self._current_runtime()
        if address not in runtime.access.clients:
            self._refuse_stranger(runtime, encrypted, sock, address)
            return
        try:
            stream = Stream(sock, runtime.idle_timeout)
            local = stream.address
        except OSError:
            sock.close()  # the client is gone already
            return
        connection = Connection(stream, address, self._clock(), RequestNumbers(next(self._numbers)))
        try:
            loser = self.limit.take(connection, runtime.slots)
        except TooManyConnections as error:
            self._refuse_crowd(runtime, encrypted, sock, address, str(error))
            return
        if loser is not None:
            self._displace(runtime, loser, address)
        with self._lock:
            self._all[stream] = connection
        try:
            self._begin(connection, encrypted, _arrival_at(*local, reach_of(address, local[0])))
        except RuntimeError as error:
            self._end(connection)
            _log.warning("No resources for a connection: %s", error)
        except BaseException:
            self._end(connection)
            raise

    def cancel(self, idle_only: bool) -> None:
        """End all connections, or with `idle_only` those without a request in progress."""
        with self._lock:
            connections = list(self._all.values())
        for connection in connections:
            if not (idle_only and connection.busy):
                connection.stream.cancel()

    def end_barred(self) -> None:
        """After a reload: end all connections, in any state, of clients and users that are no longer allowed."""
        runtime = self._current_runtime()
        with self._lock:
            connections = list(self._all.values())
        for connection in connections:
            why = connection.barred(runtime.access)
            if why is not None:
                runtime.services.counters.add(Counter.BARRED)
                runtime.repeated.write(
                    logging.INFO,
                    f"barred {connection.address}",
                    "%s: connection ended, for it is no longer allowed: %s",
                    connection.address,
                    why,
                )
                connection.end()

    def _begin(self, connection: Connection, encrypted: bool, arrival: Arrival) -> None:
        pollable: Pollable
        if encrypted:
            pollable = arriving = _FirstBytes(connection.stream, self._current_runtime().idle_timeout)
            resume = partial(self._shake_hands, connection, arriving, arrival)
        else:
            pollable = self._make_session(connection, arrival).fast_path
            resume = partial(self._attend, connection)
        if not self._poller.watch(pollable, resume):
            self._spawn("session", resume)

    def _shake_hands(self, connection: Connection, pollable: _FirstBytes, arrival: Arrival) -> None:
        """Start TLS on a connection with first bytes, or answer a wrong protocol."""
        with connection.numbers:
            ready = self._made_tls(connection, pollable, arrival)
        if ready:
            self._attend(connection)

    def _made_tls(self, connection: Connection, pollable: _FirstBytes, arrival: Arrival) -> bool:
        """Whether the connection has TLS and a session now; otherwise it has ended."""
        runtime = self._current_runtime()
        if pollable.wrong is not None:
            runtime.services.counters.add(Counter.WRONG_PROTOCOL)
            runtime.repeated.write(
                logging.INFO, f"protocol {connection.address}", "%s %s", connection.address, pollable.wrong.line
            )
            sock = connection.stream.give_away()
            self._end(connection)
            self._refusals.turn_away(sock, pollable.wrong.data)
            return False
        try:
            if pollable.given_up:
                self._end(connection)
                return False
            connection.stream.start_tls(runtime.tls)
        except OSError as error:
            key = f"tls {connection.address} {connection.stream.server_name}"
            name = connection.stream.server_name or "server.crt"
            message = "%s makes no TLS connection with us as %s (proxy.tls_bind): %s"
            runtime.repeated.write(logging.INFO, key, message, connection.address, name, error)
            self._end(connection)
            return False
        except BaseException:
            self._end(connection)
            raise
        arrival = replace(arrival, encrypted=True, server_name=connection.stream.server_name)
        self._make_session(connection, arrival, runtime.access.certificates)
        return True

    def _make_session(self, connection: Connection, arrival: Arrival, certified: bool = False) -> Session:
        proved = partial(self.limit.prove, connection)
        connection.session = Session(
            connection.stream,
            connection.address,
            arrival,
            self._current_runtime,
            connection.numbers,
            _WatchedByPoller(self._poller, partial(self._attend, connection)),
            proved,
            certified,
        )
        return connection.session

    def _attend(self, connection: Connection) -> None:
        """Serve a connection in this thread until it ends or goes to the poller."""
        session = connection.session
        assert session is not None
        try:
            with connection.numbers, working_for(session.watch):
                while session.run():
                    if self._poller.watch(session.fast_path, partial(self._attend, connection)):
                        return
                    session.keep_thread()  # asked again and again, `run` would spin
        except BaseException:
            self._end(connection)
            raise
        self._end(connection)

    def _end(self, connection: Connection) -> None:
        connection.stream.close_abruptly()
        with self._lock:
            self._all.pop(connection.stream, None)
        self.limit.release(connection)
        connection.session = None  # its watcher leads back here: such a circle would wait for the garbage collector

    def _displace(self, runtime: Runtime, loser: Holder, address: str) -> None:
        """End a connection that has lost its slot; its thread, or the poller's, then cleans up."""
        assert isinstance(loser, Connection)
        runtime.services.counters.add(Counter.DISPLACED)
        runtime.trouble.warning(
            "%s: a silent connection was ended, for its place went to %s (proxy.max_connections)",
            loser.address,
            address,
        )
        loser.stream.cancel()

    def _refuse_stranger(self, runtime: Runtime, encrypted: bool, sock: socket.socket, address: str) -> None:
        runtime.services.counters.add(Counter.STRANGERS)
        line = f"{address} is not in proxy.allow_clients"
        runtime.repeated.write(logging.INFO, f"stranger {address}", "%s: connection refused (403)", line)
        answer = ACCESS_DENIED if encrypted else first_bytes.response(403, "Forbidden", line)
        self._refusals.turn_away(sock, answer)

    def _refuse_crowd(self, runtime: Runtime, encrypted: bool, sock: socket.socket, address: str, why: str) -> None:
        runtime.services.counters.add(Counter.TURNED_AWAY)
        runtime.trouble.warning("%s: connection refused (503): %s", address, why)
        answer = first_bytes.response(503, "Service Unavailable", why, "Retry-After: 5")
        self._refusals.turn_away(sock, INTERNAL_ERROR if encrypted else answer)


class _WatchedByPoller:
    """The poller, for one connection."""

    def __init__(self, poller: Poller, resume: Callable[[], None]) -> None:
        self._poller = poller
        self._resume = resume
        self.forget = poller.forget

    def watch(self, pollable: Pollable) -> bool:
        """See Poller.watch."""
        return self._poller.watch(pollable, self._resume)


class _FirstBytes:
    """A connection to tls_bind in the `Poller`: it takes no thread before its first bytes."""

    def __init__(self, stream: NonblockingStream, seconds: float) -> None:
        self._stream = stream
        self.timeout = seconds
        self.wrong: Optional[first_bytes.Answer] = None  # set if the client does not speak TLS
        self.given_up = False  # `_shake_hands` only has to close

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._stream.fileno()

    def peer_closed(self) -> bool:
        """Whether the client is gone and has left no bytes to read."""
        return self._stream.peer_closed_silently()

    def answer_at_once(self, iteration: float) -> Next:
        """Detect the client's protocol by its first bytes."""
        try:
            data = self._stream.look_ahead(first_bytes.ENOUGH)
        except OSError:
            return Next.CLOSE
        if data is None:
            return Next.WAIT
        self.wrong = first_bytes.wrong_on_tls(data) if data else None
        return Next.NEEDS_THREAD if data and self.wrong is None else Next.CLOSE

    def timed_out(self) -> Next:
        """Close a silent connection."""
        return Next.CLOSE

    def give_up(self) -> None:
        """Make `_shake_hands` close the connection."""
        self.given_up = True


@lru_cache(maxsize=4096)
def _arrival_at(host: str, port: int, reach: Reach) -> Arrival:
    return Arrival(Authority(unmapped(host), port), reach)
