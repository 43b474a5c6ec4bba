"""What criteria say together: unknown is never GO, proven harm always NO-GO."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.criterion import Criterion, combine


@settings(deadline=None)
@given(st.lists(st.sampled_from(["met", "not met", "undecided", "unmeasured"]), max_size=6), st.data())
def test_unknown_never_gives_go_and_proven_harm_always_gives_no_go(statuses: list[Any], data: st.DataObject) -> None:
    criteria = [
        Criterion(name=str(at), status=status, waived=data.draw(st.booleans()), reason="")
        for at, status in enumerate(statuses)
    ]
    gating = [each.status for each in criteria if not each.waived]
    outcome = combine(criteria)
    assert (outcome == "NO-GO") == ("not met" in gating)
    assert (outcome == "GO") == (bool(gating) and set(gating) == {"met"})
