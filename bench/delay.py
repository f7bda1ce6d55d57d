#!/usr/bin/env python3
"""A network that is far away, on loopback: carries connections to another port, each byte late.

    delay.py LISTEN_PORT TARGET_PORT MILLISECONDS

Every byte arrives half a round trip after it was sent, in both directions, and so does the end of a connection. The
kernel accepts a connection at once, so the first bytes of a client wait another round trip, as if the client had waited
for the connection. The delay does not limit the bandwidth: as many bytes as fit into memory are under way. Nor does a
busy processor make a network longer: as root, this process goes before others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque
from typing import Deque, Optional, Tuple, cast

HOST = "127.0.0.1"
_UNDER_WAY = 64 * 1024 * 1024  # bytes of one direction; at 25 ms, that is 5 GB/s
_BUFFER = 4 * 1024 * 1024  # bytes that wait for an end that reads slowly
_BACKLOG = 1024


class Direction(asyncio.Protocol):
    """What arrives from one end, to be sent to the other end later. `None` among the pieces is the end.

    `extra` is added to the delay of all that arrives before the first piece is sent.
    """

    def __init__(self, delay: float, extra: float = 0.0) -> None:
        self.transport: Optional[asyncio.Transport] = None
        self.other: Optional[Direction] = None
        self.ended = False
        self._delay = delay
        self._opened = 0.0
        self._extra = extra
        self._pieces: Deque[Tuple[float, Optional[bytes]]] = deque()
        self._size = 0
        self._timer: Optional[asyncio.TimerHandle] = None
        self._other_is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(_BUFFER)
        self._opened = asyncio.get_running_loop().time()

    def data_received(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > _UNDER_WAY and self.transport is not None:
            self.transport.pause_reading()
        self._add(data)

    def eof_received(self) -> bool:
        self._add(None)
        return True  # the other direction goes on

    def connection_lost(self, error: Optional[Exception]) -> None:
        self._add(None)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.stop()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.go_on()

    def stop(self) -> None:
        """Send nothing: the other end does not read."""
        self._other_is_full = True

    def go_on(self) -> None:
        """Send again."""
        self._other_is_full = False
        self._send()

    def _add(self, piece: Optional[bytes]) -> None:
        # No piece overtakes another: what is sent after the connection is set up comes after what was sent before.
        due = max(asyncio.get_running_loop().time(), self._opened + self._extra) + self._delay
        self._pieces.append((due, piece))
        self._send()

    def _send(self) -> None:
        """Send what is due, and come back for the next piece."""
        loop = asyncio.get_running_loop()
        while self._pieces and not self._other_is_full:
            due, piece = self._pieces[0]
            if due > loop.time():
                if self._timer is None:
                    self._timer = loop.call_at(due, self._wake)
                return
            if self.other is None or self.other.transport is None:
                return  # the way to the target is not there yet: the end of `carry` comes back
            self._pieces.popleft()
            self._pass_on(self.other.transport, piece)

    def _wake(self) -> None:
        self._timer = None
        self._send()

    def _pass_on(self, transport: asyncio.Transport, piece: Optional[bytes]) -> None:
        if piece is None:
            self._end(transport)
            return
        self._size -= len(piece)
        if not transport.is_closing():
            transport.write(piece)
        if self._size <= _UNDER_WAY and self.transport is not None:
            self.transport.resume_reading()

    def _end(self, transport: asyncio.Transport) -> None:
        """Pass on the end of this direction, which is the end of the connection if the other one has ended, too."""
        assert self.transport is not None and self.other is not None
        self.ended = True
        if self.other.ended or self.transport.is_closing():
            transport.close()
            self.transport.close()
        elif not transport.is_closing():
            with contextlib.suppress(OSError):
                transport.write_eof()


async def serve(port: int, target: int, round_trip: float) -> None:
    """Carry connections from `port` to `target` for ever; `round_trip` is in seconds."""
    loop = asyncio.get_running_loop()
    connecting = set()

    async def connect(client: Direction) -> None:
        server = Direction(round_trip / 2)
        try:
            await loop.create_connection(lambda: server, HOST, target)
        except OSError:
            assert client.transport is not None
            client.transport.abort()
            return
        server.other, client.other = client, server
        client.go_on()
        server.go_on()

    class Client(Direction):
        """A client's end, which needs a way to the target."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            task = loop.create_task(connect(self))
            connecting.add(task)
            task.add_done_callback(connecting.discard)

    server = await loop.create_server(lambda: Client(round_trip / 2, round_trip), HOST, port, backlog=_BACKLOG)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        os.nice(-15)
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000))
