"""Do two samples of calls fall into the same categories in the same shares?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

MIN_EXPECTED = 5.0  # below, the chi-squared reference is poor; Cochran (1954), Biometrics 10:417


class ShareComparison(NamedTuple):
    """How two samples differ in the shares of their categories."""

    p_difference: float
    """p-value of the G-test; 1 where only one category is left to compare."""
    distance: float
    """Total variation distance of the observed shares, in [0, 1]: the share of calls that would have to move."""
    power: float
    """Least chance that a true distance of `detectable` gives a p-value below `level`."""
    method: str


def compare_shares(
    first: FloatArray, second: FloatArray, *, design_effects: tuple[float, float], detectable: float, level: float
) -> ShareComparison:
    """Compare the category counts of two independent samples.

    Categories are pooled, the rarest first, until each is expected `MIN_EXPECTED` times in both samples. Each
    sample's counts are divided by its own design effect, so that calls of one conversation do not count as independent.

    Args:
        first: Counts per category, shape (k,), not negative.
        second: Counts of the same categories, shape (k,).
        design_effects: Calls per independent one in each sample, at least 1; 1 where calls are independent.
        detectable: Distance in (0, 1] for which the power is stated.
        level: Error rate in (0, 1) at which the power is stated.

    Raises:
        ValueError: shapes differ, a sample is empty, a count is negative or not finite, or a setting is out of range.

    Source:
        G-test: Wilks (1938); design effect: Rao and Scott (1981), J. Am. Stat. Assoc. 76:221, first-order correction
        with the largest design effect in place of the mean one. Power: noncentral chi-squared, whose noncentrality is
        at least 4 d² n m / (n + m) at a total variation distance d, by Cauchy and Schwarz.
    """
    _check(first, second, design_effects, detectable, level)
    from scipy import stats  # noqa: PLC0415 - takes 0.5 s to import

    distance = 0.5 * float(np.abs(first / first.sum() - second / second.sum()).sum())
    table = _pooled(np.stack([first, second]) / np.array(design_effects)[:, None])
    sizes = table.sum(axis=1)
    freedom = table.shape[1] - 1
    if freedom < 1:
        return ShareComparison(1.0, distance, 0.0, "one category after pooling: nothing to compare")
    expected = np.outer(sizes, table.sum(axis=0)) / sizes.sum()
    terms = np.where(table > 0, table * np.log(np.where(table > 0, table, 1.0) / expected), 0.0)
    noncentrality = 4 * detectable**2 * float(sizes.prod() / sizes.sum())
    critical = stats.chi2.isf(level, freedom)
    return ShareComparison(
        p_difference=float(stats.chi2.sf(2 * terms.sum(), freedom)),
        distance=distance,
        power=float(stats.ncx2.sf(critical, freedom, noncentrality)),
        method=f"G-test over {freedom + 1} categories, design effects "
        f"{design_effects[0]:.2f} and {design_effects[1]:.2f}",
    )


def _pooled(table: FloatArray) -> FloatArray:
    """Join the rarest categories until each expected count is large enough, shape (2, k) to (2, k')."""
    smaller = table.sum(axis=1).min() / table.sum()
    columns = sorted(table.T.tolist(), key=sum)
    while len(columns) > 1 and sum(columns[0]) * smaller < MIN_EXPECTED:
        rarest, second, *others = columns
        columns = sorted([[a + b for a, b in zip(rarest, second, strict=True)], *others], key=sum)
    return np.array(columns).T


def _check(
    first: FloatArray, second: FloatArray, design_effects: tuple[float, float], detectable: float, level: float
) -> None:
    """Refuse what would give a wrong answer in silence."""
    if first.ndim != 1 or first.shape != second.shape:
        message = f"counts of shapes {first.shape} and {second.shape}; two of the same shape (k,) are needed"
        raise ValueError(message)
    both = np.concatenate([first, second])
    if not (np.isfinite(both).all() and (both >= 0).all() and first.sum() > 0 and second.sum() > 0):
        message = "a count is negative, NaN or infinite, or a sample is empty; finite counts of calls are needed"
        raise ValueError(message)
    if not (all(each >= 1 for each in design_effects) and 0 < detectable <= 1 and 0 < level < 1):
        message = (
            f"design_effects are {design_effects}, detectable {detectable}, level {level}; at least 1, and shares "
            "above 0 are needed"
        )
        raise ValueError(message)
