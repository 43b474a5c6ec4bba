"""How many items the test of non-inferiority would need to decide, going by the pairs at hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from anven_pipelines.stats.distributions import normal_quantile
from anven_pipelines.stats.noninferiority import check_test, margin_evidence
from anven_pipelines.stats.pairs import FloatArray, Labels, Pairs, pair_up

if TYPE_CHECKING:
    from anven_pipelines.stats.sample_size import MarginKind

Direction = Literal["noninferior", "inferior"]
MOST_ITEMS = 10_000_000  # a plan above this is no plan


@dataclass(frozen=True)
class ItemsNeeded:
    """Total number of items, those at hand included, at which the test would decide with `power`."""

    total: int
    direction: Direction
    power: float


def items_needed(
    target: FloatArray,
    legacy: FloatArray,
    *,
    margin: float,
    kind: MarginKind = "relative",
    clusters: Labels | None = None,
    weights: FloatArray | None = None,
    level: float,
    power: float = 0.8,
) -> ItemsNeeded | None:
    """Estimate the total number of items at which `noninferiority` would decide, were the estimates the truth.

    The distance from the margin grows with n, less the imagined pair; the standard error grows with its root. Clusters
    are taken to stay as large and as alike as they are.

    Args:
        target: Scores in [0, 1], shape (n,), one per item.
        legacy: Scores in [0, 1], shape (n,), the same items in the same order.
        margin: Acceptable loss as a share of the legacy mean or in score points, in [0, 1).
        kind: "relative" for a share of the legacy mean, "absolute" for score points.
        clusters: Cluster (conversation) of each item, shape (n,); None if items are independent.
        weights: What each item stands for, such as calls of the traffic, shape (n,), above 0; None if all count once.
        level: One-sided error rate, below 0.5.
        power: Chance to decide with that many items, above `level` and below 1.

    Returns:
        The items and the claim they would prove; None where the estimate lies on the margin, or so near it that more
        than MOST_ITEMS would be needed.

    Raises:
        TooFewPairs: fewer than MIN_PAIRS pairs or MIN_CLUSTERS clusters.
        ValueError: shapes disagree, a score is NaN or outside [0, 1], a weight is not above 0, or
            `margin`, `level` or `power` is out of range.

    Source:
        The power of a score test, with the variance at the margin for `level` and the observed one for `power`;
        Nam and Blackwelder (2002), Statistics in Medicine 21:689, section 4.
    """
    check_test(margin, level)
    if not level < power < 1:
        message = f"power is {power}; a chance between the level, {level}, and 1 is needed"
        raise ValueError(message)
    pairs = pair_up(target, legacy, clusters, weights)
    totals, n = _totals(pairs, margin, kind), pairs.n_pairs
    effect = float(totals.sum()) / n
    if math.isclose(effect, 0, abs_tol=1e-12):
        return None
    direction: Direction = "noninferior" if effect > 0 else "inferior"
    both = margin_evidence(pairs, margin, kind)
    evidence = both.noninferior if direction == "noninferior" else both.inferior
    spread = float(np.sum((totals - effect * pairs.sizes) ** 2)) * pairs.n_clusters / (pairs.n_clusters - 1)
    reach = float(
        -normal_quantile(level) * math.sqrt(evidence.variance / n) + normal_quantile(power) * math.sqrt(spread / n)
    )
    # effect x n - guard = reach x sqrt(n), solved for sqrt(n).
    root = (reach + math.sqrt(reach**2 + 4 * abs(effect) * float(evidence.guard))) / (2 * abs(effect))
    total = math.ceil(root**2)
    return ItemsNeeded(total, direction, power) if total <= MOST_ITEMS else None


def _totals(pairs: Pairs, margin: float, kind: MarginKind) -> FloatArray:
    if kind == "relative":
        return pairs.target - (1 - margin) * pairs.legacy
    return pairs.target - pairs.legacy + margin * pairs.sizes
