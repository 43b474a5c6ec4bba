"""A rollout of `support` in its first stage, and what its gateway wrote of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np

from anven_pipelines.domain.gateway_event import SAFE, GatewayEvent
from anven_pipelines.migrate import of_kind
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.sensors.rollout import rollout
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.pipeline.conftest import Place

START = datetime.now(UTC) - timedelta(hours=30)
NOW = START + timedelta(hours=25)
LIMITS = {"errors": 0.05, "safety": 0.05, "quality": 0.1}
ROLLOUT = {
    "stages": [{"share": 0.5, "soak": "24h"}, {"share": 1.0, "soak": "24h"}],
    "limits": LIMITS,
    "stale": "2d",
    "waive": ["drill"],
}


def begun(place: Place, declares: Mapping[str, Any] = ROLLOUT) -> Rollouts:
    """Sign `support` off and begin its first stage; return the rollouts of the place."""
    declared = place.declare(rollout=dict(declares))
    found = of_kind(place.definitions, "rollouts", Rollouts)
    sign_off(declared.migration, place.state, place.artifacts, now=START)
    found.start("support", who="ada", now=START)
    return found


def event_log(place: Place) -> Path:
    folder = place.folder / "home" / "gateway" / "events"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def serve(
    place: Place, units: int = 6_000, *, errors: float = 0.0, seed: int = 1, share: float = 0.5, **change: Any
) -> None:
    """Write what a gateway writes of so many users in the first 24 hours, one request and one score each."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(units):
        at = START + timedelta(hours=24) * number / units
        target = bool(rng.random() < share)
        fails = target and bool(rng.random() < errors)
        arm = "target" if target else "legacy"
        request: dict[str, Any] = {
            "event_id": f"{seed}-r{number}",
            "kind": "request",
            "ts": at,
            "worker": f"w{seed}",
            "seq": 2 * number,
            "workload": "support",
            "attempt": 1,
            "generation": 1,
            "stage": 0,
            "share": share,
            "unit": f"{number:032x}",
            "bucket": 0.1,
            "intended": arm,
            "served": None if fails else arm,
            "request_id": f"q{seed}-{number}",
            "status": "error" if fails else "ok",
            "error_class": "Timeout" if fails else None,
            "stream": True,
            "cached": False,
        }
        if not fails:
            speed = float(rng.lognormal(5, 0.3))
            request |= {"ttft_ms": speed, "latency_ms": 2 * speed, "cost_usd": 0.001 if target else 0.01 * speed}
        score: dict[str, Any] = {
            "event_id": f"{seed}-f{number}",
            "kind": "feedback",
            "ts": at + timedelta(seconds=30),
            "worker": f"w{seed}",
            "seq": 2 * number + 1,
            "request_id": f"q{seed}-{number}",
            "score": float(rng.random() < 0.9),
            "flags": (SAFE,),
        }
        lines += [GatewayEvent(**(request | change)).to_line(), GatewayEvent(**score).to_line()]
    (event_log(place) / f"w{seed}-000000.jsonl").write_bytes(b"".join(lines))


def tick(place: Place, rollouts: Rollouts) -> dg.SensorResult:
    with dg.build_sensor_context(place.instance, resources={"rollouts": rollouts}) as context:
        result = rollout(context)
    assert isinstance(result, dg.SensorResult)
    return result


def share_in_force(rollouts: Rollouts) -> float:
    return rollouts.gateway.read().of("support").share
