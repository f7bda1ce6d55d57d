"""`Server`: one dduct, built from a configuration, from bound sockets to the last closed connection."""

from __future__ import annotations

import logging
import time
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Callable, List

from cache import Cache
from monitoring.metrics import Counters, Gauge
from net import listener
from net.listener import Listener, bind
from net.poller import Poller
from proxy.connection_limit import ConnectionLimit
from proxy.connections import Connections
from proxy.runtime import CurrentRuntime, Runtime
from server.config_keys import Config, until_restart
from server.config_values import Address
from server.wiring import RuntimeBuilder, cannot_bind, open_parts, warn_of_hosts, worker_count
from upstream.client import Origins

_log = logging.getLogger("dduct")

_GRACE = 10.0  # seconds for transfers
_FORCED_END = 3.0  # seconds for threads to notice closed sockets
LONGEST_STOP = listener.LONGEST_STOP + _GRACE + _FORCED_END  # seconds that `Server.stop` takes at most


@dataclass(frozen=True)
class Snapshot:
    """What a dduct does at one moment, in one process."""

    draining: bool
    threads: int  # those that work for clients, for fills and for dduct itself
    aside: int  # those for which no client waits
    connections: int


class Server:
    """One dduct, built from a configuration. The constructor reads certificates, opens the cache and binds.

    Processes that are forked before `start` may share it: number 0 sweeps the cache. The constructor raises
    certs.CertificateError and StartError.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._current = CurrentRuntime()
        self._parts = parts = open_parts(config, clock, self._current)
        self._poller = Poller(parts.threads.spawn, self._keep_up, parts.cache.disk)
        self.connections = Connections(
            self._poller, parts.threads.spawn, ConnectionLimit(), time.monotonic, self._current.get
        )
        self._outdated: weakref.WeakSet[Origins] = weakref.WeakSet()  # from before a reload, while in use
        self._listeners: List[Listener] = []
        try:
            self._bind()
            self._builder = RuntimeBuilder(parts, self.addresses, self._current)
            self._current.replace(self._builder.build(config))
            warn_of_hosts(config, parts.authority)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Server: {self.snapshot()}>"

    def snapshot(self) -> Snapshot:
        """What it does at this moment, in this process."""
        parts = self._parts
        return Snapshot(parts.draining.is_set(), parts.threads.running, parts.aside.running, len(self.connections))

    @property
    def runtime(self) -> Runtime:
        """All that the present configuration has decided."""
        return self._current.get()

    @property
    def counters(self) -> Counters:
        """What it has counted."""
        return self._parts.counters

    @property
    def cache(self) -> Cache:
        """The cache, which all runtimes share."""
        return self._parts.cache

    @property
    def addresses(self) -> List[Address]:
        """The bound addresses: tcp_bind, then tls_bind, without those that are off."""
        return [Address(*one.address) for one in self._listeners]

    def start(self, number: int = 0) -> None:
        """Start to accept, as process `number`."""
        self.counters.use(number)
        self.connections.number_from(number + 1, worker_count(self._config))
        self.cache.store.space.use(number)
        if number == 0:
            self._parts.threads.spawn("evictor", self._parts.evictor.run)
        self._parts.threads.spawn("sync", self.cache.store.syncs.run)
        self._poller.open()
        self._parts.threads.spawn("idle", self._poller.run)
        self._parts.aside.spawn("supervisor", self._poller.supervise)
        for one in self._listeners:
            one.start()

    def reload(self, wanted: Config, announce: bool = True) -> None:
        """Replace the configuration: new requests use the new one, running requests keep the old one.

        Connections of clients and users that are no longer allowed end.

        Raises StartError, certs.CertificateError; then nothing changes.
        """
        config, waiting = until_restart(wanted, self._config)
        before = self.runtime
        self._current.replace(self._builder.build(config, before.leaf_certificates))
        self._parts.answers.clear()
        self._config = config
        before.services.origins.retire()
        self._outdated.add(before.services.origins)
        self.connections.end_barred()
        if announce:
            for key in waiting:
                _log.warning("%s takes effect when dduct is started again", key)
            warn_of_hosts(config, self._parts.authority)

    def stop(self, grace: float = _GRACE) -> None:
        """Stop accepting, let transfers run for `grace` seconds, then end the rest."""
        self._parts.draining.set()
        self._parts.evictor.stop()
        self.close()
        self.connections.cancel(idle_only=True)
        self._poller.stop()
        self.cache.store.syncs.stop()  # from now on, fillers sync by themselves
        if not self._parts.threads.join(grace):
            _log.warning("Ending transfers that still run after %g s", grace)
        for origins in [*self._outdated, self.runtime.services.origins]:
            origins.close()
        self.connections.cancel(idle_only=False)
        # No client waits for background requests: they end when their connections close.
        deadline = time.monotonic() + _FORCED_END
        ended = [pool.join(_left(deadline)) for pool in (self._parts.threads, self._parts.aside)]
        if not all(ended):
            _log.warning("Some connections did not end")

    def close(self) -> None:
        """Stop listening in this process."""
        deadline = time.monotonic() + listener.LONGEST_STOP
        for one in self._listeners:
            one.begin_stop()  # all of them end in the time of one
        for one in self._listeners:
            one.stop(_left(deadline))

    def close_all(self) -> None:
        """Stop listening in all processes with these sockets."""
        for one in self._listeners:
            one.stop_all()

    # Internals

    def _bind(self) -> None:
        proxy = self._config.proxy
        for address, key, encrypted in ((proxy.tcp_bind, "tcp_bind", False), (proxy.tls_bind, "tls_bind", True)):
            if address is None:
                continue
            try:
                sock = bind(address.host, address.port)
            except OSError as error:
                raise cannot_bind(key, address, error) from error
            self._listeners.append(
                Listener(sock, self._parts.threads, partial(self.connections.accept, encrypted), self._poller)
            )

    def _keep_up(self) -> None:
        self.runtime.services.origins.sweep()
        self.counters.set(Gauge.DISK_WAITING, self.cache.disk.waiting())


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
