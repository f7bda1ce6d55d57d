"""Directories and files that must not lie one inside the other."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from support.config_files import complaint, load


def places(cert_dir: object, file_dir: object) -> str:
    return f"[misc]\ncert_dir = '{cert_dir}'\nfile_dir = '{file_dir}'\n"


@pytest.mark.parametrize(
    ("cert_dir", "file_dir", "relation"),
    [
        ("data", "data", "the same as"),
        ("data/", "data", "the same as"),
        ("data/certs", "data", "inside"),
        ("data/a/b/c", "data/", "inside"),
        ("data/../data/certs", "./data", "inside"),
        ("certs/../data", "other/../data", "the same as"),
        ("data", "data/files", "around"),
        (".", "files", "around"),
        ("link/certs", "data", "inside"),
        ("link", "data", "the same as"),
        ("data/certs", "link", "inside"),
        ("dangling/certs", "not-yet", "inside"),
    ],
)
def test_keys_never_lie_where_files_are_removed(tmp_path: Path, cert_dir: str, file_dir: str, relation: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "dangling").symlink_to(tmp_path / "not-yet")
    line = complaint(tmp_path, places(cert_dir, file_dir))
    assert line.startswith("misc.cert_dir = '") and f"is {relation} misc.file_dir = '" in line
    assert "neither of them inside the other" in line


@pytest.mark.parametrize(
    ("cert_dir", "file_dir"),
    [("data", "data2"), ("data/certs", "data/files"), ("a/data", "data"), ("data/../certs", "data")],
)
def test_directories_beside_each_other_are_accepted(tmp_path: Path, cert_dir: str, file_dir: str) -> None:
    load(tmp_path, places(cert_dir, file_dir))


def test_another_path_of_the_same_directory_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a second mount of it: no link tells, but device and inode do."""
    (tmp_path / "data").mkdir()
    (tmp_path / "mounted").mkdir()
    real = os.path.samefile

    def samefile(one: Any, other: Any) -> bool:
        return real(*(str(path).replace("/mounted", "/data") for path in (one, other)))

    monkeypatch.setattr("os.path.samefile", samefile)
    assert "is inside misc.file_dir" in complaint(tmp_path, places("mounted/certs", "data"))


@pytest.mark.parametrize("key", ["cert_dir", "file_dir"])
@pytest.mark.parametrize("place", ["/", "/tmp/..", "/etc/", "/home", "/var", "/usr"])
def test_system_directories_are_refused(tmp_path: Path, key: str, place: str) -> None:
    text = places(place, tmp_path / "x") if key == "cert_dir" else places(tmp_path / "x", place)
    assert re.match(rf"misc\.{key} = '.*': expected a directory of dduct's own, such as '/", complaint(tmp_path, text))


def test_a_cache_in_the_program_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    line = complaint(tmp_path, places("certs", "home"))
    assert "misc.file_dir" in line and "where the program is" in line


@pytest.mark.parametrize("folder", ["http", "https", "sha256"])
@pytest.mark.parametrize("key", ["auth_file", "upstream_ca"])
def test_files_named_by_keys_must_not_lie_in_file_dir(tmp_path: Path, key: str, folder: str) -> None:
    (tmp_path / "files" / folder).mkdir(parents=True)
    (tmp_path / "files" / folder / "mine").touch()
    line = complaint(tmp_path, places("certs", "files") + f"[proxy]\n{key} = 'files/{folder}/mine'\n")
    assert line.startswith(f"proxy.{key} = '") and "misc.file_dir" in line and f"'{folder}'" in line


def test_the_configuration_file_must_not_lie_in_file_dir(tmp_path: Path) -> None:
    inside = tmp_path / "data/http"
    inside.mkdir(parents=True)
    assert "this file ('" in complaint(inside, places(tmp_path / "certs", tmp_path / "data"))
