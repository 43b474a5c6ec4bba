"""Harm in p95 at every look at once: the bounds of two `QuantileSequence`, and what a unit can tell of them at most."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import rel_entr

from anven_pipelines.domain.rollout_measure import P95
from anven_pipelines.domain.rollout_reading import NEVER_MS
from anven_pipelines.stats.boundaries import beta_binomial_evidence, beta_binomial_weight
from anven_pipelines.stats.confidence_sequence import N_OPT
from anven_pipelines.stats.quantile_sequence import PRECISION, SMALLEST, QuantileSequence

if TYPE_CHECKING:
    import numpy.typing as npt

    from benchmarks.canary_controllers import BoolArray, FloatArray, IntArray, Units


class Ranks(NamedTuple):
    """For 0, 1, 2, ... values the fewest and the most that may lie below p95, as `plausible_counts` has them."""

    fewest: IntArray
    most: IntArray


def p95_harm(units: Units, bad: FloatArray, inside: slice, alpha: float, *, limit: float) -> int | None:
    """First unit at whose look p95 is proven to be later by more than the limit; None where there is none.

    Args:
        units: Of the stage.
        bad: Times in ms, NaN where the request failed, shape (units,).
        inside: What of the stage is judged.
        alpha: One-sided error rate, of which either arm's sequence errs at all of it on both sides.
        limit: In ms.
    """
    treated, a_look = units.treated[inside], units.a_look
    values, place = np.unique(np.where(np.isnan(bad[inside]), NEVER_MS, bad[inside]), return_inverse=True)
    edges = np.array([edges_of(value) for value in values.tolist()])
    ranks = ranks_of(1 << len(place).bit_length(), alpha)  # a few tables serve all sizes
    target, legacy = (counted(place[: _whole(place, a_look)], arm, a_look, len(values)) for arm in (treated, ~treated))
    n, m = target[:, -1], legacy[:, -1]
    fewest, most = ranks.fewest[n], ranks.most[m]
    at_least = (target < fewest[:, None]).sum(axis=1)
    at_most = np.minimum((legacy <= most[:, None]).sum(axis=1), len(values) - 1)
    lower = np.where(fewest > 0, edges[np.minimum(at_least, len(values) - 1), 0], 0.0)
    upper = np.where(most < m, edges[at_most, 1], np.inf)
    harmful = np.flatnonzero((lower - upper > limit) & (n > 0) & (m > 0))
    return int(harmful[0] + 1) * a_look if harmful.size else None


def _whole(place: IntArray, a_look: int) -> int:
    """How many units come before the last look."""
    return len(place) // a_look * a_look


def counted(place: IntArray, arm: BoolArray, a_look: int, values: int) -> npt.NDArray[np.int32]:
    """Count, at each look, an arm's values up to each of those that there are, shape (looks, values)."""
    looks = len(place) // a_look
    cell = np.arange(len(place)) // a_look * values + place
    counts = np.bincount(cell[arm[: len(place)]], minlength=looks * values).reshape(looks, values)
    # Half as wide as usual: these two sums are most of what a ramp costs, and are three times as fast so.
    return counts.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)


@cache
def edges_of(value: float) -> tuple[float, float]:
    """Return the edges of a value's bin in a `QuantileSequence`."""
    upper = QuantileSequence(quantile=P95).update([value]).estimate
    return (0.0 if upper <= SMALLEST else upper / (1 + PRECISION)), upper


@cache
def ranks_of(size: int, alpha: float) -> Ranks:
    """Return the plausible ranks of p95 among 0 to size values, found by bisection of all at once."""
    n = np.arange(size + 1)
    weight = beta_binomial_weight(N_OPT, alpha)

    def contradict(counts: IntArray) -> BoolArray:
        possible = np.clip(counts, 0, n)
        evidence = beta_binomial_evidence(possible, n - possible, share=P95, weight=weight)
        return np.asarray((evidence + np.log(alpha) > 0) | (possible != counts))

    few, fewest = np.full_like(n, -1), np.ceil(n * P95).astype(np.int64)
    most, many = np.floor(n * P95).astype(np.int64), n + 1
    for _ in range(size.bit_length() + 1):
        middle = (few + fewest) // 2
        out = contradict(middle)
        few, fewest = np.where(out, middle, few), np.where(out, fewest, middle)
        middle = (most + many) // 2
        out = contradict(middle)
        most, many = np.where(out, most, middle), np.where(out, middle, many)
    return Ranks(fewest, most)


def told_of_p95(target: FloatArray, legacy: FloatArray, *, limit: float, share: float) -> float:
    """Return the most that a unit can tell of p95 being later by more than the limit, in nats; 0 where it is not.

    Args:
        target: Equally likely times in ms, infinite where the request failed.
        legacy: Those of the other arm.
        limit: In ms.
        share: Of the target.
    """
    # Two arms within the limit have a time x that legacy's p95 reaches and the target's exceeds by the limit at most.
    x = np.append(np.unique(legacy), np.inf)
    late = np.maximum(P95 - _share_up_to(target, x + limit, side="right"), 0.0)
    early = np.maximum(_share_up_to(legacy, x, side="left") - P95, 0.0)
    told = share * divergence(P95 - late, P95) + (1 - share) * divergence(P95 + early, P95)
    return float(told.min())


def divergence(p: FloatArray | float, q: FloatArray | float) -> FloatArray:
    """Kullback-Leibler divergence of two chances, in nats."""
    return np.asarray(rel_entr(p, q) + rel_entr(1 - np.asarray(p), 1 - np.asarray(q)))


def _share_up_to(values: FloatArray, x: FloatArray, *, side: str) -> FloatArray:
    place = np.searchsorted(np.sort(values), x, side="left" if side == "left" else "right")
    return np.asarray(place / len(values))
