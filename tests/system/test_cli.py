"""The program as a process: its command line, its log, its signals."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
from support.client import Client, wait_until
from support.modules import copy_program
from support.origin import Asked, Connection, Gate, Origin
from support.process import ROOT, TIMEOUT, Process, write

import dduct
from monitoring.systemd import ServiceManager
from proxy.access import hash_password
from server import config
from server.config_keys import Config
from server.process import Program
from server.server import Server

BODY = os.urandom(500_000)
LINE = re.compile(
    r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?:ERROR|WARN |INFO |DEBUG|TRACE) dduct[.a-z0-9]*(?: \d+\.\d+)?\] .+"
)


def run(*arguments: object, program: Path = ROOT / "dduct.py") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False, cwd="/")


@pytest.fixture
def configuration(tmp_path: Path, certificates: Path) -> Path:
    shutil.copytree(certificates, tmp_path / "certs")
    return write(tmp_path)


@pytest.fixture
def start() -> Iterator[Callable[[Path], Process]]:
    running: List[Process] = []

    def begin(configuration: Path) -> Process:
        running.append(Process(configuration))
        return running[-1]

    yield begin
    for process in running:
        process.close()


# --- the log ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_log_pipe_that_is_not_read_delays_no_request(configuration: Path, kind: str) -> None:
    """A log driver that has got stuck, say: what there is no room for is lost, and dduct goes on, and ends."""
    mine, its = socket.socketpair() if kind == "socket" else (None, None)
    reading, writing = os.pipe() if its is None else (-1, its.fileno())
    process = subprocess.Popen([sys.executable, str(ROOT / "dduct.py"), "--cfg", str(configuration)], stderr=writing)
    try:
        source = os.fdopen(os.dup(reading if mine is None else mine.fileno()), "rb", buffering=0)
        with source:
            seen = b""
            while seen.count(b"Listening on") < 2 or not seen.endswith(b"\n"):
                seen += source.read(4096)
            port = int(seen.split(b"Listening on ")[1].split(b"\n")[0].rpartition(b":")[2])
            for _ in range(30):
                with Client(port) as client:
                    for _ in range(50):
                        assert client.get(f"http://127.0.0.1:1/{'x' * 1000}", "127.0.0.1:1").status == 502
            process.terminate()
            assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()
        for end in (mine, its):
            if end is not None:
                end.close()
        for fd in (reading, writing) if its is None else ():
            os.close(fd)


# --- options ----------------------------------------------------------------------------------------


def test_version_and_help_are_printed() -> None:
    version = run("--version")
    assert version.returncode == 0 and re.fullmatch(r"dduct \d+\.\d+\.\d+\n", version.stdout)
    usage = run("--help")
    assert usage.returncode == 0 and all(option in usage.stdout for option in ("--cfg", "--check", "--version"))


def test_an_unknown_option_is_bad_usage() -> None:
    assert run("--frobnicate").returncode == 2


def test_check_prints_the_configuration_and_starts_nothing(configuration: Path) -> None:
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
def test_the_default_configuration_file_lies_beside_the_program(tmp_path: Path, arguments: List[str]) -> None:
    copy_program(tmp_path)
    (tmp_path / "dduct.toml").write_text("[certs]\nca_cn = 'beside'\n")
    done = run(*arguments, program=tmp_path / "dduct.py")
    assert done.returncode == 0 and "ca_cn = 'beside'" in done.stdout
    assert f"cert_dir = '{tmp_path}/certs'" in done.stdout


def test_without_a_configuration_file_defaults_apply(tmp_path: Path) -> None:
    copy_program(tmp_path)
    done = run("--check", program=tmp_path / "dduct.py")
    assert done.returncode == 0 and done.stdout.startswith("# from the built-in defaults\n")
    assert f"file_dir = '{tmp_path}/files'" in done.stdout
    assert run("--cfg", "--check", program=tmp_path / "dduct.py").returncode == 2


MISUNDERSTOOD = {
    ("--cfg", "verify"): "write verify first and --cfg FILE after it",
    ("--cfg", "passwd", "nina"): "write passwd first",
    ("--cfg=verify",): "verify is no file",
    ("--cfg", "check"): "write --check first",
    ("--config", "dduct.toml"): "there is no option --config; did you mean --cfg FILE?",
    ("--config=dduct.toml",): "did you mean --cfg FILE?",
    ("-c", "dduct.toml"): "there is no option -c; did you mean --cfg FILE?",
    ("--chek",): "did you mean --check?",
    ("-V",): "did you mean --version?",
    ("--verify",): "did you mean verify?",
    ("check",): "there is no command check; did you mean --check?",
    ("help",): "did you mean --help?",
    ("verfy",): "did you mean verify?",
    ("some.toml",): "did you mean --cfg some.toml?",
    ("verify", "files"): "verify takes no files",
    ("--fix",): "did you mean verify --fix?",
    ("--check", "verify"): "--check does not go with verify",
    ("frobnicate",): "there is no command frobnicate",
}


@pytest.mark.parametrize("arguments", list(MISUNDERSTOOD), ids=" ".join)
def test_a_wrong_command_line_gets_a_suggestion(arguments: Tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dduct.main(list(arguments))
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert said.err.startswith("dduct: ") and said.err.count("\n") == 1
    assert MISUNDERSTOOD[arguments] in said.err


HIDING = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.mark.parametrize("name", ["cryptography", "monitoring"])
@pytest.mark.parametrize("arguments", [[], ["--check"], ["--version"]], ids=" ".join)
def test_a_package_that_is_missing_is_one_line(tmp_path: Path, name: str, arguments: List[str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(name=name))
    command = [sys.executable, str(ROOT / "dduct.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("dduct: ") and name in done.stderr
    assert name != "cryptography" or all(word in done.stderr for word in ("apt install", "dnf install", "pip install"))


# --- check ------------------------------------------------------------------------------------------


def everything(directory: Path) -> Dict[str, Tuple[int, int]]:
    return {str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in directory.rglob("*")}


def both(configuration: Path) -> str:
    """What --check says, and a start in the same words and with the same status; the former touches nothing."""
    before = everything(configuration.parent)
    check = run("--cfg", configuration, "--check")
    assert everything(configuration.parent) == before
    start = run("--cfg", configuration)
    assert check.returncode == start.returncode != 0
    assert check.stdout == "" and check.stderr.count("\n") == 1
    assert check.stderr == start.stderr.splitlines(keepends=True)[-1]
    return check.stderr


def spoil(configuration: Path, name: str, text: str) -> None:
    (configuration.parent / name).write_text(text)


def lose_authority(configuration: Path) -> None:
    for name in ("ca.key", "ca.crt"):
        (configuration.parent / "certs" / name).unlink()


BROKEN: Dict[str, Tuple[Callable[[Path], object], Dict[str, Any], str]] = {
    "upstream_ca": (lambda c: spoil(c, "x.pem", "hello\n"), {"upstream_ca": "x.pem"}, "proxy.upstream_ca"),
    "auth_file": (lambda c: spoil(c, "users", "nina:secret\n"), {"auth_file": "users"}, "proxy.auth_file"),
    "ca.key": (lambda c: spoil(c, "certs/ca.key", "x"), {}, "ca.key"),
    "lost authority": (lose_authority, {}, "backup"),
    "file_dir": (lambda c: spoil(c, "files", ""), {}, "misc.file_dir"),
    "an address": (lambda _: None, {"tcp_bind": "192.0.2.1:8000"}, "proxy.tcp_bind"),
}


@pytest.mark.parametrize("what", list(BROKEN))
def test_check_refuses_what_a_start_refuses_with_the_same_message(configuration: Path, what: str) -> None:
    prepare, proxy, named = BROKEN[what]
    prepare(configuration)
    assert named in both(write(configuration.parent, **proxy))


def test_check_passes_while_a_dduct_runs(configuration: Path, start: Callable[[Path], Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = write(configuration.parent, tcp_bind=f"127.0.0.1:{port}")
        assert run("--cfg", path, "--check").returncode == 0


def test_a_warning_is_printed_by_check_and_logged_at_start(
    configuration: Path, start: Callable[[Path], Process]
) -> None:
    path = write(configuration.parent, filters=[])
    done = run("--cfg", path, "--check")
    assert done.returncode == 0 and "filters = []" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("dduct: warning: proxy.filters = []")
    (logged,) = start(path).wait_for("proxy.filters = []")
    assert " WARN " in logged and logged.endswith(line[len("dduct: warning: ") :])


# --- start ------------------------------------------------------------------------------------------


def test_the_first_start_logs_the_original_lines(tmp_path: Path, start: Callable[[Path], Process]) -> None:
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


def test_other_users_cannot_read_the_cache(configuration: Path, start: Callable[[Path], Process]) -> None:
    tcp, _ = start(configuration).ports()
    with (
        Origin(lambda _, connection: connection.respond(200, [("ETag", '"1"')], BODY)) as origin,
        Client(tcp) as client,
    ):
        assert client.get(f"http://127.0.0.1:{origin.port}/x.deb", f"127.0.0.1:{origin.port}").body == BODY
    files = configuration.parent / "files"
    (stored,) = files.rglob("x.deb")
    assert [path.stat().st_mode & 0o077 for path in (files, stored.parent, stored)] == [0, 0, 0]


@pytest.mark.parametrize("key", ["tcp_bind", "tls_bind"])
def test_a_port_in_use_is_one_line_and_status_1(tmp_path: Path, configuration: Path, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        keys: Dict[str, Any] = {key: f"127.0.0.1:{port}"}
        done = run("--cfg", write(tmp_path, **keys))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    said = f"dduct: proxy.{key} 127.0.0.1:{port} cannot be bound: Address already in use; another process has it "
    assert last == f"{said}(ss -ltnp 'sport = :{port}' says which)"


def test_unusable_directories_are_one_line_and_status_1(tmp_path: Path, configuration: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    done = run("--cfg", configuration)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith('dduct: misc.file_dir "')
    shutil.rmtree(tmp_path / "certs")
    (tmp_path / "certs").write_text("in the way")
    done = run("--cfg", configuration)
    assert done.returncode == 1 and "misc.cert_dir" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_damaged_certificate_is_one_line_and_status_1(tmp_path: Path, configuration: Path) -> None:
    (tmp_path / "certs/ca.key").write_text("spoiled")
    done = run("--cfg", configuration)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "ca.key" in done.stderr


@pytest.mark.parametrize(("key", "command"), [("file_dir", []), ("cert_dir", []), ("file_dir", ["verify"])])
def test_a_directory_name_that_is_too_long_is_one_line(configuration: Path, key: str, command: List[str]) -> None:
    text = configuration.read_text()
    configuration.write_text(re.sub(rf"{key} = .*", f"{key} = '{'x' * 300}'", text))
    done = run("--cfg", configuration, *command)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert "File name too long" in done.stderr.splitlines()[-1]


def test_a_host_outside_the_name_constraints_is_reported(configuration: Path, start: Callable[[Path], Process]) -> None:
    shutil.rmtree(configuration.parent / "certs")
    with configuration.open("a") as file:
        file.write("name_constraints = true\nserver_dns_sans = ['one.test']\n")
    first = start(configuration)
    first.ports()
    assert not any("believe" in line for line in first.lines)
    first.close()
    configuration.write_text(configuration.read_text().replace("'one.test'", "'one.test', 'two.test'"))
    second = start(configuration)
    second.ports()
    (line,) = second.wait_for("Clients will not believe us as ")
    assert "two.test" in line


# --- end --------------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2], ids=["alone", "two workers"])
def configuration_with_workers(configuration: Path, request: pytest.FixtureRequest) -> Path:
    return write(configuration.parent, workers=request.param)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_dduct_cleanly(
    configuration_with_workers: Path, start: Callable[[Path], Process], number: signal.Signals
) -> None:
    configuration = configuration_with_workers
    process = start(configuration)
    tcp, _ = process.ports()
    with Client(tcp) as idle:
        idle.get("/healthz", "localhost")
        process.signal(number)
        assert process.wait() == 0
        assert idle.at_end()


def test_a_running_transfer_is_finished_before_dduct_stops(
    configuration_with_workers: Path, start: Callable[[Path], Process]
) -> None:
    configuration = configuration_with_workers
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
        while True:  # until the port is closed
            try:
                socket.create_connection(("127.0.0.1", tcp), TIMEOUT).close()
            except OSError:
                break
        gate.open()
        answer = client.read()
        assert answer.complete and answer.body == BODY
        assert process.wait() == 0
    assert list((configuration.parent / "files").rglob("x.deb"))


def test_a_second_signal_stops_dduct_at_once(
    configuration_with_workers: Path, start: Callable[[Path], Process]
) -> None:
    configuration = configuration_with_workers
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
                socket.create_connection(("127.0.0.1", tcp), TIMEOUT).close()
            except OSError:
                break
        process.signal(signal.SIGTERM)
        assert process.wait() == 1
        gate.open()


# --- workers ----------------------------------------------------------------------------------------


def test_several_workers_share_the_work_the_cache_and_the_counters(
    configuration: Path, start: Callable[[Path], Process]
) -> None:
    gates = {f"/{number}": Gate() for number in range(6)}

    def handler(asked: Asked, connection: Connection) -> None:
        if asked.target in gates:
            gates[asked.target].wait()
        connection.respond(200, [("ETag", '"1"'), ("Cache-Control", "max-age=99")], BODY)

    process = start(write(configuration.parent, workers=3))
    tcp, _ = process.ports()
    wait_until(lambda: len(process.children()) == 3)
    with Origin(handler) as origin:
        host = f"127.0.0.1:{origin.port}"
        with ThreadPoolExecutor(12) as pool:

            def fetch(number: int) -> bytes:
                with Client(tcp) as client:
                    return client.get(f"http://{host}/{number % 2}.deb", host).body

            assert set(pool.map(fetch, range(40))) == {BODY}
        assert origin.count("/0.deb") == origin.count("/1.deb") == 1
    # Hits are counted when they are sent, and bytes when they are in their place.
    wait_until(lambda: sum(numbers(tcp)[name] for name in ("hits", "collapsed")) >= 38)
    wait_until(lambda: numbers(tcp)["stored_bytes"] >= 2 * len(BODY))
    counted = numbers(tcp)
    assert counted["fills"] == 2 and counted["hits"] + counted["collapsed"] == 38
    assert counted["stored_bytes"] == 2 * len(BODY)


def numbers(port: int) -> Dict[str, int]:
    """What all workers have counted."""
    with Client(port) as client:
        page = client.get("/metrics", "localhost").body.decode()
    return {name: int(value) for name, value in re.findall(r"^dduct_(\w+)_total (\d+)$", page, re.MULTILINE)}


def test_a_worker_that_dies_is_started_again(configuration: Path, start: Callable[[Path], Process]) -> None:
    process = start(write(configuration.parent, workers=2))
    tcp, _ = process.ports()
    wait_until(lambda: len(process.children()) == 2)
    before = process.children()
    os.kill(min(before), signal.SIGKILL)
    process.wait_for("ended with -9, and is started again")
    wait_until(lambda: len(process.children()) == 2 and process.children() != before)
    with Client(tcp) as client:
        assert client.get("/healthz", "localhost").status == 200
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_a_worker_that_gets_a_signal_ends_alone(configuration: Path, start: Callable[[Path], Process]) -> None:
    """Its siblings go on with the sockets that they share, and so does its successor."""
    process = start(write(configuration.parent, workers=2))
    tcp, tls = process.ports()
    wait_until(lambda: len(process.children()) == 2)
    first = process.children()
    for worker in sorted(first):
        os.kill(worker, signal.SIGTERM)
        wait_until(lambda worker=worker: worker not in process.children())  # type: ignore[misc]
        wait_until(lambda: len(process.children()) == 2)
        with Client(tcp) as client:
            assert client.get("/healthz", "localhost").status == 200
        Client(tls).sock.close()
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_workers_die_with_their_parent(configuration: Path, start: Callable[[Path], Process]) -> None:
    process = start(write(configuration.parent, workers=2))
    process.ports()
    wait_until(lambda: len(process.children()) == 2)
    left = process.children()
    process.signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in left))


# --- reload -----------------------------------------------------------------------------------------


def test_a_reload_changes_what_later_requests_get_and_no_transfer(
    configuration_with_workers: Path, start: Callable[[Path], Process]
) -> None:
    directory = configuration_with_workers.parent
    text = configuration_with_workers.read_text()
    gate = Gate()

    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", str(len(BODY)))])
        connection.send_body(BODY[:1000])
        if asked.target == "/x.deb":
            gate.wait()
        connection.send_body(BODY[1000:])

    process = start(configuration_with_workers)
    tcp, _ = process.ports()
    with Origin(handler) as origin, Client(tcp) as client, Client(tcp) as kept:
        host = f"127.0.0.1:{origin.port}"
        client.send(f"GET http://{host}/x.deb HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        gate.reached()
        assert kept.get(f"http://{host}/page", host).body == BODY
        (directory / "users").write_text(hash_password("lab", "secret") + "\n")
        (directory / "some.toml").write_text(text.replace("[proxy]", "[proxy]\nauth_file = 'users'"))
        process.signal(signal.SIGHUP)
        process.wait_for("Reloaded the configuration")
        wait_until(lambda: refused(tcp))
        wait_until(lambda: kept.get(f"http://{host}/page", host).status == 407)
        gate.open()
        answer = client.read()
        assert answer.complete and answer.body == BODY
        (directory / "some.toml").write_text(text)
        process.signal(signal.SIGHUP)
        process.wait_for("Reloaded the configuration", 2)
        wait_until(lambda: not refused(tcp))
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def refused(port: int) -> bool:
    """Whether all workers ask for a password; several attempts meet them all."""
    answers = []
    for _ in range(6):
        with Client(port) as client:
            answers.append(client.get("http://127.0.0.1:1/", "127.0.0.1:1").status)
    return answers == [407] * 6


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text + "frobnicate = 1\n", "unknown key certs.frobnicate"),
        (lambda text: text.replace("[proxy]", "[proxy]\nupstream_ca = 'none.pem'"), "proxy.upstream_ca"),
        (lambda text: text.replace("[proxy]", "[proxy]\nauth_file = 'users'"), "users"),
        (lambda text: text, "server.crt"),
    ],
)
def test_a_bad_configuration_is_not_reloaded(
    configuration_with_workers: Path, start: Callable[[Path], Process], change: Callable[[str], str], complaint: str
) -> None:
    path = configuration_with_workers
    (path.parent / "users").write_text("no hash\n")
    process = start(path)
    tcp, _ = process.ports()
    path.write_text(change(path.read_text()))
    if complaint == "server.crt":
        (path.parent / "certs/server.crt").unlink()
    process.signal(signal.SIGHUP)
    (line,) = process.wait_for("Not reloaded, and everything stays as it was: ")
    assert complaint in line
    with Client(tcp) as client:
        assert client.get("/healthz", "localhost").status == 200


def test_a_bug_in_a_reload_ends_nothing(configuration: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(Server):
        def __init__(self) -> None:
            pass

        def reload(self, wanted: Config, announce: bool = True) -> None:
            raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        load = partial(config.load, configuration, configuration.parent)
        assert not Program(Buggy(), load, ServiceManager({}))._reload()
    assert "A bug in dduct" in caplog.text and "ZeroDivisionError" in caplog.text


def test_a_reload_names_the_keys_that_need_a_restart(
    configuration_with_workers: Path, start: Callable[[Path], Process]
) -> None:
    path = configuration_with_workers
    process = start(path)
    process.ports()
    path.write_text(path.read_text().replace("'files'", "'other'").replace("workers =", "workers = 4  #"))
    process.signal(signal.SIGHUP)
    process.wait_for("Reloaded the configuration")
    assert len(process.wait_for("misc.file_dir takes effect when dduct is started again")) == 1
    assert len(process.wait_for("proxy.workers takes effect when dduct is started again")) == 1


def test_a_log_level_is_reloaded(configuration_with_workers: Path, start: Callable[[Path], Process]) -> None:
    path = configuration_with_workers
    process = start(path)
    tcp, _ = process.ports()
    path.write_text(path.read_text().replace("[misc]", "[misc]\nlog_level = 'error'"))
    process.signal(signal.SIGHUP)
    process.wait_for("Listening")

    def silent() -> bool:
        before = len(process.lines)
        for _ in range(4):
            with Client(tcp) as client:
                client.get("/healthz", "localhost")
        return len(process.lines) == before

    wait_until(silent)


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
