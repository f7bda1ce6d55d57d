"""The origin, the proxies and the client of the bench: nginx, dduct and Squid on loopback, and bench/load.c."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from cryptography.hazmat.primitives.asymmetric import ec

from tls.authority import CertificateAuthority

if TYPE_CHECKING:
    from cases import Case

MEGA = 1024 * 1024
MANY = 4000  # objects of the cases with many
HOST = "127.0.0.1"
TUNNELLED = "127.0.0.2"  # the same origin, by a name that is not intercepted


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


def warm_memory(directory: Path) -> None:
    """Make the host give this machine the memory that a miss needs, and write pending data to the disk.

    A virtual machine may have returned free memory to its host; to get it back takes longer than to download the
    object. The kernel reuses memory that was freed last after the same use: so a file is written, and removed.
    """
    os.sync()
    path, piece = directory / "warm", bytes(MEGA)
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(768):
                file.write(piece)
    finally:
        path.unlink()


class Program:
    """A server process that runs until the end."""

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

    def __init__(self, directory: Path, stack: ExitStack, only_dduct: bool = False) -> None:
        self.directory = directory
        self._stack = stack
        directory.chmod(0o755)
        self.authority = CertificateAuthority.generate("bench", 2048, 30)
        (directory / "crowd.log").touch()
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
        (data / "each").mkdir()
        for number in range(MANY):
            (data / "each" / f"{number}.deb").write_bytes(os.urandom(4096))
        self.client = directory / "load"
        flags = ["-O2", "-o", str(self.client), str(HERE / "load.c"), "-lssl", "-lcrypto", "-lpthread"]
        subprocess.run([os.environ.get("CC", "cc"), *flags], check=True)
        self.origin = self._start_nginx()
        self.proxies: Dict[str, Optional[Program]] = {"dduct": self.start_dduct("dduct")}
        if not only_dduct:
            self.proxies["Squid"] = self._start_squid()

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
                    listen {HOST}:{port} ssl backlog=4096; listen {TUNNELLED}:{port} ssl backlog=4096;
                    ssl_certificate {self.directory}/origin.pem; ssl_certificate_key {self.directory}/origin.pem;
                    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:s:10m;
                    add_header Cache-Control "public, max-age=86400";
                    root {self.directory}/data;
                    location ~ ^/miss/[^/]+/(.*)$ {{ try_files /$1 =404; }}
                    location ~ ^/crowd/[^/]+/(.*)$ {{ access_log {self.directory}/crowd.log; try_files /$1 =404; }}
                    location ~ ^/slow/[^/]+/(.*)$ {{ limit_rate 2m; try_files /$1 =404; }}
                }}
            }}
            """
        )
        self._start(port, "nginx", "-p", self.directory, "-c", configuration, name="nginx")
        return port

    def start_dduct(self, name: str) -> Program:
        """Start a dduct with its own cache and authority, in the directory `name`."""
        port = free_port()
        place = self.directory / name
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
        return self._start(port, *command, name=f"{name}-log")

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
            acl tunnelled dst {TUNNELLED}
            ssl_bump splice tunnelled
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

    def transfers(self) -> int:
        """How many objects of the many-clients cases the origin has sent."""
        return len((self.directory / "crowd.log").read_text().splitlines())

    def load(self, case: Case, proxy: Optional[int], number: str) -> Dict[str, float]:
        """Run one measurement; its figures."""
        command: List[object] = [self.client, "-c", case.connections, "-n", case.requests, "-d", case.objects]
        command += ["-x", f"{HOST}:{proxy}"] if proxy else []
        command += ["-o"] if case.once else []
        url = f"https://{case.host}:{self.origin}{case.path.format(round=number)}"
        done = subprocess.run([str(word) for word in [*command, url]], capture_output=True, text=True, timeout=600)
        figures: Dict[str, float] = json.loads(done.stdout)
        if figures["errors"]:
            raise SystemExit(f"{case.name}: {figures['errors']:.0f} errors through {proxy or 'nobody'}")
        return figures
