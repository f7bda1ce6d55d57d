"""The wheels inside the .pyz files: pip downloads them from its index, and only with the pinned hashes."""

from __future__ import annotations

import fcntl
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List, Set

PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
PINS = Path(__file__).resolve().parent / "pins"

# Some packages refuse 3.9.0 and 3.9.1, and pip takes a bare `3.9` for 3.9.0.
_PATCH = ".18"


class Wheels:
    """Wheels for one machine, kept in `directory`. A wheel there with the right hash is not downloaded again."""

    def __init__(self, directory: Path, machine: str) -> None:
        if machine not in MACHINES:
            raise SystemExit(f"machine {machine!r}: expected one of {', '.join(MACHINES)}")
        self.machine = machine
        self._directory = directory

    def any(self, package: str) -> Path:
        """A pure Python wheel."""
        return self._get(package, "-none-any.whl", PYTHONS[0])

    def abi3(self, package: str) -> Path:
        """A wheel for every Python from the oldest one on."""
        return self._get(package, f"-cp39-abi3-manylinux_2_28_{self.machine}.whl", PYTHONS[0])

    def binary(self, package: str, python: str) -> Path:
        """A wheel for one Python, such as `3.12`."""
        tag = "cp" + python.replace(".", "")
        return self._get(package, rf"-{tag}-{tag}-manylinux[^-]*_{self.machine}.whl", python)

    def _get(self, package: str, ending: str, python: str) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # for concurrent builds
            found = list(self._kept(package, ending))
            if not found:
                self._fetch(package, python)
                found = list(self._kept(package, ending))
        if len(found) != 1:
            raise SystemExit(f"pip has fetched no wheel {package}…{ending} with a hash of {PINS / package}.txt")
        return found[0]

    def _kept(self, package: str, ending: str) -> Iterator[Path]:
        pins = hashes(package)
        for path in sorted(self._directory.glob(f"{package}-*.whl")):
            if re.search(ending, path.name) and hashlib.sha256(path.read_bytes()).hexdigest() in pins:
                yield path

    def _fetch(self, package: str, python: str) -> None:
        command = [*_pip(self._directory.parent), "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += [
            "--require-hashes",
            "--only-binary=:all:",
            "--implementation=cp",
            f"--python-version={python}{_PATCH}",
        ]
        command += [f"--platform=manylinux_2_28_{self.machine}", f"--platform=manylinux2014_{self.machine}"]
        command += ["-d", str(self._directory), "-r", str(PINS / f"{package}.txt")]
        if subprocess.run(command, check=False, timeout=600).returncode != 0:
            raise SystemExit(f"pip cannot fetch what {PINS / package}.txt names, for Python {python} on {self.machine}")


def hashes(package: str) -> Set[str]:
    """The SHA-256 sums that a package's requirements file allows."""
    return set(re.findall(r"--hash=sha256:([0-9a-f]{64})", (PINS / f"{package}.txt").read_text("utf-8")))


def _pip(directory: Path) -> List[str]:
    """The command for pip: Debian's Python has none of its own."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0:
        return own
    python = directory / "pip/bin/python"
    if (
        not python.exists()
        and subprocess.run([sys.executable, "-m", "venv", directory / "pip"], check=False).returncode
    ):
        raise SystemExit("pip is needed for the wheels inside the .pyz: apt install python3-venv, or python3-pip")
    return [str(python), "-m", "pip"]
