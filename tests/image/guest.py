"""A virtual machine under qemu, booted from an overlay of the image, with a CONTEXT CD."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Dict, Mapping, Optional, Tuple

import pytest

from dduct import VERSION

ROOT = Path(__file__).resolve().parents[2]
IMAGE = Path(os.environ.get("DDUCT_IMAGE", ROOT / "dist" / f"dduct-{VERSION}.qcow2"))
ACCELERATOR = os.environ.get("DDUCT_QEMU_ACCEL", "tcg,thread=multi,tb-size=1024")
# Seconds for a boot; without KVM it takes a minute or two.
BOOT_TIMEOUT = float(os.environ.get("DDUCT_BOOT_TIMEOUT", "400"))
MAC = "02:00:0a:00:02:0f"
SIZE = "9G"  # more than the image has, as disks in OpenNebula often do
HOST = "10.0.2.2"  # what the guest calls the machine it runs on
PORTS = (22, 443, 3128, 4430, 8000)  # of the guest, each of which gets a free one here


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever this machine's own proxy is


def need(*programs: str) -> None:
    """Skip the test where one is missing, saying so; with DDUCT_REQUIRE_IMAGE=1 fail instead."""
    for program in programs:
        if shutil.which(program) is None:
            reason = f"needs {program}"
            if os.environ.get("DDUCT_REQUIRE_IMAGE") == "1":
                pytest.fail(reason)
            pytest.skip(reason)


def free_port() -> int:
    """One that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Guest:
    """Its disks and keys, and at most one running boot of it. A context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._system = directory / "system.qcow2"
        self._cache = directory / "cache.raw"
        self._key = directory / "key"
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._boots = 0
        self.ports: Dict[int, int] = {}
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(IMAGE), "-F", "qcow2", str(self._system), SIZE]
        subprocess.run(create, check=True)
        self._cache.touch()
        os.truncate(self._cache, 2**30)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._key)], check=True)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            print("\n".join(self.console().splitlines()[-60:]))

    @property
    def public_key(self) -> str:
        return self._key.with_suffix(".pub").read_text().strip()

    def console(self) -> str:
        """What the running boot has said on its serial port."""
        path = self._directory / f"console-{self._boots}"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, context: Mapping[str, str], token: str) -> None:
        """Begin a boot with that context."""
        assert self._process is None
        self._boots += 1
        self.ports = {port: free_port() for port in PORTS}
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for there, here in self.ports.items())
        command = [
            "qemu-system-x86_64",
            "-machine",
            "q35",
            "-accel",
            ACCELERATOR,
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "1024",
        ]
        command += ["-nodefaults", "-display", "none", "-no-reboot"]
        command += ["-serial", f"file:{self._directory / f'console-{self._boots}'}"]
        command += ["-drive", f"file={self._system},if=virtio,format=qcow2,cache=unsafe"]
        command += ["-drive", f"file={self._cache},if=virtio,format=raw,cache=unsafe"]
        command += ["-cdrom", str(self._cd(context, token))]
        command += ["-netdev", f"user,id=net{forwards}", "-device", f"virtio-net-pci,netdev=net,mac={MAC}"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def _cd(self, context: Mapping[str, str], token: str) -> Path:
        place = self._directory / f"cd-{self._boots}"
        place.mkdir()
        lines = ["{}='{}'\n".format(name, value.replace("'", "'\\''")) for name, value in context.items()]
        (place / "context.sh").write_text("".join(lines))
        (place / "token.txt").write_text(token)
        path = self._directory / f"cd-{self._boots}.iso"
        program = ["genisoimage"] if shutil.which("genisoimage") else ["xorriso", "-as", "mkisofs"]
        make = [*program, "-quiet", "-V", "CONTEXT", "-J", "-R", "-o", str(path), str(place)]
        subprocess.run(make, check=True, capture_output=True)
        return path

    def url(self, port: int, path: str = "") -> str:
        """Of a plain port of the guest, from here."""
        return f"http://127.0.0.1:{self.ports[port]}{path}"

    def read(self, port: int, path: str) -> Optional[bytes]:
        """What dduct itself has at `path`; None while it does not answer."""
        try:
            with _DIRECT.open(self.url(port, path), timeout=5) as answer:
                return bytes(answer.read())
        except (OSError, urllib.error.URLError):
            return None

    def wait_for(self, what: str, port: int, path: str = "/healthz") -> float:
        """Wait until dduct answers; the seconds that took."""
        begin = time.monotonic()
        while self.read(port, path) is None:
            self.still_running(begin, what)
            time.sleep(0.5)
        return time.monotonic() - begin

    def still_running(self, begin: float, what: str) -> None:
        """Fail if qemu has ended, or the time for `what` is over."""
        assert self._process is not None and self._process.poll() is None, f"qemu has ended before {what}"
        assert time.monotonic() < begin + BOOT_TIMEOUT, f"no {what} after {BOOT_TIMEOUT:.0f} s"

    def shell(self, command: str) -> str:
        """What a command prints, run as root over ssh; it has to succeed."""
        status, output = self._ssh(command)
        assert status == 0, output
        return output

    def _ssh(self, command: str) -> Tuple[int, str]:
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        options += ["-o", "ConnectTimeout=60", "-o", "BatchMode=yes", "-i", str(self._key), "-p", str(self.ports[22])]
        done = subprocess.run(
            ["ssh", *options, "root@127.0.0.1", command], capture_output=True, text=True, timeout=120, errors="replace"
        )
        return done.returncode, done.stdout + done.stderr

    def wait_for_shell(self) -> None:
        """Until a login works."""
        begin = time.monotonic()
        while self._ssh("true")[0]:
            self.still_running(begin, "ssh")
            time.sleep(1)

    def stop(self) -> None:
        """Power it off in good order; the disks stay."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._ssh("systemctl poweroff --no-wall")
        self._process.wait(BOOT_TIMEOUT)
        self._process = None
