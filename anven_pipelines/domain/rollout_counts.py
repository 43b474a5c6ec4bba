"""Turns the gateway's counters into the evidence that the controller judges: weaker than single units, never bolder.

A counter knows no units, so the gateway counts each unit once a worker (`unit_counts.py`). Within one worker units are
independent draws of an arm, and bounds follow from sums (`stats/from_counts.py`). Across workers they may be the same
units: each worker is bounded by itself, the k-th one at 1 / (k (k + 1)) of the error rate, and the bounds are added up.
One worker costs half of the rate; each restart makes bounds wider and none invalid.

What is compared is what `rollout_measure.py` compares, metric for metric, at the same limits and error rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.domain.rollout_evidence import Assignment, Comparison
from anven_pipelines.domain.rollout_measure import HISTORIC, MEASURED, P95, SMALLEST_RATE, UNEVEN_P
from anven_pipelines.domain.rollout_reading import NEVER_MS
from anven_pipelines.stats.confidence_sequence import difference_of
from anven_pipelines.stats.from_counts import (
    Sums,
    asymptotic_difference,
    asymptotic_mean,
    bounded_mean,
    bucket_quantile,
    pooled,
    randomised_difference,
)
from anven_pipelines.stats.interval import Interval
from anven_pipelines.stats.sample_ratio import SampleRatio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.domain.unit_counts import ArmCounts, WorkerCounts
    from anven_pipelines.spec_rollout import Metric

    ArmName = Literal["target", "legacy"]
    Workers = Sequence["WorkerCounts"]

MOST_WORKERS: Final = 100
"""Workers, restarts included, that one generation may have: the share of the error rate of more would be none."""


class CountWindow(NamedTuple):
    """What each worker counted in one stretch of time, in the order of their starts, and the error rate of harm."""

    workers: Workers
    harm_level: float


class _Measure(NamedTuple):
    """Which counters a metric is read from: how bad, of how many known, of how many that it applies to."""

    unit: str
    bad: str
    known: str
    applies: str


_MEASURES: Final[Mapping[Metric, _Measure]] = {
    "quality": _Measure("points", "score_loss", "scored", "due"),
    "safety": _Measure("points", "unsafe", "judged", "answered"),
    "errors": _Measure("points", "errors", "seen", "seen"),
    "contract": _Measure("points", "contract_failures", "contract_checks", "seen"),
    "ttft": _Measure("ms", "", "ttft_measured", "streamed"),
    "latency": _Measure("ms", "", "latency_measured", "timed"),
    "cost": _Measure("USD", "cost_usd", "priced", "timed"),
}
_LEFT: Final = ("ttft", "latency", "cost")
"""Metrics of which a client that hung up keeps the value from being known."""


def compare_counts(
    plan: RolloutPlan, stage: int, windows: Sequence[CountWindow], *, before: Workers = ()
) -> tuple[Comparison, ...]:
    """Compare both arms in every metric of the plan.

    Args:
        plan: What is judged, and how strictly.
        stage: Place in the plan's stages.
        windows: Where harm is looked for; the first one is the whole stage, and carries the proof.
        before: Counts of the last stage in which legacy had traffic; needed where it has none now.
    """
    share = plan.stages[stage].share
    if share == 1 and not any(worker.legacy.of("seen") for worker in before):
        why = "legacy has no traffic in this stage and had none before that could be compared with"
        return tuple(_unknown(metric, why) for metric in plan.metrics)
    return tuple(
        _compared(plan, metric, windows, share=None if share == 1 else share, before=before) for metric in plan.metrics
    )


def assignment_of_counts(plan: RolloutPlan, stage: int, workers: Workers) -> Assignment:
    """Count how traffic was dealt to the arms.

    Several workers may have seen the same units: those of the worker that saw most are certainly as many.

    Args:
        plan: Has the share that was planned.
        stage: Place in the plan's stages.
        workers: Counts of the stage, in the order of their starts.
    """
    share = plan.stages[stage].share
    target, legacy = (max((int(count) for count in _each(workers, arm, "seen")), default=0) for arm in _ARMS)
    all_target = sum(_each(workers, "target", "seen"))
    fell_back = sum(_each(workers, "target", "fell_back")) / all_target if all_target else 0.0
    p_value = None
    if share < 1:
        found = [
            SampleRatio(shares=(share, 1 - share)).update(
                [int(worker.target.of("seen")), int(worker.legacy.of("seen"))]
            )
            for worker in workers
        ]
        p_value = min((1.0, *(each.p_value * k * (k + 1) for k, each in enumerate(found, 1))))
    return Assignment(
        target=target,
        legacy=legacy,
        p_value=p_value,
        moved=int(sum(sum(_each(workers, arm, "moved")) for arm in _ARMS)),
        fell_back=round(fell_back * target),
    )


_ARMS: Final[tuple[ArmName, ...]] = ("target", "legacy")


def _compared(
    plan: RolloutPlan, metric: Metric, windows: Sequence[CountWindow], *, share: float | None, before: Workers
) -> Comparison:
    sides = [_Side(metric, window.workers, window.workers if share else before, share) for window in windows]
    least = plan.rollout.labelled if metric in ("quality", "safety") else MEASURED
    if unknown := sides[0].unmeasured(least):
        return _unknown(metric, unknown)
    try:
        proof, proof_limit = _worse(plan, sides[0], alpha=plan.rollout.level, end="lower")
    except TooFewPairs as error:
        return _unknown(metric, str(error))
    harms = []
    for side, window in zip(sides, windows, strict=True):
        if side.unmeasured(least):
            continue
        try:
            harms.append(_worse(plan, side, alpha=window.harm_level, end="upper"))
        except TooFewPairs:  # a window that has just begun
            continue
    harm, harm_limit = max(harms, key=lambda found: found[0].lower - found[1], default=(proof, float("inf")))
    return Comparison(
        metric=metric,
        unit=_MEASURES[metric].unit,
        harm=harm,
        harm_limit=harm_limit,
        proof=proof,
        proof_limit=proof_limit,
        doubt=sides[0].uneven(),
    )


class _Side(NamedTuple):
    """What two arms are compared on in one metric; `share` is None where legacy's counts are of before."""

    metric: Metric
    target: Workers
    legacy: Workers
    share: float | None

    def arm(self, name: ArmName) -> list[ArmCounts]:
        return [getattr(worker, name) for worker in (self.target if name == "target" else self.legacy)]

    def unmeasured(self, least: float) -> str | None:
        """Say which arm lacks too many values; None where none does."""
        measure = _MEASURES[self.metric]
        for name in _ARMS:
            known, applies = (sum(each.of(column) for each in self.arm(name)) for column in measure[2:])
            if known < least * applies:
                return f"{known:,.0f} of {applies:,.0f} units of {name} were measured, {least:.0%} are needed"
        return None

    def uneven(self) -> str | None:
        """Say that one arm lacks more values than the other; None where that is not proven, or they run apart."""
        if self.share is None or self.metric == "errors":
            return None
        measure = _MEASURES[self.metric]
        concerned = "seen" if self.metric in _LEFT else measure.applies
        lacks = {
            name: [
                each.of(measure.applies) - each.of(measure.known) + (each.of("left") if self.metric in _LEFT else 0)
                for each in self.arm(name)
            ]
            for name in _ARMS
        }
        parts = []
        for k, (target, legacy) in enumerate(zip(self.arm("target"), self.arm("legacy"), strict=True)):
            sums = [
                Sums(each.of(concerned), lack, lack)
                for each, lack in ((target, lacks["target"][k]), (legacy, lacks["legacy"][k]))
            ]
            if n := sums[0].n + sums[1].n:
                bounds = randomised_difference(*sums, share=self.share, level=1 - _part(UNEVEN_P, k))
                parts.append((bounds, n))
        if not parts or (bounds := pooled(parts)).lower <= 0 <= bounds.upper:
            return None
        what = "clients hung up, or nothing was measured" if self.metric in _LEFT else "nothing was measured"
        told = f"{sum(lacks['target']):,.0f} units of target and {sum(lacks['legacy']):,.0f} of legacy"
        return f"{what}, on {told}, which is no chance"


def _worse(plan: RolloutPlan, side: _Side, *, alpha: float, end: str) -> tuple[Interval, float]:
    """Return how much worse the target is, and its limit, which together err at a rate of alpha on either side."""
    wider, limits = HISTORIC if side.share is None else 1.0, plan.rollout.limits
    fixed = {
        "errors": limits.errors,
        "safety": limits.safety,
        "contract": limits.contract,
        "ttft": limits.ttft_ms,
        "latency": limits.latency_ms,
    }
    if side.metric in fixed:
        return _difference(side, alpha=alpha), fixed[side.metric] * wider
    # A share of the legacy mean: half of the error rate is for not knowing that mean.
    base = _mean(side, "legacy", alpha=alpha)
    if side.metric == "cost":
        bound, share = getattr(base, end), limits.cost
    else:
        bound, share = 1 - getattr(base, "upper" if end == "lower" else "lower"), limits.quality
    return _difference(side, alpha=alpha / 2), share * bound * wider


def _difference(side: _Side, *, alpha: float) -> Interval:
    """Two-sided interval of target less legacy that errs at a rate of alpha on either side."""
    if side.metric in ("ttft", "latency"):
        return difference_of(*(_p95(side, name, alpha=alpha) for name in _ARMS))
    # A weighed difference would take uneven gaps for an effect, so where gaps are allowed each arm is bounded apart.
    if side.share is None or side.metric in ("quality", "safety"):
        return difference_of(*(_mean(side, name, alpha=alpha) for name in _ARMS))
    method = asymptotic_difference if side.metric == "cost" else randomised_difference
    parts = []
    for k, arms in enumerate(zip(side.arm("target"), side.arm("legacy"), strict=True)):
        target, legacy = (_sums(each, side.metric) for each in arms)

        def bounded(level: float, target: Sums = target, legacy: Sums = legacy) -> Interval:
            return method(target, legacy, share=side.share or 0.5, level=level)

        parts.append((bounded, target.n + legacy.n, 2 * _part(alpha, k)))
    return _pooled(parts)


def _mean(side: _Side, name: ArmName, *, alpha: float) -> Interval:
    """Interval of an arm's mean that errs at a rate of alpha, both sides together."""
    method = asymptotic_mean if side.metric == "cost" else bounded_mean
    parts = []
    for k, each in enumerate(side.arm(name)):
        sums = _sums(each, side.metric)

        def bounded(level: float, sums: Sums = sums) -> Interval:
            return method(sums, level=level)

        parts.append((bounded, sums.n, _part(alpha, k)))
    return _pooled(parts)


def _pooled(parts: Sequence[tuple[Callable[[float], Interval], float, float]]) -> Interval:
    """Add up what each worker's units prove; a worker that met too few for a bound of its own says nothing.

    Raises:
        TooFewPairs: no worker met enough.
    """
    found, few = [], TooFewPairs("no unit was counted; some of each arm are needed: wait for traffic")
    for bounded, n, rate in parts:
        if not n:
            continue
        try:
            found.append((bounded(1 - rate), n))
        except TooFewPairs as error:
            few = error
    if not found:
        raise few
    return pooled(found)


def _p95(side: _Side, name: ArmName, *, alpha: float) -> Interval:
    """Interval of an arm's p95 in milliseconds that errs at a rate of alpha, both sides together."""
    found = bucket_quantile(
        [
            ({edges: count for edges, count in each.buckets[side.metric].items() if count}, _part(alpha, k))
            for k, each in enumerate(side.arm(name))
            if each.of(f"{side.metric}_measured")
        ],
        quantile=P95,
    )
    estimate, lower, upper = (1e3 * value for value in (found.estimate, found.lower, found.upper))
    return Interval(min(estimate, NEVER_MS), lower, upper, found.level, found.method)


def _sums(arm: ArmCounts, metric: Metric) -> Sums:
    """Return a metric's sums; of values in [0, 1] the sum is a bound on the squares."""
    measure = _MEASURES[metric]
    total = arm.of(measure.bad)
    return Sums(arm.of(measure.known), total, arm.of("cost_usd_squares") if metric == "cost" else total)


def _part(alpha: float, k: int) -> float:
    """Share of an error rate that the worker at place k, from 0 on, has; all of them together have it all."""
    return max(alpha / ((k + 1) * (k + 2)), SMALLEST_RATE)


def _each(workers: Workers, arm: ArmName, column: str) -> list[float]:
    return [getattr(worker, arm).of(column) for worker in workers]


def _unknown(metric: Metric, why: str) -> Comparison:
    return Comparison(metric=metric, unit=_MEASURES[metric].unit, unknown=why)
