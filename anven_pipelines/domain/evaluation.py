"""Both arms side by side, and what the comparison proves about quality.

An item that was not measured never helps the target: to prove "not worse" a missing target score counts as 0
and a missing legacy score as 1, to prove "worse" the other way round (bounds that assume nothing about why a
score is missing: Manski 2003, Partial Identification of Probability Distributions, chapter 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.domain.power import items_for
from anven_pipelines.domain.table import Column, Table
from anven_pipelines.spec import Stratum
from anven_pipelines.stats.multiplicity import holm
from anven_pipelines.stats.paired import difference_interval, items_needed, noninferiority, ratio_interval
from anven_pipelines.stats.proportions import mcnemar_exact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anven_pipelines.stats.interval import Interval

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Outcome = Literal["not worse", "worse", "unproven", "too few items"]
STRATA: Final[tuple[Stratum, ...]] = get_args(Stratum)

SCORES = Table(
    "scores",
    (
        Column("item_id", pl.String, "Golden item."),
        Column("cluster", pl.String, "Conversation of the item, or the item itself; the unit of independence."),
        Column("split", pl.String, "`open`, or `sealed` until sign-off."),
        Column("application", pl.String, "Stratum: application that made the call."),
        Column("endpoint", pl.String, "Stratum: API endpoint of the call."),
        Column("task", pl.String, "Stratum: task the log names."),
        Column("length_band", pl.String, "Stratum: length of the prompt."),
        Column("risk", pl.String, "Stratum: risk tier of the call."),
        Column("language", pl.String, "Stratum: language of the prompt."),
        Column("legacy_score", pl.Float64, "Score of the legacy answer in [0, 1]; NULL is not measured."),
        Column("target_score", pl.Float64, "Score of the target answer in [0, 1]; NULL is not measured."),
        Column("legacy_reason", pl.String, "Why the legacy answer scored 0 or was not measured."),
        Column("target_reason", pl.String, "Why the target answer scored 0 or was not measured."),
        Column("legacy_grades", pl.String, "Score of each grader, JSON."),
        Column("target_grades", pl.String, "Score of each grader, JSON."),
        Column("legacy_contract", pl.Boolean, "The legacy answer keeps the output contract; NULL is not measured."),
        Column("target_contract", pl.Boolean, "The target answer keeps the output contract; NULL is not measured."),
        Column("legacy_contract_reason", pl.String, "How the legacy answer breaks the contract."),
        Column("target_contract_reason", pl.String, "How the target answer breaks the contract."),
        Column("legacy_ttft_ms", pl.Float64, "Time to first token of the legacy answer, milliseconds."),
        Column("target_ttft_ms", pl.Float64, "Time to first token of the target answer, milliseconds."),
        Column("legacy_latency_ms", pl.Float64, "Time to the last token of the legacy answer, milliseconds."),
        Column("target_latency_ms", pl.Float64, "Time to the last token of the target answer, milliseconds."),
    ),
)


class Arm(NamedTuple):
    """One model's answers with their grades and contract checks, one row per golden item each."""

    answers: pl.DataFrame
    grades: pl.DataFrame
    contract: pl.DataFrame


class Finding(BaseModel):
    """A part of the verdict: immutable and free of NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Quality(Finding):
    """What the paired comparison of scores says."""

    outcome: Outcome
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    interval_level: float
    interval_method: str | None = None
    margin: float
    margin_points: float | None = None
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None
    level: float
    method: str | None = None
    p_not_worse: float | None = None
    p_worse: float | None = None
    legacy_mean: float | None = None
    target_mean: float | None = None
    lost: int | None = None
    gained: int | None = None
    n: int
    n_measured: int
    n_clusters: int
    n_needed: int | None = None
    items_still_needed: int | None = None
    needed_to_prove: str | None = None


class Missingness(Finding):
    """Whether the arms were measured equally often."""

    legacy_unmeasured: int
    target_unmeasured: int
    only_target_unmeasured: int
    only_legacy_unmeasured: int
    p_difference: float
    differs: bool
    reasons: dict[str, int]


class ContractReport(Finding):
    """How often each arm keeps the output contract; apart from the score."""

    declared: bool
    legacy_kept: float | None = None
    target_kept: float | None = None
    n_measured: int = 0
    broken_by_target_only: int = 0
    broken_by_legacy_only: int = 0


class Segment(Finding):
    """The comparison within one value of one stratum."""

    stratum: str
    value: str
    outcome: Outcome
    n: int
    legacy_mean: float | None = None
    target_mean: float | None = None
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    p_worse_adjusted: float | None = None


def side_by_side(golden: pl.DataFrame, legacy: Arm, target: Arm) -> pl.DataFrame:
    """Return the SCORES table: one row per golden item, in golden order."""
    base = golden.select(pl.col("id").alias("item_id"), "cluster", "split", *STRATA)
    for name, arm in (("legacy", legacy), ("target", target)):
        columns = (
            arm.answers.select("item_id", "ttft_ms", "latency_ms")
            .join(arm.grades.select("item_id", "score", "reason", "grades"), on="item_id", how="left")
            .join(arm.contract.select("item_id", contract="kept", contract_reason="reason"), on="item_id", how="left")
        )
        renamed = columns.rename({column: f"{name}_{column}" for column in columns.columns if column != "item_id"})
        base = base.join(renamed, on="item_id", how="left", maintain_order="left")
    return SCORES.conform(base)


def arm_of(scores: pl.DataFrame, name: Literal["legacy", "target"]) -> Arm:
    """Return one side of a SCORES table as an arm, to set it beside another."""
    columns = {column: column.removeprefix(f"{name}_") for column in SCORES.schema if column.startswith(f"{name}_")}
    side = scores.select("item_id", *columns).rename(columns)
    return Arm(
        answers=side.select("item_id", "ttft_ms", "latency_ms"),
        grades=side.select("item_id", "score", "reason", "grades"),
        contract=side.select("item_id", kept="contract", reason="contract_reason"),
    )


def compare_quality(scores: pl.DataFrame, *, margin: float, level: float) -> Quality:
    """Test whether the target's mean score is at least (1 - margin) times the legacy mean.

    Args:
        scores: SCORES rows; missing scores are NULL.
        margin: Acceptable relative loss, in (0, 1).
        level: One-sided error rate; the intervals have level 1 - 2 * level, so that both say the same.

    Returns:
        The comparison; `outcome` rests on the worst case of what is missing, the estimate on measured pairs.
    """
    clusters = cluster_codes(scores)
    n_clusters = scores["cluster"].n_unique()
    measured = _measured(scores)
    facts: dict[str, Any] = {
        "margin": margin,
        "level": level,
        "interval_level": _rounded(1 - 2 * level),
        "n": scores.height,
        "n_measured": measured.height,
        "n_clusters": n_clusters,
    }
    try:
        against = noninferiority(*_worst_case(scores), margin=margin, clusters=clusters, level=level)
        in_favour = noninferiority(*_best_case(scores), margin=margin, clusters=clusters, level=level)
        described = _describe(measured, margin=margin, level=level)
    except TooFewPairs:
        planned = _planned(scores, margin=margin, level=level) if measured.height == scores.height else {}
        return Quality(outcome="too few items", **facts, **_means(measured), **planned)
    outcome: Outcome = "not worse" if against.proven else "worse" if in_favour.refuted else "unproven"
    # More items are no remedy for those that were not measured.
    whole = measured.height == scores.height
    needed = _needed(scores, clusters, margin=margin, level=level) if whole and outcome == "unproven" else {}
    return Quality(
        outcome=outcome,
        method=against.method,
        p_not_worse=_rounded(against.p_noninferior),
        p_worse=_rounded(in_favour.p_inferior),
        **facts,
        **described,
        **needed,
    )


def compare_missingness(scores: pl.DataFrame, *, level: float) -> Missingness:
    """Test with McNemar's exact test whether one arm is measured less often than the other."""
    legacy = scores["legacy_score"].is_null()
    target = scores["target_score"].is_null()
    only_target = int((target & ~legacy).sum())
    only_legacy = int((legacy & ~target).sum())
    p_difference = mcnemar_exact(only_target, only_legacy)
    reasons = scores.select(
        pl.concat([scores.filter(legacy)["legacy_reason"], scores.filter(target)["target_reason"]]).alias("reason")
    )["reason"].value_counts(sort=True)
    return Missingness(
        legacy_unmeasured=int(legacy.sum()),
        target_unmeasured=int(target.sum()),
        only_target_unmeasured=only_target,
        only_legacy_unmeasured=only_legacy,
        p_difference=_rounded(p_difference),
        differs=p_difference < level,
        reasons={str(reason): int(count) for reason, count in sorted(reasons.iter_rows(), key=str)},
    )


def report_contract(scores: pl.DataFrame, *, declared: bool) -> ContractReport:
    """Count kept and broken output contracts over items where both arms answered."""
    measured = scores.filter(pl.col("legacy_contract").is_not_null() & pl.col("target_contract").is_not_null())
    if measured.is_empty():
        return ContractReport(declared=declared)
    legacy, target = measured["legacy_contract"], measured["target_contract"]
    return ContractReport(
        declared=declared,
        legacy_kept=_rounded(float(legacy.cast(pl.Float64).to_numpy().mean())),
        target_kept=_rounded(float(target.cast(pl.Float64).to_numpy().mean())),
        n_measured=measured.height,
        broken_by_target_only=int((legacy & ~target).sum()),
        broken_by_legacy_only=int((~legacy & target).sum()),
    )


def compare_segments(scores: pl.DataFrame, strata: Sequence[str], *, margin: float, level: float) -> list[Segment]:
    """Compare within every value of every stratum.

    The family is all segments of all strata together; "worse" and "not worse" are each claimed after Holm's
    correction over that family.
    """
    parts = [
        (stratum, value, scores.filter(pl.col(stratum) == value))
        for stratum in strata
        for value in sorted(scores[stratum].unique().drop_nulls().to_list())
    ]
    compared = [(stratum, value, compare_quality(rows, margin=margin, level=level)) for stratum, value, rows in parts]
    worse = holm(np.array([_p(quality.p_worse) for *_, quality in compared], dtype=np.float64))
    not_worse = holm(np.array([_p(quality.p_not_worse) for *_, quality in compared], dtype=np.float64))
    return [
        Segment(
            stratum=stratum,
            value=value,
            outcome=_segment_outcome(quality, float(p_not_worse), float(p_worse), level),
            n=quality.n,
            legacy_mean=quality.legacy_mean,
            target_mean=quality.target_mean,
            estimate=quality.estimate,
            interval=quality.interval,
            p_worse_adjusted=None if quality.p_worse is None else _rounded(float(p_worse)),
        )
        for (stratum, value, quality), p_worse, p_not_worse in zip(compared, worse, not_worse, strict=True)
    ]


def cluster_codes(scores: pl.DataFrame) -> IntArray | None:
    """Return each row's conversation as a number, shape (n,); None where every row stands alone."""
    if scores["cluster"].n_unique() == scores.height:
        return None
    return scores["cluster"].rank("dense").cast(pl.Int64).to_numpy()


def _segment_outcome(quality: Quality, p_not_worse: float, p_worse: float, level: float) -> Outcome:
    if quality.outcome == "too few items":
        return "too few items"
    return "worse" if p_worse < level else "not worse" if p_not_worse < level else "unproven"


def _p(value: float | None) -> float:
    return 1.0 if value is None else value


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
    return {
        "legacy_mean": _rounded(float(legacy.mean())),
        "target_mean": _rounded(float(target.mean())),
        "estimate": _rounded(float((target - legacy).mean())),
        "lost": int((target < legacy).sum()),
        "gained": int((target > legacy).sum()),
    }


def _describe(measured: pl.DataFrame, *, margin: float, level: float) -> dict[str, Any]:
    legacy, target = measured["legacy_score"].to_numpy(), measured["target_score"].to_numpy()
    clusters = cluster_codes(measured)
    two_sided = 1 - 2 * level
    difference = difference_interval(target, legacy, clusters=clusters, level=two_sided)
    described = _means(measured) | {
        "interval": _ends(difference),
        "interval_method": difference.method,
        "margin_points": _rounded(margin * float(legacy.mean())),
    }
    if legacy.mean() > 0:
        ratio = ratio_interval(target, legacy, clusters=clusters, level=two_sided)
        described |= {"ratio": _rounded(ratio.estimate), "ratio_interval": _finite(ratio)}
    return described


def _needed(scores: pl.DataFrame, clusters: IntArray | None, *, margin: float, level: float) -> dict[str, Any]:
    needed = items_needed(*_worst_case(scores), margin=margin, clusters=clusters, level=level)
    if needed is None:
        return {}
    total = max(needed.total, scores.height + 1)
    return {
        "n_needed": total,
        "items_still_needed": total - scores.height,
        "needed_to_prove": "not worse" if needed.direction == "noninferior" else "worse",
    }


def _planned(scores: pl.DataFrame, *, margin: float, level: float) -> dict[str, Any]:
    """Say what equal models would need, where too few items are there to tell how these two differ."""
    total = items_for(margin=margin, level=level)
    return {
        "n_needed": total,
        "items_still_needed": max(total - scores.height, 0),
        "needed_to_prove": "not worse",
    }


def _ends(interval: Interval) -> tuple[float, float]:
    return _rounded(interval.lower), _rounded(interval.upper)


def _finite(interval: Interval) -> tuple[float, float] | None:
    return _ends(interval) if np.isfinite([interval.lower, interval.upper]).all() else None


def _rounded(value: float) -> float:
    """Round to the sixth decimal: below it, the last bits differ between processors, and a verdict must not."""
    return round(value, 6) + 0.0
