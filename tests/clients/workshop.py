"""Real servers and a real dduct for the tests with real clients: processes, files and logs, all below one directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Set

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.origin import Handler, Origin

from tls.authority import CertificateAuthority

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 120.0
ORIGIN = "origin.test"
REGISTRY = "registry.test"
TOKENS = "tokens.test"
CDN = "cdn.test"


def require(*programs: str) -> None:
    """Skip the test where a program is missing, saying so; with DDUCT_REQUIRE_CLIENTS=1 fail instead."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [program for program in programs if shutil.which(program, path=path) is None]
    if os.geteuid() != 0:
        missing.append("root, for a private /etc/hosts")
    if not missing:
        return
    reason = f"needs {', '.join(missing)}"
    if os.environ.get("DDUCT_REQUIRE_CLIENTS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


# What a machine may have set for its own proxy and its own authority; no test is to depend on it.
_OWN_WAYS = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir", "curl_ca_bundle")
_OWN_TOOLS = ("requests_ca_bundle", "node_extra_ca_certs", "pip_", "npm_config_", "cargo_", "uv_")


def clean_environment() -> Dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.lower() not in _OWN_WAYS and not name.lower().startswith(_OWN_TOOLS)
    }


def run(
    *command: object,
    env: Optional[Mapping[str, str]] = None,
    cwd: Optional[Path] = None,
    timeout: float = TIMEOUT,
) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        env={**clean_environment(), **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{output}"
    return output


_given: Set[int] = set()


def free_port() -> int:
    """One that was free a moment ago, and is given only once: a port in sixteen thousand comes twice in succession."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


class Program:
    """A server in the background, its output in a file."""

    def __init__(self, log: Path, command: Sequence[object], env: Optional[Mapping[str, str]] = None) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_for_port(self, port: int, host: str = "127.0.0.1") -> None:
        """Until it accepts connections."""

        def accepts() -> bool:
            with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
                return True
            return False

        self.wait_until(accepts)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Until it is ready, which no event of this process tells of."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"it ended:\n{self.log.read_text()}"
            if ready():
                return
            time.sleep(0.02)
        raise AssertionError(f"it does not become ready:\n{self.log.read_text()}")

    def stop(self) -> int:
        """End it in good order; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(TIMEOUT)
        finally:
            self.process.kill()
            self.process.wait()


class Nginx:
    """nginx with TLS on one port and without on another, both serving `files`."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self.directory = workshop.directory / "nginx"
        self.files = self.directory / "files"
        self.files.mkdir(parents=True)
        self.tls_port, self.port = free_port(), free_port()
        self._log = self.directory / "access.log"
        self._markers = 0
        certificate, key = workshop.certificate(ORIGIN)
        temporary = "".join(
            f"{kind}_temp_path {self.directory}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        configuration = self.directory / "nginx.conf"
        configuration.write_text(f"""
            user root;
            daemon off;
            worker_processes 1;
            pid {self.directory}/pid;
            error_log {self.directory}/error.log;
            events {{}}
            http {{
                {temporary}
                log_format counted '$request_method $uri $status $body_bytes_sent';
                access_log {self._log} counted;
                default_type application/octet-stream;
                root {self.files};
                index index.html index.json;
                server {{
                    listen 127.0.0.1:{self.port};
                    listen [::1]:{self.port};
                    listen 127.0.0.1:{self.tls_port} ssl;
                    listen [::1]:{self.tls_port} ssl;
                    ssl_certificate {certificate};
                    ssl_certificate_key {key};
                    location /slow/ {{ limit_rate 4m; }}
                }}
            }}
        """)
        nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
        self._program = workshop.start("nginx", [nginx, "-c", configuration, "-p", self.directory])
        self._program.wait_for_port(self.tls_port)

    @property
    def url(self) -> str:
        return f"https://{ORIGIN}:{self.tls_port}"

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._program.stop()

    def sent(self) -> Dict[str, int]:
        """Bytes of body sent so far, by path. Everything before the marker's line is then in the log."""
        self._markers += 1
        marker = f"/marker-{self._markers}"
        (self.files / marker[1:]).write_bytes(b"")
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{marker}", timeout=TIMEOUT) as answer:
            assert answer.status == 200
        deadline = time.monotonic() + TIMEOUT
        while marker not in self._log.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        sent: Dict[str, int] = {}
        for line in self._log.read_text().splitlines():
            _, path, _, raw = line.split()
            if not path.startswith("/marker-"):
                sent[path] = sent.get(path, 0) + int(raw)
        return sent


class Registry:
    """docker-registry over TLS with an empty store; at an address of its own on the usual port, if so wanted."""

    def __init__(self, workshop: Workshop, authentication: str = "", usual_port: bool = False) -> None:
        directory = workshop.directory / "registry"
        directory.mkdir()
        self.port = free_port()
        self.address = "127.0.0.1"
        if usual_port:  # nobody else is given this address, either
            self.address, self.port = f"127.77.{self.port >> 8}.{self.port & 255}", 443
        certificate, key = workshop.certificate(REGISTRY)
        configuration = directory / "config.yml"
        configuration.write_text(f"""
version: 0.1
log: {{accesslog: {{disabled: false}}, level: warn}}
storage: {{filesystem: {{rootdirectory: {directory}/store}}, delete: {{enabled: true}}}}
http:
  addr: {self.address}:{self.port}
  tls: {{certificate: {certificate}, key: {key}}}
{authentication}
""")
        self.program = workshop.start("docker-registry", ["docker-registry", "serve", configuration])
        self.program.wait_for_port(self.port, self.address)

    @property
    def host(self) -> str:
        return f"{REGISTRY}:{self.port}"

    def blobs_sent(self, at_least: int = 0) -> List[str]:
        """The digests of the blobs that were asked for with GET, once `at_least` so many are in the log."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            lines = self.program.log.read_text().splitlines()
            gets = [line for line in lines if '"GET /v2/' in line and "/blobs/sha256:" in line]
            if len(gets) >= at_least or time.monotonic() > deadline:
                return [line.split("/blobs/")[1].split()[0] for line in gets]
            time.sleep(0.02)


class Dduct:
    """The program itself, started from its command line with a configuration of its own."""

    def __init__(self, workshop: Workshop, certificates: Path, extra: str = "", hosts: Sequence[str] = ()) -> None:
        self.directory = workshop.directory / "dduct"
        self.directory.mkdir()
        shutil.copytree(certificates, self.directory / "certs")
        self.tcp_port, self.tls_port = free_port(), free_port()
        configuration = self.directory / "dduct.toml"
        configuration.write_text(f"""
            [misc]
            log_level = 'debug'
            cert_dir = 'certs/'
            file_dir = 'files/'
            [proxy]
            tcp_bind = '[::]:{self.tcp_port}'
            tls_bind = '127.0.0.1:{self.tls_port}'
            upstream_ca = '{workshop.ca}'
            {extra}
            [certs]
            rsa_key_bits = 2048
            server_dns_sans = {[ORIGIN, REGISTRY, *hosts]}
            server_ip_sans = ['127.0.0.1', '::1']
        """)
        # The names of the origins are known to dduct alone: clients behind a proxy do not resolve them.
        command = [sys.executable, ROOT / "dduct.py", "--cfg", configuration]
        self.program = workshop.start("dduct", workshop.with_names(command))
        self.program.wait_for_port(self.tcp_port)
        self.program.wait_for_port(self.tls_port)

    @property
    def ca(self) -> Path:
        return self.directory / "certs/ca.crt"

    @property
    def files(self) -> Path:
        return self.directory / "files"

    @property
    def tcp(self) -> str:
        return f"http://127.0.0.1:{self.tcp_port}"

    @property
    def tls(self) -> str:
        return f"https://127.0.0.1:{self.tls_port}"

    @property
    def environment(self) -> Dict[str, str]:
        """What sends most programs through dduct and makes them trust it."""
        return {
            "http_proxy": self.tcp,
            "https_proxy": self.tcp,
            "HTTP_PROXY": self.tcp,
            "HTTPS_PROXY": self.tcp,
            "no_proxy": "",
            "NO_PROXY": "",
            "SSL_CERT_FILE": str(self.ca),
        }


class Workshop:
    """One directory, one authority for origins, and the processes of one test; all end with it."""

    def __init__(self, directory: Path, authority: CertificateAuthority, certificates: Path) -> None:
        self.directory = directory
        self._authority = authority
        self._certificates = certificates
        self._stack = ExitStack()
        self.registry_address = "127.0.0.1"
        self.ca = directory / "origins.crt"
        self.ca.write_bytes(authority.pem)

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def certificate(self, host: str) -> List[Path]:
        """A certificate and its key, as files, for an origin called `host`: always the same."""
        certificate, key = self.directory / f"{host}.crt", self.directory / f"{host}.key"
        if certificate.exists():
            return [certificate, key]
        pair = self._authority.issue_server(ec.generate_private_key(ec.SECP256R1()), host, [host], 30)
        certificate.write_bytes(pair.certificate_pem)
        key.write_bytes(pair.key_pem)
        return [certificate, key]

    def at_end(self, release: Callable[[], object]) -> None:
        """Call this first when all ends, but for what is started later."""
        self._stack.callback(release)

    def with_names(self, command: Sequence[object]) -> List[object]:
        """A command that knows the names of the origins."""
        hosts = self.directory / "hosts"
        lines = ["127.0.0.1 localhost", f"127.0.0.1 {ORIGIN} {TOKENS} {CDN}", f"{self.registry_address} {REGISTRY}"]
        hosts.write_text("\n".join([*lines, "::1 localhost", ""]))
        script = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
        return ["unshare", "-m", "sh", "-c", script, "sh", hosts, *command]

    def start(self, name: str, command: Sequence[object]) -> Program:
        program = Program(self.directory / f"{name}.log", command)
        self._stack.callback(program.stop)
        return program

    def nginx(self) -> Nginx:
        return Nginx(self)

    def registry(self, authentication: str = "", usual_port: bool = False) -> Registry:
        registry = Registry(self, authentication, usual_port)
        self.registry_address = registry.address
        return registry

    def origin(self, host: str, handler: Handler) -> Origin:
        """A scripted origin over TLS, called `host`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate, key = self.certificate(host)
        context.load_cert_chain(certificate, key)
        return self._stack.enter_context(Origin(handler, context))

    def dduct(self, extra: str = "", hosts: Sequence[str] = ()) -> Dduct:
        """A dduct that intercepts `hosts`, too; `extra` are lines for its configuration, of [proxy] at first."""
        return Dduct(self, self._certificates, extra, hosts)
