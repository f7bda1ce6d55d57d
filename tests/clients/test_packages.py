"""apt with an https repository, through Acquire::https::Proxy."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import List

from clients.workshop import Dduct, Nginx, Workshop, require, run

PROGRAMS = ("apt-get", "apt-ftparchive", "dpkg-deb", "nginx")


def write_repository(nginx: Nginx, scratch: Path) -> None:
    """A repository with one package of a megabyte, its indexes by hash."""
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
    options = {"Codename": "stable", "Components": "main", "Architectures": "amd64", "Acquire-By-Hash": "yes"}
    settings = [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in options.items()]
    (release / "Release").write_text(run("apt-ftparchive", *settings, "release", release))


def download(directory: Path, dduct: Dduct, nginx: Nginx) -> Path:
    """apt-get update and download in a system of its own; the package."""
    for name in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d", "out"):
        (directory / name).mkdir(parents=True)
    (directory / "state/status").touch()
    (directory / "etc/sources.list").write_text(f"deb [trusted=yes arch=amd64] {nginx.url} stable main\n")
    settings = {
        "Dir::Etc": directory / "etc",
        "Dir::State": directory / "state",
        "Dir::State::status": directory / "state/status",
        "Dir::Cache": directory / "cache",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
        "Acquire::https::Proxy": dduct.tcp,
        "Acquire::https::CaInfo": dduct.ca,
        "Acquire::Languages": "none",
    }
    options: List[str] = [f"-o{name}={value}" for name, value in settings.items()]
    configuration = {"APT_CONFIG": "/dev/null", "http_proxy": "", "https_proxy": ""}
    run("apt-get", *options, "update", env=configuration)
    run("apt-get", *options, "download", "dduct-sample", cwd=directory / "out", env=configuration)
    (package,) = (directory / "out").glob("*.deb")
    return package


def test_apt_updates_and_downloads_twice_and_the_package_crosses_once(workshop: Workshop, tmp_path: Path) -> None:
    require(*PROGRAMS)
    nginx, dduct = workshop.nginx(), workshop.dduct()
    write_repository(nginx, tmp_path)
    first = download(tmp_path / "first", dduct, nginx)
    sent = nginx.sent()
    package = next(path for path in sent if path.endswith(".deb"))
    assert sent[package] == first.stat().st_size
    second = download(tmp_path / "second", dduct, nginx)
    assert second.read_bytes() == first.read_bytes()
    again = nginx.sent()
    changed = {path for path in again if again[path] != sent.get(path)}
    # Only what carries no digest in its path and no filter matches is transferred again.
    assert changed <= {"/dists/stable/Release", "/dists/stable/InRelease", "/dists/stable/Release.gpg"}
