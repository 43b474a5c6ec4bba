"""Means from many judge scores, corrected by the few items that humans labelled too (PPI++)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.distributions import beta_quantile, t_quantile
from anven_pipelines.stats.interval import Interval

if TYPE_CHECKING:
    from anven_pipelines.stats.pairs import FloatArray

MIN_LABELS = 40  # with so many, 92 % are covered at a nominal 95 % in the worst case: benchmarks/estimators.py


class Judged(NamedTuple):
    """Scores of one arm in [0, 1].

    `human` and `judge` have shape (n,): the labelled items in one order. `judge_only` has shape (N,): the other items,
    or all of them where the labelled ones were drawn with different chances, for the others then resemble them not.
    """

    human: FloatArray
    judge: FloatArray
    judge_only: FloatArray


def prediction_powered_mean(arm: Judged, *, weights: FloatArray | None = None, level: float) -> Interval:
    """Confidence interval for the mean human score of all items, labelled or not.

    mean(lambda x judge_only) + mean(human - lambda x judge), with lambda in [0, 1] chosen for the smallest variance:
    a judge that says nothing about the humans' scores leaves the plain mean of the labels.

    Args:
        arm: Scores of one arm.
        weights: Inverse chances with which the labelled items were drawn, above 0, shape (n,), any scale; None if the
            labelled items are a simple random sample. A sample rich in failures is biased without them.
        level: Two-sided coverage, e.g. 0.95.

    Returns:
        Interval in score points. Beside the published one it has t with n - 1 degrees of freedom and the factor
        n / (n - 1) in the variance; where the humans always agree with the judge, or always with each other, the
        exact bound for the share of items of which that is not true is added to the spread.

    Raises:
        TooFewPairs: fewer than MIN_LABELS items in either part.
        ValueError: shapes disagree, a score is NaN or outside [0, 1], or another argument is out of range.

    Source:
        Angelopoulos, Duchi and Zrnic (2023), arXiv:2311.01453, sections 2 and 6 (tuning).
    """
    checked = _checked(arm, "")
    return _interval(checked, weights, level=level, least=0.0)


def prediction_powered_difference(
    target: Judged, legacy: Judged, *, weights: FloatArray | None = None, level: float
) -> Interval:
    """Confidence interval for the mean of the humans' target score less legacy score, both arms on the same items.

    Args:
        target: Scores of the target.
        legacy: Scores of the legacy, the same items in the same order in each part.
        weights: As for `prediction_powered_mean`.
        level: Two-sided coverage, e.g. 0.95.

    Returns:
        Interval in score points.

    Raises:
        TooFewPairs: fewer than MIN_LABELS items in either part.
        ValueError: as `prediction_powered_mean`, or the arms' shapes disagree.

    Source:
        As `prediction_powered_mean`, on the differences.
    """
    target, legacy = _checked(target, "target "), _checked(legacy, "legacy ")
    if target.human.shape != legacy.human.shape or target.judge_only.shape != legacy.judge_only.shape:
        message = f"target has {target.human.size} labels and {target.judge_only.size} scores without, legacy"
        message += f" {legacy.human.size} and {legacy.judge_only.size}; the same items are needed in both"
        raise ValueError(message)
    difference = Judged(*(ours - theirs for ours, theirs in zip(target, legacy, strict=True)))
    return _interval(difference, weights, level=level, least=-1.0)


def _interval(arm: Judged, weights: FloatArray | None, *, level: float, least: float) -> Interval:
    """Estimate and bound, for scores from `least` to 1."""
    if not 0 < level < 1:
        message = f"level is {level}; a two-sided coverage between 0 and 1 is needed, e.g. 0.95"
        raise ValueError(message)
    share = _normalised(weights, arm.human.size)
    tuning = _tuning(arm, share)
    corrections = share * (arm.human - tuning * arm.judge)
    estimate = tuning * float(arm.judge_only.mean()) + float(corrections.mean())
    n, tail = corrections.size, (1 + level) / 2
    # Variances as the paper's package takes them, by n; the factor is n / (n - 1) in their sum.
    factor = t_quantile(tail, n - 1) * math.sqrt(n / (n - 1))
    judged = factor * tuning * float(arm.judge_only.std()) / math.sqrt(arm.judge_only.size)
    corrected = factor * float(corrections.std()) / math.sqrt(n)
    if np.ptp(arm.human - arm.judge) == 0 or np.ptp(arm.human) == 0:
        # Nothing was seen to vary, so an item of another kind may stand behind the effective number of labels.
        corrected = math.hypot(corrected, (1 - least) * beta_quantile(tail, 1, n**2 / float(share @ share)))
    half = math.hypot(judged, corrected)
    method = f"PPI++ from {n} labels and {arm.judge_only.size} judge scores, lambda {tuning:.3f}"
    return Interval(estimate, estimate - half, estimate + half, level, method)


def _tuning(arm: Judged, share: FloatArray) -> float:
    """Choose lambda: covariance of human and judge over the variance of the judge, for these two sample sizes."""
    first = float(arm.judge_only.mean() + (share * (arm.human - arm.judge)).mean())
    human, judge = share * (arm.human - first), share * (arm.judge - first)
    covariance = float((human - human.mean()) @ (judge - judge.mean())) / human.size
    variance = float(np.var(np.concatenate([judge, arm.judge_only - first]), ddof=1))
    if variance == 0:
        return 0.0
    return min(max(covariance / ((1 + human.size / arm.judge_only.size) * variance), 0.0), 1.0)


def _normalised(weights: FloatArray | None, n: int) -> FloatArray:
    if weights is None:
        return np.ones(n)
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (n,) or not (np.isfinite(weights) & (weights > 0)).all():
        message = f"weights have shape {weights.shape}; one finite weight above 0 for each of {n} labels is needed"
        raise ValueError(message)
    return np.asarray(weights / weights.mean())


def _checked(arm: Judged, name: str) -> Judged:
    arm = Judged(*(np.asarray(scores, dtype=np.float64) for scores in arm))
    if arm.human.ndim != 1 or arm.human.shape != arm.judge.shape or arm.judge_only.ndim != 1:
        message = f"{name}human has shape {arm.human.shape}, judge {arm.judge.shape}, judge_only"
        message += f" {arm.judge_only.shape}; (n,), (n,) and (N,) are needed"
        raise ValueError(message)
    for field, scores in zip(Judged._fields, arm, strict=True):
        if not ((scores >= 0) & (scores <= 1)).all():
            message = f"{name}{field} holds a score that is NaN or outside [0, 1]; decide first what no score counts as"
            raise ValueError(message)
    if min(arm.human.size, arm.judge_only.size) < MIN_LABELS:
        message = f"{arm.human.size} labelled and {arm.judge_only.size} other items; at least {MIN_LABELS} of each"
        message += " are needed: label or score more"
        raise TooFewPairs(message)
    return arm
