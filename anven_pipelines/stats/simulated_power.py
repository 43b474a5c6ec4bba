"""How many items a sign-off needs where items come in conversations or weigh differently: its own test, simulated.

With conversations of unequal size the variance at the margin exceeds what a formula makes of their mean size, so the
formula of `anven_pipelines.stats.sample_size` promises too much power; docs/statistics.md has both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from anven_pipelines.stats.distributions import normal_tail, t_quantile
from anven_pipelines.stats.pairs import MIN_CLUSTERS, FloatArray, scaled_weights
from anven_pipelines.stats.sample_size import margin_for_pairs, pairs_for_margin
from anven_pipelines.stats.score import evidence_of_differences, evidence_of_sums

if TYPE_CHECKING:
    import numpy.typing as npt

    from anven_pipelines.stats.sample_size import MarginKind

NO_MARGIN: Final = 1.0  # nothing can be shown: a loss of everything would be acceptable
_ITEMS_AT_ONCE: Final = 500_000  # simulated items: seconds
_SAMPLES: Final = (150, 500)
_MOST_ITEMS: Final = 4_000  # from here on, and with enough clusters, the square-root law takes over
_ENOUGH_CLUSTERS: Final = 100
_ROUNDS: Final = 3
_NEAR: Final = 1.25
_WIDER: Final = 1.25
_STEPS: Final = 6  # of bisection: the margin to four parts in a thousand


class Sums(NamedTuple):
    """Simulated scores and items, summed by cluster; each of shape (samples, clusters) or (clusters,)."""

    target: FloatArray
    legacy: FloatArray
    sizes: FloatArray


@dataclass(frozen=True, kw_only=True)
class PlannedItems:
    """Items of equally good arms, scored 0 or 1, as a plan expects them.

    In a share `correlation` of the clusters all items end alike, so that two differences of one cluster have this
    correlation; in the others they are independent.

    Attributes:
        clusters: Cluster of each item, whole numbers from 0 in ascending order, shape (n,).
        weights: What each item stands for, shape (n,), above 0.
        baseline: Mean score that is expected of the legacy, in (0, 1].
        discordance: Share of items that the arms get differently right, in (0, 1].
        correlation: Of the differences within a cluster, in [0, 1].
        level: One-sided error rate of the test.
        power: Chance to pass.
        kind: "relative" for a margin that is a share of the baseline, "absolute" for score points.
        seed: Of the simulation, so that a plan can be repeated.
    """

    clusters: npt.NDArray[np.int64]
    weights: FloatArray
    baseline: float
    discordance: float
    correlation: float
    level: float
    power: float
    kind: MarginKind = "relative"
    seed: int = 0

    @property
    def n(self) -> int:
        """Number of items."""
        return self.clusters.size

    def design_effect(self) -> float:
        """Variance of a mean over these items over that of as many independent ones of equal weight.

        Source:
            Kish (1965), Survey Sampling, sections 5.4 and 11.7.
        """
        weights = scaled_weights(self.weights, self.n)
        squares = 1.0 if weights is None else float(weights @ weights) / self.n
        counts = np.bincount(self.clusters)
        return max(1.0, squares) * (1 + (float(counts @ counts) / self.n - 1) * self.correlation)

    def smallest_margin(self) -> float:
        """Return the smallest margin that equal arms pass with these items; NO_MARGIN where they pass none."""
        if self.n == 0 or self.clusters[-1] + 1 < MIN_CLUSTERS:
            return NO_MARGIN
        simulated = self._simulate()
        expected = margin_for_pairs(
            pairs=self.n,
            baseline=self._possible_baseline(),
            discordance=self.discordance,
            level=self.level,
            power=self.power,
            design_effect=self.design_effect(),
            kind=self.kind,
        )
        low = high = min(expected, NO_MARGIN)
        while self._power(simulated, high) < self.power:
            if high >= NO_MARGIN:
                return NO_MARGIN
            low, high = high, min(_WIDER * high, NO_MARGIN)
        while low == high or self._power(simulated, low) >= self.power:
            low, high = low / _WIDER, low
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._power(simulated, middle) >= self.power else (middle, high)
        return high * self._possible_baseline() / self.baseline if self.kind == "relative" else high

    def items_for(self, margin: float) -> int:
        """Return the items, in clusters like these, with which equal arms pass a margin.

        As many items as the formula asks for are taken from these; from the margin that those can show, the number
        follows by the square-root law, less the imagined cluster of the test. Where it comes out far from the number
        that was simulated, that one is simulated in its turn.

        Args:
            margin: Acceptable loss, as `kind` says.

        Raises:
            ValueError: the margin is out of range, or there are no items.
        """
        wanted = pairs_for_margin(
            margin=margin,
            baseline=self.baseline,
            discordance=self.discordance,
            level=self.level,
            power=self.power,
            design_effect=self.design_effect(),
            kind=self.kind,
        )
        points = self.baseline if self.kind == "relative" else 1.0
        for _ in range(_ROUNDS):
            # More than 4,000 only to have enough clusters.
            mean_size = self.n / (int(self.clusters[-1]) + 1)
            drawn = self.taking(min(wanted, max(_MOST_ITEMS, math.ceil(_ENOUGH_CLUSTERS * mean_size))))
            guard = drawn.typical_cluster()
            reach = max(points * drawn.smallest_margin() * drawn.n - guard, 0.0) / math.sqrt(drawn.n)
            root = (reach + math.sqrt(reach**2 + 4 * points * margin * guard)) / (2 * points * margin)
            wanted = math.ceil(root**2)
            if wanted > drawn.n / _NEAR and (wanted < drawn.n * _NEAR or drawn.n >= _MOST_ITEMS):
                break
        return wanted

    def typical_cluster(self) -> float:
        """Return the weighted size of the cluster in which an average item stands."""
        sizes = self._sums_of_weights()
        return float(sizes @ sizes) / float(sizes.sum())

    def taking(self, n: int) -> PlannedItems:
        """Return about n items in whole clusters, evenly over the clusters in the order of their size."""
        counts = np.bincount(self.clusters)
        wanted = max(round(n / counts.mean()), 1)
        evenly = ((np.arange(wanted) + 0.5) * counts.size / wanted).astype(np.int64)
        picked = np.argsort(self._sums_of_weights(), kind="stable")[evenly]
        starts = np.cumsum(counts) - counts
        items = np.concatenate([np.arange(starts[each], starts[each] + counts[each]) for each in picked])
        return replace(self, clusters=np.repeat(np.arange(wanted), counts[picked]), weights=self.weights[items])

    def _sums_of_weights(self) -> FloatArray:
        return np.bincount(self.clusters, weights=self.weights / self.weights.mean()).astype(np.float64)

    def _possible_baseline(self) -> float:
        """Return the nearest baseline at which equal arms can disagree as often as planned."""
        half = self.discordance / 2
        return min(max(self.baseline, half), 1 - half)

    def _simulate(self) -> Sums:
        """Draw scores of as many samples as a few seconds allow."""
        fewest, most = _SAMPLES
        samples = min(max(_ITEMS_AT_ONCE // self.n, fewest), most)
        rng = np.random.default_rng([self.seed, self.n, samples])
        groups = int(self.clusters[-1]) + 1
        alike = (rng.random((samples, groups)) < self.correlation)[:, self.clusters]
        chance = np.where(alike, rng.random((samples, groups))[:, self.clusters], rng.random((samples, self.n)))
        half = self.discordance / 2
        both = (chance >= 2 * half) & (chance < half + self._possible_baseline())
        weights, starts = self.weights / self.weights.mean(), np.searchsorted(self.clusters, np.arange(groups))
        target, legacy = (
            np.add.reduceat(weights * (both | only), starts, axis=1)
            for only in (chance < half, (chance >= half) & (chance < 2 * half))
        )
        return Sums(target, legacy, self._sums_of_weights())

    def _power(self, simulated: Sums, margin: float) -> float:
        """Chance that the test passes a margin, from the mean and the spread of its scores.

        Equal arms can change places: each sample counts a second time with them exchanged, which takes the chance out
        of the mean.
        """
        target, legacy, sizes = simulated
        both = np.concatenate([target, legacy]), np.concatenate([legacy, target])
        sized = np.broadcast_to(sizes, both[0].shape)
        evidence = (
            evidence_of_sums(*both, sized, ratio=1 - margin)
            if self.kind == "relative"
            else evidence_of_differences(*both, sized, margin=margin)
        )
        scores = evidence.noninferior.score
        passing = t_quantile(1 - self.level, sizes.size - 1)
        if not np.isfinite(scores).all() or (spread := float(scores.std())) == 0:
            return float((scores > passing).mean())
        return float(normal_tail(np.array((passing - scores.mean()) / spread)))
