"""The table of a fill's states."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache import Cache, Lead
from storage.record import Metadata
from storage.store import Key
from transfers.states import COMPLETE, TRANSITIONS, FillState

META = Metadata("https://some.thing/x.deb", (), 1000.0)


def test_a_state_is_final_if_none_follows() -> None:
    assert set(TRANSITIONS) == set(FillState)
    assert {state for state in FillState if state.final} == {state for state in FillState if not TRANSITIONS[state]}
    assert {state for state in FillState if not state.final} == {FillState.ASKING, FillState.FILLING}


def test_a_fill_is_complete_only_after_it_has_begun() -> None:
    assert not TRANSITIONS[FillState.ASKING] & COMPLETE and TRANSITIONS[FillState.FILLING] >= COMPLETE


@pytest.mark.parametrize("end", ["fail", "decline", "renew"])
def test_the_first_end_of_a_fill_stays(tmp_path: Path, end: str) -> None:
    claim = Cache(tmp_path).claim(Key("https/some.thing/x.deb"))
    assert isinstance(claim, Lead)
    fill = claim.fill
    fill.start(META, 3)
    fill.fail("the first") if end == "fail" else getattr(fill, end)()
    state = fill.state
    assert state.final
    fill.fail("the second")
    fill.decline()
    fill.close()
    assert fill.state is state and fill.cause == ("the first" if end == "fail" else None)


def test_an_ended_fill_does_not_start(tmp_path: Path) -> None:
    claim = Cache(tmp_path).claim(Key("https/some.thing/x.deb"))
    assert isinstance(claim, Lead)
    claim.fill.decline()
    with pytest.raises(AssertionError, match="DECLINED does not become FILLING"):
        claim.fill.start(META, None)
    claim.fill.close()
