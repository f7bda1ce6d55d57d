"""Listeners, threads and their end: a `Server` is one dduct, from bound sockets to the last closed connection."""

from __future__ import annotations

import errno
import logging
import secrets
import socket
import socketserver
import ssl
import threading
import time
from dataclasses import replace
from functools import partial
from typing import Callable, Dict, List, Optional, Set, Tuple

import certs
from access import Access, AccessError, Networks, Users, is_loopback
from cache import Cache
from certs import LeafStore
from config import Address, Config, ParentProxy
from evict import Evictor, Limits
from filler import Services
from freshness import FreshnessRules
from grants import Grants
from http1 import Authority
from metrics import Counter, Counters
from notices import Seldom
from policy import Hosts, Naming, Parameters, Rules, Where
from session import Household, Session
from stream import NamedSocket, Stream
from upstream import Origins, Parent, Settings

_log = logging.getLogger("dduct")

_FORCED_END = 3.0  # seconds for threads to notice that their sockets are gone
_BACKLOG = 1024
_SLOT_PATIENCE = 1.0  # seconds for another connection to end
_SCARCITY_PAUSE = 0.1  # seconds
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class StartError(Exception):
    """dduct cannot start; one line that names the key and the remedy."""


class Threads:
    """Threads that are waited for at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _alive
        self._alive: Set[threading.Thread] = set()

    def spawn(self, name: str, work: Callable[[], None]) -> threading.Thread:
        """Run `work` in a thread of its own. Raises RuntimeError where the system has no room for one."""
        thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        with self._lock:
            self._alive.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._forget(thread)
            raise
        return thread

    def join(self, seconds: float) -> bool:
        """Wait for all of them, and for those that they start; whether they ended in time."""
        deadline = time.monotonic() + seconds
        while True:
            with self._lock:
                thread = next(iter(self._alive), None)
            if thread is None:
                return True
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return False
            self._forget(thread)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # noqa: BLE001 - the one boundary: a bug is logged and ends its thread alone
            _log.exception("A bug in dduct ended the thread %s", threading.current_thread().name)
        finally:
            self._forget(threading.current_thread())

    def _forget(self, thread: threading.Thread) -> None:
        with self._lock:
            self._alive.discard(thread)


class Listener(socketserver.ThreadingTCPServer):
    """One bound address; every connection goes to `serve` in a thread of its own."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = _BACKLOG

    def __init__(
        self,
        address: Address,
        threads: Threads,
        slots: threading.Semaphore,
        serve: Callable[[socket.socket, str], None],
    ) -> None:
        self._spawn = threads.spawn
        self._slots = slots
        self._serve = serve
        self._trouble = Seldom(_log)
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        super().__init__(found[0][4][:2], socketserver.BaseRequestHandler)  # type: ignore[arg-type]
        self.thread: Optional[threading.Thread] = None

    @property
    def address(self) -> Address:
        """Where it really listens: port 0 has become a real one."""
        host, port = self.socket.getsockname()[:2]
        return Address(host, port)

    def start(self) -> None:
        """Begin to accept."""
        self.thread = self._spawn(f"listener {self.address}", self.serve_forever)

    def stop(self) -> None:
        """Accept no more. Waits until the accepting thread is out of its loop."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)  # close() alone would not wake it
        except OSError:
            pass  # not connected, says BSD; Linux wakes the thread
        if self.thread is not None:
            self.shutdown()
        self.server_close()

    def process_request(self, request: socket.socket, client_address: Tuple[str, int]) -> None:  # type: ignore[override]
        """Hand an accepted connection to a thread, when there is a place for it."""
        if not self._slots.acquire(timeout=_SLOT_PATIENCE):
            self._turn_away(request)
            return
        try:
            self._spawn("session", partial(self._occupy, request, client_address[0]))
        except RuntimeError as error:
            self._slots.release()
            self._trouble.warning("No thread for a connection: %s", error)
            self._turn_away(request)

    def get_request(self) -> Tuple[socket.socket, Tuple[str, int]]:
        """Accept a connection. One that cannot be had for want of descriptors waits a little, and is not spun for."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._trouble.warning("No room for a connection: %s", error.strerror)
                time.sleep(_SCARCITY_PAUSE)
            raise

    def _occupy(self, request: socket.socket, client: str) -> None:
        try:
            self._serve(request, client)
        finally:
            self._slots.release()

    def _turn_away(self, request: socket.socket) -> None:
        """Say that there are too many, to a client that can be told without waiting for it."""
        request.setblocking(False)
        try:
            request.send(_TOO_MANY)
        except OSError:
            pass  # it may as well find out by itself
        request.close()


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
    )


def _parent(proxy: Optional[ParentProxy]) -> Optional[Parent]:
    if proxy is None:
        return None
    return Parent(proxy.address.host, proxy.address.port, proxy.tls, proxy.credentials)


class Server:
    """One dduct made of a configuration. The constructor reads certificates, opens the cache and binds.

    Raises certs.CertificateError and StartError.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._via = b"1.1 dduct-" + secrets.token_hex(4).encode()
        self.counters = Counters()
        self._threads = Threads()
        self._draining = threading.Event()
        self._lock = threading.Lock()  # guards _sessions
        self._sessions: Dict[Stream, Optional[Session]] = {}  # None while its handshake lasts
        authority = certs.prepare(config.misc.cert_dir, identity(config))
        self._files = certs.CertificateFiles(config.misc.cert_dir)
        self._leaves = LeafStore(authority, config.certs.leaf_days)
        self._rules = Rules(
            intercept=Hosts([*config.certs.server_dns_sans, *config.certs.server_ip_sans]),
            own_names=Hosts([config.certs.server_cn, "localhost"]),
            naming=Naming(config.proxy.filters, Parameters(config.cache.ignore_query)),
        )
        access = self._make_access()
        self.cache = self._open_cache()
        self._evictor = Evictor(
            config.misc.file_dir,
            Limits(config.cache.max_size, config.cache.min_free or 0),
            partial(self.counters.add, Counter.EVICTED),
        )
        self._listeners: List[Listener] = []
        try:
            self._bind()
            self._origins = self._make_origins()
        except BaseException:
            self._close_listeners()
            raise
        self._household = Household(
            services=Services(
                cache=self.cache,
                origins=self._origins,
                freshness=FreshnessRules(
                    fresh_for=config.cache.fresh_for,
                    stale_if_error=config.cache.stale_if_error,
                    obey_no_store=config.cache.obey_no_store,
                ),
                grants=Grants(config.cache.auth_grace),
                counters=self.counters,
                via=self._via,
                spawn=self._threads.spawn,
                grown=self._evictor.note,
            ),
            rules=self._rules,
            leaves=self._leaves,
            access=access,
            ca_pem=authority.pem,
            idle_timeout=config.proxy.idle_timeout,
            draining=self._draining,
        )

    @property
    def addresses(self) -> List[Address]:
        """Where it listens: tcp_bind, then tls_bind, without one that is switched off."""
        return [listener.address for listener in self._listeners]

    def start(self) -> None:
        """Begin to accept."""
        self._threads.spawn("evictor", self._evictor.run)
        for listener in self._listeners:
            listener.start()
            _log.info("Listening on %s", listener.address)

    def stop(self, grace: float = 10.0) -> None:
        """Accept no more, let running transfers finish for `grace` seconds, then end what is left."""
        self._draining.set()
        self._evictor.stop()
        self._close_listeners()
        self._cancel_sessions(idle_only=True)
        if not self._threads.join(grace):
            _log.warning("Ending transfers that are not through after %g s", grace)
        self._origins.close()
        self._cancel_sessions(idle_only=False)
        if not self._threads.join(_FORCED_END):
            _log.warning("Some connections would not end")

    # Setting up

    def _open_cache(self) -> Cache:
        root = self._config.misc.file_dir
        try:
            patience = 2 * self._config.proxy.upstream_timeout
            cache = Cache(root, patience, self._config.cache.min_free or 0)
        except OSError as error:
            raise StartError(f'misc.file_dir "{root}" cannot be used: {error.strerror or error}') from error
        _log.info('Files "%s"', root)
        if not cache.store.keeps_metadata:
            _log.warning(
                'misc.file_dir "%s" is on a file system without user extended attributes: what needs authorisation '
                "is not kept, and nothing is shared between hosts",
                root,
            )
        return cache

    def _make_access(self) -> Access:
        proxy = self._config.proxy
        try:
            users = None if proxy.auth_file is None else Users(proxy.auth_file)
        except AccessError as error:
            raise StartError(str(error)) from error
        return Access(Networks(proxy.allow_clients), users)

    def _bind(self) -> None:
        proxy = self._config.proxy
        slots = threading.Semaphore(proxy.max_connections)
        contexts = ((proxy.tcp_bind, "tcp_bind", None), (proxy.tls_bind, "tls_bind", self._tls_context()))
        for address, key, context in contexts:
            if address is None:
                continue
            try:
                self._listeners.append(Listener(address, self._threads, slots, partial(self._serve, context)))
            except OSError as error:
                raise StartError(f"proxy.{key} {address} cannot be bound: {error.strerror or error}") from error

    def _make_origins(self) -> Origins:
        proxy = self._config.proxy
        settings = Settings(
            timeout=proxy.upstream_timeout,
            ca=proxy.upstream_ca,
            insecure=Hosts(proxy.upstream_insecure),
            client_certificate=(self._files.path("client.crt"), self._files.path("client.key")),
            own_addresses=tuple((address.host, address.port) for address in self.addresses),
            parent=_parent(proxy.upstream_proxy),
            direct=Hosts(proxy.no_upstream_proxy),
            via=self._via,
        )
        for host in proxy.upstream_insecure:
            _log.warning("The certificate of %s is not verified (proxy.upstream_insecure)", host)
        try:
            return Origins(settings)
        except OSError as error:
            raise StartError(f'proxy.upstream_ca "{proxy.upstream_ca}" cannot be used: {error}') from error

    def _tls_context(self) -> ssl.SSLContext:
        """dduct's own certificate, or a minted one where the client asks for a host that is to be intercepted."""
        context = self._files.server_context()
        if self._config.proxy.require_client_cert:
            # A context that SNI chooses does not change what is asked of the client, but is the one that verifies.
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._files.path("ca.crt"))
        context.sslsocket_class = NamedSocket
        context.sni_callback = self._choose_leaf  # type: ignore[assignment]
        return context

    def _choose_leaf(self, sock: NamedSocket, name: Optional[str], _: ssl.SSLContext) -> None:
        if name is None:
            return
        sock.server_name = name.lower()
        if sock.server_name in self._rules.intercept and sock.server_name not in self._rules.own_names:
            sock.context = self._leaves.context(sock.server_name)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.stop()

    # Connections

    def _serve(self, context: Optional[ssl.SSLContext], sock: socket.socket, client: str) -> None:
        """A connection's thread, from accept to close."""
        host, port = sock.getsockname()[:2]
        stream = Stream(sock, self._config.proxy.idle_timeout)
        where = Where(Authority(host.replace("::ffff:", "", 1) if "." in host else host, port), is_loopback(client))
        with self._lock:
            self._sessions[stream] = None
        try:
            if context is not None:
                stream.start_tls(context)
                where = replace(where, encrypted=True, server_name=stream.server_name)
            session = Session(stream, client, where, self._household)
            with self._lock:
                self._sessions[stream] = session
            session.run()
        except OSError as error:
            _log.debug("%s: no TLS connection: %s", client, error)
        finally:
            stream.cut()
            with self._lock:
                del self._sessions[stream]

    def _cancel_sessions(self, idle_only: bool) -> None:
        with self._lock:
            sessions = list(self._sessions.items())
        for stream, session in sessions:
            if not (idle_only and session is not None and session.busy):
                stream.cancel()
