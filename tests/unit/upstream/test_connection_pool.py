"""Idle connections to origins."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Iterator, List

import pytest

from upstream.connection_pool import IDLE_TIMEOUT, MAX_IDLE, MAX_IDLE_PER_ORIGIN, ConnectionPool


class Kept:
    """One end of a pair of sockets."""

    def __init__(self, stack: ExitStack, origin: str) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.sock, self.far = (stack.enter_context(sock) for sock in socket.socketpair())

    def fileno(self) -> int:
        return self.sock.fileno()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def now() -> List[float]:
    return [0.0]


@pytest.fixture
def pool(now: List[float]) -> ConnectionPool[Kept]:
    return ConnectionPool(lambda: now[0])


def test_the_youngest_connection_is_taken_first(pool: ConnectionPool[Kept], stack: ExitStack) -> None:
    first, second, other = (Kept(stack, name) for name in "aab")
    assert [pool.put(connection) for connection in (first, second, other)] == [[], [], []]
    assert [pool.take("a"), pool.take("a"), pool.take("a")] == [second, first, None]
    assert pool.take("b") is other


def test_giving_a_connection_back_returns_those_that_are_too_old(
    pool: ConnectionPool[Kept], stack: ExitStack, now: List[float]
) -> None:
    old, young = Kept(stack, "a"), Kept(stack, "b")
    pool.put(old)
    now[0] = IDLE_TIMEOUT
    assert pool.put(young) == []
    now[0] += 1
    assert pool.put(Kept(stack, "b")) == [old]
    assert pool.take("a") is None and pool.take("b") is not None


def test_idle_connections_are_limited_per_origin_and_in_all(pool: ConnectionPool[Kept], stack: ExitStack) -> None:
    for _ in range(MAX_IDLE_PER_ORIGIN):
        assert pool.put(Kept(stack, "a")) == []
    surplus = Kept(stack, "a")
    assert pool.put(surplus) == [surplus]
    with ExitStack() as more:
        pairs = [Kept(more, str(number)) for number in range(16)]
        evicted: List[Kept] = []
        for number in range(MAX_IDLE):
            connection = Kept.__new__(Kept)
            connection.origin, connection.sock = f"b{number}", pairs[number % 16].sock
            evicted += pool.put(connection)
        assert len(evicted) == MAX_IDLE_PER_ORIGIN and {connection.origin for connection in evicted} == {"a"}


def test_the_cost_does_not_grow_with_the_number_of_origins(pool: ConnectionPool[Kept], stack: ExitStack) -> None:
    """Counted in the origins that are looked at, for time is nothing to rely on."""
    looked_at = 0

    class Name(str):
        def __hash__(self) -> int:
            nonlocal looked_at
            looked_at += 1
            return super().__hash__()

    for number in range(200):
        pool.put(Kept(stack, Name(number)))
    connection = Kept(stack, Name("a"))
    looked_at = 0
    pool.put(connection)
    pool.take(connection.origin)
    assert looked_at < 10


def test_a_sweep_returns_closed_and_old_connections(
    pool: ConnectionPool[Kept], stack: ExitStack, now: List[float]
) -> None:
    old, closed, good, talking = (Kept(stack, name) for name in "aabc")
    pool.put(old)
    now[0] = 25.0
    for connection in (closed, good, talking):
        pool.put(connection)
    closed.far.close()
    talking.far.send(b"!")
    now[0] = 26.0
    assert set(pool.sweep()) == {closed, talking}
    now[0] = 30.5
    assert pool.sweep() == []  # so soon nothing is looked at
    now[0] = 31.5
    assert pool.sweep() == [old]
    assert pool.take("a") is None and pool.take("b") is good and pool.take("c") is None


def test_a_retired_pool_keeps_no_connection(pool: ConnectionPool[Kept], stack: ExitStack) -> None:
    one, two = Kept(stack, "a"), Kept(stack, "a")
    pool.put(one)
    assert pool.retire() == [one]
    assert pool.put(two) == [two] and pool.take("a") is None
