"""How a reader that has caught up waits for more: for many bytes at once, if it is one of a crowd."""

from __future__ import annotations

import threading
import time
from typing import Callable

from net import client_watch

CROWD = 16  # readers; more of them look by themselves whether there is more
_CROWD_SHORTEST, _CROWD_LONGEST = 0.005, 0.1  # seconds between two such looks
PIECE = 8 * 1024 * 1024  # octets for which a reader in a crowd hesitates,
_HESITATION = 2.0  # but no longer than so many seconds;
LOOKS_APART = 1 / 8  # of that time lie between two looks


def hesitation(caught_up_at: float) -> float:
    """Seconds that a reader may wait for more than a few octets, if it had read all there was at that (monotonic) time.

    Four times as long as it has taken to send what it got then. Alone, that is nothing; in a crowd for which the
    processor is too slow, steps become fewer and larger, and the filler has a chance to get ahead.
    """
    return min(_HESITATION, 4 * (time.monotonic() - caught_up_at))


def wait_for_bytes(
    changed: threading.Condition,
    arrived: Callable[[int], bool],
    crowded: Callable[[], bool],
    timeout: float,
    hesitate_for: float,
) -> bool:
    """Until so many bytes have arrived, or never will; False after `timeout` seconds. Raises ClientGone.

    Callers have `changed`.

    A crowd is not woken for every little, and hesitates to take it: the filler has to wait for each step.
    """
    began = time.monotonic()
    pause = max(_CROWD_SHORTEST, hesitate_for * LOOKS_APART)
    while True:
        waited, is_crowd = time.monotonic() - began, crowded()
        if arrived(PIECE if is_crowd and waited < hesitate_for else 1):
            return True
        if waited >= timeout:
            return arrived(1)
        client_watch.wait(changed, min(pause, timeout - waited) if is_crowd else timeout - waited)
        pause = max(pause, min(2 * pause, _CROWD_LONGEST))
