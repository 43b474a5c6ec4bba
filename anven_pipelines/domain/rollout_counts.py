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
from anven_pipelines.domain.rollout_evidence import Assignment
from anven_pipelines.domain.rollout_gaps import LEFT, STRAY, UNEVEN_P, gone_words, uneven_words
from anven_pipelines.domain.rollout_judgement import judged, unknown_of
from anven_pipelines.domain.rollout_measure import P95, SMALLEST_RATE
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

    from anven_pipelines.domain.rollout_evidence import Comparison
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

    bad: str
    known: str
    applies: str


_MEASURES: Final[Mapping[Metric, _Measure]] = {
    "quality": _Measure("score_loss", "scored", "due"),
    "safety": _Measure("unsafe", "judged", "answered"),
    "errors": _Measure("errors", "seen", "seen"),
    "contract": _Measure("contract_failures", "contract_checks", "seen"),
    "ttft": _Measure("", "ttft_measured", "streamed"),
    "latency": _Measure("", "latency_measured", "timed"),
    "cost": _Measure("cost_usd", "priced", "timed"),
}


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
        return tuple(unknown_of(metric, why) for metric in plan.metrics)
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
    sides = [
        (_Side(metric, window.workers, window.workers if share else before, share), window.harm_level)
        for window in windows
    ]
    return judged(plan, sides, doubt=sides[0][0].uneven(), lacks_more=sides[0][0].legacy_lacked_more())


class _Side(NamedTuple):
    """What two arms are compared on in one metric; `share` is None where legacy's counts are of before."""

    metric: Metric
    target: Workers
    legacy: Workers
    share: float | None
    is_spared: bool = False

    def arm(self, name: ArmName) -> list[ArmCounts]:
        return [getattr(worker, name) for worker in (self.target if name == "target" else self.legacy)]

    def unmeasured(self, least: float) -> str | None:
        """Say which arm lacks too many values; None where none does."""
        if self.is_spared:
            return None
        measure = _MEASURES[self.metric]
        for name in _ARMS:
            known = sum(each.of(measure.known) for each in self.arm(name))
            applies = sum(self._applies(each) for each in self.arm(name))
            if known < least * applies:
                return f"{known:,.0f} of {applies:,.0f} units of {name} were measured, {least:.0%} are needed"
        return None

    def difference(self, *, alpha: float) -> Interval:
        return _difference(self, alpha=alpha)

    def legacy_mean(self, *, alpha: float) -> Interval:
        return _mean(self, "legacy", alpha=alpha)

    def spared(self) -> _Side:
        """Take what the target lacks for as good as can be, and what legacy lacks for as bad."""
        return self._replace(is_spared=True)

    def sums(self, arm: ArmCounts, name: ArmName) -> Sums:
        """Return the metric's sums; of values in [0, 1] the sum is a bound on the squares."""
        measure = _MEASURES[self.metric]
        lacks = self._lacking(arm).total if self.is_spared else 0.0
        total = arm.of(measure.bad) + (lacks if name == "legacy" else 0.0)
        return Sums(
            arm.of(measure.known) + lacks, total, arm.of("cost_usd_squares") if self.metric == "cost" else total
        )

    def uneven(self) -> str | None:
        """Say that one arm lacks more values than the other, as `rollout_gaps.uneven` does; None where none does."""
        if self.metric == "errors":
            return None
        if self.share is None:
            arms = self._gone()
            if arms is None or difference_of(*arms).lower <= STRAY:
                return None
            return gone_words(self.metric, target=arms[0].estimate, legacy=arms[1].estimate)
        target, legacy = ([self._lacking(each) for each in self.arm(name)] for name in _ARMS)
        parts = []
        for k, sums in enumerate(zip(target, legacy, strict=True)):
            if n := sums[0].n + sums[1].n:
                bounds = randomised_difference(*sums, share=self.share, level=1 - _part(UNEVEN_P, k))
                parts.append((bounds, n))
        if not parts or (bounds := pooled(parts)).lower <= 0 <= bounds.upper:
            return None
        lacks = (sum(each.total for each in arm) for arm in (target, legacy))
        return uneven_words(self.metric, **dict(zip(_ARMS, lacks, strict=True)))

    def legacy_lacked_more(self) -> bool:
        """Say whether legacy's clients hung up more often before than the target's do now."""
        arms = self._gone() if self.share is None else None
        return arms is not None and difference_of(*arms).upper < -STRAY

    def _lacking(self, arm: ArmCounts) -> Sums:
        """Return of how many units that it concerns the value is missing."""
        measure = _MEASURES[self.metric]
        lack = self._applies(arm) - arm.of(measure.known) + (arm.of("left") if self.metric in LEFT else 0)
        return Sums(arm.of("seen" if self.metric in LEFT else measure.applies), lack, lack)

    def _applies(self, arm: ArmCounts) -> float:
        """Return of how many units a value was to be had; whoever hung up had no answer whose form could be told."""
        return arm.of(_MEASURES[self.metric].applies) - (arm.of("left") if self.metric == "contract" else 0)

    def _gone(self) -> tuple[Interval, Interval] | None:
        """Bound the shares of the target's units, and of legacy's before, whose clients hung up; None without any."""
        found = []
        for name in _ARMS if self.metric in LEFT else ():
            lacks = [self._lacking(each) for each in self.arm(name)]
            parts = [
                (bounded_mean(each, level=1 - _part(UNEVEN_P / 2, k)), each.n) for k, each in enumerate(lacks) if each.n
            ]
            found += [pooled(parts)] if parts else []
        return (found[0], found[1]) if len(found) == len(_ARMS) else None


def _difference(side: _Side, *, alpha: float) -> Interval:
    """Two-sided interval of target less legacy that errs at a rate of alpha on either side."""
    if side.metric in ("ttft", "latency"):
        return difference_of(*(_p95(side, name, alpha=alpha) for name in _ARMS))
    # A weighed difference would take uneven gaps for an effect, so where gaps are allowed each arm is bounded apart.
    if side.share is None or side.metric in ("quality", "safety", "contract"):
        return difference_of(*(_mean(side, name, alpha=alpha) for name in _ARMS))
    method = asymptotic_difference if side.metric == "cost" else randomised_difference
    parts = []
    for k, arms in enumerate(zip(side.arm("target"), side.arm("legacy"), strict=True)):
        target, legacy = (side.sums(each, name) for each, name in zip(arms, _ARMS, strict=True))

        def bounded(level: float, target: Sums = target, legacy: Sums = legacy) -> Interval:
            return method(target, legacy, share=side.share or 0.5, level=level)

        parts.append((bounded, target.n + legacy.n, 2 * _part(alpha, k)))
    return _pooled(parts)


def _mean(side: _Side, name: ArmName, *, alpha: float) -> Interval:
    """Interval of an arm's mean that errs at a rate of alpha, both sides together."""
    method = asymptotic_mean if side.metric == "cost" else bounded_mean
    parts = []
    for k, each in enumerate(side.arm(name)):
        sums = side.sums(each, name)

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


def _part(alpha: float, k: int) -> float:
    """Share of an error rate that the worker at place k, from 0 on, has; all of them together have it all."""
    return max(alpha / ((k + 1) * (k + 2)), SMALLEST_RATE)


def _each(workers: Workers, arm: ArmName, column: str) -> list[float]:
    return [getattr(worker, arm).of(column) for worker in workers]
