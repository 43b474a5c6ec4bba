"""Score tests of a ratio or a difference of paired means, on whole arrays of samples at once.

Every test compares a total with its standard error under the hypothesis that is to be refuted, and every test first
adds an imagined pair that speaks against the claim: a small or degenerate sample (no pair lost so far) is then never
infinitely sure. For one sample use `anven_pipelines.stats.paired`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# Weights of the imagined pair. Counts of rare losses are skewed, so the two claims need different ones. With
# these the worst error rates at a level of 5 % are 4.6 % (GO) and 4.3 % (NO-GO): benchmarks/error_rates.py, "rare
# losses".
LOST_PAIR = 0.5
GAINED_PAIR = 1.0
# A whole cluster: with half of one, uneven clusters (sizes 1 to 60) pass more often than the level allows.
LOST_CLUSTER = 1.0

_NEWTON_STEPS = 200  # 5 to 10 are usual; bisection takes over where Newton leaves the bracket
_NEWTON_TOLERANCE = 1e-12


class Evidence(NamedTuple):
    """How far a guarded total lies on the claim's side, its variance at the margin, and what the guard took off."""

    distance: FloatArray
    variance: FloatArray
    guard: FloatArray

    @property
    def score(self) -> FloatArray:
        """Standardised distance; minus infinity where no distribution at the margin could give such data."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.variance > 0, self.distance / np.sqrt(self.variance), -np.inf)


class MarginEvidence(NamedTuple):
    """Evidence for both claims: the target's mean lies above, or below, `ratio` times the legacy mean."""

    noninferior: Evidence
    inferior: Evidence


def evidence_of_counts(
    both: npt.ArrayLike, gained: npt.ArrayLike, lost: npt.ArrayLike, *, ratio: float
) -> MarginEvidence:
    """Weigh 2 x 2 tables of independent pairs against a ratio of the two proportions.

    Args:
        both: Pairs that both arms got right, any shape.
        gained: Pairs that only the target got right, the same shape.
        lost: Pairs that only the legacy got right, the same shape.
        ratio: Ratio of the proportions under the hypothesis, above 0.

    Returns:
        Evidence in pairs; its score is standard normal at the ratio.

    Source:
        Nam and Blackwelder (2002), Statistics in Medicine 21:689; Tang, Tang and Chan (2003), the same, 22:1217.
    """
    both, gained, lost = (np.asarray(count, dtype=np.float64) for count in (both, gained, lost))
    doubted, favoured = lost + LOST_PAIR, gained + GAINED_PAIR
    return MarginEvidence(
        Evidence(
            both + gained - ratio * (both + doubted),
            restricted_variance_of_counts(both, gained, doubted, ratio=ratio),
            np.asarray(LOST_PAIR * ratio),
        ),
        Evidence(
            ratio * (both + lost) - both - favoured,
            restricted_variance_of_counts(both, favoured, lost, ratio=ratio),
            np.asarray(GAINED_PAIR),
        ),
    )


def evidence_of_sums(target: FloatArray, legacy: FloatArray, sizes: FloatArray, *, ratio: float) -> MarginEvidence:
    """Weigh cluster sums of any scores in [0, 1] against a ratio of the two means.

    The imagined pair becomes an imagined cluster of the size in which an average item stands.

    Args:
        target: Summed scores by cluster, shape (..., clusters).
        legacy: The same of the legacy.
        sizes: Number of pairs by cluster, the same shape; 0 for a cluster that one sample of several lacks.
        ratio: Ratio of the means under the hypothesis, above 0.

    Returns:
        Evidence in score points, shape (...); its score is compared with t, clusters - 1 degrees of freedom.

    Source:
        The score test above, with the empirical likelihood of Owen (2001), Empirical Likelihood, chapter 3, in place
        of the multinomial one and cluster totals in place of pairs. For counts the two are the same test.
    """
    return _evidence(target - ratio * legacy, sizes, lost=-ratio, gained=1.0)


def evidence_of_differences(
    target: FloatArray, legacy: FloatArray, sizes: FloatArray, *, margin: float
) -> MarginEvidence:
    """Weigh cluster sums of any scores in [0, 1] against a difference of the two means.

    Args:
        target: Summed scores by cluster, shape (..., clusters).
        legacy: The same of the legacy.
        sizes: Number of pairs by cluster, the same shape; 0 for a cluster that one sample of several lacks.
        margin: Loss under the hypothesis, in score points: the target's mean is the legacy's less this.

    Returns:
        Evidence in score points, shape (...); its score is compared with the normal for independent items scored 0
        or 1, where the test is Tango's, and else with t, clusters - 1 degrees of freedom.

    Source:
        Tango (1998), Statistics in Medicine 17:891, with the empirical likelihood as in `evidence_of_sums`.
    """
    return _evidence(target - legacy + margin * sizes, sizes, lost=margin - 1, gained=margin + 1)


def _evidence(totals: FloatArray, sizes: FloatArray, *, lost: float, gained: float) -> MarginEvidence:
    """Weigh totals with an imagined pair, or cluster, of the value that speaks against each claim."""
    typical = np.asarray((sizes**2).sum(-1) / sizes.sum(-1))
    weight = LOST_PAIR if sizes.max() <= 1 else LOST_CLUSTER
    return MarginEvidence(
        _guarded(totals, lost * typical, weight=weight),
        _guarded(-totals, -gained * typical, weight=GAINED_PAIR),
    )


def _guarded(totals: FloatArray, imagined: FloatArray, *, weight: float) -> Evidence:
    values = np.concatenate([totals, imagined[..., None]], axis=-1)
    weights = np.append(np.ones(totals.shape[-1]), weight)
    return Evidence((values * weights).sum(-1), restricted_variance(values, weights), -weight * imagined)


def restricted_variance_of_counts(
    both: FloatArray, gained: FloatArray, lost: FloatArray, *, ratio: float
) -> FloatArray:
    """Variance of target total - ratio x legacy total at the maximum of the likelihood with the means in that ratio.

    With t = both + gained + lost and p(lost) = u t / n, the likelihood is highest at the larger root of
    t (1 + ratio) u^2 - (both + gained + 2 lost - ratio^2 (both + lost)) u + lost (1 - ratio) = 0, and the variance
    n ratio (p(gained) + p(lost)) is t ((1 + ratio) u - (1 - ratio)).

    Args:
        both: Pairs that both arms got right, any shape; fractions are allowed.
        gained: Pairs that only the target got right.
        lost: Pairs that only the legacy got right.
        ratio: Ratio of the proportions, above 0.

    Returns:
        Variance in pairs squared, 0 where the likelihood leaves none.

    Source:
        Tang, Tang and Chan (2003), Statistics in Medicine 22:1217, rewritten so that n falls out.
    """
    total = both + gained + lost
    linear = both + gained + 2 * lost - ratio**2 * (both + lost)
    root = np.sqrt(np.maximum(linear**2 - 4 * (1 + ratio) * (1 - ratio) * total * lost, 0))
    return np.maximum((linear + root) / 2 - (1 - ratio) * total, 0)


def restricted_variance(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Variance of a weighted total under the likeliest distribution on the sample whose mean is 0.

    Args:
        values: Shape (..., n).
        weights: Shape (n,), above 0.

    Returns:
        Sum of weight x value^2 / (1 + m x value), shape (...), where m makes the sum of weight x value /
        (1 + m x value) vanish; 0 where all values lie on one side of 0, so that no such m exists.

    Source:
        Owen (2001), Empirical Likelihood, section 3.14.
    """
    highest, lowest = values.max(-1), values.min(-1)
    inside = (lowest < 0) & (highest > 0)
    values = np.where(inside[..., None], values, 0)
    # Each probability weight / (total x (1 + m x value)) is at most 1, which bounds m on both sides.
    slack = 1 - weights.min() / weights.sum()
    lower, upper = -slack / np.where(inside, highest, 1), slack / np.where(inside, -lowest, 1)
    tilt = np.zeros(values.shape[:-1])
    for _ in range(_NEWTON_STEPS):
        tilted = values / (1 + tilt[..., None] * values)
        slope, curvature = (weights * tilted).sum(-1), (weights * tilted**2).sum(-1)
        lower, upper = np.where(slope > 0, tilt, lower), np.where(slope < 0, tilt, upper)
        step = tilt + slope / np.where(curvature > 0, curvature, 1)
        step = np.where((step >= lower) & (step <= upper), step, (lower + upper) / 2)
        moved = np.abs(step - tilt) * np.maximum(np.abs(highest), np.abs(lowest))
        tilt = np.where(inside, step, 0)
        if not (moved[inside] > _NEWTON_TOLERANCE).any():
            break
    return np.asarray((weights * values**2 / (1 + tilt[..., None] * values)).sum(-1))
