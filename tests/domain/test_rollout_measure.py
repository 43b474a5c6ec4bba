"""What the controller is told of simulated production: harm that is there is found, harm that is not there is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from anven_pipelines.domain.rollout_measure import UNITS, Window, assignment_of, compare, windows_of
from anven_pipelines.domain.rollout_plan import RolloutPlan
from anven_pipelines.domain.rollout_reading import READINGS
from anven_pipelines.spec_rollout import Metric, Rollout
from anven_pipelines.stats.sequential import BoundedMean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.domain.rollout_evidence import Comparison

T0 = datetime(2026, 3, 4, 12, tzinfo=UTC)
METRICS: tuple[Metric, ...] = ("quality", "errors", "safety", "contract", "ttft", "latency", "cost")
PLAN = RolloutPlan(workload="support", rollout=Rollout(), metrics=METRICS)
QUARTER, LAST = 1, 3
HARMS: Mapping[Metric, Mapping[str, Any]] = {
    "quality": {"quality": -0.10},
    "errors": {"errors": 0.06},
    "safety": {"safety": 0.04},
    "contract": {"contract": 0.06},
    "ttft": {"ttft_ms": 600.0},
    "latency": {"latency_ms": 2500.0},
    "cost": {"cost_usd": 0.02},
}


def production(n: int, *, share: float, seed: int = 1, **worse: float) -> pl.DataFrame:
    """Simulate a day of units; `worse` is added to the target's chance or value of a column."""
    rng = np.random.default_rng(seed)
    treated = rng.random(n) < share

    def chance(column: str, usual: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        return (rng.random(n) < usual + worse.get(column, 0.0) * treated).astype(np.float64)

    ttft = rng.lognormal(5.5, 0.5, n)
    return pl.DataFrame(
        {
            "unit": [f"{number:08x}" for number in range(n)],
            "seen_at": [T0 + timedelta(days=1) * (number / n) for number in range(n)],
            "treated": treated,
            "errors": chance("errors", 0.01),
            "contract": chance("contract", 0.01),
            "safety": chance("safety", 0.001),
            "quality": chance("quality", 0.9),
            "ttft_ms": ttft + worse.get("ttft_ms", 0.0) * treated,
            "latency_ms": 3 * ttft + worse.get("latency_ms", 0.0) * treated,
            "cost_usd": rng.lognormal(-5, 0.4, n) * np.where(treated, 0.5, 1) + worse.get("cost_usd", 0.0) * treated,
            "streamed": True,
            "timed": True,
            "left": False,
            "due": True,
            "fell_back": False,
            "moved": False,
        },
        schema=UNITS.schema,
        strict=False,
    )


GOOD = production(20_000, share=0.25)


def found(units: pl.DataFrame, *, stage: int = QUARTER, before: pl.DataFrame | None = None) -> dict[str, Comparison]:
    windows = windows_of(units, PLAN, entered_at=T0, now=T0 + timedelta(days=1))
    return {each.metric: each for each in compare(PLAN, stage, windows, before=before)}


def test_a_good_target_is_proven_in_every_metric_and_harmful_in_none() -> None:
    comparisons = found(GOOD)

    assert list(comparisons) == list(METRICS)
    assert all(each.is_proven(widened=2.0) and not each.is_harm for each in comparisons.values())


@pytest.mark.parametrize("metric", METRICS)
def test_harm_is_found_in_the_metric_that_it_is_in(metric: Metric) -> None:
    comparisons = found(production(20_000, share=0.25, **HARMS[metric]))

    assert [each.metric for each in comparisons.values() if each.is_harm] == [metric]
    assert not comparisons[metric].is_proven(widened=1.0)


def test_a_request_that_failed_is_late_and_worthless_and_has_no_form() -> None:
    failed = (pl.col("errors") > 0) & pl.col("treated")
    no_value = [
        pl.when(failed).then(None).otherwise(column).alias(column)
        for column in ("contract", "quality", "ttft_ms", "latency_ms")
    ]
    comparisons = found(production(20_000, share=0.25, errors=0.15).with_columns(no_value))

    assert {each.metric for each in comparisons.values() if each.is_harm} == {
        "quality",
        "errors",
        "contract",
        "ttft",
        "latency",
    }


@pytest.mark.parametrize(
    ("metric", "column", "share", "words"),
    [
        ("quality", "quality", 0.12, "of target were measured, 90% are needed"),
        ("safety", "safety", 0.12, "of target were measured, 90% are needed"),
        ("latency", "latency_ms", 0.02, "of target were measured, 99% are needed"),
        ("cost", "cost_usd", 0.02, "of target were measured, 99% are needed"),
        ("contract", "contract", 0.02, "of target were measured, 99% are needed"),
    ],
)
def test_a_metric_of_which_one_arm_lacks_values_is_unknown(
    metric: Metric, column: str, share: float, words: str
) -> None:
    lost = pl.col("treated") & (pl.int_range(pl.len()).over("treated") < share * pl.col("treated").sum())
    comparison = found(GOOD.with_columns(pl.when(lost).then(None).otherwise(column).alias(column)))[metric]

    assert comparison.unknown is not None
    assert words in comparison.unknown
    assert (comparison.harm, comparison.proof) == (None, None)


def test_a_failed_request_does_not_pass_an_unjudged_answer_as_safe() -> None:
    """A fifth of the target's units met a failure, and an answer that nobody judged."""
    partly = pl.col("treated") & (pl.int_range(pl.len()).over("treated") < 0.2 * pl.col("treated").sum())
    unjudged = GOOD.with_columns(
        errors=pl.when(partly).then(0.5).otherwise("errors"), safety=pl.when(partly).then(None).otherwise("safety")
    )
    unknown = found(unjudged)["safety"].unknown
    assert unknown is not None
    assert "of target were measured, 90% are needed" in unknown


def test_a_unit_that_got_no_answer_at_all_is_neither_safe_nor_unsafe_nor_missing() -> None:
    """Half of the target's units failed, and of the other ones' answers every fourth is unsafe: that is a fourth."""
    place = pl.int_range(pl.len()).over("treated")
    failed, unsafe = pl.col("treated") & (place % 2 == 0), pl.col("treated") & (place % 8 == 1)
    units = GOOD.with_columns(
        errors=pl.when(failed).then(1.0).otherwise("errors"),
        safety=pl.when(failed).then(None).when(unsafe).then(1.0).otherwise(0.0),
    )
    measure = READINGS["safety"]
    judged = units.filter("treated", measure.applies).select(bad=measure.bad)
    assert judged["bad"].null_count() == 0
    assert judged["bad"].mean() == pytest.approx(0.25, abs=0.01)
    comparison = found(units)["safety"]
    assert comparison.unknown is None
    assert comparison.is_harm


def hung_up(units: pl.DataFrame, gone: pl.Expr) -> pl.DataFrame:
    """Let some units' clients leave before they have an answer whole."""
    return units.with_columns(left=gone, timed=~gone, streamed=~gone, contract=pl.when(~gone).then("contract"))


@pytest.mark.parametrize("metric", ["ttft", "latency", "contract"])
def test_clients_that_hang_up_on_the_slow_target_leave_its_speed_and_form_in_doubt(metric: Metric) -> None:
    """Those that waited longest are not timed: what is left of the target is as fast as legacy."""
    comparison = found(hung_up(GOOD, pl.col("treated") & (pl.int_range(pl.len()) % 10 == 0)))[metric]

    assert not comparison.is_proven(widened=10.0)
    assert "clients hung up, or nothing was measured, on " in comparison.words
    alike = found(hung_up(GOOD, pl.int_range(pl.len()) % 10 == 0))[metric]
    assert alike.is_proven(widened=2.0)


def test_scores_that_lack_more_often_in_one_arm_prove_no_quality_and_hide_no_harm() -> None:
    """Users who liked the answer score it: one in twelve of the target's is silent, which 90 % would let pass."""
    silent = pl.col("treated") & (pl.int_range(pl.len()) % 12 == 0)

    def scored(units: pl.DataFrame) -> Comparison:
        return found(units.with_columns(quality=pl.when(silent).then(None).otherwise("quality")))["quality"]

    assert not scored(GOOD).is_proven(widened=10.0)
    assert scored(production(20_000, share=0.25, quality=-0.1)).is_harm


def long_ones_broken(n: int, share: float, *, broken: float = 0.5) -> tuple[pl.DataFrame, pl.Series]:
    """A tenth of all answers is long, and of those as many have no form; in both arms alike."""
    rng = np.random.default_rng(7)
    long = rng.random(n) < 0.1
    contract = (long & (rng.random(n) < broken)).astype(np.float64)
    return production(n, share=share).with_columns(contract=pl.Series(contract)), pl.Series(long)


def test_long_answers_that_legacys_clients_leave_are_no_harm_to_the_targets_form() -> None:
    """The target is faster, so that its clients see its long answers, broken or not."""
    units, long = long_ones_broken(60_000, 0.25)
    comparison = found(hung_up(units, pl.lit(long) & ~pl.col("treated")))["contract"]
    assert comparison.unknown is None
    assert not comparison.is_harm
    assert not comparison.is_proven(widened=10.0)
    assert "clients hung up, or nothing was measured, on 0 units of target and " in comparison.words

    worse = pl.when("treated").then(pl.int_range(pl.len()) % 3 == 0).otherwise("contract").cast(pl.Float64)
    assert found(hung_up(units.with_columns(contract=worse), pl.lit(long) & ~pl.col("treated")))["contract"].is_harm


def test_long_answers_that_legacys_clients_left_before_are_no_harm_once_it_has_no_traffic() -> None:
    units, long = long_ones_broken(40_000, 0.5)
    before = hung_up(units, pl.lit(long)).filter(~pl.col("treated"))
    alone = units.with_columns(treated=pl.lit(value=True))
    comparison = found(alone, stage=LAST, before=before)["contract"]
    assert not comparison.is_harm
    assert comparison.doubt is None, "a target that nobody hangs up on is not held up by that"

    worse = alone.with_columns(contract=(pl.int_range(pl.len()) % 3 == 0).cast(pl.Float64))
    assert found(worse, stage=LAST, before=before)["contract"].is_harm


@pytest.mark.parametrize("lacking", ["target", "legacy"])
def test_scores_that_lack_unevenly_are_no_harm_by_themselves(lacking: str) -> None:
    """A judge fails on a sixth of the target's right answers, or of legacy's wrong ones; half are right."""
    units, rng = production(60_000, share=0.25), np.random.default_rng(7)
    right, of_target = rng.random(60_000) < 0.5, units["treated"].to_numpy()
    fails = (of_target == (lacking == "target")) & (right == (lacking == "target")) & (rng.random(60_000) < 1 / 6)
    scores = pl.Series(np.where(fails, np.nan, right)).fill_nan(None)
    comparison = found(units.with_columns(quality=scores))["quality"]

    assert comparison.unknown is None
    assert not comparison.is_harm
    assert not comparison.is_proven(widened=10.0)
    assert "nothing was measured, on " in comparison.words


def test_a_recent_window_that_lacks_values_claims_no_harm() -> None:
    """What is left of it is bad in the target alone, and says nothing of what is not there."""
    late = pl.col("seen_at") > T0 + timedelta(hours=18)
    lost = late & (pl.int_range(pl.len()) % 3 > 0)
    good = production(60_000, share=0.25)
    units = good.with_columns(
        latency_ms=pl.when(lost).then(None).when(late & pl.col("treated")).then(1e5).otherwise("latency_ms")
    )
    windows = windows_of(units, PLAN, entered_at=T0, now=T0 + timedelta(days=1) - timedelta(seconds=1))
    whole = Window(good, windows[0].harm_level)

    assert not {each.metric: each for each in compare(PLAN, QUARTER, [whole, windows[1]])}["latency"].is_harm


def test_what_was_never_measured_is_unknown() -> None:
    comparisons = found(GOOD.with_columns(quality=pl.lit(None, dtype=pl.Float64), due=pl.lit(value=False)))

    assert comparisons["quality"].unknown == "0 observations; at least one is needed: wait for traffic"


def test_without_units_all_is_unknown() -> None:
    assert all(each.unknown for each in found(UNITS.empty()).values())


def test_harm_that_begins_late_is_found_in_the_recent_window_while_the_stage_hides_it() -> None:
    day = production(60_000, share=0.25)
    late = day.with_columns(
        errors=pl.when(pl.col("treated") & (pl.col("seen_at") > T0 + timedelta(hours=22)))
        .then((pl.int_range(pl.len()) % 8 == 0).cast(pl.Float64))
        .otherwise("errors")
    )
    now = T0 + timedelta(hours=24)
    whole, recent = windows_of(late, PLAN, entered_at=T0, now=now - timedelta(seconds=1))

    def harm(windows: list[Window]) -> bool:
        return {each.metric: each for each in compare(PLAN, QUARTER, windows)}["errors"].is_harm

    assert not harm([whole])
    assert harm([whole, recent])


def test_the_windows_spend_no_more_than_the_error_rate_of_the_stage() -> None:
    spent = sum(
        windows_of(GOOD, PLAN, entered_at=T0, now=T0 + hours * timedelta(hours=6))[1].harm_level
        for hours in range(2000)
    )
    whole = windows_of(GOOD, PLAN, entered_at=T0, now=T0)[0].harm_level

    assert 0.999 * PLAN.harm_level < spent + whole <= PLAN.harm_level
    assert PLAN.harm_level * len(PLAN.metrics) * (len(PLAN.stages) + 1) == pytest.approx(PLAN.rollout.level)


def test_after_legacy_has_no_traffic_the_target_is_held_against_it_as_it_was() -> None:
    alone = production(20_000, share=1.0)

    assert all(each.is_proven(widened=1.0) for each in found(alone, stage=LAST, before=GOOD).values())
    for metric, harm in HARMS.items():
        comparisons = found(production(20_000, share=1.0, **harm), stage=LAST, before=GOOD)
        assert [each.metric for each in comparisons.values() if each.is_harm] == [metric]


@pytest.mark.parametrize("metric", ["ttft", "latency", "cost", "contract"])
def test_clients_that_hang_up_once_legacy_has_no_traffic_leave_what_is_timed_in_doubt(metric: Metric) -> None:
    """Three in ten give up on the target: of those that stay it looks as good as legacy did."""
    alone = production(6_000, share=1.0)
    gone = pl.int_range(pl.len()) % 10 < 3
    comparison = found(hung_up(alone, gone), stage=LAST, before=GOOD)[metric]

    assert not comparison.is_proven(widened=10.0)
    assert "clients hung up, or nothing was measured, on 30.0% of the units of target and 0.0% of" in comparison.words
    few, many = (pl.int_range(pl.len()) % 200 < gone for gone in (1, 60))
    assert found(alone.with_columns(left=few), stage=LAST, before=GOOD)[metric].is_proven(widened=1.0)
    as_before = found(alone.with_columns(left=many), stage=LAST, before=GOOD.with_columns(left=many))[metric]
    assert as_before.is_proven(widened=1.0)


def test_with_nothing_to_compare_with_all_is_unknown() -> None:
    why = "legacy has no traffic in this stage and had none before that could be compared with"

    assert {each.unknown for each in found(production(500, share=1.0), stage=LAST).values()} == {why}


def test_units_that_one_arm_lost_are_a_mismatch() -> None:
    dealt = assignment_of(PLAN, QUARTER, GOOD)
    assert (dealt.target + dealt.legacy, dealt.p_value) == (20_000, 1.0)
    lost = GOOD.filter(~pl.col("treated") | (pl.int_range(pl.len()) % 5 > 0))
    found_p = assignment_of(PLAN, QUARTER, lost).p_value
    assert found_p is not None
    assert found_p < 1e-6
    assert assignment_of(PLAN, LAST, production(50, share=1.0)).p_value is None


def test_by_hand_a_quality_limit_is_a_share_of_the_legacy_mean_whose_uncertainty_is_paid_for() -> None:
    """Of three parts of the error rate one is the difference's and one the mean's, each one half."""
    comparison = found(GOOD)["quality"]
    legacy = GOOD.filter(~pl.col("treated"))["quality"].to_numpy()
    mean = BoundedMean(level=1 - PLAN.rollout.level).update(1 - legacy).current()

    assert comparison.proof_limit == pytest.approx(0.025 * (1 - mean.upper))
    assert comparison.proof is not None
    assert comparison.proof.level == pytest.approx(1 - PLAN.rollout.level)
