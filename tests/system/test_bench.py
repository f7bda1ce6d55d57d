"""What the benches measure with: their cases, the far network, the packages, the objects and the pages of results."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Dict, Iterator, List

import pytest
from cases import CASES, Case
from client_report import Row, table
from distant import Took
from jobs import Command, run_together
from kinds import Npm, NpmInstall, Origin, Pip, Way, kinds
from objects import SIZE, write_objects
from programs import HERE, Program, free_port
from report import Report
from repositories import sizes, write_npm, write_wheels
from support.origin import Files
from support.running import RunningDduct

from bench import wanted
from monitoring.metrics import Counter

HOST = "127.0.0.1"
TIMEOUT = 60.0
ROUND_TRIP = 0.04  # seconds


def test_no_two_cases_have_the_same_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_no_name_of_a_case_needs_the_one_above_it() -> None:
    assert [case.name for case in CASES if "the same" in case.name] == []


def test_a_quick_run_has_no_crowds_and_still_uses_every_object_and_connection() -> None:
    quick = wanted([], quick=True)
    assert {case.name for case in quick} == {case.name for case in CASES if not case.tedious}
    assert all(case.requests >= max(case.objects, case.connections) for case in quick)


def test_only_the_named_cases_are_measured() -> None:
    assert {case.name for case in wanted(["tunnel"], quick=False)} == {"blind tunnel, 256 MiB, 4 connections"}


def test_the_results_begin_with_the_case_where_dduct_is_worst() -> None:
    rates, times = Case("rate", "/a", 1, 1, "req/s"), Case("time", "/a", 1, 1, "ms (p99)")
    best = Case("best", "/a", 1, 1, "req/s")
    found: Dict[str, Dict[str, List[float]]] = {
        "best": {"straight": [10.0], "dduct": [20.0]},
        "rate": {"straight": [10.0], "dduct": [5.0]},
        "time": {"straight": [1.0], "dduct": [4.0]},
    }
    page = Report([best, rates, times], found, [], 1).page()
    assert re.findall(r"^\| (best|rate|time) .* (\S+) \| –", page, re.MULTILINE) == [
        ("time", "0.25"),
        ("rate", "0.50"),
        ("best", "2.00"),
    ]


def test_objects_written_by_the_bench_are_hits(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({}))
    write_objects(dduct.files, f"{HOST}:{origin.port}", "scale", folders=2, count=2)
    for target in ("/scale/0/0.deb", "/scale/1/1.deb"):
        assert len(dduct.fetch(origin, target).body) == SIZE
    assert origin.requests == []
    assert dduct.counted(Counter.HITS, 2) == 2


@contextlib.contextmanager
def far_server(directory: Path) -> Iterator[int]:
    """The port of a server that is far away, and sends back what it reads, on one connection, until that ends."""

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(TIMEOUT)
            while True:
                data = sock.recv(65536)
                if not data:
                    break
                sock.sendall(data)

    with socket.create_server((HOST, 0)) as listener, far_way(directory, listener.getsockname()[1]) as port:
        probe, _ = listener.accept()  # how it was seen that something listens
        probe.close()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port
        finally:
            thread.join(TIMEOUT)
            assert not thread.is_alive()


@contextlib.contextmanager
def far_way(directory: Path, target: int) -> Iterator[int]:
    """The port of a far network, behind which is `target`."""
    port = free_port()
    command = (sys.executable, HERE / "delay.py", port, target, 1000 * ROUND_TRIP)
    program = Program(port, *command, log=directory / "delay.log")
    try:
        yield port
    finally:
        program.stop()
    assert (directory / "delay.log").read_text() == ""


def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(65536)
        assert piece
        data += piece
    return data


def test_a_far_network_costs_a_round_trip_for_the_connection_and_one_for_each_answer(tmp_path: Path) -> None:
    with far_server(tmp_path) as port:
        took = []
        began = time.monotonic()
        with socket.create_connection((HOST, port), TIMEOUT) as sock:
            for _ in range(3):
                sock.sendall(b"hello")
                assert receive(sock, 5) == b"hello"
                took.append(time.monotonic() - began)
                began = time.monotonic()
        least = [2 * ROUND_TRIP, ROUND_TRIP, ROUND_TRIP]
        assert all(one > shortest - 0.002 for one, shortest in zip(took, least)), took


def test_a_far_network_carries_everything_in_order_and_the_end_of_each_direction(tmp_path: Path) -> None:
    body = hashlib.shake_256(b"far").digest(3_000_000)
    with far_server(tmp_path) as port, socket.create_connection((HOST, port), TIMEOUT) as sock:

        def send() -> None:
            sock.sendall(body)
            sock.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send)
        sending.start()
        assert receive(sock, len(body)) == body
        assert sock.recv(1) == b""
        sending.join(TIMEOUT)


def test_a_connection_to_nobody_far_away_ends(tmp_path: Path) -> None:
    with far_way(tmp_path, free_port()) as port, socket.create_connection((HOST, port), TIMEOUT) as sock:
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass


def test_sizes_are_the_same_in_each_run_and_between_their_limits() -> None:
    assert sizes(300, 1, 60) == sizes(300, 1, 60)
    assert all(1024 <= size <= 60 * 1024 for size in sizes(300, 1, 60))


def test_npm_packages_are_as_their_lock_file_says(tmp_path: Path) -> None:
    for name, integrity in write_npm(tmp_path, 3).items():
        body = (tmp_path / name / f"-/{name}-1.0.0.tgz").read_bytes()
        assert integrity == "sha512-" + base64.b64encode(hashlib.sha512(body).digest()).decode()


def test_wheels_are_where_their_index_says(tmp_path: Path) -> None:
    for requirement in write_wheels(tmp_path, 3):
        name, _, sha256 = requirement.replace("==1.0 --hash=sha256:", " ").partition(" ")
        (link,) = re.findall(r'href="/([^#]+)#', (tmp_path / f"simple/{name}/index.html").read_text())
        assert hashlib.sha256((tmp_path / link).read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("kind", [Npm(2), NpmInstall(2), Pip(2)], ids=lambda kind: kind.name)
def test_only_clients_of_a_proxy_name_it(kind: Npm, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    kind.write(tmp_path / "files")
    said = {}
    for name, proxy in (("straight", None), ("proxied", "http://127.0.0.1:1234")):
        job = tmp_path / name
        job.mkdir()
        commands = kind.commands(job, Origin("origin.test:1", "origin.test:2"), Way(proxy, tmp_path / "ca"))
        said[name] = repr(commands) + "".join(path.read_text() for path in job.iterdir())
    assert "127.0.0.1:1234" in said["proxied"]
    assert "127.0.0.1:1234" not in said["straight"]


def test_clients_that_run_at_once_have_directories_of_their_own(tmp_path: Path) -> None:
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
    run_together([[Command(("touch", "first")), Command(("mv", "first", "second"))]] * 2, homes)
    assert all((home / "second").exists() for home in homes)


def test_a_client_that_fails_ends_the_others_and_says_why(tmp_path: Path) -> None:
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
    jobs = [[Command(("sh", "-c", "echo no such package; exit 3"))], [Command(("sleep", "1000"))]]
    with pytest.raises(SystemExit, match="ended with 3:\nno such package"):
        run_together(jobs, homes)


def test_a_client_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"took more than 0\.05 s"):
        run_together([[Command(("sleep", "1000"))]], [tmp_path], timeout=0.05)


def test_a_missing_client_is_named() -> None:
    kind = Npm(1)
    kind.programs = ("npm-that-nobody-has",)
    assert kind.missing() == ["npm-that-nobody-has"]


def test_every_kind_has_a_name_of_its_own() -> None:
    assert len({kind.name for kind in kinds(False)}) == len(kinds(False))
    assert [kind.name for kind in kinds(False)] == [kind.name for kind in kinds(True)]


def test_a_ratio_that_misses_its_target_is_bold() -> None:
    far_away, near = Row("apt", 25, 1), Row("apt", 0, 1)
    for row in (far_away, near):
        for which, seconds in (("straight", 1.0), ("dduct cold", 1.2), ("dduct warm", 1.2), ("Squid warm", 1.0)):
            row.add(which, Took(seconds, 0.1))
    assert [line.rpartition("| 0.10 ")[2] for line in table([far_away, near]).splitlines()[2:]] == [
        "| **1.20** | 1.20 | **1.20** |",
        "| 1.20 | **1.20** | 1.20 |",
    ]


def test_what_was_not_measured_is_a_dash() -> None:
    row = Row("apt", 25, 1)
    row.add("straight", Took(1.0, 0.0))
    assert table([row]).splitlines()[2] == "| apt | 25 ms | 1 | 1.00 | – | – | – | – | – | – | – | – | – |"
