"""Processes that are killed at random moments: nothing wrong is served afterwards, and nothing is fetched again."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import pytest
from support.client import Client, wait_until
from support.effort import LONG
from support.origin import Asked, Connection, Origin
from support.process import Process, write

from storage.record import Metadata, Record
from storage.records import boot_id

ROUNDS = 100 if LONG else 10
OBJECTS = 30


class Slow:
    """An origin that sends objects in pieces, so that there is always a fill to be killed; it knows ranges."""

    def __init__(self, objects: Dict[str, bytes]) -> None:
        self.objects = objects
        self.pause = 0.001

    def __call__(self, asked: Asked, connection: Connection) -> None:
        body = self.objects[asked.target]
        fields = [("ETag", f'"{asked.target}-{len(body)}"'), ("Cache-Control", "max-age=600")]
        start = 0
        wanted = asked.get("range")
        if wanted is not None and asked.get("if-range") == fields[0][1]:
            start = int(wanted[len("bytes=") : -1])
            fields.append(("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}"))
        connection.head(206 if start else 200, [*fields, ("Content-Length", str(len(body) - start))])
        for begin in range(start, len(body), 20_000):
            connection.send_body(body[begin : begin + 20_000])
            time.sleep(self.pause)


@pytest.fixture
def configuration(tmp_path: Path, certificates: Path) -> Path:
    shutil.copytree(certificates, tmp_path / "certs")
    return write(tmp_path, workers=2, cache={"min_free": ""})


@pytest.fixture
def start(configuration: Path) -> Iterator[Callable[[], Process]]:
    with ExitStack() as stack:

        def begin() -> Process:
            process = Process(configuration)
            stack.callback(process.close)
            return process

        yield begin


class Mob:
    """Clients that want everything all the time. A body may be missing or short, but never wrong."""

    def __init__(self, objects: Dict[str, bytes], port: Callable[[], int], origin: int) -> None:
        self._objects = objects
        self._port = port
        self._host = f"127.0.0.1:{origin}"
        self._stopping = threading.Event()
        self.wrong: List[str] = []
        self.complete = 0

    def fetch(self, path: str) -> bool:
        with suppress(OSError, ValueError), Client(self._port()) as client:
            answer = client.get(f"http://{self._host}{path}", self._host)
            if not answer.complete or answer.status != 200:
                return False
            if answer.body == self._objects[path]:
                self.complete += 1
                return True
            self.wrong.append(path)
        return False

    def run(self, seed: int) -> None:
        dice = random.Random(seed)
        while not self._stopping.is_set():
            if not self.fetch(dice.choice(list(self._objects))):
                time.sleep(0.02)

    def stop(self) -> None:
        self._stopping.set()


def published(files: Path) -> List[str]:
    return [f"/{path.name}" for path in files.rglob("*.deb")]


def left(path: Path) -> str:
    """A growing file that should not be there, and what there is of it."""
    try:
        return f"{path.name}: {path.stat().st_size} bytes, {os.getxattr(path, 'user.dduct')!r}"
    except OSError as error:
        return f"{path.name}: {error}"


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_kill_damages_no_object(configuration: Path, start: Callable[[], Process], seed: int) -> None:
    dice = random.Random(seed)
    objects = {f"/{number}.deb": os.urandom(dice.randrange(1, 2_000_000)) for number in range(OBJECTS)}
    slow = Slow(objects)
    files = configuration.parent / "files"
    with Origin(slow) as origin, ThreadPoolExecutor(8) as pool:
        process = start()
        ports = [process.ports()[0]]
        mob = Mob(objects, lambda: ports[-1], origin.port)
        running = [pool.submit(mob.run, 100 * seed + number) for number in range(8)]
        try:
            wait_until(lambda: len(published(files)) > OBJECTS // 6)
            time.sleep(dice.random() * 0.3)
            whole = seed % 2 == 0
            if not whole:  # one worker, and the others go on with what it has left
                os.kill(dice.choice(sorted(process.children())), signal.SIGKILL)
                process.wait_for("is started again")
                time.sleep(dice.random() * 0.3)
            for child in process.children():
                os.kill(child, signal.SIGKILL)
            process.signal(signal.SIGKILL)
            process.wait()
            here = published(files)
            assert here
            asked = {path: origin.count(path) for path in here}
            process = start()
            ports.append(process.ports()[0])
            slow.pause = 0.0
            for path in objects:
                wait_until(lambda path=path: mob.fetch(path))  # type: ignore[misc]
        finally:
            mob.stop()
            for one in running:
                one.result(30)
    assert mob.wrong == []
    assert {path: origin.count(path) for path in here} == asked  # nothing is fetched that was there
    assert sorted(published(files)) == sorted(objects)
    assert [left(path) for path in files.rglob("*.dduct")] == []
    assert [path for path in files.rglob(".*") if path.name != ".evictor"] == []


def test_a_start_with_ten_thousand_objects_takes_less_than_a_second(
    configuration: Path, start: Callable[[], Process]
) -> None:
    body = os.urandom(1000)
    directory = configuration.parent / "files/http/some.thing"
    directory.mkdir(parents=True)
    metadata = Metadata("http://some.thing/x.deb", (("Cache-Control", "max-age=600"),), time.time())
    record = Record(metadata, len(body), hashlib.sha256(body).hexdigest(), boot=boot_id()).encode()
    for number in range(10_000):
        path = directory / f"{number % 100}/{number}.deb"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
        os.setxattr(path, "user.dduct", record)
    times = []
    for _ in range(3):
        began = time.monotonic()
        process = start()
        port = process.ports()[0]
        with Client(port) as client:
            assert client.get("http://some.thing/1/1.deb", "some.thing").body == body
        times.append(time.monotonic() - began)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    print("seconds until the first hit:", ", ".join(f"{seconds:.2f}" for seconds in times))
    assert min(times) < 1.0
