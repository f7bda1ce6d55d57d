"""Connecting to the first of several addresses that answers (RFC 8305), without a thread for each attempt.

An address that drops packets costs a quarter of a second, not the whole timeout: the next attempt does not wait for
it to fail.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from net.client_watch import wait_ready

ATTEMPT_DELAY = 0.25  # seconds (RFC 8305 §8)
MAX_ATTEMPTS = 16


class Candidate(NamedTuple):
    """One of the addresses of a name, as getaddrinfo(3) gives it."""

    family: int
    kind: int
    protocol: int
    name: str
    address: Tuple[Any, ...]

    @property
    def host(self) -> str:
        """The address alone."""
        return str(self.address[0])


def in_order(candidates: Iterable[Candidate], worked: Optional[str] = None) -> List[Candidate]:
    """The order of attempts: the address that `worked` last, then the families in turn (RFC 8305 §4)."""
    rest = list(dict.fromkeys(candidates))
    first = [candidate for candidate in rest if candidate.host == worked][:1]
    rest = [candidate for candidate in rest if candidate not in first]
    leading = (first or rest)[0].family if first or rest else 0
    mine = deque(candidate for candidate in rest if candidate.family == leading)
    others = deque(candidate for candidate in rest if candidate.family != leading)
    order, turns = first, (others, mine) if first else (mine, others)
    while mine or others:
        for queue in turns:
            if queue:
                order.append(queue.popleft())
    return order[:MAX_ATTEMPTS]


def connect_first(
    candidates: Sequence[Candidate], deadline: float, clock: Callable[[], float] = time.monotonic
) -> Tuple[socket.socket, Candidate]:
    """A connection to the first address that answers, and that address. Raises the last OSError, or ClientGone."""
    waiting = deque(candidates)
    pending: Dict[int, Tuple[socket.socket, Candidate]] = {}
    poll = select.poll()
    failure = OSError("it has no address")
    next_at = clock()
    try:
        while waiting or pending:
            now = clock()
            if waiting and (now >= next_at or not pending):
                next_at = now + ATTEMPT_DELAY
                candidate = waiting.popleft()
                try:
                    sock = _begin(candidate)
                except OSError as error:
                    failure, next_at = error, now
                    continue
                pending[sock.fileno()] = sock, candidate
                poll.register(sock.fileno(), select.POLLOUT)
            elif now >= deadline:
                raise socket.timeout("no address answers")
            until = min(deadline, next_at) if waiting else deadline
            for descriptor, _ in wait_ready(poll, max(0.0, until - now) + 0.001):
                poll.unregister(descriptor)
                sock, candidate = pending.pop(descriptor)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    return sock, candidate
                sock.close()
                failure, next_at = OSError(code, os.strerror(code)), clock()  # the next attempt starts at once
        raise failure
    finally:
        for sock, _ in pending.values():
            sock.close()


def _begin(candidate: Candidate) -> socket.socket:
    sock = socket.socket(candidate.family, candidate.kind, candidate.protocol)
    try:
        sock.setblocking(False)
        sock.connect(candidate.address)
    except BlockingIOError:
        pass
    except BaseException:
        sock.close()
        raise
    return sock
