from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.items_needed import items_needed
from anven_pipelines.stats.noninferiority import noninferiority, ratio_interval
from anven_pipelines.stats.paired import difference_interval
from anven_pipelines.stats.pairs import MIN_PAIRS
from tests.stats.paired_samples import GSM, samples, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.stats.paired_samples import FloatArray, IntArray


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


@pytest.mark.parametrize("level", [0.0, 1.0, 95, math.nan])
def test_a_coverage_out_of_range_is_refused(level: float) -> None:
    for interval in (difference_interval, ratio_interval):
        with pytest.raises(ValueError, match="level is"):
            interval(*GSM, level=level)
