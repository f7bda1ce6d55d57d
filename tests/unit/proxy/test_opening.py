"""Opening: the kind of a client's first bytes, however they arrive."""

from __future__ import annotations

import select
import socket
import ssl
from contextlib import closing
from typing import Iterator, Tuple

import pytest
from support.pairs import tcp_pair

from fetching.naming import Naming, Parameters
from net.addresses import Reach
from net.arrival import Arrival
from net.stream import Stream
from protocol.http1 import Authority
from proxy.opening import Opening, Spoken
from proxy.routing import Hosts, Rules

NAME = "listed.test"
TIMEOUT = 30.0  # seconds; a wait that reaches it has failed


def hello(padding: int = 0) -> bytes:
    """A ClientHello for `NAME`; `padding` makes it longer by about so many bytes."""
    context = ssl.create_default_context()
    if padding:
        context.set_alpn_protocols(["x" * 200] * (padding // 201))
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME).do_handshake()
    return outgoing.read()


@pytest.fixture
def ends() -> Iterator[Tuple[Stream, socket.socket]]:
    near, far = tcp_pair()
    with closing(Stream(near, TIMEOUT)) as stream, far:
        yield stream, far


def opening_of(stream: Stream) -> Opening:
    """After a CONNECT to an address and port 443, where no silence ends the wait."""
    rules = Rules(intercept=Hosts([NAME]), own_names=Hosts([]), naming=Naming((), Parameters([])))
    arrival = Arrival(Authority("10.0.0.1", 3128), Reach.NOTHING, connect_target=Authority("10.0.0.2", 443))
    return Opening(stream, arrival, rules, TIMEOUT)


def test_a_hello_in_two_pieces_is_known_with_its_last_byte(ends: Tuple[Stream, socket.socket]) -> None:
    """Nothing more comes after it: its client waits for the answer."""
    stream, far = ends
    opening, data = opening_of(stream), hello()
    far.sendall(data[:-100])
    assert select.select([stream], [], [], TIMEOUT)[0]
    assert opening.look() is None
    far.sendall(data[-100:])
    assert opening.wait() is Spoken.TLS
    assert opening.server_name == NAME
    assert opening.seconds


def test_a_hello_longer_than_one_look_is_known_at_once(ends: Tuple[Stream, socket.socket]) -> None:
    stream, far = ends
    opening, data = opening_of(stream), hello(padding=6000)
    assert len(data) > 6000
    far.sendall(data)
    assert opening.wait() is Spoken.TLS
    assert opening.server_name == NAME
    assert opening.seconds
