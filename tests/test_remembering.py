"""What is remembered is bounded in bytes, whoever chooses the values."""

from __future__ import annotations

import functools
import gc
import importlib
import tracemalloc
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List

import pytest
from support.household import House

import policy
from addresses import Reach
from http1 import Authority, Headers, ProtocolError, RequestHead
from remembering import remember_short

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))
FEW_MEGABYTES = 16 * 1024 * 1024

# Caches whose values are short by themselves, or are not chosen by others.
BOUNDED = {
    "addresses.is_loopback": "addresses as sockets write them, and host names of 254 characters at most",
    "addresses.Networks._look_up": "the same",
    "connections._arrival": "our own addresses",
    "dduct._moment": "two seconds",
    "dduct._origin": "our own levels and loggers",
    "http1.reason_phrase": "numbers of three digits",
    "inquiry.stored_fields": "a record of at most 3 KiB",
    "openssl": "nothing that others choose",
    "policy._decide_get": "`decide` asks for short ones only",
    "opening._named": "host names of 253 characters at most",
    "opening.established": "one value",
    "patterns.too_slow": "the operator's own patterns",
    "record.Record.decode": "an attribute of at most 3 KiB",
    "setup_page": "our own script",
    "store.Store._places": "`places` asks for short ones only",
}


def caches() -> Dict[str, Any]:
    for module in MODULES:
        importlib.import_module(module)
    kind = type(functools.lru_cache(1)(len))
    found = [one for one in gc.get_objects() if isinstance(one, kind) and one.__wrapped__.__module__ in MODULES]
    return {f"{one.__wrapped__.__module__}.{one.__wrapped__.__qualname__}": one for one in found}


SHORT: List[str] = sorted(name for name, one in caches().items() if hasattr(one, "longest"))


def test_every_cache_remembers_short_values_or_says_why_not(house: House) -> None:
    unknown = [
        name
        for name, one in caches().items()
        if not hasattr(one, "longest") and name not in BOUNDED and name.partition(".")[0] not in BOUNDED
    ]
    assert unknown == []
    assert len(SHORT) >= 3


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
def test_ten_thousand_values_take_few_megabytes(name: str) -> None:
    cache = caches()[name]
    module, _, function = name.partition(".")
    call = getattr(importlib.import_module(module), function)

    def values(length: int) -> Iterator[bytes]:
        filling = b"a,b,c,d,e=1," * (length // 12 + 1)
        return ((b"%d," % number + filling)[:length] for number in range(10000))

    cache.cache_clear()
    assert grown_by(call, values(cache.longest)) < FEW_MEGABYTES
    assert cache.cache_info().currsize == cache.cache_info().maxsize
    cache.cache_clear()
    for length in (cache.longest + 1, 60000):
        assert grown_by(call, (value for value, _ in zip(values(length), range(10)))) < 1024 * 1024
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
    rules = policy.Rules(policy.Hosts([]), policy.Hosts([]), policy.Naming((), policy.Parameters([])))
    where = policy.Where(Authority("127.0.0.1", 8000), Reach.EVERYTHING)
    before = policy._decide_get.cache_info().misses
    for target, host in (
        (b"http://a.test/" + b"x" * 600, b"a.test"),
        (b"http://a.test/", b"a" * 250 + b":" + b"0" * 300),
    ):
        try:
            policy.decide(RequestHead(b"GET", target, 1, Headers([(b"Host", host)])), where, rules)
        except ProtocolError:
            pass
    assert policy._decide_get.cache_info().misses == before
