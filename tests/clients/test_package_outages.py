"""pip, npm and go, as they ask PyPI, an npm registry and a module proxy: cold, warm, and while the origin is away."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Callable, Tuple

import pytest

from clients.mirror import Mirror
from clients.workshop import Dduct, Workshop, require, run

SIMPLE = "application/vnd.pypi.simple.v1+json"
INSTALL = "application/vnd.npm.install-v1+json"


@pytest.fixture
def mirror(workshop: Workshop) -> Tuple[Mirror, Dduct]:
    require()
    return Mirror(workshop), workshop.dduct()


def three_times(mirror: Mirror, directory: Path, install: Callable[[Path], object]) -> None:
    """Install with fresh caches: cold, warm, and while the origin is away. Warm, no body is transferred."""
    sent = 0
    for attempt in ("cold", "warm", "away"):
        if attempt == "away":
            mirror.origin.close()
        home = directory / attempt
        home.mkdir()
        install(home)
        assert attempt == "cold" or mirror.origin.body_sent == sent, mirror.asked()
        sent = mirror.origin.body_sent


def wheel_of(name: str, metadata: bytes) -> bytes:
    content = io.BytesIO()
    module = name.replace("-", "_")
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"{module}/__init__.py", b"")
        archive.writestr(f"{module}/data", os.urandom(50_000))
        archive.writestr(f"{module}-1.0.dist-info/METADATA", metadata)
        archive.writestr(
            f"{module}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{module}-1.0.dist-info/RECORD", "")
    return content.getvalue()


def add_wheel(mirror: Mirror, place: str, name: str, needs: str = "") -> None:
    """A project as PyPI has it: JSON for those that take it, metadata beside the wheel (PEP 691, 658)."""
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}".encode()
    wheel = wheel_of(name, metadata)
    digest = hashlib.blake2b(wheel, digest_size=32).hexdigest()
    file = f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    path = f"/packages/{digest[:2]}/{digest[2:4]}/{digest[4:]}/{file}"
    mirror.add(path, wheel, ("Cache-Control", "max-age=365000000, immutable, public"))
    mirror.add(f"{path}.metadata", metadata)
    hashes, of_metadata = ({"sha256": hashlib.sha256(data).hexdigest()} for data in (wheel, metadata))
    link = {"filename": file, "url": mirror.url + path, "hashes": hashes, "yanked": False}
    link.update({"core-metadata": of_metadata, "data-dist-info-metadata": of_metadata})
    index = {"meta": {"api-version": "1.1"}, "name": name, "files": [link], "versions": ["1.0"]}
    mirror.add(f"{place}/{name}/", json.dumps(index).encode(), accept=SIMPLE)


@pytest.mark.parametrize("place", ["/simple", "/root/mirror/+simple"])
def test_pip_installs_while_its_index_is_away(mirror: Tuple[Mirror, Dduct], tmp_path: Path, place: str) -> None:
    """The second place is that of devpi."""
    origin, dduct = mirror
    add_wheel(origin, place, "dduct-sample", "Requires-Dist: dduct-base\n")
    add_wheel(origin, place, "dduct-base")

    def install(home: Path) -> None:
        run(
            sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--cache-dir",
            home / "cache", "--target", home / "out", "--index-url", f"{origin.url}{place}", "--proxy", dduct.tcp,
            "--cert", dduct.ca, "dduct-sample",
        )  # fmt: skip
        assert (home / "out/dduct_base/data").exists()

    three_times(origin, tmp_path, install)
    assert any(one.endswith(".metadata") for one in origin.asked())


def add_npm(mirror: Mirror, name: str) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for file, data in (
            ("package.json", json.dumps({"name": name, "version": "1.0.0"}).encode()),
            ("data", os.urandom(30_000)),
        ):
            entry = tarfile.TarInfo(f"package/{file}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    tarball = content.getvalue()
    place = f"/npm/{name}/-/{name.rpartition('/')[2]}-1.0.0.tgz"
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    version = {"name": name, "version": "1.0.0", "dist": {"tarball": mirror.url + place, "integrity": integrity}}
    document = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    mirror.add(place, tarball)
    for kind in (INSTALL, "application/json"):  # npm 11 asks for the latter alone
        mirror.add(f"/npm/{name.replace('/', '%2f')}", json.dumps(document).encode(), accept=kind)


def test_npm_installs_while_its_registry_is_away(mirror: Tuple[Mirror, Dduct], tmp_path: Path) -> None:
    require("npm")
    origin, dduct = mirror
    add_npm(origin, "dduct-sample")
    add_npm(origin, "@dduct/scoped")
    lock = tmp_path / "package-lock.json"
    packages = {"dduct-sample": "^1.0.0", "@dduct/scoped": "^1.0.0"}

    def install(home: Path, command: str = "install") -> None:
        manifest = {"name": "x", "version": "1.0.0", "private": True, "dependencies": packages}
        (home / "package.json").write_text(json.dumps(manifest))
        if command == "ci":
            (home / "package-lock.json").write_text(lock.read_text())
        (home / "npmrc").write_text(
            f"registry={origin.url}/npm/\nhttps-proxy={dduct.tcp}\nproxy={dduct.tcp}\ncafile={dduct.ca}\nnoproxy=\n"
            f"cache={home}/cache\naudit=false\nfund=false\nupdate-notifier=false\nfetch-retries=0\n"
        )
        environment = {"HOME": str(home), "npm_config_userconfig": str(home / "npmrc"), **dduct.environment}
        run("npm", command, cwd=home, env=environment)
        assert (home / "node_modules/@dduct/scoped/data").stat().st_size == 30_000
        lock.write_text((home / "package-lock.json").read_text())

    three_times(origin, tmp_path, install)
    (tmp_path / "ci").mkdir()
    install(tmp_path / "ci", "ci")


def test_go_downloads_while_its_proxy_is_away(mirror: Tuple[Mirror, Dduct], tmp_path: Path) -> None:
    require("go")
    origin, dduct = mirror
    module, version = "example.test/sample", "v1.0.0"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"{module}@{version}/go.mod", f"module {module}\n")
        archive.writestr(f"{module}@{version}/sample.go", "package sample\n")
    info = json.dumps({"Version": version, "Time": "2024-01-01T00:00:00Z"}).encode()
    place = f"/go/{module}/@v"
    origin.add(f"{place}/list", f"{version}\n".encode())
    origin.add(f"{place}/{version}.info", info)
    origin.add(f"{place}/{version}.mod", f"module {module}\n".encode())
    origin.add(f"{place}/{version}.zip", content.getvalue())

    def install(home: Path) -> None:
        (home / "go.mod").write_text("module x\n\ngo 1.19\n")
        environment = {"GOPROXY": f"{origin.url}/go", "GOSUMDB": "off", "GOFLAGS": "-modcacherw", "HOME": str(home)}
        environment.update({"GOPATH": str(home / "go"), "GOTOOLCHAIN": "local", **dduct.environment})
        run("go", "get", f"{module}@latest", cwd=home, env=environment)
        run("go", "mod", "download", "-x", cwd=home, env=environment)
        assert (home / "go/pkg/mod/example.test/sample@v1.0.0/sample.go").exists()

    three_times(origin, tmp_path, install)
