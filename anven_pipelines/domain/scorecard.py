"""What may be looked at before sign-off: the open items' comparison, and counts of the sealed ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from anven_pipelines.domain.evaluation import (
    ContractReport,
    Finding,
    Missingness,
    compare_missingness,
    report_contract,
)
from anven_pipelines.domain.quality import Quality, compare_quality
from anven_pipelines.domain.segments import Segment, compare_segments

if TYPE_CHECKING:
    from anven_pipelines.spec import Migration


class Scorecard(Finding):
    """The open comparison; `quality` is NULL where every item is sealed."""

    workload: str
    open_items: int
    sealed_items: int
    quality: Quality | None
    segments: list[Segment]
    missingness: Missingness
    contract: ContractReport
    lost_items: list[str]

    def markdown(self) -> str:
        """Write the comparison as a Markdown table."""
        if self.quality is None:
            return f"All {self.sealed_items:,} items are sealed; `sign_off` opens them."
        overall = Segment(stratum="all", value="open items", **self.quality.model_dump(include=_SHARED_FIELDS))
        header = (
            "| segment | items | legacy | target | points | interval | outcome |\n|---|---:|---:|---:|---:|---|---|\n"
        )
        return header + "\n".join(_row(segment) for segment in (overall, *self.segments))


_SHARED_FIELDS = {"outcome", "n", "n_measured", "legacy_mean", "target_mean", "estimate", "interval"}
_LOST_SHOWN = 20
_UNBROKEN = "\u00a0to\u00a0"  # the UI would break every row in two


def draw_up(scores: pl.DataFrame, migration: Migration) -> Scorecard:
    """Compare the open items; of the sealed ones only how many there are is told."""
    opened = scores.filter(pl.col("split") == "open").sort("item_id")
    criteria = migration.sign_off
    margin, kind, level = criteria.quality_margin, criteria.margin_kind, criteria.level
    lost = opened.filter(pl.col("target_score") < pl.col("legacy_score"))
    return Scorecard(
        workload=migration.workload,
        open_items=opened.height,
        sealed_items=scores.height - opened.height,
        quality=None if opened.is_empty() else compare_quality(opened, margin=margin, kind=kind, level=level),
        segments=compare_segments(opened, migration.golden.strata, margin=margin, kind=kind, level=level),
        missingness=compare_missingness(opened, level=level),
        contract=report_contract(opened, declared=migration.contract.json_object),
        lost_items=lost["item_id"].head(_LOST_SHOWN).to_list(),
    )


def _row(segment: Segment) -> str:
    name = segment.value if segment.stratum == "all" else f"{segment.stratum} = {segment.value}"
    interval = (
        "not enough items"
        if segment.interval is None
        else _UNBROKEN.join(f"{100 * end:+.2f}" for end in segment.interval)
    )
    means = [_percent(segment.legacy_mean), _percent(segment.target_mean)]
    difference = "unknown" if segment.estimate is None else f"{100 * segment.estimate:+.2f}"
    return f"| {name} | {segment.n:,} | {' | '.join(means)} | {difference} | {interval} | {segment.outcome} |"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.2%}"
