"""What the log and Cache-Status say of each request."""

from __future__ import annotations

import base64
import logging
import re
import ssl
import threading
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

import pytest
from support.client import Answer, wait_until
from support.origin import Asked, Connection, Gate
from support.running import HOST, RunningDduct

from monitoring.details import Detail
from monitoring.log import LineFormatter
from proxy.access import hash_password

ROOT = Path(__file__).resolve().parents[2]
FRESH = [("Cache-Control", "max-age=600")]


def answer(asked: Asked, connection: Connection) -> None:
    fields = [("Cache-Status", "cdn; hit")] if asked.target == "/cdn" else []
    connection.respond(200, [*FRESH, *fields], b"body", asked.method == "HEAD")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "dduct.session")
    return caplog


@pytest.fixture
def numbered(log: pytest.LogCaptureFixture) -> Iterator[List[str]]:
    """The lines as they would be written."""
    lines: List[str] = []
    handler = logging.Handler()
    handler.setFormatter(LineFormatter())
    handler.emit = lambda record: lines.append(handler.format(record))  # type: ignore[method-assign]
    logging.getLogger("dduct").addHandler(handler)
    yield lines
    logging.getLogger("dduct").removeHandler(handler)


def line(log: pytest.LogCaptureFixture, part: str) -> logging.LogRecord:
    """The one record with `part`, once it is there: it is written after the answer."""

    def found() -> List[logging.LogRecord]:
        return [record for record in log.records if part in record.getMessage()]

    wait_until(lambda: bool(found()))
    return found()[-1]


STATUSES: List[Tuple[str, str, str, int, str]] = [
    ("GET", "/x.zip", "", 200, "dduct; fwd=uri-miss; stored"),
    ("GET", "/x", "", 200, "dduct; fwd=bypass; detail=no-filter"),
    ("HEAD", "/x", "", 200, "dduct; fwd=bypass; detail=no-filter"),
    ("GET", "/" + "x" * 2100 + ".zip", "", 200, "dduct; fwd=bypass; detail=path-too-long"),
    ("POST", "/x.zip", "Content-Length: 0", 200, "dduct; fwd=method"),
    ("GET", "/x.zip", "Content-Length: 0", 200, "dduct; "),
    ("GET", "/x", "Expect: x", 417, "dduct; detail=malformed"),
    ("OPTIONS", "/x", "Max-Forwards: 0", 200, "dduct; detail=max-forwards"),
]


@pytest.mark.parametrize("method, path, field, status, said", STATUSES)
def test_every_response_has_its_cache_status(
    dduct: RunningDduct, method: str, path: str, field: str, status: int, said: str
) -> None:
    port = dduct.origin(answer, tls=False).port
    with dduct.client() as client:
        got = client.get(f"http://{HOST}:{port}{path}", "x", *filter(None, [field]), method=method)
    assert (got.status, (got.get("cache-status") or "")[: len(said)]) == (status, said)


def test_errors_and_builtin_pages_have_their_cache_status(dduct: RunningDduct) -> None:
    gone = dduct.origin(lambda _, connection: connection.reset(), tls=False).port
    wanted = {
        f"http://{HOST}:{gone}/x": (502, "dduct; fwd=bypass; detail=no-filter"),
        f"http://{HOST}:{gone}/x.zip": (502, "dduct; detail=no-answer"),
        "/healthz": (200, "dduct; detail=own-page"),
        "/nothing": (404, "dduct; detail=own-page"),
    }
    for target, (status, said) in wanted.items():
        with dduct.client() as client:
            got = client.get(target, f"{HOST}:{dduct.tcp_port}")
            assert (got.status, got.get("cache-status")) == (status, said)
    with dduct.client() as client:
        client.send(b"GET /\r\n\r\n")
        assert client.read().get("cache-status") == "dduct; detail=malformed"


def test_the_origins_cache_status_comes_first(dduct: RunningDduct) -> None:
    port = dduct.origin(answer, tls=False).port
    with dduct.client() as client:
        got = client.get(f"http://{HOST}:{port}/cdn", "x")
    said = [value for name, value in got.headers if name.lower() == "cache-status"]
    assert said == ["cdn; hit", "dduct; fwd=bypass; detail=no-filter"]


def test_the_readme_explains_every_detail() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [detail.value for detail in Detail if f"`{detail.value}`" not in text] == []


def test_a_refusal_logs_reason_client_and_target(dduct: RunningDduct, log: pytest.LogCaptureFixture) -> None:
    origin = dduct.origin(answer)
    with dduct.intercepted(origin) as client:
        assert client.get("/here.zip", "mirror.test").status == 421
    record = line(log, " 421 ")
    assert f"https://{HOST}:{origin.port}/here.zip 421" in record.getMessage()
    assert f"than the CONNECT to {HOST}:{origin.port}" in record.getMessage()
    with dduct.intercepted(origin) as client:
        client.send(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n")
        assert client.read().status == 400
    assert f" - {HOST}:{origin.port} 400 0 " in line(log, "malformed field line").getMessage()


def test_users_are_logged_and_passwords_never(
    start_dduct: Callable[..., RunningDduct], tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    users = tmp_path / "users"
    users.write_text(hash_password("nina", "right horse") + "\n")
    dduct = start_dduct(auth_file=users)
    url = f"http://{HOST}:{dduct.origin(answer, tls=False).port}/x"

    def ask(password: str) -> Answer:
        word = base64.b64encode(f"nina:{password}".encode()).decode()
        with dduct.client() as client:
            return client.get(url, "x", f"Proxy-Authorization: Basic {word}")

    assert ask("wrong horse").status == 407
    assert "nina" in line(log, "wrong password").getMessage()
    assert "wrong password for nina (proxy.auth_file)" in line(log, " 407 ").getMessage()
    assert ask("right horse").status == 200
    assert line(log, " 200 ").getMessage().startswith(f"nina@{HOST} GET {url} 200 4 ")
    assert "horse" not in log.text


def test_upstream_failures_are_warnings_and_probes_are_quiet(
    dduct: RunningDduct, log: pytest.LogCaptureFixture
) -> None:
    gone = dduct.origin(lambda _, connection: connection.reset(), tls=False).port

    def torn(_: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", "10")])
        connection.send_body(b"half")
        connection.reset()

    short = dduct.origin(torn, tls=False).port
    with dduct.client() as client:
        client.get(f"http://{HOST}:{gone}/x", "x")
    with dduct.client() as client:
        assert not client.get(f"http://{HOST}:{short}/y", "x").complete
    with dduct.client() as client:
        client.get("/healthz", f"{HOST}:{dduct.tcp_port}")
        client.get("/metrics", f"{HOST}:{dduct.tcp_port}")
        client.get("/ca.crt", f"{HOST}:{dduct.tcp_port}")
    parts = (" 502 ", "/y 200 ", "/healthz 200", "/metrics 200", "/ca.crt 200")
    levels = [line(log, part).levelno for part in parts]
    assert levels == [logging.WARNING, logging.WARNING, logging.DEBUG, logging.DEBUG, logging.INFO]


def test_a_tunnel_logs_its_bytes(dduct: RunningDduct, log: pytest.LogCaptureFixture) -> None:
    body = bytes(1_000_000)
    port = dduct.origin(lambda _, connection: connection.respond(200, [], body), tls=False).port
    with dduct.client() as client:
        assert client.connect(f"localhost:{port}").status == 200
        request = f"GET / HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode()
        client.send(request)
        assert client.read().body == body
    found = re.search(r" 200 (\d+) [0-9.]+s tunnel; sent=(\d+)", line(log, "CONNECT localhost").getMessage())
    assert found is not None
    assert len(body) < int(found[1]) < len(body) + 1000
    assert int(found[2]) == len(request)


def test_a_failed_handshake_is_logged_with_its_host(dduct: RunningDduct, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dduct")
    trusting_nobody = ssl.create_default_context()
    for port, name in ((dduct.tls_port, "origin.test"), (dduct.tcp_port, "origin.test")):
        caplog.clear()
        with dduct.client(port) as client:
            if port == dduct.tcp_port:
                client.connect(f"{name}:443")
            with pytest.raises(ssl.SSLError):
                client.start_tls(trusting_nobody, name)
        message = line(caplog, "makes no TLS connection").getMessage()
        assert message.startswith(f"{HOST} ") and name in message and "unknown ca" in message.lower()


def test_the_log_names_the_side_that_cut_a_transfer(dduct: RunningDduct, log: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    large = bytes(8_000_000)

    def begun(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", str(2 * len(large)))])
        connection.send_body(large)
        if asked.target != "/left":
            connection.reset()
        gate.wait(20)

    port = dduct.origin(begun, tls=False).port
    url = f"http://{HOST}:{port}"
    with dduct.client() as client:
        assert not client.get(f"{url}/torn", "x").complete
    with dduct.client() as client:
        client.send(f"GET {url}/left HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        client.read_until(b"\r\n\r\n")
        client.reset()
    gate.set()
    torn, left = line(log, "/torn 200"), line(log, "/left 200")
    assert torn.getMessage().endswith("; cut by its origin") and torn.levelno == logging.WARNING
    assert "detail=no-filter; cut by the client: " in left.getMessage() and left.levelno == logging.INFO


@pytest.mark.parametrize("by", ["the client", "its origin"])
def test_the_log_names_the_side_that_cut_a_tunnel(dduct: RunningDduct, log: pytest.LogCaptureFixture, by: str) -> None:
    arrived, gone = threading.Event(), threading.Event()

    def handler(_: Asked, connection: Connection) -> None:
        arrived.set()
        if by == "its origin":
            connection.reset()
        gone.wait(20)

    port = dduct.origin(handler, tls=False).port
    with dduct.client() as client:
        client.connect(f"localhost:{port}")
        client.send(f"GET / HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
        assert arrived.wait(20)
        if by == "the client":
            client.reset()
        found = line(log, "CONNECT localhost")
    gone.set()
    assert f" tunnel; cut by {by}: " in found.getMessage() and "; sent=" in found.getMessage()
    assert found.levelno == logging.INFO


NOT_KEPT: List[Tuple[str, str, List[Tuple[str, str]], str]] = [
    ("GET", "", [("Cache-Control", "no-store")], "fwd=uri-miss; detail=no-store"),
    ("GET", "Cache-Control: no-store", [], "fwd=uri-miss; detail=no-store"),
    ("GET", "Range: bytes=0-1", [("Cache-Control", "no-store")], "fwd=uri-miss; detail=no-store"),
    ("GET", "Cache-Control: only-if-cached", [], "detail=only-if-cached"),
    ("GET", "", [("Vary", "*")], "fwd=uri-miss; detail=vary-star"),
    ("GET", "", [("Content-Type", "text/html")], "fwd=uri-miss; detail=html"),
    ("GET", "", [("X-Large", "x" * 5000)], "fwd=uri-miss; detail=metadata-too-large"),
    ("HEAD", "", [], "fwd=uri-miss; detail=head"),
]


@pytest.mark.parametrize("method, asked, fields, said", NOT_KEPT)
def test_a_response_that_is_not_stored_logs_the_reason(
    dduct: RunningDduct, method: str, asked: str, fields: List[Tuple[str, str]], said: str
) -> None:
    def handler(request: Asked, connection: Connection) -> None:
        connection.respond(200, fields, b"body", request.method == "HEAD")

    port = dduct.origin(handler, tls=False).port
    with dduct.client() as client:
        got = client.get(f"http://{HOST}:{port}/x.zip", "x", *filter(None, [asked]), method=method)
    assert got.get("cache-status") == f"dduct; {said}"


def test_a_response_not_stored_for_local_reasons_logs_the_reason(start_dduct: Callable[..., RunningDduct]) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        if asked.target == "/gone.zip":
            connection.respond(404, [], b"none")
            return
        connection.head(200, [] if asked.target == "/open.zip" else [("Content-Length", "200000")])
        connection.send_body(bytes(200_000))
        connection.sock.close()

    dduct = start_dduct(max_size=100_000)
    port = dduct.origin(handler, tls=False).port
    for path, detail in (("gone", "status"), ("open", "no-length"), ("large", "too-large")):
        with dduct.client() as client:
            got = client.get(f"http://{HOST}:{port}/{path}.zip", "x")
        assert got.get("cache-status") == f"dduct; fwd=uri-miss; detail={detail}"


def test_another_variant_is_logged_as_a_vary_miss(dduct: RunningDduct, log: pytest.LogCaptureFixture) -> None:
    def handler(_: Asked, connection: Connection) -> None:
        connection.respond(200, [*FRESH, ("Vary", "Accept")], b"body")

    origin = dduct.origin(handler)
    said = [dduct.fetch(origin, "/x.zip", f"Accept: {kind}").get("cache-status") for kind in ("a/a", "a/a", "b/b")]
    assert said[0] == "dduct; fwd=uri-miss; stored" and (said[1] or "").startswith("dduct; hit")
    assert said[2] == "dduct; fwd=vary-miss"
    assert line(log, "fwd=vary-miss").levelno == logging.INFO


@pytest.mark.one_process
def test_lines_have_the_number_of_their_connection_and_request(dduct: RunningDduct, numbered: List[str]) -> None:
    gate = Gate()

    def half(asked: Asked, connection: Connection) -> None:
        if asked.target == "/half.zip":
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            gate.wait()
            connection.over = True
        else:
            answer(asked, connection)

    def numbers(part: str, count: int) -> List[Tuple[int, ...]]:
        """The numbers of the lines with `part`, once there are so many."""
        wait_until(lambda: sum(part in one for one in numbered) >= count)
        found = [re.search(r" (\d+)\.(\d+)\] ", one) for one in numbered if part in one]
        return [tuple(map(int, one.groups())) for one in found if one is not None]

    url = f"http://{HOST}:{dduct.origin(half, tls=False).port}"
    with dduct.client() as client:
        for _ in range(6):  # the last ones by the poller's thread
            assert client.get(f"{url}/x.zip", "x").body == b"body"
        first, *others = numbers("/x.zip 200", 6)
    assert others == [(first[0], request) for request in range(2, 7)] and first[1] == 1
    with dduct.client() as client:
        client.send(f"GET {url}/half.zip HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        client.read_until(b"\r\n\r\n")  # from now on it gets no other answer
        gate.open()
        with pytest.raises(OSError):
            client.read_until(b"whole")
    assert numbers("/half.zip 200", 1) == [(first[0] + 1, 1)]
    assert set(numbers("Not kept: ", 1)) == {(first[0] + 1, 1)}  # the fill's own thread, of each attempt
