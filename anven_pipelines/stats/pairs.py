"""Paired scores, checked once and summed by cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anven_pipelines.domain.errors import TooFewPairs

FloatArray = npt.NDArray[np.float64]
Labels = npt.NDArray[Any]

# The error rates hold below these numbers too, but little can be decided there: 8 equal clusters do not refute even a
# target that always fails at a one-sided 2.5 % (p = 0.028; 10 give 0.013, and 10 pairs 0.004).
MIN_PAIRS = 10
EVEN = 1e-3  # relative range of weights that count as equal
MIN_CLUSTERS = 10


class Counts(NamedTuple):
    """The 2 x 2 table of right and wrong answers, without the pairs that both arms got wrong."""

    both: int
    gained: int
    lost: int


class Discordant(NamedTuple):
    """Pairs that only one arm got right, each counted with its weight."""

    gained: float
    lost: float


@dataclass(frozen=True)
class Pairs:
    """Sums by cluster; a pair that stands alone is a cluster of one.

    `target`, `legacy` and `sizes` have shape (n_clusters,) and hold the summed scores and the number of pairs; with
    weights, the weighted sums, the weights scaled to a mean of 1. `discordant` is there where every score is 0 or 1,
    and `counts` where moreover every pair stands alone and all weigh the same. `spread` is the variance of a single
    pair's difference, weighted.
    """

    target: FloatArray
    legacy: FloatArray
    sizes: FloatArray
    counts: Counts | None
    discordant: Discordant | None
    spread: float
    n_pairs: int

    @property
    def n_clusters(self) -> int:
        """Number of independent clusters."""
        return self.sizes.size

    @property
    def alone(self) -> bool:
        """Whether every pair is its own cluster."""
        return self.n_clusters == self.n_pairs


def pair_up(
    target: FloatArray, legacy: FloatArray, clusters: Labels | None, weights: FloatArray | None = None
) -> Pairs:
    """Check paired scores and sum them by cluster.

    Args:
        target: Scores in [0, 1], shape (n,), one per item.
        legacy: Scores in [0, 1], shape (n,), the same items in the same order.
        clusters: Cluster of each item, shape (n,), any type that sorts; None if items are independent.
        weights: What each item stands for, such as calls of the traffic, shape (n,), above 0; None if all count once.

    Returns:
        The sums; clusters that all hold one item count as no clusters, equal weights as none.

    Raises:
        ValueError: shapes disagree, a score is NaN or outside [0, 1], a cluster is NaN, or a weight is not above 0.
        TooFewPairs: fewer than MIN_PAIRS pairs, or fewer than MIN_CLUSTERS clusters by their number or by Kish's
            effective number, which a few heavy ones leave small.

    Source:
        Kish (1965), Survey Sampling, section 11.7, for the effective number.
    """
    target, legacy = _scores("target", target), _scores("legacy", legacy)
    if target.shape != legacy.shape:
        message = f"{target.size} target scores for {legacy.size} legacy scores; the same items are needed in both"
        raise ValueError(message)
    if target.size < MIN_PAIRS:
        message = f"{target.size} pairs; at least {MIN_PAIRS} are needed: measure more items"
        raise TooFewPairs(message)
    labels = cluster_labels(clusters, target.size)
    scaled = scaled_weights(weights, target.size)
    sizes = np.bincount(labels, weights=scaled).astype(np.float64)
    if sizes.size < MIN_CLUSTERS:
        message = f"{target.size} pairs in {sizes.size} clusters; {MIN_CLUSTERS} clusters are needed: measure more"
        raise TooFewPairs(message)
    # Without weights, unequal clusters are what the error rates were measured with.
    if scaled is not None and (effective := effective_number(sizes)) < MIN_CLUSTERS:
        message = (
            f"{sizes.size} clusters of such unequal weight count like {effective:.1f}; {MIN_CLUSTERS} are needed: "
            "measure more"
        )
        raise TooFewPairs(message)
    alone = sizes.size == target.size and scaled is None
    binary = bool(np.isin(target, (0, 1)).all() and np.isin(legacy, (0, 1)).all())
    return Pairs(
        target=_summed(labels, target, scaled),
        legacy=_summed(labels, legacy, scaled),
        sizes=sizes,
        counts=_counts(target, legacy) if binary and alone else None,
        discordant=_discordant(target, legacy, scaled) if binary else None,
        spread=float(np.cov(target - legacy, aweights=scaled, ddof=0)),
        n_pairs=target.size,
    )


def effective_number(weights: FloatArray) -> float:
    """Return how many equally weighted items carry as much information: (sum w)^2 / sum w^2.

    Args:
        weights: Shape (n,), 0 or more, of which one is above 0.

    Source:
        Kish (1965), Survey Sampling, section 11.7.
    """
    return float(weights.sum()) ** 2 / float(weights @ weights)


def counted_over(pairs: Pairs) -> str:
    """Say what the sums are over, where it is not simply the items."""
    clusters = "" if pairs.alone else f" over {pairs.n_clusters} clusters"
    if pairs.sizes.max() > 1 and pairs.alone:
        return f", weighted (like {effective_number(pairs.sizes):.0f} equal items)"
    return clusters


def scaled_weights(weights: FloatArray | None, n: int) -> FloatArray | None:
    """Return weights with a mean of 1, or None where all are as good as equal.

    Largest-remainder rounding gives strata of equal shares weights that differ by less than `EVEN`; to take those for
    unequal would cost a quarter more items at the least number, and move an estimate by less than 0.05 % of the share
    of discordant pairs.

    Args:
        weights: Shape (n,), above 0; None where all count once.
        n: Number of items.

    Raises:
        ValueError: another shape, or a weight that is not finite and above 0.
    """
    if weights is None:
        return None
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (n,):
        message = f"weights have shape {weights.shape}; one weight per pair, shape ({n},), is needed"
        raise ValueError(message)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        message = f"the smallest weight is {weights.min()}; finite weights above 0 are needed: leave other items out"
        raise ValueError(message)
    return None if np.ptp(weights) <= EVEN * weights.min() else weights / weights.mean()


def cluster_labels(clusters: Labels | None, n: int) -> npt.NDArray[np.intp]:
    """Number the clusters from 0 up, shape (n,).

    Args:
        clusters: Cluster of each item, shape (n,), any type that sorts; None where every item stands alone.
        n: Number of items.

    Raises:
        ValueError: another shape, or a cluster is NaN.
    """
    if clusters is None:
        return np.arange(n)
    clusters = np.asarray(clusters)
    if clusters.shape != (n,):
        message = f"clusters have shape {clusters.shape}; one cluster per pair, shape ({n},), is needed"
        raise ValueError(message)
    if clusters.dtype.kind == "f" and np.isnan(clusters).any():
        message = "a cluster is NaN; give an item without a cluster a cluster of its own"
        raise ValueError(message)
    return np.unique(clusters, return_inverse=True)[1]


def _summed(labels: npt.NDArray[np.intp], scores: FloatArray, weights: FloatArray | None) -> FloatArray:
    return np.bincount(labels, weights=scores if weights is None else scores * weights).astype(np.float64)


def _scores(name: str, scores: FloatArray) -> FloatArray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1:
        message = f"{name} scores have shape {scores.shape}; one score per item, shape (n,), is needed"
        raise ValueError(message)
    missing = int(np.isnan(scores).sum())
    if missing:
        message = f"{missing} of {scores.size} {name} scores are NaN; decide first what an unmeasured item counts as"
        raise ValueError(message)
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):
        message = f"{name} scores run from {scores.min():g} to {scores.max():g}; scores in [0, 1] are needed"
        raise ValueError(message)
    return scores


def _counts(target: FloatArray, legacy: FloatArray) -> Counts:
    both = int((target * legacy).sum())
    return Counts(both, gained=int(target.sum()) - both, lost=int(legacy.sum()) - both)


def _discordant(target: FloatArray, legacy: FloatArray, weights: FloatArray | None) -> Discordant:
    weights = np.ones(target.size) if weights is None else weights
    return Discordant(gained=float(weights[target > legacy].sum()), lost=float(weights[target < legacy].sum()))
