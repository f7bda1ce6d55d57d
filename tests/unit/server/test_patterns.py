"""Regular expressions that are too slow to be filters."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from fetching.naming import LONGEST_PATH, Naming, Parameters, storage_name
from protocol.http1 import parse_absolute
from server import config as configuration
from server.patterns import too_slow

DEFAULTS = configuration.defaults(Path("/")).proxy.filters

SLOW = [
    r"^/(?:[a-z]+)+\.deb$",
    r"^/([^/]+/?)+\.deb$",
    r"^/(?:[^.]+)+\.deb$",
    r"^/(?:[^!]+)+$",
    r"^/(?:\S+)+\.deb$",
    r"^/(?:a+){1,9}!",
    r"^/v2/(?:[a-z0-9]+(?:[._-]?[a-z0-9]+)*/?)+/blobs/",
    r"(?i)^/(?:[A-Z]+)+\.DEB$",
    r"^/(?P<sha256>(?:[0-9a-f]+)+)$",
]


@pytest.mark.parametrize("text", SLOW)
def test_a_filter_that_backtracks_is_found_quickly(text: str) -> None:
    started = time.thread_time()
    assert too_slow(text)
    assert time.thread_time() - started < 10


@pytest.mark.parametrize("key", ["proxy.filters", "cache.volatile"])
def test_the_refusal_names_the_key_and_what_helps(tmp_path: Path, key: str) -> None:
    file = tmp_path / "x.toml"
    section, _, name = key.partition(".")
    file.write_text(f"[{section}]\n{name} = ['^/ok$', '^/(?:[a-z]+)+!']\n")
    with pytest.raises(configuration.ConfigError, match=rf"{re.escape(key)}.*begin it with \^") as caught:
        configuration.load(file, tmp_path)
    assert "^/(?:[a-z]+)+!" in str(caught.value)


def test_a_leading_wildcard_is_anchored(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[proxy]\nfilters = ['.*\\.deb$']\n")
    (pattern,) = configuration.load(file, tmp_path).proxy.filters
    assert pattern == re.compile(r"^.*\.deb$")


def test_a_path_longer_than_was_tried_has_no_name() -> None:
    naming = Naming(DEFAULTS, Parameters([]))
    longest = "/" + "x" * (LONGEST_PATH - 5) + ".deb"
    for path, named in (
        (longest, True),
        ("/x" + longest[1:], False),
        ("/" + "%41" * (LONGEST_PATH - 5) + ".deb", True),
    ):
        target = parse_absolute(b"http://origin.test" + path.encode())
        assert (storage_name(target, naming) is not None) is named
