"""Package managers: apt, dnf, pip, npm and cargo, each cold, warm, and while the origin is away."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import List

import pytest

from clients.workshop import ORIGIN, Dduct, Nginx, Workshop, require, run

PROGRAMS = ("apt-get", "apt-ftparchive", "dpkg-deb", "gpg", "gpgconf", "nginx")


def write_repository(nginx: Nginx, scratch: Path, by_hash: bool = True) -> None:
    """A repository with one package of a megabyte, its indexes by hash or not."""
    tree = scratch / "package"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/share/dduct-sample").mkdir(parents=True)
    (tree / "usr/share/dduct-sample/data").write_bytes(os.urandom(1_000_000))
    (tree / "DEBIAN/control").write_text(
        "Package: dduct-sample\nVersion: 1.0+a~b\nArchitecture: all\nMaintainer: nobody <nobody@origin.test>\n"
        "Description: sample\n"
    )
    pool = nginx.files / "pool"
    pool.mkdir()
    run("dpkg-deb", "--root-owner-group", "-b", tree, pool / "dduct-sample_1.0+a~b_all.deb")
    binary = nginx.files / "dists/stable/main/binary-amd64"
    binary.mkdir(parents=True)
    packages = run("apt-ftparchive", "packages", "pool", cwd=nginx.files)
    (binary / "Packages").write_text(packages)
    run("xz", "-k", binary / "Packages")
    for algorithm in ("SHA256", "SHA512"):
        (binary / "by-hash" / algorithm).mkdir(parents=True)
        for path in (binary / "Packages", binary / "Packages.xz"):
            digest = hashlib.new(algorithm, path.read_bytes()).hexdigest()
            os.link(path, binary / "by-hash" / algorithm / digest)
    release = nginx.files / "dists/stable"
    options = {
        "Codename": "stable",
        "Components": "main",
        "Architectures": "amd64",
        "Acquire-By-Hash": "yes" if by_hash else "no",
    }
    settings = [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in options.items()]
    (release / "Release").write_text(run("apt-ftparchive", *settings, "release", release))
    sign(release / "Release", nginx.files / "key.asc")


def sign(release: Path, public: Path) -> None:
    """InRelease beside a Release, signed by a key that is made for it; its public part goes to `public`."""
    home = tempfile.mkdtemp(prefix="gpg")  # its agent takes no long path
    gpg = ["gpg", "-q", "--homedir", home, "--batch", "--pinentry-mode", "loopback", "--passphrase", ""]
    try:
        run(*gpg, "--quick-gen-key", "tests", "ed25519", "sign", "never")
        run(*gpg, "--clearsign", "-o", release.with_name("InRelease"), release)
        run(*gpg, "-a", "-o", public, "--export", "tests")
    finally:
        run("gpgconf", "--homedir", home, "--kill", "all")
        shutil.rmtree(home, ignore_errors=True)  # the agent takes its sockets with it


def apt(directory: Path, dduct: Dduct, nginx: Nginx, scheme: str = "https") -> Path:
    """apt-get update and download in a system of its own; the package."""
    for name in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d", "out"):
        (directory / name).mkdir(parents=True)
    (directory / "state/status").touch()
    source = nginx.url if scheme == "https" else f"http://{ORIGIN}:{nginx.port}"
    key = nginx.files / "key.asc"
    (directory / "etc/sources.list").write_text(f"deb [signed-by={key} arch=amd64] {source} stable main\n")
    settings = {
        "Dir::Etc": directory / "etc",
        "Dir::State": directory / "state",
        "Dir::State::status": directory / "state/status",
        "Dir::Cache": directory / "cache",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
        "Acquire::https::Proxy": dduct.tcp,
        "Acquire::http::Proxy": dduct.tcp,
        "Acquire::https::CaInfo": dduct.ca,
        "Acquire::Languages": "none",
    }
    options: List[str] = [f"-o{name}={value}" for name, value in settings.items()]
    configuration = {"APT_CONFIG": "/dev/null", "http_proxy": "", "https_proxy": ""}
    run("apt-get", *options, "update", env=configuration)
    run("apt-get", *options, "download", "dduct-sample", cwd=directory / "out", env=configuration)
    (package,) = (directory / "out").glob("*.deb")
    return package


@pytest.mark.parametrize(("scheme", "by_hash"), [("https", True), ("http", True), ("https", False)])
def test_apt_updates_and_downloads_twice_and_the_package_crosses_once(
    workshop: Workshop, tmp_path: Path, scheme: str, by_hash: bool
) -> None:
    require(*PROGRAMS)
    nginx, dduct = workshop.nginx(), workshop.dduct()
    write_repository(nginx, tmp_path, by_hash)
    first = apt(tmp_path / "first", dduct, nginx, scheme)
    sent = nginx.sent()
    package = next(path for path in sent if path.endswith(".deb"))
    assert sent[package] == first.stat().st_size
    second = apt(tmp_path / "second", dduct, nginx, scheme)
    assert second.read_bytes() == first.read_bytes()
    again = nginx.sent()
    assert again == sent
    nginx.stop()
    third = apt(tmp_path / "away", dduct, nginx, scheme)
    assert third.read_bytes() == first.read_bytes()


def ask_method(request: str) -> str:
    """What apt's https method says to one request; it ends with its standard input."""
    command = ["/usr/lib/apt/methods/https"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": "/usr/bin"}) as method:
        assert method.stdin is not None and method.stdout is not None
        method.stdin.write(request.encode())
        method.stdin.flush()
        said = ""
        for line in method.stdout:
            said += line.decode()
            if said.endswith("\n\n") and re.search("^(201|400) ", said, re.MULTILINE):
                break
        method.stdin.close()
    return said


def test_apt_resumes_a_partial_download(workshop: Workshop, tmp_path: Path) -> None:
    require(*PROGRAMS)
    nginx, dduct = workshop.nginx(), workshop.dduct()
    write_repository(nginx, tmp_path)
    whole = apt(tmp_path / "first", dduct, nginx)
    body = whole.read_bytes()
    partial = whole.parent / "partial"
    # apt-get download resumes what lies under the package's own name with the repository's date.
    whole.unlink()
    partial.write_bytes(body[:400_000])
    source = next((nginx.files / "pool").glob("*.deb"))
    os.utime(partial, ns=(source.stat().st_mtime_ns, int(source.stat().st_mtime) * 10**9))
    request = (
        "601 Configuration\n"
        f"Config-Item: Acquire::https::Proxy={dduct.tcp}\n"
        f"Config-Item: Acquire::https::CaInfo={dduct.ca}\n"
        "Config-Item: APT::Sandbox::User=root\n"
        "\n"
        f"600 URI Acquire\nURI: {nginx.url}/pool/{source.name}\nFilename: {partial}\n\n"
    )
    answer = ask_method(request)
    assert "201 URI Done" in answer, answer
    assert "Resume-Point: 400000" in answer, answer
    assert partial.read_bytes() == body
    assert nginx.sent()[f"/pool/{source.name}"] == len(body)


def write_rpm(nginx: Nginx, scratch: Path) -> None:
    """A repository for dnf with one package."""
    (scratch / "SPECS").mkdir()
    payload = scratch / "payload"
    payload.write_bytes(os.urandom(500_000))
    (scratch / "SPECS/sample.spec").write_text(
        "Name: dduct-sample\nVersion: 1\nRelease: 1\nSummary: sample\nLicense: none\nBuildArch: noarch\n"
        "AutoReqProv: no\n"
        "%define _binary_payload w0.gzdio\n%description\nsample\n"
        f"%install\ninstall -D {payload} %{{buildroot}}/opt/sample\n%files\n/opt/sample\n"
    )
    run("rpmbuild", "-bb", "--define", f"_topdir {scratch}", scratch / "SPECS/sample.spec")
    (nginx.files / "rpms").mkdir()
    (package,) = (scratch / "RPMS/noarch").glob("*.rpm")
    package.rename(nginx.files / "rpms" / package.name)
    run("createrepo_c", nginx.files / "rpms")


def test_dnf_downloads_twice_and_the_package_crosses_once(workshop: Workshop, tmp_path: Path) -> None:
    require("dnf", "createrepo_c", "rpmbuild", "nginx")
    nginx, dduct = workshop.nginx(), workshop.dduct()
    write_rpm(nginx, tmp_path)
    packages, sent = [], []
    for attempt in ("cold", "warm", "away"):
        if attempt == "away":
            sent.append(nginx.sent())
            nginx.stop()
        root = tmp_path / attempt
        root.mkdir()
        (root / "dnf.conf").write_text(
            "[main]\nreposdir=/nonexistent\nplugins=0\ngpgcheck=0\nzchunk=1\n"
            f"proxy={dduct.tcp}\nsslcacert={dduct.ca}\ncachedir={root}/cache\nlogdir={root}/log\n"
            f"[sample]\nname=sample\nbaseurl={nginx.url}/rpms\n"
        )
        run(
            "dnf", "-y", "-c", root / "dnf.conf", f"--installroot={root}/root", "--releasever=1", "--downloadonly",
            f"--downloaddir={root}/out", "--forcearch=x86_64", "install", "dduct-sample",
        )  # fmt: skip
        (package,) = (root / "out").glob("*.rpm")
        packages.append(package.read_bytes())
        if attempt == "cold":
            sent.append(nginx.sent())
    assert packages == 3 * [next((nginx.files / "rpms").glob("*.rpm")).read_bytes()]
    assert sent[0] == sent[1]


def write_index(nginx: Nginx, scratch: Path) -> str:
    """A package index with one wheel where PyPI would have it; the requirement with its hash."""
    wheel = scratch / "dduct_sample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("dduct_sample/data", os.urandom(300_000))
        archive.writestr(
            "dduct_sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: dduct-sample\nVersion: 1.0\n"
        )
        archive.writestr(
            "dduct_sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("dduct_sample-1.0.dist-info/RECORD", "")
    body = wheel.read_bytes()
    blake = hashlib.blake2b(body, digest_size=32).hexdigest()
    place = f"packages/{blake[:2]}/{blake[2:4]}/{blake[4:]}/{wheel.name}"
    (nginx.files / place).parent.mkdir(parents=True)
    wheel.rename(nginx.files / place)
    simple = nginx.files / "simple/dduct-sample"
    simple.mkdir(parents=True)
    sha256 = hashlib.sha256(body).hexdigest()
    (simple / "index.html").write_text(f'<!DOCTYPE html><a href="/{place}#sha256={sha256}">{wheel.name}</a>')
    return f"dduct-sample==1.0 --hash=sha256:{sha256}"


def test_pip_downloads_twice_in_hash_checking_mode_and_the_wheel_crosses_once(
    workshop: Workshop, tmp_path: Path
) -> None:
    require("nginx")
    nginx, dduct = workshop.nginx(), workshop.dduct()
    (tmp_path / "requirements.txt").write_text(write_index(nginx, tmp_path))
    for attempt in ("cold", "warm"):
        run(
            sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "download", "--no-cache-dir",
            "--require-hashes", "-r", tmp_path / "requirements.txt", "-d", tmp_path / attempt,
            "--index-url", f"{nginx.url}/simple", "--proxy", dduct.tcp, "--cert", dduct.ca,
        )  # fmt: skip
        assert len(list((tmp_path / attempt).glob("*.whl"))) == 1
    (path,) = (path for path in nginx.sent() if path.endswith(".whl"))
    assert nginx.sent()[path] == (nginx.files / path[1:]).stat().st_size
    assert any((dduct.files / "blake2b").rglob("*"))


def test_npm_installs_twice_and_the_tarball_crosses_once(workshop: Workshop, tmp_path: Path) -> None:
    require("npm", "nginx")
    nginx, dduct = workshop.nginx(), workshop.dduct()
    tarball = tmp_path / "sample.tgz"
    manifest = {"name": "dduct-sample", "version": "1.0.0"}
    with tarfile.open(tarball, "w:gz") as archive:
        for name, data in (("package.json", json.dumps(manifest).encode()), ("data", os.urandom(300_000))):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    integrity = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    where = nginx.files / "dduct-sample/-"
    where.mkdir(parents=True)
    tarball.rename(where / "dduct-sample-1.0.0.tgz")
    dist = {"tarball": f"{nginx.url}/dduct-sample/-/dduct-sample-1.0.0.tgz", "integrity": f"sha512-{integrity}"}
    document = {
        "name": "dduct-sample",
        "dist-tags": {"latest": "1.0.0"},
        "versions": {"1.0.0": {**manifest, "dist": dist}},
    }
    (nginx.files / "dduct-sample/index.json").write_text(json.dumps(document))
    for attempt in ("cold", "warm"):
        home = tmp_path / attempt
        home.mkdir()
        (home / "package.json").write_text(json.dumps({"name": "x", "version": "1.0.0", "private": True}))
        (home / "npmrc").write_text(
            f"registry={nginx.url}/\nhttps-proxy={dduct.tcp}\nproxy={dduct.tcp}\ncafile={dduct.ca}\nnoproxy=\n"
            f"cache={home}/cache\naudit=false\nfund=false\nupdate-notifier=false\n"
        )
        environment = {"HOME": str(home), "npm_config_userconfig": str(home / "npmrc"), **dduct.environment}
        run("npm", "install", "dduct-sample", cwd=home, env=environment)
        assert (home / "node_modules/dduct-sample/data").stat().st_size == 300_000
    assert nginx.sent()["/dduct-sample/-/dduct-sample-1.0.0.tgz"] == (where / "dduct-sample-1.0.0.tgz").stat().st_size


@pytest.mark.parametrize("place", ["index", "mirror"])
def test_cargo_fetches_twice_and_the_crate_crosses_once(workshop: Workshop, tmp_path: Path, place: str) -> None:
    """Crates lie where crates.io has them; the index lies anywhere."""
    require("cargo", "nginx")
    version = run("cargo", "--version").split()[1]
    if tuple(map(int, version.split(".")[:2])) < (1, 68):
        pytest.skip("needs cargo 1.68, which has sparse registries; test_recorded.py has what it sends")
    nginx, dduct = workshop.nginx(), workshop.dduct()
    crate = tmp_path / "dduct-sample-1.0.0.crate"
    with tarfile.open(crate, "w:gz") as archive:
        manifest = b'[package]\nname = "dduct-sample"\nversion = "1.0.0"\nedition = "2018"\n'
        for name, data in (("Cargo.toml", manifest), ("src/lib.rs", b""), ("data", os.urandom(300_000))):
            entry = tarfile.TarInfo(f"dduct-sample-1.0.0/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    cksum = hashlib.sha256(crate.read_bytes()).hexdigest()
    path = "/crates/dduct-sample/1.0.0/download"
    (nginx.files / path[1:]).parent.mkdir(parents=True)
    size = crate.stat().st_size
    crate.rename(nginx.files / path[1:])
    index = nginx.files / place
    (index / "dd/uc").mkdir(parents=True)
    (index / "config.json").write_text(json.dumps({"dl": f"{nginx.url}/crates"}))
    entry_line = {"name": "dduct-sample", "vers": "1.0.0", "deps": [], "cksum": cksum, "features": {}, "yanked": False}
    (index / "dd/uc/dduct-sample").write_text(json.dumps(entry_line) + "\n")
    for attempt in ("cold", "warm", "away"):
        if attempt == "away":
            nginx.stop()
        project = tmp_path / attempt
        (project / "src").mkdir(parents=True)
        (project / "src/lib.rs").touch()
        (project / "Cargo.toml").write_text(
            '[package]\nname = "x"\nversion = "1.0.0"\nedition = "2018"\n'
            '[dependencies]\ndduct-sample = { version = "1", registry = "sample" }\n'
        )
        home = project / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[registries.sample]\nindex = "sparse+{nginx.url}/{place}/"\n'
            f'[http]\nproxy = "{dduct.tcp}"\ncainfo = "{dduct.ca}"\n'
        )
        run("cargo", "fetch", cwd=project, env={"CARGO_HOME": str(home), **dduct.environment})
        assert list(home.rglob("dduct-sample-1.0.0.crate"))
        assert attempt == "away" or nginx.sent()[path] == size
