"""Which of legacy's units a target that has all traffic is held against: those of the same hours of the day.

Legacy is known from the last stage that it had a share of. Quality, errors and times have a daily rhythm, so a window
at its trough would look worse than legacy's whole day though the target is as good. Of a stage that lasted about a day
or longer, a window is therefore held against the hours that it covers so far. Legacy's units are taken in the order of
their time of day from the window's first moment on: while the window grows they are a growing prefix of one sequence,
and so the bounds of a confidence sequence hold at all its looks. Beyond a day both sides are whole days.

A shorter stage, as compressed plans have it, shows no other hours: then all of it is compared with, whatever the hour.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple, cast

import polars as pl

DAY: Final = timedelta(days=1)
COVERED: Final = DAY / 2
"""Span of legacy's units from which on a stage counts as one that shows the hours of the day: nights may be without."""
_SLACK: Final = timedelta(hours=1)
"""What the first and the last unit of a stage of some days may be apart from its ends."""
_MICROSECONDS: Final = DAY // timedelta(microseconds=1)


class Matched(NamedTuple):
    """The target's units that are judged, and those of legacy that they are held against."""

    target: pl.DataFrame
    legacy: pl.DataFrame


def of_same_hours(target: pl.DataFrame, legacy: pl.DataFrame) -> Matched:
    """Return what of a window can be compared with what of legacy's last stage.

    Args:
        target: Units of one window, with `seen_at`, in that order.
        legacy: Legacy's units of the last stage that it had a share of, with `seen_at`.

    Returns:
        The target's units of hours (UTC) in which legacy had any, of whole days where the window is longer than one;
        and legacy's units of the window's hours so far, each time of day from equally many days. Both as they are where
        legacy's span less than half a day.
    """
    if target.is_empty() or legacy.is_empty() or _span(legacy) < COVERED:
        return Matched(target, legacy)
    days = (_span(legacy) + _SLACK) // DAY
    if days:
        legacy = legacy.filter(pl.col("seen_at") > _last(legacy) - days * DAY)
    hours = legacy["seen_at"].dt.hour().unique()
    since, span = _first(target), _span(target)
    if span >= DAY:
        target, span = target.filter(pl.col("seen_at") < since + span // DAY * DAY), DAY
    after = (pl.col("seen_at") - since).dt.total_microseconds() % _MICROSECONDS
    return Matched(
        target.filter(pl.col("seen_at").dt.hour().is_in(hours.implode())),
        legacy.filter(after <= span // timedelta(microseconds=1)).sort(after, maintain_order=True),
    )


def _first(units: pl.DataFrame) -> datetime:
    return cast("datetime", units["seen_at"].min())


def _last(units: pl.DataFrame) -> datetime:
    return cast("datetime", units["seen_at"].max())


def _span(units: pl.DataFrame) -> timedelta:
    return _last(units) - _first(units)
