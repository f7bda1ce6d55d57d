"""The program as a process: its command line, its log, its signals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Callable, Iterator, List, Optional

import pytest
from support.client import Client
from support.origin import Asked, Connection, Gate, Origin

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30.0
BODY = os.urandom(500_000)
LINE = re.compile(r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (?:ERROR|WARN |INFO |DEBUG|TRACE) dduct[.a-z0-9]*\] .+")


def run(*arguments: object, program: Path = ROOT / "dduct.py") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd="/")


class Process:
    """A running dduct and its log."""

    def __init__(self, configuration: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "dduct.py"), "--cfg", str(configuration)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.lines: List[str] = []
        self._changed = threading.Condition()  # guards lines
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        stream: Optional[IO[str]] = self._process.stderr
        assert stream is not None
        for line in stream:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, text: str, count: int = 1) -> List[str]:
        """The log lines with `text` in them, once there are so many."""
        with self._changed:
            found = self._changed.wait_for(lambda: sum(text in line for line in self.lines) >= count, PATIENCE)
            assert found, "\n".join(self.lines)
            return [line for line in self.lines if text in line]

    def ports(self) -> List[int]:
        return [int(line.rpartition(":")[2]) for line in self.wait_for("Listening on", 2)]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reading.join(PATIENCE)
        assert self._process.stderr is not None
        self._process.stderr.close()


@pytest.fixture
def configuration(tmp_path: Path, certificates: Path) -> Path:
    shutil.copytree(certificates, tmp_path / "certs")
    return write(tmp_path)


def write(directory: Path, **keys: str) -> Path:
    """A configuration below `directory` with free ports; `tcp_bind="…"` replaces."""
    binds = {"tcp_bind": "127.0.0.1:0", "tls_bind": "127.0.0.1:0", **keys}
    lines = [f"{key} = '{value}'" for key, value in binds.items()]
    path = directory / "some.toml"
    path.write_text("[misc]\ncert_dir = 'certs'\nfile_dir = 'files'\n[proxy]\n" + "\n".join(lines) + "\n")
    with path.open("a") as file:
        file.write("[certs]\nrsa_key_bits = 2048\n")
    return path


@pytest.fixture
def start() -> Iterator[Callable[[Path], Process]]:
    running: List[Process] = []

    def begin(configuration: Path) -> Process:
        running.append(Process(configuration))
        return running[-1]

    yield begin
    for process in running:
        process.close()


# --- options ----------------------------------------------------------------------------------------


def test_version_and_help() -> None:
    version = run("--version")
    assert version.returncode == 0 and re.fullmatch(r"dduct \d+\.\d+\.\d+\n", version.stdout)
    usage = run("--help")
    assert usage.returncode == 0 and all(option in usage.stdout for option in ("--cfg", "--check", "--version"))


def test_an_unknown_option_is_bad_usage() -> None:
    assert run("--frobnicate").returncode == 2


def test_check_prints_what_would_be_used_and_starts_nothing(configuration: Path) -> None:
    done = run("--cfg", configuration, "--check")
    assert done.returncode == 0 and "tcp_bind = '127.0.0.1:0'" in done.stdout
    assert not (configuration.parent / "files").exists()


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_bad_configuration_is_one_line_and_status_2(tmp_path: Path, check: List[str]) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[proxy]\ntcp_bid = ''\n")
    done = run("--cfg", path, *check)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"dduct: {path}: unknown key proxy.tcp_bid; did you mean proxy.tcp_bind?\n"


def test_a_configuration_that_is_not_there_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = run("--cfg", tmp_path / "none.toml")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "none.toml: No such file" in done.stderr


@pytest.mark.parametrize("arguments", [["--check"], ["--cfg", "--check"]])
def test_without_a_file_the_one_beside_the_program_counts(tmp_path: Path, arguments: List[str]) -> None:
    for module in ROOT.glob("*.py"):
        shutil.copy(module, tmp_path)
    (tmp_path / "dduct.toml").write_text("[certs]\nca_cn = 'beside'\n")
    done = run(*arguments, program=tmp_path / "dduct.py")
    assert done.returncode == 0 and "ca_cn = 'beside'" in done.stdout
    assert f"cert_dir = '{tmp_path}/certs'" in done.stdout


def test_without_any_file_there_are_defaults(tmp_path: Path) -> None:
    for module in ROOT.glob("*.py"):
        shutil.copy(module, tmp_path)
    done = run("--check", program=tmp_path / "dduct.py")
    assert done.returncode == 0 and done.stdout.startswith("# from the built-in defaults\n")
    assert f"file_dir = '{tmp_path}/files'" in done.stdout
    assert run("--cfg", "--check", program=tmp_path / "dduct.py").returncode == 2


# --- start ------------------------------------------------------------------------------------------


def test_the_first_start_says_what_it_does_in_the_seeds_words(tmp_path: Path, start: Callable[[Path], Process]) -> None:
    process = start(write(tmp_path))
    ports = process.ports()
    assert all(LINE.fullmatch(line) for line in process.lines)
    said = [line.partition("] ")[2] for line in process.lines]
    names = ["ca.key", "ca.crt", "server.key", "server.crt", "server.p12", "client.key", "client.crt", "client.p12"]
    assert said == [
        *(f'Write "{tmp_path}/certs/{name}"' for name in names),
        f'Files "{tmp_path}/files"',
        *(f"Listening on 127.0.0.1:{port}" for port in ports),
    ]
    assert re.fullmatch(r"\[\S+Z INFO  dduct\.certs\] Write .*", process.lines[0])


def test_both_ports_answer(configuration: Path, start: Callable[[Path], Process]) -> None:
    tcp, tls = start(configuration).ports()
    ca = configuration.parent / "certs/ca.crt"
    with Client(tcp) as plain, Client(tls) as encrypted:
        assert plain.get("/healthz", "localhost").body == b"ok\n"
        assert plain.get("/ca.crt", "localhost").body == ca.read_bytes()
        encrypted.start_tls(ssl.create_default_context(cafile=str(ca)), "127.0.0.1")
        assert encrypted.get("/healthz", "localhost").body == b"ok\n"


@pytest.mark.parametrize("key", ["tcp_bind", "tls_bind"])
def test_a_port_in_use_is_one_line_and_status_1(tmp_path: Path, configuration: Path, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--cfg", write(tmp_path, **{key: f"127.0.0.1:{port}"}))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == f"dduct: proxy.{key} 127.0.0.1:{port} cannot be bound: Address already in use"


def test_unusable_directories_are_one_line_and_status_1(tmp_path: Path, configuration: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    done = run("--cfg", configuration)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith('dduct: misc.file_dir "')
    shutil.rmtree(tmp_path / "certs")
    (tmp_path / "certs").write_text("in the way")
    done = run("--cfg", configuration)
    assert done.returncode == 1 and "misc.cert_dir" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_spoiled_certificate_is_one_line_and_status_1(tmp_path: Path, configuration: Path) -> None:
    (tmp_path / "certs/ca.key").write_text("spoiled")
    done = run("--cfg", configuration)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "ca.key" in done.stderr


# --- end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(
    configuration: Path, start: Callable[[Path], Process], number: signal.Signals
) -> None:
    process = start(configuration)
    tcp, _ = process.ports()
    with Client(tcp) as idle:
        idle.get("/healthz", "localhost")
        process.signal(number)
        assert process.wait() == 0
        assert idle.at_end()


def test_a_running_transfer_is_finished_before_the_end(configuration: Path, start: Callable[[Path], Process]) -> None:
    gate = Gate()

    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", str(len(BODY)))])
        connection.send_body(BODY[:1000])
        gate.wait()
        connection.send_body(BODY[1000:])

    process = start(configuration)
    tcp, _ = process.ports()
    with Origin(handler) as origin, Client(tcp) as client:
        client.send(f"GET http://127.0.0.1:{origin.port}/x.deb HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        gate.reached()
        process.signal(signal.SIGTERM)
        while True:  # until nobody is let in any more
            try:
                socket.create_connection(("127.0.0.1", tcp), PATIENCE).close()
            except OSError:
                break
        gate.open()
        answer = client.read()
        assert answer.complete and answer.body == BODY
        assert process.wait() == 0
    assert list((configuration.parent / "files").rglob("x.deb"))


def test_a_second_signal_ends_it_at_once(configuration: Path, start: Callable[[Path], Process]) -> None:
    gate = Gate()

    def handler(asked: Asked, connection: Connection) -> None:
        gate.wait()

    process = start(configuration)
    tcp, _ = process.ports()
    with Origin(handler) as origin, Client(tcp) as client:
        client.send(f"GET http://127.0.0.1:{origin.port}/page HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        gate.reached()
        process.signal(signal.SIGTERM)
        while True:  # until it has heard that
            try:
                socket.create_connection(("127.0.0.1", tcp), PATIENCE).close()
            except OSError:
                break
        process.signal(signal.SIGTERM)
        assert process.wait() == 1
        gate.open()


def test_what_clients_send_cannot_forge_a_log_line(configuration: Path, start: Callable[[Path], Process]) -> None:
    process = start(configuration)
    tcp, _ = process.ports()
    with Client(tcp) as client:
        client.send(b"GET /x\x1b[31m HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read().status == 400
    with Client(tcp) as client:
        assert client.get("/caf\xe9?secret=1", "localhost").status == 404
    process.wait_for(" 404 ")
    assert all(LINE.fullmatch(line) for line in process.lines)
    assert not any("secret" in line or "\x1b" in line for line in process.lines)
