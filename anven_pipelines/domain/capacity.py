"""How many servers the workload needs, and what a request then costs, from the rate that one of them sustains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from anven_pipelines.domain.evaluation import Finding

if TYPE_CHECKING:
    from anven_pipelines.domain.arrivals import FloatArray
    from anven_pipelines.domain.load import Saturation
    from anven_pipelines.spec_load import Load

PEAK_WINDOW_S: Final = 60.0
ASSUMPTION: Final = (
    "n replicas serve n times what one of the measured ones did, and the log holds all calls of the workload; no spare "
    "replica for failures or growth is counted"
)


class Demand(Finding):
    """How often the workload calls.

    Attributes:
        calls: Logged calls with a time.
        mean_rate: Calls per second from the first to the last; None for a log shorter than a minute.
        peak_rate: Calls per second in the busiest minute.
    """

    calls: int
    mean_rate: float | None
    peak_rate: float | None


class Capacity(Finding):
    """What serving the workload takes.

    Attributes:
        rate_per_replica: Requests per second at the service level; the lower end where no rate was too much.
        replicas_for_peak: Replicas for the busiest minute.
        usd_per_1000_full: USD for 1,000 requests by replicas that are never idle.
        usd_per_1000_logged: USD for 1,000 requests of the log, by replicas for its peak that run all the time.
        assumption: What has to hold for it.
    """

    demand: Demand
    rate_per_replica: float | None
    replicas_for_peak: int | None
    usd_per_1000_full: float | None
    usd_per_1000_logged: float | None
    assumption: str = ASSUMPTION


def demand_of(times: FloatArray) -> Demand:
    """Return how often calls came.

    Args:
        times: Seconds, ascending, shape (n,).
    """
    if times.size == 0 or (span := float(times[-1] - times[0])) < PEAK_WINDOW_S:
        return Demand(calls=times.size, mean_rate=None, peak_rate=None)
    in_window = np.searchsorted(times, times + PEAK_WINDOW_S) - np.arange(times.size)
    return Demand(calls=times.size, mean_rate=times.size / span, peak_rate=float(in_window.max()) / PEAK_WINDOW_S)


def capacity_of(saturation: Saturation, demand: Demand, load: Load) -> Capacity:
    """Return what serving the workload takes; None for whatever was not measured or has no price.

    Args:
        saturation: Of the target.
        demand: Of the workload.
        load: Names the replicas that were measured together, and the price of one.
    """
    rate = None if saturation.sustained_rate is None else saturation.sustained_rate / load.replicas
    replicas = None if rate is None or demand.peak_rate is None else replicas_needed(demand.peak_rate, rate)
    hourly = load.replica_usd_per_hour
    return Capacity(
        demand=demand,
        rate_per_replica=rate,
        replicas_for_peak=replicas,
        usd_per_1000_full=None if rate is None or hourly is None else _per_1000(hourly, rate),
        usd_per_1000_logged=None
        if replicas is None or hourly is None or demand.mean_rate is None
        else _per_1000(replicas * hourly, demand.mean_rate),
    )


def replicas_needed(peak_rate: float, rate_per_replica: float) -> int:
    """Return how many replicas bear a rate; one that is borne exactly takes no further replica."""
    return max(1, math.ceil(peak_rate / rate_per_replica - 1e-9))


def _per_1000(usd_per_hour: float, rate: float) -> float:
    return usd_per_hour / (rate * 3600) * 1000
