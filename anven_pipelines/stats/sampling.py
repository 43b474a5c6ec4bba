"""Designed samples: more of the items where something is expected, and a rate that is right nevertheless."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from anven_pipelines.stats.distributions import log_binomial, normal_quantile
from anven_pipelines.stats.interval import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Shares of automated failures and passes that experts look at; 5-10 % and 1-2 % are usual.
FAILED_SHARE = 0.10
PASSED_SHARE = 0.02
# A stratum without a failure among 30 may still hold 9.5 % of them (one-sided 95 %); fewer say next to nothing.
LEAST = 30


@dataclass(frozen=True)
class Stratum:
    """How many of a stratum's items are drawn; `weight` is how many items each drawn one stands for."""

    name: str
    size: int
    drawn: int

    @property
    def weight(self) -> float:
        """Inverse of the chance to be drawn."""
        return self.size / self.drawn


@dataclass(frozen=True)
class Looked:
    """What was found in the sample of one stratum."""

    size: int
    drawn: int
    failures: int


@dataclass(frozen=True)
class Sample:
    """The drawn items, as positions in the given order, shape (n,), and how many items each stands for."""

    items: IntArray
    weights: FloatArray


def plan_sample(sizes: Mapping[str, int], *, shares: Mapping[str, float], least: int = LEAST) -> tuple[Stratum, ...]:
    """Plan how many items to draw from each stratum.

    Args:
        sizes: Items by stratum; empty strata are left out of the plan.
        shares: Share to draw by stratum, in (0, 1], e.g. FAILED_SHARE of the failures and PASSED_SHARE of the passes.
        least: Items to draw at least where the stratum has them; at least 1.

    Returns:
        One stratum for each that has items, in the order of `sizes`.

    Raises:
        ValueError: a size is negative, a share is missing or out of range, no item exists, or `least` is below 1.
    """
    for name, size in sizes.items():
        if size < 0 or not 0 < shares.get(name, math.nan) <= 1:
            message = f"stratum {name} has {size} items and the share {shares.get(name)}; a size from 0 up and a share"
            message += " above 0 and up to 1 are needed (5 % is 0.05)"
            raise ValueError(message)
    if least < 1 or not any(sizes.values()):
        message = f"{sum(sizes.values())} items and at least {least} a stratum; one or more of both are needed"
        raise ValueError(message)
    return tuple(
        Stratum(name, size, drawn=min(size, max(math.ceil(shares[name] * size - 1e-9), least)))
        for name, size in sizes.items()
        if size
    )


def draw_sample(strata: npt.ArrayLike, *, plan: Sequence[Stratum], rng: np.random.Generator) -> Sample:
    """Draw each stratum's planned number of items, every item of a stratum with the same chance.

    Args:
        strata: Name of each item's stratum, shape (n,).
        plan: From `plan_sample`, for these items.
        rng: Seeded by the caller, so that the sample can be drawn again.

    Returns:
        Drawn positions in ascending order with their weights, which add up to n.

    Raises:
        ValueError: the plan was made for other items.
    """
    names = np.asarray(strata)
    members = [np.flatnonzero(names == stratum.name) for stratum in plan]
    if [rows.size for rows in members] != [stratum.size for stratum in plan] or sum(map(len, members)) != names.size:
        message = f"the plan is for {sum(stratum.size for stratum in plan)} items in other strata than the {names.size}"
        message += " given; plan again for these"
        raise ValueError(message)
    items = [rng.choice(rows, stratum.drawn, replace=False) for rows, stratum in zip(members, plan, strict=True)]
    weights = np.repeat([stratum.weight for stratum in plan], [stratum.drawn for stratum in plan])
    drawn = np.concatenate(items)
    order = np.argsort(drawn)
    return Sample(drawn[order], weights[order])


def stratified_rate(strata: Sequence[Looked], *, level: float) -> Interval:
    """Estimate the failure rate of all items from a sample that drew some strata more densely than others.

    Every drawn item counts as often as its inverse chance to be drawn says (Horvitz and Thompson). Each stratum has
    an interval of its own, with its finite population corrected: Wilson's, or the exact one where none or all of the
    drawn failed. Their reaches, weighted by size, are added in squares.

    Args:
        strata: What was found in every stratum that has items. An item that was drawn and not judged is the caller's
            decision, not a missing draw.
        level: Two-sided coverage, e.g. 0.95.

    Returns:
        Interval in [0, 1]; without width only where every item was looked at.

    Raises:
        ValueError: no stratum, a stratum without a draw, counts that cannot be, or `level` is no coverage.

    Source:
        Cochran (1977), Sampling Techniques, sections 5.3 and 5.10; Horvitz and Thompson (1952), Journal of the
        American Statistical Association 47:663; adding the reaches: Zou and Donner (2008), Statistics in Medicine
        27:1693.
    """
    for found in strata:
        if not 0 <= found.failures <= found.drawn or not 0 < found.drawn <= found.size:
            message = f"{found.failures} failures in {found.drawn} drawn of {found.size} items; at least one draw and"
            message += " no more failures than draws, draws than items are needed in each stratum"
            raise ValueError(message)
    if not strata or not 0 < level < 1:
        message = f"{len(strata)} strata at level {level}; one or more and a coverage between 0 and 1 are needed"
        raise ValueError(message)
    shares = np.array([found.size for found in strata]) / sum(found.size for found in strata)
    rates = np.array([found.failures / found.drawn for found in strata])
    lower, upper = np.array([_bounds(found, level) for found in strata]).T
    estimate = float(shares @ rates)
    below, above = (float(np.sqrt(((shares * reach) ** 2).sum())) for reach in (rates - lower, upper - rates))
    drawn = sum(found.drawn for found in strata)
    method = f"stratified estimate from {drawn} drawn in {len(strata)} strata"
    return Interval(estimate, max(estimate - below, 0.0), min(estimate + above, 1.0), level, method)


def _bounds(found: Looked, level: float) -> tuple[float, float]:
    """Bound the failure rate of one stratum."""
    if found.drawn == found.size:
        return found.failures / found.size, found.failures / found.size
    if found.failures == 0:
        return 0.0, _unseen(found, level)
    if found.failures == found.drawn:
        return 1 - _unseen(found, level), 1.0
    # Wilson's interval with the variance p (1 - p) / n x (N - n) / (N - 1) of draws without replacement.
    z2 = normal_quantile((1 + level) / 2) ** 2 * (found.size - found.drawn) / (found.size - 1)
    rate, n = found.failures / found.drawn, found.drawn
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    reach = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return middle - reach, middle + reach


def _unseen(found: Looked, level: float) -> float:
    """Largest share of a kind of item of which so many draws may hold none with a chance of (1 - level) / 2."""
    whole = log_binomial(found.size, found.drawn)

    def proven_wrong(count: int) -> bool:
        return log_binomial(found.size - count, found.drawn) - whole < math.log((1 - level) / 2)

    return (bisect_left(range(found.size - found.drawn + 1), True, key=proven_wrong) - 1) / found.size  # noqa: FBT003 - what is searched
