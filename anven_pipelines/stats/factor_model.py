"""Bayesian linear model of factors: a main effect per level and an interaction per pair of levels.

Effects are relative to a reference combination, whose value is 0. Observations are means over blocks of items; those of
one block share its difficulty, so that combinations are compared within blocks. Everything is Gaussian and exact. A
combination may also differ from what its levels say, by a deviation of its own.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve

if TYPE_CHECKING:
    from collections.abc import Sequence

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Variance of a combination drawn at random, on scores in [0, 1]: what is tried for main effects and for interactions.
MAIN_VARIANCES: Final = (0.001, 0.01, 0.06, 0.24)
PAIR_VARIANCES: Final = (0.001, 0.01, 0.06)
DEVIATION_VARIANCE: Final = 0.0025
CENTRE: Final = 0.5
LEVEL_VARIANCE: Final = 0.25  # of the reference itself, which is not known beforehand
SHARED_NOISE: Final = 0.5  # share of an item's variance that is its difficulty, common to all combinations
LEAST_NOISE: Final = 0.01
STARTS: Final = 4
SWEEPS: Final = 6


class Observations(NamedTuple):
    """Means over blocks of items, shape (n,) each unless said otherwise.

    Attributes:
        levels: Level of each factor, shape (n, factors).
        blocks: Number of the block.
        items: Number of items in the block.
        means: Mean score.
    """

    levels: IntArray
    blocks: IntArray
    items: IntArray
    means: FloatArray


class FactorModel:
    """Posterior of the effects, given observations."""

    def __init__(self, seen: Observations, *, counts: Sequence[int], reference: Sequence[int]) -> None:
        """Fit the model; how much effects vary is what makes the observations likeliest.

        Args:
            seen: At least one observation.
            counts: Number of levels of each factor.
            reference: The combination whose value is 0.
        """
        self._counts = np.asarray(counts)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        self._reference = np.asarray(reference)[None, :]
        self._seen = seen
        means = float(np.average(seen.means, weights=seen.items))
        self._noise = max(means * (1 - means), LEAST_NOISE)
        self._chance = self._noise_covariance()
        self._chance_factor = np.linalg.cholesky(self._chance)
        factors = len(counts)
        scales = (1 / (2 * factors), 1 / max(factors * (factors - 1), 1))
        tried = [
            self._fitted(main * scales[0], pair * scales[1])
            for main, pair in itertools.product(MAIN_VARIANCES, PAIR_VARIANCES)
        ]
        self._fit = max(tried, key=lambda fit: fit.likelihood)

    def means(self, levels: IntArray) -> FloatArray:
        """Return the posterior mean of combinations over the reference, shape (n,)."""
        same = (levels[:, None, :] == self._seen.levels[None, :, :]).all(axis=2)
        moved = (levels != self._reference).any(axis=1)[:, None]
        covariance = self._kernel(levels, self._seen.levels, self._fit.main, self._fit.pair) + DEVIATION_VARIANCE * (
            same & moved
        )
        return np.asarray(covariance @ self._fit.solved, dtype=np.float64)

    def best(self, rng: np.random.Generator, *, start: IntArray) -> IntArray:
        """Return the combination whose posterior mean is highest, as far as coordinate ascent finds it."""
        return self._climb(self._lifted(self._fit.solved), rng, start)

    def sampled(self, rng: np.random.Generator, *, start: IntArray) -> tuple[IntArray, float]:
        """Draw effects from the posterior; return the combination that is best under them, and its lead over `start`.

        Source:
            Thompson (1933), Biometrika 25:285; drawn by Matheron's rule, Wilson et al. (2021), JMLR 22(105), 3.
        """
        size = int(self._counts.sum())
        effects = np.triu(rng.normal(0, np.sqrt(self._fit.pair), (size, size)), 1)
        effects[np.diag_indices(size)] = rng.normal(0, np.sqrt(self._fit.main), size)
        imagined = self._values(effects, self._seen.levels) - self._values(effects, self._reference)
        noise = self._chance_factor @ rng.normal(size=len(imagined))
        error = self._seen.means - CENTRE - imagined - noise
        effects += self._lifted(_solved(self._fit.factor, error))
        found = self._climb(effects, rng, start)
        lead = self._values(effects, found[None, :]) - self._values(effects, start[None, :])
        return found, float(lead[0])

    def _fitted(self, main: float, pair: float) -> _Fit:
        covariance = self._kernel(self._seen.levels, self._seen.levels, main, pair) + self._chance
        factor = np.linalg.cholesky(covariance).astype(np.float64)
        error = self._seen.means - CENTRE
        solved = _solved(factor, error)
        likelihood = -0.5 * float(error @ solved) - float(np.log(np.diag(factor)).sum())
        return _Fit(main, pair, factor, solved, likelihood)

    def _kernel(self, one: IntArray, other: IntArray, main: float, pair: float) -> FloatArray:
        """Return the prior covariance of values over the reference."""

        def raw(first: IntArray, second: IntArray) -> FloatArray:
            equal = (first[:, None, :] == second[None, :, :]).sum(axis=2)
            return np.asarray(main * equal + pair * equal * (equal - 1) / 2)

        zero = self._reference
        return raw(one, other) - raw(one, zero) - raw(zero, other) + raw(zero, zero)

    def _noise_covariance(self) -> FloatArray:
        """Return the covariance of what is no effect: the level, the blocks, deviations, and chance."""
        seen = self._seen
        block = (seen.blocks[:, None] == seen.blocks[None, :]) * SHARED_NOISE
        same = (seen.levels[:, None, :] == seen.levels[None, :, :]).all(axis=2)
        moved = (seen.levels != self._reference).any(axis=1)
        chance = np.eye(len(seen.means)) * (1 - SHARED_NOISE)
        per_item = self._noise / np.sqrt(np.outer(seen.items, seen.items))
        own = DEVIATION_VARIANCE * (same & moved[:, None])
        return np.asarray(LEVEL_VARIANCE + own + (block + chance) * per_item)

    def _lifted(self, solved: FloatArray) -> FloatArray:
        """Return the effects that weights of the observations stand for."""
        coded = self._coded(self._seen.levels)
        zero = self._coded(self._reference)[0]
        products = coded.T @ (coded * solved[:, None]) - solved.sum() * np.outer(zero, zero)
        effects = np.triu(products, 1) * self._fit.pair
        effects[np.diag_indices(len(effects))] = np.diag(products) * self._fit.main
        return np.asarray(effects)

    def _coded(self, levels: IntArray) -> FloatArray:
        coded = np.zeros((len(levels), int(self._counts.sum())))
        coded[np.arange(len(levels))[:, None], levels + self._starts] = 1
        return coded

    def _values(self, effects: FloatArray, levels: IntArray) -> FloatArray:
        coded = self._coded(levels)
        return np.asarray(((coded @ effects) * coded).sum(axis=1))

    def _climb(self, effects: FloatArray, rng: np.random.Generator, start: IntArray) -> IntArray:
        """Change one factor at a time to its best level, from `start` and from random combinations."""
        found = np.stack([start, *(rng.integers(self._counts) for _ in range(STARTS - 1))])
        both = effects + effects.T
        for _ in range(SWEEPS):
            before = found.copy()
            for factor, (begin, count) in enumerate(zip(self._starts, self._counts, strict=True)):
                coded = self._coded(found)
                coded[:, begin : begin + count] = 0
                places = slice(begin, begin + count)
                found[:, factor] = np.argmax(coded @ both[:, places] + np.diag(effects)[places], axis=1)
            if np.array_equal(before, found):
                break
        return np.asarray(found[int(np.argmax(self._values(effects, found)))])


class _Fit(NamedTuple):
    """Variances of the effects, the factored covariance, the weights of the observations, and the log likelihood."""

    main: float
    pair: float
    factor: FloatArray
    solved: FloatArray
    likelihood: float


def _solved(factor: FloatArray, right: FloatArray) -> FloatArray:
    """Solve with a lower Cholesky factor."""
    return np.asarray(cho_solve((factor, True), right, check_finite=False))
