"""Pairs each request of legacy's that was drawn to be mirrored with what the target made of it.

A draw by hash decides what is mirrored, before either arm has answered. What then keeps the target from being asked, a
cap or the gateway's end, may go with how it fares; so a request that was drawn and of which nothing is known by the
time its unit has settled counts as one that the target failed. That errs against the target only. Legacy's failures
are not mirrored, and count as failed by both for the same reason: the target can be no worse there.

A unit counts with its first request, and once, as its requests share its luck.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from anven_pipelines.domain.gateway_event import MIRRORED
from anven_pipelines.domain.table import UTC_TIMESTAMP, Column, Table

if TYPE_CHECKING:
    from datetime import datetime

    from anven_pipelines.domain.rollout_plan import RolloutPlan

PAIRS: Final = Table(
    "rollout_pairs",
    (
        Column("unit", pl.String, "Keyed hash of the user or conversation, which is legacy's."),
        Column("seen_at", UTC_TIMESTAMP, "When its first request of the stage ended."),
        Column("legacy_failed", pl.Boolean, "Whether legacy failed it; it was not mirrored then."),
        Column("asked", pl.Boolean, "Whether the target was asked as legacy was, and answered or failed in time."),
        Column("target_failed", pl.Boolean, "Whether the target failed it; NULL where it was not asked."),
        Column(
            "legacy_broke", pl.Boolean, "Whether legacy's whole answer lacks the declared form; NULL where not known."
        ),
        Column("target_broke", pl.Boolean, "Whether the target's does."),
        Column("timed", pl.Boolean, "Whether no cache answered for legacy."),
        Column("left", pl.Boolean, "Whether the client hung up before it had legacy's answer whole."),
        Column("legacy_usd", pl.Float64, "Cost of legacy's answer; NULL where it failed or no price is known."),
        Column("target_usd", pl.Float64, "Cost of the target's."),
    ),
)
"""One row a unit of legacy's whose first request was drawn, in the order of those; NULL is what was not measured."""

_ORDER: Final = ("ts", "worker", "seq", "event_id")


def pairs_of(events: pl.DataFrame, plan: RolloutPlan, *, generation: int, now: datetime) -> pl.DataFrame:
    """Return one row per settled unit of legacy's whose first request in a generation was drawn to be mirrored.

    A client may name several requests alike. Only the first unit of a name is paired: one draw decided for all of them.
    Where that unit itself used the name again before it settled, nobody can tell which answer belongs to its first
    request, and another one's might stand in for one that was lost: it counts as not asked.

    Args:
        events: GATEWAY_EVENTS of the workload, in any order, each once; requests and shadows are read.
        plan: Says how long a unit takes to settle.
        generation: Of the traffic.
        now: When it is looked.

    Returns:
        PAIRS.
    """
    settle = plan.rollout.settle
    named = events.filter(pl.col("kind") == "request").sort(_ORDER).unique("request_id", keep="first")
    in_time = pl.col("ts") <= pl.col("first_at") + settle
    first = (
        events.filter(
            pl.col("kind") == "request",
            pl.col("generation") == generation,
            pl.col("unit").is_not_null(),
            pl.col("intended").is_not_null(),
        )
        .with_columns(first_at=pl.col("ts").min().over("unit"))  # apart: within another window it would be of that
        .with_columns(alike=in_time.sum().over("unit", "request_id"))
        .sort(_ORDER)
        .unique("unit", keep="first", maintain_order=True)
        .filter(
            pl.col("intended") == "legacy",
            pl.col("flags").list.contains(MIRRORED),
            pl.col("ts") + settle <= now,
        )
        .join(named, on="event_id", how="semi", maintain_order="left")
    )
    shadows = (
        events.filter(pl.col("kind") == "shadow", pl.col("generation") == generation)
        .sort(_ORDER)
        .unique(("request_id", "unit"), keep="first")
        .select("request_id", "unit", "ts", "status", "stream", "contract_ok", "cost_usd")
    )
    paired = first.join(shadows, on=("request_id", "unit"), how="left", suffix="_of_target", maintain_order="left")
    # A stream may break where a plain answer does not, and its tokens are counted otherwise.
    is_alike = (pl.col("stream") == pl.col("stream_of_target")) & (pl.col("alike") == 1)
    asked = ((pl.col("ts_of_target") <= pl.col("ts") + settle) & is_alike).fill_null(value=False)
    return PAIRS.conform(
        paired.select(
            "unit",
            pl.col("ts").alias("seen_at"),
            (pl.col("status") == "error").alias("legacy_failed"),
            asked.alias("asked"),
            pl.when(asked).then(pl.col("status_of_target") == "error").alias("target_failed"),
            pl.when(pl.col("status") == "ok").then(~pl.col("contract_ok")).alias("legacy_broke"),
            pl.when(asked).then(~pl.col("contract_ok_of_target")).alias("target_broke"),
            (~pl.col("cached").fill_null(value=False)).alias("timed"),
            (pl.col("status") == "disconnected").alias("left"),
            pl.col("cost_usd").alias("legacy_usd"),
            pl.when(asked).then(pl.col("cost_usd_of_target")).alias("target_usd"),
        )
    )
