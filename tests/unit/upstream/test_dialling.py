"""Dialler: which connections it has in its hands."""

from __future__ import annotations

from contextlib import closing

from support.pairs import TIMEOUT, tcp_pair

from monitoring.metrics import Counters
from net.stream import Stream
from storage.shared_table import SharedTable
from upstream.dialling import Dialler, Settings
from upstream.origin_tls import TlsSettings


def test_a_kept_connection_that_is_taken_while_all_are_closed_is_ended_too() -> None:
    """It was in the pool no more, and not in use yet."""
    dialler = Dialler(Settings(10.0, 60.0, 300.0, TlsSettings()), Counters(), SharedTable(64))
    near, far = tcp_pair()
    with closing(Stream(near, TIMEOUT)) as stream, far:
        dialler.use(stream)
        assert not stream.unusable()
        dialler.release(stream)
        dialler.close()
        dialler.use(stream)
        assert stream.unusable()
