"""Streams on real sockets: plain, under TLS, under TLS in TLS. `far` is always the end that the test plays."""

from __future__ import annotations

import os
import socket
import ssl

import pytest
from support.client import wait_until
from support.layers import (
    HEAD,
    MEGABYTES,
    RECORD,
    connect,
    early_tls,
    read,
    read_to_end,
    select_readable,
)
from support.pairs import HOST, SOON, TIMEOUT, Pairs, client_context, in_thread, server_context

# --- bytes ---------------------------------------------------------------------------------------


def test_megabytes_arrive_in_both_directions(pairs: Pairs, layer: str) -> None:
    near, far = connect(pairs, layer)
    for source, sink in ((near, far), (far, near)):
        sent = in_thread(source.send, MEGABYTES)
        assert read(sink, len(MEGABYTES)) == MEGABYTES
        sent.result(TIMEOUT)


@pytest.mark.parametrize("data", [b"", b"x", bytearray(b"xyz"), memoryview(b"xyz")[1:]])
def test_every_kind_of_buffer_can_be_sent(pairs: Pairs, layer: str, data: bytes) -> None:
    stream, far = connect(pairs, layer)
    stream.send(data)
    stream.sendall(data)
    stream.shutdown_write()
    assert read_to_end(far) == bytes(data) * 2


def test_a_reader_that_reads_nothing_times_out(pairs: Pairs, layer: str) -> None:
    stream, _ = connect(pairs, layer)
    stream.timeout = SOON
    with pytest.raises(socket.timeout):
        stream.send(MEGABYTES * 4)


def test_a_stalled_sender_times_out(pairs: Pairs, layer: str) -> None:
    stream, _ = connect(pairs, layer)
    stream.timeout = SOON
    with pytest.raises(socket.timeout):
        read(stream, 1)


# --- TLS ------------------------------------------------------------------------------------------


def test_tls_starts_on_a_plain_stream(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    assert not stream.encrypted
    secured = pairs.keep(pairs.secure(stream, far, server=True))
    assert stream.encrypted
    secured.sendall(HEAD)
    assert stream.read_head(TIMEOUT) == HEAD


def test_tls_starts_with_bytes_that_came_too_early(pairs: Pairs) -> None:
    """A client need not wait for the 200 to its CONNECT before its TLS begins, and some do not."""
    stream, far, record = early_tls(pairs)
    assert stream.encrypted
    assert stream.buffered == 0
    far.send(record)
    assert read(stream, RECORD) == b"x" * RECORD


@pytest.mark.parametrize("layers", [0, 1])
def test_a_server_with_another_name_is_refused(pairs: Pairs, layers: int) -> None:
    near, far = pairs.streams()
    for _ in range(layers):
        started = in_thread(far.start_tls, server_context())
        near.start_tls(client_context(), HOST)
        started.result(TIMEOUT)
    refused = in_thread(far.start_tls, server_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        near.start_tls(client_context(), "b.example")
    near.close_abruptly()
    with pytest.raises(OSError):
        far.timeout = SOON
        refused.result(TIMEOUT)
        read(far, 1)


@pytest.mark.parametrize("layers", [0, 1])
def test_a_refused_server_gets_an_alert(pairs: Pairs, layers: int) -> None:
    """The alert leaves before the connection does; without it every misconfigured client is a riddle."""
    near, far = pairs.streams()
    for _ in range(layers):
        started = in_thread(far.start_tls, server_context())
        near.start_tls(client_context(), HOST)
        started.result(TIMEOUT)

    def serve() -> None:
        far.start_tls(server_context())
        read(far, 1)

    serving = in_thread(serve)
    with pytest.raises(ssl.SSLCertVerificationError):
        near.start_tls(client_context(), "b.example")
    near.close_abruptly()
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        serving.result(TIMEOUT)


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("said", [b"", b"\x16\x03", b"GET / HTTP/1.1\r\n\r\n" * 5])
def test_a_close_during_the_handshake_is_an_error(pairs: Pairs, layers: int, said: bytes) -> None:
    near, far = pairs.streams()
    if layers:
        started = in_thread(near.start_tls, server_context())
        far.start_tls(client_context(), HOST)
        started.result(TIMEOUT)
    far.send(said)
    far.close()
    with pytest.raises(OSError):
        near.start_tls(server_context())
    near.close()


@pytest.mark.parametrize("layers", [0, 1])
def test_a_peer_that_stalls_in_the_handshake_times_out(pairs: Pairs, layers: int) -> None:
    near, far = pairs.streams()
    if layers:
        started = in_thread(near.start_tls, server_context())
        far.start_tls(client_context(), HOST)
        started.result(TIMEOUT)
    near.timeout = SOON
    with pytest.raises(socket.timeout):
        near.start_tls(server_context())
    near.close()


def test_tls_runs_in_tls_in_tls(pairs: Pairs) -> None:
    near, far = pairs.nested()
    started = in_thread(near.start_tls, server_context())
    far.start_tls(client_context(), HOST)
    started.result(TIMEOUT)
    sent = in_thread(far.send, MEGABYTES[:1_000_000])
    assert read(near, 1_000_000) == MEGABYTES[:1_000_000]
    sent.result(TIMEOUT)


# --- ends -----------------------------------------------------------------------------------------


def test_half_close_by_the_far_end_leaves_the_way_back_open(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(b"question")
    far.shutdown_write()
    assert read_to_end(stream) == b"question"
    stream.send(b"answer")
    stream.close()
    assert read_to_end(far) == b"answer"


def test_half_close_by_our_end_leaves_the_way_back_open(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    stream.send(b"question")
    stream.shutdown_write()
    assert read_to_end(far) == b"question"
    far.send(b"answer")
    far.close()
    assert read_to_end(stream) == b"answer"


def test_bytes_in_flight_survive_a_half_close(pairs: Pairs, layer: str) -> None:
    """The far end is in the middle of sending when we close our direction."""
    stream, far = connect(pairs, layer)
    far.send(b"first")
    assert select_readable(stream)
    stream.shutdown_write()
    far.send(b"second")
    far.close()
    assert read_to_end(stream) == b"firstsecond"


@pytest.mark.parametrize("layer", ["tls server", "tls client", "nested server", "nested client"])
def test_records_read_ahead_survive_a_half_close(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.send(b"first")
    far.send(b"second")
    assert read(stream, 1) == b"f"
    stream.shutdown_write()
    far.close()
    assert read_to_end(stream) == b"irstsecond"


def test_linger_lets_the_last_answer_be_read(pairs: Pairs, layer: str) -> None:
    """RFC 9112 §9.6: unread bytes of a request would turn the close into a reset, which destroys the answer."""
    stream, far = connect(pairs, layer)
    far.send(MEGABYTES[:100_000])
    stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    lingering = in_thread(stream.linger, TIMEOUT)
    far.send(MEGABYTES[:100_000])
    assert read_to_end(far) == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    far.close()
    lingering.result(TIMEOUT)


def test_linger_ends_by_itself(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    stream.linger(SOON)
    assert stream.fileno() == -1
    assert read_to_end(far) == b""


def test_linger_survives_a_reset(pairs: Pairs, layer: str) -> None:
    stream, far = connect(pairs, layer)
    far.reset()
    assert select_readable(stream)
    stream.linger(TIMEOUT)
    assert stream.fileno() == -1


def test_makefile_for_http_client_does_not_close_the_stream(pairs: Pairs) -> None:
    stream, far = pairs.plain()
    stream.makefile("rb").close()
    far.sendall(b"x")
    assert read(stream, 1) == b"x"


def test_read_much_takes_all_records_that_have_arrived(pairs: Pairs, layer: str) -> None:
    """All records that have arrived, where `readinto` gives one."""
    near, far = connect(pairs, layer)
    raw = os.urandom(100_000)
    sending = in_thread(far.send, raw)
    view = memoryview(bytearray(200_000))
    count = 0
    while count < len(raw):
        count += near.read_much(view[count:])
    sending.result(TIMEOUT)
    assert bytes(view[:count]) == raw


def test_an_error_after_bytes_is_raised_after_them(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = connect(pairs, "plain")
    far.send(b"x")  # so that something is there to be read
    counts = iter([3, 2])

    class Transport:
        def recv_into(self, _: object) -> int:
            for count in counts:
                return count
            raise ConnectionResetError("gone")

        def settimeout(self, _: object) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(near, "_transport", Transport())
        assert near.read_much(memoryview(bytearray(100))) == 5
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                near.readinto(memoryview(bytearray(100)))


def test_bytes_before_the_close_are_kept_after_our_own_close_notify(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python raises SSLZeroReturnError for the peer's close_notify then."""
    near, far = connect(pairs, "tls")
    far.send(b"abc")
    wait_until(near.arrived)

    class Ended:
        def read(self, *_: object) -> int:
            raise ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "closed")

    with monkeypatch.context() as patch:
        patch.setattr(near, "_tls", Ended())
        view = memoryview(bytearray(100))
        assert near.read_much(view) == 3 and bytes(view[:3]) == b"abc"
        assert near.read_much(view) == 0
