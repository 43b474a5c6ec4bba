"""Reads what a Prometheus server knows of the gateway's counters, and says where that is not all there is.

Each start of a worker has a name of its own and counts each generation from 0 on. So the last sample of a series is all
that it counted: nothing is extrapolated, and no reset has to be guessed. What two servers, or two targets with the same
folder, tell of one worker is told twice; the counters only rise, so the larger value is the newer one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.unit_counts import (
    BUCKETS,
    COUNTERS,
    KEPT_S,
    PREFIX,
    ArmCounts,
    Bucket,
    WorkerCounts,
    bucket_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WORKER: Final = "anven_worker_"
TRIPS: Final = "anven_breaker_trips_total"
_KEPT: Final = timedelta(seconds=KEPT_S)
_SAME: Final = 1e-9
"""Two shares are the same up to this: one was written with ten digits."""


class Sample(NamedTuple):
    """One value of one series, its name among the labels as `__name__`."""

    labels: Mapping[str, str]
    value: float


class Seen(NamedTuple):
    """What a worker last said of itself, at the time at which it was asked for.

    Attributes:
        at: When Prometheus still knew it.
        is_up: Whether it lived; None where that is not told.
        written_at: When it had told its samples.
    """

    at: datetime
    is_up: bool | None
    written_at: datetime | None


class Generation(NamedTuple):
    """What the samples say of the traffic under which a unit was counted."""

    attempt: int
    number: int
    share: float


@dataclass(frozen=True)
class Snapshot:
    """What was known at one moment of a workload.

    Attributes:
        told: Of each worker, what it says of itself, by the name of the metric without its prefix.
        counts: Of each generation, what each worker counted.
        trips: Of each generation, why a breaker tripped.
    """

    told: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[Generation, Mapping[str, WorkerCounts]] = field(default_factory=dict)
    trips: Mapping[int, str] = field(default_factory=dict)

    def of(self, number: int) -> Mapping[str, WorkerCounts]:
        """Return what each worker counted of a generation."""
        found: dict[str, WorkerCounts] = {}
        for generation, workers in self.counts.items():
            if generation.number == number:
                found |= workers
        return found

    def shared_before(self, number: int, *, attempt: int) -> Generation | None:
        """Return the last generation before this one of the same attempt in which both arms had traffic."""
        earlier = [each for each in self.counts if each.attempt == attempt and each.number < number and each.share < 1]
        return max(earlier, key=lambda each: each.number, default=None)


def snapshot_of(samples: Iterable[Sample]) -> Snapshot:
    """Sort samples by what they are.

    Raises:
        InvalidInput: a label is missing, a value is no count, or counters of one worker disagree.
    """
    told: dict[str, dict[str, float]] = defaultdict(dict)
    totals: dict[tuple[Generation, str, str], dict[str, float]] = defaultdict(dict)
    buckets: dict[tuple[Generation, str, str], dict[str, dict[Bucket, float]]] = {}
    trips: dict[int, str] = {}
    held = {bucket_name(name): name for name in BUCKETS}
    for sample in samples:
        name, worker = _label(sample, "__name__"), _label(sample, "worker")
        if not math.isfinite(sample.value) or sample.value < 0:
            message = f"{name} of worker {worker} is {sample.value}; a number from 0 up is needed"
            raise InvalidInput(message)
        if name.startswith(WORKER):
            said = told[worker]
            key = name.removeprefix(WORKER)
            said[key] = max(said.get(key, 0.0), sample.value)
        elif name == TRIPS:
            if sample.value:
                trips[_whole(sample, "generation")] = _label(sample, "reason") or "a burst"
        elif name.startswith(PREFIX):
            place = _generation(sample), worker, _label(sample, "intended")
            if name in held:
                edges = _edge(sample, "gt"), _edge(sample, "le")
                arm = buckets.setdefault(place, {each: {} for each in BUCKETS})[held[name]]
                arm[edges] = max(arm.get(edges, 0.0), sample.value)
            else:
                counted, key = totals[place], name.removeprefix(PREFIX)
                counted[key] = max(counted.get(key, 0.0), sample.value)
    return Snapshot(dict(told), _counts(totals, buckets), trips)


def missing_workers(history: Mapping[str, Seen], present: Snapshot) -> list[str]:
    """Return the workers that Prometheus no longer knows, in the order in which it knew them last."""
    return sorted(set(history) - set(present.told), key=lambda name: (history[name].at, name))


def gap_of(known_at: Iterable[datetime], *, since: datetime, now: datetime) -> str | None:
    """Say that Prometheus knows nothing of so long a time that a worker may have come and gone in it.

    Args:
        known_at: Times at which it knew some worker.
        since: When the generation began.
        now: When it is looked.
    """
    times = [since, *sorted(known_at), now]
    for before, after in pairwise(times):
        if after - before > _KEPT:
            return (
                f"Prometheus knows nothing of the gateway between {before:%Y-%m-%d %H:%M} and {after:%Y-%m-%d %H:%M} "
                "UTC: what a worker counted that ended then is unknown (it was down, or keeps too little)"
            )
    return None


def silence_of(
    present: Snapshot, history: Mapping[str, Seen], *, now: datetime, stale: timedelta
) -> tuple[str | None, datetime | None]:
    """Say which worker counts what Prometheus does not see, and as of when all of them are known.

    Args:
        present: What is known now.
        history: What each worker last said in this generation.
        now: When it is looked.
        stale: Longest that a living worker may be silent.

    Returns:
        Why the counts are not whole, None where they are; and the time up to which they are.
    """
    for name in missing_workers(history, present):
        if history[name].is_up is not False:
            last = f"{history[name].at:%H:%M:%S} UTC"
            return (
                f"worker {name} vanished from Prometheus without having ended; what it counted since {last} is unknown",
                None,
            )
    if not present.told:
        return "Prometheus knows no worker of the gateway that serves the workload: is it scraped?", None
    alive = []
    for name, said in sorted(present.told.items()):
        if said.get("up") is None or said.get("written_seconds") is None:
            return f"Prometheus does not know whether worker {name} lives: a series is missing", None
        if said["up"]:
            alive.append((datetime.fromtimestamp(said["written_seconds"], UTC), name))
    if not alive:
        newest = max(said["written_seconds"] for said in present.told.values())
        return None, datetime.fromtimestamp(newest, UTC)
    oldest, name = min(alive)
    if now - oldest > stale:
        return (
            f"worker {name} lives and has told nothing since {oldest:%H:%M:%S} UTC: what it counted since is unknown",
            None,
        )
    return None, oldest


def share_problem(generation: int, present: Snapshot, *, share: float) -> str | None:
    """Say that units were dealt at another share than planned; None where they were not."""
    for found in present.counts:
        if found.number == generation and abs(found.share - share) > _SAME:
            return f"generation {generation} has a share of {found.share:g} at the gateway, planned is {share:g}"
    return None


def in_order(workers: Mapping[str, WorkerCounts], started: Mapping[str, float]) -> list[WorkerCounts]:
    """Return the counts in the order in which the workers started, which no outcome can change."""
    return [workers[name] for name in sorted(workers, key=lambda name: (started.get(name, math.inf), name))]


def window_counts(
    workers: list[WorkerCounts], before: Snapshot, *, generation: int, started: Mapping[str, float], since: datetime
) -> list[WorkerCounts] | None:
    """Return what each worker counted since a moment; None where Prometheus knew nothing then.

    Args:
        workers: What each has counted by now, in their order.
        before: What was known at that moment.
        generation: Of the traffic.
        started: When each worker began, in seconds since 1970.
        since: The moment.

    Returns:
        Counts in the same order. A worker that was not known at the moment, and was there already, counts nothing:
        it had ended, or its units can be told from no earlier ones.
    """
    if not before.told:
        return None
    held, found = before.of(generation), []
    for now in workers:
        is_new = started.get(now.worker, -math.inf) >= since.timestamp()
        if now.worker in before.told or is_new:
            found.append(now.since(held.get(now.worker, WorkerCounts(now.worker))))
        else:
            found.append(WorkerCounts(now.worker))
    return found


def unsound(workers: Iterable[WorkerCounts], *, is_difference: bool = False) -> str | None:
    """Say which counter cannot be what the gateway counted; None where all can."""
    for worker in workers:
        for arm in (worker.target, worker.legacy):
            if name := arm.falls():
                return f"{name} of worker {worker.worker} fell, which no counter does"
            if not is_difference and (name := arm.torn()):
                return f"{name} of worker {worker.worker} lacks buckets"
    return None


def _counts(
    totals: Mapping[tuple[Generation, str, str], Mapping[str, float]],
    buckets: Mapping[tuple[Generation, str, str], Mapping[str, Mapping[Bucket, float]]],
) -> dict[Generation, dict[str, WorkerCounts]]:
    arms: dict[tuple[Generation, str], dict[str, ArmCounts]] = defaultdict(dict)
    for place in set(totals) | set(buckets):
        generation, worker, intended = place
        if missing := sorted(set(COUNTERS) - set(totals.get(place, {}))):
            message = f"{PREFIX}{missing[0]} of worker {worker} is missing, as if it had vanished"
            raise InvalidInput(message)
        arms[generation, worker][intended] = ArmCounts(
            {name: totals[place][name] for name in COUNTERS}, buckets.get(place, {name: {} for name in BUCKETS})
        )
    found: dict[Generation, dict[str, WorkerCounts]] = defaultdict(dict)
    for (generation, worker), both in arms.items():
        if lacking := sorted({"target", "legacy"} - set(both)):
            message = f"the counters of worker {worker} for the arm {lacking[0]} are missing, as if they had vanished"
            raise InvalidInput(message)
        found[generation][worker] = WorkerCounts(worker, both["target"], both["legacy"])
    return dict(found)


def _generation(sample: Sample) -> Generation:
    return Generation(_whole(sample, "attempt"), _whole(sample, "generation"), _number(sample, "share"))


def _edge(sample: Sample, name: str) -> float:
    return _number(sample, name)


def _whole(sample: Sample, name: str) -> int:
    return int(_number(sample, name))


def _number(sample: Sample, name: str) -> float:
    text = _label(sample, name)
    try:
        return float(text)
    except ValueError as error:
        message = f"the label {name} of {sample.labels.get('__name__')} is {text!r}; a number is needed"
        raise InvalidInput(message) from error


def _label(sample: Sample, name: str) -> str:
    if (text := sample.labels.get(name)) is None:
        message = (
            f"a series {sample.labels.get('__name__', '')} has no label {name}: was it relabelled, or aggregated? The "
            "gateway's own series are needed"
        )
        raise InvalidInput(message)
    return text
