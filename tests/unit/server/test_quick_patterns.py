"""Regular expressions that are quick enough to be filters."""

from __future__ import annotations

import pytest

from server.patterns import too_slow

QUICK = [
    r"",
    r"\.deb$",
    r"(?i)\.(iso|img)$",
    r"^/(?:a|b|c)+\.x$",
    r"^/.*-[0-9.]+\.tgz$",
    r"^/.*/.*\.deb$",
    r"^/(?:[^/]+/)*[^/]+\.rpm$",
    r"^.*/([^/]+)\.(tar\.gz|zip)$",
    r"^/v\d+\.\d+/.*$",
    r"/[^/]*\.deb$",
]


@pytest.mark.parametrize("text", QUICK)
def test_a_quick_filter_is_accepted(text: str) -> None:
    assert too_slow(text) is None
