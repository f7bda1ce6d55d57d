"""What is shipped is built from the sources alone: complete, and the same bytes twice. No network here."""

from __future__ import annotations

import ast
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, List

import bundle
import parts
import pytest
import pyz
import tarball
import wheels
import yaml
from support.documented import check_size
from wheels import PYTHONS, Wheels

import dduct

ROOT = parts.ROOT
APPLIANCE = ROOT / "packaging/opennebula/appliances/dduct"


def loaded_modules() -> List[str]:
    """The files of all modules of the repository that dduct needs, found by importing it."""
    script = "import sys, dduct; print(*(getattr(m, '__file__', None) or '' for m in sys.modules.values()), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [Path(line) for line in done.stdout.splitlines() if line]
    below = [path.relative_to(ROOT) for path in paths if path.is_relative_to(ROOT)]
    return sorted(str(path) for path in below if not path.parts[0].startswith("."))


def make_wheel(directory: Path, package: str, tag: str, files: Dict[str, bytes]) -> bytes:
    path = directory / f"{package}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**files, f"{package}-1.0.dist-info/licenses/LICENSE": b"free", "x.pyi": b""}.items():
            archive.writestr(name, data)
    return path.read_bytes()


@pytest.fixture
def small_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheels:
    """Wheels as pip would have fetched them, with next to nothing inside."""
    directory, pins = tmp_path / "wheels", tmp_path / "pins"
    directory.mkdir()
    pins.mkdir()
    made = {"tomli": [make_wheel(directory, "tomli", "py3-none-any", {"tomli/__init__.py": b"loads = None"})]}
    library = {"cryptography/__init__.py": b"__version__ = '99.0'", "cryptography/x509.py": b"LOADED = True"}
    made["cryptography"] = [make_wheel(directory, "cryptography", "cp39-abi3-manylinux_2_28_x86_64", library)]
    made["cffi"] = []
    for python in PYTHONS:
        tag = "cp" + python.replace(".", "")
        files = {f"_cffi_backend.{tag}.so": b"", "cffi/api.py": b"never shipped"}
        made["cffi"].append(make_wheel(directory, "cffi", f"{tag}-{tag}-manylinux2014_x86_64", files))
    for package, wheel in made.items():
        sums = (f"--hash=sha256:{hashlib.sha256(data).hexdigest()}" for data in wheel)
        (pins / f"{package}.txt").write_text(f"{package}==1.0 " + " ".join(sums))
    monkeypatch.setattr(wheels, "PINS", pins)
    return Wheels(directory, "x86_64")


def test_the_version_has_one_source() -> None:
    assert parts.version() == dduct.VERSION
    version = dduct.VERSION.encode()
    # The marketplace wants its own copies, which test_appliance.py holds against it.
    apart = {"__pycache__", "appliances"}
    tracked = [path for path in (ROOT / "packaging").rglob("*") if path.is_file() and not apart & set(path.parts)]
    assert [path for path in tracked if version in path.read_bytes() and path.suffix != ".md"] == []


def repository() -> List[Path]:
    """Every file that git knows, or in a copy without it, every file that a repository would have."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], stdout=subprocess.PIPE, check=False)
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else tarball.contents()
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_every_copy_of_the_version_is_of_this_one() -> None:
    """`dduct 1.2.3`, `dduct-1.2.3.qcow2`, `version: 1.2.3-1`, `VERSION='1.2.3'`, `## 1.2.3`; X.Y.Z stands for any."""
    copy = re.compile(r"(?:dduct[-_ /]v?|VERSION ?= ?['\"]|^version: ['\"]?|^## )([0-9]+\.[0-9]+\.[0-9]+)", re.M)
    found = {}
    for path in repository():
        if (
            path.suffix in (".py", ".sh", ".md", ".yaml", ".hcl", ".toml", ".rb", "")
            and ROOT / "tests" not in path.parents
            and "tests" not in path.parts[-3:-1]
        ):
            found[str(path.relative_to(ROOT))] = set(copy.findall(path.read_text("utf-8")))
    others = {name: versions for name, versions in found.items() if versions - {dduct.VERSION}}
    assert {name: versions for name, versions in others.items() if "CHANGELOG" not in name} == {}
    wanted = {"dduct.py", "CHANGELOG.md", "packaging/opennebula/README.md"}
    appliance = {"appliance.sh", "CHANGELOG.md", next(APPLIANCE.glob("*-*-*-*-*.yaml")).name}
    wanted |= {f"packaging/opennebula/appliances/dduct/{name}" for name in appliance}
    assert {name for name, versions in found.items() if dduct.VERSION in versions} >= wanted


def test_every_module_that_runs_is_shipped() -> None:
    assert parts.modules() == loaded_modules()
    assert set(loaded_modules()) <= set(tarball.contents())


def test_the_time_stamp_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert parts.moment() == 1700000000
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert parts.moment() == 315532800


# --- the tarball --------------------------------------------------------------------------------


def test_the_tarball_is_reproducible_and_complete(tmp_path: Path) -> None:
    first, second = tarball.build(tmp_path / "one"), tarball.build(tmp_path / "two")
    assert first.name == f"dduct-{dduct.VERSION}.tar.gz"
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        entries = archive.getmembers()
    top = f"dduct-{dduct.VERSION}/"
    assert [entry.name[len(top) :] for entry in entries] == tarball.contents()
    assert {(entry.uid, entry.gid, entry.uname, entry.mtime) for entry in entries} == {(0, 0, "root", parts.moment())}
    assert {"dduct.py", "dduct.toml", "README.md", "LICENSE", *parts.DATA} <= set(tarball.contents())
    assert next(entry.mode for entry in entries if entry.name == f"{top}dduct.py") == 0o755


def test_the_tarball_is_compressed_alike_by_every_python() -> None:
    data = bytes(range(256)) * 1000
    assert tarball.compressed(data)[:10] == bytes.fromhex("1f8b08000000000002ff")
    assert gzip.decompress(tarball.compressed(data)) == data


def test_links_in_the_tarballs_documents_are_not_broken() -> None:
    shipped = set(tarball.contents())
    assert {"packaging/README.md", "packaging/opennebula/README.md"} <= shipped
    for name in shipped:
        if name.endswith(".md"):
            missing = set(parts._links(ROOT / name)) - shipped
            assert {link for link in missing if link != "bench/RESULTS.md"} == set(), name  # made by make bench


def test_the_tarball_has_its_documented_size(tmp_path: Path) -> None:
    check_size("dduct-X.Y.Z.tar.gz", tarball.build(tmp_path))


@pytest.mark.parametrize("name", ["dduct.pyz", "dduct-x86_64.pyz"])
def test_single_files_have_their_documented_sizes(tmp_path: Path, name: str) -> None:
    directory, needed = ROOT / "build/wheels", ("tomli", "cryptography", "cffi")[: 3 if "x86" in name else 1]
    if not all(list(directory.glob(f"{package}-*.whl")) for package in needed):
        pytest.skip("the wheels are not here: make pyz-fat")  # tests/packages looks as well
    pyz.write((pyz.fat if "x86" in name else pyz.thin)(Wheels(directory, "x86_64")), tmp_path / name)
    check_size(name, tmp_path / name)


def test_the_tarball_runs(tmp_path: Path) -> None:
    subprocess.run(["tar", "-xzf", str(tarball.build(tmp_path)), "-C", str(tmp_path)], check=True)
    program = tmp_path / f"dduct-{dduct.VERSION}/dduct.py"
    done = subprocess.run([sys.executable, program, "--cfg", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"cert_dir = '{program.parent}/certs'" in done.stdout


# --- the single files ---------------------------------------------------------------------------


def test_single_files_are_reproducible(tmp_path: Path, small_wheels: Wheels) -> None:
    for make in (pyz.thin, pyz.fat):
        pyz.write(make(small_wheels), tmp_path / "one.pyz")
        pyz.write(make(small_wheels), tmp_path / "two.pyz")
        assert (tmp_path / "one.pyz").read_bytes() == (tmp_path / "two.pyz").read_bytes()
        assert os.access(tmp_path / "one.pyz", os.X_OK)


def test_single_files_hold_the_program_and_what_it_needs(small_wheels: Wheels) -> None:
    thin, fat = pyz.thin(small_wheels), pyz.fat(small_wheels)
    extra = {"__main__.py", "bundle.py", "LICENSE", "tomli/__init__.py", "licenses/tomli/LICENSE"}
    assert set(thin) == {*parts.program(), *extra}
    backends = {f"library/_cffi_backend.cp{python.replace('.', '')}.so" for python in PYTHONS}
    more = {"library/cryptography/__init__.py", "library/cryptography/x509.py", "library.txt"}
    licences = {"licenses/cryptography/LICENSE", "licenses/cffi/LICENSE"}
    assert set(fat) == {*thin, *backends, *more, *licences}
    assert fat["library.txt"].split()[2] == b"cpython-39,cpython-310,cpython-311,cpython-312,cpython-313"


def test_the_library_is_named_by_its_content(small_wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pyz._identity({"a": b"1"}) != pyz._identity({"a": b"2"}) != pyz._identity({"b": b"2"})
    assert pyz.fat(small_wheels)["library.txt"] == pyz.fat(small_wheels)["library.txt"]


def test_a_wheel_with_a_wrong_hash_is_refused(small_wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_wheels.any("tomli")
    path.write_bytes(path.read_bytes() + b"more")
    fetched: List[str] = []
    monkeypatch.setattr(Wheels, "_fetch", lambda self, package, python: fetched.append(package))
    with pytest.raises(SystemExit, match="no wheel tomli"):
        small_wheels.any("tomli")
    assert fetched == ["tomli"]


def test_every_wheel_is_pinned_by_version_and_hash() -> None:
    for package, count in {"tomli": 1, "cryptography": 2, "cffi": 2 * len(PYTHONS)}.items():
        text = (wheels.PINS / f"{package}.txt").read_text("utf-8")
        assert re.search(rf"^{package}==[0-9.]+ ", text, re.MULTILINE)
        assert len(wheels.hashes(package)) == count
    assert "http" not in "".join(path.read_text("utf-8") for path in wheels.PINS.iterdir())


def test_an_unsupported_machine_is_refused() -> None:
    with pytest.raises(SystemExit, match="expected one of x86_64, aarch64"):
        Wheels(Path("/nowhere"), "riscv64")


def test_main_refuses_an_old_python() -> None:
    tree = ast.parse(pyz.MAIN)
    first = next(node for node in tree.body if isinstance(node, ast.If))
    assert "sys.version_info < (3, 9)" in ast.unparse(first)
    assert not any(isinstance(node, ast.JoinedStr) for node in ast.walk(tree))  # which Python 3.5 does not know


# --- unpacking ----------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "some.pyz"
    pyz.write({"library/one/a.py": b"A = 1", "library/b.py": b"B = 2", "dduct.py": b"never unpacked"}, path)
    return path


def test_a_single_file_is_unpacked_once_for_its_user_only(tmp_path: Path, archive: Path) -> None:
    place = tmp_path / "cache"
    library = bundle._unpacked(archive, "0123", place)
    assert library == place / "0123" and (library / "one/a.py").read_bytes() == b"A = 1"
    assert sorted(path.name for path in place.rglob("*") if path.is_file()) == [".lock", "a.py", "b.py"]
    assert place.stat().st_mode & 0o777 == 0o700
    inode = (library / "b.py").stat().st_ino
    assert bundle._unpacked(archive, "0123", place) == library
    assert (library / "b.py").stat().st_ino == inode


@pytest.mark.parametrize("gone", ["b.py", "one/a.py", "one"])
def test_files_removed_by_systemd_tmpfiles_are_unpacked_again(tmp_path: Path, archive: Path, gone: str) -> None:
    """It takes file by file, whatever has been old for some weeks."""
    library = bundle._unpacked(archive, "0123", tmp_path / "cache")
    path = library / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert bundle._unpacked(archive, "0123", tmp_path / "cache") == library
    assert (library / "one/a.py").read_bytes() == b"A = 1" and (library / "b.py").read_bytes() == b"B = 2"
    (library / "b.py").write_text("")  # half a file does not count
    assert (bundle._unpacked(archive, "0123", tmp_path / "cache") / "b.py").read_bytes() == b"B = 2"


def test_the_remains_of_a_killed_start_are_replaced(tmp_path: Path, archive: Path) -> None:
    stage = tmp_path / "cache/0123.new"
    stage.mkdir(parents=True, mode=0o700)
    (stage / "half.py").write_text("")
    (tmp_path / "cache").chmod(0o700)
    library = bundle._unpacked(archive, "0123", tmp_path / "cache")
    assert not (library / "half.py").exists() and not stage.exists()


def test_a_broken_archive_leaves_nothing_that_could_be_used(tmp_path: Path, archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as content:
        entry = content.getinfo("library/one/a.py")
    data[entry.header_offset + 30 + len(entry.filename) + 2] ^= 0xFF
    archive.write_bytes(bytes(data))
    with pytest.raises((zipfile.BadZipFile, zlib.error)):
        bundle._unpacked(archive, "0123", tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_directory_that_others_may_write_to_is_not_used(tmp_path: Path, archive: Path, mode: int) -> None:
    place = tmp_path / "cache"
    place.mkdir()
    place.chmod(mode)
    with pytest.raises(bundle.Unusable, match="others may write to"):
        bundle._unpacked(archive, "0123", place)
    assert list(place.iterdir()) == []


def test_a_directory_that_others_may_replace_is_not_used(tmp_path: Path, archive: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(bundle.Unusable, match="others may write to"):
        bundle._unpacked(archive, "0123", tmp_path / "open/cache")
    (tmp_path / "open").chmod(0o1777)  # as /tmp
    assert bundle._unpacked(archive, "0123", tmp_path / "open/cache").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_directory_of_another_user_is_not_used(tmp_path: Path, archive: Path) -> None:
    place = tmp_path / "cache"
    place.mkdir()
    os.chown(place, 12345, 12345)
    with pytest.raises(bundle.Unusable, match="belongs to another user"):
        bundle._unpacked(archive, "0123", place)
    os.chown(place, 0, 0)
    link = tmp_path / "link"
    link.symlink_to(place)
    os.lchown(link, 12345, 12345)
    with pytest.raises(bundle.Unusable, match="another user made this link"):
        bundle._unpacked(archive, "0123", link)


def test_directories_are_tried_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DDUCT_LIBRARY", "CACHE_DIRECTORY", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    last = [Path(f"/var/tmp/dduct-{os.geteuid()}"), Path(f"/tmp/dduct-{os.geteuid()}")]
    assert list(bundle._places()) == last
    monkeypatch.setenv("HOME", "/home/x")
    assert list(bundle._places()) == [Path("/home/x/.cache/dduct"), *last]
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert next(bundle._places()) == Path("/c/dduct")
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/dduct:/var/cache/more")
    assert next(bundle._places()) == Path("/var/cache/dduct/library")
    monkeypatch.setenv("DDUCT_LIBRARY", "/chosen")
    assert list(bundle._places()) == [Path("/chosen")]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"machine": "vax"}, "this file is for vax"), ({"tags": ["cpython-38"]}, "this file has nothing for cpython")],
)
def test_a_file_for_another_machine_or_python_is_refused(change: Dict[str, Any], complaint: str) -> None:
    carried = bundle.Carried(os.uname().machine, "0123", [str(sys.implementation.cache_tag)])
    bundle._check(carried)
    with pytest.raises(bundle.Unusable, match=complaint):
        bundle._check(carried._replace(**change))


# --- kubernetes ---------------------------------------------------------------------------------


def manifest(name: str) -> Any:
    return yaml.safe_load((ROOT / "packaging/kubernetes" / f"{name}.yaml").read_text("utf-8"))


def test_clients_keep_their_addresses_on_the_way_to_the_pod() -> None:
    """Otherwise all of them come from a node, which has a private address, and all are allowed."""
    assert manifest("service")["spec"]["externalTrafficPolicy"] == "Local"


def test_the_init_container_may_be_run_again(tmp_path: Path) -> None:
    """The kubelet does so after a node's restart; a volume keeps what the first run has left."""
    (container,) = manifest("deployment")["spec"]["template"]["spec"]["initContainers"]
    command = [word.replace("/var/lib/dduct", "var").replace("/ca/", "ca/") for word in container["command"]]
    assert "ca/ca.key" in command[-1]
    with tempfile.TemporaryDirectory() as name:  # pytest's own are for its user alone
        place = Path(name)
        (place / "var").mkdir()
        (place / "ca").mkdir()
        for file in ("ca.key", "ca.crt"):
            (place / "ca" / file).write_text("first")
            (place / "ca" / file).chmod(0o440)
        user: Dict[str, Any] = {"user": 10001, "group": 10001, "extra_groups": []} if os.geteuid() == 0 else {}
        if user:
            for path in (place, *place.rglob("*")):
                os.chown(path, 10001, 10001)
        for content in ("first", "second"):
            for file in ("ca.key", "ca.crt"):
                (place / "ca" / file).chmod(0o640)
                (place / "ca" / file).write_text(content)
                (place / "ca" / file).chmod(0o440)
            subprocess.run(command, cwd=place, check=True, **user)
            assert (place / "var/certs/ca.key").read_text() == content
        assert (place / "var/certs/ca.key").stat().st_mode & 0o077 == 0


def test_every_pod_of_the_cluster_is_allowed_by_selector() -> None:
    """Cilium does not match pods by their addresses."""
    (rule,) = manifest("networkpolicy")["spec"]["ingress"]
    assert {"namespaceSelector": {}} in rule["from"]


def test_the_kubernetes_readme_shows_yaml_that_can_be_applied() -> None:
    text = (ROOT / "packaging/kubernetes/README.md").read_text("utf-8")
    block = text[text.index("    apiVersion: cilium.io") :].partition("\n\n")[0]
    policy = yaml.safe_load(textwrap.dedent(block))
    ports = {
        port["containerPort"] for port in manifest("deployment")["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert {int(one["port"]) for one in policy["spec"]["ingress"][0]["toPorts"][0]["ports"]} == ports
    labels = manifest("kustomization")["labels"][0]["pairs"]
    assert policy["spec"]["endpointSelector"]["matchLabels"] == labels
