"""The origin, the proxies and the client of the bench: nginx, dduct and Squid on loopback, and bench/load.c."""

from __future__ import annotations

import json
import os
import random
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Optional

from cryptography.hazmat.primitives.asymmetric import ec
from programs import HERE, HOST, TUNNELLED, Program, free_port, need, start_dduct, start_squid

from tls.authority import CertificateAuthority

if TYPE_CHECKING:
    from cases import Case

MEGA = 1024 * 1024
MANY = 4000  # objects of the cases with many
MIX = 300  # objects of mixed sizes, as npm fetches them


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


class Bench:
    """The origin, the proxies, and the client."""

    def __init__(self, directory: Path, stack: ExitStack, only_dduct: bool = False) -> None:
        self.directory = directory
        self._stack = stack
        directory.chmod(0o755)
        self.authority = CertificateAuthority.generate("bench", 2048, 30)
        for name in ("crowd.log", "checked.log"):
            (directory / name).touch()
        (directory / "origin-ca.pem").write_bytes(self.authority.pem)
        pair = self.authority.issue_server(ec.generate_private_key(ec.SECP256R1()), HOST, [HOST], 30)
        (directory / "origin.pem").write_bytes(pair.certificate_pem + pair.key_pem)
        self._write_data()
        self.client = directory / "load"
        flags = ["-O2", "-o", str(self.client), str(HERE / "load.c"), "-lssl", "-lcrypto", "-lpthread"]
        subprocess.run([os.environ.get("CC", "cc"), *flags], check=True)
        self.origin = self._start_nginx()
        self.proxies: Dict[str, Optional[Program]] = {"dduct": self.start_dduct("dduct")}
        if not only_dduct:
            self.proxies["Squid"] = self._start_squid()

    def _write_data(self) -> None:
        data = self.directory / "data"
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
        (data / "mix").mkdir()
        sizes = random.Random(1)
        for number in range(MIX):  # 1 to 60 KiB, half of them below 8 KiB
            (data / "mix" / f"{number}.tgz").write_bytes(os.urandom(int(1024 * 60 ** sizes.random())))

    def _keep(self, program: Program) -> Program:
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
                log_format status '$status';
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
                    location ~ ^/validated/(.*)$ {{ add_header Cache-Control "no-cache"; try_files /$1 =404; }}
                    location ~ ^/checked/(.*)$ {{
                        access_log {self.directory}/checked.log status;
                        add_header Cache-Control "no-cache"; try_files /$1 =404;
                    }}
                    location ~ ^/slow/[^/]+/(.*)$ {{ limit_rate 2m; try_files /$1 =404; }}
                }}
            }}
            """
        )
        self._keep(
            Program(port, need("nginx"), "-p", self.directory, "-c", configuration, log=self.directory / "nginx.log")
        )
        return port

    def start_dduct(self, name: str, workers: int = 0) -> Program:
        """Start a dduct with its own cache and authority, in the directory `name`."""
        return self._keep(start_dduct(self.directory / name, self.directory / "origin-ca.pem", workers=workers))

    def _start_squid(self) -> Optional[Program]:
        program = start_squid(self.directory / "squid", self.directory / "origin-ca.pem")
        return program and self._keep(program)

    def transfers(self) -> int:
        """How many objects of the many-clients cases the origin has sent."""
        return len((self.directory / "crowd.log").read_text().splitlines())

    def validations(self) -> int:
        """How many questions below `/checked` the origin has answered with 304."""
        return (self.directory / "checked.log").read_text().split().count("304")

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
