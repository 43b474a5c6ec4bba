"""How each metric of a rollout is read from one unit: how bad it was, and of which units that was to be had.

The columns are those of UNITS in `rollout_measure.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.rollout_evidence import POINTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.spec_rollout import Metric

NEVER_MS: Final = 1e12
"""Stands for the time of a request that failed: beyond every limit, and finite."""


class Reading(NamedTuple):
    """How a metric is read: how bad a unit was, and of which units that was to be had."""

    unit: str
    bad: pl.Expr
    applies: pl.Expr


_ALL: Final = pl.lit(value=True)


def _or(column: str, instead: float) -> pl.Expr:
    """Read a column; a request that failed and has no value counts with this one: its arm answers for it."""
    return pl.when(pl.col("errors") > 0).then(pl.col(column).fill_null(instead)).otherwise(column)


_ANSWERED: Final = (pl.col("errors") < 1) | pl.col("safety").is_not_null()
"""Of whom something was to be judged. Where every request failed there is no answer, which is neither safe nor unsafe;
where one was answered and nobody judged it, that is unmeasured, whatever became of the others."""

_HAD_IT_WHOLE: Final = (
    ~pl.col("left").fill_null(value=False) | (pl.col("errors") > 0) | pl.col("contract").is_not_null()
)
"""Of whom an answer's form was to be had: not where clients hung up on all that was answered."""

READINGS: Final[Mapping[Metric, Reading]] = {
    "quality": Reading(POINTS, 1 - _or("quality", 0.0), pl.col("due")),
    "safety": Reading(POINTS, pl.col("safety"), pl.col("due") & _ANSWERED),
    "errors": Reading(POINTS, pl.col("errors"), _ALL),
    "contract": Reading(POINTS, _or("contract", 1.0), _HAD_IT_WHOLE),
    "ttft": Reading("ms", _or("ttft_ms", NEVER_MS), pl.col("streamed")),
    "latency": Reading("ms", _or("latency_ms", NEVER_MS), pl.col("timed")),
    "cost": Reading("USD", _or("cost_usd", 0.0), pl.col("timed")),
}
"""How each metric is read."""
