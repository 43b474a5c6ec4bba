"""Whether a stage's load can be served: its share of the measured traffic beside the rate that the benchmark proved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anven_pipelines.domain.capacity import demand_of

if TYPE_CHECKING:
    from anven_pipelines.domain.arrivals import FloatArray
    from anven_pipelines.domain.load_report import LoadReport


def peak_rate_of(times: FloatArray) -> float | None:
    """Return the requests per second in the busiest minute; None where less than a minute was seen.

    Args:
        times: Seconds, in any order, shape (n,).
    """
    return demand_of(np.sort(times)).peak_rate


def shortfall(share: float, peak_rate: float | None, planned: LoadReport | None) -> str | None:
    """Say why a share of the traffic may be too much for the target; None where it is not, or nothing was planned.

    Args:
        share: Of the traffic that the target is to get.
        peak_rate: Requests per second in the busiest minute that production showed; the log's where that is unknown.
        planned: What the load benchmark found; None where there was none.
    """
    if planned is None or not planned.figures:
        return None
    sustained = planned.target.sustained_rate
    if sustained is None:
        return f"the load benchmark proves no rate that the target bears: {planned.target.reason}"
    logged = planned.capacity.demand.peak_rate if planned.capacity else None
    peak = logged if peak_rate is None else peak_rate
    if peak is None:
        return "how many requests come in the busiest minute is unknown: less than a minute of traffic was measured"
    if share * peak <= sustained:
        return None
    return (
        f"{share:.0%} of {peak:.3g} requests a second in the busiest minute are {share * peak:.3g}/s, and the target "
        f"is proven to bear {sustained:g}/s: serve it with more replicas and run `load_benchmark` anew"
    )
