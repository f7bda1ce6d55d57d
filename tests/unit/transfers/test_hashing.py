"""Hashes of what grows, in this thread or in another."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import Optional

import pytest
from support.client import wait_until
from support.pairs import TIMEOUT, in_thread

from storage.record import Digest
from transfers.hashing import Hashes

PIECE = 300_000


@pytest.mark.parametrize("size", [0, 1, PIECE, 4_194_304, 20_000_000])
@pytest.mark.parametrize("algorithm", [None, "sha256", "sha512", "sha1", "md5", "blake2b"])
def test_hashes_are_right_in_both_threads(size: int, algorithm: Optional[str]) -> None:
    body = os.urandom(size)
    right = (
        hashlib.blake2b(body, digest_size=32) if algorithm == "blake2b" else hashlib.new(algorithm or "sha256", body)
    )
    hashes = Hashes(None if algorithm is None else Digest(algorithm, right.hexdigest()))
    buffers = [bytearray(PIECE), bytearray(PIECE)]
    for number, start in enumerate(range(0, size, PIECE)):
        piece = body[start : start + PIECE]
        buffer = buffers[number % 2]  # as fillers do: one is written while the other may still be hashed
        buffer[: len(piece)] = piece
        hashes.update(memoryview(buffer)[: len(piece)])
    hashes.update(memoryview(body)[hashes.go_on() :])  # nothing, unless it was late
    assert hashes.check == right.hexdigest()
    assert hashes.sha256 == hashlib.sha256(body).hexdigest()
    hashes.close()
    hashes.close()


def test_a_hashing_thread_is_started_for_large_objects_only_and_ends() -> None:
    before = threading.active_count()
    hashes = Hashes(None)
    for _ in range(4):
        hashes.update(memoryview(bytes(1_000_000)))
    assert threading.active_count() == before
    for _ in range(4):
        hashes.update(memoryview(bytes(1_000_000)))
    assert threading.active_count() == before + 1
    hashes.close()
    assert threading.active_count() == before


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set, threads that hash get nowhere. Everything but the first piece has such a thread."""
    gate, real = threading.Event(), Hashes._hash

    def hash_slowly(hashes: Hashes, data: memoryview) -> None:
        if threading.current_thread().name == "hash":
            assert gate.wait(TIMEOUT)
        real(hashes, data)

    monkeypatch.setattr(Hashes, "_hash", hash_slowly)
    monkeypatch.setattr("transfers.hashing._ALONE", 1)
    return gate


def test_a_late_hash_continues_where_it_stopped(gate: threading.Event) -> None:
    pieces = [os.urandom(1000) for _ in range(5)]
    buffers = [bytearray(1000), bytearray(1000)]
    hashes = Hashes(None)

    def update(number: int) -> None:
        buffers[number % 2][:] = pieces[number]
        hashes.update(memoryview(buffers[number % 2]))

    update(0)
    update(1)
    assert not hashes.late
    third = in_thread(update, 2)
    wait_until(lambda: hashes.late)
    assert not third.done()  # for the second is still being read
    gate.set()
    third.result(TIMEOUT)
    update(3)
    update(4)
    assert hashes.late
    begun = hashes.go_on()
    assert begun == 2000 and not hashes.late
    hashes.update(memoryview(b"".join(pieces)[begun:]))
    assert hashes.sha256 == hashlib.sha256(b"".join(pieces)).hexdigest()
    hashes.close()


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_hash_that_the_name_promises_is_never_late(gate: threading.Event, algorithm: str) -> None:
    body = os.urandom(4000)
    right = hashlib.new(algorithm, body).hexdigest()
    hashes = Hashes(Digest(algorithm, right))
    hashes.update(memoryview(body)[:1000])
    hashes.update(memoryview(body)[1000:2000])
    third = in_thread(hashes.update, memoryview(body)[2000:])
    gate.set()
    third.result(TIMEOUT)
    assert not hashes.late and hashes.check == right
    hashes.close()
