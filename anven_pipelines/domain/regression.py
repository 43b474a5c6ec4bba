"""The nightly comparison: what serves production against the scores that were frozen at sign-off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.evaluation import (
    Arm,
    Finding,
    Missingness,
    arm_of,
    compare_missingness,
    side_by_side,
)
from anven_pipelines.domain.quality import Quality, compare_quality
from anven_pipelines.domain.quality_report import explain_quality
from anven_pipelines.domain.segments import Segment, compare_segments
from anven_pipelines.spec_target import EndpointTarget

if TYPE_CHECKING:
    import polars as pl

    from anven_pipelines.spec import Migration


class RegressionReport(Finding):
    """One night's comparison; `legacy` in its parts is the baseline, `target` is production now."""

    workload: str
    epoch: str
    message: str
    quality: Quality
    missingness: Missingness
    segments: list[Segment]


def serving(migration: Migration) -> EndpointTarget:
    """Return the endpoint that serves production.

    Raises:
        InvalidInput: neither `regression.url` nor an endpoint target names one.
    """
    target, regression = migration.target, migration.regression
    named = regression.model_dump(include={"url", "model", "api_key_env"}, exclude_none=True)
    if isinstance(target, EndpointTarget):
        return EndpointTarget.model_validate(target.model_dump() | named)
    if regression.url is None:
        message = (
            f"workload {migration.workload!r}: regression.url is missing; the URL that serves production is needed, "
            "because what gave the answers at sign-off is no server"
        )
        raise InvalidInput(message)
    return EndpointTarget.model_validate({"engine": "endpoint", "model": target.model} | named)


def compare_with_baseline(
    golden: pl.DataFrame, baseline: pl.DataFrame, tonight: Arm, migration: Migration, *, epoch: str
) -> RegressionReport:
    """Pair tonight's scores with the target's scores at sign-off, item by item, over the whole golden set."""
    scores = side_by_side(golden, arm_of(baseline, "target"), tonight).sort("item_id")
    margin, level = migration.regression.margin, migration.sign_off.level
    quality = compare_quality(scores, margin=margin, level=level)
    return RegressionReport(
        workload=migration.workload,
        epoch=epoch,
        message=_message(migration.workload, quality),
        quality=quality,
        missingness=compare_missingness(scores, level=level),
        segments=compare_segments(scores, migration.golden.strata, margin=margin, level=level),
    )


def _message(workload: str, quality: Quality) -> str:
    found = explain_quality(quality)
    if quality.outcome == "worse":
        return f"REGRESSION of {workload} against its sign-off: {found}"
    return f"no regression of {workload} is proven: {found}"
