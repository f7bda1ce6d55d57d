"""What the script of `/setup` does to systems that look like the real ones, down to modes and owners."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import parts
import pytest
import pyz
from support.effort import LONG

from pages import setup
from pages.setup import About, Proxy
from protocol.http1 import Authority

ROOT = Path(__file__).resolve().parents[2]
CA = """-----BEGIN CERTIFICATE-----
ZHVjdA==
-----END CERTIFICATE-----
"""
ABOUT = About(CA.encode(), ("*.docker.io", "ghcr.io"), (r"\.deb$", "<b>"), False)
PROXY = Proxy(Authority("proxy.lab", 8000), False)
URL = "http://proxy.lab:8000"
TIMEOUT = 60


# --- systems ------------------------------------------------------------------------------------------

DEBIAN_UPDATE = """
bundle=$ROOT/etc/ssl/certs/ca-certificates.crt
[ "${1:-}" != --fresh ] || find "$ROOT/etc/ssl/certs" -type l -exec rm {} +
: > "$bundle.new"
for crt in "$ROOT"/usr/share/ca-certificates/*.crt "$ROOT"/usr/local/share/ca-certificates/*.crt; do
    [ -f "$crt" ] || continue
    name=${crt##*/}
    ln -sf "${crt#"$ROOT"}" "$ROOT/etc/ssl/certs/${name%.crt}.pem"
    cat "$crt" >> "$bundle.new"
done
mv "$bundle.new" "$bundle"
"""
COLLECT = """
: > "$ROOT/BUNDLE.new"
for crt in "$ROOT"/usr/share/SYSTEM/* "$ROOT"/etc/ANCHORS/*; do
    [ ! -f "$crt" ] || cat "$crt" >> "$ROOT/BUNDLE.new"
done
mv "$ROOT/BUNDLE.new" "$ROOT/BUNDLE"
"""


def collecting(system: str, anchors: str, bundle: str) -> str:
    return COLLECT.replace("SYSTEM", system).replace("ANCHORS", anchors).replace("BUNDLE", bundle)


RED_HAT_BUNDLE = "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"
SYSTEMS: Dict[str, Tuple[str, str, str, str, str]] = {  # os-release, anchor, updater, its work, bundle
    "debian": (
        'ID="debian"\n',
        "/usr/local/share/ca-certificates/dduct.crt",
        "update-ca-certificates",
        DEBIAN_UPDATE,
        "/etc/ssl/certs/ca-certificates.crt",
    ),
    "mint": (
        "ID=linuxmint\nID_LIKE='ubuntu debian'\n",
        "/usr/local/share/ca-certificates/dduct.crt",
        "update-ca-certificates",
        DEBIAN_UPDATE,
        "/etc/ssl/certs/ca-certificates.crt",
    ),
    "alpine": (
        "ID=alpine\n",
        "/usr/local/share/ca-certificates/dduct.crt",
        "update-ca-certificates",
        DEBIAN_UPDATE,
        "/etc/ssl/certs/ca-certificates.crt",
    ),
    "alma": (
        'ID="almalinux"\nID_LIKE="rhel centos fedora"\n',
        "/etc/pki/ca-trust/source/anchors/dduct.pem",
        "update-ca-trust",
        collecting("pki/ca-trust-source/anchors", "pki/ca-trust/source/anchors", RED_HAT_BUNDLE[1:]),
        RED_HAT_BUNDLE,
    ),
    "suse": (
        'ID="opensuse-leap"\nID_LIKE="suse opensuse"\n',
        "/etc/pki/trust/anchors/dduct.pem",
        "update-ca-certificates",
        collecting("pki/trust/anchors", "pki/trust/anchors", "etc/ssl/ca-bundle.pem"),
        "/etc/ssl/ca-bundle.pem",
    ),
    "arch": (
        "ID=arch\n",
        "/etc/ca-certificates/trust-source/anchors/dduct.crt",
        "update-ca-trust",
        collecting("ca-certificates", "ca-certificates/trust-source/anchors", "etc/ssl/certs/ca-certificates.crt"),
        "/etc/ssl/certs/ca-certificates.crt",
    ),
    "unheard-of": (
        "ID=ownbuild\n",
        "/etc/pki/ca-trust/source/anchors/dduct.pem",
        "update-ca-trust",
        collecting("pki/ca-trust-source/anchors", "pki/ca-trust/source/anchors", RED_HAT_BUNDLE[1:]),
        RED_HAT_BUNDLE,
    ),
}
# What administrators have written; a file's last line need not end.
OWN_FILES: Dict[str, Dict[str, Tuple[int, str]]] = {
    "debian": {
        "/etc/environment": (0o640, 'PATH="/usr/bin:/bin"\nhttp_proxy="http://old:3128"\nEDITOR=vi'),
        "/etc/apt/apt.conf.d/01autoremove": (0o644, "APT { };\n"),
        "/etc/apt/apt.conf.d/zz-dduct": (0o600, "// made by hand\n"),
        "/etc/pip.conf": (
            0o644,
            "[install]\ncert = other\n[global]\nindex-url = https://pypi.lab/\ncert = /etc/old.pem\n\n\n",
        ),
        "/usr/lib/systemd/system/docker.service": (0o644, "[Service]\n"),
        "/etc/systemd/system/docker.service.d/mine.conf": (0o644, "[Service]\nUser=docker\n"),
        "/etc/systemd/system/k3s.service": (0o644, "[Service]\n"),
        "/etc/pam.d/login": (0o644, "session required pam_env.so readenv=1\n"),
    },
    "mint": {"/etc/apt/apt.conf.d/70debconf": (0o644, "\n")},
    "alpine": {
        "/etc/profile": (0o644, "for i in /etc/profile.d/*.sh; do . $i; done\n"),
        "/etc/init.d/docker": (0o755, "#!/sbin/openrc-run\n"),
        "/etc/conf.d/docker": (0o644, 'DOCKER_OPTS=""\nexport http_proxy="http://old:3128"'),
        "/etc/init.d/containerd": (0o755, "#!/sbin/openrc-run\n"),
        "/etc/init.d/k3s": (0o755, "#!/sbin/openrc-run\n"),
        "/etc/init.d/crio": (0o755, "#!/bin/sh\n# what systemd-sysv takes\n"),
    },
    "alma": {
        "/etc/dnf/dnf.conf": (0o600, "[main]\ngpgcheck=1\nproxy = http://old:3128\n\n[own]\nproxy=_none_\nname=x"),
        "/usr/lib/systemd/system/containerd.service": (0o644, "[Service]\n"),
        "/usr/lib/systemd/system/crio.service": (0o644, "[Service]\n"),
        "/etc/environment": (0o644, ""),
    },
    "suse": {
        "/etc/sysconfig/proxy": (0o644, '## Type: yesno\nPROXY_ENABLED="no"\nHTTP_PROXY=""\nNO_PROXY="localhost"\n'),
        "/usr/lib/systemd/system/rke2-server.service": (0o644, "[Service]\n"),
    },
    "arch": {},
    "unheard-of": {"/etc/yum.conf": (0o644, "# none\n")},
}
EXPECTED: Dict[str, Dict[str, List[str]]] = {
    "debian": {
        "/etc/environment": [
            'PATH="/usr/bin:/bin"\n#dduct# http_proxy="http://old:3128"\nEDITOR=vi\n# >>> dduct',
            f"\nhttps_proxy={URL}\n",
            "\nSSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt\n",
        ],
        "/etc/apt/apt.conf.d/zz-dduct": [f'Acquire::http::Proxy "{URL}";\nAcquire::https::Proxy "{URL}";\n'],
        "/etc/pip.conf": [
            "[install]\ncert = other\n[global]\n# >>> dduct",
            "\ncert = /etc/ssl/certs/ca-certificates.crt\n# <<< dduct\nindex-url = https://pypi.lab/\n#dduct# cert =",
        ],
        "/etc/systemd/system/docker.service.d/zz-dduct.conf": [f'"HTTPS_PROXY={URL}"', ".svc,.cluster.local"],
        "/etc/systemd/system/k3s.service.d/zz-dduct.conf": ["[Service]\nEnvironment="],
    },
    "mint": {"/etc/apt/apt.conf.d/zz-dduct": [URL]},
    "alpine": {
        "/etc/profile.d/zz-dduct.sh": [f"export https_proxy='{URL}'\n"],
        "/etc/conf.d/docker": [
            'DOCKER_OPTS=""\n#dduct# export http_proxy="http://old:3128"\n# >>> dduct',
            f"\nexport HTTP_PROXY='{URL}' HTTPS_PROXY='{URL}'\n",
        ],
        "/etc/conf.d/containerd": [f"https_proxy='{URL}'\n", ",.svc,.cluster.local'\n"],
        "/etc/rancher/k3s/k3s.env": [f"https_proxy='{URL}'\n"],
    },
    "alma": {
        "/etc/dnf/dnf.conf": [
            "[main]\n# >>> dduct: what is between these lines comes from its setup, and goes with --undo\nproxy=http:",
            "# <<< dduct\ngpgcheck=1\n#dduct# proxy = http://old:3128\n\n[own]\nproxy=_none_\nname=x\n",
        ],
        "/etc/systemd/system/containerd.service.d/zz-dduct.conf": [URL],
        "/etc/systemd/system/crio.service.d/zz-dduct.conf": [URL],
        "/etc/pip.conf": [f"[global]\ncert = {RED_HAT_BUNDLE}\n"],
    },
    "suse": {
        "/etc/sysconfig/proxy": ['#dduct# PROXY_ENABLED="no"', '\nPROXY_ENABLED="yes"\n', f'\nHTTPS_PROXY="{URL}"\n'],
        "/etc/systemd/system/rke2-server.service.d/zz-dduct.conf": [URL],
    },
    "arch": {"/etc/profile.d/zz-dduct.sh": ["export NODE_EXTRA_CA_CERTS='/etc/ca-certificates/trust-source/anchors/"]},
    "unheard-of": {"/etc/yum.conf": ["# none\n# >>> dduct: what is between", f"[main]\nproxy={URL}\n"]},
}

Snapshot = Dict[str, Tuple[int, int, int, bytes]]


class System:
    """A directory that looks like a system's root, and a shell to work on it."""

    def __init__(self, directory: Path, kind: str, shell: str = "sh") -> None:
        self.kind = kind
        self.root = directory / "root"
        self.calls = directory / "calls"
        self.calls.touch()
        release, self.anchor, self.updater, work, self.bundle = SYSTEMS[kind]
        self._write("/usr/lib/os-release", 0o644, release)
        (self.root / "etc").mkdir()
        (self.root / "etc/os-release").symlink_to("../usr/lib/os-release")
        program = (
            f'#!/bin/sh\nset -eu\necho "{self.updater} $*" >> "{self.calls}"\n[ -z "${{FAIL:-}}" ] || exit 1\n{work}'
        )
        self._write(f"/usr/sbin/{self.updater}", 0o755, program)
        for place in (
            "usr/share/ca-certificates",
            "usr/share/pki/ca-trust-source/anchors",
            "usr/share/pki/trust/anchors",
        ):
            self._write(f"/{place}/root.crt", 0o644, "-----root-----\n")
        for path in (self.bundle, self.anchor) if kind != "debian" else (self.bundle,):
            (self.root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        for place in ("var/lib", "etc/profile.d", "etc/ssl/certs"):
            (self.root / place).mkdir(parents=True, exist_ok=True)
        for path, (mode, text) in OWN_FILES[kind].items():
            self._write(path, mode, text)
        self._tools = directory / "tools"
        self._tools.mkdir()
        self._tool("chroot", 'root=$1 program=$2; shift 2; ROOT=$root exec "$root/usr/sbin/$program" "$@"')
        self._shell, self._path = ["sh"], f"{self._tools}:{os.environ['PATH']}:/usr/sbin:/sbin"
        if shell == "busybox":
            busybox = shutil.which("busybox")
            if busybox is None:
                pytest.skip("needs busybox")
            applets = directory / "applets"
            applets.mkdir()
            subprocess.run([busybox, "--install", "-s", applets], check=True, timeout=TIMEOUT)
            self._shell, self._path = [busybox, "sh"], f"{self._tools}:{applets}"
        elif shell == "bash":
            self._shell = ["bash", "--posix"]
        self.run_updater()
        self.before = self.snapshot()

    def _write(self, path: str, mode: int, text: str) -> None:
        file = self.root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        if os.geteuid() == 0 and mode == 0o640:
            os.chown(file, 1, 2)

    def _tool(self, name: str, text: str) -> None:
        (self._tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (self._tools / name).chmod(0o755)

    def run_updater(self) -> None:
        """As the package that has it did."""
        command = [str(self.root / f"usr/sbin/{self.updater}")]
        subprocess.run(command, env={**os.environ, "ROOT": str(self.root)}, check=True, timeout=TIMEOUT)
        self.calls.write_text("")

    def script(self, *arguments: str, env: Optional[Dict[str, str]] = None, proxy: Proxy = PROXY) -> Tuple[int, str]:
        """Run it as `curl … | sh -s -- ARGUMENTS` does; exit status and all that it said."""
        done = subprocess.run(
            [*self._shell, "-s", "--", "--root", str(self.root), *arguments],
            input=setup.script(proxy, ABOUT),
            env={"PATH": self._path, **(env or {})},
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
        )
        return done.returncode, done.stdout.decode()

    def done(self, *arguments: str, proxy: Proxy = PROXY) -> str:
        """What it said, once it has succeeded."""
        status, said = self.script(*arguments, proxy=proxy)
        assert status == 0, said
        return said

    def snapshot(self) -> Snapshot:
        """Mode, owner and content of everything; dduct's own notes with the rest."""
        found: Snapshot = {}
        for path in self.root.rglob("*"):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            if path.is_symlink():
                content = os.readlink(path).encode()
            found[f"/{path.relative_to(self.root)}"] = (status.st_mode, status.st_uid, status.st_gid, content)
        return found

    def text(self, path: str) -> str:
        return (self.root / path[1:]).read_text()

    def die_at(self, step: int) -> Dict[str, str]:
        """An environment in which the script is killed before its so-manieth change."""
        counter = self._tools / "counter"
        counter.write_text("0")
        for name in ("mv", "cp", "mkdir", "rm", "rmdir"):
            real = shutil.which(name)
            self._tool(
                name,
                f'[ -n "${{DIE_AT:-}}" ] || exec {real} "$@"\n'
                f'read -r count < "{counter}" || :\ncount=$((count + 1))\nprintf %s "$count" > "{counter}"\n'
                f'[ "$count" != "$DIE_AT" ] || {{ kill -9 "$PPID"; exit 1; }}\nexec {real} "$@"',
            )
        return {"DIE_AT": str(step)}


def difference(left: Snapshot, right: Snapshot) -> List[str]:
    return sorted(path for path in {**left, **right} if left.get(path) != right.get(path))


@pytest.mark.parametrize("kind", list(SYSTEMS))
@pytest.mark.parametrize("shell", ["sh", "bash", "busybox"])
def test_a_system_is_set_up_once_and_undone_without_a_trace(tmp_path: Path, kind: str, shell: str) -> None:
    system = System(tmp_path, kind, shell)
    said = system.done()
    assert ABOUT.fingerprint in said
    assert (
        system.text(system.anchor) == CA and CA in system.text(system.bundle) and "root" in system.text(system.bundle)
    )
    for path, expected in EXPECTED[kind].items():
        assert [part for part in expected if part not in system.text(path)] == [], path
        assert (
            path not in OWN_FILES[kind]
            or stat.S_IMODE((system.root / path[1:]).stat().st_mode) == OWN_FILES[kind][path][0]
        )
    services = [path.split("/")[4][:-10] for path in EXPECTED[kind] if path.startswith("/etc/systemd/")]
    assert (f"systemctl restart {' '.join(services)}" in said) if services else ("systemctl" not in said)
    once, calls = system.snapshot(), system.calls.read_text()
    assert calls == f"{system.updater} \n"
    assert "nothing: everything was as it should be" in system.done()
    assert difference(once, system.snapshot()) == [] and system.calls.read_text() == calls
    system.done("--undo")
    assert difference(system.before, system.snapshot()) == []
    assert "nothing to undo" in system.done("--undo")
    assert difference(system.before, system.snapshot()) == []


MIRRORS: Dict[str, Dict[str, str]] = {
    "containerd": {
        "/etc/containerd/certs.d/_default/hosts.toml": f'[host."{URL}"]\n  capabilities = ["pull", "resolve"]\n'
    },
    "k3s": {
        "/etc/rancher/k3s/registries.yaml": f'mirrors:\n  docker.io:\n    endpoint: ["{URL}"]\n'
        f'  ghcr.io:\n    endpoint: ["{URL}"]\n'
    },
    "rke2-agent": {"/etc/rancher/rke2/registries.yaml": f'mirrors:\n  docker.io:\n    endpoint: ["{URL}"]\n'},
    "crio": {
        "/etc/containers/registries.conf.d/zz-dduct.conf": '[[registry]]\nprefix = "ghcr.io"\nlocation = "ghcr.io"\n'
        '[[registry.mirror]]\nlocation = "proxy.lab:8000/ghcr.io"\ninsecure = true\n'
    },
}


@pytest.mark.parametrize("shell", ["sh", "bash", "busybox"])
def test_a_mirror_is_set_up_without_the_authority_and_undone_without_a_trace(tmp_path: Path, shell: str) -> None:
    system = System(tmp_path, "arch", shell)
    for service in MIRRORS:
        system._write(f"/usr/lib/systemd/system/{service}.service", 0o644, "[Service]\n")
    system.before = system.snapshot()
    said = system.done("--mirror")
    written = {path: text for texts in MIRRORS.values() for path, text in texts.items()}
    for path, text in written.items():
        assert text in system.text(path)
    files = [path for path in difference(system.before, system.snapshot()) if (system.root / path[1:]).is_file()]
    assert {path for path in files if not path.startswith("/var/lib/dduct-setup/")} == set(written)
    assert "k3s and RKE2 follow" in said and "systemctl reload crio" in said and "config_path" in said
    once = system.snapshot()
    assert "nothing: everything was as it should be" in system.done("--mirror")
    assert difference(once, system.snapshot()) == [] and system.calls.read_text() == ""
    said = system.done("--undo")
    assert "k3s and RKE2 follow" in said and "systemctl reload crio" in said
    assert difference(system.before, system.snapshot()) == [] and system.calls.read_text() == ""


def test_a_mirror_is_only_for_what_is_there(tmp_path: Path) -> None:
    system = System(tmp_path, "mint")
    assert "nothing is here that pulls images" in system.done("--mirror")
    (system.root / "etc/containers").mkdir()
    system.done("--mirror")
    assert "proxy.lab:8000/docker.io" in system.text("/etc/containers/registries.conf.d/zz-dduct.conf")
    assert not (system.root / "etc/containerd").exists() and not (system.root / "etc/rancher").exists()


@pytest.mark.parametrize("path", ["/etc/containerd/certs.d/_default/hosts.toml", "/etc/rancher/k3s/registries.yaml"])
def test_a_mirror_of_somebody_else_is_left_alone(tmp_path: Path, path: str) -> None:
    system = System(tmp_path, "arch")
    system._write(path, 0o600, "theirs\n")
    system.before = system.snapshot()
    said = system.done("--mirror")
    assert f"{path} is there already, and left alone; http://proxy.lab:8000/setup says what to add" in said
    assert system.text(path) == "theirs\n"
    system.done("--undo")
    assert difference(system.before, system.snapshot()) == []


def test_a_mirror_inside_tls_is_trusted_by_the_authority_alone(tmp_path: Path) -> None:
    system = System(tmp_path, "arch")
    for folder in ("containerd", "rancher/k3s", "containers"):
        (system.root / "etc" / folder).mkdir(parents=True)
    system._write(
        "/etc/containerd/config.toml", 0o644, "  config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n"
    )
    system.before = system.snapshot()
    said = system.done("--mirror", proxy=Proxy(Authority("proxy.lab", 4430), True))
    assert "config_path" not in said
    hosts = system.text("/etc/containerd/certs.d/_default/hosts.toml")
    assert '[host."https://proxy.lab:4430"]' in hosts and 'ca = "/etc/containerd/certs.d/_default/dduct.crt"' in hosts
    assert "ca_file: /etc/rancher/k3s/dduct.crt" in system.text("/etc/rancher/k3s/registries.yaml")
    assert "insecure" not in system.text("/etc/containers/registries.conf.d/zz-dduct.conf")
    for path in (
        "containerd/certs.d/_default/dduct.crt",
        "rancher/k3s/dduct.crt",
        "containers/certs.d/proxy.lab:4430/ca.crt",
    ):
        assert system.text(f"/etc/{path}") == CA
    assert CA not in system.text(system.bundle) and not (system.root / system.anchor[1:]).exists()
    system.done("--undo")
    assert difference(system.before, system.snapshot()) == []


def test_a_mirror_is_not_set_up_where_a_password_is_required(tmp_path: Path) -> None:
    system = System(tmp_path, "arch")
    script = setup.script(PROXY, replace(ABOUT, asks_password=True))
    status, said, complaint = shell(tmp_path, script, "--root", str(system.root), "--mirror")
    assert (status, said, complaint.count("\n")) == (1, "", 1) and "password" in complaint
    assert difference(system.before, system.snapshot()) == []


def test_a_mirror_and_a_proxy_are_undone_together(tmp_path: Path) -> None:
    system = System(tmp_path, "alma")
    system.done("--mirror")
    system.done()
    assert CA in system.text(system.bundle) and URL in system.text("/etc/containerd/certs.d/_default/hosts.toml")
    system.done("--undo")
    assert difference(system.before, system.snapshot()) == []


def test_openrc_services_get_the_proxy_from_conf_d(tmp_path: Path) -> None:
    system = System(tmp_path, "alpine")
    again = "rc-service docker restart; rc-service containerd restart; rc-service k3s restart"
    assert f"once they are started again: {again}\n" in system.done()
    assert not (system.root / "etc/conf.d/crio").exists()
    command = f'. "{system.root}/etc/conf.d/docker"; env'
    said = subprocess.run(["sh", "-c", command], env={}, stdout=subprocess.PIPE, timeout=TIMEOUT).stdout.decode()
    assert f"http_proxy={URL}\n" in said and f"HTTPS_PROXY={URL}\n" in said
    assert f"go without it once they are started again: {again}\n" in system.done("--undo")
    system._write("/etc/docker/daemon.json", 0o644, RIVALS["/etc/docker/daemon.json"])
    system._write("/etc/rancher/k3s/k3s.env", 0o644, f"CONTAINERD_HTTPS_PROXY={OLD}\n")
    assert system.done().count("that one wins") == 2


def test_existing_files_are_only_added_to(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    system.done()
    after = system.snapshot()
    changed = set(difference(system.before, after)) & set(system.before)
    allowed = {"/etc/environment", "/etc/pip.conf", "/etc/apt/apt.conf.d/zz-dduct", system.bundle}
    assert changed == allowed
    assert [path for path in changed if after[path][:3] != system.before[path][:3]] == []
    # A saved file may be secret: only root may read it.
    assert stat.S_IMODE((system.root / "var/lib/dduct-setup").stat().st_mode) == 0o700


def test_a_login_shell_has_the_proxy_variables(tmp_path: Path) -> None:
    system = System(tmp_path, "alpine")
    system.done()
    command = f'. "{system.root}/etc/profile.d/zz-dduct.sh"; env'
    said = subprocess.run(["sh", "-c", command], env={"PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE, timeout=TIMEOUT)
    found = dict(line.split("=", 1) for line in said.stdout.decode().splitlines())
    assert {found[name] for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")} == {URL}
    # A later request for --undo must not go through dduct.
    assert found["no_proxy"].startswith("localhost,127.0.0.1,::1,.local,") and found["no_proxy"].endswith(",proxy.lab")
    assert found["NO_PROXY"] == found["no_proxy"]
    assert (found["NODE_EXTRA_CA_CERTS"], found["REQUESTS_CA_BUNDLE"]) == (system.anchor, system.bundle)


def test_setting_up_another_dduct_replaces_the_first(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    system.done()
    system.done(proxy=Proxy(Authority("2001:db8::1", 443), True))
    for path in ("/etc/environment", "/etc/profile.d/zz-dduct.sh", "/etc/apt/apt.conf.d/zz-dduct"):
        assert "https://[2001:db8::1]:443" in system.text(path) and URL not in system.text(path)
    assert ",2001:db8::1'" in system.text("/etc/profile.d/zz-dduct.sh")
    assert system.text("/etc/environment").count(">>> dduct") == 1
    system.done("--undo")
    assert difference(system.before, system.snapshot()) == []


def test_a_password_reaches_every_file_in_its_own_syntax(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    url = "http://user:p%40ss@proxy.lab:8000"
    system.done("--proxy", url)
    assert f"http_proxy='{url}'" in system.text("/etc/profile.d/zz-dduct.sh")
    assert "http://user:p%%40ss@proxy.lab:8000" in system.text("/etc/systemd/system/docker.service.d/zz-dduct.conf")
    system.done("--undo")
    assert difference(system.before, system.snapshot()) == []


# --- what others do in between --------------------------------------------------------------------------


def kept(system: System) -> Dict[str, str]:
    root = system.root / "var/lib/dduct-setup/kept"
    return {f"/{path.relative_to(root)}": path.read_text() for path in root.rglob("*") if path.is_file()}


def append(system: System, path: str, text: str) -> None:
    with (system.root / path[1:]).open("a") as file:
        file.write(text)


def test_what_an_administrator_adds_survives_undo(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    system.done()
    append(system, "/etc/environment", "LANG=C\n")
    append(system, "/etc/apt/apt.conf.d/zz-dduct", "// and this\n")
    edited = {path: system.text(path) for path in ("/etc/environment", "/etc/apt/apt.conf.d/zz-dduct")}
    said = system.done("--undo")
    assert said.count("has been changed since") == 2
    # A file with our block keeps its other lines; a file of ours is removed. The output names both.
    assert system.text("/etc/environment") == 'PATH="/usr/bin:/bin"\nhttp_proxy="http://old:3128"\nEDITOR=vi\nLANG=C\n'
    assert system.text("/etc/apt/apt.conf.d/zz-dduct") == "// made by hand\n"
    assert kept(system) == {f"{path}.1": text for path, text in edited.items()}
    left = difference(system.before, system.snapshot())
    assert [path for path in left if not path.startswith("/var/lib/dduct-setup")] == ["/etc/environment"]
    assert "nothing to undo" in system.done("--undo")


def test_what_an_administrator_adds_between_two_runs_survives_undo(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    system.done()
    append(system, "/etc/environment", "LANG=C\n")
    append(system, "/etc/profile.d/zz-dduct.sh", "export MINE=1\n")
    system.done()
    assert "export MINE" not in system.text("/etc/profile.d/zz-dduct.sh")
    assert "LANG=C\n# >>> dduct" in system.text("/etc/environment")
    assert "export MINE=1\n" in kept(system)["/etc/profile.d/zz-dduct.sh.1"]
    system.done("--undo")
    assert system.text("/etc/environment") == 'PATH="/usr/bin:/bin"\nhttp_proxy="http://old:3128"\nEDITOR=vi\nLANG=C\n'
    left = difference(system.before, system.snapshot())
    assert [path for path in left if not path.startswith("/var/lib/dduct-setup")] == ["/etc/environment"]


def test_undo_does_not_restore_a_file_whose_block_was_removed_by_hand(tmp_path: Path) -> None:
    system = System(tmp_path, "alma")
    system.done()
    (system.root / "etc/dnf/dnf.conf").write_text("[main]\nbest=True\n")
    system.done("--undo")
    assert system.text("/etc/dnf/dnf.conf") == "[main]\nbest=True\n"


def lose_the_end(system: System, path: str) -> None:
    """An editor removes our last line, and adds a line below."""
    file = system.root / path[1:]
    assert file.read_text().count("# <<< dduct\n") == 1
    file.write_text(file.read_text().replace("# <<< dduct\n", "") + "timeout = 9\n")


@pytest.mark.parametrize("shell", ["sh", "busybox"])
@pytest.mark.parametrize("runs", [0, 1, 2])
def test_a_block_without_end_mark_costs_no_foreign_lines(tmp_path: Path, shell: str, runs: int) -> None:
    system = System(tmp_path, "debian", shell)
    system.done()
    lose_the_end(system, "/etc/pip.conf")
    lose_the_end(system, "/etc/environment")
    for _ in range(runs):
        system.done()
        assert system.text("/etc/pip.conf").count(">>> dduct") == 1
        assert "index-url = https://pypi.lab/" in system.text("/etc/pip.conf")
        assert system.text("/etc/environment").count("https_proxy=") == 1
    system.done("--undo")
    assert system.text("/etc/pip.conf") == OWN_FILES["debian"]["/etc/pip.conf"][1] + "timeout = 9\n"
    assert system.text("/etc/environment") == OWN_FILES["debian"]["/etc/environment"][1] + "\ntimeout = 9\n"


def test_a_block_with_two_begin_marks_costs_no_foreign_lines(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    system.done()
    file = system.root / "etc/environment"
    block = file.read_text()[file.read_text().index("# >>> dduct") :]
    file.write_text(block.replace("# <<< dduct\n", "MINE=1\n") + "LANG=C\n" + block)
    system.done("--undo")
    assert file.read_text() == "MINE=1\nLANG=C\n"


def test_files_that_an_administrator_removed_are_not_restored(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    system.done()
    for path in ("etc/pip.conf", "etc/profile.d/zz-dduct.sh"):
        (system.root / path).unlink()
    assert "/etc/pip.conf has been removed since" in system.done("--undo")
    assert not (system.root / "etc/pip.conf").exists()
    assert kept(system) == {"/etc/pip.conf": OWN_FILES["debian"]["/etc/pip.conf"][1]}


def test_a_directory_that_is_now_in_use_stays(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    system.done()
    own = system.root / "etc/systemd/system/k3s.service.d/own.conf"
    own.write_text("[Service]\n")
    assert "k3s.service.d has something in it by now" in system.done("--undo")
    assert difference(system.before, system.snapshot()) == [
        "/etc/systemd/system/k3s.service.d",
        "/etc/systemd/system/k3s.service.d/own.conf",
    ]


def test_a_link_is_left_alone(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    outside = tmp_path / "outside"
    outside.write_text("x\n")
    (system.root / "etc/environment").unlink()
    (system.root / "etc/environment").symlink_to(outside)
    assert "is a link, and left alone" in system.done()
    assert outside.read_text() == "x\n"


# --- links of an image ----------------------------------------------------------------------------------


def outer(system: System) -> Path:
    """A directory beside the root, with all that might be written to; what it holds must stay as it is."""
    outside = system.root.parent / "outside"
    for name in ("profile.d", "apt.conf.d", "ca-certificates", "lib", "etc", "deep/er"):
        (outside / name).mkdir(parents=True)
    (outside / "etc/environment").write_text("mine\n")
    (outside / "file").write_text("mine\n")
    return outside


def all_below(directory: Path) -> Dict[str, Tuple[int, int, bytes]]:
    found = {}
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found


def lead_out(system: System, path: str, target: str) -> None:
    """Put a link into the place of what is there."""
    place = system.root / path[1:]
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    elif place.is_symlink() or place.exists():
        place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


SHELLS = ("sh", "bash", "busybox")
LED_OUT = [
    ("/etc/profile.d", "profile.d"),
    ("/etc/apt/apt.conf.d", "apt.conf.d"),
    ("/etc/apt", "etc"),
    ("/usr/local/share/ca-certificates", "ca-certificates"),
    ("/usr/local", "deep/er"),
    ("/etc/environment", "etc/environment"),
    ("/etc/pip.conf", "file"),
    ("/var/lib", "lib"),
    ("/var", "deep"),
    ("/etc/systemd/system/docker.service.d", "etc"),
    ("/etc/docker", "etc"),
]


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "dots"])
@pytest.mark.parametrize(("path", "target"), LED_OUT)
def test_links_of_an_image_never_lead_out_of_it(tmp_path: Path, path: str, target: str, relative: bool) -> None:
    """Followed by us, an absolute one leads out of it, and so does one with more `..` than there are folders."""
    system = System(tmp_path, "debian", SHELLS[len(path) % len(SHELLS)])
    outside = outer(system)
    lead_out(system, path, f"{'../' * 30}{str(outside)[1:]}/{target}" if relative else f"{outside}/{target}")
    before, inside = all_below(outside), system.snapshot()
    status, said = system.script()
    assert all_below(outside) == before, said
    if status == 0:
        system.script("--undo")
        assert all_below(outside) == before
        left = [name for name in difference(inside, system.snapshot()) if not (system.root / name[1:]).is_dir()]
        assert left == []  # but for folders that were missing for our notes


def test_files_written_through_a_link_lie_inside_the_image(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    lead_out(system, "/etc/profile.d", "/opt/profile.d")
    lead_out(system, "/opt", "/usr/opt")
    (system.root / "usr/opt").mkdir()
    before = system.snapshot()
    system.done()
    assert URL in system.text("/usr/opt/profile.d/zz-dduct.sh")
    system.done("--undo")
    assert difference(before, system.snapshot()) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_links_that_lead_in_a_circle_are_left_alone(tmp_path: Path, shell: str) -> None:
    system = System(tmp_path, "debian", shell)
    lead_out(system, "/etc/profile.d", "/etc/other")
    lead_out(system, "/etc/other", "profile.d")
    before = system.snapshot()
    assert "zz-dduct.sh is behind a link that leads nowhere, and left alone" in system.done()
    system.done("--undo")
    assert difference(before, system.snapshot()) == []


@pytest.mark.parametrize(
    "name", ["journal", "before", "after", "next", "kept", "updater.log", "trusted", "next/etc", "backwards"]
)
@pytest.mark.parametrize("action", [(), ("--undo",)], ids=["set up", "undo"])
def test_state_files_that_are_links_are_refused(tmp_path: Path, name: str, action: Tuple[str, ...]) -> None:
    system = System(tmp_path, "debian")
    outside = outer(system)
    if action:
        system.done()
    place = f"/var/lib/dduct-setup/{name}"
    lead_out(system, place, str(outside / "file" if name.count(".") or name in ("journal", "trusted") else outside))
    before, inside = all_below(outside), system.snapshot()
    status, said = system.script(*action)
    assert status == 1 and f"{place} is a link, which we have never made" in said
    assert all_below(outside) == before and system.snapshot() == inside


def test_a_new_file_is_not_written_through_a_link_in_its_place(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    outside = outer(system)
    for path in ("/etc/profile.d/zz-dduct.sh", "/etc/environment", "/etc/apt/apt.conf.d/zz-dduct"):
        lead_out(system, f"{path}.dduct-new", str(outside / "file"))
    before = all_below(outside)
    system.done()
    assert all_below(outside) == before
    lead_out(system, "/etc/environment.dduct-new", str(outside / "file"))
    append(system, "/etc/environment", "more=1\n")
    system.done("--undo")
    assert all_below(outside) == before


@pytest.mark.parametrize("path", ["/etc/profile.d/zz-dduct.sh", "/etc/environment"])
def test_a_link_that_has_taken_the_place_of_our_file_is_left_alone_by_undo(tmp_path: Path, path: str) -> None:
    system = System(tmp_path, "debian")
    outside = outer(system)
    system.done()
    lead_out(system, path, str(outside / "file"))
    before = all_below(outside)
    assert "is a link, and left alone" in system.done("--undo")
    assert all_below(outside) == before and (system.root / path[1:]).is_symlink()


@pytest.mark.parametrize(
    "line", ["new /../outside/file", "saved /etc/../../outside/file", "made /../outside/lib", "x y"]
)
def test_a_journal_that_names_what_lies_outside_is_refused(tmp_path: Path, line: str) -> None:
    system = System(tmp_path, "debian")
    outside = outer(system)
    system.done()
    append(system, "/var/lib/dduct-setup/journal", f"{line}\n")
    before = all_below(outside)
    status, said = system.script("--undo")
    assert status == 1 and "names what we have never written" in said
    assert all_below(outside) == before


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_file_that_is_not_regular_is_left_alone(tmp_path: Path, kind: str) -> None:
    system = System(tmp_path, "debian")
    place = system.root / "etc/environment"
    place.unlink()
    os.mkfifo(place) if kind == "pipe" else place.mkdir()
    assert "/etc/environment is no regular file, and left alone" in system.done()


# --- what goes wrong ------------------------------------------------------------------------------------


def test_a_failing_certificate_updater_is_reported_and_undone(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    status, said = system.script(env={"FAIL": "1"})
    assert status == 1 and "update-ca-certificates failed" in said and "--undo" in said
    system.done("--undo")
    assert difference(system.before, system.snapshot()) == []
    system.script(env={"FAIL": "1"})
    system.done()
    assert CA in system.text(system.bundle)


@pytest.mark.parametrize("first", range(4))
def test_a_run_that_is_killed_anywhere_can_be_undone_or_run_again(tmp_path: Path, first: int) -> None:
    system = System(tmp_path, "debian")
    system.done()
    whole = system.snapshot()
    system.done("--undo")
    killed = 0
    for step in itertools.count(first + 1, 4) if LONG else itertools.count(3 * first + 1, 12):
        status, _ = system.script(env=system.die_at(step))
        if status == 0:
            break
        killed += 1
        assert status in (-signal.SIGKILL, 1)  # 1: the updater was
        if killed % 2:
            system.done()
            assert difference(whole, system.snapshot()) == [], step
        system.done("--undo")
        assert difference(system.before, system.snapshot()) == [], step
    assert killed > (10 if LONG else 3)


def test_an_undo_that_is_killed_anywhere_can_be_run_again(tmp_path: Path) -> None:
    system = System(tmp_path, "suse")
    killed = 0
    for step in itertools.count(1, 1 if LONG else 3):
        system.done()
        status, _ = system.script("--undo", env=system.die_at(step))
        killed += status != 0
        system.done("--undo")
        assert difference(system.before, system.snapshot()) == [], step
        if status == 0:
            break
    assert killed > 3


def bare(tmp_path: Path) -> Dict[str, str]:
    """A PATH without root's programs: a program run by mistake does nothing."""
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def shell(tmp_path: Path, script: bytes, *arguments: str) -> Tuple[int, str, str]:
    command = ["sh", "-s", "--", *arguments]
    done = subprocess.run(command, input=script, env=bare(tmp_path), capture_output=True, timeout=TIMEOUT)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("path", ["/usr/bin:/bin", ""])
def test_programs_in_sbin_are_found_without_it_in_path(path: str) -> None:
    """Debian's su leaves the PATH of the user, and cron has one of its own."""
    script = setup.script(PROXY, ABOUT).decode().replace('{ main "$@"; }', "{ command -v chroot; }")
    command = [shutil.which("sh") or "sh", "-s"]
    done = subprocess.run(command, input=script.encode(), env={"PATH": path}, capture_output=True, timeout=TIMEOUT)
    assert done.stdout.decode().endswith("/chroot\n"), done.stderr


def test_a_truncated_script_does_nothing(tmp_path: Path) -> None:
    script = setup.script(PROXY, ABOUT)
    assert shell(tmp_path, script)[2].startswith("dduct setup: needs root")
    ends = [match.end() for match in re.finditer(rb"\n", script)][::9]
    last = len(script.rstrip(b"\n"))
    for end in [*ends, *range(last - 40, last)]:
        _, said, complaint = shell(tmp_path, script[:end], "--help")
        assert said == "" and "needs root" not in complaint, script[:end][-60:]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["--proxy"],
        ["--proxy", "proxy:8000"],
        ["--proxy", "ftp://proxy:8000"],
        ["--proxy", "http://proxy"],
        ["--proxy", "http://proxy:port"],
        ["--proxy", "http://a b:8000"],
        ["--proxy", "http://a'b:8000"],
        ["--proxy", 'http://a"b:8000'],
        ["--proxy", "http://$(id):8000"],
        ["--proxy", "http://a:8000\nx"],
        ["--proxy", "http://a\\b:8000"],
        ["--proxy", "http://a:8000/path"],
        ["--mirror", "--proxy", "http://a:b@c:8000"],
        ["--root", "relative"],
        ["--root", "/nonexistent"],
    ],
)
def test_an_unknown_option_is_one_line_and_status_2(tmp_path: Path, arguments: List[str]) -> None:
    system = System(tmp_path, "debian")
    status, said, complaint = shell(tmp_path, setup.script(PROXY, ABOUT), "--root", str(system.root), *arguments)
    assert (status, said, complaint.count("\n")) == (2, "", 1) and complaint.startswith("dduct setup: ")
    assert difference(system.before, system.snapshot()) == []


def test_help_lists_all_options(tmp_path: Path) -> None:
    status, said, _ = shell(tmp_path, setup.script(PROXY, ABOUT), "--help")
    assert status == 0 and [name for name in ("--undo", "--mirror", "--proxy", "--root") if name not in said] == []


def test_the_script_from_the_sources_can_only_undo(tmp_path: Path) -> None:
    system = System(tmp_path, "alma")
    system.done()
    source = (ROOT / "pages/setup.sh").read_bytes()
    assert shell(tmp_path, source, "--root", str(system.root))[0] == 2
    subprocess.run(
        ["sh", ROOT / "pages/setup.sh", "--root", system.root, "--undo"],
        env={"PATH": system._path},
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=TIMEOUT,
    )
    assert difference(system.before, system.snapshot()) == []


def test_a_system_without_its_updater_is_told_what_to_install(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    (system.root / "usr/sbin/update-ca-certificates").unlink()
    before = system.snapshot()
    status, said = system.script()
    assert status == 1 and f"apt-get -o Acquire::http::Proxy={URL}" in said
    assert difference(before, system.snapshot()) == []


def test_an_unknown_system_is_left_alone(tmp_path: Path) -> None:
    system = System(tmp_path, "unheard-of")
    shutil.rmtree(system.root / "etc/pki")
    (system.root / "usr/sbin/update-ca-trust").unlink()
    before = system.snapshot()
    status, said = system.script("--proxy", "http://user:secret@proxy.lab:8000")
    assert (status, said.count("\n")) == (1, 1) and "http://proxy.lab:8000/setup says" in said
    assert difference(before, system.snapshot()) == []


OLD = "http://old:3128"
RIVALS = {  # what comes before us whatever our files are called
    "/etc/apt/apt.conf": f'Acquire::HTTP::proxy "{OLD}";\n',
    "/etc/apt/apt.conf.d/30detect": 'Acquire::http::Proxy-Auto-Detect "/usr/bin/auto-apt-proxy";\n',
    "/etc/apt/apt.conf.d/zzz-late": f'Acquire::http::Proxy "{OLD}";\n',
    "/etc/profile.d/zzz.sh": f"export https_proxy={OLD}\n",
    "/etc/systemd/system/docker.service.d/zzz.conf": f"[Service]\nEnvironment=HTTP_PROXY={OLD}\n",
    "/etc/docker/daemon.json": f'{{"proxies": {{"http-proxy": "{OLD}"}}}}\n',
    "/etc/systemd/system/k3s.service.env": f"CONTAINERD_HTTP_PROXY={OLD}\n",
    "/etc/default/docker": f"https_proxy={OLD}\n",
}
UNITS = {
    "/etc/systemd/system/k3s.service": "[Service]\nEnvironmentFile=-/etc/systemd/system/k3s.service.env\n",
    "/usr/lib/systemd/system/docker.service": "[Service]\nEnvironmentFile=-/etc/default/%N\n",
}


@pytest.mark.parametrize("shell", ["sh", "bash", "busybox"])
@pytest.mark.parametrize("path", list(RIVALS))
def test_a_proxy_setting_that_overrides_ours_is_reported(tmp_path: Path, path: str, shell: str) -> None:
    system = System(tmp_path, "debian", shell)
    for name, text in {**UNITS, path: RIVALS[path]}.items():
        system._write(name, 0o644, text)
    said = system.done()
    told = [line for line in said.splitlines() if "sets a proxy as well, and that one wins" in line]
    assert told == [f"  {system.root}{path} sets a proxy as well, and that one wins: take it out there"]


def test_a_proxy_setting_that_ours_overrides_is_not_reported(tmp_path: Path) -> None:
    system = System(tmp_path, "debian")
    own = {
        "/etc/apt/apt.conf.d/99proxy": f'Acquire::http::Proxy "{OLD}";\n',
        "/etc/apt/apt.conf.d/proxy.conf": f'Acquire::http::Proxy "{OLD}";\n',
        "/etc/profile.d/proxy.sh": f"export http_proxy={OLD}\n",
        "/etc/systemd/system/docker.service.d/http-proxy.conf": f"[Service]\nEnvironment=HTTP_PROXY={OLD}\n",
        "/etc/default/docker": f"#export http_proxy={OLD}\n",
        **UNITS,
    }
    for name, text in own.items():
        system._write(name, 0o644, text)
    assert "wins" not in system.done()
    for name in own:
        directory = (system.root / name[1:]).parent
        if directory.name.endswith(".d"):
            assert sorted(os.listdir(directory))[-1].startswith("zz-dduct")
    said = subprocess.run(
        ["sh", "-c", f'for file in "{system.root}"/etc/profile.d/*.sh; do . "$file"; done; echo $http_proxy'],
        stdout=subprocess.PIPE,
        timeout=TIMEOUT,
    )
    assert said.stdout.decode().strip() == URL


@pytest.mark.parametrize("checker", [["sh", "-n"], ["dash", "-n"], ["busybox", "sh", "-n"], ["shellcheck"]])
def test_shellcheck_accepts_the_script(checker: List[str], tmp_path: Path) -> None:
    if shutil.which(checker[0]) is None:
        pytest.skip(f"needs {checker[0]}")
    filled = tmp_path / "filled.sh"
    filled.write_bytes(setup.script(PROXY, ABOUT))
    for script in (ROOT / "pages/setup.sh", filled):
        done = subprocess.run([*checker, script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT)
        assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("host", ["x';touch broken;'", "$(touch broken)", "`touch broken`", 'a"b', "a\nb", "\\"])
def test_a_host_cannot_inject_shell_code(host: str, tmp_path: Path) -> None:
    script = setup.script(Proxy(Authority(host, 1), True), ABOUT).decode()
    values = script.partition("# --- end of ")[0] + 'printf %s "$proxy"'
    done = subprocess.run(["sh"], input=values.encode(), cwd=tmp_path, stdout=subprocess.PIPE, timeout=TIMEOUT)
    assert done.stdout.decode() == f"https://{Authority(host, 1)}"
    assert list(tmp_path.iterdir()) == []


def test_the_single_file_contains_the_script(tmp_path: Path) -> None:
    archive = tmp_path / "dduct.pyz"
    pyz.write({name: (ROOT / name).read_bytes() for name in parts.program()}, archive)
    program = "import sys; sys.path.insert(0, sys.argv[1]); from pages import setup; print(setup._template(), end='')"
    command = [sys.executable, "-I", "-c", program, str(archive)]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=TIMEOUT, check=True)
    assert done.stdout == (ROOT / "pages/setup.sh").read_bytes()
