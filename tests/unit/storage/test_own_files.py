"""Which files below file_dir are dduct's own; no others are ever removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

from cache import Cache
from storage import own_files
from storage.eviction import Evictor
from storage.own_files import files_below, is_reached_directly, outside, prune
from storage.record import Unstorable
from storage.space import Limits, SpaceLimits
from storage.store import Key
from storage.verify import Findings, verify

FOREIGN = (
    "thesis.odt",
    "home/.ssh/id_ed25519",
    "home/https/host/x.deb",  # looks like ours, and is not
    "notes.dduct",  # a growing file's name
    ".hidden/x",
    "https/at-the-first-level.txt",
    "https/half.dduct",
    "sha256/readme",
    "sha256/ab/readme.txt",
    "sha256/ab/cd/ab12",
    "sha256/ab/cd12",  # another folder's digest
    "md5/ab/ab12",
)
OWN = ("https/h/x.deb", "http/h:80/deep/er/y.zip", "http/h/.dduct/12ab", "sha256/ab/ab12", "blake2b/00/00ff.dduct")


def write(root: Path, *names: str) -> List[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"F" * 9000)
        os.utime(root / name, (1, 1))
    return [root / name for name in names]


def test_only_files_at_paths_of_objects_are_dducts_own(tmp_path: Path) -> None:
    write(tmp_path, *FOREIGN, *OWN)
    assert sorted(os.path.relpath(entry.path, tmp_path) for entry in files_below(str(tmp_path))) == sorted(OWN)


@pytest.mark.parametrize("limits", [Limits(max_size=0), Limits(min_free=2**60)])
def test_foreign_files_stay_whatever_space_is_needed(tmp_path: Path, limits: Limits) -> None:
    paths = write(tmp_path, *FOREIGN)
    (tmp_path / "empty/https/nothing").mkdir(parents=True)
    write(tmp_path, *OWN)
    Evictor(SpaceLimits(tmp_path, lambda: limits)).sweep()
    assert all(path.exists() for path in paths) and (tmp_path / "empty/https/nothing").is_dir()


def test_verify_fixes_no_foreign_files(tmp_path: Path) -> None:
    paths = write(tmp_path, *FOREIGN)
    for path in paths:
        os.setxattr(path, "user.dduct", b"damaged")
    assert verify(tmp_path, True, lambda _: None, lambda _: None) == Findings()
    assert all(path.exists() for path in paths)


def test_links_are_not_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "files", tmp_path / "elsewhere"
    paths = write(elsewhere, "host/x.deb", "x.deb", "sub/y.deb")
    write(root, "https/h/own.deb")
    (root / "http").symlink_to(elsewhere)
    (root / "https/linked").symlink_to(elsewhere)
    (root / "https/h/file.deb").symlink_to(elsewhere / "x.deb")
    (root / "sha256").symlink_to(elsewhere)
    Evictor(SpaceLimits(root, lambda: Limits(max_size=0))).sweep()
    assert all(path.exists() for path in paths)
    assert not (root / "https/h/own.deb").exists() and (root / "https/h/file.deb").is_symlink()


def test_a_directory_that_becomes_a_link_during_a_sweep_is_not_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "files", tmp_path / "elsewhere"
    (path,) = write(elsewhere, "2.deb")
    first, second = write(root, "https/h/1.deb", "https/g/2.deb")
    os.utime(second, (2, 2))

    def swap() -> None:
        if second.exists() and not second.parent.is_symlink():
            second.parent.rename(root / "https/was-g")
            second.parent.symlink_to(elsewhere)

    Evictor(SpaceLimits(root, lambda: Limits(max_size=0)), swap).sweep()
    assert not first.exists() and path.exists()


def test_nothing_is_written_or_removed_behind_a_link(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "files", tmp_path / "elsewhere"
    (path,) = write(elsewhere, "x.deb")
    (root / "https").mkdir(parents=True)
    (root / "https/linked").symlink_to(elsewhere)
    (root / "http").symlink_to(elsewhere)
    cache = Cache(root)
    with pytest.raises(Unstorable, match="symbolic link"):
        cache.claim(Key("https/linked/y.deb"))
    with pytest.raises(Unstorable, match="link, a mount point or no folder"):
        cache.claim(Key("http/h/y.deb"))
    cache.remove(Key("https/linked/x.deb"))
    assert [found.name for found in elsewhere.iterdir()] == ["x.deb"] and path.exists()


def test_mount_points_are_not_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "with blank"
    here, mounted, top = write(root, "https/h/x.deb", "https/m n/x.deb", "http/h/x.deb")
    table = tmp_path / "mountinfo"
    lines = [
        f"1 1 8:1 / {str(place).replace(' ', chr(92) + '040')} rw - ext4 /dev/x rw\n" for place in (mounted.parent,)
    ]
    table.write_text(
        "".join([*lines, f"2 1 8:1 / {str(root / 'http').replace(' ', chr(92) + '040')} rw - ext4 d rw\n"])
    )
    monkeypatch.setattr(own_files, "_MOUNTS", str(table))
    Evictor(SpaceLimits(root, lambda: Limits(max_size=0))).sweep()
    assert not here.exists() and mounted.exists() and top.exists()
    assert outside(str(root)).closed == ("http",)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_bind_mount_is_not_entered(tmp_path: Path) -> None:
    root, precious = tmp_path / "files", tmp_path / "precious"
    write(precious, "x.deb")
    write(root, "https/m/here.deb")
    script = (
        f"mount --bind '{precious}' '{root}/https/m' && '{sys.executable}' -c '"
        "import pathlib; from storage import eviction, space; "
        f'eviction.Evictor(space.SpaceLimits(pathlib.Path("{root}"), lambda: space.Limits(0))).sweep()\''
    )
    found = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    if "unshare" in found.stderr or "mount" in found.stderr:
        pytest.skip(found.stderr.strip())
    assert found.returncode == 0, found.stderr
    assert (precious / "x.deb").exists()


def test_pruning_ends_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "root/https/h/a").mkdir(parents=True)
    count, size = prune(str(tmp_path / "root/https/h/a"), str(tmp_path / "root"))
    assert count == 3 and size >= 3 * 1024 and (tmp_path / "root").is_dir()


def test_a_missing_directory_is_no_link(tmp_path: Path) -> None:
    assert is_reached_directly(str(tmp_path), f"{tmp_path}/https/h/x.deb")


def test_a_removed_partial_download_takes_its_empty_directories_along(tmp_path: Path) -> None:
    write(tmp_path, "https/h/a/b/x.deb.dduct")
    Evictor(SpaceLimits(tmp_path, Limits)).sweep()
    assert not (tmp_path / "https").exists()
