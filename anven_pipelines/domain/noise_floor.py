"""How often the legacy model disagrees with itself: what no target can be held to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import duckdb
import numpy as np
import polars as pl

from anven_pipelines.domain.candidates import ASKED_WITH
from anven_pipelines.domain.evaluation import Finding
from anven_pipelines.domain.grading import grade_rows
from anven_pipelines.domain.request_log import of_applications, of_model
from anven_pipelines.spec_grading import RagasGrader
from anven_pipelines.stats.cluster_t import FloatArray, guarded_t_bound
from anven_pipelines.stats.means import MIN_CLUSTERS

if TYPE_CHECKING:
    from anven_pipelines.spec import Migration

LEVEL: Final = 0.95
_PROMPT: Final = ("messages", "asked_with", "context")


class NoiseFloor(Finding):
    """The share of pairs of answers to one prompt that differ; NULL where no prompt was asked twice."""

    status: Literal["measured", "unmeasured"]
    reason: str
    compared_by: Literal["score", "text"] | None = None
    prompts: int = 0
    calls: int = 0
    disagreement: float | None = None
    interval: tuple[float, float] | None = None
    level: float = LEVEL

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return self.model_dump(mode="json")


def noise_floor(calls: pl.DataFrame, migration: Migration) -> NoiseFloor:
    """Compare the legacy model's answers to prompts that it was asked more than once.

    Same prompt means same messages, context and parameters, but for those that say who asks or how the answer travels,
    such as `user` and `seed`. Two answers differ when the graders score them
    differently, where every repeated call has a ground truth and no grader is a judge; else when their text differs.
    Each prompt counts once, with the share of its pairs that differ; prompts are the unit of independence.

    Args:
        calls: REQUEST_LOG rows; one request id is one call, however often it was logged.
        migration: Names the legacy model, its applications and the graders.

    Source:
        The share of differing pairs within a prompt is the unbiased (U-statistic) form of Gini and Simpson's index,
        Simpson (1949), Nature 163:688; the interval over prompts is `guarded_t_bound`'s.
    """
    repeated = _repeated(calls, migration)
    gradable = not any(isinstance(grader, RagasGrader) for grader in migration.grading)
    by: Literal["score", "text"] = "score" if gradable and not repeated["ground_truth"].null_count() else "text"
    values = _scores(repeated, migration) if by == "score" else repeated["output"]
    compared = _asked_twice(repeated.with_columns(value=values).drop_nulls("value"))
    if compared.is_empty():
        reason = "not measured: the log holds no two comparable answers of the legacy model to one prompt"
        return NoiseFloor(status="unmeasured", reason=reason)
    differing = _differing(compared)
    mean, interval = float(differing.mean()), _interval(differing)
    bounds = f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else "too few prompts for an interval"
    return NoiseFloor(
        status="measured",
        reason=f"two answers of the legacy model to one prompt differ in {by} in {mean:.1%} of pairs "
        f"({bounds}; {differing.size} prompts, {compared.height} calls)",
        compared_by=by,
        prompts=differing.size,
        calls=compared.height,
        disagreement=round(mean, 9),
        interval=interval and (round(interval[0], 9), round(interval[1], 9)),
    )


def _repeated(calls: pl.DataFrame, migration: Migration) -> pl.DataFrame:
    """Return the answered calls of prompts that were asked more than once, with the prompt they share."""
    legacy = migration.legacy
    answered = calls.filter(
        of_applications(legacy) & of_model(legacy).fill_null(value=False),
        pl.col("status") == "ok",
        pl.col("output").fill_null("") != "",
        pl.col("request_id").is_not_null(),
    ).sort("request_id", "ts", "output")
    once = answered.unique("request_id", keep="first", maintain_order=True)
    with duckdb.connect() as connection:
        connection.register("once", once)
        connection.execute(ASKED_WITH)
        once = connection.sql("SELECT *, asked_with(params) AS asked_with FROM once ORDER BY request_id").pl()
    return _asked_twice(once.with_columns(prompt=pl.struct(_PROMPT).struct.json_encode()))


def _asked_twice(calls: pl.DataFrame) -> pl.DataFrame:
    return calls.filter(pl.len().over("prompt") > 1)


def _scores(repeated: pl.DataFrame, migration: Migration) -> pl.Series:
    """Grade each answer; NULL where it cannot be graded."""
    answers = repeated.select(
        pl.col("request_id").alias("item_id"),
        pl.lit("answered").alias("status"),
        pl.lit(None, dtype=pl.String).alias("reason"),
        "output",
    )
    golden = repeated.select(pl.col("request_id").alias("id"), "ground_truth")
    return grade_rows(migration.grading, answers, golden, judged={})["score"]


def _differing(compared: pl.DataFrame) -> FloatArray:
    """Return, per prompt, the share of its pairs whose values differ, shape (prompts,)."""
    counts = compared.group_by("prompt", "value").len().with_columns(pl.col("len").cast(pl.Int64))
    pairs = counts.group_by("prompt").agg(
        equal=(pl.col("len") * (pl.col("len") - 1)).sum(), all=pl.col("len").sum() * (pl.col("len").sum() - 1)
    )
    return pairs.sort("prompt").select(1 - pl.col("equal") / pl.col("all")).to_series().to_numpy()


def _interval(differing: FloatArray) -> tuple[float, float] | None:
    """Return the interval over prompts; None where fewer than MIN_CLUSTERS were measured.

    Each bound counts one imagined prompt beyond it, so that answers which never differed give no certainty. It is no
    measured one: it counts neither for how many there are nor for the degrees of freedom.
    """
    if differing.size < MIN_CLUSTERS:
        return None
    ones, tail = np.ones(differing.size), (1 - LEVEL) / 2
    # `guarded_t_bound` is for differences in [-1, 1], and imagines the far end of that; a share ends at 0 and 1.
    lower = (1 + guarded_t_bound(2 * differing - ones, ones, tail=tail, side=-1)) / 2
    upper = (1 + guarded_t_bound(2 * differing - ones, ones, tail=tail, side=1)) / 2
    return float(lower), float(upper)
