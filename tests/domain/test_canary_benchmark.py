"""The canary benchmark looks at every look at once; what it finds is what the controller finds look by look."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

import numpy as np
import polars as pl
import pytest

from anven_pipelines.domain.rollout_measure import UNITS, compare, windows_of
from benchmarks.canary_controllers import PLAN, Simulated
from benchmarks.canary_recorded import LIMITS, judges
from benchmarks.recorded_streams import Recording, World, stages_of

T0 = datetime(2026, 3, 4, 12, tzinfo=UTC)
QUARTER = 1
RATE = 240


def recordings() -> dict[str, Recording]:
    """Invent a provider that never fails, and one whose failures come in bursts."""
    rng = np.random.default_rng(7)
    found = {}
    for name, failed in (("steady", np.zeros(150, bool)), ("bursty", np.arange(150) % 50 < 12)):
        ttft, latency = 1000 * rng.lognormal(-1.4, 0.3, 150), 1000 * rng.lognormal(0.9, 0.2, 150)
        found[name] = Recording(failed, np.where(failed, np.nan, ttft), np.where(failed, np.nan, latency))
    return found


def stage_of(world: World, *, good_hours: int = 0) -> Simulated:
    """Simulate the stage of 25 %; in its first hours the target may be as good as legacy."""
    worse, good = (
        next(islice(stages_of(each, recordings(), np.random.default_rng(3)), QUARTER, None))
        for each in (world, World(RATE, world.legacy, world.legacy))
    )
    late = np.arange(len(worse.units.treated)) >= good_hours * RATE
    return Simulated(worse.units, {metric: np.where(late, worse.bad[metric], good.bad[metric]) for metric in LIMITS})


def is_harm(stage: Simulated, metric: str, n: int) -> bool:
    """Whether the controller finds harm once it has seen n units."""
    seen = {name: [None if np.isnan(value) else value for value in bad[:n].tolist()] for name, bad in stage.bad.items()}
    units = pl.DataFrame(
        {
            "unit": [f"{number:08x}" for number in range(n)],
            "seen_at": [T0 + timedelta(hours=1) * (number / RATE) for number in range(n)],
            "treated": stage.units.treated[:n],
            "errors": seen["errors"],
            "ttft_ms": seen["ttft"],
            "latency_ms": seen["latency"],
            **dict.fromkeys(("contract", "safety", "quality", "cost_usd")),
            **dict.fromkeys(("streamed", "timed"), True),
            **dict.fromkeys(("left", "due", "fell_back", "moved"), False),
        },
        schema=UNITS.schema,
        strict=False,
    )
    now = T0 + timedelta(hours=1) * (n / RATE) - timedelta(microseconds=1)
    found = compare(PLAN, QUARTER, windows_of(units, PLAN, entered_at=T0, now=now))
    return next(each for each in found if each.metric == metric).is_harm


@pytest.mark.parametrize(
    ("metric", "world", "good_hours"),
    [
        ("errors", World(RATE, "steady", "steady", bursts="bursty", mixed=0.3), 0),
        ("errors", World(RATE, "bursty", "bursty", bursts="bursty", mixed=0.6), 13),  # found in a recent window
        ("ttft", World(RATE, "steady", "steady", ttft_ms=300), 0),
        ("ttft", World(RATE, "steady", "steady", ttft_share=0.8), 13),
        ("ttft", World(RATE, "steady", "bursty"), 0),  # by those that failed, which are endlessly late
        ("latency", World(RATE, "steady", "steady", latency_share=0.6), 7),
    ],
)
def test_harm_is_found_at_the_very_look_at_which_the_controller_finds_it(
    metric: str, world: World, good_hours: int
) -> None:
    stage = stage_of(world, good_hours=good_hours)
    found = judges()[metric]["ours"](stage.units, stage.bad[metric])
    assert found is not None
    assert is_harm(stage, metric, found)
    a_look = stage.units.a_look
    before = {found - a_look, *(number * found // 8 // a_look * a_look for number in range(1, 8))}
    assert not any(is_harm(stage, metric, n) for n in before if n > 0)


@pytest.mark.parametrize("provider", ["steady", "bursty"])
def test_nothing_is_found_where_the_controller_finds_nothing(provider: str) -> None:
    stage = stage_of(World(RATE, provider, provider))
    for metric in LIMITS:
        assert judges()[metric]["ours"](stage.units, stage.bad[metric]) is None
        assert not is_harm(stage, metric, len(stage.units.treated))
