"""Rows of a load benchmark, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from anven_pipelines.domain.load import LOAD_REQUESTS

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
