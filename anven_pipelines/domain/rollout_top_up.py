"""What mirrored requests add where traffic is low: a second way to prove that the target is no worse, and no harm.

Both outcomes of a mirrored request are known, so each unit of legacy's gives one difference, without the noise of which
arm it was dealt to. Either way may prove a metric, so each has half of the error rate of an advance. Harm is judged on
the target's own users alone: what a mirrored request met, nobody met.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.domain.rollout_evidence import Mirrored
from anven_pipelines.domain.rollout_judgement import MEASURED, worse
from anven_pipelines.domain.rollout_plan import MIRRORED_METRICS
from anven_pipelines.stats.asymptotic_sequence import AsymptoticMean
from anven_pipelines.stats.paired_sequence import PairedDifference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.rollout_evidence import Assignment, Comparison
    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.spec_rollout import Metric, Stage
    from anven_pipelines.stats.interval import Interval


class _Reading(NamedTuple):
    """How bad each arm was at a request of PAIRS, of which ones that was to be had, and of which it is known."""

    target: pl.Expr
    legacy: pl.Expr
    applies: pl.Expr
    known: pl.Expr


_ROUNDING: Final = 1e-9  # of a product such as 500 x 0.7, which is 349.99999999999994
_FAILED: Final = pl.col("target_failed").fill_null(value=True)
_READINGS: Final[Mapping[Metric, _Reading]] = {
    # What is not known counts as failed by the target. Of an answer that its client left, legacy is taken to keep the
    # form: it was cut off, and whatever the target makes of the same request can only count against that.
    "errors": _Reading(
        target=_FAILED,
        legacy=pl.col("legacy_failed"),
        applies=pl.lit(value=True),
        known=pl.col("legacy_failed") | pl.col("asked"),
    ),
    "contract": _Reading(
        target=_FAILED | pl.col("target_broke").fill_null(value=True),
        legacy=pl.col("legacy_failed") | pl.col("legacy_broke").fill_null(value=False),
        applies=pl.lit(value=True),
        known=pl.col("legacy_failed")
        | (
            pl.col("asked")
            & (pl.col("legacy_broke").is_not_null() | pl.col("left"))
            & (_FAILED | pl.col("target_broke").is_not_null())
        ),
    ),
    # A cost has no worst: what is not known is left out, and no more than 1 - MEASURED of it. Where the target fails a
    # user, legacy answers and is paid, so that a failure is never the cheaper for being one.
    "cost": _Reading(
        target=pl.col("target_usd").fill_null(0.0) + pl.when(_FAILED).then("legacy_usd").otherwise(0.0),
        legacy=pl.col("legacy_usd"),
        applies=pl.col("timed"),
        known=pl.col("asked")
        & ~pl.col("left")
        & ~pl.col("legacy_failed")
        & pl.col("legacy_usd").is_not_null()
        & (_FAILED | pl.col("target_usd").is_not_null()),
    ),
}


@dataclass(frozen=True)
class _Pairs:
    """A side of a judgement, read from pairs: shape (n,) of each arm, in the order of the first requests.

    Attributes:
        metric: Which one.
        share: The target's.
        due: Pairs that it concerns.
        known: Of these, those that tell of it.
        asked: Of the known ones, those that the target was asked.
        uncosted: Of the due ones, those without a cost by legacy's own doing or its client's, where that is judged.
        found: How bad each arm was.
    """

    metric: Metric
    share: float
    due: int
    known: int
    asked: int
    uncosted: int
    found: pl.DataFrame

    def unmeasured(self, least: float) -> str | None:
        """Say that too few are known."""
        if self.known >= least * self.due:
            return None
        told = f"{self.known:,} of {self.due:,} that were drawn to be mirrored tell of it, {least:.0%} are needed"
        if self.uncosted:
            told += f"; at {self.uncosted:,} legacy failed or its client hung up, so that no cost of legacy's is known"
        return told

    def difference(self, *, alpha: float) -> Interval:
        """Two-sided interval of target less legacy that errs at alpha on either side."""
        sequence = AsymptoticMean if self.metric == "cost" else PairedDifference
        return sequence(level=1 - 2 * alpha).update((self.found["target"] - self.found["legacy"]).to_numpy()).current()

    def legacy_mean(self, *, alpha: float) -> Interval:
        """Interval of legacy's mean cost that errs at a rate of alpha, both sides together."""
        return AsymptoticMean(level=1 - alpha).update(self.found["legacy"].to_numpy()).current()


def topped_up(
    plan: RolloutPlan, stage: int, comparisons: Sequence[Comparison], pairs: pl.DataFrame
) -> tuple[Comparison, ...]:
    """Return the comparisons with what mirrored requests show of those metrics that they measure.

    Args:
        plan: Says whether they count, and has limits and error rates.
        stage: Place in the plan's stages; in one of share 1 legacy has nothing to mirror.
        comparisons: By the users of both arms, whose proofs have the error rate of `plan.proof_level`.
        pairs: PAIRS of the stage.
    """
    share = plan.stages[stage].share
    if not plan.rollout.shadow_top_up or share == 1 or pairs.is_empty():
        return tuple(comparisons)
    return tuple(
        replace(found, mirrored=_mirrored(plan, _read(pairs, found.metric, share=share)))
        if found.metric in MIRRORED_METRICS
        else found
        for found in comparisons
    )


def counted_in(assignment: Assignment, comparisons: Sequence[Comparison]) -> Assignment:
    """Return the assignment with the mirrored units that count: none where too few of those drawn are known."""
    found = next((each.mirrored for each in comparisons if each.metric == "errors"), None)
    return replace(assignment, mirrored=found.requests if found is not None and found.proof is not None else 0)


def mirrored_that_count(plan: RolloutPlan, found: Assignment) -> int:
    """Return how many of the mirrored units stand in for the target's own, whose part `shadow_top_up` leaves."""
    most = math.floor(plan.rollout.least_units * plan.rollout.shadow_top_up + _ROUNDING)
    return min(found.mirrored, most)


def few_units(plan: RolloutPlan, stage: Stage, found: Assignment) -> list[str]:
    """Say of which arm too few units were seen; nothing where enough were."""
    least, mirrored = plan.rollout.least_units, mirrored_that_count(plan, found)
    gaps = []
    if found.target + mirrored < least:
        gaps.append(
            f"{found.target:,} units of target and {mirrored:,} mirrored of {least:,}"
            if found.mirrored
            else f"{found.target:,} of {least:,} units of target"
        )
    if stage.share < 1 and found.legacy < least:
        gaps.append(f"{found.legacy:,} of {least:,} units of legacy")
    return gaps


def top_up_words(plan: RolloutPlan, found: Assignment | None) -> str | None:
    """Say that mirrored units stood in for the target's own; None where those were enough."""
    if found is None or found.target >= plan.rollout.least_units or not found.mirrored:
        return None
    return f"{found.target:,} units of target and {mirrored_that_count(plan, found):,} mirrored"


def _read(pairs: pl.DataFrame, metric: Metric, *, share: float) -> _Pairs:
    reading = _READINGS[metric]
    due = pairs.filter(reading.applies).select(
        reading.target.cast(pl.Float64).alias("target"),
        reading.legacy.cast(pl.Float64).alias("legacy"),
        reading.known.alias("known"),
        "asked",
        (pl.col("legacy_failed") | pl.col("left")).alias("lost"),
    )
    is_cost = metric == "cost"
    return _Pairs(
        metric=metric,
        share=share,
        due=due.height,
        known=int(due["known"].sum()),
        asked=int((due["known"] & due["asked"]).sum()),
        uncosted=int(due["lost"].sum()) if is_cost else 0,
        found=due.filter("known") if is_cost else due,
    )


def _mirrored(plan: RolloutPlan, side: _Pairs) -> Mirrored:
    if unknown := side.unmeasured(MEASURED):
        return Mirrored(requests=side.asked, unknown=unknown)
    try:
        alpha = plan.proof_level(side.metric, share=side.share)
        proof, limit = worse(plan, side, alpha=alpha, end="lower")
    except TooFewPairs as error:
        return Mirrored(requests=side.asked, unknown=str(error))
    return Mirrored(requests=side.asked, proof=proof, limit=limit)
