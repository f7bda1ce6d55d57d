"""Servers as processes: how dduct and Squid are started, with a cache of their own each, and how they end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tls.authority import CertificateAuthority

HOST = "127.0.0.1"
TUNNELLED = "127.0.0.2"  # the same machine, by a name that is not intercepted
_GENERATOR = "/usr/lib/squid/security_file_certgen"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def find(name: str) -> Optional[str]:
    """The path of a program, which may be one for root; None where it is missing."""
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def need(name: str) -> str:
    """The path of a program; raises SystemExit where it is missing."""
    found = find(name)
    if found is None:
        raise SystemExit(f"needs {name}")
    return found


def end_on_signals() -> None:
    """Let SIGTERM raise SystemExit, once, so that whatever was started ends, and its files go."""

    def end(number: int, _: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would cut the cleaning short
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A directory for everything, on a disk. It goes in the end, and no SIGTERM cuts that short."""
    parent = os.environ.get("BENCH_DIR", "/var/tmp")
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as directory:
        try:
            yield Path(directory)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Program:
    """A server process that runs until the end. Raises SystemExit where it does not listen within half a minute."""

    def __init__(self, port: int, *command: object, log: Path, **more: Any) -> None:
        self.port = port
        with log.open("w") as output:
            self.process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output, **more)
        self._wait(log)

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, self.port), 1).close()
                return
            time.sleep(0.02)
        self.stop()
        raise SystemExit(f"nobody listens on port {self.port}: {log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def pids(self) -> List[int]:
        """The process, and those that it has started."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def cpu(self) -> float:
        """Seconds of processor time that all its processes took so far."""
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def start_dduct(
    place: Path, upstream_ca: Path, certificates: Optional[Path] = None, workers: int = 0, hosts: Sequence[str] = ()
) -> Program:
    """A dduct with an empty cache in the new directory `place`, and the CA in `certificates` or one of its own.

    It intercepts HOST and `hosts`.
    """
    port = free_port()
    place.mkdir()
    (place / "dduct.toml").write_text(
        f"""
        [misc]
        log_level = 'warn'
        cert_dir = '{certificates or place / "certs"}'
        file_dir = '{place}/files'
        [proxy]
        tcp_bind = '{HOST}:{port}'
        tls_bind = ''
        workers = {workers}
        upstream_ca = '{upstream_ca}'
        [cache]
        min_free = ''
        [certs]
        rsa_key_bits = 2048
        server_dns_sans = {list(hosts)}
        server_ip_sans = ['{HOST}']
        """
    )
    command = (sys.executable, ROOT / "dduct.py", "--cfg", place / "dduct.toml")
    return Program(port, *command, log=place / "log")


def start_squid(place: Path, upstream_ca: Path) -> Optional[Program]:
    """A Squid with an empty cache in the new directory `place`, its CA in `ca.crt` there; None where it is missing."""
    program = find("squid")
    if program is None:
        return None
    port = free_port()
    place.mkdir()
    authority = CertificateAuthority.generate("squid", 3072, 30)
    (place / "ca.pem").write_bytes(authority.pem + authority.key_pem)
    (place / "ca.crt").write_bytes(authority.pem)
    subprocess.run([_GENERATOR, "-c", "-s", place / "ssl_db", "-M", "16MB"], check=True, stdout=subprocess.DEVNULL)
    (place / "squid.conf").write_text(
        f"""
        http_port {HOST}:{port} ssl-bump generate-host-certificates=on tls-cert={place}/ca.pem
        sslcrtd_program {_GENERATOR} -s {place}/ssl_db -M 16MB
        sslcrtd_children 5 startup=5
        acl tunnelled dst {TUNNELLED}
        ssl_bump splice tunnelled
        ssl_bump bump all
        tls_outgoing_options cafile={upstream_ca}
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
    subprocess.run([program, "-z", "-N", "-f", place / "squid.conf"], check=True, capture_output=True)
    return Program(port, program, "-N", "-f", place / "squid.conf", log=place.with_name(f"{place.name}-log"))
