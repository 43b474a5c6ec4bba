"""What MLflow shows of a rollout: one run for each attempt, derived from the audit log as often as one likes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.notice import HELD
from anven_pipelines.domain.rollout_plan import read_plan
from anven_pipelines.domain.rollout_status import CHANGES, RolloutStatus, followed, refusal
from anven_pipelines.domain.tracking import StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from anven_pipelines.domain.events import Event
    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.domain.rollout_status import Phase
    from anven_pipelines.domain.tracking import RunStatus

AUDIT: Final = "audit.jsonl"
"""The document with the events of the attempt, as the log has them: one a line, with the hashes that chain them."""

_ENDS: Final[dict[Phase, RunStatus]] = {"completed": "FINISHED", "rolled_back": "FAILED", "aborted": "KILLED"}


class Point(NamedTuple):
    """One value of a metric's history."""

    name: str
    value: float
    at: datetime
    step: int
    """Generation that began then."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt of a rollout as MLflow is to show it.

    Attributes:
        record: Its run, but for the metrics; it goes on, and says more with each event.
        points: The metrics' histories: one value a generation each, so that what is there needs no second one.
        seq: Number of its newest event.
        production: Prompt to the version of it that is served for good, by digest; None for the legacy one. Nothing
            while the ramp goes on, and of what the registry does not hold.
    """

    record: StepRecord
    points: tuple[Point, ...]
    seq: int
    production: Mapping[str, str | None] = field(default_factory=dict)


class _Followed(NamedTuple):
    """An event, and where the rollout stood before and after it."""

    event: Event
    before: RolloutStatus
    status: RolloutStatus


def attempts_of(workload: str, events: Sequence[Event]) -> list[Attempt]:
    """Return the attempts of a rollout, oldest first.

    What came before the first one, or after one has ended, such as a drill, is part of none. A completed one goes on.

    Args:
        workload: Whose they are.
        events: Of its rollout and of what held it, all of them, in the order of the log.

    Raises:
        InvalidInput: an event is of no known kind.
    """
    attempts: list[list[_Followed]] = []
    for each in _followed(events):
        if each.status.attempt > each.before.attempt:
            attempts.append([])
        elif not each.before.is_open:
            continue
        attempts[-1].append(each)
    return [_attempt(workload, followed) for followed in attempts]


def _followed(events: Sequence[Event]) -> Iterator[_Followed]:
    status = RolloutStatus()
    for event in events:  # each rests on those before
        before = status
        status = before if event.kind == HELD else followed(before, event)
        yield _Followed(event, before, status)


def _attempt(workload: str, events: list[_Followed]) -> Attempt:
    started, (newest, _, status) = events[0].event, events[-1]
    planned = started.payload.get("planned")
    plan = None if planned is None else read_plan(workload, planned)
    record = StepRecord(
        key=f"rollout/{workload}/{status.attempt}/{started.hash[:16]}",
        experiment=f"anven/{workload}",
        name=f"rollout, attempt {status.attempt}",
        started=started.ts,
        ended=newest.ts,
        status=_ENDS.get(status.phase, "RUNNING"),
        tags=_tags(workload, events),
        params=_params(started.payload, plan),
        documents={AUDIT: "".join(f"{canonical_json(_line(each.event))}\n" for each in events)},
    )
    points = [point for each in events if each.event.kind in CHANGES for point in _points(each, plan)]
    return Attempt(record=record, points=tuple(points), seq=newest.seq, production=_production(workload, events))


def _production(workload: str, events: list[_Followed]) -> dict[str, str | None]:
    """Return what serves production once an attempt has ended; a target at 100 % that still proves itself does not."""
    served: dict[str, str | None] = events[0].event.payload.get("prompts") or {}
    phase = events[-1].status.phase
    if phase not in _ENDS:
        return {}
    return {f"{workload}.{name}": digest if phase == "completed" else None for name, digest in served.items()}


def _params(started: dict[str, Any], plan: RolloutPlan | None) -> dict[str, str]:
    """Return what the attempt began with; what another release did not write down is left out."""
    models = started.get("models") or {}
    found = {
        "plan": started["plan"],
        "strategy": None if plan is None else "declared stages" if plan.rollout.stages else plan.rollout.strategy,
        "stages": None if plan is None else canonical_json([stage.model_dump(mode="json") for stage in plan.stages]),
        "verdict": started.get("verdict"),
        "verdict_digest": started.get("verdict_digest"),
        "prompt": started.get("prompt"),
        "legacy_model": models.get("legacy"),
        "target_model": models.get("target"),
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _tags(workload: str, events: list[_Followed]) -> dict[str, str]:
    """Return where the attempt stands; `reasons` are those of the newest event that has any."""
    started, status = events[0].event, events[-1].status
    reasons = (each.event.payload.get("reasons") or [each.event.payload.get("reason")] for each in reversed(events))
    why = next((found for found in reasons if any(found)), [])
    tags = {
        "workload": workload,
        "rollout.attempt": str(status.attempt),
        "rollout.state": status.phase,
        "rollout.generation": str(status.generation),
        "rollout.started_by": str(started.payload.get("who", "")),
        "rollout.last": events[-1].event.kind,
        "rollout.reasons": "; ".join(str(reason) for reason in why),
        "verdict": str(started.payload.get("verdict") or ""),
    }
    return {name: value for name, value in tags.items() if value}


def _points(found: _Followed, plan: RolloutPlan | None) -> Iterator[Point]:
    """Yield the share and the stage that a generation began with, and what its decision rested on."""
    event, before, status = found
    values: dict[str, float] = {}
    if plan is not None:
        values["share"] = status.share(plan)
    if status.is_open and status.stage is not None:
        values["stage"] = float(status.stage)
    if refusal(before, event.kind) is None:  # one that came too late decided nothing
        for metric, numbers in event.payload.get("measured", {}).items():
            values |= {f"{metric}/{name}": float(value) for name, value in numbers.items()}
    for name, value in values.items():
        yield Point(name, value, event.ts, status.generation)


def _line(event: Event) -> dict[str, Any]:
    return {
        "seq": event.seq,
        "ts": event.ts_text,
        "stream": event.stream,
        "kind": event.kind,
        "key": event.key,
        "payload": event.payload,
        "prev_hash": event.prev_hash,
        "hash": event.hash,
    }
