"""The result of a configuration for all connections, in one value: a reload replaces it."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass, field
from typing import Dict, Tuple

from fetching.ahead import Ahead
from fetching.filler import Services
from fetching.memory_cache import MemoryCache
from monitoring.log import PerAddress, RateLimitedLog
from net.arrival import Arrival
from pages.setup import About
from proxy.access import Access
from proxy.connection_limit import Slots
from proxy.plain_requests import PlainRequests
from proxy.routing import Rules
from storage.space import Limits
from tls.leaf_certificates import LeafCertificateCache
from upstream.credentials import Credentials

_log = logging.getLogger("dduct.session")


@dataclass(frozen=True)
class Runtime:
    """The result of a configuration for all sessions. `tls` is the context of tls_bind. Timeouts are in seconds.
    `draining` is set when dduct begins to stop."""

    services: Services
    rules: Rules
    leaf_certificates: LeafCertificateCache
    access: Access
    credentials: Credentials
    plain_requests: PlainRequests
    memory_cache: MemoryCache
    ahead: Ahead
    about: About
    tls: ssl.SSLContext
    tls_valid_from: float  # start of its certificate's validity
    idle_timeout: float
    fill_timeout: float  # without any progress; then followers regard their leader as stuck
    space: Limits  # of the cache
    slots: Slots
    draining: threading.Event
    repeated: PerAddress = field(default_factory=lambda: PerAddress(_log))
    trouble: RateLimitedLog = field(default_factory=lambda: RateLimitedLog(_log, seconds=10.0))
    connect_cache: Dict[Tuple[str, bytes], Arrival] = field(default_factory=dict)  # by arrival kind and CONNECT head


class CurrentRuntime:
    """The runtime that new requests use. A reload replaces it, in one assignment: it needs no lock."""

    def __init__(self) -> None:
        self._runtime: Runtime  # set before anything listens

    def get(self) -> Runtime:
        """The runtime of this moment; a request uses it to its end."""
        return self._runtime

    def replace(self, runtime: Runtime) -> None:
        """Give it to all requests from now on."""
        self._runtime = runtime
