"""What the tests of connections share."""

from __future__ import annotations

from typing import Iterator

import pytest
from support.layers import (
    LAYERS,
)
from support.pairs import Pairs


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    with Pairs() as pairs:
        yield pairs


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> str:
    return str(request.param)
