"""A rollout in each state of its machine: a log, a traffic file and what production showed, all written for real."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import yaml

from anven_pipelines.domain.gateway_event import SAFE, GatewayEvent
from anven_pipelines.domain.rollout_plan import plan_of
from anven_pipelines.domain.rollout_status import CHANGES, change_key, stream_of
from anven_pipelines.domain.uptime import Uptime
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.resources.uptime import uptime
from tests.rollout_runner import STATE_URL, rollouts_at
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anven_pipelines.resources.rollouts import Rollouts

SHARES: Final = (0.3, 0.5, 1.0)
SOAK: Final = timedelta(hours=24)
STAYED: Final = timedelta(hours=25)
UNITS: Final = 2_000
ROLLOUT: Final = {
    "stages": [{"share": share, "soak": "24h"} for share in SHARES],
    "limits": {"errors": 0.1, "safety": 0.1, "quality": 0.2, "cost": 1.0},
    "stale": "2d",
    "waive": ["drill"],
}


class Place(NamedTuple):
    """Where a rollout stands: phase, stage and share."""

    phase: str
    stage: int | None
    share: float


NOTHING: Final = Place("not_started", None, 0.0)
FIRST: Final = Place("running", 0, 0.3)
SECOND: Final = Place("running", 1, 0.5)
LAST: Final = Place("running", 2, 1.0)
COMPLETED: Final = Place("completed", 2, 1.0)
ROLLED_BACK: Final = Place("rolled_back", None, 0.0)


class State(NamedTuple):
    """One state of the machine, and what the next step does to it.

    Attributes:
        before: Where it stands.
        after: Where an undisturbed step leaves it.
        change: The event that this step writes; None where it writes none.
        stages: How many stages it has come through.
        units: Of the present stage that were seen.
        harmed: Whether the target fails.
        then: What was written after the stages.
    """

    before: Place
    after: Place
    change: str | None
    stages: int = 1
    units: int = UNITS
    harmed: bool = False
    then: tuple[str, ...] = ()


STATES: Final = {
    "not_started": State(NOTHING, FIRST, "started", stages=0),
    "first_stage": State(FIRST, SECOND, "advanced"),
    "shared_stage": State(SECOND, LAST, "advanced", stages=2),
    "stability": State(LAST, COMPLETED, "completed", stages=3),
    "completed": State(COMPLETED, COMPLETED, None, stages=3, then=("completed",)),
    "held": State(FIRST, FIRST, None, units=300),
    "paused": State(Place("paused", 0, 0.3), Place("paused", 0, 0.3), None, then=("paused",)),
    "harmed": State(FIRST, ROLLED_BACK, "rolled_back", harmed=True),
    "harmed_at_100": State(LAST, ROLLED_BACK, "rolled_back", stages=3, harmed=True),
    "rolling_back": State(Place("rolled_back", None, 0.3), ROLLED_BACK, None, then=("rolled_back, not routed",)),
    "rolled_back": State(ROLLED_BACK, ROLLED_BACK, None, then=("rolled_back",)),
}


def made(name: str, home: Path, *, now: datetime, workload: str = "support") -> None:
    """Fill a folder with a rollout in a state whose present stage began STAYED ago, beside others that are there."""
    state = STATES[name]
    (home / "migrations").mkdir(parents=True, exist_ok=True)
    (home / "migrations" / f"{workload}.yaml").write_text(yaml.safe_dump(_migration(workload)))
    rollouts = rollouts_at(home)
    began = now - max(1, state.stages) * STAYED
    sign_off(_declared(rollouts, workload), rollouts.state, rollouts.artifacts, now=began)
    for stage in range(state.stages):
        _enter(rollouts, workload, stage, at=began + stage * STAYED, now=now)
    _serve(home, workload, state, began)
    if state.stages:
        rollouts.metrics.evidence(
            plan_of(_declared(rollouts, workload)), rollouts.status(workload), now=now
        )  # takes it in
    for kind in state.then:
        change, _, rest = kind.partition(", ")
        _write(
            rollouts, workload, change, {"from_stage": 0, "reasons": [], "who": "ada", "reason": ""}, at=now, now=now
        )
        if not rest:
            rollouts._publish(workload, rollouts.status(workload))


def all_made(home: Path, *, now: datetime) -> None:
    """Fill a folder with a workload in each state, which bears its name."""
    for name in STATES:
        made(name, home, now=now, workload=name)


def rewritten(home: Path, url: str, metrics: Mapping[str, Any] | None = None) -> None:
    """Write a folder's log once more, into another database, with another source of evidence in its files and plans.

    Args:
        home: What `all_made` has filled; from then on its log is the new one.
        url: Of an empty database.
        metrics: The section `rollout.metrics`; None leaves it as it is.
    """
    rollouts, into = rollouts_at(home), StateStore(url=url)
    for file in (home / "migrations").iterdir():
        declared = yaml.safe_load(file.read_text())
        if metrics is not None:
            declared["rollout"]["metrics"] = dict(metrics)
        file.write_text(yaml.safe_dump(declared))
    for event in rollouts.state.events():
        payload = dict(event.payload)
        if event.kind == "started":
            plan = plan_of(_declared(rollouts, event.stream.removeprefix(stream_of(""))))
            payload |= {"plan": plan.digest, "planned": plan.written()}
        into.append(stream=event.stream, kind=event.kind, key=event.key, payload=payload, now=event.ts)
    (home / STATE_URL).write_text(url)


def place_of(rollouts: Rollouts, workload: str = "support") -> Place:
    """Return where the log says that the rollout stands, and the share that the traffic file gives the target."""
    status = rollouts.status(workload)
    return Place(status.phase, status.stage, rollouts.gateway.read().of(workload).share)


def require_one_change(rollouts: Rollouts, name: str) -> None:
    """Assert that the log of `all_made` verifies, and that a state holds what it held and at most its one change."""
    state = STATES[name]
    changes = [event for event in rollouts.state.events(stream_of(name)) if event.kind in CHANGES]
    began = state.stages + sum(each.split(",")[0] in CHANGES for each in state.then)
    assert rollouts.state.verify().ok
    assert [event.key for event in changes] == [change_key(at + 1) for at in range(len(changes))], name
    assert [event.kind for event in changes[began:]] in ([], [state.change]), name


def _enter(rollouts: Rollouts, workload: str, stage: int, *, at: datetime, now: datetime) -> None:
    plan = plan_of(_declared(rollouts, workload))
    payload: dict[str, Any] = {"who": "ada", "plan": plan.digest, "planned": plan.written(), "verdict": None}
    kind, payload = ("advanced", {"stage": stage}) if stage else ("started", payload)
    _write(rollouts, workload, kind, payload, at=at, now=now)
    rollouts._publish(workload, rollouts.status(workload))


def _write(
    rollouts: Rollouts, workload: str, kind: str, payload: dict[str, Any], *, at: datetime, now: datetime
) -> None:
    """Write an event with the uptime that this machine had then, were it up for long enough."""
    up = uptime()
    told = Uptime(up.boot, up.seconds - (now - at).total_seconds()).written() if up else {}
    generation = rollouts.status(workload).generation
    key = f"{kind}-1" if kind == "paused" else change_key(generation + 1)
    rollouts.state.append(stream=stream_of(workload), kind=kind, key=key, payload=payload | told, now=at)


def _declared(rollouts: Rollouts, workload: str) -> Any:
    return rollouts.migrations.of(workload).migration


def _migration(workload: str) -> dict[str, Any]:
    nowhere = "http://127.0.0.1:9/v1"
    return {
        "workload": workload,
        "legacy": {"model": "legacy-model", "logs": "log-*.jsonl"},
        "target": {"model": "target-model", "engine": "recorded", "answers": "answers.jsonl"},
        "grading": [{"kind": "json_field", "field": "answer"}],
        "rollout": ROLLOUT,
        "gateway": {
            "legacy": {"model": "openai/legacy-model", "url": nowhere},
            "target": {"model": "hosted_vllm/target-model", "url": nowhere},
        },
    }


def _serve(home: Path, workload: str, state: State, began: datetime) -> None:
    """Write what the gateway's one worker wrote of every stage: a request and a feedback of each unit."""
    log = home / "gateway" / "events"
    log.mkdir(parents=True, exist_ok=True)
    rng, seq, lines = np.random.default_rng(1), 0, []
    for stage in range(state.stages):
        is_last = stage + 1 == state.stages
        for number in range(state.units if is_last else UNITS):
            at = began + stage * STAYED + timedelta(hours=23) * number / UNITS
            target = bool(rng.random() < SHARES[stage])
            fails = target and is_last and state.harmed and bool(rng.random() < 0.5)
            for event in _asked(workload, stage, number, at, target=target, fails=fails, rng=rng):
                seq += 1
                lines.append(GatewayEvent(**event, worker=f"w-{workload}", seq=seq).to_line())
    (log / f"w-{workload}-000000.jsonl").write_bytes(b"".join(lines))


def _asked(
    workload: str, stage: int, number: int, at: datetime, *, target: bool, fails: bool, rng: np.random.Generator
) -> list[dict[str, Any]]:
    arm, name = "target" if target else "legacy", f"{workload}-{stage}-{number}"
    request: dict[str, Any] = {
        "event_id": f"r{name}",
        "kind": "request",
        "ts": at,
        "workload": workload,
        "attempt": 1,
        "generation": stage + 1,
        "stage": stage,
        "share": SHARES[stage],
        "unit": f"{stage * UNITS + number:032x}",
        "bucket": 0.1,
        "intended": arm,
        "served": None if fails else arm,
        "request_id": f"q{name}",
        "status": "error" if fails else "ok",
        "error_class": "Timeout" if fails else None,
        "stream": True,
        "cached": False,
    }
    if not fails:
        speed = float(rng.lognormal(5, 0.3))
        request |= {"ttft_ms": speed, "latency_ms": 2 * speed, "cost_usd": (0.001 if target else 0.01) * speed}
    feedback: dict[str, Any] = {
        "event_id": f"f{name}",
        "kind": "feedback",
        "ts": at + timedelta(seconds=30),
        "request_id": f"q{name}",
        "score": float(rng.random() < 0.9),
        "flags": (SAFE,),
    }
    return [request, feedback]
