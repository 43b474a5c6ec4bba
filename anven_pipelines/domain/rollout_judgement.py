"""How a metric of both arms is judged, whatever it was measured from: single units, or the gateway's counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol, Self

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.domain.rollout_evidence import Comparison
from anven_pipelines.domain.rollout_reading import READINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.spec_rollout import Metric
    from anven_pipelines.stats.interval import Interval

    End = Literal["lower", "upper"]

HISTORIC: Final = 2.0
"""Every limit is so many times as wide where legacy has no traffic any more and was measured in another stage."""
SPARED: Final[tuple[Metric, ...]] = ("quality", "contract")
"""Metrics in [0, 1] of which one arm may lack values more often; what is left may be the worse part of its answers."""
MEASURED: Final = 0.99  # of the units that a value was to be had of, in each arm: more missing ones could hide anything


class Side(Protocol):
    """What two arms are compared on in one metric."""

    @property
    def metric(self) -> Metric:
        """Which one."""

    @property
    def share(self) -> float | None:
        """The target's; None where legacy's part is of an earlier stage."""

    def unmeasured(self, least: float) -> str | None:
        """Say which arm lacks too many values; None where none does."""

    def difference(self, *, alpha: float) -> Interval:
        """Two-sided interval of target less legacy that errs at alpha on either side; may raise TooFewPairs."""

    def legacy_mean(self, *, alpha: float) -> Interval:
        """Interval of legacy's mean that errs at a rate of alpha, both sides together; may raise TooFewPairs."""


class GappedSide(Side, Protocol):
    """One whose arms may lack values."""

    def spared(self) -> Self:
        """Take what the target lacks for as good as can be, and what legacy lacks for as bad; of SPARED metrics."""


def judged(
    plan: RolloutPlan, sides: Sequence[tuple[GappedSide, float | None]], *, doubt: str | None, lacks_more: bool = False
) -> Comparison:
    """Judge one metric.

    Args:
        plan: Has the limits and error rates.
        sides: Of each window, with the one-sided error rate of a claim of harm in it, None where it can claim none; the
            first one is the whole stage, and carries the proof.
        doubt: Why the bounds prove no advance all the same; None where nothing is against it.
        lacks_more: Whether legacy lacks more values, where that is no doubt. With either, harm of a SPARED metric is
            what the missing values could not undo.
    """
    whole = sides[0][0]
    least = plan.rollout.labelled if whole.metric in {"quality", "safety"} else MEASURED
    if unknown := whole.unmeasured(least):
        return unknown_of(whole.metric, unknown)
    try:
        proof, proof_limit = worse(plan, whole, alpha=plan.proof_level(whole.metric, share=whole.share), end="lower")
    except TooFewPairs as error:
        return unknown_of(whole.metric, str(error))
    harms = []
    spares = whole.metric in SPARED and (doubt is not None or lacks_more)
    for seen, harm_level in sides:
        side = seen.spared() if spares else seen
        if harm_level is None or side.unmeasured(least):
            continue
        try:
            harms.append(worse(plan, side, alpha=harm_level, end="upper"))
        except TooFewPairs:  # a window that has just begun
            continue
    # The proof's own bounds are the narrower ones: where no window has any, they are no harm either.
    harm, harm_limit = max(harms, key=lambda found: found[0].lower - found[1], default=(proof, float("inf")))
    return Comparison(
        metric=whole.metric,
        unit=READINGS[whole.metric].unit,
        harm=harm,
        harm_limit=harm_limit,
        proof=proof,
        proof_limit=proof_limit,
        doubt=doubt,
    )


def unknown_of(metric: Metric, why: str) -> Comparison:
    """Return a comparison that says only why there is none."""
    return Comparison(metric=metric, unit=READINGS[metric].unit, unknown=why)


def worse(plan: RolloutPlan, side: Side, *, alpha: float, end: End) -> tuple[Interval, float]:
    """Return how much worse the target is, and its limit, which together err at a rate of alpha on either side.

    Args:
        plan: Has the limits.
        side: What the arms are compared on.
        alpha: Of both numbers together, on either side.
        end: Of legacy's mean, where the limit is a share of that: the one that makes the claim the harder.

    Raises:
        TooFewPairs: there are no bounds yet.
    """
    wider, limits = HISTORIC if side.share is None else 1.0, plan.rollout.limits
    fixed = {
        "errors": limits.errors,
        "safety": limits.safety,
        "contract": limits.contract,
        "ttft": limits.ttft_ms,
        "latency": limits.latency_ms,
    }
    if side.metric in fixed:
        return side.difference(alpha=alpha), fixed[side.metric] * wider
    # A share of the legacy mean: half of the error rate is for not knowing that mean.
    base = side.legacy_mean(alpha=alpha)
    if side.metric == "cost":
        bound, share = getattr(base, end), limits.cost
    else:
        bound, share = 1 - getattr(base, "upper" if end == "lower" else "lower"), limits.quality
    return side.difference(alpha=alpha / 2), share * bound * wider
