"""The tarball and the single files, run by a Python that has cryptography or has not, and in a bare Debian 12."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Dict, List, Optional

import parts
import pytest
from clients.workshop import Program
from support.documented import check_size

from packages.yard import ROOT, Debian, Yard, pythons, run

Build = Callable[..., Path]
MACHINE = os.uname().machine
VERSIONS = sorted(pythons(), key=lambda version: int(version.split(".")[1]))

# What the distributions have that ship these Pythons; the newest for the others.
CRYPTOGRAPHY = {"3.9": "cryptography==36.0.1", "3.10": "cryptography==3.4.8", "3.11": "cryptography==38.0.4"}

# What a start may cost at most, in units of what it costs to compile the program, as every start from an archive does.
# It is some five of them.
WARM = 8
COMPILE = "import sys\nfor path in sys.argv[1:]: compile(open(path, encoding='utf-8').read(), path, 'exec')"


@pytest.fixture(scope="session")
def thin(build: Build) -> Path:
    return build("dduct.pyz", "pyz.py")


@pytest.fixture(scope="session")
def fat(build: Build) -> Path:
    return build(f"dduct-{MACHINE}.pyz", "pyz.py", "--fat")


def bare_python(version: str, directory: Path) -> Path:
    """A Python without any package."""
    run(pythons()[version], "-m", "venv", "--without-pip", directory)
    return directory / "bin/python"


def python_with(package: str, version: str, directory: Path) -> Path:
    """A Python with one package, and what that needs."""
    python = bare_python(version, directory)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check"]
    run(*pip, "--only-binary=:all:", package)
    return python


def configure(directory: Path, authority: Path) -> Path:
    """A configuration beside a program: what is shipped, and the origins' authority."""
    path = directory / "dduct.toml"
    text = (ROOT / "dduct.toml").read_text("utf-8")
    for key, value in {"upstream_ca = ''": f"upstream_ca = '{authority}'", "= 3072": "= 2048", "'1G'": "''"}.items():
        assert key in text
        text = text.replace(key, value)
    path.write_text(text)
    return path


def loaded(program: Program, name: str) -> List[str]:
    """The paths of shared libraries with `name` in them that a process has loaded."""
    lines = Path(f"/proc/{program.process.pid}/maps").read_text().splitlines()
    return sorted({line.split()[-1] for line in lines if name in line})


def check_single_file(
    yard: Yard,
    certificates: Path,
    archive: Path,
    python: Path,
    library: Optional[Path],
    env: Optional[Dict[str, str]] = None,
) -> Program:
    """Run it from a directory of its own, where its files then are; `library`: from where cryptography has to come."""
    place = yard.directory / "opt"
    shutil.copytree(certificates, place / "certs")
    copy = Path(shutil.copy(archive, place))
    configure(place, yard.ca)
    program = yard.start("dduct", [python, copy, "--cfg"], env)
    yard.wait_until_healthy(program)
    yard.check_that_it_caches()
    assert (place / "certs/ca.key").stat().st_mode & 0o777 == 0o600
    assert list((place / "files").rglob("thing.tar.gz"))
    if library is not None:
        assert all(Path(path).is_relative_to(library) for path in loaded(program, "_rust")), loaded(program, "_rust")
    return program


def cost(*command: object, env: Optional[Dict[str, str]] = None) -> float:
    """What the cheapest of three runs takes of a processor, in such units: how busy the machine is otherwise is not
    meant, and on a busy one the same work takes twice the seconds."""
    sources = [ROOT / name for name in parts.program() if name.endswith(".py")]
    runs = [(seconds(*command, env=env), seconds(command[0], "-c", COMPILE, *sources)) for _ in range(3)]
    return min(started for started, _ in runs) / min(compiled for _, compiled in runs)


def seconds(*command: object, env: Optional[Dict[str, str]] = None) -> float:
    """Seconds of processor that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*command, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_archives_have_their_documented_sizes(thin: Path, fat: Path) -> None:
    check_size("dduct.pyz", thin)
    if MACHINE == "x86_64":
        check_size("dduct-x86_64.pyz", fat)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_python_builds_the_same_bytes(version: str, thin: Path, build: Build, tmp_path: Path) -> None:
    tarball = build(f"dduct-{parts.version()}.tar.gz", "tarball.py")
    python = bare_python(version, tmp_path / "venv")
    run(python, ROOT / "packaging/tarball.py", tmp_path)
    run(python, ROOT / "packaging/pyz.py", tmp_path / "dduct.pyz")
    assert (tmp_path / tarball.name).read_bytes() == tarball.read_bytes()
    assert (tmp_path / "dduct.pyz").read_bytes() == thin.read_bytes()


def test_a_python_to_test_with_is_installed() -> None:
    assert VERSIONS, "no Python from 3.9 to 3.13 was found"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_thin_file_runs_with_a_cryptography(
    version: str, yard: Yard, certificates: Path, thin: Path, tmp_path: Path
) -> None:
    python = python_with(CRYPTOGRAPHY.get(version, "cryptography"), version, tmp_path / "venv")
    check_single_file(yard, certificates, thin, python, None)
    assert cost(python, thin, "--version") < WARM


@pytest.mark.parametrize("version", VERSIONS)
def test_the_thin_file_names_its_missing_package(version: str, thin: Path, tmp_path: Path) -> None:
    output = run(bare_python(version, tmp_path / "venv"), thin, "--version", status=1)
    assert output.startswith("dduct: the Python package cryptography, 3.4 or newer, is needed: ")
    assert output.count("\n") == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fat_file_runs_with_nothing(
    version: str, yard: Yard, certificates: Path, fat: Path, tmp_path: Path
) -> None:
    python = bare_python(version, tmp_path / "venv")
    env = {"DDUCT_LIBRARY": str(tmp_path / "library")}
    program = check_single_file(yard, certificates, fat, python, tmp_path / "library", env)
    assert loaded(program, "_rust") and loaded(program, "_cffi_backend")
    assert cost(python, fat, "--version", env=env) < WARM


@pytest.mark.parametrize("version", VERSIONS[:1] + VERSIONS[-1:])
def test_the_fat_file_prefers_a_cryptography_that_is_there(
    version: str, yard: Yard, certificates: Path, fat: Path, tmp_path: Path
) -> None:
    python = python_with(CRYPTOGRAPHY.get(version, "cryptography"), version, tmp_path / "venv")
    env = {"DDUCT_LIBRARY": str(tmp_path / "library")}
    check_single_file(yard, certificates, fat, python, tmp_path / "venv", env)
    assert not (tmp_path / "library").exists()


def test_a_cryptography_that_is_too_old_or_broken_is_passed_over(fat: Path, tmp_path: Path) -> None:
    python = bare_python(VERSIONS[0], tmp_path / "venv")
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (packages / "_cffi_backend.py").write_text("")
    (packages / "cryptography").mkdir()
    env = {"DDUCT_LIBRARY": str(tmp_path / "library")}
    for version, code in (("2.8", ""), ("50.0", "raise ImportError('libssl.so.1.1')")):
        (packages / "cryptography/__init__.py").write_text(f"__version__ = '{version}'")
        (packages / "cryptography/x509.py").write_text(code)
        assert run(python, fat, "--version", env=env) == f"dduct {parts.version()}\n"


def test_the_fat_file_is_unpacked_once_by_many_that_start_at_once(fat: Path, tmp_path: Path) -> None:
    python = bare_python(VERSIONS[-1], tmp_path / "venv")
    env = {"DDUCT_LIBRARY": str(tmp_path / "library")}
    with ThreadPoolExecutor(8) as pool:
        outputs = set(pool.map(lambda _: run(python, fat, "--version", env=env), range(8)))
    assert outputs == {f"dduct {parts.version()}\n"}
    assert len([path for path in (tmp_path / "library").iterdir() if path.name != ".lock"]) == 1


def test_the_fat_file_takes_nothing_from_a_place_that_others_prepare(fat: Path, tmp_path: Path) -> None:
    python = bare_python(VERSIONS[-1], tmp_path / "venv")
    planted = tmp_path / "library"
    planted.mkdir()
    planted.chmod(0o777)
    output = run(python, fat, "--version", env={"DDUCT_LIBRARY": str(planted)}, status=1)
    assert f"others may write to {planted}" in output and output.count("\n") == 1
    assert "DDUCT_LIBRARY" in output and list(planted.iterdir()) == []


def test_an_old_python_gets_a_clear_error(thin: Path) -> None:
    old = [*Path.home().glob(".pyenv/versions/[23].[5-8]*/bin/python"), Path("/usr/bin/python2")]
    present = [path for path in old if path.exists()]
    if not present:
        pytest.skip("there is no Python before 3.9")
    for python in present:
        output = run(python, thin, "--version", status=1)
        assert output.startswith("dduct: Python 3.9 or newer is needed")


# --- in a bare Debian 12 ------------------------------------------------------------------------


def check_bare(debian: Debian) -> None:
    """No developer tools: what is shipped has to do without."""
    present = [
        name for name in ("gcc", "cc", "make", "pip", "pip3", "git") if (debian.path / "usr/bin" / name).exists()
    ]
    assert present == []


def test_the_tarball_runs_in_debian(yard: Yard, debian: Debian, build: Build) -> None:
    check_bare(debian)
    name = f"dduct-{parts.version()}"
    run("tar", "-xzf", build(f"{name}.tar.gz", "tarball.py"), "-C", debian.path / "opt")
    debian.trust(yard.ca)
    program = yard.start("dduct", debian.command("python3", f"/opt/{name}/dduct.py", "--cfg"))
    yard.wait_until_healthy(program)
    yard.check_that_it_caches(debian)
    assert (debian.path / "opt" / name / "certs/ca.key").exists()
    assert list((debian.path / "opt" / name / "files").rglob("thing.tar.gz"))


def test_the_thin_file_runs_in_debian(yard: Yard, debian: Debian, thin: Path) -> None:
    check_bare(debian)
    debian.put(thin, "/opt/dduct.pyz")
    debian.trust(yard.ca)
    program = yard.start("dduct", debian.command("/opt/dduct.pyz", "--cfg", "/opt/dduct.toml"))
    assert program.process.wait(30) == 2  # there is none, and it says so
    assert "No such file" in program.log.read_text()
    program = yard.start("dduct", debian.command("/opt/dduct.pyz"))
    yard.wait_until_healthy(program)
    yard.check_that_it_caches(debian)
    assert (debian.path / "opt/certs/ca.key").exists()


def test_the_fat_file_runs_in_debian_without_cryptography(yard: Yard, debian: Debian, fat: Path) -> None:
    run(*debian.command("dpkg", "--purge", "python3-cryptography", "python3-cffi-backend"))
    check_bare(debian)
    debian.put(fat, "/opt/dduct.pyz")
    debian.trust(yard.ca)
    program = yard.start("dduct", debian.command("/opt/dduct.pyz"))
    yard.wait_until_healthy(program)
    yard.check_that_it_caches(debian)
    (library,) = (debian.path / "root/.cache/dduct").glob("*/cryptography")
    assert library.parent.parent.stat().st_mode & 0o777 == 0o700
    # A user without a home has a place, too.
    command = debian.command(
        "setpriv", "--reuid=65534", "--clear-groups", "env", "-u", "HOME", "/opt/dduct.pyz", "--version"
    )
    assert run(*command) == f"dduct {parts.version()}\n"
    assert (debian.path / "var/tmp/dduct-65534").stat().st_uid == 65534
