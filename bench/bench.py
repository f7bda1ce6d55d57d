#!/usr/bin/env python3
"""How fast is dduct? The same client through dduct and Squid, and straight to the nginx that is the origin of both.

    bench.py [--rounds N] [--quick] [--only CASE …]      as root (Squid and nginx want that); writes RESULTS.md

Every round runs every case through everybody, one after the other; what counts is the median, and the ratio of medians
of one run. Figures of different runs, let alone machines, say nothing about each other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from cryptography.hazmat.primitives.asymmetric import ec

from certs import CertificateAuthority

MEGA = 1024 * 1024
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Case:
    """What is measured: `path` (`%d` runs through `objects`), how often, by how many at a time, and in which unit."""

    name: str
    path: str
    requests: int
    connections: int
    unit: str
    once: bool = False
    objects: int = 1
    miss: bool = False


CASES = (
    Case("4 KiB hits, keep-alive, 16 connections", "/small.deb", 30_000, 16, "req/s"),
    Case("4 KiB hits, a connection each", "/small.deb", 3_000, 16, "req/s", once=True),
    Case("1 MiB hits, 8 connections", "/middle.deb", 1_500, 8, "MB/s"),
    Case("256 MiB hits, 4 connections", "/large.deb", 8, 4, "MB/s"),
    Case("256 MiB miss, one client", "/miss/{round}/large.deb", 1, 1, "MB/s", miss=True),
    Case("32 MiB miss, 200 clients", "/crowd/{round}/crowd.deb", 200, 200, "s", miss=True),
    Case("32 MiB hit, 200 clients", "/crowd.deb", 200, 200, "s"),
    Case("first octet of a miss", "/slow/{round}-%d/middle.deb", 10, 1, "ms", objects=10, miss=True),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, port), 1).close()
            return
        time.sleep(0.02)
    raise SystemExit(f"nobody listens on port {port}")


class Program:
    """A server that runs until the end."""

    def __init__(self, port: int, *command: object, log: Path, **more: Any) -> None:
        self.port = port
        with log.open("w") as output:
            self.process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output, **more)
        wait_for(port)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Bench:
    """The origin, the proxies, and the client."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack
        directory.chmod(0o755)
        self.authority = CertificateAuthority.generate("bench", 2048, 30)
        (directory / "origin-ca.pem").write_bytes(self.authority.pem)
        pair = self.authority.issue_server(ec.generate_private_key(ec.SECP256R1()), HOST, [HOST], 30)
        (directory / "origin.pem").write_bytes(pair.certificate_pem + pair.key_pem)
        data = directory / "data"
        data.mkdir()
        for name, size in (
            ("small.deb", 4096),
            ("middle.deb", MEGA),
            ("crowd.deb", 32 * MEGA),
            ("large.deb", 256 * MEGA),
        ):
            with (data / name).open("wb") as file:
                for _ in range(max(1, size // MEGA)):
                    file.write(os.urandom(min(size, MEGA)))
        self.client = directory / "load"
        flags = ["-O2", "-o", str(self.client), str(HERE / "load.c"), "-lssl", "-lcrypto", "-lpthread"]
        subprocess.run([os.environ.get("CC", "cc"), *flags], check=True)
        self.origin = self._start_nginx()
        self.proxies = {"dduct": self._start_dduct(), "Squid": self._start_squid()}

    def _start(self, port: int, *command: object, name: str, **more: Any) -> Program:
        program = Program(port, *command, log=self.directory / f"{name}.log", **more)
        self._stack.callback(program.stop)
        return program

    def _start_nginx(self) -> int:
        port = free_port()
        configuration = self.directory / "nginx.conf"
        configuration.write_text(
            f"""
            daemon off; worker_processes auto; pid {self.directory}/nginx.pid; error_log {self.directory}/nginx.err;
            events {{ worker_connections 4096; }}
            http {{
                access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; types {{ }}
                default_type application/octet-stream; etag on;
                server {{
                    listen {HOST}:{port} ssl backlog=4096;
                    ssl_certificate {self.directory}/origin.pem; ssl_certificate_key {self.directory}/origin.pem;
                    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:s:10m;
                    add_header Cache-Control "public, max-age=86400";
                    root {self.directory}/data;
                    location ~ ^/(miss|crowd)/[^/]+/(.*)$ {{ try_files /$2 =404; }}
                    location ~ ^/slow/[^/]+/(.*)$ {{ limit_rate 2m; try_files /$1 =404; }}
                }}
            }}
            """
        )
        self._start(port, "nginx", "-p", self.directory, "-c", configuration, name="nginx")
        return port

    def _start_dduct(self) -> Program:
        port = free_port()
        place = self.directory / "dduct"
        place.mkdir()
        (place / "dduct.toml").write_text(
            f"""
            [misc]
            log_level = 'warn'
            cert_dir = '{place}/certs'
            file_dir = '{place}/files'
            [proxy]
            tcp_bind = '{HOST}:{port}'
            tls_bind = ''
            upstream_ca = '{self.directory}/origin-ca.pem'
            [cache]
            min_free = ''
            [certs]
            rsa_key_bits = 2048
            server_ip_sans = ['{HOST}']
            """
        )
        command = (sys.executable, ROOT / "dduct.py", "--cfg", place / "dduct.toml")
        return self._start(port, *command, name="dduct-log")

    def _start_squid(self) -> Optional[Program]:
        program = shutil.which("squid", path=os.environ["PATH"] + ":/usr/sbin")
        if program is None:
            return None
        port = free_port()
        place = self.directory / "squid"
        place.mkdir()
        authority = CertificateAuthority.generate("squid", 3072, 30)
        (place / "ca.pem").write_bytes(authority.pem + authority.key_pem)
        generator = "/usr/lib/squid/security_file_certgen"
        subprocess.run([generator, "-c", "-s", place / "ssl_db", "-M", "16MB"], check=True, stdout=subprocess.DEVNULL)
        (place / "squid.conf").write_text(
            f"""
            http_port {HOST}:{port} ssl-bump generate-host-certificates=on tls-cert={place}/ca.pem
            sslcrtd_program {generator} -s {place}/ssl_db -M 16MB
            sslcrtd_children 5 startup=5
            ssl_bump bump all
            tls_outgoing_options cafile={self.directory}/origin-ca.pem
            http_access allow all
            maximum_object_size 1 GB
            cache_mem 512 MB
            maximum_object_size_in_memory 512 KB
            cache_dir ufs {place}/cache 8192 16 256
            access_log none
            cache_log {place}/cache.log
            pid_filename {place}/pid
            visible_hostname bench
            shutdown_lifetime 1 second
            """
        )
        shutil.chown(place, "proxy", "proxy")
        for path in place.rglob("*"):
            shutil.chown(path, "proxy", "proxy")
        self.directory.chmod(0o755)
        subprocess.run([program, "-z", "-N", "-f", place / "squid.conf"], check=True, capture_output=True)
        return self._start(port, program, "-N", "-f", place / "squid.conf", name="squid-log")

    def load(self, case: Case, proxy: Optional[int], number: str) -> Dict[str, float]:
        """One measurement."""
        command: List[object] = [self.client, "-c", case.connections, "-n", case.requests, "-d", case.objects]
        command += ["-x", f"{HOST}:{proxy}"] if proxy else []
        command += ["-o"] if case.once else []
        url = f"https://{HOST}:{self.origin}{case.path.format(round=number)}"
        done = subprocess.run([str(word) for word in [*command, url]], capture_output=True, text=True, timeout=600)
        figures: Dict[str, float] = json.loads(done.stdout)
        if figures["errors"]:
            raise SystemExit(f"{case.name}: {figures['errors']:.0f} errors through {proxy or 'nobody'}")
        return figures


def value(case: Case, figures: Dict[str, float]) -> float:
    """The figure that counts."""
    if case.unit == "req/s":
        return figures["requests"] / figures["seconds"]
    if case.unit == "s":
        return figures["seconds"]
    if case.unit == "ms":
        return figures["first"]
    return figures["octets"] / figures["seconds"] / 1e6


def measure(bench: Bench, cases: Sequence[Case], rounds: int) -> Dict[str, Dict[str, List[float]]]:
    """All values, by case and by whom they were measured through."""
    found: Dict[str, Dict[str, List[float]]] = {case.name: {} for case in cases}
    for number in range(rounds):
        for case in cases:
            for who, proxy in [("straight", None), *bench.proxies.items()]:
                if who != "straight" and proxy is None:
                    continue
                port = proxy.port if proxy is not None else None
                if not case.miss and number == 0:
                    bench.load(Case(case.name, case.path, case.objects, 1, case.unit), port, "warm")
                figures = bench.load(case, port, f"{number}-{who}")
                found[case.name].setdefault(who, []).append(value(case, figures))
                print(f"  {case.name:45} {who:9} {found[case.name][who][-1]:10.1f} {case.unit}", flush=True)
    return found


@contextlib.contextmanager
def started() -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory(prefix="dduct-bench-", dir=os.environ.get("BENCH_DIR", "/var/tmp")) as directory,
        ExitStack() as stack,
    ):
        yield Bench(Path(directory), stack)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="words of the cases that are wanted")
    options = parser.parse_args()
    cases = [case for case in CASES if not options.only or any(word in case.name for word in options.only)]
    with started() as bench:
        found = measure(bench, cases, options.rounds)
    report = Report(cases, found, options.rounds)
    print("\n" + report.table())
    if not options.only:
        (HERE / "RESULTS.md").write_text(report.page())
        (HERE / "results.svg").write_text(report.plot())


class Report:
    """Medians and their ratios, as a page and as a picture."""

    def __init__(self, cases: Sequence[Case], found: Dict[str, Dict[str, List[float]]], rounds: int) -> None:
        self._cases = cases
        self._rounds = rounds
        self._medians = {
            name: {who: statistics.median(values) for who, values in by.items()} for name, by in found.items()
        }

    def ratio(self, case: Case, other: str) -> Optional[float]:
        """How many times as fast as the other dduct is; None where that was not measured."""
        medians = self._medians[case.name]
        if other not in medians:
            return None
        ratio = medians["dduct"] / medians[other]
        return 1 / ratio if case.unit in ("s", "ms") else ratio

    def table(self) -> str:
        """In Markdown."""
        lines = [
            "| case | unit | straight (nginx) | Squid | dduct | × nginx | × Squid |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        for case in self._cases:
            medians = self._medians[case.name]
            cells = [f"{medians[who]:,.1f}" if who in medians else "–" for who in ("straight", "Squid", "dduct")]
            ratios = [self.ratio(case, other) for other in ("straight", "Squid")]
            cells += ["–" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            lines.append(f"| {case.name} | {case.unit} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def page(self) -> str:
        """RESULTS.md."""
        how = (
            f"Written by `make bench`: medians of {self._rounds} interleaved rounds, all on one machine, client and\n"
            "origin included. A ratio above 1 says that dduct is faster, whatever the unit. Compare ratios of one\n"
            "run, and nothing else."
        )
        return "\n\n".join(["# Results", how, _machine(), self.table(), "![ratios](results.svg)\n"])

    def plot(self) -> str:
        """Bars: how many times as fast as nginx and as Squid."""
        rows, y = [], 30
        for case in self._cases:
            rows.append(f'<text x="10" y="{y + 14}">{case.name}</text>')
            for other, colour in (("straight", "#4a78a8"), ("Squid", "#c8813a")):
                ratio = self.ratio(case, other)
                if ratio is not None:
                    width = min(400.0, 80 * ratio)
                    rows.append(f'<rect x="330" y="{y}" width="{width:.0f}" height="14" fill="{colour}"/>')
                    rows.append(f'<text x="{336 + width:.0f}" y="{y + 12}">{ratio:.2f}</text>')
                    y += 18
            y += 12
        parts = (("#4a78a8", "× nginx"), ("#c8813a", "× Squid"))
        key = " ".join(f'<tspan fill="{colour}">{text}</tspan>' for colour, text in parts)
        key = f'<text x="330" y="18">{key}</text>'
        line = f'<line x1="410" y1="24" x2="410" y2="{y}" stroke="#999" stroke-dasharray="3"/>'
        size = f'width="800" height="{y + 10}" font-family="sans-serif" font-size="12"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
        return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', key, line, *rows, "</svg>\n"])


def _machine() -> str:
    model = "unknown processor"
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
    versions = [f"Python {platform.python_version()}", ssl.OPENSSL_VERSION, f"Linux {platform.release()}"]
    for command in (["nginx", "-v"], ["squid", "-v"]):
        with contextlib.suppress(OSError):
            done = subprocess.run(command, capture_output=True, text=True)
            versions.append((done.stdout + done.stderr).splitlines()[0])
    return f"{os.cpu_count()} × {model}; {'; '.join(versions)}."


if __name__ == "__main__":
    main()
