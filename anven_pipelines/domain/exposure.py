"""How long users were exposed to a bad target, read from the gateway's events."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

if TYPE_CHECKING:
    from datetime import datetime


class Exposure(NamedTuple):
    """What a bad target did to users, from the first request on that was dealt to it.

    Attributes:
        first_bad_at: When that request came; one that hangs has no answer to count from.
        breaker_s: Seconds until the gateway's breaker tripped; None where it did not.
        last_dealt_s: Seconds until the last request was dealt to the target; from then on all were legacy's.
        bad: Requests that the target had meanwhile.
        rescued: Those of them that it failed and legacy answered in its place.
    """

    first_bad_at: datetime
    breaker_s: float | None
    last_dealt_s: float
    bad: int
    rescued: int


def exposure_of(events: pl.DataFrame, *, since: datetime) -> Exposure | None:
    """Return how long a target that is bad since a moment had users.

    Args:
        events: GATEWAY_EVENTS of one workload; a breaker's name no attempt.
        since: When it turned bad; requests that began before count for nothing.

    Returns:
        None where it had no request from then on.
    """
    began = (pl.col("ts") - pl.duration(microseconds=(pl.col("latency_ms") * 1e3).round())).alias("began")
    bad = events.filter(
        pl.col("kind") == "request",
        pl.col("intended") == "target",
        pl.col("why").is_null() | (pl.col("why") == "fallback"),
        began >= since,
    ).select("why", began)
    first: datetime | None = bad["began"].min()  # type: ignore[assignment]  # a minimum of times
    last: datetime | None = bad["began"].max()  # type: ignore[assignment]  # a maximum of times
    if first is None or last is None:
        return None
    tripped = events.filter(pl.col("kind") == "breaker", pl.col("outcome") == "open", pl.col("ts") >= since)
    tripped_at: datetime | None = tripped["ts"].min()  # type: ignore[assignment]  # as above
    return Exposure(
        first_bad_at=first,
        breaker_s=None if tripped_at is None else (tripped_at - first).total_seconds(),
        last_dealt_s=(last - first).total_seconds(),
        bad=bad.height,
        rescued=int((bad["why"] == "fallback").sum()),
    )
