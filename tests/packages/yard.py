"""Where artefacts are tried: a network of its own with an HTTPS origin, and Debian roots that are thrown away."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence

import pytest
from clients.workshop import Program, clean_environment
from cryptography.hazmat.primitives.asymmetric import ec

from tls.authority import CertificateAuthority

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "packaging/kubernetes"
TOOLS = ROOT / ".venv-packages/bin"
TIMEOUT = 120.0
PORT = 8443  # of the origin, in a network of its own
URL = f"https://127.0.0.1:{PORT}/pool/thing.tar.gz"
PROXY = "http://127.0.0.1:8000"  # where the configuration that is shipped has it
BODY = hashlib.shake_256(b"thing").digest(3_000_000)

# What a Debian 12 server has, and of what dduct needs nothing but Python and cryptography. No compiler, no pip.
PACKAGES = ["python3", "python3-cryptography", "ca-certificates", "curl", "systemd-sysv", "dbus"]


def run(*command: object, env: Optional[Mapping[str, str]] = None, cwd: Optional[Path] = None, status: int = 0) -> str:
    """The output of a command that has to end with `status`."""
    words = [str(word) for word in command]
    environment = {**clean_environment(), **(env or {})}
    done = subprocess.run(
        words,
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == status, f"{' '.join(words)} ended with {done.returncode}:\n{output}"
    return output


@contextlib.contextmanager
def once(path: Path) -> Iterator[bool]:
    """Whether `path` is missing; other processes wait until it is made."""
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not path.exists()


def build_base(root: Path) -> None:
    """A Debian 12 as a directory, from the sources of packages that this machine has."""
    stage = root.with_suffix(".new")
    run("mmdebstrap", "--variant=minbase", "--format=directory", "bookworm", stage)
    stage.rename(root)


def build_root(base: Path, root: Path) -> None:
    """The same with more packages."""
    stage = root.with_suffix(".new")
    run("cp", "-a", base, stage)
    shutil.copy("/etc/resolv.conf", stage / "etc/resolv.conf")
    install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *PACKAGES]
    enter = ["unshare", "--mount", f"--root={stage}", "--mount-proc=/proc", "env", "DEBIAN_FRONTEND=noninteractive"]
    run(*enter, "sh", "-c", 'apt-get -q update && "$@"', "sh", *install)
    stage.rename(root)


class Debian:
    """A Debian 12 that may be changed, over one that stays. Programs in it have a /proc, and nothing else."""

    def __init__(self, root: Path, directory: Path) -> None:
        self.path = directory / "debian"
        layers = [directory / "upper", directory / "work"]
        for path in [self.path, *layers]:
            path.mkdir(parents=True)
        options = f"lowerdir={root},upperdir={layers[0]},workdir={layers[1]}"
        run("mount", "-t", "overlay", "overlay", "-o", options, self.path)

    def __enter__(self) -> Debian:
        return self

    def __exit__(self, *_: object) -> None:
        run("umount", self.path)

    def command(self, *words: object) -> List[object]:
        """What runs these words inside."""
        enter = ["unshare", "--mount", f"--root={self.path}", "--mount-proc=/proc"]
        return [*enter, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", *words]

    def put(self, source: Path, place: str) -> Path:
        """Copy a file in; where it is from outside."""
        target = self.path / place.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(source, target))

    def trust(self, authority: Path) -> None:
        """Let the system trust an authority: dduct asks origins with that."""
        self.put(authority, "/usr/local/share/ca-certificates/origins.crt")
        run(*self.command("update-ca-certificates"))


class Yard:
    """A network with nothing but loopback, an origin in it, and the processes of one test; all end with it."""

    def __init__(self, directory: Path, authority: CertificateAuthority) -> None:
        self.directory = directory
        self.name = f"dduct-{os.getpid()}-{directory.name[-8:]}"
        self.ca = directory / "origins.crt"
        self._authority = authority
        self._stack = ExitStack()
        self._log = directory / "origin.log"

    def __enter__(self) -> Yard:
        with ExitStack() as stack:
            run("ip", "netns", "add", self.name)
            stack.callback(run, "ip", "netns", "del", self.name)
            run("ip", "-n", self.name, "link", "set", "lo", "up")
            self._stack = stack.pop_all()
        self._start_origin()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def inside(self, *command: object) -> List[object]:
        """What runs a command in this network."""
        return ["ip", "netns", "exec", self.name, *command]

    def _start_origin(self) -> None:
        files = self.directory / "origin/pool"
        files.mkdir(parents=True)
        (files / "thing.tar.gz").write_bytes(BODY)
        os.utime(files / "thing.tar.gz", (1.7e9, 1.7e9))  # long enough ago to be fresh for a while
        pair = self._authority.issue_server(ec.generate_private_key(ec.SECP256R1()), "origin", ["127.0.0.1"], 30)
        certificate, key = self.directory / "origin.crt", self.directory / "origin.key"
        certificate.write_bytes(pair.certificate_pem)
        key.write_bytes(pair.key_pem)
        self.ca.write_bytes(self._authority.pem)
        script = Path(__file__).with_name("origin.py")
        self.start("origin", [sys.executable, script, certificate, key, files.parent, PORT])
        wait_for(self._log, "ready")

    def start(self, name: str, command: Sequence[object], env: Optional[Mapping[str, str]] = None) -> Program:
        """A process in this network; its output is in `name`.log."""
        program = Program(self.directory / f"{name}.log", self.inside(*command), env)
        self._stack.callback(program.stop)
        return program

    def asked(self) -> int:
        """How often the origin was asked for the thing."""
        return self._log.read_text().count('"GET /pool/thing.tar.gz ')

    def wait_until_healthy(self, program: Optional[Program] = None) -> float:
        """Until dduct answers; seconds that it took."""
        began = time.monotonic()
        while time.monotonic() - began < TIMEOUT:
            words = [str(word) for word in self.inside("curl", "-sf", "-m", "5", "--noproxy", "*", f"{PROXY}/healthz")]
            done = subprocess.run(words, stdout=subprocess.PIPE, timeout=TIMEOUT)
            if done.stdout == b"ok\n":
                return time.monotonic() - began
            if program is not None:
                assert program.process.poll() is None, program.log.read_text()
            time.sleep(0.02)
        raise AssertionError("dduct does not answer" if program is None else program.log.read_text())

    def check_that_it_caches(self, debian: Optional[Debian] = None) -> None:
        """curl through the proxy, twice: the second time the thing comes from the cache."""

        def curl(*words: object) -> str:
            command = ["curl", "-sS", "-m", "60", *words]
            return run(*self.inside(*(debian.command(*command) if debian else command)))

        place = debian.path if debian else self.directory
        there = "" if debian else str(self.directory)
        curl("--noproxy", "*", "-o", f"{there}/ca.crt", f"{PROXY}/ca.crt")
        authority = (place / "ca.crt").read_text()
        assert "BEGIN CERTIFICATE" in authority
        curl("-f", "--noproxy", "*", "-o", f"{there}/setup.sh", f"{PROXY}/setup/sh")
        assert authority.strip() in (place / "setup.sh").read_text()
        for attempt, status in enumerate(("fwd=uri-miss; stored", "hit")):
            name, head = f"thing-{attempt}", f"head-{attempt}"
            words = ["-x", PROXY, "--cacert", f"{there}/ca.crt", "-o", f"{there}/{name}", "-D", f"{there}/{head}"]
            curl("-f", *words, URL)
            assert (place / name).read_bytes() == BODY
            heads = (place / head).read_text()
            assert f"Cache-Status: dduct; {status}" in heads, heads
        assert self.asked() == 1


def wait_for(log: Path, text: str) -> None:
    """Until a program has written it."""
    deadline = time.monotonic() + TIMEOUT
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in {log}"
        time.sleep(0.02)


def pythons() -> Dict[str, Path]:
    """Every Python from 3.9 to 3.13 that is found, by version."""
    found = {}
    for version in ("3.9", "3.10", "3.11", "3.12", "3.13"):
        candidates = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        on_path = shutil.which(f"python{version}", path="/usr/local/bin:/usr/bin:/bin")
        if candidates or on_path:
            found[version] = candidates[0] if candidates else Path(str(on_path))
    return found


def tool(name: str) -> Path:
    """A program of tests/packages/requirements.txt; `make test-packages` installs them."""
    path = TOOLS / name
    if path.exists():
        return path
    reason = f"needs {name} (pip install -r tests/packages/requirements.txt, into .venv-packages)"
    if os.environ.get("DDUCT_REQUIRE_CLIENTS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
