"""The send loop: a source in memory, a client in memory, and all that can happen to the source."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import pytest
from support.fetching import FakeClient

from fetching.deliver import FailoverSource, checked, deliver, shown
from monitoring.details import Side
from protocol.headers import Headers
from protocol.http1 import RequestHead
from protocol.selection import Part, Selection
from storage.entry import Lost
from transfers.recheck import VerifyingReader
from transfers.states import FillFailed

BODY = os.urandom(200_000)
WHOLE = Selection(200, (), (Part(0, len(BODY)),))
UNKNOWN = Selection(200, (), (Part(0, None),))


class Memory:
    """Some bytes as a source; `fate` is raised once a reader wants those from `until` on."""

    def __init__(self, body: bytes = BODY, until: Optional[int] = None, fate: Optional[Exception] = None) -> None:
        self._body = body
        self._until = len(body) if until is None else until
        self._fate = fate
        self.length: Optional[int] = len(body)
        self.read_at_offsets: List[int] = []

    def ready(self, offset: int, whole: bool) -> bool:
        return True

    def read_at(self, view: memoryview, offset: int) -> int:
        self.read_at_offsets.append(offset)
        piece = self._body[offset : min(self._until, offset + len(view))]
        if not piece and self._fate is not None:
            raise self._fate
        view[: len(piece)] = piece
        return len(piece)


def nowhere(offset: int) -> Any:
    raise FillFailed(f"nothing has the bytes from {offset} on")


def client_for(chosen: Selection, version: int = 1) -> FakeClient:
    client = FakeClient(RequestHead(b"GET", b"/", version, Headers()))
    client.reply.send_head(chosen.status, chosen.fields, chosen.length)
    return client


def sent(source: Memory, chosen: Selection, elsewhere: Callable[[int], Any] = nowhere) -> Tuple[bytes, FakeClient]:
    client = client_for(chosen)
    deliver(client.reply, FailoverSource(source, elsewhere), chosen)
    return client.body, client


# --- what is sent ---------------------------------------------------------------------------------


def test_a_whole_object_is_sent_and_the_connection_stays() -> None:
    body, client = sent(Memory(), WHOLE)
    assert body == BODY and not client.cut and client.reply.persistent


@pytest.mark.parametrize("span", [(0, 1), (5, 90_000), (len(BODY) - 1, len(BODY))])
def test_a_part_is_sent_and_nothing_else_is_read(span: Tuple[int, int]) -> None:
    source = Memory()
    body, _ = sent(source, Selection(206, (), (Part(*span),)))
    assert body == BODY[slice(*span)] and source.read_at_offsets[0] == span[0]


def test_several_parts_are_sent_with_what_is_around_them() -> None:
    chosen = Selection(206, (), (Part(0, 3, b"<one>"), Part(9, 12, b"<two>")), b"<end>")
    assert sent(Memory(), chosen)[0] == b"<one>" + BODY[:3] + b"<two>" + BODY[9:12] + b"<end>"


def test_a_body_of_unknown_length_ends_with_its_source() -> None:
    body, client = sent(Memory(b"12345"), UNKNOWN)
    assert body == b"5\r\n12345\r\n0\r\n\r\n" and not client.cut


# --- what is missing ------------------------------------------------------------------------------


def test_a_source_that_ends_early_cuts_the_connection() -> None:
    body, client = sent(Memory(until=100), WHOLE)
    assert body == BODY[:100] and client.cut and not client.reply.persistent
    assert client.reply.cut_by is Side.DDUCT


@pytest.mark.parametrize("chosen", [WHOLE, UNKNOWN])
def test_a_fill_that_breaks_off_cuts_the_connection(chosen: Selection) -> None:
    client = client_for(chosen)
    failover = FailoverSource(Memory(until=100, fate=FillFailed("broken off")), nowhere)
    with pytest.raises(FillFailed, match="broken off"):
        deliver(client.reply, failover, chosen)
    assert client.cut and client.reply.cut_by is Side.ORIGIN
    assert BODY[:100] in client.body and not client.body.endswith(b"0\r\n\r\n")


def test_a_lost_source_is_replaced_where_it_has_ended() -> None:
    offsets: List[int] = []

    def elsewhere(offset: int) -> Memory:
        offsets.append(offset)
        return Memory()

    body, client = sent(Memory(until=100_000, fate=Lost("evicted")), WHOLE, elsewhere)
    assert body == BODY and not client.cut and offsets == [100_000]


def test_a_source_may_be_lost_a_few_times() -> None:
    offsets: List[int] = []

    def elsewhere(offset: int) -> Memory:
        offsets.append(offset)
        return Memory(until=offset + 10, fate=Lost("lost again"))

    client = client_for(WHOLE)
    with pytest.raises(FillFailed, match="lost again"):
        deliver(client.reply, FailoverSource(Memory(until=0, fate=Lost("lost")), elsewhere), WHOLE)
    assert offsets == [0, 10, 20, 30] and client.body == BODY[:40] and client.cut


def test_where_nothing_else_has_the_bytes_the_connection_is_cut() -> None:
    client = client_for(WHOLE)
    with pytest.raises(FillFailed, match="from 7 on"):
        deliver(client.reply, FailoverSource(Memory(until=7, fate=Lost("lost")), nowhere), WHOLE)
    assert client.body == BODY[:7] and client.cut


# --- by the kernel --------------------------------------------------------------------------------


class ByKernel(FakeClient):
    """Takes files; after `good` bytes there is an error, or the end."""

    def __init__(self, good: int = len(BODY), error: Optional[int] = None) -> None:
        super().__init__(RequestHead(b"GET", b"/", 1, Headers()))
        self.takes_files = True
        self.pieces: List[Tuple[int, int]] = []
        self._good = good
        self._error = error

    def send_file(self, fd: int, offset: int, count: int) -> int:
        count = min(count, 60_000, self._good - offset)
        if not count:
            if self._error is None:
                return 0
            raise OSError(self._error, os.strerror(self._error))
        self.pieces.append((offset, count))
        self.send(os.pread(fd, count, offset))
        return count


@pytest.fixture
def file(tmp_path: Path) -> Any:
    (tmp_path / "object").write_bytes(BODY)
    with (tmp_path / "object").open("rb") as opened:
        yield opened


def test_the_kernel_sends_a_file_if_the_connection_lets_it(file: Any) -> None:
    client, source = ByKernel(), Memory()
    client.reply.send_head(200, (), WHOLE.length)
    deliver(client.reply, FailoverSource(source, nowhere, file.fileno()), WHOLE)
    assert client.body == BODY and source.read_at_offsets == [] and len(client.pieces) == 4


def test_a_small_file_is_read(file: Any) -> None:
    client, source = ByKernel(), Memory()
    chosen = Selection(206, (), (Part(0, 1000),))
    client.reply.send_head(206, (), chosen.length)
    deliver(client.reply, FailoverSource(source, nowhere, file.fileno()), chosen)
    assert client.body == BODY[:1000] and client.pieces == []


def test_where_the_disk_fails_the_kernel_the_bytes_are_read(file: Any) -> None:
    client, source = ByKernel(60_000, errno.EIO), Memory()
    client.reply.send_head(200, (), WHOLE.length)
    failover = FailoverSource(source, nowhere, file.fileno())
    deliver(client.reply, failover, WHOLE)
    assert client.body == BODY and source.read_at_offsets[0] == 60_000
    assert failover.file is None  # the next part does not ask the kernel again


def test_a_client_that_goes_is_no_trouble_with_the_disk(file: Any) -> None:
    client = ByKernel(60_000, errno.EPIPE)
    client.reply.send_head(200, (), WHOLE.length)
    with pytest.raises(BrokenPipeError):
        deliver(client.reply, FailoverSource(Memory(), nowhere, file.fileno()), WHOLE)


def test_a_file_that_ends_early_cuts_the_connection(file: Any) -> None:
    client = ByKernel(60_000)
    client.reply.send_head(200, (), WHOLE.length)
    deliver(client.reply, FailoverSource(Memory(until=60_000), nowhere, file.fileno()), WHOLE)
    assert client.body == BODY[:60_000] and client.cut and client.reply.cut_by is Side.DDUCT


# --- which source, which fields -------------------------------------------------------------------


@pytest.mark.parametrize("trusted", [True, False])
def test_only_a_trusted_entry_is_sent_unverified(trusted: bool) -> None:
    class Stored:
        record = type("Record", (), {"length": 5})

    entry: Any = Stored()
    entry.trusted = trusted
    assert isinstance(checked(entry), VerifyingReader) is not trusted


FIELDS = Headers(
    [(b"Content-Type", b"a/b"), (b"ETag", b'"1"'), (b"Date", b"now"), (b"X-Own", b"1"), (b"Cache-Control", b"no")]
)


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (Selection(200), [b"Content-Type", b"ETag", b"Date", b"X-Own", b"Cache-Control"]),
        (Selection(304), [b"ETag", b"Date", b"Cache-Control"]),
        (Selection(416), [b"Date"]),
        (Selection(206, ((b"content-type", b"multipart/byteranges"),)), [b"ETag", b"Date", b"X-Own", b"Cache-Control"]),
    ],
)
def test_which_stored_fields_a_response_has(chosen: Selection, names: List[bytes]) -> None:
    assert [name for name, _ in shown(FIELDS, chosen)] == names
