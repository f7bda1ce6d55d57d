"""Claims, fills and objects for the tests of the cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, List, Optional, Union

from cache import Cache, Follow, Hit, Lead
from storage.record import Digest, Metadata
from storage.store import Key
from transfers.fill import Fill
from transfers.follow import FillReader
from transfers.hold_back import HOLD_BACK

NAME = "https/some.thing/pool/x.deb"
KEY = Key(NAME)
META = Metadata("https://some.thing/pool/x.deb", (("ETag", '"1"'),), 1000.0)


BLOB = os.urandom(HOLD_BACK + 1000)


def view(data: Union[bytes, bytearray]) -> memoryview:
    return memoryview(data)


def lead(cache: Cache, key: Key = KEY) -> Fill:
    claim = cache.claim(key)
    assert isinstance(claim, Lead)
    return claim.fill


def follow(cache: Cache, key: Key = KEY) -> FillReader:
    claim = cache.claim(key)
    assert isinstance(claim, Follow)
    return claim.reader


def hit_body(cache: Cache, key: Key = KEY) -> bytes:
    claim = cache.claim(key)
    assert isinstance(claim, Hit), claim
    try:
        return read_all(claim.entry)
    finally:
        claim.entry.close()


def read_all(source: Any, size: int = 100_000) -> bytes:
    buffer = memoryview(bytearray(size))
    out = b""
    while True:
        count = source.read_at(buffer, len(out))
        if not count:
            return out
        out += bytes(buffer[:count])


def publish(cache: Cache, body: bytes, key: Key = KEY, metadata: Metadata = META, length: Optional[int] = -1) -> None:
    fill = lead(cache, key)
    fill.start(metadata, len(body) if length == -1 else length)
    fill.write(view(body))
    fill.publish()
    fill.make_durable()
    fill.close()


def digest_of(body: bytes, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, body).hexdigest())


def parts(cache: Cache) -> List[Path]:
    return list(cache.store.root.rglob("*.dduct"))


def blob_key(host: str, body: bytes = BLOB, algorithm: str = "sha256") -> Key:
    digest = digest_of(body, algorithm)
    return Key(f"https/{host}/v2/a/blobs/{digest}", digest)


def blob_meta(host: str) -> Metadata:
    return Metadata(f"https://{host}/v2/a/blobs/x", (("X-From", host),), 1000.0)


def leave(cache: Cache, raw: bytes, length: int = 6, resumable: bool = True, key: Key = KEY) -> None:
    """A leader dies after so many bytes."""
    fill = lead(cache, key)
    fill.start(META, length, resumable)
    fill.write(view(raw))
    os.close(fill.file.fd)
