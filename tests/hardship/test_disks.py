"""Small file systems that fill up under load: no client gets wrong bytes, and caching resumes when there is space."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterator

import pytest
from support.client import Answer, Client, wait_until
from support.origin import Files, Origin
from support.process import Process, write

MEGABYTES = 64
OBJECTS = {f"/{number}.deb": os.urandom(2_000_000 + number) for number in range(50)}


@pytest.fixture(params=["tmpfs", "ext4"])
def files(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 64 MiB."""
    place = tmp_path / "files"
    place.mkdir()
    commands = {
        "tmpfs": [["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "none", str(place)]],
        "ext4": [
            ["truncate", "-s", f"{MEGABYTES}M", str(tmp_path / "image")],
            ["mkfs.ext4", "-q", "-F", str(tmp_path / "image")],
            ["mount", "-o", "loop", str(tmp_path / "image"), str(place)],
        ],
    }
    for command in commands[request.param]:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = f"cannot {' '.join(command[:3])}: {done.stderr.strip()}"
            pytest.skip(reason)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def dduct(files: Path, certificates: Path) -> Iterator[Process]:
    shutil.copytree(certificates, files.parent / "certs")
    process = Process(write(files.parent, {"min_free": ""}, workers=2))
    try:
        yield process
    finally:
        process.close()


def fetch(port: int, origin: Origin, path: str) -> Answer:
    host = f"127.0.0.1:{origin.port}"
    with Client(port) as client:
        return client.get(f"http://{host}{path}", host)


def free(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def test_a_full_file_system_under_load(dduct: Process, files: Path) -> None:
    port = dduct.ports()[0]
    with Origin(Files(OBJECTS, [("Cache-Control", "max-age=600")])) as origin, ThreadPoolExecutor(8) as pool:
        dice = random.Random(1)
        wanted = [dice.choice(list(OBJECTS)) for _ in range(250)]
        answers = {number: pool.submit(fetch, port, origin, path) for number, path in enumerate(wanted)}
        for number, path in enumerate(wanted):
            answer = answers[number].result(60)
            assert answer.complete and answer.body == OBJECTS[path]
        _fill_up(files)
        for path in dice.sample(list(OBJECTS), 10):
            assert fetch(port, origin, path).body == OBJECTS[path]
        _make_room(files)
        wait_until(lambda: _is_kept(port, origin))
    assert not any("Traceback" in line or "bug" in line for line in dduct.lines)
    troubles = [line for line in dduct.lines if "without the disk" in line or "Cannot keep" in line]
    print(f"{len(troubles)} lines in the log about {sum('200' in line for line in dduct.lines)} downloads")
    assert 0 < len(troubles) <= 2 * len(dduct.children()) * 2
    verified = subprocess.run(
        [*dduct.command, "verify", "--cfg", str(files.parent / "some.toml")], capture_output=True, text=True, timeout=60
    )
    assert verified.returncode == 0, verified.stdout


def _fill_up(place: Path) -> None:
    """To the last byte."""
    with (place / ".ballast").open("wb", buffering=0) as ballast:
        for size in (1_000_000, 4096, 1):
            try:
                while True:
                    ballast.write(bytes(size))
            except OSError:
                pass
    assert free(place) < 4096


def _make_room(place: Path) -> None:
    for path in [place / ".ballast", *place.rglob("*.deb")]:
        path.unlink()


def _is_kept(port: int, origin: Origin) -> bool:
    path = next(iter(OBJECTS))
    before = origin.count(path)
    assert fetch(port, origin, path).body == OBJECTS[path]
    return origin.count(path) == before
