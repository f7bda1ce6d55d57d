"""A fill and its end, on a file system that fails."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, List, Optional

import pytest
from support.pairs import TIMEOUT, in_thread

from cache import Cache, Follow, Lead
from storage.record import Digest, Metadata, Unstorable
from storage.space import Limits, SpaceLimits
from storage.store import Key
from transfers.fill import Fill
from transfers.follow import FillReader
from transfers.states import DigestMismatch, FillState

META = Metadata("https://some.thing/x.deb", (), 1000.0)


def publishes(fill: Fill) -> None:
    assert fill.publish()


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (publishes, FillState.PUBLISHED),
        (lambda fill: fill.fail("broken off"), FillState.FAILED),
        (lambda fill: fill.hand_over(), FillState.GONE),
    ],
    ids=["published", "failed", "handed over"],
)
def test_a_fill_ends_although_its_file_system_cannot_unlock_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[Fill], None], state: FillState
) -> None:
    """As a network file system whose server is away; else its readers would wait until they time out."""
    claim = Cache(tmp_path / "files").claim(Key("https/some.thing/x.deb"))
    assert isinstance(claim, Lead)
    fill, real = claim.fill, fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if operation & fcntl.LOCK_UN:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    fill.start(META, 3, resumable=True)
    fill.write(memoryview(b"abc"))
    end(fill)
    assert fill.state is state
    fill.close()


# --- objects that are there at once ---------------------------------------------------------------

KEY = Key("https/some.thing/pool/x.deb")
BODY = b"all of it"


def led(cache: Cache, key: Key = KEY) -> Fill:
    claim = cache.claim(key)
    assert isinstance(claim, Lead)
    return claim.fill


def read_whole(reader: FillReader) -> bytes:
    view = memoryview(bytearray(100))
    count = reader.read_at(view, 0)
    assert not reader.read_at(view[count:], count)
    return bytes(view[:count])


def stored(cache: Cache, key: Key = KEY) -> Optional[bytes]:
    hit = cache.lookup(key)
    if hit is None:
        return None
    with closing(hit.entry) as entry:
        view = memoryview(bytearray(100))
        assert hit.metadata == META and entry.record.sha256 == sha256(BODY).hexdigest() and entry.trusted
        return bytes(view[: entry.read_at(view, 0)])


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "files")


def test_a_whole_object_is_published_with_its_record(cache: Cache, tmp_path: Path) -> None:
    with closing(led(cache)) as fill:
        assert fill.store_whole(META, BODY)
        assert fill.state is FillState.PUBLISHED and (fill.size, fill.length) == (len(BODY), len(BODY))
        assert cache.store.space.grown > len(BODY) and not cache.store.space.is_growing  # its folders count, too
        assert stored(cache) == BODY
        fill.make_durable()
    hit = cache.lookup(KEY)
    assert hit is not None and hit.entry.record.durable
    hit.entry.close()
    assert [path.name for path in tmp_path.rglob("*.dduct")] == []


def test_an_empty_object_can_be_stored_whole(cache: Cache) -> None:
    with closing(led(cache)) as fill:
        assert fill.store_whole(META, b"") and fill.state is FillState.PUBLISHED
    hit = cache.lookup(KEY)
    assert hit is not None and hit.entry.length == 0
    hit.entry.close()


def test_followers_of_a_whole_object_read_it_to_its_end(cache: Cache) -> None:
    """In this process they hear of it; in others the file shows it."""
    with closing(led(cache)) as fill:
        claim = cache.claim(KEY)
        other = Cache(cache.store.root).claim(KEY)  # as another process sees it
        assert isinstance(claim, Follow) and isinstance(other, Follow)
        waiting = in_thread(lambda: claim.reader.fill.wait_head(TIMEOUT))
        assert fill.store_whole(META, BODY)
        assert waiting.result(TIMEOUT) in (FillState.FILLING, FillState.PUBLISHED)  # it may see both
        for reader in (claim.reader, other.reader):
            with closing(reader):
                assert reader.fill.wait_head(TIMEOUT) is not FillState.ASKING
                assert read_whole(reader) == BODY and reader.fill.metadata == META
                assert reader.fill.state is FillState.PUBLISHED


@pytest.mark.parametrize("call", ["pwrite", "setxattr", "replace"])
def test_where_the_disk_refuses_a_whole_object_followers_get_it_from_memory(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with closing(led(cache)) as fill:
        claim = cache.claim(KEY)
        assert isinstance(claim, Follow)
        with closing(claim.reader) as reader, monkeypatch.context() as patched:
            patched.setattr(os, call, refuse)
            assert not fill.store_whole(META, BODY)
            assert fill.state is FillState.UNKEPT and read_whole(reader) == BODY
        assert "space" in str(fill.cause)
    assert stored(cache) is None and not cache.store.space.is_growing
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []


def test_a_whole_object_with_another_digest_is_not_written(cache: Cache) -> None:
    key = Key("https/some.thing/blob", Digest("sha256", "0" * 64))
    with closing(led(cache, key)) as fill:
        with pytest.raises(DigestMismatch):
            fill.store_whole(META, BODY)
        assert not os.fstat(fill.file.fd).st_size
        fill.fail("its digest differs")
    assert cache.lookup(key) is None


def test_a_whole_object_is_stored_by_its_digest_and_its_alias(cache: Cache) -> None:
    key = Key("https/some.thing/blob", Digest("sha256", sha256(BODY).hexdigest()))
    with closing(led(cache, key)) as fill:
        assert fill.store_whole(META, BODY)
    assert stored(cache, key) == BODY


def test_a_whole_object_that_is_too_large_can_be_declined(tmp_path: Path) -> None:
    space = SpaceLimits(tmp_path, lambda: Limits(max_size=len(BODY) - 1))
    cache = Cache(tmp_path / "files", space=space)
    with closing(led(cache)) as fill:
        with pytest.raises(Unstorable, match="max_size"):
            fill.store_whole(META, BODY)
        fill.decline()
    assert stored(cache) is None


def test_a_whole_object_takes_a_fresh_file_where_a_partial_download_lies(cache: Cache) -> None:
    with closing(led(cache)) as fill:
        fill.start(META, 100, resumable=True)
        fill.write(memoryview(b"old"))
        assert fill.hand_over()
    with closing(led(cache)) as fill:
        assert fill.partial_download is not None
        old = os.fstat(fill.file.fd).st_ino
        assert fill.store_whole(META, BODY) and os.fstat(fill.file.fd).st_ino != old
    assert stored(cache) == BODY


def test_a_whole_object_whose_file_was_taken_away_is_not_published(cache: Cache, tmp_path: Path) -> None:
    """The cache has been cleared and begun again: the growing file of that name is another process's."""
    path = tmp_path / "files" / (KEY.name + ".dduct")
    with closing(led(cache)) as fill:
        path.unlink()
        path.write_bytes(b"of another process")
        assert not fill.store_whole(META, BODY)
    assert path.read_bytes() == b"of another process" and stored(cache) is None


_CALLS = (
    *(
        "access",
        "close",
        "fdatasync",
        "fstat",
        "fsync",
        "ftruncate",
        "getxattr",
        "link",
        "lstat",
        "mkdir",
        "open",
        "pread",
    ),
    *("preadv", "pwrite", "pwritev", "read", "rename", "replace", "rmdir", "scandir", "setxattr", "stat", "statvfs"),
    *("unlink", "utime", "write"),
)


def test_a_whole_object_takes_few_system_calls(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small miss is mostly that. What raises the number has to be worth it."""
    calls: List[str] = []

    def count(module: ModuleType, name: str) -> None:
        real = getattr(module, name)

        def counting(*arguments: Any, **more: Any) -> Any:
            calls.append(name)
            return real(*arguments, **more)

        monkeypatch.setattr(module, name, counting)

    with closing(led(cache)) as fill:
        fill.store_whole(META, BODY)
    for name in _CALLS:
        count(os, name)
    for name in ("fcntl", "flock"):
        count(fcntl, name)
    fill = led(cache, Key("https/some.thing/pool/y.deb"))
    claimed = len(calls)
    fill.store_whole(META, BODY)
    fill.close()
    assert (claimed, len(calls) - claimed) == (10, 8), calls
