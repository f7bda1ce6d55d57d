"""The arrival of a request: the facts that its connection fixes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Optional

from net.addresses import Reach, parse_address
from protocol.http1 import Authority


@dataclass(frozen=True)
class Arrival:
    """The arrival of a request: `local` is the address of its connection at this end.

    `reach`: how far the client reaches into this machine. `connect_target`: the authority of the intercepted
    CONNECT. `server_name`: the SNI of a direct TLS connection, where the client sent one.
    """

    local: Authority
    reach: Reach
    encrypted: bool = False
    connect_target: Optional[Authority] = None
    server_name: Optional[str] = None

    @cached_property
    def kind(self) -> str:
        """A key: connections with equal kinds give the same bytes the same meaning."""
        return repr(self)

    @cached_property
    def connect_target_is_address(self) -> bool:
        """Whether the CONNECT's target is an address, which many hosts may share."""
        return self.connect_target is not None and parse_address(self.connect_target.host) is not None
