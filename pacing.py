"""How a reader that has caught up waits for more: for many bytes at once, if it is one of a crowd."""

from __future__ import annotations

import time

PIECE = 8 * 1024 * 1024  # octets for which a reader in a crowd hesitates,
_HESITATION = 2.0  # but no longer than so many seconds;
LOOKS_APART = 1 / 8  # of that time lie between two looks


def hesitation(caught_up_at: float) -> float:
    """Seconds that a reader may wait for more than a few octets, if it had read all there was at that (monotonic) time.

    Four times as long as it has taken to send what it got then. Alone, that is nothing; in a crowd for which the
    processor is too slow, steps become fewer and larger, and the filler has a chance to get ahead.
    """
    return min(_HESITATION, 4 * (time.monotonic() - caught_up_at))
