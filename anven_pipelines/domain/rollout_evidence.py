"""What production showed of both arms, in the form in which the controller judges it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from anven_pipelines.spec_rollout import Metric
    from anven_pipelines.stats.interval import Interval

POINTS: Final = "points"
"""Hundredths of a score, or of a share of requests."""

_ENDLESS: Final = 1e11  # a request that failed is endlessly late (`rollout_reading.NEVER_MS`), and so is its bound
_WHOLE: Final = 1000.0


@dataclass(frozen=True, kw_only=True)
class Mirrored:
    """How much worse the target is at requests that legacy answered and that were asked of the target, too.

    It proves that a metric is no worse, and never that it is.

    Attributes:
        requests: Of how many, each of another unit of legacy's, both outcomes are known.
        proof: Bounds at half of the error rate of an advance; None where there are none.
        limit: What the upper bound has to stay below.
        unknown: Why there are no bounds; None where there are.
    """

    requests: int
    proof: Interval | None = None
    limit: float = 0.0
    unknown: str | None = None

    def __post_init__(self) -> None:
        """Refuse NaN, which no limit would stop, and a finding that says nothing."""
        if math.isnan(self.limit) or (self.proof is None) == (self.unknown is None):
            message = f"limit {self.limit}, {self.proof}, {self.unknown}; a limit, and bounds or a reason are needed"
            raise ValueError(message)

    def is_proven(self, *, widened: float) -> bool:
        """Tell whether it is proven that the target is worse by less than so many times the limit."""
        return self.proof is not None and self.proof.upper < self.limit * widened

    def words(self, unit: str) -> str:
        """Write the finding in words."""
        if self.proof is None:
            return f"mirrored requests show nothing of it: {self.unknown}"
        found = f"over {self.requests:,} mirrored requests {_worse(self.proof.estimate, unit, named=True)}"
        return f"{found} ({_between(self.proof, unit)}), {_size(self.limit, unit)} worse allowed"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How much worse the target is than legacy, in one metric; above 0 is worse.

    Bounds hold at all looks together. What was not measured has a reason in place of bounds: it is neither harm nor
    proof.

    Attributes:
        metric: Its name.
        unit: Of the numbers, such as `ms`; with POINTS they are shares, of which words tell hundredths.
        harm: Bounds at the error rate of a roll back; the lower one decides. The widest proof of several windows.
        harm_limit: What the lower bound of `harm` has to exceed.
        proof: Bounds at the error rate of an advance; the upper one decides.
        proof_limit: What the upper bound of `proof` has to stay below.
        unknown: Why there are no bounds; None where there are.
        doubt: Why the bounds prove no advance all the same; None where nothing is against it.
        mirrored: What mirrored requests show, which may prove an advance, too; None where none count.
    """

    metric: Metric
    unit: str
    harm: Interval | None = None
    harm_limit: float = 0.0
    proof: Interval | None = None
    proof_limit: float = 0.0
    unknown: str | None = None
    doubt: str | None = None
    mirrored: Mirrored | None = None

    def __post_init__(self) -> None:
        """Refuse NaN, which no limit would stop, and a comparison that says nothing."""
        if math.isnan(self.harm_limit) or math.isnan(self.proof_limit):
            message = f"limits of {self.metric} are {self.harm_limit} and {self.proof_limit}; numbers are needed"
            raise ValueError(message)
        if self.unknown is None and (self.harm is None or self.proof is None):
            message = f"{self.metric} has no bounds and no reason; one of both is needed"
            raise ValueError(message)

    @property
    def is_harm(self) -> bool:
        """Whether it is proven that the target is worse by more than its limit."""
        return self.unknown is None and self.harm is not None and self.harm.lower > self.harm_limit

    def is_proven(self, *, widened: float) -> bool:
        """Tell whether it is proven that the target is worse by less than so many times its limit.

        A limit of 0 cannot be widened: what may not be worse at all has to be better. What users' own requests leave
        unknown or in doubt, mirrored ones do not prove.
        """
        if self.unknown is not None or self.doubt is not None:
            return False
        return self._is_proven_by_users(widened) or (
            self.mirrored is not None and self.mirrored.is_proven(widened=widened)
        )

    def proven_by(self, *, widened: float) -> str:
        """Say that mirrored requests were needed for the proof; nothing where users' own proved it."""
        if self._is_proven_by_users(widened) or not self.is_proven(widened=widened):
            return ""
        return " (proven by the mirrored requests)"

    def _is_proven_by_users(self, widened: float) -> bool:
        return self.proof is not None and self.proof.upper < self.proof_limit * widened

    @property
    def numbers(self) -> dict[str, float]:
        """What was found, in `unit`: none where it is unknown, and no bound that is infinite.

        `difference` is how much worse the target is; it is at least `lower`, at the error rate of a roll back, and at
        most `upper`, at that of an advance.
        """
        if self.unknown is not None or self.harm is None or self.proof is None:
            return {}
        found = {"difference": self.proof.estimate, "lower": self.harm.lower, "upper": self.proof.upper}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    @property
    def words(self) -> str:
        """The finding in words."""
        if self.unknown is not None or self.proof is None:
            return f"{self.metric} unknown: {self.unknown}"
        bounds, doubt = _between(self.proof, self.unit), f"; {self.doubt}" if self.doubt else ""
        allowed = f"{_size(self.proof_limit, self.unit)} worse allowed"
        mirrored = "" if self.mirrored is None else f"; {self.mirrored.words(self.unit)}"
        found = f"{self.metric} {_worse(self.proof.estimate, self.unit, named=True)} ({bounds})"
        return f"{found}, {allowed}{mirrored}{doubt}"

    @property
    def harm_words(self) -> str:
        """What is proven to be wrong, in words; only where `is_harm`."""
        least = self.harm.lower if self.harm else math.nan
        told = (
            "endlessly, as requests that failed count" if least >= _ENDLESS else f"at least {_size(least, self.unit)}"
        )
        return f"{self.metric} is proven to be more than {_size(self.harm_limit, self.unit)} {self.unit} worse: {told}"


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Whether traffic was dealt to the arms as planned, counted in units.

    Attributes:
        target: Units that were assigned to the target.
        legacy: Units that were assigned to legacy.
        p_value: Of the planned share, all looks together; None where one arm has all of it.
        moved: Units that were asked of both arms while the share did not change.
        fell_back: Units of the target of which legacy answered a request.
        mirrored: Units of legacy of which the target was asked the first request, too; 0 where they do not count.
    """

    target: int
    legacy: int
    p_value: float | None = None
    moved: int = 0
    fell_back: int = 0
    mirrored: int = 0


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a workload's production at one moment.

    Attributes:
        generation: Of the traffic that it was measured under; another one says nothing of the present stage.
        as_of: When the newest event happened, or the source last said that there was none.
        comparisons: One for each metric that was looked at.
        assignment: Whether traffic was dealt as planned; None where that is unknown.
        problem: Why all of it is unknown: a source that does not answer, or answers stale or in part.
        lost: What is missing of it, or keeps it from being kept: it proves no advance, and harm all the same, in the
            windows of which little is missing.
        breaker: What made the gateway send the workload back to legacy; None where it did not.
        peak_rate: Requests per second of both arms in the busiest minute of this generation; None where unknown.
        killed: Why the gateway gives legacy all traffic, or may, whatever the log says; None where it follows the log.
        refuted: Why a newer verdict speaks against what the rollout began with; None where none does.
        capacity: Why the next stage's load cannot be served; None where it can, or nothing is planned.
        prompt: Version of the prompt of the target's newest answer; None where the source does not know it.
        prompts: Of each version, how many answers the target gave to it in this generation.
    """

    generation: int
    as_of: datetime | None
    comparisons: tuple[Comparison, ...] = field(default=())
    assignment: Assignment | None = None
    problem: str | None = None
    lost: str | None = None
    breaker: str | None = None
    peak_rate: float | None = None
    killed: str | None = None
    refuted: str | None = None
    capacity: str | None = None
    prompt: str | None = None
    prompts: Mapping[str, int] = field(default_factory=dict)

    def of(self, metric: Metric) -> Comparison:
        """Return what was found of a metric; unknown where nothing was."""
        for comparison in self.comparisons:
            if comparison.metric == metric:
                return comparison
        return Comparison(metric=metric, unit="", unknown="it was not measured")


def _worse(value: float, unit: str, *, named: bool = False) -> str:
    """Write how much worse something is, or better where it is below 0."""
    size = f"{_size(abs(value), unit)}{f' {unit}' if named else ''}" if abs(value) < _ENDLESS else "endlessly"
    return f"{size} {'better' if value < 0 else 'worse'}"


def _between(bounds: Interval, unit: str) -> str:
    """Write the bounds; one that is infinite is none yet, as too little was seen."""
    if max(bounds.lower, -bounds.upper) >= _ENDLESS:
        return f"at least {_worse(bounds.lower, unit)}, as requests that failed count"
    is_low, is_high = (abs(value) < _ENDLESS for value in (bounds.lower, bounds.upper))
    if is_low and is_high:
        return f"between {_worse(bounds.lower, unit)} and {_worse(bounds.upper, unit)}"
    if is_low:
        end = "at most" if bounds.lower < 0 else "at least"
        return f"{end} {_worse(bounds.lower, unit)}, how much worse is not bounded yet"
    if is_high:
        return f"{'at least' if bounds.upper < 0 else 'at most'} {_worse(bounds.upper, unit)}"
    return "nothing bounds it yet"


def _size(value: float, unit: str) -> str:
    """Write a number to three digits and never with an exponent; points are hundredths, as of a share."""
    shown = value * 100 if unit == POINTS else value
    rounded = Decimal(f"{shown:.3g}") if abs(shown) < _WHOLE else Decimal(f"{shown:.0f}")
    return f"{rounded + 0:,f}"
