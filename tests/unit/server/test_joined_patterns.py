"""Patterns for volatile names are joined, and match what each of them matches."""

from __future__ import annotations

import re
from typing import List

import pytest

from fetching.naming import Naming, Parameters, storage_name
from protocol.http1 import Authority, Target
from server.joined_patterns import joined
from server.moving_names import VOLATILE

SHIPPED = tuple(re.compile(pattern) for pattern in VOLATILE)
PATHS: List[str] = [
    *("/dists/x/InRelease", "/dists/x/Packages.xz", "/pool/x_1.0_all.deb", "/repodata/repomd.xml", "/x/latest/y"),
    *("/v2/a/manifests/latest", "/v2/a/manifests/sha256:0", "/core.db.tar.gz", "/a-SNAPSHOT.jar", "/simple/"),
    *("/a/archive/main.zip", "/SHA256SUMS", "/x.latest-1", "/dist/a-stable.tgz", "/APKINDEX.tar.gz", "/quick/a"),
]


@pytest.mark.parametrize("path", PATHS)
def test_joined_patterns_find_what_each_of_them_finds(path: str) -> None:
    found = joined(SHIPPED)
    assert len(found) < len(SHIPPED) / 4
    assert any(one.search(path) for one in found) == any(one.search(path) for one in SHIPPED)


def test_a_pattern_with_flags_or_groups_is_searched_alone() -> None:
    texts = ["/a|/b$", "(?i)/C", "/(x)\\1", "/d", "(?u)/e"]
    naming = Naming((re.compile("."),), Parameters(()), joined(map(re.compile, texts)))
    assert len(naming.volatile) == 4
    found = {
        path: storage_name(Target("https", Authority("a.example", 443), path), naming)
        for path in ("/a/", "/b", "/b/x", "/c", "/xx", "/x", "/D", "/d", "/e")
    }
    volatile = {path for path, name in found.items() if name is not None and name.volatile}
    assert volatile == {"/a/", "/b", "/c", "/xx", "/d", "/e"}


def test_patterns_with_different_first_sets_stay_apart() -> None:
    found = joined(map(re.compile, ["[ab]x", "[abc]y", "[ab]z", "\\.x", "\\[y", ""]))
    assert [one.pattern for one in found] == ["(?:[ab]x)|(?:[ab]z)", "(?:[abc]y)", "(?:\\.x)", "(?:\\[y)", "(?:)"]
