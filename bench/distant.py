"""Origins that may be far away, with packages of all kinds, and the clients that fetch them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence

from cryptography.hazmat.primitives.asymmetric import ec
from jobs import Command, run_together
from kinds import Image, Kind, Origin, Way
from programs import HERE, HOST, Program, free_port, need, start_dduct, start_squid

from tls.authority import CertificateAuthority

NAME = "origin.test"


@dataclass(frozen=True)
class Took:
    """How long the clients took, and how much processor time the proxy used meanwhile; in seconds."""

    seconds: float
    cpu: float


@dataclass(frozen=True)
class Proxy:
    """A running proxy, and what its clients need to know."""

    program: Program
    way: Way


def hosts_file() -> str:
    """An /etc/hosts that knows the origin."""
    return f"127.0.0.1 localhost {NAME}\n::1 localhost\n"


class Place:
    """The origins, at each distance in `delays` (milliseconds), and a directory for everything."""

    def __init__(self, directory: Path, stack: ExitStack, wanted: Sequence[Kind], delays: Sequence[float]) -> None:
        self.directory = directory
        self._stack = stack
        directory.chmod(0o755)  # Squid is another user
        authority = CertificateAuthority.generate("bench", 2048, 30)
        pair = authority.issue_server(ec.generate_private_key(ec.SECP256R1()), NAME, [NAME], 30)
        self._ca = directory / "origin-ca.pem"
        self._ca.write_bytes(authority.pem)
        (directory / "origin.crt").write_bytes(pair.certificate_pem)
        (directory / "origin.key").write_bytes(pair.key_pem)
        self._straight = Way(None, self._ca)
        ports = [self._start_nginx(wanted), self._start_registry(wanted)]
        self._origins: Dict[float, Origin] = {}
        for delay in delays:
            files, registry = (self._distant(port, delay) for port in ports)
            self._origins[delay] = Origin(f"{NAME}:{files}", f"{NAME}:{registry}")
        start_dduct(directory / "first", self._ca, directory / "certs", hosts=[NAME]).stop()  # makes its CA

    def _keep(self, program: Program) -> int:
        self._stack.callback(program.stop)
        return program.port

    def _start_nginx(self, wanted: Sequence[Kind]) -> int:
        files = self.directory / "files"
        files.mkdir()
        for kind in wanted:
            kind.write(files)
        port = free_port()
        configuration = self.directory / "nginx.conf"
        configuration.write_text(
            f"""
            user root; daemon off; worker_processes auto; pid {self.directory}/nginx.pid;
            error_log {self.directory}/nginx.err;
            events {{ worker_connections 4096; }}
            http {{
                access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; index index.html;
                types {{ text/html html; application/json json; }} default_type application/octet-stream;
                server {{
                    listen {HOST}:{port} ssl backlog=4096; root {files};
                    ssl_certificate {self.directory}/origin.crt; ssl_certificate_key {self.directory}/origin.key;
                    location ~ [.](?:tgz|whl)$ {{ add_header Cache-Control "public, max-age=31557600, immutable"; }}
                    location ~ [.]deb$ {{ add_header Cache-Control "public, max-age=2592000"; }}
                    location /simple/ {{ add_header Cache-Control "max-age=600, public"; }}
                    location /debian/dists/ {{ add_header Cache-Control "public, max-age=120"; }}
                    location /npm-install/ {{
                        add_header Cache-Control "public, max-age=300"; try_files $uri $uri.json =404;
                    }}
                }}
            }}
            """
        )
        log = self.directory / "nginx.log"
        return self._keep(Program(port, need("nginx"), "-p", self.directory, "-c", configuration, log=log))

    def _start_registry(self, wanted: Sequence[Kind]) -> int:
        """The registry with the image, or a port where nobody listens if no image is wanted."""
        port = free_port()
        images = [kind for kind in wanted if isinstance(kind, Image)]
        if not images:
            return port
        configuration = self.directory / "registry.yml"
        configuration.write_text(
            f"""
version: 0.1
log: {{accesslog: {{disabled: true}}, level: error}}
storage: {{filesystem: {{rootdirectory: {self.directory}/registry}}}}
http:
  addr: {HOST}:{port}
  tls: {{certificate: {self.directory}/origin.crt, key: {self.directory}/origin.key}}
"""
        )
        log = self.directory / "registry.log"
        self._keep(Program(port, need("docker-registry"), "serve", configuration, log=log))
        for image in images:
            run_together([[image.push(f"{NAME}:{port}", self._ca)]], [self.directory])
            shutil.rmtree(image.layout)
        return port

    def _distant(self, port: int, delay: float) -> int:
        """The port at which what listens on `port` is so far away."""
        if not delay:
            return port
        far = free_port()
        log = self.directory / f"delay-{far}.log"
        return self._keep(Program(far, sys.executable, HERE / "delay.py", far, port, delay, log=log))

    @contextlib.contextmanager
    def proxy(self, who: str, name: str) -> Iterator[Optional[Proxy]]:
        """A dduct or Squid with an empty cache, running until the context ends; None where there is no Squid."""
        place = self.directory / name
        if who == "dduct":
            certificates = self.directory / "certs"
            program: Optional[Program] = start_dduct(place, self._ca, certificates, hosts=[NAME])
            ca = certificates / "ca.crt"
        else:
            program, ca = start_squid(place, self._ca), place / "ca.crt"
        if program is None:
            yield None
            return
        try:
            yield Proxy(program, Way(f"http://{HOST}:{program.port}", ca))
        finally:
            program.stop()
            shutil.rmtree(place)

    def run(self, kind: Kind, delay: float, jobs: int, name: str, proxy: Optional[Proxy]) -> Took:
        """Run so many clients at once. Raises SystemExit where one fails or has not got everything."""
        way = proxy.way if proxy is not None else self._straight
        places = [self.directory / f"job-{name}-{number}" for number in range(jobs)]
        prepared: List[List[Command]] = []
        for place in places:
            place.mkdir()
            prepared.append(kind.commands(place, self._origins[delay], way))
        os.sync()  # what others have written is not written meanwhile
        cpu = proxy.program.cpu() if proxy is not None else 0.0
        began = time.monotonic()
        run_together(prepared, places)
        seconds = time.monotonic() - began
        cpu = proxy.program.cpu() - cpu if proxy is not None else 0.0
        for place in places:
            if kind.found(place) != kind.count:
                raise SystemExit(f"{name}: {kind.found(place)} of {kind.count} have arrived")
            shutil.rmtree(place)
        return Took(seconds, cpu)
