"""What a configuration decides for all connections, in one value: a reload puts another one in its place."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass, field
from typing import Dict, Tuple

from fetching.filler import Services
from fetching.memory_cache import Hot
from monitoring.log import PerAddress, Seldom
from net.arrival import Where
from pages.setup import About
from proxy.access import Access
from proxy.routing import Rules
from tls.leaf_certificates import LeafStore

_log = logging.getLogger("dduct.session")


@dataclass(frozen=True)
class Household:
    """What a configuration decides for all sessions. `tls` is for those of tls_bind, `idle_timeout` in seconds;
    `draining` is set once dduct is about to stop."""

    services: Services
    rules: Rules
    leaves: LeafStore
    access: Access
    hot: Hot
    about: About
    tls: ssl.SSLContext
    tls_valid_from: float  # when its certificate begins to be valid
    idle_timeout: float
    draining: threading.Event
    repeated: PerAddress = field(default_factory=lambda: PerAddress(_log))
    trouble: Seldom = field(default_factory=lambda: Seldom(_log, seconds=10.0))
    entrances: Dict[Tuple[str, bytes], Where] = field(default_factory=dict)  # where a CONNECT has led before
