"""The last thing that `anven demo` says of its canary, after a verdict that is GO whatever became of it."""

from __future__ import annotations

import pytest

from anven_pipelines.demo import ending
from anven_pipelines.demo_canary import Canary


@pytest.mark.parametrize(
    ("phase", "share", "said"),
    [
        ("completed", 1.0, "the canary completed"),
        ("rolled_back", 0.0, "all users are legacy's again: quality is proven to be more than 15 points worse"),
        ("running", 0.5, "the canary did not end[/bold yellow]: 50% of the users are the target's"),
    ],
)
def test_a_demo_ends_with_what_became_of_its_users(phase: str, share: float, said: str) -> None:
    step = {"at_s": 33.0, "share": share, "reasons": ["quality is proven to be more than 15 points worse"]}
    canary = Canary(
        phase=phase,
        share=share,
        steps=(step,),
        sent=520,
        failed=0,
        scored=520,
        exposure=None,
        rolled_back_s=None,
        seconds=33.0,
    )

    assert said in ending(canary)
