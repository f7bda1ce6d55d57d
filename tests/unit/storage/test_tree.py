"""Folders and files below the cache's directory, and links that lead out of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List

import pytest

from storage.record import Unstorable
from storage.space import Limits, SpaceLimits
from storage.tree import Tree


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_folder_that_becomes_a_link_is_found_out_within_a_second(tmp_path: Path) -> None:
    root, elsewhere, clock = tmp_path / "files", tmp_path / "elsewhere", Clock()
    tree = Tree(str(root), SpaceLimits(tmp_path, Limits), clock)
    place = f"{root}/https/some.thing/x.deb"
    os.close(tree.open_growing_file(place))
    (root / "https/some.thing").rename(elsewhere)
    (root / "https/some.thing").symlink_to(elsewhere)
    (elsewhere / "x.deb").touch()
    tree.remove(place)  # nothing is ever removed behind a link
    assert (elsewhere / "x.deb").exists()
    clock.now += 1.0
    with pytest.raises(Unstorable, match="symbolic link"):
        tree.open_growing_file(place)


def test_a_folder_is_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = Clock(), list[str]()
    tree = Tree(str(tmp_path), SpaceLimits(tmp_path, Limits), clock)

    def is_reached(root: str, path: str) -> bool:
        looks.append(path)
        return True

    monkeypatch.setattr("storage.tree.is_reached_directly", is_reached)
    monkeypatch.setattr("storage.tree._MAX_REACHED", 2)
    names: List[str] = ["x/1", "x/2", "y/1", "z/1", "x/3"]
    for name in names:
        os.close(tree.open_growing_file(f"{tmp_path}/https/{name}"))
    assert [path.rpartition("https/")[2] for path in looks] == ["x/1.dduct", "y/1.dduct", "z/1.dduct", "x/3.dduct"]
    clock.now += 1.0
    os.close(tree.open_growing_file(f"{tmp_path}/https/x/4"))
    assert len(looks) == 5
