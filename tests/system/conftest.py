"""Fixtures that look into the only process of a dduct."""

from __future__ import annotations

from typing import Any, List, Optional

import pytest

from fetching import polled_fetch
from fetching.polled_fetch import PolledFetch


@pytest.fixture
def polled(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """The names of objects that the poller's thread has stored and sent."""
    real, found = PolledFetch.keep, []

    def keep(fetch: PolledFetch) -> object:
        answer = real(fetch)
        if answer is not None:
            found.append(fetch.name.rpartition("/")[2])
        return answer

    monkeypatch.setattr(PolledFetch, "keep", keep)
    return found


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> List[PolledFetch]:
    """The misses that the poller's thread has begun."""
    real, found = polled_fetch.begin, []

    def begin(*arguments: Any) -> Optional[PolledFetch]:
        fetch = real(*arguments)
        if fetch is not None:
            found.append(fetch)
        return fetch

    monkeypatch.setattr(polled_fetch, "begin", begin)
    return found
