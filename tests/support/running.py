"""A dduct in this process, with an origin's authority beside its own."""

from __future__ import annotations

import os
import re
import shutil
import ssl
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence

from monitoring.metrics import Counter, Counters
from server import config as configuration
from server.config_keys import Config, CredentialRule
from server.config_values import Address
from server.server import Server
from support.client import Answer, Client, wait_until
from support.origin import Handler, Origin
from tls.authority import CertificateAuthority
from tls.leaf_certificates import LeafCertificateCache, LeafSettings
from transfers.fill import Fill

HOST = "127.0.0.1"


def make_config(directory: Path, origin_ca: Optional[Path], **keys: Any) -> Config:
    """Defaults on free ports below `directory`; keyword arguments replace keys of [proxy] and [cache]."""
    base = replace(configuration.defaults(directory), credentials=keys.pop("credentials", ()))
    anywhere = Address(HOST, 0)
    settings = {
        "tcp_bind": anywhere,
        "tls_bind": anywhere,
        "upstream_ca": origin_ca,
        "idle_timeout": 20.0,
        "connect_timeout": 10.0,
        "upstream_timeout": 10.0,
        "relay_timeout": 10.0,
        "workers": 1,
        **{key: value for key, value in keys.items() if hasattr(base.proxy, key)},
    }
    caching = {
        "min_free": None,
        "retry_window": 0.0,  # in tests, two requests are of two clients, whatever their address
        **{key: value for key, value in keys.items() if not hasattr(base.proxy, key)},
    }
    return replace(
        base,
        proxy=replace(base.proxy, **settings),
        cache=replace(base.cache, **caching),
        certs=replace(
            base.certs,
            rsa_key_bits=2048,
            server_dns_sans=("origin.test", "*.listed.test"),
            server_ip_sans=("127.0.0.1", "127.0.0.2", "::1"),
        ),
    )


@contextmanager
def second_worker(server: Server) -> Iterator[None]:
    """Another process that serves beside this one, as `workers` does it."""
    mine, its = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(mine[1])
            server.start(1)
            os.write(its[1], b"!")
            os.read(mine[0], 1)
            server.stop(grace=10)
            status = 0
        finally:
            os._exit(status)
    os.close(mine[0])
    os.close(its[1])
    try:
        assert os.read(its[0], 1) == b"!"
        yield
    finally:
        os.close(mine[1])
        os.close(its[0])
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _is_durable(path: Path) -> bool:
    try:
        return b'"durable":true' in os.getxattr(path, "user.dduct")
    except OSError:
        return False  # it still grows, or has gone


class RunningDduct:
    """A running dduct, its origins and its clients; everything ends with it."""

    def __init__(self, directory: Path, authority: CertificateAuthority, certificates: Path, **keys: Any) -> None:
        self.directory = directory
        self._leaves = LeafCertificateCache(authority, LeafSettings(30))
        self._stack = ExitStack()
        ca = directory / "origin-ca.pem"
        ca.write_bytes(authority.pem)
        self.config = make_config(directory, ca, **keys)
        shutil.copytree(certificates, self.config.misc.cert_dir, dirs_exist_ok=True)
        self.server = Server(self.config)
        self.server.cache.store.syncs.gathering = 0.0  # many tests wait until their objects are durable
        if self.config.proxy.workers > 1:
            self._stack.enter_context(second_worker(self.server))
        self.server.start()
        wait_until((self.files / ".evictor").exists)  # from now on nothing appears there by itself
        self.tcp_port, self.tls_port = (address.port for address in self.server.addresses)
        self.trust = ssl.create_default_context(cafile=str(self.config.misc.cert_dir / "ca.crt"))
        self.trust.verify_flags |= ssl.VERIFY_X509_STRICT

    def __enter__(self) -> RunningDduct:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.server.stop(grace=10)

    @property
    def counters(self) -> Counters:
        """What it has counted."""
        return self.server.counters

    def counted(self, counter: Counter, at_least: int = 1) -> int:
        """What has been counted, once that is so much: fillers count when their readers have had everything."""
        wait_until(lambda: self.counters.value(counter) >= at_least)
        return self.counters.value(counter)

    def lend(self, *rules: CredentialRule) -> None:
        """Replace [[credentials]] while it runs."""
        self.config = replace(self.config, credentials=rules)
        self.server.reload(self.config)

    def reload(self, **keys: Any) -> None:
        """Replace keys of [cache] while it runs."""
        self.config = replace(self.config, cache=replace(self.config.cache, **keys))
        self.server.reload(self.config)

    @property
    def files(self) -> Path:
        """The cache's root."""
        return self.config.misc.file_dir

    def origin(self, handler: Handler, tls: bool = True, host: str = HOST) -> Origin:
        """An origin, over TLS with a certificate for its address unless told otherwise."""
        context = self._leaves.context(host) if tls else None
        return self._stack.enter_context(Origin(handler, context, host))

    def client(self, port: Optional[int] = None) -> Client:
        """A bare connection to the plain port."""
        return self._stack.enter_context(Client(self.tcp_port if port is None else port))

    def intercepted(self, origin: Origin, host: str = HOST) -> Client:
        """A client inside an intercepted connection to an origin."""
        client = self.client()
        answer = client.connect(f"{host}:{origin.port}")
        assert answer.status == 200, answer
        client.start_tls(self.trust, host)
        return client

    def fetch(self, origin: Origin, target: str, *fields: str) -> Answer:
        """One GET through an intercepted connection of its own."""
        with self.intercepted(origin) as client:
            return client.get(target, f"{HOST}:{origin.port}", *fields)

    def wait_until_durable(self) -> None:
        """Wait for everything that is written after the objects here were published."""
        wait_until(lambda: all(_is_durable(self.files / name) for name in self.stored()))

    def fills(self) -> List[Fill]:
        """Those that are not over."""
        return list(self.server.cache._fills.values())

    def stored(self) -> Sequence[str]:
        """Every file in the cache, by its path below the root; dduct's own lock file is none."""
        # rglob, before Python 3.12, raises where a directory goes meanwhile.
        files = (Path(directory, name) for directory, _, names in os.walk(self.files) for name in names)
        return sorted(str(path.relative_to(self.files)) for path in files if path.is_file() and path.name != ".evictor")


def filters(*patterns: str) -> Any:
    """Filters as the configuration holds them."""
    return tuple(re.compile(pattern) for pattern in patterns)


def written(directory: Path) -> Iterator[bytes]:
    """All that lies below a directory: names, bytes and attributes."""
    for path in directory.rglob("*"):
        yield str(path).encode()
        if path.is_file():
            yield path.read_bytes()
        for attribute in os.listxattr(path):
            yield os.getxattr(path, attribute)
