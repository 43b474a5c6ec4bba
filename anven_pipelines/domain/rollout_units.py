"""Folds the gateway's events into one row per user or conversation of a stage, which is what was assigned to an arm.

A unit counts with the requests that end within `settle` of its first one, and only once that time is over: an outcome
that still changed between two looks would be counted more than once, and the error rates would not hold. What it does
later in the stage is not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from anven_pipelines.domain.gateway_event import SAFE, UNSAFE
from anven_pipelines.domain.rollout_measure import UNITS
from anven_pipelines.domain.rollout_plan import judge_outcome

if TYPE_CHECKING:
    from datetime import datetime

    from anven_pipelines.domain.rollout_plan import RolloutPlan

_HASH_DIGITS: Final = 8
ORDER: Final = ("ts", "worker", "seq", "event_id")
"""In which events happened: a worker's numbers tell those of one moment apart."""


def units_of(events: pl.DataFrame, plan: RolloutPlan, *, generation: int, now: datetime) -> pl.DataFrame:
    """Return one row per unit of a generation, in the order of their first requests.

    Args:
        events: GATEWAY_EVENTS of the workload, in any order, each once; requests and feedback are read.
        plan: Says how long a unit takes to settle and when its score is due.
        generation: Of the traffic.
        now: When it is looked.

    Returns:
        UNITS. Arms are those that were intended: a request that the target failed and legacy answered in its place is
        an error of the target.
    """
    rollout = plan.rollout
    first = pl.col("ts").min().over("unit")
    requests = _requests(events, generation).with_columns(
        (first + rollout.settle + rollout.label_delay).alias("due_at")
    )
    judge = rollout.judge
    requests = _scored(requests, events, outcome=None if judge is None else judge_outcome(judge))
    settled = requests.filter(pl.col("ts") <= first + rollout.settle, first + rollout.settle <= now)
    timed = ~pl.col("cached").fill_null(value=False) & (pl.col("status") != "disconnected")
    # Earlier gateways checked what a client that hung up had got so far.
    whole = pl.col("status") == "ok"
    rescued = (pl.col("why") == "fallback").fill_null(value=False) & (pl.col("intended") == "target")
    at_legacy = (pl.col("served") == "legacy") & (pl.col("intended") == "target")
    folded = (
        settled.sort(ORDER)
        .group_by("unit", maintain_order=True)
        .agg(
            pl.col("ts").first().alias("seen_at"),
            pl.col("due_at").first(),
            (pl.col("intended").first() == "target").alias("treated"),
            ((pl.col("status") == "error") | rescued).mean().alias("errors"),
            (~pl.col("contract_ok")).filter(whole).cast(pl.Float64).mean().alias("contract"),
            pl.col("unsafe").mean().alias("safety"),
            pl.col("score").mean().alias("quality"),
            pl.col("ttft_ms").filter(timed & pl.col("stream")).first(),
            pl.col("latency_ms").filter(timed).first(),
            pl.col("cost_usd").filter(timed).first(),
            (timed & pl.col("stream").fill_null(value=False)).any().alias("streamed"),
            timed.any().alias("timed"),
            (pl.col("status") == "disconnected").any().alias("left"),
            at_legacy.any().alias("fell_back"),
            (pl.col("intended").n_unique() > 1).alias("moved"),
        )
        .with_columns((drawn(rollout.judged) & (pl.col("due_at") <= now)).alias("due"))
    )
    return UNITS.conform(folded)


def drawn(share: float) -> pl.Expr:
    """Tell which units are due for a score: a share of them by their keyed hash, which knows nothing of the arm."""
    return pl.col("unit").str.slice(0, _HASH_DIGITS).str.to_integer(base=16) / 16**_HASH_DIGITS < share


def _requests(events: pl.DataFrame, generation: int) -> pl.DataFrame:
    return events.filter(
        pl.col("kind") == "request",
        pl.col("generation") == generation,
        pl.col("unit").is_not_null(),
        pl.col("intended").is_not_null(),
    )


def _scored(requests: pl.DataFrame, events: pl.DataFrame, *, outcome: str | None) -> pl.DataFrame:
    """Add each request's newest score, and whether anybody flagged its answer; NULL where nobody judged that.

    What is told after the unit's score was due comes too late: it has been counted without. A client may name several
    requests alike: what is told of that name counts for the first one, as the gateway's counters have it, and the
    others are unmeasured. One feedback that scored many units would be taken for as much evidence. Where a judge is
    declared only scores with its `outcome` count: users score what they like, and may say so of one arm more often.
    """
    told = (
        events.filter(pl.col("kind") == "feedback").sort(ORDER).select("request_id", "ts", "score", "outcome", "flags")
    )
    if outcome is not None:
        told = told.with_columns(pl.when(pl.col("outcome") == outcome).then("score").alias("score"))
    named = events.filter(pl.col("kind") == "request").sort(ORDER).unique("request_id", keep="first")
    due = requests.join(named, on="event_id", how="semi").select("event_id", "request_id", "due_at")
    told = told.join(due, on="request_id", maintain_order="left").filter(pl.col("ts") <= pl.col("due_at"))
    # A thumb says nothing of safety: that was looked at only where one of both flags says so.
    unsafe = (
        pl.when(pl.col("flags").list.contains(UNSAFE)).then(1.0).when(pl.col("flags").list.contains(SAFE)).then(0.0)
    )
    judged = told.group_by("event_id", maintain_order=True).agg(
        pl.col("score").drop_nulls().last(), unsafe.max().alias("unsafe")
    )
    return requests.drop("score").join(judged, on="event_id", how="left")
