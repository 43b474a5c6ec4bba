"""Values that one arm lacks more often than the other: what is then left of both arms looks alike.

Clients give up on what is slow, and users score what they like. Where both arms have traffic, chance alone decides who
meets which, so any difference that is proven is one. Where legacy has none any more, the target's clients are held
against legacy's of the last shared stage: other hours have other clients, so there a difference has to be a large one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from anven_pipelines.domain.rollout_reading import READINGS
from anven_pipelines.stats.confidence_sequence import difference_of
from anven_pipelines.stats.randomised_difference import RandomisedDifference
from anven_pipelines.stats.sequential import BoundedMean

if TYPE_CHECKING:
    from anven_pipelines.spec_rollout import Metric
    from anven_pipelines.stats.interval import Interval

UNEVEN_P: Final = 0.001
"""Values lack unevenly where that is proven at this error rate, all looks together."""
STRAY: Final = 0.01
"""Share of the units by which clients of other hours may hang up more often: as many may lack values in either arm."""
LEFT: Final[tuple[Metric, ...]] = ("ttft", "latency", "cost", "contract")
"""Metrics of which a client that hung up keeps the value from being known."""


def uneven(units: pl.DataFrame, metric: Metric, *, share: float | None, before: pl.DataFrame | None) -> str | None:
    """Say that one arm lacks more values than the other; None where that is not proven.

    Args:
        units: UNITS of the stage.
        metric: Whose values may lack.
        share: The target's; None where legacy has no traffic.
        before: Legacy's UNITS of the last shared stage; needed where there is no share.
    """
    if share is None:
        return _gone(units, before, metric) if metric in LEFT and before is not None else None
    found = _lacking(units, metric)
    if found.is_empty():
        return None
    state = RandomisedDifference(level=1 - UNEVEN_P, smallest_share=min(share, 1 - share))
    bounds = state.update(found["lacks"].to_numpy(), found["treated"].to_numpy(), share=share).current()
    if bounds.lower <= 0 <= bounds.upper:
        return None
    target, legacy = (float(found.filter(pl.col("treated") == arm)["lacks"].sum()) for arm in (True, False))
    return uneven_words(metric, target=target, legacy=legacy)


def legacy_lacked_more(units: pl.DataFrame, metric: Metric, *, before: pl.DataFrame) -> bool:
    """Say whether legacy's clients hung up more often before than the target's do now.

    Nothing is then in doubt of what the target answers, but legacy may have been spared what they hung up on.

    Args:
        units: UNITS of the stage in which legacy has no traffic.
        metric: Whose values may lack.
        before: Legacy's UNITS of the last shared stage.
    """
    arms = _gone_of(units, before, metric) if metric in LEFT else None
    return arms is not None and difference_of(*arms).upper < -STRAY


def uneven_words(metric: Metric, *, target: float, legacy: float) -> str:
    """Say of how many units of each arm values lack, where that is no chance."""
    return f"{_what(metric)}, on {target:,.0f} units of target and {legacy:,.0f} of legacy, which is no chance"


def gone_words(metric: Metric, *, target: float, legacy: float) -> str:
    """Say at which shares of the units values lack, where the target's are more than those of legacy before."""
    return (
        f"{_what(metric)}, on {target:.1%} of the units of target and {legacy:.1%} of legacy's before, which is more "
        f"by over {STRAY:.0%}"
    )


def _gone(units: pl.DataFrame, before: pl.DataFrame, metric: Metric) -> str | None:
    arms = _gone_of(units, before, metric)
    if arms is None or difference_of(*arms).lower <= STRAY:
        return None
    return gone_words(metric, target=arms[0].estimate, legacy=arms[1].estimate)


def _gone_of(units: pl.DataFrame, before: pl.DataFrame, metric: Metric) -> tuple[Interval, Interval] | None:
    """Bound the shares of the target's units, and of legacy's before, that lack a value; None without any units."""
    arms = [_lacking(arm, metric)["lacks"] for arm in (units.filter("treated"), before)]
    if any(arm.is_empty() for arm in arms):
        return None
    target, legacy = (BoundedMean(level=1 - UNEVEN_P / 2).update(arm.to_numpy()).current() for arm in arms)
    return target, legacy


def _lacking(units: pl.DataFrame, metric: Metric) -> pl.DataFrame:
    """Return `treated` and `lacks`, 1 where the value is missing, of the units that it concerns."""
    reading = READINGS[metric]
    lacks = reading.applies & reading.bad.is_null()
    concerned = units if metric in LEFT else units.filter(reading.applies)
    if metric in LEFT:
        lacks = lacks | pl.col("left")
    return concerned.select("treated", lacks.fill_null(value=False).cast(pl.Float64).alias("lacks"))


def _what(metric: Metric) -> str:
    return "clients hung up, or nothing was measured" if metric in LEFT else "nothing was measured"
