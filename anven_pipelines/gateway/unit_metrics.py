"""Counts each unit of a generation once: what a canary can be judged by from counters alone.

Requests are no evidence by themselves: those of one user share one draw of an arm. So the first request of each unit
that this worker sees end is counted, and the next ones are not. Scores and flags are counted when they have had their
time, so that early ones do not stand for all.

Memory is bounded: where a generation has more units than `MOST_UNITS`, half of them, drawn by hash, are no longer
counted, and so on. The draw knows nothing of the arm, and no unit is counted again.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from anven_pipelines.domain.gateway_event import SAFE, UNSAFE
from anven_pipelines.domain.unit_counts import BUCKETS, COUNTERS, PREFIX, bucket_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from anven_pipelines.domain.gateway_event import GatewayEvent

Labels = tuple[tuple[str, str], ...]

MOST_UNITS: Final = 200_000
"""Units of one generation that a worker remembers, some 20 MB of them."""
GENERATIONS: Final = 2
"""Generations of a workload that are counted: requests of the last one still end, and its scores still come."""
_RATIO: Final = 1.1
EDGES_S: Final = (0.0, *(float(f"{0.005 * _RATIO**k:.4g}") for k in range(107)), math.inf)
"""Edges of the buckets in seconds: 10 % apart, from 5 ms to 2 min."""
_HASH_DIGITS: Final = 8


class Maturity(NamedTuple):
    """When a unit's score is due.

    Attributes:
        after: How long after its first request.
        judged: Share of the units, drawn by hash, that are due for one.
    """

    after: timedelta = timedelta(0)
    judged: float = 1.0


@dataclass
class _Arm:
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0.0))
    buckets: dict[str, dict[int, float]] = field(default_factory=lambda: {name: {} for name in BUCKETS})

    def add(self, name: str, value: float = 1.0) -> None:
        self.totals[f"{name}_total"] += value

    def time(self, name: str, milliseconds: float) -> None:
        self.add(f"{name}_measured")
        place = bisect_left(EDGES_S, milliseconds / 1e3)
        held = self.buckets[name]
        held[max(place, 1)] = held.get(max(place, 1), 0.0) + 1


@dataclass
class _Pending:
    arm: _Arm
    due_at: datetime
    has_failed: bool
    score: float | None = None
    unsafe: bool | None = None


@dataclass
class _Generation:
    labels: Labels
    arms: dict[str, _Arm] = field(default_factory=lambda: {"target": _Arm(), "legacy": _Arm()})
    seen: dict[int, str] = field(default_factory=dict)  # unit to its arm
    moved: set[int] = field(default_factory=set)
    kept: float = 1.0  # share of the units, by hash, that is counted


class UnitMetrics:
    """Counts of one worker; the request loop observes and another thread reads."""

    def __init__(self, maturity: Mapping[str, Maturity], *, most_units: int = MOST_UNITS) -> None:
        """Start at nothing.

        Args:
            maturity: Workload to when its scores are due; without one nothing is due.
            most_units: Units of a generation that are remembered.
        """
        self._maturity = dict(maturity)
        self._most_units = most_units
        self._generations: dict[str, dict[int, _Generation]] = {}
        self._pending: dict[str, _Pending] = {}  # by request
        self._queues: dict[str, deque[str]] = {}  # of requests, by workload, in the order in which they are due
        self._lock = threading.Lock()

    def observe(self, event: GatewayEvent) -> None:
        """Count a request, if it is its unit's first, or keep a feedback until it is due."""
        with self._lock:
            if event.kind == "feedback":
                self._judge(event)
            elif event.kind == "request" and event.unit and event.intended and event.workload:
                self._request(event, event.workload, event.unit, event.intended)

    def samples(self, now: datetime) -> Iterator[tuple[str, Labels, float]]:
        """Yield name, labels and value of each counter, as they are at `now`."""
        with self._lock:
            self._mature(now)
            found = [
                sample
                for generations in self._generations.values()
                for generation in generations.values()
                for sample in _samples(generation)
            ]
        yield from found

    def _request(self, event: GatewayEvent, workload: str, unit: str, intended: str) -> None:
        generation = self._generation(event, workload)
        if generation is None:
            return
        number = int(unit[-16:], 16)
        before = generation.seen.get(number)
        if before is not None:
            if before != intended and number not in generation.moved:
                generation.moved.add(number)
                generation.arms[before].add("moved")
            return
        if _draw(unit[-_HASH_DIGITS:]) >= generation.kept:
            return
        generation.seen[number] = intended
        _count(generation.arms[intended], event)
        self._await_score(event, workload, unit, generation.arms[intended])
        while len(generation.seen) > self._most_units:
            generation.kept /= 2
            mask, limit = 16**_HASH_DIGITS - 1, generation.kept * 16**_HASH_DIGITS
            generation.seen = {each: arm for each, arm in generation.seen.items() if (each & mask) < limit}

    def _generation(self, event: GatewayEvent, workload: str) -> _Generation | None:
        """Return where an event counts; None where its generation is no longer counted."""
        number = event.generation or 0
        held = self._generations.setdefault(workload, {})
        if number not in held:
            if len(held) >= GENERATIONS and number < min(held):
                return None
            labels = (
                ("workload", workload),
                ("attempt", str(event.attempt or 0)),
                ("generation", str(number)),
                ("share", f"{event.share or 0:.10g}"),
            )
            held[number] = _Generation(labels)
            if len(held) > GENERATIONS:
                del held[min(held)]
        return held.get(number)

    def _await_score(self, event: GatewayEvent, workload: str, unit: str, arm: _Arm) -> None:
        maturity = self._maturity.get(workload)
        request = event.request_id
        if maturity is None or request is None or request in self._pending:  # a client may name two requests alike
            return
        if _draw(unit[:_HASH_DIGITS]) >= maturity.judged:
            return
        self._pending[request] = _Pending(arm, event.ts + maturity.after, _failed(event))
        self._queues.setdefault(workload, deque()).append(request)

    def _judge(self, event: GatewayEvent) -> None:
        pending = self._pending.get(event.request_id or "")
        if pending is None or event.ts > pending.due_at:
            return
        if event.score is not None:
            pending.score = event.score
        if UNSAFE in event.flags:
            pending.unsafe = True
        elif SAFE in event.flags:
            pending.unsafe = pending.unsafe or False

    def _mature(self, now: datetime) -> None:
        for queue in self._queues.values():
            while queue and self._pending[queue[0]].due_at <= now:
                _judged(self._pending.pop(queue.popleft()))


def _count(arm: _Arm, event: GatewayEvent) -> None:
    """Count a unit by its request, as the event log's reader does (`domain/rollout_units.py`)."""
    failed, left = _failed(event), event.status == "disconnected"
    arm.add("seen")
    arm.add("errors", failed)
    arm.add("left", left)
    arm.add("fell_back", event.intended == "target" and event.served == "legacy")
    if failed or (not left and event.contract_ok is not None):
        arm.add("contract_checks")
        arm.add("contract_failures", not event.contract_ok)
    if left or event.cached:
        return
    # What the client got instead of an answer may come fast, and is none.
    latency_ms = math.inf if event.status == "error" else event.latency_ms
    for name, applies, value in (
        ("ttft", bool(event.stream), event.ttft_ms),
        ("latency", True, latency_ms),
    ):
        if applies:
            arm.add("streamed" if name == "ttft" else "timed")
            if value is not None or failed:
                arm.time(name, math.inf if value is None else value)
    if event.cost_usd is not None or failed:
        arm.add("priced")
        arm.add("cost_usd", event.cost_usd or 0.0)
        arm.add("cost_usd_squares", (event.cost_usd or 0.0) ** 2)


def _judged(pending: _Pending) -> None:
    """Count a unit whose time for scores is over; one that failed and has none is worth 0, and shows no safety."""
    arm = pending.arm
    arm.add("due")
    if pending.score is not None or pending.has_failed:
        arm.add("scored")
        arm.add("score_loss", 1 - (pending.score or 0.0))
    if pending.unsafe is not None or not pending.has_failed:
        arm.add("answered")
    if pending.unsafe is not None:
        arm.add("judged")
        arm.add("unsafe", pending.unsafe)


def _failed(event: GatewayEvent) -> bool:
    """Whether the intended arm failed, also where legacy answered in its place."""
    return event.status == "error" or (event.why == "fallback" and event.intended == "target")


def _samples(generation: _Generation) -> Iterator[tuple[str, Labels, float]]:
    for intended, arm in generation.arms.items():
        labels = (*generation.labels, ("intended", intended))
        for name, value in arm.totals.items():
            yield PREFIX + name, labels, value
        for name, held in arm.buckets.items():
            for place, count in sorted(held.items()):
                edges = (("gt", f"{EDGES_S[place - 1]:g}"), ("le", _edge(EDGES_S[place])))
                yield bucket_name(name), (*labels, *edges), count


def _edge(value: float) -> str:
    return "+Inf" if math.isinf(value) else f"{value:g}"


def _draw(digits: str) -> float:
    """Point in [0, 1) of a hash in hex."""
    return int(digits, 16) / 16**_HASH_DIGITS
