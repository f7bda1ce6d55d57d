"""A usual name is accepted at a glance, and only if the closer look would accept it."""

from __future__ import annotations

import re
from typing import List

import pytest

from storage import locations
from storage.locations import objection

NAMES: List[str] = [
    *(
        "https/a.example/x.deb",
        "https/a/x~y-1.0+b_%20.deb",
        "a",
        "/",
        "",
        "a//b",
        "a/",
        "/a",
        ".",
        "..",
        "a/..",
        "a/../b",
    ),
    *("a/.b", "a/...", "a/b.", "a/-b", "a/b.dduct", "a/b.dduct/c", "a/b.dductx", "a/\0", "a/\x7f", "a/é", "a/ b", " "),
    *("a/" * 32 + "b", "a/" * 33 + "b", "a/" + "b" * 200, "a/" + "b" * 249, "a/" + "b" * 250, "a/" + "é" * 125),
    *("/".join(["b" * 200] * 10), "/".join(["b" * 200] * 11), "a/b?c=d&e=%2F", "a/b:c;d=e", "a/\n", "a\n"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_glance_at_a_name_accepts_only_what_the_closer_look_accepts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_a_glance = objection("/cache", name)
    monkeypatch.setattr(locations, "_USUAL", re.compile("(?!)"))
    assert objection("/cache", name) == at_a_glance
