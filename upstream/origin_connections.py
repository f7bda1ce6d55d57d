"""Connections to origins: dialled for one request, and kept for the next."""

from __future__ import annotations

from typing import Callable, Optional

from upstream.connection_pool import ConnectionPool
from upstream.dialling import Dialler
from upstream.origin_connection import Origin, OriginConnection


class OriginConnections:
    """All connections to origins that are open."""

    def __init__(self, dialler: Dialler, clock: Callable[[], float]) -> None:
        self._dialler = dialler
        self._pool: ConnectionPool[OriginConnection] = ConnectionPool(clock)

    def __len__(self) -> int:
        return len(self._pool)

    def open(self, origin: Origin) -> OriginConnection:
        """A new connection. Raises UpstreamError."""
        host = origin.authority.host
        parent = self._dialler.parent_for(host)
        to_parent = None
        if origin.scheme == "http" and parent is not None:
            stream = self._dialler.dial_parent(parent, origin.authority, origin.reach)
            to_parent = parent.fields
        else:
            stream = self._dialler.dial(origin.authority, origin.reach)
            if origin.scheme == "https":
                self._dialler.start_tls(stream, origin.authority)
        return OriginConnection(origin, stream, self._dialler.scope(stream, origin.authority), to_parent)

    def take(self, origin: Origin) -> Optional[OriginConnection]:
        """A kept connection; None where none is usable."""
        while True:
            connection = self._pool.take(origin)
            if connection is None:
                return None
            self._dialler.use(connection.stream)
            if not self._pool.expired(connection) and not connection.stream.unusable():
                return connection
            self.give_back(connection, False)

    def give_back(self, connection: OriginConnection, reusable: bool) -> None:
        """Keep a connection for the next exchange, or close it."""
        self._dialler.release(connection.stream)
        for surplus in self._pool.put(connection) if reusable else [connection]:
            surplus.close()

    def sweep(self) -> None:
        """Close useless idle connections, every few seconds; never waits."""
        for connection in self._pool.sweep():
            connection.close()

    def retire(self) -> None:
        """Keep no connection for later; those in use are not touched."""
        for connection in self._pool.retire():
            connection.close()
