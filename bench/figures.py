"""Figures of dduct alone: start-up, memory, many clients, and the effect of the number of objects."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Iterator, List, Tuple

from cases import Case
from servers import HOST, MEGA, ROOT, TUNNELLED, Bench, Program, free_port, wait_for, warm_memory

from storage.record import Metadata, Record
from storage.records import boot_id

Figure = Tuple[str, str]
_IDLE = 1000  # connections
_FOLDERS = 1000  # each with a thousandth of the objects
_SIZE = 4096  # bytes of an object
_ROUNDS = 5
_CROWDS = 3  # rounds with many clients, of two minutes each


def figures(bench: Bench, objects: int) -> Iterator[Figure]:
    """The name and value of each figure; some take minutes."""
    dduct = bench.proxies["dduct"]
    assert dduct is not None
    for make in (_start_up, _memory, _crowd):
        for name, value in make(bench, dduct):
            print(f"  {name:60} {value}", flush=True)
            yield name, value
    for name, value in _scale(bench, dduct, objects):
        print(f"  {name:60} {value}", flush=True)
        yield name, value


def _start_up(bench: Bench, _: Program) -> Iterator[Figure]:
    place = bench.directory / "start"
    place.mkdir()
    for name in ("first start, with an authority and certificates to make", "every other start"):
        port = free_port()
        (place / "dduct.toml").write_text(
            f"[misc]\ncert_dir = '{place}/certs'\nfile_dir = '{place}/files'\n"
            f"[proxy]\ntcp_bind = '{HOST}:{port}'\ntls_bind = ''\n"
        )
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "dduct.py"), "--cfg", str(place / "dduct.toml")], stderr=subprocess.DEVNULL
        )
        try:
            wait_for(port)
            yield name, f"{time.monotonic() - began:.2f} s"
        finally:
            process.terminate()
            process.wait(20)


def _memory(bench: Bench, dduct: Program) -> Iterator[Figure]:
    """Memory of an intercepted connection between two requests, and of an idle tunnel."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    yield "memory at work, all processes", f"{_pss(dduct) / MEGA:.0f} MiB"
    for what, host in (("intercepted connection", HOST), ("tunnel", TUNNELLED)):
        with ExitStack() as stack:
            before = _pss(dduct)
            for _ in range(_IDLE):
                sock = stack.enter_context(socket.create_connection((HOST, dduct.port)))
                sock.sendall(f"CONNECT {host}:{bench.origin} HTTP/1.1\r\nHost: {host}:{bench.origin}\r\n\r\n".encode())
                sock.recv(4096)
                tls = stack.enter_context(context.wrap_socket(sock, server_hostname=host))
                tls.sendall(f"GET /small.deb HTTP/1.1\r\nHost: {host}:{bench.origin}\r\n\r\n".encode())
                size = 0
                while size < _SIZE:
                    size += len(tls.recv(16384))
            time.sleep(1)  # tunnels release their buffers a little later
            yield f"an idle {what}", f"{(_pss(dduct) - before) / _IDLE / 1024:.0f} KiB"


def _pss(dduct: Program) -> int:
    """Bytes of all its processes; shared memory counts once."""
    pid = dduct.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = 0
    for one in [str(pid), *children]:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)
        assert found
        total += int(found[1]) * 1024
    return total


def _crowd(bench: Bench, dduct: Program) -> Iterator[Figure]:
    """Many clients on a miss and on a hit, in alternating rounds, as the machine's speed varies over minutes."""
    count = 200
    cold = Case("cold", "/crowd/{round}/large.deb", count, count, "s")
    misses: List[float] = []
    hits: List[float] = []
    before = bench.transfers()
    for number in range(_CROWDS):
        warm_memory(bench.directory)
        misses.append(cold.value(bench.load(cold, dduct.port, f"all-{number}")))
        hits.append(cold.value(bench.load(cold, dduct.port, f"all-{number}")))
    transfers = (bench.transfers() - before) / _CROWDS
    miss, hit = median(misses), median(hits)
    yield (
        f"{count} clients at once, one cold object of 256 MiB",
        f"{miss:.1f} s, {transfers:g} transfer from the origin",
    )
    yield "the same on a hit", f"{hit:.1f} s: cold takes {miss / hit:.2f} times as long"


def _scale(bench: Bench, dduct: Program, objects: int) -> Iterator[Figure]:
    """Hits on a thousand objects, among a thousand others and, in another dduct, among very many; in rounds."""
    again = Case("again", "/scale/%d/0.deb", 30_000, 16, "req/s", objects=_FOLDERS)
    crowded = bench.start_dduct("crowded")
    began = time.monotonic()
    roots = [_fill(bench, name, count) for name, count in (("dduct", 2), ("crowded", objects // _FOLDERS))]
    print(f"  {objects:,} objects were put into the cache in {time.monotonic() - began:.0f} s", flush=True)
    os.sync()
    few: List[float] = []
    many: List[float] = []
    for one in (dduct, crowded):
        bench.load(again, one.port, "")
    few_first, many_first = (again.value(bench.load(_once(1), one.port, "")) for one in (dduct, crowded))
    for _ in range(_ROUNDS):
        few.append(again.value(bench.load(again, dduct.port, "")))
        many.append(again.value(bench.load(again, crowded.port, "")))
    yield "hits on 1,000 objects, 2,000 in the cache", f"{median(few):,.0f} req/s"
    yield (
        f"the same, {objects:,} in the cache",
        f"{median(many):,.0f} req/s: {median(many) / median(few):.2f} times as many",
    )
    yield (
        f"first hits on 1,000 objects, {objects:,} in the cache",
        f"{many_first:,.0f} req/s: {many_first / few_first:.2f} times as many as with 2,000",
    )
    for root in roots:
        shutil.rmtree(root)


def _once(number: int) -> Case:
    return Case("once", f"/scale/%d/{number}.deb", _FOLDERS, 16, "req/s", objects=_FOLDERS)


def _fill(bench: Bench, name: str, count: int) -> Path:
    """Write objects as the dduct called `name` stores them, `count` in each folder; their top folder."""
    root = bench.directory / name / "files/https" / f"{HOST}:{bench.origin}" / "scale"
    fields = (("Content-Type", "application/octet-stream"), ("Cache-Control", "max-age=86400"))
    body = os.urandom(_SIZE)
    for folder in range(_FOLDERS):
        (root / str(folder)).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = f"{root}/{folder}/{number}.deb"
            url = f"https://{HOST}:{bench.origin}/scale/{folder}/{number}.deb"
            record = Record(
                Metadata(url, fields, time.time(), near=True), _SIZE, "0" * 64, boot=boot_id(), durable=True
            )
            with open(path, "wb") as file:
                file.write(body)
            os.setxattr(path, "user.dduct", record.encode())
    return root
