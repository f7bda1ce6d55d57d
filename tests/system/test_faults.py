"""A disk that is full, read-only, broken or gone: downloads go on, and caching resumes by itself."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import pytest
from support.client import wait_until
from support.origin import Asked, Connection, Files, Gate, Origin
from support.running import HOST, RunningDduct

from cache import Cache, Lead
from monitoring.metrics import Counter
from net.listener import ThreadPool
from storage.record import Metadata, Record
from storage.store import Key

BODY = os.urandom(2_000_000)


@pytest.mark.parametrize("space", [0, 1_000_000, 1_999_999])
def test_a_disk_that_fills_up_disturbs_no_client(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch, space: int
) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}))
    real = os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if offset >= space:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[: space - offset], offset)

    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(os, "pwrite", pwrite)
        answers = [pool.submit(dduct.fetch, origin, "/x.deb") for _ in range(4)]
        assert [answer.result(20).body for answer in answers] == [BODY] * 4
        assert dduct.stored() == []
        assert dduct.counted(Counter.UNKEPT) >= 1
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert len(dduct.stored()) == 1


def test_a_request_is_relayed_if_no_thread_can_start_for_its_fill(
    start_dduct: Callable[..., RunningDduct], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, crowded = ThreadPool.spawn, [True]

    def spawn(threads: ThreadPool, name: str, work: Callable[[], None]) -> None:
        if name == "fill" and crowded[0]:
            raise RuntimeError("can't start new thread")
        real(threads, name, work)

    monkeypatch.setattr(ThreadPool, "spawn", spawn)
    dduct = start_dduct()
    origin = dduct.origin(Files({"/x.deb": BODY}))
    for _ in range(2):
        answer = dduct.fetch(origin, "/x.deb")
        assert (answer.status, answer.body, answer.complete) == (200, BODY, True)
    assert dduct.stored() == [] and dduct.fills() == []
    crowded[0] = False
    assert dduct.fetch(origin, "/x.deb").body == BODY
    dduct.counted(Counter.PUBLISHED)


@pytest.mark.parametrize("what", ["setxattr", "replace", "open"])
def test_a_failing_disk_operation_disturbs_no_client(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}))
    real = getattr(os, what)

    def fail(path: Any, *rest: Any, **more: Any) -> Any:
        inside = str(dduct.files) in (os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path))
        if inside and (what != "open" or rest[0] & os.O_CREAT):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, what, fail)
        assert [dduct.fetch(origin, "/x.deb").body for _ in range(2)] == [BODY] * 2
        assert dduct.stored() == []
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert len(dduct.stored()) == 1


def test_a_cache_directory_that_vanishes_is_created_again(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY, "/y.deb": BODY}))
    dduct.fetch(origin, "/x.deb")
    shutil.rmtree(dduct.files)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert dduct.fetch(origin, "/y.deb").body == BODY
    assert len(dduct.stored()) == 2


def test_requests_are_relayed_if_a_file_replaces_the_directory(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}))
    shutil.rmtree(dduct.files)
    dduct.files.write_text("in the way")
    assert dduct.fetch(origin, "/x.deb").body == BODY
    dduct.files.unlink()
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert len(dduct.stored()) == 1


def test_no_body_is_wrong_while_a_fifth_of_all_disk_operations_fail(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client gets a wrong or a short body, whatever fails."""
    bodies = {f"/{number}.deb": os.urandom(random.Random(number).randrange(1, 400_000)) for number in range(40)}
    origin = dduct.origin(Files(bodies))
    dice = random.Random(1)

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def fail(*arguments: Any, **more: Any) -> Any:
            if dice.random() < 0.2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments, **more)

        return fail

    with monkeypatch.context() as patch, ThreadPoolExecutor(6) as pool:
        for name in ("pwrite", "preadv", "setxattr", "getxattr", "fsync", "replace"):
            patch.setattr(os, name, failing(name))
        for _ in range(3):
            answers = {path: pool.submit(dduct.fetch, origin, path) for path in bodies}
            for path, answer in answers.items():
                assert answer.result(20).body == bodies[path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    place = tmp_path / "dduct-0/files"
    place.mkdir(parents=True)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "x", place]).returncode:
        pytest.skip("needs root, to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_file_system_disturbs_no_client(small_disk: Path, start_dduct: Callable[..., RunningDduct]) -> None:
    dduct = start_dduct()
    objects = {f"/{number}.deb": os.urandom(1_500_000) for number in range(6)}
    origin = dduct.origin(Files(objects))
    with ThreadPoolExecutor(6) as pool:
        for _ in range(2):
            answers = {path: pool.submit(dduct.fetch, origin, path) for path in objects}
            assert all(answers[path].result(20).body == body for path, body in objects.items())
    dduct.wait_until_durable()
    assert len(dduct.stored()) <= 2  # six that share the room may all be too large for it
    for path in small_disk.rglob("*.deb"):
        path.unlink()
    assert dduct.fetch(origin, "/5.deb").body == objects["/5.deb"]
    assert [name.rpartition("/")[2] for name in dduct.stored()] == ["5.deb"]


def test_a_download_larger_than_the_disk_is_streamed(dduct: RunningDduct) -> None:
    """As large as memory would not hold, were it kept there."""

    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", str(60_000_000))])
        for _ in range(600):
            connection.send_body(bytes(100_000))

    origin = dduct.origin(handler)
    real = os.pwrite
    with pytest.MonkeyPatch.context() as patch:

        def pwrite(fd: int, data: Any, offset: int) -> int:
            if offset > 1_000_000:
                raise OSError(errno.ENOSPC, "full")
            return real(fd, data, offset)

        patch.setattr(os, "pwrite", pwrite)
        answer = dduct.fetch(origin, "/x.deb")
    assert answer.complete and len(answer.body) == 60_000_000


class Breaking:
    """An origin that breaks off at each of the given offsets, once, and knows ranges."""

    def __init__(self, *cuts: int, etag: str = '"1"') -> None:
        self.cuts = list(cuts)
        self.etag = etag
        self.end: Callable[[Connection], None] = Connection.fin
        self.ranges: List[str] = []
        self.sent = 0
        self.gate: Optional[Gate] = None

    def __call__(self, asked: Asked, connection: Connection) -> None:
        wanted = asked.get("range")
        start = 0
        fields = [("ETag", self.etag)]
        if wanted is not None and asked.get("if-range") == self.etag:
            self.ranges.append(wanted)
            start = int(wanted[len("bytes=") : -1])
            fields.append(("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"))
        connection.head(206 if start else 200, [*fields, ("Content-Length", str(len(BODY) - start))])
        end = self.cuts.pop(0) if self.cuts else len(BODY)
        self.sent += end - start
        connection.send_body(BODY[start:end])
        if end < len(BODY):
            if self.gate is not None:
                self.gate.wait()
            self.end(connection)


@pytest.mark.parametrize("end", [Connection.fin, Connection.close_notify, Connection.reset])
def test_a_transfer_that_breaks_off_is_resumed_unnoticed_by_clients(
    dduct: RunningDduct, end: Callable[[Connection], None]
) -> None:
    breaking = Breaking(500_000, 1_000_000, 1_500_000)
    breaking.end = end
    origin = dduct.origin(breaking)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(dduct.fetch, origin, "/x.deb") for _ in range(3)]
        assert all(answer.result(20).body == BODY for answer in answers)
    assert dduct.counted(Counter.RESUMED, 3) == len(breaking.ranges) == 3
    assert len(dduct.stored()) == 1
    if end is not Connection.reset:  # which destroys what is under way
        assert breaking.sent == len(BODY)


@pytest.mark.parametrize("etag", ['W/"1"', ""])
def test_without_a_strong_validator_a_transfer_is_not_resumed(dduct: RunningDduct, etag: str) -> None:
    breaking = Breaking(500_000, etag=etag)
    origin = dduct.origin(breaking)
    answer = dduct.fetch(origin, "/x.deb")
    assert not answer.whole or answer.body == BODY  # a client that has no bytes yet gets the new object
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert breaking.ranges == []


def test_a_transfer_of_a_changed_object_is_not_resumed(dduct: RunningDduct) -> None:
    breaking = Breaking(500_000)
    breaking.gate = Gate()
    origin = dduct.origin(breaking)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(dduct.fetch, origin, "/x.deb")
        breaking.gate.reached()
        breaking.etag = '"2"'
        breaking.gate.open()
        assert not answer.result(20).whole or len(origin.requests) == 3
    assert breaking.ranges == []
    assert dduct.fetch(origin, "/x.deb").body == BODY


# --- dead leaders, fills without readers, damaged objects --------------------------------------------


def name_of(origin: Origin, path: str = "/x.deb") -> str:
    return f"https/{HOST}:{origin.port}{path}"


class DeadLeader:
    """Another process that fetches an object, until it dies."""

    def __init__(self, dduct: RunningDduct, origin: Origin, size: int, etag: str = '"1"') -> None:
        claim = Cache(dduct.files).claim(Key(name_of(origin)))
        assert isinstance(claim, Lead)
        self._fill = claim.fill
        fields = (("ETag", etag), ("Content-Type", "text/leader"))
        metadata = Metadata(f"https://{HOST}:{origin.port}/x.deb", fields, time.time())
        self._fill.start(metadata, len(BODY), resumable=True)
        self._fill.write(memoryview(BODY)[:size])

    def die(self) -> None:
        """Its lock and its memory go with it, its file stays."""
        os.close(self._fill.file.fd)


def test_a_partial_download_is_resumed_from_its_end(dduct: RunningDduct) -> None:
    breaking = Breaking()
    origin = dduct.origin(breaking)
    DeadLeader(dduct, origin, 1_500_000).die()
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert breaking.ranges == ["bytes=1500000-"] and breaking.sent == 500_000
    assert dduct.counted(Counter.PUBLISHED) == 1
    answer = dduct.fetch(origin, "/x.deb")
    assert answer.body == BODY and answer.get("content-type") == "text/leader"
    assert len(origin.requests) == 1


def test_a_partial_download_of_a_changed_object_is_replaced(dduct: RunningDduct) -> None:
    breaking = Breaking(etag='"2"')
    origin = dduct.origin(breaking)
    DeadLeader(dduct, origin, 1_500_000).die()
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert breaking.ranges == [] and breaking.sent == len(BODY)
    assert dduct.fetch(origin, "/x.deb").get("etag") == '"2"'
    assert len(dduct.stored()) == 1


@pytest.mark.parametrize(
    "content_range", ["bytes 1500000-1999999/2000000", "bytes 0-9/2000000", "bytes 5-1999999/2000000"]
)
@pytest.mark.parametrize("etag", ['"1"', '"2"'])
def test_an_unrequested_206_does_not_continue_a_partial_download(
    dduct: RunningDduct, content_range: str, etag: str
) -> None:
    """The origin answers every request with the same part; the partial download is of another object."""
    part = os.urandom(500_000)

    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(206, [("ETag", etag), ("Content-Range", content_range)], part)

    origin = dduct.origin(handler)
    claim = Cache(dduct.files).claim(Key(name_of(origin)))
    assert isinstance(claim, Lead)
    metadata = Metadata("https://elsewhere.test/x.deb", (("ETag", '"1"'),), time.time())
    claim.fill.start(metadata, len(BODY), resumable=True)
    claim.fill.write(memoryview(BODY)[:1_500_000])
    os.close(claim.fill.file.fd)
    answer = dduct.fetch(origin, "/x.deb")
    assert (answer.status, answer.body) == (206, part)  # it is this client's to make sense of
    assert dduct.stored() == []


def test_a_client_that_wants_the_whole_object_does_not_get_only_the_rest(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of a partial download arrives, and cannot be stored after all."""
    breaking = Breaking()
    origin = dduct.origin(breaking)
    DeadLeader(dduct, origin, 1_500_000).die()

    real = os.setxattr

    def fail(fd: int, name: str, data: bytes) -> None:
        if b'"asking":true' not in data:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd, name, data)

    monkeypatch.setattr(os, "setxattr", fail)
    answer = dduct.fetch(origin, "/x.deb")
    assert (answer.status, answer.body) == (200, BODY)
    assert breaking.ranges == ["bytes=1500000-"] and len(origin.requests) == 2


@pytest.mark.parametrize("size", [0, 1_000_000])
def test_followers_of_a_dead_leader_take_over_unnoticed_by_clients(dduct: RunningDduct, size: int) -> None:
    breaking = Breaking()
    origin = dduct.origin(breaking)
    leader = DeadLeader(dduct, origin, size)
    with ThreadPoolExecutor(4) as pool:
        with dduct.intercepted(origin) as client:
            client.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
            if size:
                head = client.read_until(b"\r\n\r\n")
                assert b"text/leader" in head
            answers = [pool.submit(dduct.fetch, origin, "/x.deb") for _ in range(3)]
            leader.die()
            if size:
                assert client._exactly(len(BODY)) == BODY
            else:
                assert client.read().body == BODY
        assert all(answer.result(20).body == BODY for answer in answers)
    assert breaking.sent == len(BODY) - size and len(dduct.stored()) == 1


def test_no_client_gets_bytes_of_two_versions(dduct: RunningDduct) -> None:
    """The leader dies, and the object has changed: a client with bytes of the old one gets none of the new one."""
    breaking = Breaking(etag='"2"')
    origin = dduct.origin(breaking)
    leader = DeadLeader(dduct, origin, 1_000_000)
    with dduct.intercepted(origin) as client:
        client.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        client.read_until(b"\r\n\r\n")
        leader.die()
        assert client._exactly(len(BODY)) == BODY[:1_000_000]
    answer = dduct.fetch(origin, "/x.deb")
    assert answer.body == BODY and answer.get("etag") == '"2"'


@pytest.mark.one_process
def test_a_client_without_bytes_starts_again_when_the_object_changes(dduct: RunningDduct) -> None:
    """A reader of the end of an object that changes while it is fetched gets the end of the new one."""
    breaking = Breaking(500_000)
    breaking.gate = Gate()
    origin = dduct.origin(breaking)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(dduct.fetch, origin, "/x.deb")
        breaking.gate.reached()
        last = pool.submit(dduct.fetch, origin, "/x.deb", "Range: bytes=1900000-")
        wait_until(lambda: any(fill.snapshot().readers == 2 for fill in dduct.fills()))
        breaking.etag = '"2"'
        breaking.gate.open()
        first.result(20)
        answer = last.result(20)
        assert (answer.status, answer.body, answer.get("etag")) == (206, BODY[1_900_000:], '"2"')


def test_a_fill_without_readers_stops_and_is_resumed_later(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fetching.filler._WORTH_WAITING", -1.0)
    breaking = Breaking()
    part = 600_000

    def slow(asked: Asked, connection: Connection) -> None:
        if asked.get("range") is not None:
            breaking(asked, connection)
            return
        connection.head(200, [("ETag", '"1"'), ("Content-Length", str(len(BODY)))])
        connection.send_body(BODY[:part])
        with pytest.raises(OSError):
            for start in range(part, 900_000, 1000):  # until it is hung up on
                connection.send_body(BODY[start : start + 1000])
                time.sleep(0.01)

    origin = dduct.origin(slow)
    with dduct.intercepted(origin) as client:
        client.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        client.read_until(b"\r\n\r\n")
        assert client._exactly(part) == BODY[:part]
    assert dduct.counted(Counter.DROPPED) == 1
    assert dduct.stored() == [name_of(origin) + ".dduct"]
    assert dduct.fetch(origin, "/x.deb").body == BODY
    (wanted,) = breaking.ranges
    assert part <= int(wanted[len("bytes=") : -1]) < 900_000
    assert dduct.counted(Counter.PUBLISHED) == 1 and dduct.stored() == [name_of(origin)]


def test_a_fill_without_readers_past_its_half_is_finished(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetching.filler._WORTH_WAITING", -1.0)
    breaking = Breaking(1_100_000)
    breaking.gate = Gate()

    def end(connection: Connection) -> None:
        for start in range(1_100_000, 1_900_000, 500):  # dduct notices by sending that no client reads
            if any(fill.unread for fill in dduct.fills()):
                break
            connection.send_body(BODY[start : start + 500])
            time.sleep(0.01)
        connection.fin()

    breaking.end = end
    origin = dduct.origin(breaking)
    with dduct.intercepted(origin) as client:
        client.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        client.read_until(b"\r\n\r\n")
        client._exactly(1_000_000)
        breaking.gate.reached()
    breaking.gate.open()
    assert dduct.counted(Counter.PUBLISHED) == 1
    assert dduct.fetch(origin, "/x.deb").body == BODY and len(origin.requests) == 2


def after_a_power_cut(dduct: RunningDduct, change: Callable[[bytearray], None]) -> str:
    """Make the one stored object one that an earlier boot has published, and perhaps not brought to the disk."""
    (name,) = dduct.stored()
    path = dduct.files / name
    body = bytearray(path.read_bytes())
    change(body)
    path.write_bytes(bytes(body))
    record = Record.decode(os.getxattr(path, "user.dduct"))
    os.setxattr(path, "user.dduct", replace(record, boot="earlier", durable=False).encode())
    return name


def garbage(body: bytearray) -> None:
    body[1_000_000:1_004_096] = os.urandom(4096)


def zeroes(body: bytearray) -> None:
    body[-4096:] = bytes(4096)


def truncation(body: bytearray) -> None:
    del body[1_500_000:]


DAMAGES = [garbage, zeroes, truncation]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_object_damaged_by_a_power_cut_is_never_served_complete(
    dduct: RunningDduct, damage: Callable[[bytearray], None]
) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}))
    dduct.fetch(origin, "/x.deb")
    dduct.counted(Counter.PUBLISHED)
    wait_until(lambda: b'"durable":true' in os.getxattr(dduct.files / name_of(origin), "user.dduct"))
    after_a_power_cut(dduct, damage)
    answer = dduct.fetch(origin, "/x.deb")
    if answer.complete:  # what was found wrong in time
        assert answer.body == BODY
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert origin.count("/x.deb") == 2


@pytest.mark.parametrize("wanted", ["bytes=0-9", "bytes=5-9", "bytes=1999990-", "bytes=0-1,1000000-1000009"])
def test_a_range_of_a_damaged_object_has_the_right_bytes(dduct: RunningDduct, wanted: str) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}))
    dduct.fetch(origin, "/x.deb")
    right = dduct.fetch(origin, "/x.deb", f"Range: {wanted}")
    wait_until(lambda: b'"durable":true' in os.getxattr(dduct.files / name_of(origin), "user.dduct"))
    after_a_power_cut(dduct, garbage)
    answer = dduct.fetch(origin, "/x.deb", f"Range: {wanted}")
    boundary, other = (one.body.partition(b"\r\n")[0] for one in (right, answer))
    assert answer.status == 206 and answer.body.replace(other, boundary) == right.body
    assert origin.count("/x.deb") == 2


def test_a_304_does_not_confirm_bytes_that_a_power_cut_may_have_damaged(dduct: RunningDduct) -> None:
    """The origin knows what it has, and not what is on our disk."""
    origin = dduct.origin(Files({"/x.deb": BODY}))
    dduct.fetch(origin, "/x.deb")
    dduct.wait_until_durable()
    name = after_a_power_cut(dduct, zeroes)
    etag = f'If-None-Match: "{len(BODY)}"'
    assert dduct.fetch(origin, "/x.deb", "Cache-Control: max-age=0", etag).status == 304
    assert not Record.decode(os.getxattr(dduct.files / name, "user.dduct")).durable
    answer = dduct.fetch(origin, "/x.deb")
    assert answer.body == BODY or not answer.whole
    assert dduct.fetch(origin, "/x.deb").body == BODY


def test_an_object_that_a_power_cut_has_not_damaged_is_used(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}))
    dduct.fetch(origin, "/x.deb")
    wait_until(lambda: b'"durable":true' in os.getxattr(dduct.files / name_of(origin), "user.dduct"))
    name = after_a_power_cut(dduct, lambda _: None)
    for _ in range(2):
        assert dduct.fetch(origin, "/x.deb").body == BODY
    assert len(origin.requests) == 1
    assert Record.decode(os.getxattr(dduct.files / name, "user.dduct")).durable


def test_a_disk_that_cannot_read_an_object_disturbs_no_client(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}))
    dduct.fetch(origin, "/x.deb")
    real = os.preadv
    bad = os.stat(dduct.files / name_of(origin)).st_ino

    def preadv(fd: int, views: Any, offset: int) -> int:
        if os.fstat(fd).st_ino == bad and offset + len(views[0]) > 1_200_000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert dduct.fetch(origin, "/x.deb", "Range: bytes=1900000-").body == BODY[1_900_000:]
    assert origin.count("/x.deb") == 2


def test_ranges_of_an_unreadable_object_are_each_requested_from_their_start(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk can neither read nor store it: all bytes come from the origin."""
    breaking = Breaking()
    origin = dduct.origin(breaking)
    dduct.fetch(origin, "/x.deb")
    dduct.wait_until_durable()
    dduct.reload(min_free=2**60)

    def preadv(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", preadv)
    spans = [(1000, 1009), (500_000, 500_009), (100, 109)]
    wanted = ",".join(f"{first}-{last}" for first, last in spans)
    answer = dduct.fetch(origin, "/x.deb", f"Range: bytes={wanted}")
    assert answer.status == 206 and answer.complete
    for first, last in spans:
        part = f"Content-Range: bytes {first}-{last}/{len(BODY)}\r\n\r\n".encode() + BODY[first : last + 1]
        assert part + b"\r\n--" in answer.body
    assert breaking.ranges == [f"bytes={first}-" for first, _ in spans]


@pytest.mark.parametrize("wanted", [None, "bytes=100000-1899999", "bytes=0-0", "bytes=0-99999,1000000-1999999"])
def test_without_tls_the_kernel_sends_the_file(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch, wanted: Optional[str]
) -> None:
    sent: List[int] = []
    real = os.sendfile

    def sendfile(out: int, source: int, offset: int, count: int) -> int:
        sent.append(real(out, source, offset, min(count, 300_000)))
        return sent[-1]

    monkeypatch.setattr(os, "sendfile", sendfile)
    origin = dduct.origin(Files({"/x.deb": BODY}), tls=False)
    host = f"{HOST}:{origin.port}"
    fields = [] if wanted is None else [f"Range: {wanted}"]
    with dduct.client() as client:
        assert client.get(f"http://{host}/x.deb", host).body == BODY
        dduct.counted(Counter.PUBLISHED)
        answer = client.get(f"http://{host}/x.deb", host, *fields)
        if wanted is None:
            assert answer.body == BODY
        elif "," not in wanted:
            first, last = map(int, wanted[len("bytes=") :].split("-"))
            assert answer.body == BODY[first : last + 1]
        else:
            assert BODY[:100_000] in answer.body and BODY[1_000_000:] in answer.body
        assert client.get(f"http://{host}/x.deb", host).body == BODY
    wait_until(lambda: sum(sent) >= len(BODY))  # the last call may return after its bytes have arrived


def test_a_file_that_sendfile_cannot_send_is_read_or_fetched_again(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.sendfile

    def sendfile(out: int, source: int, offset: int, count: int) -> int:
        if offset >= 1_000_000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(out, source, offset, min(count, 500_000))

    monkeypatch.setattr(os, "sendfile", sendfile)
    origin = dduct.origin(Files({"/x.deb": BODY}), tls=False)
    host = f"{HOST}:{origin.port}"
    with dduct.client() as client:
        for _ in range(3):
            assert client.get(f"http://{host}/x.deb", host).body == BODY
    assert len(origin.requests) == 1


@pytest.mark.one_process
def test_sendfile_to_a_client_that_reads_nothing_times_out(start_dduct: Callable[..., RunningDduct]) -> None:
    dduct = start_dduct(idle_timeout=1.0)
    body = bytes(30_000_000)
    origin = dduct.origin(Files({"/x.deb": body}), tls=False)
    host = f"{HOST}:{origin.port}"
    with dduct.client() as client:
        assert client.get(f"http://{host}/x.deb", host).body == body
    with dduct.client() as client:
        client.send(f"GET http://{host}/x.deb HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        client.read_until(b"\r\n\r\n")
        wait_until(lambda: not dduct.server.connections)
        assert len(client._exactly(len(body))) < len(body)
