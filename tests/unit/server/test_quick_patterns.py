"""Regular expressions that are quick enough to be filters: usual ones, and all that dduct has by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import config as configuration
from server.config_values import FILTERS
from server.moving_names import VOLATILE
from server.patterns import too_slow

DEFAULTS = configuration.defaults(Path("/")).proxy.filters

QUICK = [
    *(pattern.pattern for pattern in (*DEFAULTS, *configuration.defaults(Path("/")).cache.volatile)),
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


@pytest.mark.parametrize("text", (*VOLATILE, *FILTERS))
def test_the_shipped_filters_are_quick(text: str) -> None:
    """A start takes that for granted."""
    assert too_slow(text) is None
