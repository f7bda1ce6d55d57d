"""What clients that are not always at hand send, word for word, and what they want to be told."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import pytest
from support.client import Client
from support.origin import Asked, Connection, Files, Origin
from support.running import HOST, RunningDduct

PACKAGE = os.urandom(120_000)


def _index() -> bytes:
    """An APKINDEX.tar.gz."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        entry = tarfile.TarInfo("APKINDEX")
        entry.size = 10
        archive.addfile(entry, io.BytesIO(b"P:sample\n\n"))
    return content.getvalue()


INDEX = _index()  # once: the archive says when it was made


def connect(dduct: RunningDduct, origin: Origin, head: str) -> Client:
    """Through CONNECT as the client writes it, with what it looks for in the answer."""
    client = dduct.client()
    client.send(head.replace("HOST", f"{HOST}:{origin.port}").encode())
    answer = client.read_until(b"\r\n\r\n")
    # One apk reads fields until it has seen one, and librepo looks for these very words.
    assert answer.startswith(b"HTTP/1.1 200 Connection established\r\nVia: ")
    assert b"content-length" not in answer.lower()
    client.start_tls(dduct.trust, HOST)
    return client


APK_CONNECT = "CONNECT HOST HTTP/1.1\r\nHost: HOST\r\nProxy-Connection: keep-alive\r\n\r\n"
APK_GET = "GET {} HTTP/1.1\r\nHost: HOST\r\nUser-Agent: apk-tools/2.14.4\r\nAccept: */*\r\n{}\r\n"


def test_apk_updates_and_adds_cold_and_warm(dduct: RunningDduct) -> None:
    """An update validates the index, an add takes the package; both over one kept connection."""
    place = "/alpine/v3.20/main/x86_64"
    files = Files({f"{place}/APKINDEX.tar.gz": INDEX, f"{place}/a-1-r0.apk": PACKAGE})
    origin = dduct.origin(files)
    since = ""
    for attempt in ("cold", "warm"):
        with connect(dduct, origin, APK_CONNECT) as client:

            def ask(path: str, fields: str = "", client: Client = client) -> None:
                client.send(APK_GET.format(path, fields).replace("HOST", f"{HOST}:{origin.port}").encode())

            ask(f"{place}/APKINDEX.tar.gz", f"Cache-Control: max-age=0\r\n{since}")
            answer = client.read()
            assert (answer.status, answer.body) == ((200, INDEX) if attempt == "cold" else (304, b""))
            since = f"If-Modified-Since: {answer.get('last-modified')}\r\n"
            ask(f"{place}/a-1-r0.apk", "Connection: keep-alive\r\n")
            package = client.read()
            assert (package.status, package.body) == (200, PACKAGE)
            ask(f"{place}/a-1-r0.apk", "Range: bytes=100000-\r\n")
            assert client.read().body == PACKAGE[100_000:]
    assert origin.count(f"{place}/a-1-r0.apk") == 1
    assert origin.body_sent == len(PACKAGE) + len(INDEX)
    assert origin.count(f"{place}/APKINDEX.tar.gz") == 2


CARGO_CONNECT = "CONNECT HOST HTTP/1.1\r\nHost: HOST\r\nUser-Agent: cargo 1.80\r\nProxy-Connection: Keep-Alive\r\n\r\n"
CARGO_GET = "GET {} HTTP/1.1\r\nHost: HOST\r\nUser-Agent: cargo/1.80.0\r\nAccept-Encoding: gzip\r\nAccept: */*\r\n\r\n"


def test_cargo_fetches_cold_and_warm(dduct: RunningDduct) -> None:
    """The index is relayed, gzip and all; the crate, which is a redirect to a store, is kept as it is there."""

    def crates(asked: Asked, connection: Connection) -> None:
        if asked.target == "/sa/mp/sample":
            coding = [("Content-Encoding", "gzip")] if asked.get("accept-encoding") == "gzip" else []
            connection.respond(200, [*coding, ("ETag", '"i"')], b"index")
        elif asked.target == "/crates/sample/sample-1.0.0.crate":
            connection.respond(302, [("Location", f"https://{HOST}:{store.port}/crates/sample-1.0.0.crate?Expires=1")])
        else:
            connection.respond(404, [], b"")

    store = dduct.origin(Files({"/crates/sample-1.0.0.crate?Expires=1": PACKAGE}))
    origin = dduct.origin(crates)
    for _ in ("cold", "warm"):
        with connect(dduct, origin, CARGO_CONNECT) as client:
            answers = []
            for path in ("/sa/mp/sample", "/crates/sample/sample-1.0.0.crate"):
                client.send(CARGO_GET.format(path).replace("HOST", f"{HOST}:{origin.port}").encode())
                answers.append(client.read())
            assert answers[0].body == b"index" and answers[0].get("content-encoding") == "gzip"
            assert answers[1].body == PACKAGE and answers[1].get("content-encoding") is None
    assert store.body_sent == len(PACKAGE)


CONTAINERD = "GET {} HTTP/1.1\r\nHost: HOST\r\nUser-Agent: containerd/1.7.24\r\nAccept: {}, */*\r\n{}\r\n"
ZSTD = "Accept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5\r\n"


def test_containerd_pulls_in_parallel_ranges(dduct: RunningDduct, layer: Callable[[bytes], str]) -> None:
    """It asks for the rest of a layer from several offsets and closes early; a 200 would be an error on a resume."""
    path = layer(PACKAGE)
    origin = dduct.origin(Files({path: PACKAGE}))
    kind = "application/vnd.oci.image.layer.v1.tar+gzip"
    for _ in ("cold", "warm"):
        for start in (0, 50_000, 110_000):
            client = connect(dduct, origin, APK_CONNECT)
            wanted = f"Range: bytes={start}-\r\n"
            client.send(CONTAINERD.format(path, kind, ZSTD + wanted).replace("HOST", f"{HOST}:{origin.port}").encode())
            head = client.read_until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 206 ")
            assert f"Content-Range: bytes {start}-{len(PACKAGE) - 1}/{len(PACKAGE)}".encode() in head
            assert b"ontent-Encoding" not in head
            assert client._exactly(5_000) == PACKAGE[start : start + 5_000]
            client.sock.close()
    assert origin.count(path) == 1
    assert origin.requests[0].get("accept-encoding") == "identity"


@pytest.fixture
def layer() -> Callable[[bytes], str]:
    return lambda body: f"/v2/library/app/blobs/sha256:{hashlib.sha256(body).hexdigest()}"


def test_eight_parallel_ranges_of_a_large_cold_layer_cause_one_transfer(dduct: RunningDduct) -> None:
    """Half a gigabyte, asked for from eight offsets at once; each reader takes its eighth and closes early."""
    block = os.urandom(1_000_000)
    size = 500 * len(block)
    digest = hashlib.sha256()
    for _ in range(500):
        digest.update(block)

    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", str(size)), ("ETag", '"1"')])
        for _ in range(500):
            connection.send_body(block)

    origin = dduct.origin(handler)
    path = f"/v2/library/app/blobs/sha256:{digest.hexdigest()}"

    def read(number: int) -> bool:
        start = number * size // 8
        with connect(dduct, origin, APK_CONNECT) as client:
            request = CONTAINERD.format(path, "application/octet-stream", f"Range: bytes={start}-\r\n")
            client.send(request.replace("HOST", f"{HOST}:{origin.port}").encode())
            head = client.read_until(b"\r\n\r\n")
            right = f"bytes {start}-{size - 1}/{size}".encode() in head
            offset, left = start, size // 8
            data, client._buffer = client._buffer, b""
            while left and right:
                data = (data or client.sock.recv(1 << 20))[:left]
                place = offset % len(block)
                right = data == (block + block + block)[place : place + len(data)] and bool(data)
                offset, left, data = offset + len(data), left - len(data), b""
            return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
    assert origin.count(path) == 1
