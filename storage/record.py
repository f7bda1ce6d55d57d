"""The record of an object: its metadata and the state of its bytes, stored as one extended attribute.

    a leader writes         and then
    GROWING                 (the next record, at its end)
    UNHASHED                ──► VERIFIED ──► DURABLE
    VERIFIED                ──► DURABLE
    ALIAS                   ──► DURABLE_ALIAS

Where a leader starts, resumes or publishes, it writes a new record. `Record.enter` is how an existing one changes. A
leader makes whatever record it finds in a growing file ASKING: another may have died between its last record and its
rename. So a published file may have an ASKING record, where it was renamed by hand.
"""

from __future__ import annotations

import enum
import errno
import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Container, Dict, FrozenSet, NamedTuple, Optional, Tuple, cast

from monitoring.details import Detail
from storage.summary import Facts, summarized

ATTRIBUTE_LIMIT = 3 * 1024  # ext4 has one 4 KiB block for all attributes of a file
_RESERVED = 128  # bytes of it, reserved for a growing file's later hash and boot
_FORMAT = 1
# By the algorithm: how many hexadecimal digits its digests have.
_HEX_DIGITS: Dict[str, Container[int]] = {
    "sha256": (64,),
    "sha512": (128,),
    "blake2b": range(2, 129, 2),
    "sha1": (40,),
    "md5": (32,),
}
ALGORITHMS = tuple(_HEX_DIGITS)
SHARED_ALGORITHMS = ("sha256", "sha512", "blake2b")  # strong enough for one URL to get the bytes of another
_HEX = re.compile("[0-9a-f]+")

FieldText = Tuple[str, str]


class Unstorable(Exception):
    """This object cannot be kept under this name, or not now; the transfer itself is not affected."""

    def __init__(self, reason: str, detail: Detail = Detail.DISK) -> None:
        super().__init__(reason)
        self.detail = detail

    @classmethod
    def of(cls, error: OSError) -> Unstorable:
        """An error of the disk as an Unstorable."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return cls(error.strerror or str(error), Detail.NO_SPACE if full else Detail.DISK)


class Digest(NamedTuple):
    """A hash that names an object, wherever it comes from."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @property
    def shared(self) -> bool:
        """Whether it is strong enough for one URL to get the bytes of another."""
        return self.algorithm in SHARED_ALGORITHMS

    @property
    def valid(self) -> bool:
        """Whether some bytes could have it."""
        digits = _HEX_DIGITS.get(self.algorithm, ())
        return len(self.hex) in digits and _HEX.fullmatch(self.hex) is not None

    def hasher(self) -> Any:
        """A new hash object whose result can be compared with this digest, which is valid."""
        if self.algorithm == "blake2b":
            return hashlib.blake2b(digest_size=len(self.hex) // 2)
        return hashlib.new(self.algorithm)


@dataclass(frozen=True)
class Metadata:
    """The metadata of a stored representation; the cache keeps it and never reads it.

    `url` has a hash in place of its query, which may be secret. `fetched_at` is in seconds since the epoch; `age` is
    the age at that time, in seconds. `restricted`: the origin itself must authorize every further client;
    `restricted_by` says why (not in old records). `vary` holds the request fields that the response depended on.
    `redirect` is the URL to which the origin redirected, without its query, but with a `?` at its end where there was
    one. `near` and `own`: the origin is on this machine, reached by loopback or the like only, or by an address that
    others reach, too. `same_for_all`: the origin has sent the same with and without credentials. `must_validate`: the
    object may have changed.
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


class RecordState(enum.Enum):
    """What a record says of the bytes of its file."""

    GROWING = "not complete; resumable after a crash if it has a boot"
    ASKING = "a partial download whose next leader waits to hear whether it is still good"
    UNHASHED = "complete; its hash follows soon"
    VERIFIED = "complete and hashed; a power cut may still damage it"
    DURABLE = "complete, hashed, and known to have reached the disk"
    FOREIGN = "copied in by hand, and never hashed"
    ALIAS = "none: the object of a digest has the bytes"
    DURABLE_ALIAS = "an alias that is known to have reached the disk"


_ASKING = frozenset([RecordState.ASKING])
TRANSITIONS: Dict[RecordState, FrozenSet[RecordState]] = {
    RecordState.GROWING: _ASKING,
    RecordState.ASKING: _ASKING | {RecordState.VERIFIED},
    RecordState.UNHASHED: _ASKING | {RecordState.VERIFIED},
    RecordState.VERIFIED: _ASKING | {RecordState.DURABLE},
    RecordState.DURABLE: _ASKING,
    RecordState.FOREIGN: _ASKING,
    RecordState.ALIAS: _ASKING | {RecordState.DURABLE_ALIAS},
    RecordState.DURABLE_ALIAS: _ASKING,
}
# After a sync. What has no hash yet needs it first: nothing else would tell its bytes from damaged ones.
_SYNCED = {RecordState.VERIFIED: RecordState.DURABLE, RecordState.ALIAS: RecordState.DURABLE_ALIAS}
_AT_REST = frozenset([*_SYNCED.keys(), *_SYNCED.values()])


@dataclass(frozen=True)
class Record:
    """The content of the attribute: `metadata` and the state of the bytes, spread over the other fields.

    `alias` names the digest whose object holds the bytes (`sha256:<hex>`); the file itself is then empty. `boot` is the
    boot in which it was written, `durable` whether it has reached the disk since. A growing file has a boot only if it
    can be resumed after a crash, and is `asking` while its next leader waits to hear whether it is still good. Only a
    complete and verified object has a `sha256`, or is `unhashed`: then only its hash is missing, which follows soon.
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
        """The digest of its bytes, if known."""
        return Digest("sha256", self.sha256) if self.sha256 else None

    @property
    def state(self) -> RecordState:
        """The state of the bytes."""
        if self.asking:
            return RecordState.ASKING
        if self.alias:
            return RecordState.DURABLE_ALIAS if self.durable else RecordState.ALIAS
        if self.unhashed:
            return RecordState.UNHASHED
        if self.sha256:
            return RecordState.DURABLE if self.durable else RecordState.VERIFIED
        return RecordState.FOREIGN if self.durable else RecordState.GROWING

    def enter(self, state: RecordState, sha256: str = "") -> Record:
        """This record in its next state; no other method changes a state. `sha256` is the hash that VERIFIED needs."""
        assert state in TRANSITIONS[self.state], f"a record that is {self.state.name} does not become {state.name}"
        if state is RecordState.ASKING:
            return replace(self, asking=True)
        durable = state in (RecordState.DURABLE, RecordState.DURABLE_ALIAS)
        entered = replace(self, sha256=sha256 or self.sha256, asking=False, unhashed=False, durable=durable)
        assert entered.state is state, f"a record without a hash does not become {state.name}"
        return entered

    def synced(self) -> Record:
        """This record once its file has reached the disk."""
        state = _SYNCED.get(self.state)
        return self if state is None else self.enter(state)

    @property
    def complete(self) -> bool:
        """Whether all its bytes are there and verified."""
        return bool(self.sha256) or self.unhashed

    def encode(self) -> bytes:
        """The attribute's bytes; raises Unstorable where they are too many."""
        metadata = vars(self.metadata).copy()
        for name in _NEW:  # older versions read the record if it has none of these
            if not metadata[name]:
                del metadata[name]
        values = {"v": _FORMAT, **vars(self), "metadata": metadata}  # `asdict` takes longer than all the rest
        data = _encoder.encode(values).encode()
        if len(data) + (0 if self.complete else _RESERVED) > ATTRIBUTE_LIMIT:
            reason = f"its metadata takes {len(data)} bytes, and {ATTRIBUTE_LIMIT - _RESERVED} are the most"
            raise Unstorable(reason, Detail.METADATA_TOO_LARGE)
        facts = self._facts()
        with_summary = data if facts is None else summarized(data, facts)
        return data if len(with_summary) > ATTRIBUTE_LIMIT else with_summary

    def _facts(self) -> Optional[Facts]:
        """What a summary says of it; None where it takes the whole record to decide on a request."""
        metadata = self.metadata
        if self.state not in _AT_REST or metadata.restricted or metadata.must_validate or metadata.vary:
            return None
        times = metadata.fetched_at, metadata.age
        return Facts(
            self.length, self.durable, self.boot, self.alias, *times, metadata.near, metadata.own, metadata.fields
        )

    @staticmethod
    @lru_cache(maxsize=1024)
    def decode(data: bytes) -> Record:
        """Parse an attribute; raises ValueError on any bytes that `encode` did not write."""
        try:
            values = _parse(data)
            if values.pop("v") != _FORMAT:
                raise ValueError("unknown metadata format")
            values.pop("quick", None)  # the summary of all the rest
            metadata = values.pop("metadata")
            for name in ("fields", "vary"):
                metadata[name] = tuple([(str(key), str(value)) for key, value in metadata[name]])
            metadata["restricted_by"] = tuple(map(str, metadata.get("restricted_by", ())))
            return Record(Metadata(**_known_to(Metadata, metadata)), **_known_to(Record, values))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"unreadable metadata: {error}") from error


_decoder = json.JSONDecoder()
_encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def _parse(data: bytes) -> Dict[str, Any]:
    """The value of a JSON text without white space around it, in half the time that `json.loads` takes."""
    text = data.decode()
    value, end = _decoder.raw_decode(text)
    if end != len(text):
        raise ValueError("more than one value")
    return cast(Dict[str, Any], value)


def _known_to(kind: type, values: Dict[str, Any]) -> Dict[str, Any]:
    """Unknown fields of a newer version are ignored: they are no reason to drop the object."""
    known = kind.__annotations__
    return values if values.keys() <= known.keys() else {name: values[name] for name in values if name in known}
