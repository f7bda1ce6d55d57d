"""`Server`: one dduct, built from a configuration, from bound sockets to the last closed connection."""

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
from typing import Callable, List, Optional

import certs
from cache import Cache
from fetching.filler import Services
from fetching.grants import Grants
from fetching.memory_cache import MemoryCache
from fetching.naming import Naming, Parameters
from fetching.permission import KNOWN_FOR
from fetching.recent import Background, Deliveries, SharedTimes
from monitoring.metrics import Counter, Counters, Gauge
from net.addresses import Networks, OwnServices
from net.listener import Listener, ThreadPool, bind, binding_remedy
from net.poller import Poller
from net.stream import NamedSocket
from pages.setup import About
from protocol.freshness import FreshnessRules
from protocol.request_fields import RequestFields
from proxy.access import Access, AccessError, Users
from proxy.connection_limit import ConnectionLimit
from proxy.connections import Connections
from proxy.routing import HostList, Hosts, Rules
from proxy.runtime import Runtime
from server.config import Config
from server.config_values import Address, ParentProxy
from storage.eviction import Evictor
from storage.space import Limits, SpaceLimits
from tls import openssl
from tls.leaf_certificates import LeafCertificateCache, LeafSettings
from upstream.client import Origins
from upstream.dialling import Parent, Settings
from upstream.origin_tls import TlsSettings, UnusableCertificate

_log = logging.getLogger("dduct")

_FORCED_END = 3.0  # seconds for threads to notice closed sockets
_TIMEOUT = 10  # times (connect_timeout + upstream_timeout), for a stuck leader
_MAX_WORKERS = 8  # unless proxy.workers is set


class StartError(Exception):
    """dduct cannot start; the message names key and remedy."""


def worker_count(config: Config) -> int:
    """How many processes share the listeners."""
    return config.proxy.workers or min(len(os.sched_getaffinity(0)), _MAX_WORKERS)


def certificate_settings(config: Config) -> certs.CertificateSettings:
    """The settings for the certificates of the first start."""
    return certs.CertificateSettings(
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
    """One dduct, built from a configuration. The constructor reads certificates, opens the cache and binds.

    Processes that are forked before `start` may share it: number 0 sweeps the cache. The constructor raises
    certs.CertificateError and StartError.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock  # for validity of certificates
        self._via = b"1.1 dduct-" + secrets.token_hex(4).encode()
        self.counters = Counters(rows=worker_count(config) + 1)  # and one for the parent process
        self._threads = ThreadPool()
        self._aside = ThreadPool()  # no client waits for these
        # All processes share it for their lifetime: a client cannot choose its process.
        self._ticket_secret = secrets.token_bytes(32)
        self._draining = threading.Event()
        self._recent = SharedTimes()
        self._background = Background(self._recent, self._aside.spawn, self._draining)
        self._authority = certs.prepare(config.misc.cert_dir, certificate_settings(config))
        self._files = certs.CertificateFiles(config.misc.cert_dir)
        self.cache = self._open_cache()
        self._evictor = Evictor(self.cache.store.space, partial(self.counters.add, Counter.EVICTED))
        self.cache.store.space.on_need = self._evictor.look
        self.cache.disk.on_slow = partial(self.counters.add, Counter.SLOW_DISK)
        self._poller = Poller(self._threads.spawn, self._keep_up, self.cache.disk)
        limit = ConnectionLimit(config.proxy.max_connections, config.proxy.max_silent_per_client)
        self.connections = Connections(self._poller, self._threads.spawn, limit, time.monotonic)
        self._outdated: weakref.WeakSet[Origins] = weakref.WeakSet()  # from before a reload, while in use
        self._listeners: List[Listener] = []
        try:
            self._bind()
            self._current_runtime = self._build_runtime(config, self._make_leaf_certificates(config))
            self._announce(config)
        except BaseException:
            self.close()
            raise
        self.connections.judge_by(lambda: self._current_runtime)

    @property
    def addresses(self) -> List[Address]:
        """The bound addresses: tcp_bind, then tls_bind, without those that are off."""
        return [Address(*listener.address) for listener in self._listeners]

    def start(self, number: int = 0) -> None:
        """Start to accept, as process `number`."""
        self.counters.use(number)
        self.cache.store.space.use(number)
        if number == 0:
            self._threads.spawn("evictor", self._evictor.run)
        self._poller.open()
        self._threads.spawn("idle", self._poller.run)
        self._aside.spawn("supervisor", self._poller.supervise)
        for listener in self._listeners:
            listener.start()

    def reload(self, wanted: Config, announce: bool = True) -> None:
        """Replace the configuration: new requests use the new one, running requests keep the old one.

        Connections of clients and users that are no longer allowed end.

        Raises StartError, certs.CertificateError; then nothing changes.
        """
        config = self._with_what_cannot_change(wanted)
        kept = self._current_runtime.leaf_certificates
        same = _leaf_settings(config) == kept.settings
        current_runtime = self._build_runtime(config, kept if same else self._make_leaf_certificates(config))
        before, self._current_runtime, self._config = self._current_runtime, current_runtime, config
        before.services.origins.retire()
        self._outdated.add(before.services.origins)
        self.cache.store.space.limits = _limits(config)
        self.cache.timeout = _timeout(config)
        self.connections.limit.resize(config.proxy.max_connections, config.proxy.max_silent_per_client)
        self.connections.end_barred()
        if announce:
            _announce_differences(wanted, config)
            self._announce(config)

    def stop(self, grace: float = 10.0) -> None:
        """Stop accepting, let transfers run for `grace` seconds, then end the rest."""
        self._draining.set()
        self._evictor.stop()
        self.close()
        self.connections.cancel(idle_only=True)
        self._poller.stop()
        if not self._threads.join(grace):
            _log.warning("Ending transfers that are not through after %g s", grace)
        for origins in [*self._outdated, self._current_runtime.services.origins]:
            origins.close()
        self.connections.cancel(idle_only=False)
        # No client waits for background requests: they end when their connections close.
        if not (self._threads.join(_FORCED_END) and self._aside.join(_FORCED_END)):
            _log.warning("Some connections would not end")

    def close(self) -> None:
        """Stop listening in this process."""
        for listener in self._listeners:
            listener.stop()

    def close_all(self) -> None:
        """Stop listening in all processes with these sockets."""
        for listener in self._listeners:
            listener.stop_all()

    # Setting up

    def _announce(self, config: Config) -> None:
        """Warn of unverified hosts and of hosts that ca.crt may not certify."""
        for host in config.proxy.upstream_insecure:
            _log.warning("The certificate of %s is not verified (proxy.upstream_insecure)", host)
        for host in (*config.certs.server_dns_sans, *config.certs.server_ip_sans):
            if not self._authority.may_certify(host):
                _log.warning("Clients will not believe us as %s: ca.crt has name constraints without it", host)

    def _build_runtime(self, config: Config, leaf_certificates: LeafCertificateCache) -> Runtime:
        """All that a configuration decides. Raises StartError, certs.CertificateError."""
        return Runtime(
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
            memory_cache=MemoryCache(self.cache.disk),
            leaf_certificates=leaf_certificates,
            access=open_access(config),
            about=_about(config, self._authority.pem),
            tls=self._tls_context(config),
            tls_valid_from=self._files.server_valid_from(),
            idle_timeout=config.proxy.idle_timeout,
            draining=self._draining,
        )

    def _with_what_cannot_change(self, config: Config) -> Config:
        """`config`, with present values of keys that need a restart."""
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
            # Leaders give up by themselves after several attempts; this is for a stuck one.
            timeout = _timeout(self._config)
            cache = Cache(root, timeout, SpaceLimits(root, _limits(self._config), worker_count(self._config)))
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
                Listener(sock, self._threads, partial(self.connections.accept, encrypted), self._poller)
            )

    def _make_leaf_certificates(self, config: Config) -> LeafCertificateCache:
        return LeafCertificateCache(self._authority, _leaf_settings(config), self._ticket_secret, clock=self._clock)

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
        """The TLS listener's context: server.crt, or a leaf for an intercepted host (SNI). Raises StartError."""
        try:
            context = self._files.server_context()
            if config.proxy.ktls:
                openssl.let_kernel_encrypt(context)
            if config.proxy.require_client_cert:
                # This context asks the client for a certificate; a context that SNI chooses verifies it.
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self._files.path("ca.crt"))
                openssl.resume_nothing(context)  # a session could outlive its client certificate
            else:
                openssl.share_tickets(context, self._ticket_secret + b"/")  # no host is named "/"
        except OSError as error:
            raise StartError(f'misc.cert_dir "{self._files.directory}" has no usable server.crt: {error}') from error
        context.sslsocket_class = NamedSocket
        context.sni_callback = self._choose_leaf  # type: ignore[assignment]
        return context

    def _choose_leaf(self, sock: NamedSocket, name: Optional[str], _: ssl.SSLContext) -> None:
        current_runtime = self._current_runtime
        rules = current_runtime.rules
        host = sock.server_name = None if name is None else name.lower()
        if host is not None and host in rules.intercept and host not in rules.own_names:
            sock.context = current_runtime.leaf_certificates.context(host)
        elif self._clock() < current_runtime.tls_valid_from:
            # The clock was ahead when server.crt was made. Leaves replace it until it is valid.
            if host is None or host not in rules.own_names:
                host = sock.getsockname()[0].replace("::ffff:", "", 1).partition("%")[0]
            sock.context = current_runtime.leaf_certificates.context(host)

    def _keep_up(self) -> None:
        self._current_runtime.services.origins.sweep()
        self.counters.set(Gauge.DISK_WAITING, self.cache.disk.waiting())

    def _note_growth(self, grown_by: int) -> None:
        self.counters.add(Counter.STORED_BYTES, grown_by)
        self._evictor.look()


def open_access(config: Config) -> Access:
    """The access rules. Raises StartError."""
    try:
        users = None if config.proxy.auth_file is None else Users(config.proxy.auth_file)
    except AccessError as error:
        raise StartError(str(error)) from error
    return Access(Networks(config.proxy.allow_clients), users, config.proxy.require_client_cert)


def _timeout(config: Config) -> float:
    """Seconds without any progress after which followers regard their leader as stuck."""
    return _TIMEOUT * (config.proxy.connect_timeout + config.proxy.upstream_timeout)


def _leaf_settings(config: Config) -> LeafSettings:
    return LeafSettings(config.certs.leaf_days, config.proxy.require_client_cert, config.proxy.ktls)


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
