"""Whether the target's time to first token lies within what the migration file allows, at the p95 of the calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from anven_pipelines.domain.criterion import Status
from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.domain.evaluation import Finding, cluster_codes
from anven_pipelines.stats.quantiles import paired_quantile_difference, weighted_quantile

if TYPE_CHECKING:
    from anven_pipelines.spec import SignOff
    from anven_pipelines.stats.interval import Interval

SPEED_QUANTILE = 0.95
# A p95 over fewer measured pairs than this share could be moved past any limit by the pairs that are missing.
SPEED_COVERAGE = 0.99
# A time to first token that stands for "never": 30 years, beyond any allowance, and exact to a millisecond.
NEVER_MS = 1e12


class Speed(Finding):
    """Time to first token, paired, over calls of the traffic; NULL where it was not measured.

    Attributes:
        interval_ms: Of `increase_ms`, over measured pairs; it describes.
        beyond_allowed_ms: Bounds of the increase less what is allowed, which decide; NULL where unmeasured pairs leave
            it without bound.
    """

    status: Status
    reason: str
    n_measured: int
    legacy_ttft_p95_ms: float | None = None
    target_ttft_p95_ms: float | None = None
    increase_ms: float | None = None
    interval_ms: tuple[float, float] | None = None
    beyond_allowed_ms: tuple[float | None, float | None] | None = None
    allowed_ms: float | None = None
    legacy_latency_p95_ms: float | None = None
    target_latency_p95_ms: float | None = None


def assess_speed(scores: pl.DataFrame, spec: SignOff, *, seed: int) -> Speed:
    """Judge the increase of p95 time to first token over calls of the traffic on its one-sided bounds.

    The allowance is the larger of the relative and the absolute one, and is estimated with the increase. A pair of
    which one side has no time to first token counts against whatever is to be proven: for "met" the target was
    infinitely slow and the legacy instant, for "not met" the other way round. Below `SPEED_COVERAGE` measured pairs
    nothing is claimed.
    """
    pairs = scores.filter(pl.col("legacy_ttft_ms").is_not_null() & pl.col("target_ttft_ms").is_not_null())
    if pairs.height < SPEED_COVERAGE * scores.height or pairs.is_empty():
        reason = (
            f"time to first token was measured in both arms for {pairs.height} of {scores.height} items; "
            f"{SPEED_COVERAGE:.0%} are needed"
        )
        return Speed(status="unmeasured", reason=reason, n_measured=pairs.height)
    measured = _describe(pairs, spec)
    try:
        increase = _speed_change(pairs, spec, seed=seed)
        lower, upper = _beyond_allowed(scores, spec, seed=seed)
    except TooFewPairs as error:
        return Speed(status="undecided", reason=str(error), **measured)
    beyond = _known(lower), _known(upper)
    return Speed(
        status="met" if upper <= 0 else "not met" if lower > 0 else "undecided",
        reason=_explain(increase, beyond, allowed_ms=_allowed_ms(pairs, spec), missing=scores.height - pairs.height),
        increase_ms=round(increase.estimate, 3),
        interval_ms=(round(increase.lower, 3), round(increase.upper, 3)),
        beyond_allowed_ms=beyond,
        **measured,
    )


def _describe(pairs: pl.DataFrame, spec: SignOff) -> dict[str, Any]:
    """Return what was measured in both arms, whatever it proves."""
    return {
        "n_measured": pairs.height,
        "legacy_ttft_p95_ms": _p95(pairs, "legacy_ttft_ms"),
        "target_ttft_p95_ms": _p95(pairs, "target_ttft_ms"),
        "allowed_ms": round(_allowed_ms(pairs, spec), 3),
        "legacy_latency_p95_ms": _p95(pairs, "legacy_latency_ms"),
        "target_latency_p95_ms": _p95(pairs, "target_latency_ms"),
    }


def _allowed_ms(pairs: pl.DataFrame, spec: SignOff) -> float:
    return max(spec.ttft_increase * (_p95(pairs, "legacy_ttft_ms") or 0.0), spec.ttft_increase_ms)


def _explain(increase: Interval, beyond: tuple[float | None, float | None], *, allowed_ms: float, missing: int) -> str:
    ends = " to ".join("?" if bound is None else f"{bound:+.0f}" for bound in beyond)
    return (
        f"p95 time to first token changes by {increase.estimate:+.0f} ms "
        f"({increase.lower:+.0f} to {increase.upper:+.0f}); up to {allowed_ms:+.0f} ms is allowed, which is "
        f"exceeded by {ends} ms" + (f", with the worst for {missing} unmeasured items" if missing else "")
    )


def _speed_change(pairs: pl.DataFrame, spec: SignOff, *, seed: int, beyond: bool = False) -> Interval:
    """Bound the change of the p95, or by how much it lies beyond what is allowed; the same seed, the same resamples."""
    return paired_quantile_difference(
        pairs["target_ttft_ms"].to_numpy(),
        pairs["legacy_ttft_ms"].to_numpy(),
        quantile=SPEED_QUANTILE,
        allowed_share=spec.ttft_increase if beyond else 0.0,
        allowed=spec.ttft_increase_ms if beyond else 0.0,
        clusters=cluster_codes(pairs),
        weights=pairs["weight"].to_numpy(),
        level=1 - 2 * spec.level,
        rng=np.random.default_rng(seed),
    )


def _beyond_allowed(scores: pl.DataFrame, spec: SignOff, *, seed: int) -> tuple[float, float]:
    """Bound the increase of the p95 less what is allowed, each side with the worst for what was not measured."""
    best, worst = (_without_gaps(scores, slow=arm) for arm in ("legacy", "target"))
    against = _speed_change(worst, spec, seed=seed, beyond=True)
    in_favour = against if best.equals(worst) else _speed_change(best, spec, seed=seed, beyond=True)
    return in_favour.lower, against.upper


def _known(bound: float) -> float | None:
    return None if abs(bound) > NEVER_MS / 2 else round(bound, 3)


def _without_gaps(scores: pl.DataFrame, *, slow: str) -> pl.DataFrame:
    """Fill the times of pairs that were not measured in both arms: one arm never answered, the other at once."""
    measured = pl.col("legacy_ttft_ms").is_not_null() & pl.col("target_ttft_ms").is_not_null()
    return scores.with_columns(
        pl.when(measured).then(f"{arm}_ttft_ms").otherwise(NEVER_MS if arm == slow else 0.0).alias(f"{arm}_ttft_ms")
        for arm in ("legacy", "target")
    )


def _p95(pairs: pl.DataFrame, column: str) -> float | None:
    """Return the p95 over calls of the traffic; None where no item has a value."""
    measured = pairs.filter(pl.col(column).is_not_null())
    if measured.is_empty():
        return None
    weights = measured["weight"].to_numpy()
    return round(weighted_quantile(measured[column].to_numpy(), SPEED_QUANTILE, weights=weights), 3)
