"""The kinds of downloads that are measured: what the origin has, what the client runs, and when it has everything."""

from __future__ import annotations

import json
import os
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from jobs import Command
from programs import ROOT, find
from repositories import write_debs, write_npm, write_packuments, write_wheels

if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))

from support.images import write_image

IMAGE = "team/app:1"


@dataclass(frozen=True)
class Origin:
    """Where a client finds the files and the registry: `host:port` of each."""

    files: str
    registry: str


@dataclass(frozen=True)
class Way:
    """How a client reaches the origin: the URL of a proxy or None, and the file with the CA to trust."""

    proxy: Optional[str]
    ca: Path


class Kind(ABC):
    """A kind of packages, `count` of them."""

    name: str
    programs: Tuple[str, ...]

    def __init__(self, count: int) -> None:
        self.count = count

    def missing(self) -> List[str]:
        """The programs that this machine lacks."""
        return [program for program in self.programs if find(program) is None]

    @abstractmethod
    def describe(self) -> str:
        """What is downloaded, for a reader."""

    @abstractmethod
    def write(self, files: Path) -> None:
        """Make the packages, below the directory that the origin serves."""

    @abstractmethod
    def commands(self, job: Path, origin: Origin, way: Way) -> List[Command]:
        """What a client runs in its own new directory `job`; its configuration is written there."""

    @abstractmethod
    def found(self, job: Path) -> int:
        """How many packages the client has got."""


class Npm(Kind):
    """`npm ci`, which asks for the tarballs that its lock file names."""

    name = "npm"
    programs = ("npm",)
    _words: Tuple[str, ...] = ("npm", "ci")

    def describe(self) -> str:
        return f"`npm ci` of {self.count} packages, 1 to 60 KiB"

    def write(self, files: Path) -> None:
        self._root = files / self.name
        self._integrities = write_npm(self._root, self.count)

    def commands(self, job: Path, origin: Origin, way: Way) -> List[Command]:
        registry = f"https://{origin.files}/{self.name}"
        names = dict.fromkeys(self._integrities, "1.0.0")
        root: Dict[str, object] = {"name": "x", "version": "1.0.0", "dependencies": names}
        (job / "package.json").write_text(json.dumps(root))
        self._write_names(job, registry, root)
        proxy = f"https-proxy={way.proxy}\nproxy={way.proxy}\nnoproxy=\n" if way.proxy else ""
        (job / "npmrc").write_text(
            f"registry={registry}/\n{proxy}cafile={way.ca}\ncache={job}/cache\naudit=false\nfund=false\n"
            "update-notifier=false\nprogress=false\n"
        )
        return [Command(self._words, {"npm_config_userconfig": str(job / "npmrc")})]

    def _write_names(self, job: Path, registry: str, root: Dict[str, object]) -> None:
        """Write what tells npm the tarballs: the lock file."""
        packages: Dict[str, Dict[str, object]] = {"": root}
        for name, integrity in self._integrities.items():
            resolved = f"{registry}/{name}/-/{name}-1.0.0.tgz"
            packages[f"node_modules/{name}"] = {"version": "1.0.0", "resolved": resolved, "integrity": integrity}
        lock = {"name": "x", "version": "1.0.0", "lockfileVersion": 3, "requires": True, "packages": packages}
        (job / "package-lock.json").write_text(json.dumps(lock))

    def found(self, job: Path) -> int:
        return len(list(job.glob("node_modules/sample-*/data")))


class NpmInstall(Npm):
    """`npm install` without a lock file, which asks for the document of each package before its tarball."""

    name = "npm-install"
    _words = ("npm", "install", "--no-package-lock")

    def describe(self) -> str:
        return f"`npm install` of {self.count} packages, 1 to 60 KiB, without a lock file"

    def _write_names(self, job: Path, registry: str, root: Dict[str, object]) -> None:
        write_packuments(self._root, registry, self._integrities)


class Pip(Kind):
    """`pip install`, one package after the other, each with its page of the index and its wheel."""

    name = "pip"
    programs = ()

    def describe(self) -> str:
        return f"`pip install` of {self.count} wheels, 10 KiB to 2 MiB"

    def write(self, files: Path) -> None:
        self._requirements = write_wheels(files, self.count)

    def commands(self, job: Path, origin: Origin, way: Way) -> List[Command]:
        (job / "requirements.txt").write_text("\n".join(self._requirements) + "\n")
        words = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--no-cache-dir"]
        words += ["--no-deps", "--no-compile", "--require-hashes", "-r", str(job / "requirements.txt")]
        words += ["--target", str(job / "out"), "--index-url", f"https://{origin.files}/simple", "--cert", str(way.ca)]
        words += ["--proxy", way.proxy] if way.proxy else []
        return [Command(tuple(words))]

    def found(self, job: Path) -> int:
        return len(list(job.glob("out/sample_*/data")))


class Apt(Kind):
    """`apt-get update` and `apt-get install --download-only` in a root of its own."""

    name = "apt"
    programs = ("apt-get", "apt-ftparchive", "dpkg-deb", "xz")

    def describe(self) -> str:
        return f"`apt-get update` and `install --download-only` of {self.count} packages, 5 KiB to 2 MiB"

    def write(self, files: Path) -> None:
        self._names = write_debs(files / "debian", self.count)

    def commands(self, job: Path, origin: Origin, way: Way) -> List[Command]:
        for name in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"):
            (job / name).mkdir(parents=True)
        (job / "status").touch()
        (job / "etc/sources.list").write_text(
            f"deb [trusted=yes arch=amd64] https://{origin.files}/debian stable main\n"
        )
        settings = {
            "Dir::Etc": job / "etc",
            "Dir::State": job / "state",
            "Dir::State::status": job / "status",
            "Dir::Cache": job / "cache",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
            "Debug::NoLocking": "true",
            "Acquire::https::Proxy": way.proxy or "DIRECT",
            "Acquire::https::CaInfo": way.ca,
            "Acquire::Languages": "none",
        }
        (job / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
        environment = {"APT_CONFIG": str(job / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive"}
        install = ("apt-get", "-q", "-y", "install", "--download-only", *self._names)
        return [Command(words, environment) for words in (("apt-get", "-q", "update"), install)]

    def found(self, job: Path) -> int:
        return len(list(job.glob("cache/archives/*.deb")))


class Image(Kind):
    """`skopeo copy` of an image with `count` layers into a directory."""

    name = "image"
    programs = ("skopeo", "docker-registry")

    def __init__(self, count: int, size: int) -> None:
        super().__init__(count)
        self._size = size

    def describe(self) -> str:
        return f"`skopeo copy` of an image with {self.count} layers, {self.count * self._size // 1_000_000} MB in all"

    def write(self, files: Path) -> None:
        self.layout = files.parent / "image"
        write_image(self.layout, self.count, self._size)

    def push(self, registry: str, ca: Path) -> Command:
        """What fills the registry."""
        words = ("skopeo", "--insecure-policy", "copy", "-q", f"oci:{self.layout}", f"docker://{registry}/{IMAGE}")
        return Command(words, {"SSL_CERT_FILE": str(ca)})

    def commands(self, job: Path, origin: Origin, way: Way) -> List[Command]:
        source = f"docker://{origin.registry}/{IMAGE}"
        environment = {"SSL_CERT_FILE": str(way.ca), **({"HTTPS_PROXY": way.proxy} if way.proxy else {})}
        return [Command(("skopeo", "--insecure-policy", "copy", "-q", source, f"dir:{job}/out"), environment)]

    def found(self, job: Path) -> int:
        return sum(os.stat(path).st_size >= self._size for path in job.glob("out/*"))


def kinds(quick: bool) -> List[Kind]:
    """All kinds; a quick run has a fifth of each."""
    if quick:
        return [Npm(60), NpmInstall(60), Pip(12), Apt(30), Image(6, 10_000_000)]
    return [Npm(300), NpmInstall(300), Pip(60), Apt(150), Image(12, 25_000_000)]
