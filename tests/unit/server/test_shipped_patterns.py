"""All filters that dduct has by default are quick."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import config as configuration
from server.config_values import FILTERS
from server.moving_names import VOLATILE
from server.patterns import too_slow

DEFAULTS = configuration.defaults(Path("/"))


@pytest.mark.parametrize("text", [pattern.pattern for pattern in (*DEFAULTS.proxy.filters, *DEFAULTS.cache.volatile)])
def test_a_default_filter_is_accepted(text: str) -> None:
    assert too_slow(text) is None


@pytest.mark.parametrize("text", (*VOLATILE, *FILTERS))
def test_the_shipped_filters_are_quick(text: str) -> None:
    """A start takes that for granted."""
    assert too_slow(text) is None
