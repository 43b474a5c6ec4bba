from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.items_needed import items_needed
from anven_pipelines.stats.noninferiority import noninferiority, ratio_interval
from anven_pipelines.stats.pairs import MIN_CLUSTERS, MIN_PAIRS
from tests.stats.paired_samples import GSM, GSM_SMALL, samples, table

if TYPE_CHECKING:
    from tests.stats.paired_samples import FloatArray, IntArray


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
