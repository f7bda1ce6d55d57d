"""The name in a ClientHello (RFC 8446 §4.1.2, RFC 6066 §3), read before anybody has decided who answers it. Pure.

A handshake that is not understood has no name: OpenSSL will say what is wrong with it, to whoever it is answered by.
"""

from __future__ import annotations

import re
from typing import Optional, Union

LONGEST = 64 * 1024  # bytes that are waited for
_RECORD_HEAD, _MESSAGE_HEAD = 5, 4
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _HOST_NAME = 0, 0
_NAME = re.compile(rb"[A-Za-z0-9_.-]{1,253}")


class Incomplete:
    """There is more to come."""


INCOMPLETE = Incomplete()


def server_name(data: bytes) -> Union[str, Incomplete, None]:
    """The lower-case host name that the first bytes of a connection ask for; None where they ask for none."""
    message = _message(data)
    if message is None or isinstance(message, Incomplete):
        return message
    try:
        return _name_in(_Reader(message))
    except _Short:
        return None


class _Short(Exception):
    """A length within the message goes beyond its end."""


class _Reader:
    """Takes values off the front of bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """So many bytes."""
        end = self._at + count
        if end > len(self._data):
            raise _Short
        taken, self._at = self._data[self._at : end], end
        return taken

    def number(self, size: int) -> int:
        """A number of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> _Reader:
        """What follows a length of so many bytes."""
        return _Reader(self.take(self.number(size)))


def _message(data: bytes) -> Union[bytes, Incomplete, None]:
    """The body of the first handshake message, put together from its records."""
    handshake, at = b"", 0
    while True:
        if len(handshake) >= _MESSAGE_HEAD:
            if handshake[0] != _CLIENT_HELLO:
                return None
            length = int.from_bytes(handshake[1:_MESSAGE_HEAD], "big")
            if length > LONGEST:
                return None
            if len(handshake) >= _MESSAGE_HEAD + length:
                return handshake[_MESSAGE_HEAD : _MESSAGE_HEAD + length]
        head = data[at : at + _RECORD_HEAD]
        if head and head[0] != _HANDSHAKE:
            return None
        if len(head) < _RECORD_HEAD:
            return INCOMPLETE
        length = int.from_bytes(head[3:], "big")
        if not length:
            return None
        at += _RECORD_HEAD
        handshake += data[at : at + length]
        if len(data) < at + length and not _has_all(handshake):
            return INCOMPLETE
        at += length


def _has_all(handshake: bytes) -> bool:
    return len(handshake) >= _MESSAGE_HEAD + int.from_bytes(handshake[1:_MESSAGE_HEAD] or b"\xff", "big")


def _name_in(hello: _Reader) -> Optional[str]:
    hello.take(2 + 32)  # version, random
    hello.vector(1)  # session
    hello.vector(2)  # suites
    hello.vector(1)  # compression
    if not hello:
        return None
    extensions = hello.vector(2)
    while extensions:
        kind, extension = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            names = extension.vector(2)
            while names:
                of_host, name = names.number(1) == _HOST_NAME, names.take(names.number(2))
                if of_host:
                    return name.decode("ascii").lower() if _NAME.fullmatch(name) else None
            return None
    return None
