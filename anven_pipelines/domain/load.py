"""What a load benchmark found: how fast a server answers at each rate, and from which rate on it no longer keeps up.

Every time counts from the moment at which a request was due, not from the one at which it left: a driver that lets a
slow server delay its requests would leave out just the waits that users have ("coordinated omission"; Tene's wrk2
measures so too, https://github.com/giltene/wrk2). A request without an answer is slower than any answered one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import polars as pl

from anven_pipelines.domain.completion import Answer
from anven_pipelines.domain.evaluation import Finding
from anven_pipelines.domain.table import Column, Table
from anven_pipelines.stats.distributions import normal_quantile
from anven_pipelines.stats.proportions import wilson_interval
from anven_pipelines.stats.quantiles import MIN_TAIL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.completion import Outcome
    from anven_pipelines.domain.load_plan import Due
    from anven_pipelines.spec_load import ServiceLevel

LOAD_REQUESTS: Final = Table(
    "load_benchmark",
    (
        Column("arm", pl.String, "Who was asked: `target` or `legacy`."),
        Column("rate", pl.Float64, "Planned requests per second."),
        Column("number", pl.Int64, "Number of the request at its rate, from 0; the same request in both arms."),
        Column("item_id", pl.String, "Golden item whose prompt was sent; always an open one."),
        Column("due_s", pl.Float64, "Seconds from the start of the rate at which it was due to be sent."),
        Column("lag_ms", pl.Float64, "Milliseconds it left later than that, by the driver's own fault."),
        Column("status", pl.String, "`answered`, `failed`, or `unsent` where the safety cap was reached."),
        Column("reason", pl.String, "Why there is no answer; NULL when answered."),
        Column("ttft_ms", pl.Float64, "Milliseconds from when it was due to the first token; NULL if not streamed."),
        Column("latency_ms", pl.Float64, "Milliseconds from when it was due to the end of the answer."),
        Column("inter_token_ms", pl.Float64, "Mean milliseconds per token after the first; NULL if not counted."),
        Column("longest_gap_ms", pl.Float64, "Longest wait between two pieces of the answer."),
        Column("input_tokens", pl.Int64, "Tokens of the prompt as the server counted them."),
        Column("output_tokens", pl.Int64, "Tokens of the answer as the server counted them."),
        Column("met", pl.Boolean, "Whether it kept every declared limit; NULL where a time to judge by is missing."),
    ),
)

LEVEL: Final = 0.90
"""Two-sided, so each bound on its own errs in one of 20 benchmarks."""

LAG_SHARE: Final = 0.1
"""Share of the tightest limit from which on a request left late."""
LATE_SHARE: Final = 0.5
"""Share of the misses that the service level allows which may be the driver's own."""
LEAST_LAG_MS: Final = 10.0  # what an event loop on a busy machine reaches without being overloaded
LAG_WITHOUT_LIMIT_MS: Final = 50.0  # where only the time between tokens is limited, which no late start changes

Judgement = Literal["within", "beyond", "unproven", "unmeasured"]
SaturationStatus = Literal["found", "not reached", "below", "unproven", "unmeasured"]

_STATUSES: Final[Mapping[tuple[bool, bool], SaturationStatus]] = {
    (True, True): "found",
    (True, False): "not reached",
    (False, True): "below",
    (False, False): "unproven",
}
"""By whether a rate is within, and whether one is beyond."""


class Percentiles(Finding):
    """Percentiles over all requests; None where too few, or too few answered ones, lie on either side to tell."""

    p50: float | None
    p95: float | None
    p99: float | None


class Share(Finding):
    """A share with its interval."""

    estimate: float
    lower: float
    upper: float


class RateFigures(Finding):
    """What one rate gave.

    Attributes:
        rate: Planned requests per second.
        offered_rate: Requests that were due per second: the planned rate, but for rounding to whole requests.
        achieved_rate: Whole answers per second that had come when the rate ended.
        kept: Requests that are known to have kept every limit.
        goodput: They per second; None where that could not be told of all of them.
        within: Share of requests that kept every limit, errors and unsent ones as misses.
        judgement: `within`: the share is proven to reach the declared one; `beyond`: proven not to; `unproven`: the
            requests tell neither; `unmeasured`: nothing was learnt about the server.
        reason: The judgement in words.
        late: Requests that the driver sent so late that it may have made them miss.
        prompts: Different prompts among the requests.
    """

    arm: str
    rate: float
    seconds: float
    requests: int
    offered_rate: float
    answered: int
    failed: int
    unsent: int
    kept: int
    error_share: float
    achieved_rate: float
    goodput: float | None
    within: Share | None
    ttft_ms: Percentiles
    inter_token_ms: Percentiles
    latency_ms: Percentiles
    longest_gap_ms: Percentiles
    late: int
    lag_p99_ms: float | None
    prompts: int
    judgement: Judgement
    reason: str


class Saturation(Finding):
    """From which rate on a server no longer keeps the service level.

    Attributes:
        status: `found`: between two rates; `not reached`: a rate is within and none beyond; `below`: one is beyond and
            none within; `unproven`: neither; `unmeasured`: no rate told anything.
        sustained_rate: Highest rate that is proven within, with none proven beyond below it.
        beyond_rate: Lowest rate that is proven beyond.
        goodput: Requests per second that kept the service level at the sustained rate.
    """

    status: SaturationStatus
    sustained_rate: float | None
    beyond_rate: float | None
    goodput: float | None
    reason: str


class Timing(NamedTuple):
    """When a request was handed on and left, in seconds from the start of its rate.

    Attributes:
        started_s: When it was handed to the client, from which the outcome's own times count.
        departed_s: When it left the process; None where it never did.
    """

    started_s: float
    departed_s: float | None


def request_row(due: Due, outcome: Outcome, timing: Timing) -> dict[str, Any]:
    """Return a row of LOAD_REQUESTS for a request that was sent, its times moved to when it was due."""
    waited_ms = (timing.started_s - due.at_s) * 1e3
    left_s = timing.started_s if timing.departed_s is None else timing.departed_s
    row = {"item_id": due.request.item_id, "due_s": due.at_s, "lag_ms": max(0.0, (left_s - due.at_s) * 1e3)}
    if not isinstance(outcome, Answer):
        return {**row, "status": "failed", "reason": outcome.reason}
    is_empty = not outcome.output and not outcome.tool_calls
    first_ms = outcome.latency_ms if is_empty else outcome.ttft_ms  # who waits for its first token waits for its end
    return {
        **row,
        "status": "answered",
        "ttft_ms": None if first_ms is None else waited_ms + first_ms,
        "latency_ms": waited_ms + outcome.latency_ms,
        "inter_token_ms": outcome.inter_token_ms,
        "longest_gap_ms": outcome.longest_gap_ms,
        "input_tokens": outcome.input_tokens,
        "output_tokens": outcome.output_tokens,
    }


def unsent_row(due: Due, *, cap: int) -> dict[str, Any]:
    """Return a row of LOAD_REQUESTS for a request that the safety cap held back."""
    reason = f"{cap} requests were unanswered, as many as load.max_in_flight allows"
    return {"item_id": due.request.item_id, "due_s": due.at_s, "status": "unsent", "reason": reason}


def judged(rows: pl.DataFrame, slo: ServiceLevel) -> pl.DataFrame:
    """Return LOAD_REQUESTS with `met`: false for whatever was not answered, NULL where a limited time is missing.

    An answer of one token, or of none, has no time between tokens and keeps a limit on it.
    """
    met = pl.col("status") == "answered"
    if slo.ttft_ms is not None:
        met &= pl.col("ttft_ms") <= slo.ttft_ms
    if slo.latency_ms is not None:
        met &= pl.col("latency_ms") <= slo.latency_ms
    if slo.inter_token_ms is not None:
        at_once = (pl.col("output_tokens") <= 1) | (pl.col("ttft_ms") == pl.col("latency_ms"))
        met &= at_once | (pl.col("inter_token_ms") <= slo.inter_token_ms)
    return LOAD_REQUESTS.conform(rows).with_columns(met=met)


def figures_of(rows: pl.DataFrame, slo: ServiceLevel, *, seconds: float) -> RateFigures:
    """Return what the requests of one arm at one rate tell.

    Goodput is that of vLLM's `bench serve` and of DistServe (Zhong et al. 2024, arXiv:2401.09670): requests per second
    that keep every limit; only they are divided by the time in which they were due, not by the time until the last
    answer, so that one straggler does not lower it.

    Args:
        rows: What `judged` returns, of one arm and one rate, at least one.
        slo: The limits.
        seconds: How long the rate was held.
    """
    statuses = dict(rows["status"].value_counts().iter_rows())
    answered, unsent = statuses.get("answered", 0), statuses.get("unsent", 0)
    unknown = int(rows["met"].null_count())
    met = int(rows["met"].sum())
    in_time = rows.filter(pl.col("due_s") + pl.col("latency_ms") / 1e3 <= seconds).height
    lag = rows["lag_ms"].drop_nulls()
    late = int((lag > lag_limit_ms(slo)).sum())
    bounds = wilson_interval(met, rows.height, level=LEVEL)
    within = None if unknown else Share(estimate=bounds.estimate, lower=bounds.lower, upper=bounds.upper)
    judgement, reason = _judge(within, slo, unknown=unknown, requests=rows.height, late=late)
    if unsent:
        reason = f"{reason}; the safety cap kept {unsent} requests from being sent, which count as misses"
    return RateFigures(
        arm=rows["arm"][0],
        rate=rows["rate"][0],
        seconds=seconds,
        requests=rows.height,
        offered_rate=rows.height / seconds,
        answered=answered,
        failed=statuses.get("failed", 0),
        unsent=unsent,
        kept=met,
        error_share=1 - answered / rows.height,
        achieved_rate=in_time / seconds,
        goodput=None if unknown else met / seconds,
        within=within,
        ttft_ms=_percentiles(rows, "ttft_ms"),
        inter_token_ms=_percentiles(rows, "inter_token_ms"),
        latency_ms=_percentiles(rows, "latency_ms"),
        longest_gap_ms=_percentiles(rows, "longest_gap_ms"),
        late=late,
        lag_p99_ms=_percentile(np.sort(lag.to_numpy()), lag.len(), 0.99),
        prompts=rows["item_id"].n_unique(),
        judgement=judgement,
        reason=reason,
    )


def may_go_on(done: Sequence[RateFigures]) -> bool:
    """Tell whether a higher rate can still tell something: not after one that was too much, or told nothing."""
    return not done or done[-1].judgement in ("within", "unproven")


def requests_needed(share: float) -> int:
    """Return how many requests prove a share where every one of them keeps the limits.

    Wilson's lower bound is then n / (n + z²).
    """
    z_squared = normal_quantile((1 + LEVEL) / 2) ** 2
    return math.ceil(share * z_squared / (1 - share) - 1e-9)


def saturation_of(figures: Sequence[RateFigures], slo: ServiceLevel) -> Saturation:
    """Return the saturation point of one arm.

    Requests that wait in one queue miss together, so near saturation the intervals are narrower than they ought to be;
    the next lower rate is then the safer plan.

    Args:
        figures: Of one arm, rates ascending, up to the first one beyond.
        slo: Names the share that is needed.
    """
    beyond = next((each for each in figures if each.judgement == "beyond"), None)
    below = math.inf if beyond is None else beyond.rate
    within = [each for each in figures if each.judgement == "within" and each.rate < below]
    best = within[-1] if within else None
    told = [each for each in figures if each.judgement != "unmeasured"]
    needed = f"{slo.share:.1%} of the requests within the limits"
    if not told:
        reason = f"not measured: {figures[0].reason}" if figures else "not measured: no rate was run"
        return Saturation(status="unmeasured", sustained_rate=None, beyond_rate=None, goodput=None, reason=reason)
    if best is not None and beyond is not None:
        reason = f"{best.rate:g}/s keeps {needed}, {beyond.rate:g}/s does not"
    elif beyond is not None:
        reason = f"no rate is proven to keep {needed}, and {beyond.rate:g}/s does not: {beyond.reason}"
    elif best is not None:
        reason = f"{best.rate:g}/s keeps {needed}, and no rate was proven too much: the saturation point lies higher"
    else:
        reason = f"no rate is proven to keep {needed}, nor not to: {told[-1].reason}"
    if not beyond and not may_go_on(figures):
        reason = f"{reason}; {figures[-1].rate:g}/s was not measured: {figures[-1].reason}"
    return Saturation(
        status=_STATUSES[best is not None, beyond is not None],
        sustained_rate=best.rate if best else None,
        beyond_rate=beyond.rate if beyond else None,
        goodput=best.goodput if best else None,
        reason=reason,
    )


def lag_limit_ms(slo: ServiceLevel) -> float:
    """Return how much later than due a request may leave; later, the driver may be what made it miss."""
    limits = [limit for limit in (slo.ttft_ms, slo.latency_ms) if limit is not None]
    return max(LEAST_LAG_MS, LAG_SHARE * min(limits)) if limits else LAG_WITHOUT_LIMIT_MS


def _judge(within: Share | None, slo: ServiceLevel, *, unknown: int, requests: int, late: int) -> tuple[Judgement, str]:
    if late > max(1.0, LATE_SHARE * (1 - slo.share) * requests):
        return "unmeasured", (
            f"the driver itself could not keep up: {late} of {requests} requests left more than "
            f"{lag_limit_ms(slo):.0f} ms late; run it on a machine that is less busy"
        )
    if within is None:
        return "unmeasured", (
            f"{unknown} of {requests} requests lack a time that is limited: the server does not stream, or counts no "
            "tokens"
        )
    found = f"{within.estimate:.1%} of {requests} requests within the limits, {within.lower:.1%} to {within.upper:.1%}"
    if within.lower >= slo.share:
        return "within", found
    if within.upper < slo.share:
        return "beyond", found
    return "unproven", f"{found}; {slo.share:.1%} needs {requests_needed(slo.share)} requests even without a miss"


def _percentiles(rows: pl.DataFrame, name: str) -> Percentiles:
    """Return percentiles by nearest rank, requests without an answer as the slowest.

    An answered request without the time may have any, so then there is none; but for the times between tokens, of
    which an answer of one token or piece has none.
    """
    answered = rows.filter(pl.col("status") == "answered")[name]
    if name in ("ttft_ms", "latency_ms") and answered.null_count():
        return Percentiles(p50=None, p95=None, p99=None)
    times = np.sort(answered.drop_nulls().to_numpy())
    count = times.size + rows.filter(pl.col("status") != "answered").height
    p50, p95, p99 = (_percentile(times, count, share) for share in (0.5, 0.95, 0.99))
    return Percentiles(p50=p50, p95=p95, p99=p99)


def _percentile(times: np.ndarray[Any, np.dtype[np.float64]], count: int, share: float) -> float | None:
    if count * (1 - share) < MIN_TAIL - 1e-9:  # as in stats/quantiles.py
        return None
    rank = math.ceil(share * count - 1e-9)
    return float(times[rank - 1]) if rank <= times.size else None
