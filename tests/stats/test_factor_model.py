"""The model of main effects and interactions learns what was planted, relative to the reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from anven_pipelines.stats.factor_model import FactorModel, IntArray, Observations

COUNTS = (3, 4, 2)
ALL = np.array(list(itertools.product(*(range(count) for count in COUNTS))))
REFERENCE = np.zeros(3, dtype=np.int64)


def value(levels: IntArray) -> float:
    return float(0.4 + 0.1 * (levels[0] == 1) + 0.35 * (levels[1] == 2 and levels[2] == 1))


def observed(levels: IntArray, *, items: int = 10_000, difficulty: float = 0.0) -> Observations:
    """Observe each combination once in each of two blocks, the second of which may be harder."""
    means = np.array([value(each) for each in levels])
    return Observations(
        np.tile(levels, (2, 1)),
        np.repeat([0, 1], len(levels)),
        np.full(2 * len(levels), items),
        np.concatenate([means, means - difficulty]),
    )


def model_of(seen: Observations) -> FactorModel:
    return FactorModel(seen, counts=COUNTS, reference=REFERENCE.tolist())


def test_what_is_observed_without_noise_is_what_is_expected() -> None:
    means = model_of(observed(ALL)).means(ALL)
    assert means == pytest.approx([value(each) - value(REFERENCE) for each in ALL], abs=0.02)


def test_the_reference_is_zero_whatever_was_observed() -> None:
    assert model_of(observed(ALL[3:5])).means(REFERENCE[None, :]) == pytest.approx([0.0])


def test_a_hard_block_is_not_held_against_the_combinations_in_it() -> None:
    model = model_of(observed(ALL, items=20, difficulty=0.2))
    alone = model_of(observed(ALL, items=20))
    assert model.means(ALL) == pytest.approx(alone.means(ALL), abs=0.03)


def test_an_interaction_is_expected_where_it_was_not_observed() -> None:
    held_out = np.array([2, 2, 1])
    rest = np.array([each for each in ALL if not np.array_equal(each, held_out)])
    assert model_of(observed(rest)).means(held_out[None, :])[0] > 0.2


def test_few_items_are_believed_less() -> None:
    best = np.array([[1, 2, 1]])
    sure, unsure = (model_of(observed(ALL[::2], items=items)).means(best)[0] for items in (1000, 2))
    assert 0 < unsure < sure


def test_the_best_combination_is_found_and_sampled() -> None:
    model, rng = model_of(observed(ALL)), np.random.default_rng(1)
    assert model.best(rng, start=REFERENCE).tolist() == [1, 2, 1]
    found, lead = model.sampled(rng, start=REFERENCE)
    assert found.tolist() == [1, 2, 1]
    assert lead == pytest.approx(0.45, abs=0.1)


def test_draws_agree_with_the_posterior() -> None:
    model, rng = model_of(observed(ALL[:6], items=6)), np.random.default_rng(2)
    draws = {tuple(model.sampled(rng, start=REFERENCE)[0].tolist()) for _ in range(40)}
    assert len(draws) > 5, "where little is known many combinations may be the best"


def test_the_same_seed_draws_the_same() -> None:
    model = model_of(observed(ALL[:6], items=6))
    one, other = (model.sampled(np.random.default_rng(3), start=REFERENCE) for _ in range(2))
    assert one[0].tolist() == other[0].tolist()
    assert one[1] == other[1]
