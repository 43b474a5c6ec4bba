"""A sample rich in failures still gives the true failure rate, with an interval that counts what was unseen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from anven_pipelines.stats.sampling import (
    FAILED_SHARE,
    PASSED_SHARE,
    Looked,
    draw_sample,
    plan_sample,
    stratified_rate,
)

SHARES = {"failed": FAILED_SHARE, "passed": PASSED_SHARE}


def test_a_plan_takes_its_shares_and_at_least_thirty() -> None:
    plan = plan_sample({"failed": 200, "passed": 10_000}, shares=SHARES)
    assert [(stratum.name, stratum.drawn) for stratum in plan] == [("failed", 30), ("passed", 200)]
    assert plan[1].weight == 50
    small = plan_sample({"failed": 12, "passed": 0}, shares=SHARES)
    assert [(stratum.name, stratum.drawn) for stratum in small] == [("failed", 12)]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32))
def test_every_draw_is_of_its_stratum_and_the_weights_add_up(failed: int, passed: int, seed: int) -> None:
    strata = np.random.default_rng(seed).permutation(["failed"] * failed + ["passed"] * passed)
    plan = plan_sample({"failed": failed, "passed": passed}, shares=SHARES)
    sample = draw_sample(strata, plan=plan, rng=np.random.default_rng(seed))
    assert sample.weights.sum() == pytest.approx(failed + passed)
    assert (np.diff(sample.items) > 0).all()
    for stratum in plan:
        of_it = strata[sample.items] == stratum.name
        assert of_it.sum() == stratum.drawn
        assert (sample.weights[of_it] == stratum.weight).all()


def test_the_same_seed_draws_the_same_items() -> None:
    strata = np.repeat(["failed", "passed"], [300, 3000])
    plan = plan_sample({"failed": 300, "passed": 3000}, shares=SHARES)
    first, again, other = (draw_sample(strata, plan=plan, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.items.tolist() == again.items.tolist() != other.items.tolist()


def test_the_estimate_worked_by_hand() -> None:
    # 100 of 1,000 items failed the machine's check: 0.1 x 24/30 + 0.9 x 1/50.
    found = stratified_rate([Looked(100, 30, 24), Looked(900, 50, 1)], level=0.95)
    assert found.estimate == pytest.approx(0.098)


def test_a_stratum_without_failures_has_the_exact_bound() -> None:
    # 10 of 100 are drawn: at most 30 failures may hide with a chance of 2.5 %, for 31 the chance is below.
    bound = round(100 * stratified_rate([Looked(100, 10, 0)], level=0.95).upper)
    assert stats.hypergeom(100, bound, 10).pmf(0) >= 0.025 > stats.hypergeom(100, bound + 1, 10).pmf(0)
    mirrored = stratified_rate([Looked(100, 10, 10)], level=0.95)
    assert 1 - mirrored.lower == pytest.approx(bound / 100)


def test_one_large_stratum_is_wilsons_interval_and_a_census_has_no_doubt() -> None:
    found = stratified_rate([Looked(10**12, 50, 7)], level=0.95)
    wilson = stats.binomtest(7, 50).proportion_ci(0.95, method="wilson")
    assert (found.lower, found.upper) == pytest.approx((wilson.low, wilson.high), abs=1e-9)
    census = stratified_rate([Looked(50, 50, 7)], level=0.95)
    assert census.lower == census.estimate == census.upper == pytest.approx(0.14)


@pytest.mark.parametrize(("missed", "false_alarm"), [(0.01, 0.2), (0.0, 0.5), (0.1, 0.1)])
def test_it_is_unbiased_and_covers_where_the_plain_rate_does_not(missed: float, false_alarm: float) -> None:
    # The machine calls 400 of 4,000 failed: of these some are none, and some of the passes are failures.
    rng = np.random.default_rng(8)
    strata = np.repeat(["failed", "passed"], [400, 3600])
    failures = np.r_[np.arange(400) >= 400 * false_alarm, np.arange(3600) < 3600 * missed]
    plan, truth = plan_sample({"failed": 400, "passed": 3600}, shares=SHARES), failures.mean()
    errors, covered, plain = [], 0, 0
    for _ in range(800):
        sample = draw_sample(strata, plan=plan, rng=rng)
        seen = failures[sample.items]
        looked = [
            Looked(stratum.size, stratum.drawn, int(seen[strata[sample.items] == stratum.name].sum()))
            for stratum in plan
        ]
        found = stratified_rate(looked, level=0.95)
        assert found.estimate == pytest.approx(sample.weights @ seen / 4000)
        errors.append(found.estimate - truth)
        covered += found.lower <= truth <= found.upper
        plain += abs(seen.mean() - truth) < 1.96 * math.sqrt(seen.mean() * (1 - seen.mean()) / seen.size)
    assert abs(np.mean(errors)) < 3 * np.std(errors) / math.sqrt(800)
    assert covered / 800 > 0.93
    assert plain / 800 < 0.6


@pytest.mark.parametrize(
    ("strata", "level", "words"),
    [
        ([], 0.95, "0 strata"),
        ([Looked(10, 0, 0)], 0.95, "0 failures in 0 drawn of 10"),
        ([Looked(10, 5, 6)], 0.95, "6 failures in 5 drawn"),
        ([Looked(10, 11, 0)], 0.95, "11 drawn of 10"),
        ([Looked(10, 5, 1)], 1.0, "level 1.0"),
    ],
)
def test_impossible_findings_are_refused(strata: list[Looked], level: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        stratified_rate(strata, level=level)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": {"failed": -1}}, "-1 items"),
        ({"sizes": {"odd": 5}}, "stratum odd has 5 items and the share None"),
        ({"shares": {"failed": 1.5, "passed": 0.1}}, "share 1.5"),
        ({"sizes": {"failed": 0}}, "0 items"),
        ({"least": 0}, "at least 0 a stratum"),
    ],
)
def test_impossible_plans_are_refused(change: dict[str, Any], words: str) -> None:
    given_values: dict[str, Any] = {"sizes": {"failed": 10, "passed": 10}, "shares": SHARES} | change
    with pytest.raises(ValueError, match=words):
        plan_sample(**given_values)


def test_a_plan_for_other_items_is_refused() -> None:
    plan = plan_sample({"failed": 3, "passed": 5}, shares=SHARES)
    with pytest.raises(ValueError, match="plan again"):
        draw_sample(np.repeat(["failed", "passed"], [4, 4]), plan=plan, rng=np.random.default_rng(1))
