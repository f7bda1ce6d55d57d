"""Wiring: what turns a configuration into the parts of a dduct.

* `open_parts` makes, once, what every runtime and every worker shares.
* `RuntimeBuilder.build` makes all that a configuration decides, as one `Runtime`. A reload builds another.

Both raise StartError and certs.CertificateError, whose messages name key and remedy.
"""

from __future__ import annotations

import logging
import os
import secrets
import ssl
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

import certs
from cache import Cache
from fetching.ahead import Ahead
from fetching.filler import Services
from fetching.grants import Grants, Kind
from fetching.memory_cache import MemoryCache
from fetching.naming import Naming, Parameters
from fetching.negative import NegativeAnswers
from fetching.permission import KNOWN_FOR
from fetching.recent import Background, Deliveries, SharedTimes
from fetching.repositories import Repositories
from fetching.shared_answers import SharedAnswers
from monitoring.metrics import Counter, Counters
from net.addresses import Networks, OwnServices, split_service, unmapped
from net.endpoint import NamedSocket
from net.listener import ThreadPool, binding_remedy
from pages.setup import About
from protocol.freshness import FreshnessRules
from protocol.request_fields import RequestFields
from proxy.access import Access, AccessError, Users
from proxy.connection_limit import Slots
from proxy.plain_requests import PlainRequests
from proxy.routing import HostList, Hosts, Rules
from proxy.runtime import CurrentRuntime, Runtime
from server.config_keys import Config, CredentialRule
from server.config_values import Address
from server.joined_patterns import joined
from storage.eviction import Evictor
from storage.shared_table import SharedNumbers, SharedTable
from storage.space import Limits, SpaceLimits
from tls import openssl
from tls.authority import CertificateAuthority
from tls.leaf_certificates import LeafCertificateCache, LeafSettings
from upstream.client import Origins
from upstream.credentials import Credentials, Places, Rule
from upstream.dialling import Settings
from upstream.known import Known
from upstream.origin_tls import TlsSettings, UnusableCertificate
from upstream.public_tokens import PublicTokens
from upstream.rate_limits import RateLimits
from upstream.secret_sources import Helper, SecretFile, Source
from upstream.token_server import TokenServers

_log = logging.getLogger("dduct")

_TIMEOUT = 10  # times (connect_timeout + upstream_timeout), for a stuck leader
_MAX_WORKERS = 8  # unless proxy.workers is set


class StartError(Exception):
    """dduct cannot start; the message names key and remedy."""


def worker_count(config: Config) -> int:
    """How many processes share the listeners."""
    return config.proxy.workers or min(len(os.sched_getaffinity(0)), _MAX_WORKERS)


def cannot_bind(key: str, address: Address, error: OSError) -> StartError:
    """That the address of a key of [proxy] cannot be bound."""
    remedy = binding_remedy(error, address.port)
    return StartError(f"proxy.{key} {address} cannot be bound: {error.strerror or error}{remedy}")


def cannot_use_files(root: Path, reason: str) -> StartError:
    """That the cache cannot lie in `root`."""
    return StartError(f'misc.file_dir "{root}" cannot be used: {reason}')


# --- once --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """What all runtimes of a dduct share, from its start to its stop."""

    authority: CertificateAuthority
    files: certs.CertificateFiles
    cache: Cache
    evictor: Evictor
    counters: Counters
    threads: ThreadPool
    aside: ThreadPool  # no client waits for these
    draining: threading.Event
    recent: SharedTimes
    shared: SharedTable
    numbers: SharedNumbers
    background: Background
    answers: SharedAnswers
    ahead: Ahead
    via: bytes
    # All processes share it for their lifetime: a client cannot choose its process.
    ticket_secret: bytes
    clock: Callable[[], float]  # for validity of certificates

    def note_growth(self, grown_by: int) -> None:
        """Bytes were stored: count them, and look whether others have to go."""
        self.counters.add(Counter.STORED_BYTES, grown_by)
        self.evictor.look()


def open_parts(config: Config, clock: Callable[[], float], current: CurrentRuntime) -> Parts:
    """Read or make certificates, and open the cache. Starts nothing: `current` may still be without a runtime."""
    counters = Counters(rows=worker_count(config) + 1)  # and one for the parent process
    aside, draining, recent = ThreadPool(), threading.Event(), SharedTimes()
    authority = certs.prepare(config.misc.cert_dir, config.certs)
    cache = _open_cache(config, current)
    numbers = SharedNumbers()
    counters.remaining = lambda: numbers.items(time.monotonic())
    evictor = Evictor(cache.store.space, partial(counters.add, Counter.EVICTED))
    cache.store.space.on_need = evictor.look
    cache.store.syncs.on_dropped = partial(counters.add, Counter.UNSYNCED)
    cache.disk.on_slow = partial(counters.add, Counter.SLOW_DISK)
    return Parts(
        authority=authority,
        files=certs.CertificateFiles(config.misc.cert_dir),
        cache=cache,
        evictor=evictor,
        counters=counters,
        threads=ThreadPool(),
        aside=aside,
        draining=draining,
        recent=recent,
        shared=SharedTable(),
        numbers=numbers,
        background=Background(recent, aside.spawn, draining),
        answers=SharedAnswers(),
        ahead=Ahead(aside.spawn, draining),
        via=b"1.1 dduct-" + secrets.token_hex(4).encode(),
        ticket_secret=secrets.token_bytes(32),
        clock=clock,
    )


def _open_cache(config: Config, current: CurrentRuntime) -> Cache:
    root = config.misc.file_dir
    try:
        space = SpaceLimits(root, lambda: current.get().space, worker_count(config))
        cache = Cache(root, lambda: current.get().fill_timeout, space)
    except OSError as error:
        raise cannot_use_files(root, error.strerror or str(error)) from error
    _log.info('Files "%s"', root)
    _warn_of_what_is_not_ours(cache)
    shortcoming = cache.store.records.shortcoming
    if shortcoming is not None:
        _log.warning('misc.file_dir "%s" is on a file system %s', root, shortcoming)
    return cache


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


# --- for each configuration --------------------------------------------------------------------------


class RuntimeBuilder:
    """Builds runtimes for a dduct that listens on `addresses`."""

    def __init__(self, parts: Parts, addresses: List[Address], current: CurrentRuntime) -> None:
        self._parts = parts
        self._addresses = addresses
        self._names = _NameChooser(current, parts.clock)

    def build(self, config: Config, kept: Optional[LeafCertificateCache] = None) -> Runtime:
        """All that a configuration decides. Leaves that were `kept` stay in use if they would be made alike."""
        parts = self._parts
        leaves = kept if kept is not None and kept.settings == _leaf_settings(config) else self._leaves(config)
        services, rules = self._services(config), _rules(config)
        return Runtime(
            services=services,
            rules=rules,
            plain_requests=PlainRequests(rules, services.names, services.via),
            memory_cache=MemoryCache(services),
            ahead=parts.ahead,
            leaf_certificates=leaves,
            access=open_access(config),
            credentials=self._credentials(config, services.origins),
            about=_about(config, parts.authority.pem),
            tls=_listener_context(config, parts, self._names),
            tls_valid_from=parts.files.server_valid_from(),
            idle_timeout=config.proxy.idle_timeout,
            # Leaders give up by themselves after several attempts; this is for a stuck one.
            fill_timeout=_TIMEOUT * (config.proxy.connect_timeout + config.proxy.upstream_timeout),
            space=Limits(config.cache.max_size, config.cache.min_free or 0),
            slots=Slots.of(config.proxy.max_connections, config.proxy.max_silent_per_client),
            draining=parts.draining,
        )

    def _credentials(self, config: Config, origins: Origins) -> Credentials:
        parts, insecure = self._parts, HostList(config.proxy.upstream_insecure)
        servers = TokenServers(origins.exchange, parts.via)
        return Credentials([_rule(one) for one in config.credentials], insecure, servers, parts.counters)

    def _services(self, config: Config) -> Services:
        parts = self._parts
        tokens = PublicTokens(parts.shared, HostList(config.proxy.client_cert_hosts))
        limits = RateLimits(parts.numbers, config.cache.ratelimit_floor)
        return Services(
            cache=parts.cache,
            origins=_origins(config, parts, self._addresses, Known(parts.shared, tokens, limits)),
            freshness=FreshnessRules(
                fresh_for=config.cache.fresh_for,
                heuristic_max=config.cache.heuristic_max,
                recheck=config.cache.recheck,
                stale_if_error=config.cache.stale_if_error,
                obey_no_store=config.cache.obey_no_store,
            ),
            grants=Grants(config.cache.auth_grace, parts.shared, Kind.OBJECT),
            known=Grants(KNOWN_FOR, parts.shared, Kind.NAME),
            names=RequestFields(config.cache.harmless_fields),
            public_tokens=tokens,
            repositories=Repositories(parts.shared),
            rate_limits=limits,
            ask_anonymously=config.cache.ask_anonymously,
            counters=parts.counters,
            via=parts.via,
            spawn=parts.threads.spawn,
            deliveries=Deliveries(parts.recent, config.cache.retry_window),
            background=parts.background,
            negatives=NegativeAnswers(parts.answers, config.cache.negative, hash(config)),
            grown=parts.note_growth,
        )

    def _leaves(self, config: Config) -> LeafCertificateCache:
        parts = self._parts
        return LeafCertificateCache(parts.authority, _leaf_settings(config), parts.ticket_secret, clock=parts.clock)


class _NameChooser:
    """Chooses the certificate of tls_bind by the name that a client asks for (SNI), as the current runtime has it."""

    def __init__(self, current: CurrentRuntime, clock: Callable[[], float]) -> None:
        self._current = current
        self._clock = clock

    def choose(self, sock: NamedSocket, name: Optional[str], _: ssl.SSLContext) -> None:
        """The sni_callback of the listener's context."""
        current_runtime = self._current.get()
        rules = current_runtime.rules
        host = sock.server_name = None if name is None else name.lower()
        if host is not None and host in rules.intercept and host not in rules.own_names:
            sock.context = current_runtime.leaf_certificates.context(host)
        elif self._clock() < current_runtime.tls_valid_from:
            # The clock was ahead when server.crt was made. Leaves replace it until it is valid.
            if host is None or host not in rules.own_names:
                host = unmapped(sock.getsockname()[0]).partition("%")[0]
            sock.context = current_runtime.leaf_certificates.context(host)


def _rules(config: Config) -> Rules:
    return Rules(
        intercept=Hosts([*config.certs.server_dns_sans, *config.certs.server_ip_sans]),
        own_names=Hosts([config.certs.server_cn, "localhost"]),
        naming=Naming(
            filters=config.proxy.filters,
            ignored=Parameters(config.cache.ignore_query),
            volatile=joined(config.cache.volatile),
            metadata=config.cache.metadata,
            tag_check=config.cache.tag_check,
        ),
    )


def _listener_context(config: Config, parts: Parts, names: _NameChooser) -> ssl.SSLContext:
    """The TLS listener's context: server.crt, or a leaf for an intercepted host (SNI). Raises StartError."""
    try:
        context = parts.files.server_context()
        if config.proxy.ktls:
            openssl.let_kernel_encrypt(context)
        if config.proxy.require_client_cert:
            # This context asks the client for a certificate; a context that SNI chooses verifies it.
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(parts.files.path("ca.crt"))
            openssl.resume_nothing(context)  # a session could outlive its client certificate
        else:
            openssl.share_tickets(context, parts.ticket_secret + b"/")  # no host is named "/"
    except OSError as error:
        raise StartError(f'misc.cert_dir "{parts.files.directory}" has no usable server.crt: {error}') from error
    context.sslsocket_class = NamedSocket
    context.sni_callback = names.choose  # type: ignore[assignment]
    return context


def _origins(config: Config, parts: Parts, addresses: List[Address], known: Known) -> Origins:
    proxy = config.proxy
    settings = Settings(
        connect_timeout=proxy.connect_timeout,
        fill_timeout=proxy.upstream_timeout,
        relay_timeout=max(proxy.relay_timeout, proxy.upstream_timeout),
        tls=TlsSettings(
            ca=proxy.upstream_ca,
            insecure=HostList(proxy.upstream_insecure),
            client_certificate=(parts.files.path("client.crt"), parts.files.path("client.key")),
            client_cert_hosts=HostList(proxy.client_cert_hosts) if proxy.client_cert_hosts else None,
        ),
        own_addresses=tuple((address.host, address.port) for address in addresses),
        parent=proxy.upstream_proxy,
        direct=HostList(proxy.no_upstream_proxy),
        via=parts.via,
        allow_own=OwnServices(proxy.allow_own),
    )
    try:
        return Origins(settings, parts.counters, known)
    except UnusableCertificate as error:
        raise StartError(str(error)) from error


def open_access(config: Config) -> Access:
    """The access rules. Raises StartError."""
    try:
        users = None if config.proxy.auth_file is None else Users(config.proxy.auth_file)
    except AccessError as error:
        raise StartError(str(error)) from error
    return Access(Networks(config.proxy.allow_clients), users, config.proxy.require_client_cert)


def _rule(rule: CredentialRule) -> Rule:
    return Rule(
        title=", ".join(rule.hosts),
        hosts=_places(rule.hosts),
        realms=_places(rule.realms),
        users=frozenset(rule.users) if rule.users else None,
        clients=Networks(rule.clients) if rule.clients else None,
        source=secret_source(rule),
        unprotected=rule.allow_http,
    )


def secret_source(rule: CredentialRule) -> Source:
    """Where a rule has its secret from."""
    if rule.helper:
        return Helper(rule.helper)
    if rule.password_file is not None:
        return SecretFile(rule.password_file, rule.username)
    assert rule.token_file is not None
    return SecretFile(rule.token_file)


def _places(hosts: Sequence[str]) -> Places:
    by_port: Dict[int, List[str]] = {}
    for host in hosts:
        name, port = split_service(host)
        by_port.setdefault(port or 0, []).append(name)
    return Places({port: HostList(names) for port, names in by_port.items()})


def _leaf_settings(config: Config) -> LeafSettings:
    return LeafSettings(config.certs.leaf_days, config.proxy.require_client_cert, config.proxy.ktls)


def _about(config: Config, ca_pem: bytes) -> About:
    hosts = (*config.certs.server_dns_sans, *config.certs.server_ip_sans)
    filters = tuple(pattern.pattern for pattern in config.proxy.filters)
    return About(ca_pem, hosts, filters, config.proxy.auth_file is not None)


def warn_of_hosts(config: Config, authority: CertificateAuthority) -> None:
    """Warn of unverified hosts and of hosts that ca.crt may not certify."""
    for host in config.proxy.upstream_insecure:
        _log.warning("The certificate of %s is not verified (proxy.upstream_insecure)", host)
    for host in (*config.certs.server_dns_sans, *config.certs.server_ip_sans):
        if not authority.may_certify(host):
            _log.warning("Clients will not believe us as %s: ca.crt has name constraints without it", host)
