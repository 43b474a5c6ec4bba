from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.paired import difference_interval, items_needed, noninferiority, ratio_interval
from anven_pipelines.stats.pairs import MIN_CLUSTERS, MIN_PAIRS
from anven_pipelines.stats.score import evidence_of_counts

if TYPE_CHECKING:
    from collections.abc import Callable

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def table(*, both: int, gained: int, lost: int, n: int) -> tuple[FloatArray, FloatArray]:
    """Target and legacy scores with the given counts."""
    cells = [both, gained, lost, n - both - gained - lost]
    return np.repeat([1.0, 1.0, 0.0, 0.0], cells), np.repeat([1.0, 0.0, 1.0, 0.0], cells)


GSM = table(both=1258 - 45, gained=29, lost=45, n=1319)  # recorded answers of two real models
GSM_SMALL = table(both=1258 - 165, gained=15, lost=165, n=1319)


@st.composite
def samples(draw: st.DrawFn) -> tuple[FloatArray, FloatArray, IntArray | None]:
    """Right or wrong, graded, clustered and degenerate samples."""
    n = draw(st.integers(MIN_PAIRS, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = draw(st.sampled_from([1, 4, 1000]))
    legacy = np.minimum(rng.integers(0, steps + 1, n), draw(st.sampled_from([0, steps, steps]))) / steps
    changed = rng.random(n) < draw(st.sampled_from([0.0, 0.1, 0.5]))
    target = np.where(changed, rng.integers(0, steps + 1, n) / steps, legacy)
    clusters = np.arange(n) // draw(st.integers(1, n // MIN_CLUSTERS)) if draw(st.booleans()) else None
    return target, legacy, clusters


class TestDifferenceInterval:
    def test_the_recorded_models_differ_by_a_point_or_so(self) -> None:
        interval = difference_interval(*GSM, level=0.95)
        assert interval.estimate == pytest.approx(-0.0121, abs=5e-5)
        assert (interval.lower, interval.upper) == pytest.approx((-0.0249, 0.0006), abs=1e-3)

    def test_no_discordant_pair_gives_the_bounds_known_in_closed_form(self) -> None:
        interval = difference_interval(*table(both=20, gained=0, lost=0, n=30), level=0.95)
        z2 = 1.959964**2
        assert (interval.lower, interval.upper) == pytest.approx((-z2 / (30 + z2), z2 / (30 + z2)), abs=1e-6)

    @pytest.mark.parametrize(("gained", "lost", "n"), [(2, 9, 40), (0, 7, 25), (12, 0, 12), (0, 12, 12), (30, 25, 90)])
    def test_tangos_bounds_are_where_a_brute_force_likelihood_puts_them(self, gained: int, lost: int, n: int) -> None:
        interval = difference_interval(*table(both=0, gained=gained, lost=lost, n=n), level=0.9)
        for bound in {interval.lower, interval.upper} - {-1.0, 1.0}:
            p_lost = np.linspace(max(0.0, -bound), (1 - bound) / 2, 400_001)
            with np.errstate(divide="ignore", invalid="ignore"):
                likelihood = (
                    stats.binom.logpmf(0, 0, 0.5)
                    + (gained * np.log(p_lost + bound) if gained else 0)
                    + (lost * np.log(p_lost) if lost else 0)
                    + ((n - gained - lost) * np.log1p(-2 * p_lost - bound) if n > gained + lost else 0)
                )
            best = p_lost[np.nanargmax(likelihood)]
            score = (gained - lost - n * bound) / math.sqrt(n * (2 * best + bound - bound**2))
            assert abs(score) == pytest.approx(1.644854, abs=2e-3)

    def test_clustered_bounds_are_those_of_statsmodels_with_the_imagined_cluster_appended(self) -> None:
        rng = np.random.default_rng(3)
        clusters = np.repeat(np.arange(20), rng.integers(1, 6, 20))
        target, legacy = rng.random(clusters.size), rng.random(clusters.size)
        interval = difference_interval(target, legacy, clusters=clusters, level=0.95)
        sizes = np.bincount(clusters)
        typical = (sizes**2).sum() / sizes.sum()
        for bound, sign in ((interval.lower, -1), (interval.upper, 1)):
            # A weight on one row of difference `sign` stands for an imagined cluster of that many items.
            values, weights = np.append(target - legacy, sign), np.append(np.ones(clusters.size), typical)
            fit = sm.WLS(values, np.ones_like(values), weights=weights).fit(
                cov_type="cluster",
                cov_kwds={"groups": np.append(clusters, 99), "use_correction": False},
            )
            error = fit.bse[0] * math.sqrt(21 / 20)
            assert bound == pytest.approx(fit.params[0] + sign * stats.t.isf(0.025, 19) * error, rel=1e-9)

    def test_equal_graded_scores_do_not_give_an_interval_without_width(self) -> None:
        scores = np.full(30, 0.9)
        interval = difference_interval(scores, scores, level=0.95)
        # Mean -1/31 and standard error 1/31 with the imagined pair, t(29) at 97.5 %.
        assert interval.lower == pytest.approx(-(1 + 2.04523) / 31, abs=1e-5)

    @given(samples(), st.sampled_from([0.8, 0.9, 0.95]))
    def test_swapping_the_arms_negates_the_interval(
        self, sample: tuple[FloatArray, FloatArray, IntArray | None], level: float
    ) -> None:
        target, legacy, clusters = sample
        there = difference_interval(target, legacy, clusters=clusters, level=level)
        back = difference_interval(legacy, target, clusters=clusters, level=level)
        assert (there.lower, there.estimate, there.upper) == pytest.approx(
            (-back.upper, -back.estimate, -back.lower), abs=1e-9
        )


class TestNoninferiority:
    def test_the_recorded_models_pass_three_percent_and_not_two(self) -> None:
        assert noninferiority(*GSM, margin=0.03, level=0.05).proven
        two = noninferiority(*GSM, margin=0.02, level=0.05)
        assert not two.proven
        assert not two.refuted

    def test_the_small_recorded_model_is_refuted_at_three_percent(self) -> None:
        result = noninferiority(*GSM_SMALL, margin=0.03, level=0.05)
        assert result.refuted
        assert result.statistic < -5
        assert (result.n_pairs, result.n_clusters) == (1319, 1319)

    @pytest.mark.parametrize(
        ("scores", "first_proof"),
        [(1.0, 118), (0.9, 133)],
        ids=["right or wrong", "graded"],
    )
    def test_arms_that_never_differ_pass_only_after_enough_pairs(self, scores: float, first_proof: int) -> None:
        # Without one loss in n pairs a loss rate of 3 % is excluded from n = 99 on (0.97^99 < 0.05).
        def proven(n: int) -> bool:
            same = np.full(n, scores)
            return noninferiority(same, same, margin=0.03, level=0.05).proven

        assert not proven(first_proof - 1)
        assert proven(first_proof)

    def test_arms_that_never_score_teach_nothing(self) -> None:
        result = noninferiority(np.zeros(50), np.zeros(50), margin=0.03, level=0.05)
        assert min(result.p_noninferior, result.p_inferior) > 0.5
        assert result.statistic == 0

    def test_the_smallest_sample_refutes_a_target_that_always_fails(self) -> None:
        assert noninferiority(np.zeros(MIN_PAIRS), np.ones(MIN_PAIRS), margin=0.03, level=0.01).refuted
        n = 3 * MIN_CLUSTERS
        clusters = np.arange(n) // 3
        assert noninferiority(np.zeros(n), np.ones(n), margin=0.03, clusters=clusters, level=0.025).refuted

    def test_a_legacy_that_is_always_wrong_can_be_beaten(self) -> None:
        target, legacy = table(both=0, gained=15, lost=0, n=40)
        assert noninferiority(target, legacy, margin=0.03, level=0.05).proven
        assert noninferiority(legacy, target, margin=0.03, level=0.05).refuted

    def test_items_that_move_together_weigh_less(self) -> None:
        target, legacy = GSM
        rng = np.random.default_rng(5)
        alone = noninferiority(target, legacy, margin=0.03, level=0.05)
        order = np.argsort(target - legacy + 1e-3 * rng.random(target.size))
        together = noninferiority(target[order], legacy[order], margin=0.03, level=0.05, clusters=np.arange(1319) // 5)
        assert together.p_noninferior > 4 * alone.p_noninferior
        assert together.n_clusters == 264

    def test_clusters_of_one_are_no_clusters(self) -> None:
        names = np.array([f"conversation-{k}" for k in range(1319)])
        assert noninferiority(*GSM, margin=0.03, level=0.05, clusters=names) == noninferiority(
            *GSM, margin=0.03, level=0.05
        )

    @given(samples(), st.integers(0, 2**32))
    def test_order_does_not_matter(self, sample: tuple[FloatArray, FloatArray, IntArray | None], seed: int) -> None:
        target, legacy, clusters = sample
        order = np.random.default_rng(seed).permutation(target.size)
        here = noninferiority(target, legacy, margin=0.05, clusters=clusters, level=0.05)
        there = noninferiority(
            target[order],
            legacy[order],
            margin=0.05,
            clusters=None if clusters is None else clusters[order],
            level=0.05,
        )
        assert (here.p_noninferior, here.p_inferior) == pytest.approx((there.p_noninferior, there.p_inferior), abs=1e-9)

    @given(samples(), st.floats(0, 0.5), st.floats(0.001, 0.4))
    def test_a_wider_margin_is_easier_to_pass_and_harder_to_fail(
        self, sample: tuple[FloatArray, FloatArray, IntArray | None], margin: float, more: float
    ) -> None:
        target, legacy, clusters = sample
        tight = noninferiority(target, legacy, margin=margin, clusters=clusters, level=0.05)
        wide = noninferiority(target, legacy, margin=margin + more, clusters=clusters, level=0.05)
        if tight.proven:
            assert wide.proven
        if wide.refuted:
            assert tight.refuted

    @given(samples(), st.floats(0, 0.9), st.sampled_from([0.01, 0.05, 0.3]))
    def test_no_sample_proves_both_claims(
        self, sample: tuple[FloatArray, FloatArray, IntArray | None], margin: float, level: float
    ) -> None:
        target, legacy, clusters = sample
        result = noninferiority(target, legacy, margin=margin, clusters=clusters, level=level)
        assert not (result.proven and result.refuted)
        assert all(math.isfinite(value) for value in (result.p_noninferior, result.p_inferior, result.statistic))


class TestRatioInterval:
    @settings(max_examples=60)
    @given(samples(), st.floats(0, 0.6), st.sampled_from([0.01, 0.05, 0.2]))
    def test_it_says_the_same_as_the_decision(
        self, sample: tuple[FloatArray, FloatArray, IntArray | None], margin: float, level: float
    ) -> None:
        target, legacy, clusters = sample
        decision = noninferiority(target, legacy, margin=margin, clusters=clusters, level=level)
        if target.any() or legacy.any():
            interval = ratio_interval(target, legacy, clusters=clusters, level=1 - 2 * level)
            assert (interval.lower > 1 - margin) == decision.proven
            assert (interval.upper < 1 - margin) == decision.refuted
            assert interval.lower <= interval.estimate <= interval.upper

    def test_the_recorded_models_keep_ninety_eight_percent(self) -> None:
        interval = ratio_interval(*GSM, level=0.9)
        assert interval.estimate == pytest.approx(1242 / 1258)
        # The same by the delta method on the logarithm, which no code here uses.
        error = math.sqrt((29 + 45) / (1242 * 1258))
        assert interval.lower == pytest.approx(interval.estimate * math.exp(-1.645 * error), abs=1.5e-3)
        assert interval.upper == pytest.approx(interval.estimate * math.exp(1.645 * error), abs=1.5e-3)

    def test_a_legacy_that_never_scored_leaves_the_ratio_open_above(self) -> None:
        interval = ratio_interval(np.ones(30), np.zeros(30), level=0.9)
        assert interval.upper == math.inf
        assert interval.estimate == math.inf
        assert 1 < interval.lower < math.inf

    def test_a_target_that_never_scored_leaves_the_ratio_at_zero(self) -> None:
        interval = ratio_interval(np.zeros(30), np.ones(30), level=0.9)
        assert interval.lower == interval.estimate == 0
        assert 0 < interval.upper < 0.2

    def test_two_arms_that_never_scored_have_no_ratio(self) -> None:
        with pytest.raises(TooFewPairs, match="neither arm scored above 0 in 30 pairs"):
            ratio_interval(np.zeros(30), np.zeros(30), level=0.9)


class TestItemsNeeded:
    def test_an_estimate_on_the_margin_needs_more_than_any_number(self) -> None:
        target, legacy = table(both=80, gained=0, lost=20, n=120)
        assert items_needed(target, legacy, margin=0.2, level=0.05) is None

    def test_an_estimate_a_hair_from_the_margin_is_no_plan(self) -> None:
        target, legacy = table(both=80, gained=0, lost=20, n=120)
        assert items_needed(target, legacy, margin=0.2001, level=0.05) is None

    @pytest.mark.parametrize(
        ("cells", "margin", "direction"),
        [((0.78, 0.05, 0.05), 0.05, "noninferior"), ((0.72, 0.04, 0.12), 0.03, "inferior")],
    )
    def test_that_many_items_decide_with_the_promised_power(
        self, cells: tuple[float, float, float], margin: float, direction: str
    ) -> None:
        seen = table(both=int(200 * cells[0]), gained=int(200 * cells[1]), lost=int(200 * cells[2]), n=200)
        needed = items_needed(*seen, margin=margin, level=0.05)
        assert needed
        assert needed.direction == direction
        rng = np.random.default_rng(11)
        both, gained, lost, _ = rng.multinomial(needed.total, [*cells, 1 - sum(cells)], size=20_000).T
        evidence = evidence_of_counts(both, gained, lost, ratio=1 - margin)
        score = evidence.noninferior.score if direction == "noninferior" else evidence.inferior.score
        decided = float((stats.norm.sf(score) < 0.05).mean())
        assert decided == pytest.approx(0.8, abs=0.03)

    def test_more_power_needs_more_items(self) -> None:
        plans = [items_needed(*GSM, margin=0.02, level=0.05, power=power) for power in (0.5, 0.8, 0.95)]
        totals = [plan.total for plan in plans if plan]
        assert len(totals) == 3
        assert totals == sorted(totals)
        assert totals[0] > 1319

    @pytest.mark.parametrize("power", [0.05, 1.0])
    def test_a_power_out_of_range_is_refused(self, power: float) -> None:
        with pytest.raises(ValueError, match=f"power is {power}"):
            items_needed(*GSM, margin=0.03, level=0.05, power=power)


METHODS = [
    pytest.param(lambda t, g, c: difference_interval(t, g, clusters=c, level=0.95), id="difference"),
    pytest.param(lambda t, g, c: ratio_interval(t, g, clusters=c, level=0.9), id="ratio"),
    pytest.param(lambda t, g, c: noninferiority(t, g, clusters=c, margin=0.03, level=0.05), id="noninferiority"),
    pytest.param(lambda t, g, c: items_needed(t, g, clusters=c, margin=0.03, level=0.05), id="items"),
]


@pytest.mark.parametrize("method", METHODS)
class TestInput:
    def test_ten_pairs_are_enough(self, method: Callable[..., object]) -> None:
        method(np.linspace(0.3, 0.9, MIN_PAIRS), np.full(MIN_PAIRS, 0.5), None)

    @pytest.mark.parametrize(
        ("target", "legacy", "clusters", "error", "words"),
        [
            (np.ones(9), np.ones(9), None, TooFewPairs, "9 pairs; at least 10"),
            (np.ones(90), np.ones(90), np.arange(90) % 9, TooFewPairs, "90 pairs in 9 clusters; 10 clusters"),
            (np.ones(0), np.ones(0), None, TooFewPairs, "0 pairs"),
            (np.ones(20), np.ones(21), None, ValueError, "20 target scores for 21 legacy scores"),
            (np.ones((5, 4)), np.ones((5, 4)), None, ValueError, "shape"),
            (np.r_[np.ones(19), np.nan], np.ones(20), None, ValueError, "1 of 20 target scores are NaN"),
            (np.ones(20), np.r_[np.ones(19), np.nan], None, ValueError, "1 of 20 legacy scores are NaN"),
            (np.r_[np.ones(19), 1.5], np.ones(20), None, ValueError, "run from 1 to 1.5"),
            (np.ones(20), np.r_[np.ones(19), -0.1], None, ValueError, "legacy scores run from -0.1"),
            (np.ones(20), np.r_[np.ones(19), np.inf], None, ValueError, "legacy scores run from 1 to inf"),
            (np.ones(20), np.ones(20), np.arange(19), ValueError, "clusters have shape"),
            (np.ones(20), np.ones(20), np.r_[np.arange(19), np.nan], ValueError, "a cluster is NaN"),
        ],
    )
    def test_what_would_mislead_is_refused(
        self,
        method: Callable[..., object],
        target: FloatArray,
        legacy: FloatArray,
        clusters: FloatArray | None,
        error: type[Exception],
        words: str,
    ) -> None:
        with pytest.raises(error, match=words):
            method(target, legacy, clusters)


@pytest.mark.parametrize(
    ("margin", "level", "words"),
    [
        (1.0, 0.05, "margin is 1.0"),
        (-0.01, 0.05, "margin is -0.01"),
        (math.nan, 0.05, "margin is nan"),
        (3, 0.05, "3 % is 0.03"),
        (0.03, 0.95, "level is 0.95"),
        (0.03, 0.0, "level is 0.0"),
    ],
)
def test_a_margin_or_level_out_of_range_is_refused(margin: float, level: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        noninferiority(*GSM, margin=margin, level=level)
    with pytest.raises(ValueError, match=words):
        items_needed(*GSM, margin=margin, level=level)


@pytest.mark.parametrize("level", [0.0, 1.0, 95, math.nan])
def test_a_coverage_out_of_range_is_refused(level: float) -> None:
    for interval in (difference_interval, ratio_interval):
        with pytest.raises(ValueError, match="level is"):
            interval(*GSM, level=level)
