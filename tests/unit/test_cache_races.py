"""Many threads and processes claim the same objects at once; a leader is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import List

import pytest
from support.caching import (
    META,
    NAME,
    follow,
    hit_body,
    lead,
    parts,
    publish,
    read_all,
    view,
)
from support.client import wait_until
from support.pairs import TIMEOUT, in_thread

from cache import Cache, Follow, Hit, Lead
from storage.entry import Lost
from storage.store import Key
from transfers.states import FillState

ROOT = Path(__file__).resolve().parents[2]


def test_sixteen_threads_claim_at_once_and_one_of_them_leads(cache: Cache) -> None:
    start = threading.Barrier(16)
    body = os.urandom(5000)
    leaders = []

    def client(key: Key) -> bytes:
        start.wait(20)
        claim = cache.claim(key)
        if isinstance(claim, Hit):
            try:
                return read_all(claim.entry)
            finally:
                claim.entry.close()
        if isinstance(claim, Follow):
            try:
                assert claim.reader.fill.wait_head(20) in (FillState.FILLING, FillState.PUBLISHED)
                return read_all(claim.reader)
            finally:
                claim.reader.close()
        leaders.append(key)
        claim.fill.start(META, len(body))
        for at in range(0, len(body), 1000):
            claim.fill.write(view(body[at : at + 1000]))
        claim.fill.publish()
        claim.fill.close()
        return body

    with ThreadPoolExecutor(16) as pool:
        for iteration in range(100):
            key = Key(f"https/h/{iteration}.deb")
            assert set(pool.map(client, [key] * 16)) == {body}
    assert len(leaders) == 100


_CHILD = """
    import sys, time
    from pathlib import Path
    from cache import Cache
    from storage.store import Key
    from storage.record import Metadata
    cache = Cache(Path(sys.argv[1]))
    claim = cache.claim(Key(sys.argv[2]))
    claim.fill.start(Metadata("https://some.thing/pool/x.deb", (), 1.0), 6)
    claim.fill.write(memoryview(b"abc"))
    print("filling", flush=True)
    sys.stdin.read()
"""


def test_a_killed_leader_leaves_nothing_that_is_served_as_an_object(tmp_path: Path) -> None:
    cache = Cache(tmp_path, timeout=lambda: 20.0)
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_CHILD), str(tmp_path), NAME],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"filling\n"
        reader = follow(cache)
        assert reader.read_at(view(bytearray(10)), 0) == 3
        child.send_signal(signal.SIGKILL)
        child.wait(20)
        with pytest.raises(Lost, match="leader is gone"):
            reader.read_at(view(bytearray(10)), 3)
        reader.close()
        assert not (tmp_path / NAME).exists()
        publish(cache, b"abcdef")
        assert hit_body(cache) == b"abcdef"
        assert parts(cache) == []
    finally:
        child.kill()
        child.communicate(timeout=20)


def test_caches_racing_on_one_directory_publish_each_object_once(pair: List[Cache]) -> None:
    start = threading.Barrier(8)
    body = os.urandom(3000)
    leaders: List[Key] = []

    def client(cache: Cache, key: Key) -> bytes:
        start.wait(20)
        while True:
            claim = cache.claim(key)
            if isinstance(claim, Lead):
                leaders.append(key)
                claim.fill.start(META, len(body))
                claim.fill.write(view(body))
                claim.fill.publish()
                claim.fill.close()
                return body
            source = claim.entry if isinstance(claim, Hit) else claim.reader
            try:
                if isinstance(claim, Follow) and claim.reader.fill.wait_head(20) is FillState.GONE:
                    continue
                return read_all(source)
            finally:
                source.close()

    with ThreadPoolExecutor(8) as pool:
        for iteration in range(100):
            key = Key(f"https/h/{iteration}.deb")
            assert set(pool.map(client, pair * 4, [key] * 8)) == {body}
    assert len(leaders) == 100


def test_readers_that_become_many_while_they_wait_get_every_piece(cache: Cache) -> None:
    """Readers that were few enough to be woken learn that they no longer are."""
    fill = lead(cache)
    fill.start(META, 6)
    readers = [follow(cache) for _ in range(16)]
    spaces = [memoryview(bytearray(3)) for _ in range(17)]

    def waiting() -> int:
        with fill._changed:
            return len(fill._changed._waiters)  # type: ignore[attr-defined]

    first = [in_thread(reader.read_at, space, 0) for reader, space in zip(readers, spaces)]
    wait_until(lambda: waiting() == 16)
    readers.append(follow(cache))
    last = in_thread(readers[16].read_at, spaces[16], 0)
    fill.write(view(b"abc"))
    assert [future.result(TIMEOUT) for future in [*first, last]] == [3] * 17
    assert all(bytes(space) == b"abc" for space in spaces)
    rest = [in_thread(reader.read_at, space, 3) for reader, space in zip(readers, spaces)]
    fill.write(view(b"def"))
    assert fill.publish()
    assert [future.result(TIMEOUT) for future in rest] == [3] * 17
    for reader in readers:
        reader.close()
    fill.close()
