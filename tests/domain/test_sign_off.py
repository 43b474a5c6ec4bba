"""The verdict: GO on proof of all, one open gate after the other, and the same bytes each time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from anven_pipelines.domain.holdout import Attempt
from anven_pipelines.domain.sign_off import Verdict, decide, explain_burnt
from tests.builders import a_migration, paired_scores, scores_of

if TYPE_CHECKING:
    from anven_pipelines.spec import Migration

DIGESTS = {"golden_dataset": "a" * 64, "scores": "b" * 64}
CHEAPER = {"status": "met", "reason": "pays back at once"}


def good_scores(items: int = 1000) -> pl.DataFrame:
    ttft = np.random.default_rng(1).gamma(4, 25, items)
    return paired_scores(both=items - 100, lost=10, gained=10, neither=80).with_columns(
        legacy_ttft_ms=pl.Series(ttft), target_ttft_ms=pl.Series(ttft + 5.0)
    )


def slower_by(milliseconds: float | None) -> pl.DataFrame:
    return good_scores().with_columns(target_ttft_ms=pl.col("legacy_ttft_ms") + pl.lit(milliseconds, dtype=pl.Float64))


def everything_gates() -> Migration:
    return a_migration(sign_off={"quality_margin": 0.03, "waive": ["safety"]})


def verdict_on(scores: pl.DataFrame, migration: Migration | None = None, cost: dict[str, Any] | None = None) -> Verdict:
    return decide(scores, cost or CHEAPER, migration or everything_gates(), digests=DIGESTS)


def test_all_good_is_go() -> None:
    verdict = verdict_on(good_scores())
    assert verdict.verdict == "GO"
    assert {each.name: each.status for each in verdict.criteria} == {
        "quality": "met",
        "missingness": "met",
        "segments": "met",
        "ttft": "met",
        "cost": "met",
        "safety": "unmeasured",
        "holdout": "met",
    }
    assert verdict.waived == ["safety"]
    assert "safety: unmeasured (waived by the migration file)" in "\n".join(verdict.reasons)


@pytest.mark.parametrize(
    ("scores", "cost", "waive", "outcome", "reason"),
    [
        (good_scores(), CHEAPER, [], "INCONCLUSIVE", "safety: unmeasured: no safety suite"),
        (slower_by(900.0), CHEAPER, ["safety"], "NO-GO", "ttft: not met"),
        (slower_by(None), CHEAPER, ["safety"], "INCONCLUSIVE", "ttft: unmeasured: time to first token was measured"),
        (good_scores(), {"status": "unmeasured", "reason": "no"}, ["safety"], "INCONCLUSIVE", "cost: unmeasured: no"),
        (good_scores(), {"status": "not met", "reason": "dearer"}, ["safety"], "NO-GO", "cost: not met: dearer"),
        (good_scores(), {"status": "undecided", "reason": "wide"}, ["safety"], "INCONCLUSIVE", "cost: undecided"),
        (good_scores(150), CHEAPER, ["safety", "ttft"], "INCONCLUSIVE", "quality: undecided: neither side is proven"),
        (good_scores()[:2], CHEAPER, ["safety", "ttft"], "INCONCLUSIVE", "quality: unmeasured: too few"),
        (good_scores()[:0], CHEAPER, ["safety", "ttft"], "INCONCLUSIVE", "quality: unmeasured: too few"),
        (paired_scores(both=700, lost=200, gained=10), CHEAPER, ["safety", "ttft"], "NO-GO", "quality: not met: worse"),
    ],
)  # fmt: skip
def test_one_open_gate_is_no_go_or_inconclusive(
    scores: pl.DataFrame, cost: dict[str, str], waive: list[str], outcome: str, reason: str
) -> None:
    migration = a_migration(sign_off={"quality_margin": 0.03, "waive": waive})
    verdict = verdict_on(scores, migration, cost)
    assert verdict.verdict == outcome
    assert any(each.startswith(reason) for each in verdict.reasons), verdict.reasons


def test_a_difference_in_missingness_blocks_a_winner() -> None:
    legacy: list[float | None] = [*[0.0] * 500, *[1.0] * 500]
    target: list[float | None] = [1.0] * 980 + [None] * 20
    migration = a_migration()
    assert verdict_on(scores_of(legacy, [1.0] * 1000), migration).verdict == "GO"
    blocked = verdict_on(scores_of(legacy, target), migration)
    assert blocked.quality.outcome == "not worse"
    assert blocked.verdict == "INCONCLUSIVE"
    assert any("the arms differ in what was measured" in reason for reason in blocked.reasons)


def test_a_harmed_segment_blocks_unless_it_is_waived_by_name() -> None:
    bad = paired_scores(both=100, lost=60, gained=0).with_columns(
        application=pl.lit("billing"), item_id="bad-" + pl.col("item_id"), cluster="bad-" + pl.col("item_id")
    )
    scores = pl.concat([paired_scores(both=1500, lost=0, gained=200), bad])
    verdict = verdict_on(scores, a_migration())
    assert verdict.quality.outcome == "not worse"
    assert verdict.verdict == "NO-GO"
    assert any("application = billing" in reason for reason in verdict.reasons)
    waived = a_migration(sign_off={"quality_margin": 0.03, "waive": ["segments", "ttft", "cost", "safety"]})
    assert verdict_on(scores, waived).verdict == "GO"


def test_open_items_never_reach_the_verdict() -> None:
    sealed = paired_scores(both=900, lost=5, gained=5)
    opened = paired_scores(both=0, lost=900, gained=0).with_columns(
        split=pl.lit("open"), item_id="open-" + pl.col("item_id")
    )
    assert (
        verdict_on(pl.concat([sealed, opened]), a_migration()).to_json() == verdict_on(sealed, a_migration()).to_json()
    )


def test_the_same_inputs_give_the_same_bytes_in_any_row_order() -> None:
    scores = good_scores()
    first = verdict_on(scores).to_json()
    assert verdict_on(scores.sample(fraction=1, shuffle=True, seed=3)).to_json() == first
    assert Verdict.model_validate_json(first).to_json() == first
    assert list(json.loads(first)) == sorted(json.loads(first))


def test_items_that_a_failed_sign_off_has_seen_need_a_waiver_that_the_verdict_tells() -> None:
    scores = good_scores()
    burnt = scores["cluster"].head(3).to_list()
    strict = decide(scores, CHEAPER, everything_gates(), digests=DIGESTS, burnt=burnt)
    waiver = a_migration(sign_off={"quality_margin": 0.03, "waive": ["safety", "holdout"]})
    waived = decide(scores, CHEAPER, waiver, digests=DIGESTS, burnt=burnt)
    assert (strict.verdict, waived.verdict) == ("INCONCLUSIVE", "GO")
    assert "holdout: undecided (waived by the migration file): 3 of 1000 sealed items" in "\n".join(waived.reasons)


def test_a_burnt_item_is_known_by_its_id_too() -> None:
    scores = good_scores().with_columns(cluster=pl.lit("conversation of ") + pl.col("item_id"))
    verdict = decide(scores, CHEAPER, everything_gates(), digests=DIGESTS, burnt=scores["item_id"].head(3).to_list())
    assert "3 of 1000 sealed items" in "\n".join(verdict.reasons)


def test_a_verdict_that_is_not_go_says_what_the_next_attempt_needs() -> None:
    assert explain_burnt(verdict_on(good_scores())) is None
    undecided = verdict_on(good_scores(150), a_migration(sign_off={"quality_margin": 0.03, "waive": ["safety"]}))
    assert f"needs about {undecided.quality.n_needed:,} new ones" in str(explain_burnt(undecided))


def test_the_noise_floor_stands_beside_the_quality() -> None:
    noise = {"status": "measured", "disagreement": 0.1 + 0.2}
    verdict = decide(good_scores(), CHEAPER, everything_gates(), digests=DIGESTS, noise_floor=noise)
    assert verdict.noise_floor == {"status": "measured", "disagreement": 0.3}
    assert verdict_on(good_scores()).noise_floor is None


@pytest.mark.parametrize(
    ("attempt", "items_overlap", "said"),
    [
        (1, False, "first attempt of this workload: a GO is false with a chance of at most 0.05"),
        (
            2,
            False,
            "each on items that no other has judged: that any of 2 gives a false GO has a chance of at most 0.0975",
        ),
        (
            2,
            True,
            "with items that more than one has judged: that any of 2 gives a false GO has a chance of at most 0.1",
        ),
    ],
)
def test_attempts_add_up(attempt: int, items_overlap: bool, said: str) -> None:
    migration = everything_gates()
    verdict = decide(good_scores(), CHEAPER, migration, digests=DIGESTS, attempt=Attempt(attempt, items_overlap))
    assert verdict.families["attempts"].endswith(said)
