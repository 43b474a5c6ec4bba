"""The segments of the traffic: each compared on its own, all judged as one family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from anven_pipelines.domain.evaluation import TRAFFIC, Finding, rounded
from anven_pipelines.domain.quality import Outcome, Quality, compare_quality
from anven_pipelines.stats.multiplicity import holm
from anven_pipelines.stats.pairs import MIN_PAIRS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anven_pipelines.domain.criterion import Status
    from anven_pipelines.stats.sample_size import MarginKind


class Segment(Finding):
    """The comparison within one value of one stratum."""

    stratum: str
    value: str
    outcome: Outcome
    n: int
    n_measured: int
    legacy_mean: float | None = None
    target_mean: float | None = None
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    p_worse_adjusted: float | None = None
    p_not_worse_adjusted: float | None = None


def compare_segments(
    scores: pl.DataFrame, strata: Sequence[str], *, margin: float, level: float, kind: MarginKind = "relative"
) -> list[Segment]:
    """Compare within every value of every stratum of the traffic, and among the items of every other role.

    The family is all segments together; "worse" and "not worse" are each claimed after Holm's correction over that
    family.
    """
    traffic = scores.filter(pl.col("role") == TRAFFIC)
    parts = [
        (stratum, value, traffic.filter(pl.col(stratum) == value), TRAFFIC)
        for stratum in strata
        for value in sorted(traffic[stratum].unique().drop_nulls().to_list())
    ]
    parts += [("role", role, scores, role) for role in sorted(set(scores["role"].to_list()) - {TRAFFIC})]
    compared = [
        (stratum, value, compare_quality(rows, margin=margin, level=level, kind=kind, of=of))
        for stratum, value, rows, of in parts
    ]
    worse = holm(np.array([_p(quality.p_worse) for *_, quality in compared], dtype=np.float64))
    not_worse = holm(np.array([_p(quality.p_not_worse) for *_, quality in compared], dtype=np.float64))
    return [
        Segment(
            stratum=stratum,
            value=value,
            outcome=_segment_outcome(quality, float(p_not_worse), float(p_worse), level),
            n=quality.n,
            n_measured=quality.n_measured,
            legacy_mean=quality.legacy_mean,
            target_mean=quality.target_mean,
            estimate=quality.estimate,
            interval=quality.interval,
            p_worse_adjusted=None if quality.p_worse is None else rounded(float(p_worse)),
            p_not_worse_adjusted=None if quality.p_not_worse is None else rounded(float(p_not_worse)),
        )
        for (stratum, value, quality), p_worse, p_not_worse in zip(compared, worse, not_worse, strict=True)
    ]


def judge_segments(segments: Sequence[Segment]) -> tuple[Status, str]:
    """Judge the family of segments: one that is proven worse than the margin is harm, however good the mean.

    A segment that is too small to compare blocks nothing and is named; one that is not, and of which nothing was
    measured, does.
    """
    worse = [segment for segment in segments if segment.outcome == "worse"]
    if worse:
        return "not met", f"proven worse than the margin in {_named(worse)} (Holm over {len(segments)} segments)"
    if not segments:
        return "met", "there are no segments: the migration file declares no strata that the traffic has"
    blank = [segment for segment in segments if segment.legacy_mean is None and segment.n >= MIN_PAIRS]
    if blank:
        return "unmeasured", f"nothing was measured in both arms in {_of(blank, segments)}"
    small = [segment for segment in segments if segment.outcome == "too few items"]
    none = f"none of {len(segments)} segments is proven worse than the margin (Holm)"
    return "met", f"{none}; too few items to tell in {_of(small, segments)}" if small else none


def _segment_outcome(quality: Quality, p_not_worse: float, p_worse: float, level: float) -> Outcome:
    if quality.outcome == "too few items":
        return "too few items"
    return "worse" if p_worse < level else "not worse" if p_not_worse < level else "unproven"


def _p(value: float | None) -> float:
    return 1.0 if value is None else value


def _of(some: Sequence[Segment], segments: Sequence[Segment]) -> str:
    return f"{len(some)} of {len(segments)} segments: {_named(some, counted=True)}"


def _named(segments: Sequence[Segment], *, counted: bool = False) -> str:
    return ", ".join(f"{each.stratum} = {each.value}" + (f" ({each.n})" if counted else "") for each in segments)
