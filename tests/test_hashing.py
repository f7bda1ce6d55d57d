"""Hashes of what grows, in this thread or in another."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import Optional

import pytest

from hashing import Hashes
from store import Digest

PIECE = 300_000


@pytest.mark.parametrize("size", [0, 1, PIECE, 4_194_304, 20_000_000])
@pytest.mark.parametrize("algorithm", [None, "sha256", "sha512", "sha1", "md5", "blake2b"])
def test_hashes_are_right_whoever_makes_them(size: int, algorithm: Optional[str]) -> None:
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
    assert hashes.check == right.hexdigest()
    assert hashes.sha256 == hashlib.sha256(body).hexdigest()
    hashes.close()
    hashes.close()


def test_a_thread_is_made_for_what_is_large_alone_and_ends() -> None:
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
