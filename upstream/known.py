"""What all workers know of origins."""

from __future__ import annotations

from dataclasses import dataclass

from storage.shared_table import SharedTable
from upstream.public_tokens import PublicTokens
from upstream.rate_limits import RateLimits


@dataclass(frozen=True)
class Known:
    """What all workers know of origins. The table has outages and refusals."""

    table: SharedTable
    public_tokens: PublicTokens
    rate_limits: RateLimits
