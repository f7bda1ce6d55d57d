"""The record of an object: what is known of it, and what makes its bytes trustworthy, as one extended attribute."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import NamedTuple, Optional, Tuple

from monitoring.details import Detail

ATTRIBUTE_LIMIT = 3 * 1024  # ext4 has one 4 KiB block for all attributes of a file
_RESERVED = 128  # bytes of it for what a growing file does not say yet: its hash, and the boot
_FORMAT = 1

FieldText = Tuple[str, str]


class Unstorable(Exception):
    """This object cannot be kept under this name, or not now; the transfer itself is none the worse for it."""

    def __init__(self, reason: str, detail: Detail = Detail.DISK) -> None:
        super().__init__(reason)
        self.detail = detail

    @classmethod
    def of(cls, error: OSError) -> Unstorable:
        """What the disk says, in these terms."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return cls(error.strerror or str(error), Detail.NO_ROOM if full else Detail.DISK)


class Digest(NamedTuple):
    """A hash by which an object is known wherever it comes from."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @property
    def shared(self) -> bool:
        """Whether it is strong enough to let one URL's octets stand for another's."""
        return self.algorithm not in ("md5", "sha1")


@dataclass(frozen=True)
class Metadata:
    """What is known of a stored representation besides its octets; the cache keeps it and never reads it.

    `url` has a hash of what its query names, instead of it (that may be secret), `fetched_at` is in seconds since the
    epoch, `age` how many seconds old it was then, `restricted` means that the origin must let every further client in
    itself, `vary` holds the request fields the response depended on, `redirect` is the URL, without a query, to which
    the origin sent for it, with a `?` at its end where there was one, and `near` and `own` mean that its origin is on
    this machine: by loopback or the like alone, or by an address that others reach, too. `restricted_by` says why it is
    restricted (an old record does not), `same_for_all` that its origin has shown that it gives the same with
    credentials and without, `must_validate` that it may have changed.
    """

    url: str
    fields: Tuple[FieldText, ...]
    fetched_at: float
    restricted: bool = False
    vary: Tuple[FieldText, ...] = ()
    age: float = 0.0
    redirect: str = ""
    near: bool = False
    own: bool = False
    restricted_by: Tuple[str, ...] = ()
    same_for_all: bool = False
    must_validate: bool = False


# Fields that older versions do not know.
_NEW = ("own", "restricted_by", "same_for_all", "must_validate")


@dataclass(frozen=True)
class Record:
    """The content of the attribute: `metadata`, and what makes the octets trustworthy.

    `alias` names the digest whose object holds the octets (`sha256:<hex>`); the file itself is then empty. `boot` is
    the boot in which it was written and `durable` whether it has reached the disk since. A growing file has a boot
    only if what a crash leaves of it can be gone on with, and is `asking` while its next leader waits to hear whether
    it is still good. Only what is complete and verified has a `sha256`, or is `unhashed`: then nothing but its hash is
    missing, which follows soon.
    """

    metadata: Metadata
    length: int
    sha256: str = ""
    alias: str = ""
    boot: str = ""
    durable: bool = False
    asking: bool = False
    unhashed: bool = False

    @property
    def digest(self) -> Optional[Digest]:
        """Of its bytes, if that is known."""
        return Digest("sha256", self.sha256) if self.sha256 else None

    @property
    def complete(self) -> bool:
        """Whether its octets are all there, and right."""
        return bool(self.sha256) or self.unhashed

    def encode(self) -> bytes:
        """The attribute's octets; raises Unstorable where they would be too many."""
        values = asdict(self)
        for name in _NEW:  # an older version reads the record, too, as long as it says nothing of these
            if not values["metadata"][name]:
                del values["metadata"][name]
        data = json.dumps({"v": _FORMAT, **values}, separators=(",", ":"), ensure_ascii=False).encode()
        if len(data) + (0 if self.complete else _RESERVED) > ATTRIBUTE_LIMIT:
            reason = f"its metadata takes {len(data)} bytes, and {ATTRIBUTE_LIMIT - _RESERVED} are the most"
            raise Unstorable(reason, Detail.METADATA_TOO_LARGE)
        return data

    @staticmethod
    @lru_cache(maxsize=1024)
    def decode(data: bytes) -> Record:
        """The reverse; raises ValueError on anything that `encode` did not write."""
        try:
            values = json.loads(data)
            if values.pop("v") != _FORMAT:
                raise ValueError("unknown metadata format")
            metadata = values.pop("metadata")
            for name in ("fields", "vary"):
                metadata[name] = tuple((str(key), str(value)) for key, value in metadata[name])
            metadata["restricted_by"] = tuple(map(str, metadata.get("restricted_by", ())))
            # What a newer version has added is no reason to throw the object away.
            known = Metadata(**{name: value for name, value in metadata.items() if name in Metadata.__annotations__})
            return Record(known, **{name: value for name, value in values.items() if name in Record.__annotations__})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"unreadable metadata: {error}") from error
