"""An origin that answers as it is told, and to which dduct keeps connections."""

from __future__ import annotations

import threading
from typing import Callable, Dict, Tuple

from support.client import Client, wait_until
from support.origin import Asked, Connection, Origin
from support.running import HOST, RunningDduct

BODY = bytes(range(256)) * 20
FRESH = ("Cache-Control", "max-age=600")
WHOLE = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: 5120\r\n\r\n" + BODY
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"

Reaction = Callable[[Asked, Connection], None]


def responds(status: int, *fields: Tuple[str, str], body: bytes = BODY) -> Reaction:
    return lambda _, connection: connection.respond(status, fields, body)


def sends(*pieces: bytes) -> Reaction:
    def react(_: Asked, connection: Connection) -> None:
        for piece in pieces:
            connection.send(piece)

    return react


def tagged(*fields: Tuple[str, str], body: bytes = BODY) -> Reaction:
    return responds(200, ("Cache-Control", "no-cache"), ("ETag", '"1"'), *fields, body=body)


def confirms(*fields: Tuple[str, str]) -> Reaction:
    return lambda _, connection: connection.head(304, fields)


class Told:
    """An origin whose reactions are by path; it answers anything else with the object."""

    def __init__(self) -> None:
        self.reactions: Dict[str, Reaction] = {}

    def __call__(self, asked: Asked, connection: Connection) -> None:
        reaction = self.reactions.get(asked.target, responds(200, FRESH, body=asked.target.encode()))
        reaction(asked, connection)


def send_get(client: Client, origin: Origin, path: str, fields: str = "") -> None:
    """Send a GET, and do not wait for its answer."""
    client.send(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n{fields}\r\n".encode())


def primed(dduct: RunningDduct, told: Reaction, connections: int = 1) -> Origin:
    """An origin to which dduct keeps connections."""
    ready = threading.Barrier(connections)

    def react(asked: Asked, connection: Connection) -> None:
        if asked.target.startswith("/first"):
            ready.wait(10)
            connection.respond(200, [("Cache-Control", "no-store")], b"first")
        else:
            told(asked, connection)

    origin = dduct.origin(react)
    clients = [dduct.intercepted(origin) for _ in range(connections)]
    for number, client in enumerate(clients):
        client.send(f"GET /first{number} HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
    for client in clients:
        assert client.read().body == b"first"
        client.sock.close()
    wait_until(lambda: dduct.server.runtime.services.origins.idle == connections)
    return origin
