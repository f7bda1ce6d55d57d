"""Figures of dduct alone: start-up, memory, many clients, and the effect of the number of objects."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Callable, Iterable, Iterator, List, Tuple

from cases import Case
from objects import SIZE, write_objects
from programs import HOST, ROOT, TUNNELLED, Program, free_port
from servers import MEGA, Bench, warm_memory

Figure = Tuple[str, str]
_IDLE = 1000  # connections
_HELD = 500  # connections while the memory of a worker is measured
_FOLDERS = 1000  # each with a thousandth of the objects
_ROUNDS = 5
_CROWDS = 3  # rounds with many clients, of two minutes each
_FEW, _MANY = 4, 64  # connections to one process


def figures(bench: Bench, objects: int) -> Iterator[Figure]:
    """The name and value of each figure; some take minutes."""
    dduct = bench.proxies["dduct"]
    assert dduct is not None
    yield from quick_figures(bench)
    yield from _shown(_crowd(bench, dduct))
    yield from _shown(_scale(bench, dduct, objects))


def quick_figures(bench: Bench) -> Iterator[Figure]:
    """Those that take less than half a minute in all."""
    dduct = bench.proxies["dduct"]
    assert dduct is not None
    parts: List[Callable[[Bench, Program], Iterator[Figure]]] = [_start_up, _memory, _workers_memory, _one_process]
    for make in parts:
        yield from _shown(make(bench, dduct))


def _shown(made: Iterable[Figure]) -> Iterator[Figure]:
    for name, value in made:
        print(f"  {name:60} {value}", flush=True)
        yield name, value


def check_validation(bench: Bench) -> None:
    """Raise SystemExit unless dduct validates each hit on objects that say `no-cache`: else their case means little."""
    dduct = bench.proxies["dduct"]
    assert dduct is not None
    count = 200
    case = Case("validation", "/checked/each/%d.deb", count, 16, "req/s", objects=count)
    bench.load(case, dduct.port, "")
    before = bench.validations()
    bench.load(case, dduct.port, "")
    validated = bench.validations() - before
    if validated != count:
        raise SystemExit(f"of {count} hits that have to be validated, {validated} were")


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
        command = (sys.executable, ROOT / "dduct.py", "--cfg", place / "dduct.toml")
        program = Program(port, *command, log=place / "log")
        seconds = time.monotonic() - began
        program.stop()
        yield name, f"{seconds:.2f} s"


@contextlib.contextmanager
def _connections(bench: Bench, dduct: Program, host: str, count: int) -> Iterator[None]:
    """Connections to `host` through dduct, with one request done on each, idle until the context ends."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection((HOST, dduct.port), 30))
            sock.sendall(f"CONNECT {host}:{bench.origin} HTTP/1.1\r\nHost: {host}:{bench.origin}\r\n\r\n".encode())
            sock.recv(4096)
            tls = stack.enter_context(context.wrap_socket(sock, server_hostname=host))
            tls.sendall(f"GET /small.deb HTTP/1.1\r\nHost: {host}:{bench.origin}\r\n\r\n".encode())
            size = 0
            while size < SIZE:
                size += len(tls.recv(16384))
        time.sleep(1)  # tunnels release their buffers a little later
        yield


def _memory(bench: Bench, dduct: Program) -> Iterator[Figure]:
    """Memory of an intercepted connection between two requests, and of an idle tunnel."""
    yield "memory at work, all processes", f"{_pss(dduct) / MEGA:.0f} MiB"
    for what, host in (("intercepted connection", HOST), ("tunnel", TUNNELLED)):
        before = _pss(dduct)
        with _connections(bench, dduct, host, _IDLE):
            yield f"an idle {what}", f"{(_pss(dduct) - before) / _IDLE / 1024:.0f} KiB"


def _workers_memory(bench: Bench, dduct: Program) -> Iterator[Figure]:
    """Memory of one process that has all the connections, and no other process to share its memory with."""
    one = bench.start_dduct("held", workers=1)
    with _connections(bench, one, HOST, _HELD):
        rss, pss = (_sum(one.pids(), kind) / MEGA for kind in ("Rss", "Pss"))
        yield f"a worker with {_HELD} connections", f"RSS {rss:.0f} MiB, PSS {pss:.0f} MiB"
    one.stop()


def _one_process(bench: Bench, _: Program) -> Iterator[Figure]:
    """Whether one process does less work where it has more connections; in rounds."""
    one = bench.start_dduct("single", workers=1)
    few = Case("few", "/each/%d.deb", 10_000, _FEW, "req/s", objects=500)
    many = replace(few, connections=_MANY)
    bench.load(replace(few, requests=few.objects), one.port, "")
    found: List[Tuple[float, float]] = []
    for _number in range(_ROUNDS):
        found.append((few.value(bench.load(few, one.port, "")), many.value(bench.load(many, one.port, ""))))
    low, high = (median(values) for values in zip(*found))
    yield f"workers = 1: 4 KiB hits, {_FEW} connections", f"{low:,.0f} req/s"
    yield f"workers = 1: the same, {_MANY} connections", f"{high:,.0f} req/s: {high / low:.2f} times as many"
    one.stop()


def _pss(dduct: Program) -> int:
    """Bytes of all its processes; shared memory counts once."""
    return _sum(dduct.pids(), "Pss")


def _sum(pids: Iterable[int], kind: str) -> int:
    """Bytes of memory of processes, by a line of their smaps_rollup."""
    total = 0
    for pid in pids:
        found = re.search(rf"^{kind}:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
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
    roots = [
        write_objects(bench.directory / name / "files", f"{HOST}:{bench.origin}", "scale", _FOLDERS, count)
        for name, count in (("dduct", 2), ("crowded", objects // _FOLDERS))
    ]
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
