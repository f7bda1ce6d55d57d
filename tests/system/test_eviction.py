"""What clients see of a cache with limits."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Callable, List

import pytest
from support.client import wait_until
from support.origin import Asked, Connection, Files, Origin
from support.running import RunningDduct

from monitoring.metrics import Counter


def test_a_cache_smaller_than_its_objects_serves_all_requests(start_dduct: Callable[..., RunningDduct]) -> None:
    objects = {f"/{number}.deb": os.urandom(300_000) for number in range(12)}
    dduct = start_dduct(max_size=1_000_000)
    origin = dduct.origin(Files(objects))
    for path, body in list(objects.items()) * 2:
        assert dduct.fetch(origin, path).body == body
    for _ in range(200):
        if len(dduct.stored()) <= 4:
            break
        assert dduct.fetch(origin, "/11.deb").body == objects["/11.deb"]
    assert len([name for name in dduct.stored() if name.endswith(".deb")]) <= 4
    dduct.counted(Counter.EVICTED, 8)


def test_nothing_is_stored_where_there_is_no_space(start_dduct: Callable[..., RunningDduct]) -> None:
    dduct = start_dduct(min_free=2**60)
    origin = dduct.origin(Files({"/x.deb": os.urandom(1000)}))
    assert [dduct.fetch(origin, "/x.deb").status for _ in range(2)] == [200, 200]
    assert list(dduct.stored()) == []
    assert origin.count("/x.deb") == 2


def test_a_hit_updates_the_access_time(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/x.deb": b"x"}))
    dduct.fetch(origin, "/x.deb")
    (name,) = list(dduct.stored())
    path = dduct.files / name
    os.utime(path, (1_000_000_000, path.stat().st_mtime))
    dduct.fetch(origin, "/x.deb")
    assert path.stat().st_atime > 1_000_000_000


MEGA = 1_000_000


def chunked(pieces: int) -> Callable[[Asked, Connection], None]:
    """An origin whose /endless.zip has so many megabytes, and does not say so; the rest are small."""

    def handler(asked: Asked, connection: Connection) -> None:
        if not asked.target.startswith("/endless"):
            connection.respond(200, [("Cache-Control", "max-age=600")], b"s" * MEGA)
            return
        connection.head(200, [("Transfer-Encoding", "chunked")])
        for _ in range(pieces):
            connection.send(b"%x\r\n" % MEGA + b"e" * MEGA + b"\r\n")
        connection.send(b"0\r\n\r\n")

    return handler


def small_ones(dduct: RunningDduct, origin: Origin, count: int) -> List[str]:
    """So many objects of 1 MB; their paths."""
    paths = [f"/{number}.deb" for number in range(count)]
    for path in paths:
        assert dduct.fetch(origin, path).status == 200
    return paths


def hits(dduct: RunningDduct, origin: Origin, paths: List[str]) -> int:
    return sum("hit" in str(dduct.fetch(origin, path).get("cache-status")) for path in paths)


def is_quiet(dduct: RunningDduct) -> bool:
    return not dduct.server.cache.store.space.is_growing and not dduct.fills()


def test_an_object_larger_than_the_cache_is_relayed_and_evicts_nothing(
    start_dduct: Callable[..., RunningDduct],
) -> None:
    dduct = start_dduct(max_size=20 * MEGA)
    origin = dduct.origin(Files({**{f"/{n}.deb": b"s" * MEGA for n in range(10)}, "/big.zip": bytes(21 * MEGA)}))
    paths = small_ones(dduct, origin, 10)
    assert dduct.fetch(origin, "/big.zip").body == bytes(21 * MEGA)
    assert hits(dduct, origin, paths) == 10 and dduct.counters.value(Counter.EVICTED) == 0
    assert is_quiet(dduct)


@pytest.mark.parametrize("clients", [1, 4])
def test_a_body_without_an_end_is_removed_and_evicts_nothing(
    start_dduct: Callable[..., RunningDduct], clients: int
) -> None:
    dduct = start_dduct(max_size=20 * MEGA)
    origin = dduct.origin(chunked(40))
    paths = small_ones(dduct, origin, 8)
    with ThreadPoolExecutor(clients) as pool:
        targets = [f"/endless{number}.zip" for number in range(clients)]
        assert [len(answer.body) for answer in pool.map(partial(dduct.fetch, origin), targets)] == [40 * MEGA] * clients
    dduct.counted(Counter.UNKEPT, clients)
    wait_until(lambda: is_quiet(dduct))
    # A tenth may go for the next one, once.
    assert hits(dduct, origin, paths) >= 6 and dduct.counters.value(Counter.EVICTED) <= 2
    assert not [name for name in dduct.stored() if "endless" in name]


def test_a_small_body_of_unknown_length_is_stored_in_a_full_cache(start_dduct: Callable[..., RunningDduct]) -> None:
    dduct = start_dduct(max_size=20 * MEGA)
    origin = dduct.origin(chunked(3))
    small_ones(dduct, origin, 19)
    assert len(dduct.fetch(origin, "/endless.zip").body) == 3 * MEGA
    wait_until(lambda: is_quiet(dduct))
    assert hits(dduct, origin, ["/endless.zip"]) == 1
