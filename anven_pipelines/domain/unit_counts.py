"""The counters by which a rollout is judged where no single event is to be had: what a worker counts of each unit.

A unit (user or conversation) counts with the first request of a generation that a worker saw of it end. So one worker
counts it once; several workers may each count it, and a worker that was restarted is another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

Bucket = tuple[float, float]
"""Edges in seconds: its units took longer than the first and at most the second; the last is infinite."""

PREFIX: Final = "anven_unit_"
KEPT_S: Final = 24 * 3600.0
"""How long the samples of a worker that has ended are still told."""

COUNTERS: Final[Mapping[str, str]] = {
    "seen_total": "Units that were seen, by the arm that they were assigned to.",
    "moved_total": "Units that were asked of the other arm, too.",
    "fell_back_total": "Units of the target that legacy answered.",
    "left_total": "Units whose client hung up.",
    "errors_total": "Units whose request failed, those that legacy rescued included.",
    "contract_checks_total": "Units whose whole answer's form was checked, or that have no answer.",
    "contract_failures_total": "Of these, those without the declared form.",
    "streamed_total": "Units of which a time to first token was to be had.",
    "ttft_measured_total": "Of these, those in the buckets; one that failed without is in the last.",
    "timed_total": "Units of which a latency and a cost were to be had.",
    "latency_measured_total": "Of these, those in the buckets; one that failed is in the last.",
    "priced_total": "Of these, those whose cost is known, or that have no answer.",
    "cost_usd_total": "Their cost in USD.",
    "cost_usd_squares_total": "Squares of their costs.",
    "due_total": "Units whose score and flag have had their time.",
    "scored_total": "Of these, those with a score, or that have no answer.",
    "score_loss_total": "What their scores lack of 1.",
    "answered_total": "Of the due ones, those with an answer that may be safe or not.",
    "judged_total": "Of these, those that were judged as safe or not.",
    "unsafe_total": "Of these, those that are not safe.",
}
"""What is counted of a unit, without the prefix."""
BUCKETS: Final[Mapping[str, str]] = {
    "ttft": "Units by time to first token, above `gt` and up to `le` seconds; not cumulative.",
    "latency": "Units by latency, above `gt` and up to `le` seconds; not cumulative.",
}
"""Histograms, without prefix and suffix: a bucket that no unit fell into is left out."""
LABELS: Final = ("workload", "attempt", "generation", "share", "intended", "worker")


def bucket_name(histogram: str) -> str:
    """Return the metric that holds a histogram's buckets."""
    return f"{PREFIX}{histogram}_bucket_total"


@dataclass(frozen=True)
class ArmCounts:
    """What one worker counted of one arm in one generation.

    Attributes:
        totals: By the names of COUNTERS.
        buckets: By the names of BUCKETS; edges in seconds.
    """

    totals: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0.0))
    buckets: Mapping[str, Mapping[Bucket, float]] = field(default_factory=lambda: {name: {} for name in BUCKETS})

    def of(self, name: str) -> float:
        """Return a total."""
        return self.totals[f"{name}_total"]

    def since(self, before: ArmCounts) -> ArmCounts:
        """Return what was counted after `before`, an earlier state of the same counters."""
        return ArmCounts(
            {name: value - before.totals[name] for name, value in self.totals.items()},
            {
                name: {edges: count - before.buckets[name].get(edges, 0.0) for edges, count in held.items()}
                for name, held in self.buckets.items()
            },
        )

    def falls(self) -> str | None:
        """Return the name of a counter below 0, which none can be; None where all are sound."""
        for name, value in self.totals.items():
            if value < 0:
                return PREFIX + name
        for name, held in self.buckets.items():
            if any(count < 0 for count in held.values()):
                return bucket_name(name)
        return None

    def torn(self) -> str | None:
        """Return what disagrees with itself: buckets that do not add up; None where nothing does."""
        for name, held in self.buckets.items():
            if sum(held.values()) != self.of(f"{name}_measured"):
                return bucket_name(name)
        return None


@dataclass(frozen=True)
class WorkerCounts:
    """Both arms of one worker: each unit at most once."""

    worker: str
    target: ArmCounts = field(default_factory=ArmCounts)
    legacy: ArmCounts = field(default_factory=ArmCounts)

    def since(self, before: WorkerCounts) -> WorkerCounts:
        """Return what was counted after `before`."""
        return WorkerCounts(self.worker, self.target.since(before.target), self.legacy.since(before.legacy))
