"""Unconfigured systems: `/setup/sh` makes them use dduct, and --undo leaves no trace."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import pytest

from clients.test_packages import write_index, write_repository, write_rpm
from clients.workshop import Dduct, Nginx, Workshop, require, run

PROGRAMS = ("mmdebstrap", "nginx", "apt-ftparchive", "dpkg-deb", "rpmbuild", "createrepo_c")
PACKAGES = "ca-certificates,curl,dnf,openssl,p11-kit,p11-kit-modules,python3-pip"
SOURCES = ("sources.list", "sources.list.d/debian.sources", "sources.list.d/ubuntu.sources")
BODY = os.urandom(400_001)

# What clients themselves keep of what they have downloaded, installed and removed again; setup touches none of it.
CACHES = ("/root/.cache/", "/tmp/", "/var/cache/", "/var/log/", "/var/lib/apt/", "/var/lib/dpkg/", "/var/lib/dnf/")
RPM_DATABASE = ("/var/lib/rpm/", "/root/.rpmdb/", "/usr/lib/sysimage/")

# As RHEL's package has it, without the formats that nothing here reads.
UPDATE_CA_TRUST = """#!/bin/sh
set -eu
DEST=/etc/pki/ca-trust/extracted
export P11_KIT_NO_USER_CONFIG=1
extract() { format=$1 filter=$2; shift 2; trust extract --format="$format" --filter="$filter" --overwrite "$@"; }
extract openssl-bundle certificates --comment $DEST/openssl/ca-bundle.trust.crt
extract pem-bundle ca-anchors --comment --purpose server-auth $DEST/pem/tls-ca-bundle.pem
extract pem-bundle ca-anchors --comment --purpose email $DEST/pem/email-ca-bundle.pem
extract pem-bundle ca-anchors --comment --purpose code-signing $DEST/pem/objsign-ca-bundle.pem
"""

Snapshot = Dict[str, Tuple[int, int, int, str]]


class Machine:
    """A system's root, and its root's shells."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def login(self, command: str) -> str:
        """What a command says in a login shell; it has to succeed."""
        script = f"cd /tmp && {command}"
        return run("chroot", self.root, "/usr/bin/env", "-i", "HOME=/root", "TERM=dumb", "/bin/bash", "-lc", script)

    def fails(self, command: str) -> None:
        """It does not work yet, or no more."""
        with pytest.raises(AssertionError):
            self.login(command)

    def snapshot(self) -> Snapshot:
        """Mode, owner and content of every file but what is below /tmp."""
        found: Snapshot = {}
        for directory, names, files in os.walk(self.root):
            for name in [*names, *files]:
                path = os.path.join(directory, name)
                status = os.lstat(path)
                content = ""
                if stat.S_ISLNK(status.st_mode):
                    content = os.readlink(path)
                elif stat.S_ISREG(status.st_mode):
                    content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
                found[path[len(str(self.root)) :]] = (status.st_mode, status.st_uid, status.st_gid, content)
        return found

    def write(self, path: str, text: str) -> None:
        file = self.root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def differences(left: Snapshot, right: Snapshot, caches: Sequence[str] = ()) -> List[str]:
    changed = (path for path in {**left, **right} if left.get(path) != right.get(path))
    return sorted(path for path in changed if not f"{path}/".startswith(tuple(caches)))


def has_sources(path: Path) -> bool:
    """Whether it names any, and is not all comment."""
    return path.exists() and any(line.startswith(("deb ", "Types:")) for line in path.read_text().splitlines())


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small Debian from the sources that this machine has."""
    require(*PROGRAMS)
    root = tmp_path_factory.mktemp("debian") / "root"
    sources = [path for path in (Path("/etc/apt") / name for name in SOURCES) if has_sources(path)]
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    nothing = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")]
    run(
        "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--dpkgopt=force-unsafe-io",
        f"--include={PACKAGES}", *nothing,
        release["VERSION_CODENAME"].strip('"'), root, *sources, timeout=600,
    )  # fmt: skip
    yield root
    shutil.rmtree(root)


@pytest.fixture
def machine(installed: Path, tmp_path: Path) -> Iterator[Machine]:
    """A copy of it, which knows no repository and no name."""
    root = tmp_path / "machine"
    run("cp", "-a", installed, root)
    for path in (root / "etc/apt/sources.list", *(root / "etc/apt/sources.list.d").glob("*")):
        path.unlink(missing_ok=True)
    for path in (root / "etc/apt/apt.conf.d").glob("99mmdebstrap"):
        path.unlink()
    (root / "etc/resolv.conf").write_text("")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    yield Machine(root)
    shutil.rmtree(root)


def turn_into_alma(machine: Machine) -> None:
    """Its name, its dnf, and its store of authorities, with all that Debian has for these removed."""
    root = machine.root
    for path in ("etc/apt", "etc/ca-certificates", "etc/ssl/certs", "usr/share/ca-certificates"):
        shutil.rmtree(root / path)
    for path in ("etc/ca-certificates.conf", "usr/sbin/update-ca-certificates", "etc/os-release", "etc/environment"):
        (root / path).unlink(missing_ok=True)
    shutil.rmtree(root / "usr/local/share/ca-certificates", ignore_errors=True)
    machine.write(
        "/etc/os-release", 'NAME="AlmaLinux"\nVERSION_ID="9.4"\nID="almalinux"\nID_LIKE="rhel centos fedora"\n'
    )
    for name in ("openssl", "pem"):
        (root / "etc/pki/ca-trust/extracted" / name).mkdir(parents=True)
    (root / "etc/pki/ca-trust/source/anchors").mkdir(parents=True)
    (root / "etc/pki/tls/certs").mkdir(parents=True)
    (root / "usr/share/pki/ca-trust-source/anchors").mkdir(parents=True)
    (root / "etc/pki/tls/certs/ca-bundle.crt").symlink_to("/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem")
    # Where this curl looks.
    (root / "etc/pki/tls/certs/ca-certificates.crt").symlink_to("ca-bundle.crt")
    (root / "etc/ssl/certs").symlink_to("../pki/tls/certs")
    machine.write("/usr/bin/update-ca-trust", UPDATE_CA_TRUST)
    (root / "usr/bin/update-ca-trust").chmod(0o755)
    with (root / "usr/share/p11-kit/modules/p11-kit-trust.module").open("a") as module:
        module.write("x-init-reserved: paths='/etc/pki/ca-trust/source:/usr/share/pki/ca-trust-source'\n")
    run("cp", Path("/etc/ssl/certs/ca-certificates.crt"), root / "usr/share/pki/ca-trust-source/anchors/mozilla.pem")
    machine.login("update-ca-trust")


def set_up(machine: Machine, dduct: Dduct, options: str = "") -> str:
    return machine.login(f"curl -s {dduct.tcp}/setup/sh | sh {options and '-s -- ' + options}")


def leaves_no_trace(machine: Machine, dduct: Dduct) -> Snapshot:
    """Set up and undo at once: every file is as it was, caches and logs among them."""
    before = machine.snapshot()
    set_up(machine, dduct)
    once = machine.snapshot()
    set_up(machine, dduct)
    assert differences(once, machine.snapshot()) == []
    set_up(machine, dduct, "--undo")
    assert differences(before, machine.snapshot()) == []
    return before


def crossed_once(nginx: Nginx, dduct: Dduct, ending: str) -> None:
    """One transfer from the origin, whose object dduct has seen and kept (a wheel has an alias beside its digest)."""
    (path,) = (path for path in nginx.sent() if path.endswith(ending))
    assert nginx.sent()[path] == (nginx.files / path[1:]).stat().st_size
    assert any(dduct.files.rglob(f"*{ending}"))


def downloads_twice(machine: Machine, nginx: Nginx, requirement: str) -> None:
    """curl and pip, without any option for the proxy."""
    (nginx.files / "here.txz").write_bytes(BODY)
    for attempt in ("cold", "warm"):
        machine.login(f"curl -fsS -o {attempt}.txz {nginx.url}/here.txz")
        assert (machine.root / f"tmp/{attempt}.txz").read_bytes() == BODY
        machine.login(f"pip download -q -d {attempt} --no-cache-dir -i {nginx.url}/simple {requirement.split()[0]}")
        assert len(list((machine.root / "tmp" / attempt).glob("*.whl"))) == 1


def test_a_debian_that_nobody_has_configured(machine: Machine, workshop: Workshop, tmp_path: Path) -> None:
    nginx, dduct = workshop.nginx(), workshop.dduct()
    write_repository(nginx, tmp_path)
    requirement = write_index(nginx, tmp_path)
    machine.write("/etc/apt/sources.list", f"deb [trusted=yes arch=amd64] {nginx.url} stable main\n")
    before = leaves_no_trace(machine, dduct)
    machine.fails(f"curl -fsS {nginx.url}/here.txz")
    machine.fails("apt-get update -o APT::Update::Error-Mode=any")
    said = set_up(machine, dduct)
    assert "(debian)" in said
    downloads_twice(machine, nginx, requirement)
    for _ in range(2):
        machine.login("apt-get update -q -o APT::Update::Error-Mode=any && apt-get install -qy dduct-sample")
        assert (machine.root / "usr/share/dduct-sample/data").stat().st_size == 1_000_000
        machine.login("apt-get purge -qy dduct-sample && apt-get clean")
    # What is no login, and logs in by PAM, has it from /etc/environment.
    assert f"https_proxy={dduct.tcp}" in machine.login("env -u https_proxy -u http_proxy su root -c env")
    for ending in (".txz", ".deb", ".whl"):
        crossed_once(nginx, dduct, ending)
    set_up(machine, dduct, "--undo")
    machine.fails(f"curl -fsS {nginx.url}/here.txz")
    assert differences(before, machine.snapshot(), CACHES) == []
    by_tls(machine, dduct, nginx, requirement)
    assert differences(before, machine.snapshot(), CACHES) == []


def by_tls(machine: Machine, dduct: Dduct, nginx: Nginx, requirement: str) -> None:
    """The same through the TLS port, with the authority fetched first."""
    machine.login(f"curl -fsS -o ca.crt {dduct.tcp}/ca.crt")
    fetch = f"curl -fsS --cacert ca.crt {dduct.tls}/setup/sh"
    machine.login(f"{fetch} | sh")
    assert f"https_proxy='{dduct.tls}'" in (machine.root / "etc/profile.d/zz-dduct.sh").read_text()
    downloads_twice(machine, nginx, requirement)
    machine.login("apt-get update -q -o APT::Update::Error-Mode=any")
    machine.login(f"{fetch} | sh -s -- --undo")


def test_an_alma_that_nobody_has_configured(machine: Machine, workshop: Workshop, tmp_path: Path) -> None:
    nginx, dduct = workshop.nginx(), workshop.dduct()
    write_rpm(nginx, tmp_path)
    requirement = write_index(nginx, tmp_path)
    turn_into_alma(machine)
    machine.write("/etc/yum.repos.d/own.repo", f"[own]\nname=own\nbaseurl={nginx.url}/rpms\ngpgcheck=0\n")
    dnf = "dnf -y --releasever=9 --forcearch=x86_64"
    before = leaves_no_trace(machine, dduct)
    machine.fails(f"curl -fsS {nginx.url}/here.txz")
    machine.fails(f"{dnf} --downloadonly install dduct-sample")
    said = set_up(machine, dduct)
    assert "(redhat)" in said
    downloads_twice(machine, nginx, requirement)
    # Without a login, as a timer calls it.
    for attempt in ("cold", "warm"):
        options = f"--downloadonly --downloaddir=/tmp/{attempt}-rpm"
        machine.login(f"env -i PATH=/usr/bin HOME=/root {dnf} {options} install dduct-sample")
        machine.login("dnf clean all")
        assert len(list((machine.root / f"tmp/{attempt}-rpm").glob("*.rpm"))) == 1
    for ending in (".txz", ".rpm", ".whl"):
        crossed_once(nginx, dduct, ending)
    set_up(machine, dduct, "--undo")
    machine.fails(f"curl -fsS {nginx.url}/here.txz")
    assert differences(before, machine.snapshot(), [*CACHES, *RPM_DATABASE]) == []
