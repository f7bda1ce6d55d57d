"""The name in a ClientHello."""

from __future__ import annotations

import os
import ssl
from typing import Optional

import pytest

from tls.client_hello import Incomplete, server_name


def hello(name: Optional[str], *alpn: str) -> bytes:
    """The first flight of a real client."""
    context = ssl.create_default_context()
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(alpn)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def records(data: bytes, size: int) -> bytes:
    """The same handshake message in records of at most `size` bytes."""
    message = data[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(data[:3] + len(piece).to_bytes(2, "big") + piece for piece in pieces)


@pytest.mark.parametrize("name", ["origin.test", "Origin.TEST", "a" * 63 + ".test"])
def test_the_server_name_is_found_however_the_hello_is_split(name: str) -> None:
    data = hello(name, "h2", "http/1.1")
    assert server_name(data) == name.lower()
    assert server_name(data + b"more") == name.lower()
    assert server_name(records(data, 50)) == name.lower()
    for end in range(len(data)):
        assert isinstance(server_name(data[:end]), Incomplete), end


def test_a_hello_without_server_name_has_none() -> None:
    assert server_name(hello(None)) is None
    assert server_name(hello("127.0.0.1")) is None  # which is not sent


@pytest.mark.parametrize(
    "data",
    [
        b"\x17\x03\x03\x00\x05hello",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # another message
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",  # too long for a hello
        b"\x16\x03\x01\x00\x06\x01\x00\x00\x02ab",  # too short for one
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
    ],
)
def test_other_bytes_have_no_server_name(data: bytes) -> None:
    assert server_name(data) is None


def test_no_bytes_raise_an_exception() -> None:
    data = hello("origin.test")
    for at in range(len(data)):
        for value in (0, 0x7F, 0xFF):
            changed = bytearray(data)
            changed[at] = value
            server_name(bytes(changed))
    for _ in range(500):
        server_name(b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc" + os.urandom(252))
