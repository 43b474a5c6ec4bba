"""Which events the gateway lost, when, and what they leave of the evidence.

A worker numbers its events; what its numbers lack it meant to write and did not. Whose they were nobody knows, so each
loss may be all of one workload's. It spoils the stretches of time that it falls into and no others: the hours after it
prove harm by themselves, while the stage as a whole proves no advance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

if TYPE_CHECKING:
    from datetime import datetime

MOST_LOST: Final = 0.01
"""Lost events, as a share of those that came in a window, above which what came is no evidence: as for metrics."""


def losses_of(numbers: pl.DataFrame, *, since: datetime, now: datetime) -> pl.DataFrame:
    """Return when events were lost, and how many.

    Args:
        numbers: `worker`, `seq` and `ts` of every event that came; each worker numbers from 1 on. A NULL `ts` is of
            an event that came twice.
        since: Losses before that are left out.
        now: When it is looked.

    Returns:
        `ts`, the latest moment at which they can have been lost: that of the worker's next event, or `now` where that
        has none; and `lost`.
    """
    earlier = pl.col("seq").shift(1).over("worker").fill_null(0)
    gaps = numbers.sort("worker", "seq").select(
        # A repeat has no time of its own: it is as old as the next event, or as new as can be.
        pl.col("ts").backward_fill().over("worker").fill_null(now),
        (pl.col("seq") - earlier - 1).clip(0).alias("lost"),
    )
    return gaps.filter(pl.col("lost") > 0, pl.col("ts") >= since)


def is_whole(losses: pl.DataFrame, came: pl.DataFrame, *, since: datetime) -> bool:
    """Tell whether so few events were lost in a window that they cannot make up harm.

    Args:
        losses: As `losses_of` gives them.
        came: `ts` of the workload's events that came.
        since: When the window begins; it lasts until now.
    """
    in_window = pl.col("ts") >= since
    return bool(losses.filter(in_window)["lost"].sum() <= MOST_LOST * came.filter(in_window).height)
