"""The field lines of a message, and the common syntax of their values (RFC 9110 §5). Pure, like `http1`."""

from __future__ import annotations

import re
from typing import Dict, FrozenSet, Iterable, Iterator, List, Optional, Tuple

from protocol.remembering import remember_short

Field = Tuple[bytes, bytes]

# The pieces of a list: a comma, a quoted string (an unclosed one reaches to the end), or other text. The end of a piece
# does not depend on the text after it, so no byte is scanned twice, in any value.
_PIECE = re.compile(rb',|[^,"]+|"(?:[^"\\]|\\.)*"?', re.DOTALL)

# RFC 9110 §7.6.1, and the fields for the next hop only (§11.7; Proxy-Connection: curl, old browsers).
_HOP_BY_HOP = frozenset(
    [
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    ]
)

# Names whose usual spelling is not plain title case.
_SPELLING = {
    b"content-md5": b"Content-MD5",
    b"dnt": b"DNT",
    b"etag": b"ETag",
    b"te": b"TE",
    b"www-authenticate": b"WWW-Authenticate",
}


class Headers:
    """The field lines of one message; they keep order, case and repeats, and lookups ignore case."""

    __slots__ = ("_fields", "_index", "_normal")

    def __init__(self, fields: Iterable[Field] = ()) -> None:
        self._fields: List[Field] = list(fields)
        self._normal: Optional[Tuple[Field, ...]] = None  # worked out when it is first asked for
        self._index: dict[bytes, bytes] = {}
        index = self._index
        repeated: Dict[bytes, List[bytes]] = {}
        for name, value in self._fields:
            key = name.lower()
            if key in index:
                repeated.setdefault(key, [index[key]]).append(value)
            else:
                index[key] = value
        for key, values in repeated.items():
            index[key] = b", ".join(values)  # RFC 9110 §5.3: repeated lines are one list

    def __iter__(self) -> Iterator[Field]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, name: bytes) -> bool:
        return name in self._index

    def __repr__(self) -> str:
        return f"Headers({self._fields!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(tuple(self._fields))

    def get(self, name: bytes) -> Optional[bytes]:
        """The value of the lower-case `name`; repeated lines joined by a comma (RFC 9110 §5.3)."""
        return self._index.get(name)

    def get_all(self, name: bytes) -> List[bytes]:
        """The value of every line with the lower-case `name`, in order."""
        if name not in self._index:
            return []
        return [value for field, value in self._fields if field.lower() == name]

    def tokens(self, name: bytes) -> List[bytes]:
        """The comma-separated elements of a field, lower-case, without empty ones (RFC 9110 §5.6.1)."""
        return [element.lower() for element in self.elements(name)]

    def elements(self, name: bytes) -> List[bytes]:
        """The comma-separated elements of a field, unchanged; a comma in a quoted string separates nothing."""
        return split_list(self._index.get(name) or b"")

    @property
    def normal(self) -> Tuple[Field, ...]:
        """The fields with lower-case names, sorted: the same for messages that differ in the order and case only."""
        if self._normal is None:
            self._normal = tuple(sorted([(name.lower(), value) for name, value in self._fields]))
        return self._normal

    def without(self, names: Iterable[bytes]) -> Headers:
        """A copy without the given lower-case names."""
        dropped = frozenset(names)
        return Headers(field for field in self._fields if field[0].lower() not in dropped)

    def end_to_end(self) -> Headers:
        """A copy without the fields of one connection: RFC 9110 §7.6.1, including those that Connection names."""
        return Headers(self.end_to_end_fields())

    def end_to_end_fields(self, dropped: FrozenSet[bytes] = frozenset()) -> List[Field]:
        """The fields of `end_to_end`, without the `dropped` lower-case names."""
        named = frozenset(self.tokens(b"connection"))  # thousands, perhaps
        fields = [(field[0].lower(), field) for field in self._fields]
        return [
            field for name, field in fields if name not in _HOP_BY_HOP and name not in dropped and name not in named
        ]


def split_list(value: bytes) -> List[bytes]:
    """The elements of a comma-separated list, without empty ones (RFC 9110 §5.6.1), in time linear in its length."""
    if b'"' not in value:
        parts = value.split(b",")
    else:
        parts, start = [], 0
        for piece in _PIECE.finditer(value):
            if piece.group() == b",":
                parts.append(value[start : piece.start()])
                start = piece.end()
        parts.append(value[start:])
    stripped = (part.strip(b" \t") for part in parts)
    return [part for part in stripped if part]


@remember_short(entries=1024, length=64)
def canonical(name: bytes) -> bytes:
    """`content-length` → `Content-Length`; a name with capitals stays as sent.

    Origins behind HTTP/2 front ends send lower-case names; librepo compares `Content-Length: ` literally.
    """
    if not name.islower():
        return name
    return _SPELLING.get(name) or b"-".join(part.capitalize() for part in name.split(b"-"))
