"""The Debian package: built clean, installed by apt into a bare Debian 12, and started there by systemd."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Callable, List

import parts
import pytest
from clients.workshop import require
from support.documented import check_size

from packages.yard import PROXY, ROOT, TIMEOUT, URL, Debian, Yard, run, wait_for

UNIT = ROOT / "packaging/dduct.service"


@pytest.fixture(scope="session")
def package(build: Callable[..., Path]) -> Path:
    require("dpkg-buildpackage", "dh", "dh_python3")
    return build(f"dduct_{parts.version()}_all.deb", "deb.py")


@pytest.fixture
def installed(debian: Debian, package: Path) -> Debian:
    """A Debian in which apt has installed it, without a network: nothing is wanted that is not there."""
    debian.put(package, "/root/dduct.deb")
    run(*debian.command("apt-get", "install", "-y", "--no-install-recommends", "/root/dduct.deb"))
    return debian


def status(debian: Debian, path: str) -> str:
    """`owner:group mode` of a file inside."""
    return run(*debian.command("stat", "-c", "%U:%G %a", path)).strip()


def test_lintian_finds_nothing(package: Path) -> None:
    require("lintian")
    assert run("lintian", "--allow-root", "--fail-on", "error,warning", package) == ""


def test_the_package_has_its_documented_size(package: Path) -> None:
    check_size("dduct_X.Y.Z_all.deb", package)


def test_the_maintainer_scripts_pass_shellcheck() -> None:
    require("shellcheck")
    assert run("shellcheck", *(ROOT / "packaging/debian" / f"dduct.{name}" for name in ("postinst", "postrm"))) == ""


def test_the_package_is_the_same_twice(package: Path, tmp_path: Path) -> None:
    again = run("python3", ROOT / "packaging/deb.py", tmp_path).strip()
    assert Path(again).read_bytes() == package.read_bytes()


def test_systemd_finds_the_unit_right_and_its_exposure_ok(installed: Debian) -> None:
    require("systemd-analyze")
    run("systemd-analyze", "verify", "--man=no", f"--root={installed.path}", "dduct.service")
    report = run("systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", UNIT)
    level = re.search(r"Overall exposure level for dduct.service: ([0-9.]+) OK", report)
    assert level and float(level.group(1)) <= 2.0, report


def test_files_have_their_places_owners_and_modes(installed: Debian) -> None:
    assert run(*installed.command("dduct", "--version")) == f"dduct {parts.version()}\n"
    assert "cert_dir = '/var/lib/dduct/certs'" in run(*installed.command("dduct", "--check"))
    assert "file_dir = '/var/cache/dduct/files'" in run(*installed.command("dduct", "--check"))
    assert status(installed, "/var/lib/dduct") == status(installed, "/var/cache/dduct") == "dduct:dduct 700"
    assert status(installed, "/etc/dduct/dduct.toml") == "root:dduct 640"
    assert status(installed, "/usr/share/dduct/dduct.py") == "root:root 755"
    top = installed.path / "usr/share/dduct"
    shipped = {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert shipped == set(parts.program())
    assert run(*installed.command("systemctl", "is-enabled", "dduct")).strip() == "enabled"
    assert run(*installed.command("getent", "passwd", "dduct")).endswith(":/var/lib/dduct:/usr/sbin/nologin\n")
    assert (installed.path / "usr/share/man/man8/dduct.8.gz").exists()


def test_changes_of_the_administrator_stay_until_purge_removes_all(installed: Debian) -> None:
    configuration = installed.path / "etc/dduct/dduct.toml"
    configuration.write_text(configuration.read_text() + "# mine\n")
    configuration.chmod(0o600)
    run(*installed.command("apt-get", "install", "-y", "--reinstall", "/root/dduct.deb"))
    assert "# mine" in configuration.read_text() and status(installed, "/etc/dduct/dduct.toml") == "root:dduct 600"
    (installed.path / "var/lib/dduct/certs").mkdir()
    run(*installed.command("dpkg", "--remove", "dduct"))
    assert configuration.exists() and (installed.path / "var/lib/dduct/certs").exists()
    assert not list((installed.path / "usr/share/dduct").rglob("*.pyc"))
    run(*installed.command("dpkg", "--purge", "dduct"))
    left = {path for place in ("etc", "var", "usr", "lib") for path in (installed.path / place).rglob("*dduct*")}
    assert {path.relative_to(installed.path) for path in left} == set()
    assert "dduct:" in (installed.path / "etc/passwd").read_text()  # as Debian has it


def exec_start() -> List[str]:
    return (
        next(line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart=")).partition("=")[2].split()
    )


def test_the_units_command_notifies_systemd_when_it_is_ready(installed: Debian, yard: Yard) -> None:
    """What can be seen without a systemd: the rest is below."""
    installed.trust(yard.ca)
    place = installed.path / "run/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place))
        place.chmod(0o777)
        manager.settimeout(TIMEOUT)
        as_user = ["setpriv", "--reuid=dduct", "--regid=dduct", "--clear-groups", "env", "NOTIFY_SOCKET=/run/notify"]
        program = yard.start("dduct", installed.command(*as_user, *exec_start()))
        assert manager.recv(1000) == b"READY=1", program.log.read_text()
        yard.wait_until_healthy(program)
        yard.check_that_it_caches(installed)
        program.process.send_signal(signal.SIGHUP)
        assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(1000) == b"READY=1"
        program.process.send_signal(signal.SIGTERM)
        assert manager.recv(1000) == b"STOPPING=1"
        assert program.process.wait(TIMEOUT) == 0
    assert status(installed, "/var/lib/dduct/certs/ca.key") == "dduct:dduct 600"


# --- with systemd -------------------------------------------------------------------------------


class Machine:
    """A Debian that systemd-nspawn has booted, in the yard's network."""

    def __init__(self, yard: Yard, debian: Debian) -> None:
        self._yard = yard
        self.debian = debian
        namespace = f"--network-namespace-path=/run/netns/{yard.name}"
        command = ["systemd-nspawn", "-D", debian.path, "--boot", "--register=no", "--keep-unit", namespace]
        with (yard.directory / "machine.log").open("wb") as log:
            self._program = subprocess.Popen(
                [str(word) for word in [*command, "--console=read-only", "--kill-signal=SIGRTMIN+3"]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.send_signal(signal.SIGTERM)  # it asks the init inside to halt
        try:
            self._program.wait(60)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()
            raise

    def init(self) -> int:
        """The process id of the systemd inside, seen from here."""
        pid = self._program.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def run(self, *words: object, status: int = 0) -> str:
        """Run a command beside that systemd."""
        return run(*self._enter(), *words, status=status)

    def _enter(self) -> List[str]:
        enter = ["nsenter", "-t", str(self.init()), "--all", "--root", "--wd"]
        return [*enter, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"]

    def wait_until_booted(self) -> None:
        wait_for(self._yard.directory / "machine.log", "Welcome to")
        deadline = time.monotonic() + TIMEOUT
        state = ""
        while time.monotonic() < deadline:
            command = [*self._enter(), "systemctl", "is-system-running", "--wait"]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT)
            state = done.stdout.decode().strip()
            if state in ("running", "degraded"):
                return
            time.sleep(0.1)
        raise AssertionError(f"{state}\n{(self._yard.directory / 'machine.log').read_text()}")

    def main_pid(self) -> int:
        return int(self.run("systemctl", "show", "--value", "-p", "MainPID", "dduct"))

    def journal(self) -> str:
        return self.run("journalctl", "-u", "dduct", "--no-pager", "-o", "cat")


def test_apt_installs_it_into_a_running_system_and_it_works(yard: Yard, debian: Debian, package: Path) -> None:
    require("systemd-nspawn", "nsenter")
    debian.put(package, "/root/dduct.deb")
    debian.trust(yard.ca)
    with Machine(yard, debian) as machine:
        machine.wait_until_booted()
        machine.run("apt-get", "install", "-y", "--no-install-recommends", "/root/dduct.deb")
        assert machine.run("systemctl", "is-active", "dduct") == "active\n", machine.journal()
        yard.check_that_it_caches(debian)
        check_privileges(machine)
        check_reload(machine, debian)
        check_restart(machine, yard)
        machine.run("apt-get", "purge", "-y", "dduct")
        machine.run("systemctl", "is-active", "dduct", status=3)
        assert not (debian.path / "var/lib/dduct").exists() and not (debian.path / "var/cache/dduct").exists()


def check_privileges(machine: Machine) -> None:
    """It runs as its user, and has one capability and a filter of system calls."""
    lines = machine.run("cat", f"/proc/{machine.main_pid()}/status").splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    user = machine.run("id", "-u", "dduct").strip()
    assert fields["Uid"] == [user] * 4 and user != "0"
    assert fields["CapEff"] == fields["CapBnd"] == [f"{1 << 10:016x}"]
    assert fields["Seccomp"] == ["2"] and fields["NoNewPrivs"] == ["1"]


def check_reload(machine: Machine, debian: Debian) -> None:
    configuration = debian.path / "etc/dduct/dduct.toml"
    configuration.write_text(configuration.read_text().replace("fresh_for = '1d'", "fresh_for = '2d'"))
    before = machine.main_pid()
    machine.run("systemctl", "reload", "dduct")
    deadline = time.monotonic() + TIMEOUT
    while "Reloaded the configuration" not in machine.journal():
        assert time.monotonic() < deadline, machine.journal()
        time.sleep(0.1)
    assert machine.main_pid() == before


def check_restart(machine: Machine, yard: Yard) -> None:
    """Killed, it is started again; stopped, it ends in good order, and what is cached stays."""
    before = machine.main_pid()
    machine.run("sh", "-c", f"kill -KILL {before}")  # the only kill that a small system has
    deadline = time.monotonic() + TIMEOUT
    while machine.main_pid() in (0, before):
        assert time.monotonic() < deadline, machine.journal()
        time.sleep(0.1)
    yard.wait_until_healthy()
    head = run(
        *yard.inside(*machine.debian.command("curl", "-sSf", "-x", PROXY, "--cacert", "/ca.crt", "-D-", "-o/x", URL))
    )
    assert "Cache-Status: dduct; hit" in head
    machine.run("systemctl", "stop", "dduct")
    assert machine.run("systemctl", "show", "--value", "-p", "Result", "dduct") == "success\n"


def test_a_copy_becomes_a_service_as_the_readme_says(yard: Yard, debian: Debian, build: Callable[..., Path]) -> None:
    require("systemd-nspawn", "nsenter")
    name = f"dduct-{parts.version()}"
    run("tar", "-xzf", build(f"{name}.tar.gz", "tarball.py"), "-C", debian.path / "opt")
    (debian.path / "opt" / name).rename(debian.path / "opt/dduct")
    debian.trust(yard.ca)
    text = (ROOT / "README.md").read_text("utf-8")
    block = text[text.index("    useradd --system") :].partition("\n\n")[0]
    with Machine(yard, debian) as machine:
        machine.wait_until_booted()
        machine.run("sh", "-e", "-c", block)
        yard.wait_until_healthy()
        yard.check_that_it_caches(debian)
        assert list((debian.path / "var/cache/dduct/files").rglob("thing.tar.gz"))
        assert machine.run("systemctl", "show", "--value", "-p", "User", "dduct") == "dduct\n"
