"""What a configuration decides for all connections, in one value: a reload puts another one in its place."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass, field
from typing import Dict, Tuple

from access import Access
from filler import Services
from hot import Hot
from leaves import LeafStore
from notices import PerAddress, Seldom
from policy import Rules, Where
from setup_page import About

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
