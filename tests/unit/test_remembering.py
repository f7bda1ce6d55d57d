"""Caches of functions are bounded in bytes, even if clients choose the values."""

from __future__ import annotations

import gc
import importlib
import tracemalloc
from typing import Any, Iterable, Iterator, List

import pytest
from support.modules import caches

from fetching.naming import Naming, Parameters
from net.addresses import Reach
from net.arrival import Arrival
from protocol.headers import Headers
from protocol.http1 import Authority, ProtocolError, RequestHead
from protocol.remembering import Doorkeeper, Generations, remember_short
from proxy import routing

FEW_MEGABYTES = 16 * 1024 * 1024


SHORT: List[str] = sorted(name for name, one in caches().items() if hasattr(one, "longest"))


def grown_by(call: Any, values: Iterable[bytes]) -> int:
    """Bytes that are held after so many calls."""
    tracemalloc.start()
    try:
        for value in values:
            call(value)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", SHORT)
def test_a_full_cache_takes_few_megabytes(name: str) -> None:
    cache = caches()[name]
    module, _, function = name.rpartition(".")
    call = getattr(importlib.import_module(module), function)

    def values(length: int) -> Iterator[bytes]:
        filling = b"a,b,c,d,e=1," * (length // 12 + 1)
        return ((b"%d," % number + filling)[:length] for number in range(2 * cache.cache_info().maxsize))

    cache.cache_clear()
    assert grown_by(call, values(cache.longest)) < FEW_MEGABYTES
    assert cache.cache_info().currsize == cache.cache_info().maxsize
    cache.cache_clear()
    for length in (cache.longest + 1, 60000):
        assert grown_by(call, (value for value, _ in zip(values(length), range(3)))) < 1024 * 1024
    assert cache.cache_info().currsize == 0


def test_short_values_are_remembered_and_long_ones_are_not() -> None:
    asked: List[bytes] = []

    @remember_short(entries=2, length=3)
    def double(value: bytes) -> bytes:
        asked.append(value)
        return value * 2

    assert [double(value) for value in (b"abc", b"abc", b"abcd", b"abcd")] == [b"abcabc"] * 2 + [b"abcdabcd"] * 2
    assert asked == [b"abc", b"abcd", b"abcd"]


def test_a_request_with_a_long_target_or_host_is_not_remembered() -> None:
    rules = routing.Rules(routing.Hosts([]), routing.Hosts([]), Naming((), Parameters([])))
    where = Arrival(Authority("127.0.0.1", 8000), Reach.EVERYTHING)
    before = routing._decide_get.cache_info().misses
    for target, host in (
        (b"http://a.test/" + b"x" * 600, b"a.test"),
        (b"http://a.test/", b"a" * 250 + b":" + b"0" * 300),
    ):
        try:
            routing.decide(RequestHead(b"GET", target, 1, Headers([(b"Host", host)])), where, rules)
        except ProtocolError:
            pass
    assert routing._decide_get.cache_info().misses == before


def test_values_in_use_outlive_a_pass_over_many_others() -> None:
    memory: Generations[int, str] = Generations(entries=10)
    memory.put(-1, "in use")
    for number in range(100):
        memory.put(number, "once")
        assert memory.get(-1) == "in use"
    assert memory.get(5) is None and memory.get(99) == "once"
    assert len(memory) <= 20


def test_values_that_are_heavy_are_fewer() -> None:
    memory: Generations[int, str] = Generations(entries=100, weight=50)
    for number in range(100):
        memory.put(number, "x", weight=10)
    assert len(memory) <= 10 and memory.weight == 10 * len(memory)
    memory.drop(99)
    assert memory.get(99) is None
    memory.put(1, "too heavy for a generation of its own", weight=1000)
    assert memory.get(1) is not None
    memory.put(2, "x", weight=1)
    memory.put(3, "x", weight=50)
    assert memory.get(1) is None


def test_a_doorkeeper_knows_what_came_before_unless_others_took_its_slot() -> None:
    doorkeeper = Doorkeeper(8)
    assert [doorkeeper.knows(3), doorkeeper.knows(3), doorkeeper.knows(4), doorkeeper.knows(3)] == [
        False,
        True,
        False,
        True,
    ]
    assert not doorkeeper.knows(11)
    assert [doorkeeper.knows(3), doorkeeper.knows(4)] == [False, True]
