"""Where a request arrived: what its connection has fixed before it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Optional

from net.addresses import Reach, parse_address
from protocol.http1 import Authority


@dataclass(frozen=True)
class Where:
    """Where a request arrived: the address it was sent to, and what its connection has fixed already.

    `reach` is what of this machine the client may reach; `inside` is the authority of the CONNECT that is being
    intercepted; `server_name` is the SNI of a direct TLS connection, where the client sent one.
    """

    local: Authority
    reach: Reach
    encrypted: bool = False
    inside: Optional[Authority] = None
    server_name: Optional[str] = None

    @cached_property
    def kind(self) -> str:
        """Equal for two connections only if the same octets mean the same on both."""
        return repr(self)

    @cached_property
    def inside_address(self) -> bool:
        """Whether the CONNECT that is being intercepted was to an address, which may be that of many hosts."""
        return self.inside is not None and parse_address(self.inside.host) is not None
