"""Everything at once, for a while: hits, misses, ranges, aborts, evictions, reloads, faults on the way."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest
from support.client import Client, wait_until
from support.effort import LONG
from support.origin import Asked, Connection, Origin
from support.process import Process, write
from support.trouble import Plan, Trouble

from hardship.measure import Dduct
from tls.authority import CertificateAuthority
from tls.leaf_certificates import LeafCertificateCache, LeafSettings

SECONDS = 900 if LONG else 40
HOST = "127.0.0.1"
CLIENTS = 8
MAX_SIZE = 30_000_000


def make_objects() -> Dict[str, bytes]:
    dice = random.Random(7)
    objects = {
        f"/pool/{number}.deb": os.urandom(dice.choice([1, 900, 65_536, 400_000, 3_000_000])) for number in range(40)
    }
    for _ in range(20):
        body = os.urandom(dice.choice([10, 65_536, 70_000, 2_000_000]))
        objects[f"/v2/some/blobs/sha256:{hashlib.sha256(body).hexdigest()}"] = body
    return objects


class Library:
    """An origin with validators, ranges, various lives, and every now and then a refusal."""

    def __init__(self, objects: Dict[str, bytes]) -> None:
        self._objects = objects
        self._dice = random.Random(3)

    def __call__(self, asked: Asked, connection: Connection) -> None:
        body = self._objects[asked.target]
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        fields = [("ETag", etag), ("Cache-Control", self._dice.choice(["max-age=600", "max-age=1", "no-cache"]))]
        if self._dice.random() < 0.03:
            connection.respond(503, [], b"not now\n")
            return
        if asked.get("if-none-match") == etag:
            connection.head(304, fields)
            return
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", asked.get("range") or "")
        if wanted is not None and asked.get("if-range") == etag and int(wanted[1]) < len(body):
            start = int(wanted[1])
            fields.append(("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}"))
        connection.head(206 if start else 200, [*fields, ("Content-Length", str(len(body) - start))])
        connection.send_body(body[start:])


class Visitor:
    """One client after another. What it gets is right, or it can tell."""

    def __init__(self, dduct: Dduct, ca: Path, authority: str, objects: Dict[str, bytes]) -> None:
        self._dduct = dduct
        self._trust = ssl.create_default_context(cafile=str(ca))
        self._authority = authority
        self._objects = objects
        self._paths = list(objects)
        self._lock = threading.Lock()
        self.wrong: List[str] = []
        self.counts = {"right": 0, "told": 0, "cut": 0, "left": 0}

    def run(self, seed: int, stopping: threading.Event) -> None:
        dice = random.Random(seed)
        while not stopping.is_set():
            outcome = "cut"
            with suppress(OSError, ValueError):
                outcome = self._visit(dice)
            with self._lock:
                self.counts[outcome] += 1

    def _visit(self, dice: random.Random) -> str:
        with Client(self._dduct.port) as client:
            if client.connect(self._authority).status != 200:
                return "told"
            client.start_tls(self._trust, HOST)
            outcome = "told"
            for _ in range(dice.randrange(1, 5)):
                path = dice.choice(self._paths)
                body = self._objects[path]
                if dice.random() < 0.05:
                    client.send(f"GET {path} HTTP/1.1\r\nHost: {self._authority}\r\n\r\n".encode())
                    client.sock.recv(dice.randrange(1, 50_000))
                    return "left"
                start = dice.randrange(len(body)) if dice.random() < 0.3 else None
                fields = [] if start is None else [f"Range: bytes={start}-"]
                if dice.random() < 0.1:
                    fields.append("Cache-Control: no-cache")
                answer = client.get(path, self._authority, *fields)
                if not answer.complete:
                    return "cut"
                if answer.status >= 500:
                    outcome = "told"
                    continue
                expected = body if answer.status == 200 else body[start or 0 :]
                if answer.status not in (200, 206) or answer.body != expected:
                    self.wrong.append(f"{path} {fields} {answer.status} {len(answer.body)}")
                outcome = "right"
            return outcome


@pytest.fixture
def dduct(tmp_path: Path, certificates: Path, origin_authority: CertificateAuthority) -> Iterator[Dduct]:
    shutil.copytree(certificates, tmp_path / "certs")
    (tmp_path / "origin-ca.pem").write_bytes(origin_authority.pem)
    path = write(
        tmp_path,
        {"min_free": "", "max_size": str(MAX_SIZE)},
        {"server_ip_sans": [HOST]},
        upstream_ca="origin-ca.pem",
        upstream_timeout="2s",
        workers=2,
    )
    process = Process(path)
    try:
        yield Dduct(process)
    finally:
        process.close()


def plans(dice: random.Random) -> Plan:
    chance = dice.random()
    at = dice.randrange(1, 3_000_000)
    if chance < 0.06:
        return Plan(at=at, end=dice.choice(["fin", "rst"]))
    if chance < 0.08:
        return Plan(at=at, flip=True)
    if chance < 0.09:
        return Plan(at=at, hang=True)
    if chance < 0.12:
        return Plan(delay=0.001)
    return Plan()


def test_soak(dduct: Dduct, tmp_path: Path, origin_authority: CertificateAuthority) -> None:
    objects = make_objects()
    tls = LeafCertificateCache(origin_authority, LeafSettings(30)).context(HOST)
    dice = random.Random(5)
    samples: List[Tuple[int, int, int]] = []
    stopping = threading.Event()
    with Origin(Library(objects), tls) as origin, Trouble(origin.port, lambda: plans(dice)) as trouble:
        visitor = Visitor(dduct, tmp_path / "certs/ca.crt", f"{HOST}:{trouble.port}", objects)
        with ThreadPoolExecutor(CLIENTS) as pool:
            running = [pool.submit(visitor.run, seed, stopping) for seed in range(CLIENTS)]
            end = time.monotonic() + SECONDS
            try:
                while time.monotonic() < end:
                    time.sleep(SECONDS / 20)
                    dduct.process.signal(signal.SIGHUP)
                    samples.append((dduct.memory(), dduct.threads(), dduct.descriptors()))
            finally:
                stopping.set()
            for one in running:
                one.result(60)
        # A main thread, and in each worker: lifeline, watchdog, evictor, two listeners, the poller and its supervisor.
        quiet = 5 * len(dduct.processes)
        wait_until(lambda: dduct.threads() <= quiet + 4)
    megabytes = [round(memory / 2**20) for memory, _, _ in samples]
    print(f"{SECONDS} s: {visitor.counts}; MiB: {megabytes}; threads at the end: {dduct.threads()}")
    print(f"descriptors: {[descriptors for _, _, descriptors in samples]}")
    assert visitor.wrong == []
    assert visitor.counts["right"] > 10 * SECONDS
    warm = max(megabytes[len(megabytes) // 4 : len(megabytes) // 2])
    assert max(megabytes[len(megabytes) // 2 :]) < 1.2 * warm + 10
    assert not any("Traceback" in line or "bug" in line for line in dduct.process.lines)
    dduct.process.signal(signal.SIGTERM)
    assert dduct.process.wait() == 0
    files = tmp_path / "files"
    done = subprocess.run(
        [*dduct.process.command, "verify", "--cfg", str(tmp_path / "some.toml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert sum(path.stat().st_size for path in files.rglob("*") if path.is_file()) < 1.5 * MAX_SIZE
