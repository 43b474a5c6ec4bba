"""What the paired comparison of scores proves.

An item that was not measured never helps the target: to prove "not worse" a missing target score counts as 0
and a missing legacy score as 1, to prove "worse" the other way round (bounds that assume nothing about why a
score is missing: Manski 2003, Partial Identification of Probability Distributions, chapter 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.domain.evaluation import TRAFFIC, Finding, cluster_codes, rounded
from anven_pipelines.domain.power import PLANNED_POWER, items_for
from anven_pipelines.stats.items_needed import items_needed
from anven_pipelines.stats.noninferiority import NonInferiority, noninferiority, ratio_interval
from anven_pipelines.stats.paired import design_effect, difference_interval
from anven_pipelines.stats.pairs import MIN_PAIRS, effective_number
from anven_pipelines.stats.sample_size import MarginKind, margin_for_pairs

if TYPE_CHECKING:
    from anven_pipelines.stats.interval import Interval

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Outcome = Literal["not worse", "worse", "unproven", "too few items"]


class Imputation(Finding):
    """What counting unmeasured items against the claim changed.

    Attributes:
        items: Items without a score in both arms.
        p_not_worse_measured: p-value of "not worse" over the measured pairs alone; it decides nothing.
        changed: Whether the measured pairs alone would have given another outcome.
    """

    items: int
    p_not_worse_measured: float | None = None
    changed: bool = False


class Quality(Finding):
    """What the paired comparison of scores says.

    Attributes:
        better: Whether the target is moreover proven better than the legacy, at the same level.
        interval: Of the mean difference in score points, two-sided at `interval_level`.
        ratio_interval: Of the ratio of the means; it lies above 1 - margin exactly where "not worse" is proven of
            measured pairs on a relative margin.
        design_effect: Factor by which clusters and weights enlarge the variance; 1 without either.
        power: What `smallest_margin` and `n_needed` are stated for.
        smallest_margin: Margin, of the kind of `margin`, that equal arms with this disagreement pass at `power`, by
            the normal formula: with long conversations somewhat too small.
        shortage: What a test would need more of, where the outcome is "too few items".
    """

    estimand: str
    outcome: Outcome
    better: bool = False
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    interval_level: float
    interval_method: str | None = None
    margin: float
    margin_kind: MarginKind
    margin_points: float | None = None
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None
    level: float
    method: str | None = None
    p_not_worse: float | None = None
    p_worse: float | None = None
    p_better: float | None = None
    legacy_mean: float | None = None
    target_mean: float | None = None
    lost: int | None = None
    gained: int | None = None
    n: int
    n_measured: int
    n_clusters: int
    n_effective: float
    design_effect: float | None = None
    power: float = PLANNED_POWER
    smallest_margin: float | None = None
    imputation: Imputation
    n_needed: int | None = None
    items_still_needed: int | None = None
    needed_to_prove: str | None = None
    shortage: str | None = None


def compare_quality(
    scores: pl.DataFrame, *, margin: float, level: float, kind: MarginKind = "relative", of: str = TRAFFIC
) -> Quality:
    """Test whether the target's mean score lies no further below the legacy's than the margin.

    Args:
        scores: SCORES rows; missing scores are NULL.
        margin: Acceptable loss in (0, 1), as a share of the legacy mean or in score points.
        level: One-sided error rate; the intervals have level 1 - 2 * level, so that both say the same.
        kind: What the margin is a share of.
        of: Role of the items that are compared. Those of the traffic are weighted with the calls that they stand for.

    Returns:
        The comparison; `outcome` rests on the worst case of what is missing, the estimate on measured pairs.
    """
    scores = scores.filter(pl.col("role") == of)
    weighting = _Weighting.of(scores)
    measured = _measured(scores)
    facts: dict[str, Any] = {
        "estimand": _estimand(of, kind),
        "margin": margin,
        "margin_kind": kind,
        "level": level,
        "interval_level": rounded(1 - 2 * level),
        "n": scores.height,
        "n_measured": measured.height,
        "n_clusters": scores["cluster"].n_unique(),
        "n_effective": weighting.effective,
    }
    unmeasured = scores.height - measured.height
    try:
        against = _test(*_worst_case(scores), weighting, margin=margin, level=level, kind=kind)
        in_favour = _test(*_best_case(scores), weighting, margin=margin, level=level, kind=kind)
        described = _describe(measured, margin=margin, level=level, kind=kind)
        better = _test(*_worst_case(scores), weighting, margin=0.0, level=level, kind=kind)
    except TooFewPairs as error:
        # The formula knows independent items alone, and those that are unmeasured are no fewer for more items.
        plannable = not unmeasured and weighting.clusters is None and scores.height < MIN_PAIRS
        return Quality(
            outcome="too few items",
            imputation=Imputation(items=unmeasured),
            shortage=str(error),
            **facts,
            **_means(measured),
            **(_planned(scores.height, margin=margin, level=level, kind=kind) if plannable else {}),
        )
    outcome = _outcome(against, in_favour)
    # More items are no remedy for those that were not measured.
    undecided = outcome == "unproven" and not unmeasured
    needed = _needed(scores, weighting, margin=margin, level=level, kind=kind) if undecided else {}
    return Quality(
        outcome=outcome,
        better=better.proven,
        method=against.method,
        p_not_worse=rounded(against.p_noninferior),
        p_worse=rounded(in_favour.p_inferior),
        p_better=rounded(better.p_noninferior),
        imputation=_imputation(measured, unmeasured, outcome, margin=margin, level=level, kind=kind),
        **facts,
        **described,
        **needed,
    )


class _Weighting(NamedTuple):
    """What each item stands for, and with which others it moves."""

    clusters: IntArray | None
    weights: FloatArray | None
    effective: float

    @staticmethod
    def of(scores: pl.DataFrame) -> _Weighting:
        weights = None if scores["weight"].n_unique() <= 1 else scores["weight"].to_numpy()
        sums = scores.group_by("cluster").agg(pl.col("weight").sum() if weights is not None else pl.len())
        numbers = sums[:, 1].cast(pl.Float64).to_numpy()
        return _Weighting(cluster_codes(scores), weights, rounded(effective_number(numbers)) if numbers.size else 0.0)


def _test(
    target: FloatArray, legacy: FloatArray, weighting: _Weighting, *, margin: float, level: float, kind: MarginKind
) -> NonInferiority:
    clusters, weights, _ = weighting
    return noninferiority(target, legacy, margin=margin, kind=kind, clusters=clusters, weights=weights, level=level)


def _outcome(against: NonInferiority, in_favour: NonInferiority) -> Outcome:
    return "not worse" if against.proven else "worse" if in_favour.refuted else "unproven"


def _imputation(
    measured: pl.DataFrame, unmeasured: int, outcome: Outcome, *, margin: float, level: float, kind: MarginKind
) -> Imputation:
    """Say what the measured pairs alone would have proven."""
    if not unmeasured:
        return Imputation(items=0)
    alone = _test(*_worst_case(measured), _Weighting.of(measured), margin=margin, level=level, kind=kind)
    return Imputation(
        items=unmeasured,
        p_not_worse_measured=rounded(alone.p_noninferior),
        changed=_outcome(alone, alone) != outcome,
    )


def _estimand(of: str, kind: MarginKind) -> str:
    measure = "ratio of the target's mean score to the legacy's" if kind == "relative" else "difference of mean scores"
    return f"{measure}, over {'calls of the logged traffic' if of == TRAFFIC else f'the {of} items'}"


def _measured(scores: pl.DataFrame) -> pl.DataFrame:
    return scores.filter(pl.col("legacy_score").is_not_null() & pl.col("target_score").is_not_null())


def _worst_case(scores: pl.DataFrame) -> tuple[FloatArray, FloatArray]:
    return scores["target_score"].fill_null(0.0).to_numpy(), scores["legacy_score"].fill_null(1.0).to_numpy()


def _best_case(scores: pl.DataFrame) -> tuple[FloatArray, FloatArray]:
    return scores["target_score"].fill_null(1.0).to_numpy(), scores["legacy_score"].fill_null(0.0).to_numpy()


def _means(measured: pl.DataFrame) -> dict[str, Any]:
    if measured.is_empty():
        return {}
    legacy, target = measured["legacy_score"].to_numpy(), measured["target_score"].to_numpy()
    weights = _Weighting.of(measured).weights
    return {
        "legacy_mean": rounded(float(np.average(legacy, weights=weights))),
        "target_mean": rounded(float(np.average(target, weights=weights))),
        "estimate": rounded(float(np.average(target - legacy, weights=weights))),
        "lost": int((target < legacy).sum()),
        "gained": int((target > legacy).sum()),
    }


def _describe(measured: pl.DataFrame, *, margin: float, level: float, kind: MarginKind) -> dict[str, Any]:
    legacy, target = measured["legacy_score"].to_numpy(), measured["target_score"].to_numpy()
    clusters, weights, _ = _Weighting.of(measured)
    two_sided = 1 - 2 * level
    difference = difference_interval(target, legacy, clusters=clusters, weights=weights, level=two_sided)
    effect = design_effect(target, legacy, clusters=clusters, weights=weights)
    means = _means(measured)
    described = means | {
        "interval": _ends(difference),
        "interval_method": difference.method,
        "margin_points": rounded(margin * means["legacy_mean"] if kind == "relative" else margin),
        "design_effect": rounded(effect),
    }
    if means["legacy_mean"] > 0:
        ratio = ratio_interval(target, legacy, clusters=clusters, weights=weights, level=two_sided)
        described |= {"ratio": rounded(ratio.estimate), "ratio_interval": _finite(ratio)}
    discordance = float(np.average((target - legacy) ** 2, weights=weights))
    return described | _smallest_margin(measured.height, means["legacy_mean"], discordance, effect, level, kind)


def _smallest_margin(
    pairs: int, baseline: float, discordance: float, effect: float, level: float, kind: MarginKind
) -> dict[str, Any]:
    """Return the margin that these pairs can certify, where they disagree at all and any margin is wide enough."""
    if not (baseline > 0 and discordance > 0):
        return {}
    found = margin_for_pairs(
        pairs=pairs,
        baseline=baseline,
        discordance=discordance,
        level=level,
        power=PLANNED_POWER,
        design_effect=effect,
        kind=kind,
    )
    return {"smallest_margin": rounded(found)} if found < 1 else {}


def _needed(
    scores: pl.DataFrame, weighting: _Weighting, *, margin: float, level: float, kind: MarginKind
) -> dict[str, Any]:
    clusters, weights, _ = weighting
    needed = items_needed(
        *_worst_case(scores), margin=margin, kind=kind, clusters=clusters, weights=weights, level=level
    )
    if needed is None:
        return {}
    total = max(needed.total, scores.height + 1)
    return {
        "n_needed": total,
        "items_still_needed": total - scores.height,
        "needed_to_prove": "not worse" if needed.direction == "noninferior" else "worse",
    }


def _planned(n: int, *, margin: float, level: float, kind: MarginKind) -> dict[str, Any]:
    """Say what equal models would need, where too few items are there to tell how these two differ."""
    total = items_for(margin=margin, level=level, kind=kind)
    return {
        "n_needed": total,
        "items_still_needed": max(total - n, 0),
        "needed_to_prove": "not worse",
    }


def _ends(interval: Interval) -> tuple[float, float]:
    return rounded(interval.lower), rounded(interval.upper)


def _finite(interval: Interval) -> tuple[float, float] | None:
    return _ends(interval) if np.isfinite([interval.lower, interval.upper]).all() else None
