"""A `Server` is one dduct, from bound sockets to the last closed connection: what a configuration makes of it all."""

from __future__ import annotations

import logging
import os
import secrets
import ssl
import threading
import time
import weakref
from dataclasses import replace
from functools import partial
from typing import Callable, List, Optional, Tuple

import certs
from cache import Cache
from fetching.filler import Services
from fetching.grants import Grants
from fetching.memory_cache import Hot
from fetching.naming import Naming, Parameters
from fetching.permission import KNOWN_FOR
from fetching.recent import Background, Deliveries, SharedTimes
from monitoring.metrics import Counter, Counters, Gauge
from net.addresses import Networks, OwnServices
from net.listener import Listener, Threads, bind, binding_remedy
from net.poller import Idle
from net.stream import NamedSocket
from pages.setup import About
from protocol.freshness import FreshnessRules
from protocol.request_fields import RequestFields
from proxy.access import Access, AccessError, Users
from proxy.connection_limit import Places
from proxy.connections import Connections
from proxy.routing import HostList, Hosts, Rules
from proxy.runtime import Household
from server.config import Config
from server.config_values import Address, ParentProxy
from storage.eviction import Evictor
from storage.space import Limits, Room
from tls import openssl
from tls.leaf_certificates import LeafStore
from upstream.client import Origins
from upstream.dialling import Parent, Settings
from upstream.origin_tls import TlsSettings, UnusableCertificate

_log = logging.getLogger("dduct")

_FORCED_END = 3.0  # seconds for threads to notice that their sockets are gone
_PATIENCE = 10  # times what an origin may take to be connected and to say something
_WORKERS_AT_MOST = 8  # unless the configuration says more


class StartError(Exception):
    """dduct cannot start; one line that names the key and the remedy."""


def worker_count(config: Config) -> int:
    """How many processes are to share the listeners."""
    return config.proxy.workers or min(len(os.sched_getaffinity(0)), _WORKERS_AT_MOST)


def identity(config: Config) -> certs.Identity:
    """What the configuration says of the certificates of the first start."""
    return certs.Identity(
        rsa_key_bits=config.certs.rsa_key_bits,
        days_from_now=config.certs.days_from_now,
        ca_cn=config.certs.ca_cn,
        server_cn=config.certs.server_cn,
        server_dns_sans=config.certs.server_dns_sans,
        server_ip_sans=config.certs.server_ip_sans,
        client_cn=config.certs.client_cn,
        p12_pass=config.certs.p12_pass,
        name_constraints=config.certs.name_constraints,
    )


def _parent(proxy: Optional[ParentProxy]) -> Optional[Parent]:
    if proxy is None:
        return None
    return Parent(proxy.address.host, proxy.address.port, proxy.tls, proxy.credentials)


class Server:
    """One dduct made of a configuration. The constructor reads certificates, opens the cache and binds.

    What it makes may be shared by processes that are forked before `start`: number 0 of them sweeps the cache. Raises
    certs.CertificateError and StartError.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock  # what certificates are judged by
        self._via = b"1.1 dduct-" + secrets.token_hex(4).encode()
        self.counters = Counters(rows=worker_count(config) + 1)  # and one for the parent of them all
        self._threads = Threads()
        self._aside = Threads()  # for what no client waits for
        # For all that are forked, and for life: no client chooses which of them it meets.
        self._ticket_secret = secrets.token_bytes(32)
        self._draining = threading.Event()
        self._recent = SharedTimes()
        self._background = Background(self._recent, self._aside.spawn, self._draining)
        self._authority = certs.prepare(config.misc.cert_dir, identity(config))
        self._files = certs.CertificateFiles(config.misc.cert_dir)
        self.cache = self._open_cache()
        self._evictor = Evictor(self.cache.store.room, partial(self.counters.add, Counter.EVICTED))
        self.cache.store.room.on_need = self._evictor.look
        self.cache.disk.on_slow = partial(self.counters.add, Counter.SLOW_DISK)
        self._idle = Idle(self._threads.spawn, self._keep_up, self.cache.disk)
        places = Places(config.proxy.max_connections, config.proxy.max_silent_per_client)
        self.connections = Connections(self._idle, self._threads.spawn, places, time.monotonic)
        self._outdated: weakref.WeakSet[Origins] = weakref.WeakSet()  # from before a reload, as long as they are in use
        self._listeners: List[Listener] = []
        try:
            self._bind()
            self._household = self._furnish(config, self._make_leaves(config))
            self._announce(config)
        except BaseException:
            self.close()
            raise
        self.connections.judge_by(lambda: self._household)

    @property
    def addresses(self) -> List[Address]:
        """Where it listens: tcp_bind, then tls_bind, without one that is switched off."""
        return [Address(*listener.address) for listener in self._listeners]

    def start(self, number: int = 0) -> None:
        """Begin to accept, as the process with this number."""
        self.counters.use(number)
        self.cache.store.room.use(number)
        if number == 0:
            self._threads.spawn("evictor", self._evictor.run)
        self._idle.open()
        self._threads.spawn("idle", self._idle.run)
        self._aside.spawn("supervisor", self._idle.supervise)
        for listener in self._listeners:
            listener.start()

    def reload(self, wanted: Config, announce: bool = True) -> None:
        """Go on with another configuration: every request from now on is judged by it, running ones are not touched.

        But for connections of clients and users who may not come in any more: they end.

        Raises StartError, certs.CertificateError; nothing has changed then.
        """
        config = self._with_what_cannot_change(wanted)
        same = _of_leaves(config) == _of_leaves(self._config)
        household = self._furnish(config, self._household.leaves if same else self._make_leaves(config))
        before, self._household, self._config = self._household, household, config
        before.services.origins.retire()
        self._outdated.add(before.services.origins)
        self.cache.store.room.limits = _limits(config)
        self.cache.patience = _patience(config)
        self.connections.places.resize(config.proxy.max_connections, config.proxy.max_silent_per_client)
        self.connections.end_barred()
        if announce:
            _announce_differences(wanted, config)
            self._announce(config)

    def stop(self, grace: float = 10.0) -> None:
        """Accept no more, let running transfers finish for `grace` seconds, then end what is left."""
        self._draining.set()
        self._evictor.stop()
        self.close()
        self.connections.cancel(idle_only=True)
        self._idle.stop()
        if not self._threads.join(grace):
            _log.warning("Ending transfers that are not through after %g s", grace)
        for origins in [*self._outdated, self._household.services.origins]:
            origins.close()
        self.connections.cancel(idle_only=False)
        # No client waits for what is asked in the background: it ends with its connections, and not before.
        if not (self._threads.join(_FORCED_END) and self._aside.join(_FORCED_END)):
            _log.warning("Some connections would not end")

    def close(self) -> None:
        """Listen no more, in this process."""
        for listener in self._listeners:
            listener.stop()

    def close_all(self) -> None:
        """Listen no more, in whatever process has been forked from this one."""
        for listener in self._listeners:
            listener.stop_all()

    # Setting up

    def _announce(self, config: Config) -> None:
        """Say what should not be forgotten."""
        for host in config.proxy.upstream_insecure:
            _log.warning("The certificate of %s is not verified (proxy.upstream_insecure)", host)
        for host in (*config.certs.server_dns_sans, *config.certs.server_ip_sans):
            if not self._authority.may_vouch_for(host):
                _log.warning("Clients will not believe us as %s: ca.crt has name constraints without it", host)

    def _furnish(self, config: Config, leaves: LeafStore) -> Household:
        """All that a configuration decides. Raises StartError."""
        return Household(
            services=Services(
                cache=self.cache,
                origins=self._make_origins(config),
                freshness=FreshnessRules(
                    fresh_for=config.cache.fresh_for,
                    heuristic_max=config.cache.heuristic_max,
                    recheck=config.cache.recheck,
                    stale_if_error=config.cache.stale_if_error,
                    obey_no_store=config.cache.obey_no_store,
                ),
                grants=Grants(config.cache.auth_grace),
                known=Grants(KNOWN_FOR),
                names=RequestFields(config.cache.harmless_fields),
                counters=self.counters,
                via=self._via,
                spawn=self._threads.spawn,
                deliveries=Deliveries(self._recent, config.cache.retry_window),
                background=self._background,
                grown=self._note_growth,
            ),
            rules=Rules(
                intercept=Hosts([*config.certs.server_dns_sans, *config.certs.server_ip_sans]),
                own_names=Hosts([config.certs.server_cn, "localhost"]),
                naming=Naming(config.proxy.filters, Parameters(config.cache.ignore_query), config.cache.volatile),
            ),
            hot=Hot(self.cache.disk),
            leaves=leaves,
            access=open_access(config),
            about=_about(config, self._authority.pem),
            tls=self._tls_context(config),
            tls_valid_from=self._files.server_valid_from(),
            idle_timeout=config.proxy.idle_timeout,
            draining=self._draining,
        )

    def _with_what_cannot_change(self, config: Config) -> Config:
        """A new configuration, but for what takes a new start."""
        now = self._config
        return replace(
            config,
            misc=replace(config.misc, cert_dir=now.misc.cert_dir, file_dir=now.misc.file_dir),
            proxy=replace(
                config.proxy,
                tcp_bind=now.proxy.tcp_bind,
                tls_bind=now.proxy.tls_bind,
                workers=now.proxy.workers,
            ),
        )

    def _open_cache(self) -> Cache:
        root = self._config.misc.file_dir
        try:
            # Leaders give up by themselves, after several attempts; this is for one that is stuck.
            patience = _patience(self._config)
            cache = Cache(root, patience, Room(root, _limits(self._config), worker_count(self._config)))
        except OSError as error:
            raise StartError(f'misc.file_dir "{root}" cannot be used: {error.strerror or error}') from error
        _log.info('Files "%s"', root)
        _warn_of_what_is_not_ours(cache)
        if not cache.store.keeps_metadata:
            _log.warning(
                'misc.file_dir "%s" is on a file system without user extended attributes: what needs authorisation '
                "is not kept, and nothing is shared between hosts",
                root,
            )
        return cache

    def _bind(self) -> None:
        proxy = self._config.proxy
        for address, key, encrypted in ((proxy.tcp_bind, "tcp_bind", False), (proxy.tls_bind, "tls_bind", True)):
            if address is None:
                continue
            try:
                sock = bind(address.host, address.port)
            except OSError as error:
                remedy = binding_remedy(error, address.port)
                raise StartError(f"proxy.{key} {address} cannot be bound: {error.strerror or error}{remedy}") from error
            self._listeners.append(
                Listener(sock, self._threads, partial(self.connections.accept, encrypted), self._idle)
            )

    def _make_leaves(self, config: Config) -> LeafStore:
        return LeafStore(self._authority, *_of_leaves(config), ticket_secret=self._ticket_secret, clock=self._clock)

    def _make_origins(self, config: Config) -> Origins:
        proxy = config.proxy
        settings = Settings(
            connect_timeout=proxy.connect_timeout,
            fill_timeout=proxy.upstream_timeout,
            relay_timeout=max(proxy.relay_timeout, proxy.upstream_timeout),
            tls=TlsSettings(
                ca=proxy.upstream_ca,
                insecure=HostList(proxy.upstream_insecure),
                client_certificate=(self._files.path("client.crt"), self._files.path("client.key")),
                client_cert_hosts=HostList(proxy.client_cert_hosts) if proxy.client_cert_hosts else None,
            ),
            own_addresses=tuple((address.host, address.port) for address in self.addresses),
            parent=_parent(proxy.upstream_proxy),
            direct=HostList(proxy.no_upstream_proxy),
            via=self._via,
            allow_own=OwnServices(proxy.allow_own),
        )
        try:
            return Origins(settings, self.counters)
        except UnusableCertificate as error:
            raise StartError(str(error)) from error

    def _tls_context(self, config: Config) -> ssl.SSLContext:
        """dduct's own certificate, or a minted one where the client asks for a host that is to be intercepted."""
        try:
            context = self._files.server_context()
            if config.proxy.ktls:
                openssl.let_kernel_encrypt(context)
            if config.proxy.require_client_cert:
                # A context that SNI chooses does not change what is asked of the client, but is the one that verifies.
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self._files.path("ca.crt"))
                openssl.resume_nothing(context)  # a session would let in after its certificate has ended
            else:
                openssl.share_tickets(context, self._ticket_secret + b"/")  # no host is named so
        except OSError as error:
            raise StartError(f'misc.cert_dir "{self._files.directory}" has no usable server.crt: {error}') from error
        context.sslsocket_class = NamedSocket
        context.sni_callback = self._choose_leaf  # type: ignore[assignment]
        return context

    def _choose_leaf(self, sock: NamedSocket, name: Optional[str], _: ssl.SSLContext) -> None:
        household = self._household
        rules = household.rules
        host = sock.server_name = None if name is None else name.lower()
        if host is not None and host in rules.intercept and host not in rules.own_names:
            sock.context = household.leaves.context(host)
        elif self._clock() < household.tls_valid_from:
            # The clock was ahead when server.crt was made. Until that is valid, leaves take its place.
            if host is None or host not in rules.own_names:
                host = sock.getsockname()[0].replace("::ffff:", "", 1).partition("%")[0]
            sock.context = household.leaves.context(host)

    def _keep_up(self) -> None:
        self._household.services.origins.sweep()
        self.counters.set(Gauge.DISK_WAITING, self.cache.disk.waiting())

    def _note_growth(self, octets: int) -> None:
        self.counters.add(Counter.STORED_OCTETS, octets)
        self._evictor.look()


def open_access(config: Config) -> Access:
    """Who may come in. Raises StartError."""
    try:
        users = None if config.proxy.auth_file is None else Users(config.proxy.auth_file)
    except AccessError as error:
        raise StartError(str(error)) from error
    return Access(Networks(config.proxy.allow_clients), users, config.proxy.require_client_cert)


def _patience(config: Config) -> float:
    """How long a leader may be without any progress, in seconds, before those who follow it take it for stuck."""
    return _PATIENCE * (config.proxy.connect_timeout + config.proxy.upstream_timeout)


def _of_leaves(config: Config) -> Tuple[int, bool, bool]:
    return config.certs.leaf_days, config.proxy.require_client_cert, config.proxy.ktls


def _about(config: Config, ca_pem: bytes) -> About:
    hosts = (*config.certs.server_dns_sans, *config.certs.server_ip_sans)
    filters = tuple(pattern.pattern for pattern in config.proxy.filters)
    return About(ca_pem, hosts, filters, config.proxy.auth_file is not None)


def _warn_of_what_is_not_ours(cache: Cache) -> None:
    root, (foreign, closed) = cache.store.root, cache.store.outside
    if foreign is not None:
        _log.warning(
            'misc.file_dir "%s" holds what is not dduct\'s, such as "%s": it is never touched, but the room that it '
            "takes counts against cache.min_free and cannot be freed; a directory of its own is better",
            root,
            foreign,
        )
    for name in closed:
        _log.warning(
            'misc.file_dir: "%s/%s" is a link, a mount point or no folder: nothing is kept there; let misc.file_dir '
            "itself lead to where files are to be",
            root,
            name,
        )


def _limits(config: Config) -> Limits:
    return Limits(config.cache.max_size, config.cache.min_free or 0)


def _announce_differences(wanted: Config, used: Config) -> None:
    for section in ("misc", "proxy"):
        before, after = getattr(used, section), getattr(wanted, section)
        for name in vars(before):
            if getattr(before, name) != getattr(after, name):
                _log.warning("%s.%s takes effect when dduct is started again", section, name)
