"""All connections of clients, from accept to end: who gets a place, who shakes hands, who is ended and why.

    accepted → allowed? → a place → first bytes (tls_bind) → handshake → Session, in a thread or with the poller → end

Whoever is not allowed costs no place, no thread, no handshake and no leaf.
"""

from __future__ import annotations

import logging
import socket
import threading
from dataclasses import replace
from functools import lru_cache, partial
from typing import Callable, Dict, Optional

from monitoring.metrics import Counter
from net.addresses import Reach, reach_of
from net.arrival import Where
from net.client_watch import working_for
from net.poller import Guest, Idle, Next
from net.stream import Stream
from protocol.http1 import Authority
from proxy import first_bytes
from proxy.access import Access
from proxy.connection_limit import Holder, NoPlace, Places
from proxy.first_bytes import ACCESS_DENIED, INTERNAL_ERROR
from proxy.refusals import Refusals
from proxy.runtime import Household
from proxy.session import Session

_log = logging.getLogger("dduct")


class Connection:
    """One client connection, as the holder of a place. `session` is there once requests may come."""

    def __init__(self, stream: Stream, address: str, since: float) -> None:
        self.stream = stream
        self.address = address
        self.session: Optional[Session] = None
        self._since = since

    @property
    def silent_since(self) -> Optional[float]:
        """See places.Holder: a handshake is silence, too."""
        return self._since if self.session is None else self.session.silent_since

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.session is not None and self.session.busy

    def barred(self, access: Access) -> Optional[str]:
        """Why it may not go on; None where it may."""
        if self.session is not None:
            return self.session.barred(access)
        return None if self.address in access.clients else f"{self.address} is not in proxy.allow_clients"

    def end(self) -> None:
        """Have it end, from another thread."""
        if self.session is not None:
            self.session.end()
        else:
            self.stream.cancel()


class Connections:
    """The connections of one process. `spawn` starts a thread; `household` is what counts now."""

    def __init__(
        self, idle: Idle, spawn: Callable[[str, Callable[[], None]], None], places: Places, clock: Callable[[], float]
    ) -> None:
        self._idle = idle
        self._spawn = spawn
        self._clock = clock
        self.places = places
        self._refusals = Refusals(idle)
        self._lock = threading.Lock()  # guards _all
        self._all: Dict[Stream, Connection] = {}
        self._household: Callable[[], Household]

    def judge_by(self, household: Callable[[], Household]) -> None:
        """Before anything is accepted."""
        self._household = household

    def __len__(self) -> int:
        with self._lock:
            return len(self._all)

    def accept(self, encrypted: bool, sock: socket.socket, address: str) -> None:
        """Take or refuse a new connection, without waiting. Raises nothing but bugs."""
        house = self._household()
        if address not in house.access.clients:
            self._refuse_stranger(house, encrypted, sock, address)
            return
        try:
            stream = Stream(sock, house.idle_timeout)
            local = stream.address
        except OSError:
            sock.close()  # it was gone before we had it
            return
        connection = Connection(stream, address, self._clock())
        try:
            loser = self.places.take(connection)
        except NoPlace as error:
            self._refuse_crowd(house, encrypted, sock, address, str(error))
            return
        if loser is not None:
            self._displace(house, loser, address)
        with self._lock:
            self._all[stream] = connection
        try:
            self._begin(connection, encrypted, _arrival(*local, reach_of(address, local[0])))
        except RuntimeError as error:
            self._end(connection)
            _log.warning("No room for a connection: %s", error)
        except BaseException:
            self._end(connection)
            raise

    def cancel(self, idle_only: bool) -> None:
        """Have connections end; those that are answered just now only unless `idle_only`."""
        with self._lock:
            connections = list(self._all.values())
        for connection in connections:
            if not (idle_only and connection.busy):
                connection.stream.cancel()

    def end_barred(self) -> None:
        """After a reload: end the connections of clients and users who may not come in any more, whatever they do."""
        house = self._household()
        with self._lock:
            connections = list(self._all.values())
        for connection in connections:
            why = connection.barred(house.access)
            if why is not None:
                house.services.counters.add(Counter.BARRED)
                house.repeated.write(
                    logging.INFO,
                    f"barred {connection.address}",
                    "%s: connection ended, for it is no longer allowed: %s",
                    connection.address,
                    why,
                )
                connection.end()

    def _begin(self, connection: Connection, encrypted: bool, where: Where) -> None:
        guest: Guest
        if encrypted:
            guest = arriving = _FirstBytes(connection.stream, self._household().idle_timeout)
            resume = partial(self._shake_hands, connection, arriving, where)
        else:
            guest = self._make_session(connection, where)
            resume = partial(self._attend, connection)
        if not self._idle.watch(guest, resume):
            self._spawn("session", resume)

    def _shake_hands(self, connection: Connection, guest: _FirstBytes, where: Where) -> None:
        """Begin TLS on a connection that has spoken, or say what is wrong with what it has said."""
        house = self._household()
        if guest.wrong is not None:
            house.services.counters.add(Counter.WRONG_PROTOCOL)
            house.repeated.write(
                logging.INFO, f"protocol {connection.address}", "%s %s", connection.address, guest.wrong.line
            )
            sock = connection.stream.give_away()
            self._end(connection)
            self._refusals.turn_away(sock, guest.wrong.data)
            return
        try:
            if guest.over:
                self._end(connection)
                return
            connection.stream.start_tls(house.tls)
        except OSError as error:
            key = f"tls {connection.address} {connection.stream.server_name}"
            name = connection.stream.server_name or "server.crt"
            message = "%s makes no TLS connection with us as %s (proxy.tls_bind): %s"
            house.repeated.write(logging.INFO, key, message, connection.address, name, error)
            self._end(connection)
            return
        except BaseException:
            self._end(connection)
            raise
        where = replace(where, encrypted=True, server_name=connection.stream.server_name)
        self._make_session(connection, where, house.access.certificates)
        self._attend(connection)

    def _make_session(self, connection: Connection, where: Where, certified: bool = False) -> Session:
        proved = partial(self.places.prove, connection)
        connection.session = Session(connection.stream, connection.address, where, self._household, proved, certified)
        return connection.session

    def _attend(self, connection: Connection) -> None:
        """Serve a connection as long as it takes a thread."""
        session = connection.session
        assert session is not None
        try:
            with working_for(session.watch):
                while session.run():
                    if self._idle.watch(session, partial(self._attend, connection)):
                        return
        except BaseException:
            self._end(connection)
            raise
        self._end(connection)

    def _end(self, connection: Connection) -> None:
        connection.stream.cut()
        with self._lock:
            self._all.pop(connection.stream, None)
        self.places.release(connection)

    def _displace(self, house: Household, loser: Holder, address: str) -> None:
        """End a connection that has lost its place; its thread, or the poller's, finds out."""
        assert isinstance(loser, Connection)
        house.services.counters.add(Counter.DISPLACED)
        house.trouble.warning(
            "%s: a silent connection was ended, for its place went to %s (proxy.max_connections)",
            loser.address,
            address,
        )
        loser.stream.cancel()

    def _refuse_stranger(self, house: Household, encrypted: bool, sock: socket.socket, address: str) -> None:
        house.services.counters.add(Counter.STRANGERS)
        line = f"{address} is not in proxy.allow_clients"
        house.repeated.write(logging.INFO, f"stranger {address}", "%s: connection refused (403)", line)
        answer = ACCESS_DENIED if encrypted else first_bytes.response(403, "Forbidden", line)
        self._refusals.turn_away(sock, answer)

    def _refuse_crowd(self, house: Household, encrypted: bool, sock: socket.socket, address: str, why: str) -> None:
        house.services.counters.add(Counter.TURNED_AWAY)
        house.trouble.warning("%s: connection refused (503): %s", address, why)
        answer = first_bytes.response(503, "Service Unavailable", why, "Retry-After: 5")
        self._refusals.turn_away(sock, INTERNAL_ERROR if encrypted else answer)


class _FirstBytes:
    """A connection to tls_bind that has not spoken yet: it takes no thread before it does."""

    def __init__(self, stream: Stream, seconds: float) -> None:
        self._stream = stream
        self.patience = seconds
        self.wrong: Optional[first_bytes.Answer] = None  # it does not speak TLS
        self.over = False  # nothing is to be done but to hang up

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._stream.fileno()

    def has_left(self) -> bool:
        """Whether the client is gone without a word."""
        return self._stream.deserted()

    def answer_at_once(self, turn: float) -> Next:
        """Look at what the client speaks."""
        try:
            data = self._stream.look_ahead(first_bytes.ENOUGH)
        except OSError:
            return Next.END
        if data is None:
            return Next.WATCH
        self.wrong = first_bytes.wrong_on_tls(data) if data else None
        return Next.WORK if data and self.wrong is None else Next.END

    def timed_out(self) -> Next:
        """There is nothing to do but to hang up."""
        return Next.END

    def give_up(self) -> None:
        """Have `_shake_hands` hang up."""
        self.over = True


@lru_cache(maxsize=4096)
def _arrival(host: str, port: int, reach: Reach) -> Where:
    return Where(Authority(host.replace("::ffff:", "", 1) if "." in host else host, port), reach)
