"""Repositories of npm, Python and Debian packages, made here: what they contain is random, so nothing compresses."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Dict, List, Optional

_KIB = 1024


def sizes(count: int, least: int, most: int) -> List[int]:
    """Sizes in bytes between two in KiB: small ones are frequent, and they are the same ones in each run."""
    chance = random.Random(count)
    return [int(_KIB * least * (most / least) ** chance.random()) for _ in range(count)]


def write_npm(root: Path, count: int) -> Dict[str, str]:
    """Tarballs of 1 to 60 KiB below `root`; the integrity of each package, by its name."""
    integrities = {}
    for number, size in enumerate(sizes(count, 1, 60)):
        name = f"sample-{number}"
        manifest = json.dumps({"name": name, "version": "1.0.0", "license": "MIT"}).encode()
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as archive:
            for member, data in (("package.json", manifest), ("index.js", b""), ("data", os.urandom(size))):
                entry = tarfile.TarInfo(f"package/{member}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        tarball = root / name / "-" / f"{name}-1.0.0.tgz"
        tarball.parent.mkdir(parents=True)
        tarball.write_bytes(content.getvalue())
        integrities[name] = "sha512-" + base64.b64encode(hashlib.sha512(content.getvalue()).digest()).decode()
    return integrities


def write_packuments(root: Path, url: str, integrities: Dict[str, str]) -> None:
    """For each package the document that npm asks for when it does not know its tarball, which is below `url`."""
    for name, integrity in integrities.items():
        dist = {"tarball": f"{url}/{name}/-/{name}-1.0.0.tgz", "integrity": integrity}
        versions = {"1.0.0": {"name": name, "version": "1.0.0", "dist": dist}}
        document = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": versions}
        (root / f"{name}.json").write_text(json.dumps(document))


def write_wheels(root: Path, count: int) -> List[str]:
    """Wheels of 10 KiB to 2 MiB where PyPI would have them, and their index; requirements with hashes."""
    requirements = []
    for number, size in enumerate(sizes(count, 10, 2 * _KIB)):
        name = f"sample_{number}-1.0-py3-none-any.whl"
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            info = f"sample_{number}-1.0.dist-info"
            archive.writestr(f"sample_{number}/data", os.urandom(size))
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: sample-{number}\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        body = content.getvalue()
        digest = hashlib.blake2b(body, digest_size=32).hexdigest()
        wheel = root / "packages" / digest[:2] / digest[2:4] / digest[4:] / name
        wheel.parent.mkdir(parents=True)
        wheel.write_bytes(body)
        sha256 = hashlib.sha256(body).hexdigest()
        index = root / f"simple/sample-{number}/index.html"
        index.parent.mkdir(parents=True)
        index.write_text(f'<!DOCTYPE html><a href="/{wheel.relative_to(root)}#sha256={sha256}">{name}</a>')
        requirements.append(f"sample-{number}==1.0 --hash=sha256:{sha256}")
    return requirements


def write_debs(root: Path, count: int) -> List[str]:
    """Packages of 5 KiB to 2 MiB, with indexes by hash; their names. Needs dpkg-deb and apt-ftparchive."""
    (root / "pool").mkdir(parents=True)
    names = [f"sample-{number}" for number in range(count)]
    tree = root / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    for name, size in zip(names, sizes(count, 5, 2 * _KIB)):
        (tree / "data").write_bytes(os.urandom(size))
        (tree / "DEBIAN/control").write_text(
            f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@origin.test>\n"
            "Description: sample\n"
        )
        _run("dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, root / f"pool/{name}_1.0_all.deb")
    release = root / "dists/stable"
    binary = release / "main/binary-amd64"
    binary.mkdir(parents=True)
    (binary / "Packages").write_text(_run("apt-ftparchive", "packages", "pool", cwd=root))
    _run("xz", "-k", binary / "Packages")
    by_hash = binary / "by-hash/SHA256"
    by_hash.mkdir(parents=True)
    for path in (binary / "Packages", binary / "Packages.xz"):
        os.link(path, by_hash / hashlib.sha256(path.read_bytes()).hexdigest())
    options = {"Codename": "stable", "Components": "main", "Architectures": "amd64", "Acquire-By-Hash": "yes"}
    settings = [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in options.items()]
    (release / "Release").write_text(_run("apt-ftparchive", *settings, "release", release))
    return names


def _run(*command: object, cwd: Optional[Path] = None) -> str:
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60, cwd=cwd).stdout
