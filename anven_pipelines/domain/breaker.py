"""The breaker of a workload: a burst of bad answers of the target sends everything back to legacy.

It watches two things, failures and slow answers, each by a cumulative sum of log-likelihood ratios (CUSUM): what the
target does now, against what the legacy arm does at the same time. It acts on bursts only; a small and lasting harm is
for the controller, which has the statistics to prove it. Once tripped it stays so until a new generation of the
route arrives: whoever sets one has looked.

With the defaults six failures in a row trip it, and twelve requests of which half fail do on average. A target that
fails as rarely as legacy trips it at most once in a million requests on average.

Source:
    Page (1954), "Continuous inspection schemes", Biometrika 41; the bound on false trips, exp(threshold), is that of
    Lorden (1971), "Procedures for reacting to a change in distribution", Ann. Math. Stat. 42, for independent failures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from anven_pipelines.domain.traffic import Arm

REFERENCE: Final = 100
"""Legacy answers of one kind whose times are kept."""

LEAST_REFERENCE: Final = 20
"""Fewest of them that say what is slow; with fewer the limits' `slow_at_ms` does."""

_MEMORY: Final = 200.0  # legacy requests after which an older one counts a third
_PRIOR: Final = 50.0  # requests that the usual error rate counts for


@dataclass(frozen=True)
class BreakerLimits:
    """What a burst is.

    Attributes:
        usual_errors: Share of failures that is borne even where legacy has none.
        error_burst: Share of the requests that legacy would have answered, of which a burst fails.
        usual_slow: Share of slow answers that is borne.
        slow_burst: Share of slow answers in a burst.
        slow_factor: An answer is slow above this multiple of legacy's 95th percentile ...
        slow_margin_ms: ... if it is also above it by this many milliseconds.
        slow_at_ms: Where too little is known of legacy an answer is slow above this; None: none is.
        false_trip: Requests to a target as good as legacy between two false trips, on average and at least.

    Raises:
        InvalidInput: a limit is out of its range.
    """

    usual_errors: float = 0.02
    error_burst: float = 0.3
    usual_slow: float = 0.05
    slow_burst: float = 0.5
    slow_factor: float = 3.0
    slow_margin_ms: float = 1000.0
    slow_at_ms: float | None = 30_000.0
    false_trip: float = 1e6

    def __post_init__(self) -> None:
        if not (0 < self.usual_errors < 1 and 0 < self.error_burst < 1 and 0 < self.usual_slow < self.slow_burst < 1):
            message = f"{self} has a share out of range; shares above 0 and below 1 are needed, a burst above the usual"
            raise InvalidInput(message)
        if not (self.slow_factor >= 1 and self.slow_margin_ms >= 0 and self.false_trip > 1):
            message = (
                f"{self} has a limit out of range; slow_factor >= 1, slow_margin_ms >= 0, false_trip > 1 are needed"
            )
            raise InvalidInput(message)
        if self.slow_at_ms is not None and not 0 < self.slow_at_ms < math.inf:
            message = f"slow_at_ms is {self.slow_at_ms}, out of range; milliseconds above 0 are needed, or none"
            raise InvalidInput(message)

    @property
    def threshold(self) -> float:
        """Sum at which the breaker trips."""
        return math.log(self.false_trip)


class Observation(NamedTuple):
    """One request that ended, or that has waited longer than a slow one.

    Attributes:
        arm: Arm that was asked first.
        failed: Whether that arm failed, also where the other one then answered; None where that is not known yet.
        waited_ms: Milliseconds to the first token of a stream, else to the answer; None where nothing was measured.
        stream: Whether the answer was streamed; the two kinds are compared apart.
    """

    arm: Arm
    failed: bool | None
    waited_ms: float | None
    stream: bool


@dataclass(frozen=True)
class BreakerState:
    """What the breaker of one workload knows.

    Attributes:
        generation: Generation of the route that it watches.
        tripped: Why it tripped; None while it has not.
        errors: Cumulative sum of the failures.
        slow: Cumulative sum of the slow answers.
        legacy_requests: Legacy requests, older ones counting less.
        legacy_failures: Failures among them.
        legacy_ms: The last times of legacy answers: plain, streamed.
    """

    generation: int
    tripped: str | None = None
    errors: float = 0.0
    slow: float = 0.0
    legacy_requests: float = 0.0
    legacy_failures: float = 0.0
    legacy_ms: tuple[tuple[float, ...], tuple[float, ...]] = field(default=((), ()))


def renewed(state: BreakerState, *, generation: int) -> BreakerState:
    """Return the state for a route: a newer generation closes the breaker, what is known of legacy stays."""
    if generation <= state.generation:
        return state
    return replace(state, generation=generation, tripped=None, errors=0.0, slow=0.0)


def observe(state: BreakerState, seen: Observation, limits: BreakerLimits) -> BreakerState:
    """Take one request into account; the state says whether the breaker tripped."""
    if seen.arm == "legacy":
        return _legacy(state, seen)
    if state.tripped:
        return state
    return _tripped(_slow(_failed(state, seen, limits), seen, limits), limits)


def slow_above_ms(state: BreakerState, limits: BreakerLimits, *, stream: bool) -> float | None:
    """Return what the target may take before it is slow; None where nothing says it."""
    known = state.legacy_ms[stream]
    if len(known) < LEAST_REFERENCE:
        return limits.slow_at_ms
    reference = sorted(known)[math.ceil(0.95 * len(known)) - 1]
    return max(limits.slow_factor * reference, reference + limits.slow_margin_ms)


def _legacy(state: BreakerState, seen: Observation) -> BreakerState:
    if seen.failed is not None:
        keep = math.exp(-1 / _MEMORY)
        state = replace(
            state,
            legacy_requests=keep * state.legacy_requests + 1,
            legacy_failures=keep * state.legacy_failures + seen.failed,
        )
    if seen.waited_ms is None or seen.failed:
        return state
    plain, streamed = state.legacy_ms
    if seen.stream:
        return replace(state, legacy_ms=(plain, (*streamed, seen.waited_ms)[-REFERENCE:]))
    return replace(state, legacy_ms=((*plain, seen.waited_ms)[-REFERENCE:], streamed))


def _failed(state: BreakerState, seen: Observation, limits: BreakerLimits) -> BreakerState:
    if seen.failed is None:
        return state
    rate = (state.legacy_failures + _PRIOR * limits.usual_errors) / (state.legacy_requests + _PRIOR)
    usual = min(max(rate, limits.usual_errors), 0.99)
    burst = usual + limits.error_burst * (1 - usual)
    return replace(state, errors=_summed(state.errors, seen.failed, usual=usual, burst=burst))


def _slow(state: BreakerState, seen: Observation, limits: BreakerLimits) -> BreakerState:
    limit = slow_above_ms(state, limits, stream=seen.stream)
    if limit is None or seen.waited_ms is None:
        return state
    return replace(
        state, slow=_summed(state.slow, seen.waited_ms > limit, usual=limits.usual_slow, burst=limits.slow_burst)
    )


def _summed(before: float, happened: bool, *, usual: float, burst: float) -> float:  # noqa: FBT001 - an indicator
    ratio = burst / usual if happened else (1 - burst) / (1 - usual)
    return max(0.0, before + math.log(ratio))


def _tripped(state: BreakerState, limits: BreakerLimits) -> BreakerState:
    if state.errors >= limits.threshold:
        return replace(state, tripped="errors")
    if state.slow >= limits.threshold:
        return replace(state, tripped="latency")
    return state
