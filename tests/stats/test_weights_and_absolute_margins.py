"""What the paired tests make of weights, and of a margin in score points."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.items_needed import items_needed
from anven_pipelines.stats.noninferiority import noninferiority, ratio_interval
from anven_pipelines.stats.paired import difference_interval
from anven_pipelines.stats.pairs import effective_number
from anven_pipelines.stats.score import LOST_PAIR, evidence_of_differences, evidence_of_sums

if TYPE_CHECKING:
    from anven_pipelines.stats.sample_size import MarginKind

FloatArray = npt.NDArray[np.float64]
LEVEL = 0.05


def right_or_wrong(n: int, seed: int, *, lost: float = 0.06, gained: float = 0.05) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    legacy = (rng.random(n) < 0.8).astype(np.float64)
    flips = rng.random(n) < np.where(legacy > 0, lost / 0.8, gained / 0.2)
    return np.where(flips, 1 - legacy, legacy), legacy


def table(gained: int, lost: int, n: int) -> tuple[FloatArray, FloatArray]:
    return np.repeat([1.0, 0.0, 1.0], [gained, lost, n - gained - lost]), np.repeat(
        [0.0, 1.0, 1.0], [gained, lost, n - gained - lost]
    )


class TestWeights:
    def test_a_whole_weight_is_that_many_equal_items_of_one_cluster(self) -> None:
        target, legacy = right_or_wrong(200, 1)
        weights = np.random.default_rng(2).integers(1, 6, 200).astype(np.float64)
        repeats = weights.astype(np.int64)
        expanded = [np.repeat(values, repeats) for values in (target, legacy, np.arange(200.0))]
        for kind in ("relative", "absolute"):
            weighted = noninferiority(target, legacy, margin=0.05, kind=kind, weights=weights, level=LEVEL)
            clustered = noninferiority(*expanded[:2], margin=0.05, kind=kind, clusters=expanded[2], level=LEVEL)
            assert weighted.p_noninferior == pytest.approx(clustered.p_noninferior, rel=1e-9)
            assert weighted.p_inferior == pytest.approx(clustered.p_inferior, rel=1e-9)
        for interval in (difference_interval, ratio_interval):
            ours = interval(target, legacy, weights=weights, level=0.9)
            theirs = interval(*expanded[:2], clusters=expanded[2], level=0.9)
            assert (ours.estimate, ours.lower, ours.upper) == pytest.approx(
                (theirs.estimate, theirs.lower, theirs.upper), rel=1e-7
            )

    def test_the_estimate_is_that_of_the_traffic(self) -> None:
        target, legacy = np.repeat([0.0, 1.0], [10, 30]), np.ones(40)
        weights = np.repeat([30.0, 1.0], [10, 30])  # the ten items that fail stand for 300 of 330 calls
        assert difference_interval(target, legacy, weights=weights, level=0.9).estimate == pytest.approx(-300 / 330)
        assert difference_interval(target, legacy, level=0.9).estimate == pytest.approx(-0.25)

    def test_equal_weights_and_their_unit_change_nothing(self) -> None:
        target, legacy = right_or_wrong(150, 3)
        plain = noninferiority(target, legacy, margin=0.05, level=LEVEL)
        assert noninferiority(target, legacy, margin=0.05, weights=np.full(150, 7.0), level=LEVEL) == plain
        weights = np.random.default_rng(4).lognormal(size=150)
        one, thousand = (
            noninferiority(target, legacy, margin=0.05, weights=unit * weights, level=LEVEL) for unit in (1, 1000)
        )
        assert one.p_noninferior == pytest.approx(thousand.p_noninferior, rel=1e-9)
        assert "weighted (like" in one.method

    def test_a_few_heavy_items_are_too_few(self) -> None:
        target, legacy = right_or_wrong(200, 5)
        weights = np.ones(200)
        weights[:5] = 1e6
        with pytest.raises(TooFewPairs, match=r"200 clusters of such unequal weight count like 5\.0; 10 are needed"):
            noninferiority(target, legacy, margin=0.05, weights=weights, level=LEVEL)

    def test_the_effective_number_is_kishs(self) -> None:
        assert effective_number(np.ones(30)) == 30
        assert effective_number(np.array([1.0, 3.0])) == pytest.approx(16 / 10)

    @pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
    def test_a_weight_that_is_none_is_refused(self, weight: float) -> None:
        target, legacy = right_or_wrong(20, 6)
        with pytest.raises(ValueError, match="finite weights above 0 are needed"):
            difference_interval(target, legacy, weights=np.append(np.ones(19), weight), level=0.9)

    def test_weights_of_another_length_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"weights have shape \(19,\)"):
            difference_interval(*right_or_wrong(20, 6), weights=np.ones(19), level=0.9)

    @pytest.mark.parametrize("spread", [0.5, 1.5])
    @pytest.mark.parametrize("groups", [60, 300])
    def test_weighted_items_err_no_more_often_than_the_level(self, groups: int, spread: float) -> None:
        """The weight goes with the quality: heavy items are lost more often. The margin holds for the traffic."""
        samples, margin, rng = 1500, 0.1, np.random.default_rng(7)
        shape = (samples, groups)
        weights = np.exp(spread * rng.normal(size=shape))
        heavy = weights > 1
        # Heavy items carry Phi(spread) of the weight, so that E[w x lost] / E[w] is the margin.
        extra = np.where(heavy, 0.5 * margin / stats.norm.cdf(spread), 0.0)
        lost = rng.random(shape) < 0.5 * margin + extra
        legacy = weights
        target = weights * ~lost
        bound = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / samples)
        for side in evidence_of_sums(target, legacy, weights, ratio=1 - margin):
            assert (stats.t.sf(side.score, groups - 1) < LEVEL).mean() <= bound


class TestAbsoluteMargin:
    @pytest.mark.parametrize(
        ("gained", "lost", "n", "margin"), [(4, 9, 120, 0.1), (0, 3, 90, 0.05), (30, 25, 300, 0.03)]
    )
    def test_it_is_tangos_score_with_the_imagined_pair(self, gained: int, lost: int, n: int, margin: float) -> None:
        doubted, total = lost + LOST_PAIR, n + LOST_PAIR
        p_lost = np.linspace(margin, (1 + margin) / 2, 2_000_001)[1:-1]
        likelihood = (
            gained * np.log(p_lost - margin)
            + doubted * np.log(p_lost)
            + (n - gained - lost) * np.log1p(margin - 2 * p_lost)
        )
        best = (
            p_lost[np.argmax(likelihood)]
            if gained
            else max(
                margin,
                (doubted * (1 + margin) / 2) / total,  # the likelihood of lost and concordant pairs alone
            )
        )
        variance = total * (2 * best - margin - margin**2)
        score = (gained - doubted + margin * total) / math.sqrt(variance)
        target, legacy = table(gained, lost, n)
        tested = noninferiority(target, legacy, margin=margin, kind="absolute", level=LEVEL)
        assert tested.p_noninferior == pytest.approx(float(stats.norm.sf(score)), abs=1e-5)
        assert tested.method == "score test of the difference of paired proportions"

    def test_both_margins_say_the_same_of_a_legacy_that_is_always_right(self) -> None:
        target, legacy = table(0, 4, 400)
        relative, absolute = (
            noninferiority(target, legacy, margin=0.03, kind=kind, level=LEVEL) for kind in ("relative", "absolute")
        )
        assert absolute.p_noninferior == pytest.approx(relative.p_noninferior, rel=0.02)

    def test_a_margin_of_nothing_proves_the_target_better(self) -> None:
        kinds: tuple[MarginKind, ...] = ("relative", "absolute")
        target, legacy = table(60, 20, 500)
        for kind in kinds:
            assert noninferiority(target, legacy, margin=0.0, kind=kind, level=LEVEL).proven
            assert noninferiority(legacy, target, margin=0.0, kind=kind, level=LEVEL).refuted

    @pytest.mark.parametrize("n", [60, 200, 1000])
    @pytest.mark.parametrize(("margin", "gained"), [(0.05, 0.0), (0.05, 0.05), (0.03, 0.15)])
    def test_it_errs_no_more_often_than_the_level(self, n: int, margin: float, gained: float) -> None:
        samples, rng = 1500, np.random.default_rng(8)
        draw = rng.random((samples, n))
        target = np.where(draw < gained, 1.0, np.where(draw < 2 * gained + margin, 0.0, 1.0))
        legacy = np.where(draw < gained, 0.0, 1.0)
        bound = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / samples)
        for side in evidence_of_differences(target, legacy, np.ones((samples, n)), margin=margin):
            assert (stats.norm.sf(side.score) < LEVEL).mean() <= bound

    def test_the_items_needed_decide_with_the_promised_power(self) -> None:
        target, legacy = table(8, 10, 200)
        needed = items_needed(target, legacy, margin=0.05, kind="absolute", level=LEVEL)
        assert needed is not None
        assert needed.direction == "noninferior"
        rng, samples = np.random.default_rng(9), 1000
        proven = 0
        for _ in range(samples):
            won, failed = rng.multinomial(needed.total, [0.04, 0.05, 0.91])[:2]
            target, legacy = table(int(won), int(failed), needed.total)
            proven += noninferiority(target, legacy, margin=0.05, kind="absolute", level=LEVEL).proven
        assert proven / samples == pytest.approx(0.8, abs=0.05)
