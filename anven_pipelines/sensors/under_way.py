"""Whether a run that a sensor asked for is still under way."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg

PATIENCE: Final = timedelta(minutes=5)
"""A run that is under way for longer is taken for dead: a killed one stays STARTED, as no launcher need notice it.

A step and a delivery take seconds once they run. One that lives all the same may act beside the next: the log takes one
of two steps, and a receiver is told by one delivery at a time.
"""

QUEUE_PATIENCE: Final = timedelta(seconds=30)
"""A run that has not begun by then may wait for hours, as Dagster's queue is full or no node has room for its pod."""

_UNFINISHED: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_NOT_BEGUN: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
]


def is_under_way(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> bool:
    """Tell whether a run with these tags is under way, and not for longer than PATIENCE."""
    since = datetime.now(UTC) - PATIENCE
    filters = dg.RunsFilter(tags=dict(tags), statuses=_UNFINISHED, created_after=since)
    return bool(instance.get_runs(filters=filters, limit=1))


def waits_for_a_place(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> bool:
    """Tell whether a run with these tags was asked for QUEUE_PATIENCE ago and has not begun."""
    until = datetime.now(UTC) - QUEUE_PATIENCE
    filters = dg.RunsFilter(tags=dict(tags), statuses=_NOT_BEGUN, created_before=until)
    return bool(instance.get_runs(filters=filters, limit=1))
