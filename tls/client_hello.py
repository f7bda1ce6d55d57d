"""The name in a ClientHello (RFC 8446 §4.1.2, RFC 6066 §3), read before dduct decides who answers it. Pure.

A malformed handshake has no name: the TLS server that answers it, dduct or the origin, reports the error.
"""

from __future__ import annotations

import re
import struct
from typing import Optional, Union

LONGEST = 64 * 1024  # bytes to wait for
_RECORD_HEAD, _MESSAGE_HEAD = 5, 4
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _HOST_NAME = 0, 0
_RANDOM_END = 2 + 32  # version, random
_NUMBER, _EXTENSION, _ENTRY = struct.Struct(">H"), struct.Struct(">HH"), struct.Struct(">BH")
_NAME = re.compile(rb"[A-Za-z0-9_.-]{1,253}")


class Incomplete:
    """The data ends too early."""


INCOMPLETE = Incomplete()


def server_name(data: bytes) -> Union[str, Incomplete, None]:
    """The lower-case host name in a connection's first bytes; None without one, INCOMPLETE if too short."""
    message = _message(data)
    if message is None or isinstance(message, Incomplete):
        return message
    try:
        return _name_in(message)
    except (IndexError, struct.error):
        return None


def _message(data: bytes) -> Union[bytes, Incomplete, None]:
    """The body of a ClientHello, joined from its records; None if it is none."""
    whole = _whole_message(data)
    if whole is not None:
        return whole
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


def _whole_message(data: bytes) -> Optional[bytes]:
    """The same, if one record holds it all, as usual; else None."""
    if len(data) < _RECORD_HEAD + _MESSAGE_HEAD or data[0] != _HANDSHAKE or data[_RECORD_HEAD] != _CLIENT_HELLO:
        return None
    begin = _RECORD_HEAD + _MESSAGE_HEAD
    end = begin + int.from_bytes(data[_RECORD_HEAD + 1 : begin], "big")
    if end > min(len(data), _RECORD_HEAD + int.from_bytes(data[3:_RECORD_HEAD], "big"), LONGEST):
        return None
    return data[begin:end]


def _has_all(handshake: bytes) -> bool:
    return len(handshake) >= _MESSAGE_HEAD + int.from_bytes(handshake[1:_MESSAGE_HEAD] or b"\xff", "big")


def _name_in(hello: bytes) -> Optional[str]:
    """Raises IndexError or struct.error if a length goes beyond the end of the hello."""
    at = _RANDOM_END
    at += 1 + hello[at]  # session
    at += 2 + _NUMBER.unpack_from(hello, at)[0]  # suites
    at += 1 + hello[at]  # compression
    if at == len(hello):
        return None
    end = at + 2 + _NUMBER.unpack_from(hello, at)[0]
    at += 2
    while at < end <= len(hello):
        kind, length = _EXTENSION.unpack_from(hello, at)
        at += _EXTENSION.size
        if at + length > end:
            return None
        if kind == _SERVER_NAME:
            return _host_in(hello[at : at + length])
        at += length
    return None


def _host_in(extension: bytes) -> Optional[str]:
    at, end = 2, 2 + _NUMBER.unpack_from(extension)[0]
    while at < end <= len(extension):
        kind, length = _ENTRY.unpack_from(extension, at)
        at += _ENTRY.size
        if at + length > end:
            return None
        if kind == _HOST_NAME:
            name = extension[at : at + length]
            return name.decode("ascii").lower() if _NAME.fullmatch(name) else None
        at += length
    return None
