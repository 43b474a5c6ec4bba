"""Rows of a load benchmark, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from anven_pipelines.domain.capacity import Capacity, Demand
from anven_pipelines.domain.load import LOAD_REQUESTS, Percentiles, RateFigures, Saturation
from anven_pipelines.domain.load_report import LoadReport

if TYPE_CHECKING:
    from collections.abc import Sequence


def requests_at(rate: float, *, ttft_ms: Sequence[float | None], arm: str = "target", **columns: Any) -> pl.DataFrame:
    """Build unjudged LOAD_REQUESTS: evenly due requests, each answered 100 ms after its first token."""
    count = len(ttft_ms)
    latency = [None if each is None else each + 100.0 for each in ttft_ms]
    return LOAD_REQUESTS.conform(
        pl.DataFrame(
            {
                "arm": [arm] * count,
                "rate": [rate] * count,
                "number": list(range(count)),
                "item_id": [f"item-{at % 50:05d}" for at in range(count)],
                "due_s": [at / rate for at in range(count)],
                "lag_ms": [1.0] * count,
                "status": ["answered"] * count,
                "ttft_ms": pl.Series(ttft_ms, dtype=pl.Float64),
                "latency_ms": pl.Series(latency, dtype=pl.Float64),
                "inter_token_ms": [10.0] * count,
                "longest_gap_ms": [12.0] * count,
                "output_tokens": [11] * count,
            }
            | columns
        )
    )


def load_report(sustained: float | None, *, logged: float | None = None) -> LoadReport:
    """Build the report of a benchmark of one rate: what the target sustains, and the log's busiest minute."""
    none = Percentiles(p50=None, p95=None, p99=None)
    figures = RateFigures(
        arm="target",
        rate=sustained or 1.0,
        seconds=60.0,
        requests=60,
        offered_rate=1.0,
        answered=60,
        failed=0,
        unsent=0,
        kept=60,
        error_share=0.0,
        achieved_rate=1.0,
        goodput=1.0,
        within=None,
        ttft_ms=none,
        inter_token_ms=none,
        latency_ms=none,
        longest_gap_ms=none,
        late=0,
        lag_p99_ms=None,
        prompts=50,
        judgement="within" if sustained else "unproven",
        reason="for a test",
    )
    capacity = Capacity(
        demand=Demand(calls=100, mean_rate=logged, peak_rate=logged),
        rate_per_replica=sustained,
        replicas_for_peak=None,
        usd_per_1000_full=None,
        usd_per_1000_logged=None,
    )
    return LoadReport(
        workload="support",
        message="for a test",
        figures=[figures],
        target=Saturation(
            status="found" if sustained else "unproven",
            sustained_rate=sustained,
            beyond_rate=None,
            goodput=None,
            reason="no rate was within",
        ),
        legacy=None,
        compared=[],
        capacity=capacity,
    )
