"""What a person reads at the terminal: the verdict and what it rests on."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Any

from rich.console import Console

from anven_pipelines.domain.holdout import Attempt
from anven_pipelines.domain.sign_off import decide
from anven_pipelines.verdict_view import show
from tests.builders import a_migration, paired_scores, scores_of

if TYPE_CHECKING:
    import polars as pl

NOISE = {"reason": "two answers of the legacy model to one prompt differ in score in 3.0% of pairs"}


def shown(scores: pl.DataFrame, **options: Any) -> str:
    verdict = decide(
        scores, {"status": "met", "reason": "saves"}, a_migration(), digests={"golden_dataset": "a" * 64}, **options
    )
    written = StringIO()
    show(verdict, Console(file=written, width=400))
    return written.getvalue()


def test_what_was_compared_stands_there() -> None:
    told = shown(paired_scores(both=900, lost=10, gained=10, neither=80), noise_floor=NOISE)
    assert "what was compared: ratio of the target's mean score to the legacy's" in told
    assert "over 1,000 sealed items; " in told
    assert "power: these items can certify a margin of " in told
    assert "first attempt of this workload: a GO is false with a chance of at most 0.05" in told
    assert "noise floor, beside the margin of 2.73 points: two answers" in told
    assert "burnt" not in told


def test_a_later_attempt_tells_its_number() -> None:
    told = shown(paired_scores(both=900, lost=10, gained=10, neither=80), attempt=Attempt(3))
    assert "attempt 3 of this workload" in told
    assert "a chance of at most 0.143" in told


def test_items_without_a_score_are_counted_and_their_worst_case_is_told() -> None:
    told = shown(scores_of([1.0] * 500, [1.0] * 470 + [None] * 30))
    assert "30 unmeasured items count as the worst case, which changed the outcome" in told
    assert "over 470 of 500 sealed items" in told
    assert "application = helpdesk  470 of 500" in told
