"""The canary benchmarks look at every look at once; what they find is what the controller finds look by look."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl
import pytest

from anven_pipelines.domain.rollout_measure import UNITS, compare, windows_of
from benchmarks import canary, canary_watch
from benchmarks.canary_controllers import PLAN, Ours, Simulated, Units, arrivals, dealt
from benchmarks.canary_recorded import LIMITS, judges
from benchmarks.recorded_streams import Recording, World, stages_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.canary_controllers import FloatArray

T0: Final = datetime(2026, 3, 4, 12, tzinfo=UTC)
QUARTER, HALF, LAST = 1, 2, 3
RATE: Final = 240


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


def simulated(world: canary.World, *, good_hours: float = 0) -> Simulated:
    """Simulate the stage of 25 % of right and wrong answers, in a daily rhythm of quality and traffic."""
    worse, good = (
        next(islice(canary.stages_of(each, np.random.default_rng(3)), QUARTER, None))
        for each in (world, world._replace(loss=0.0))
    )
    bad = np.where(worse.units.at >= good_hours, worse.bad["quality"], good.bad["quality"])
    return Simulated(worse.units, {"quality": bad})


def frame(
    units: Units, bad: Mapping[str, FloatArray], *, began: datetime = T0, until: int | None = None
) -> pl.DataFrame:
    """Return the first of some units as the controller reads them."""
    n = len(units.treated[:until])
    seen = {name: [None if np.isnan(value) else value for value in values[:n].tolist()] for name, values in bad.items()}
    return pl.DataFrame(
        {
            "unit": [f"{number:08x}" for number in range(n)],
            "seen_at": [began + timedelta(hours=1) * at for at in units.at[:n].tolist()],
            "treated": units.treated[:n],
            "errors": seen.get("errors", [0.0] * n),
            "ttft_ms": seen.get("ttft"),
            "latency_ms": seen.get("latency"),
            "quality": (1 - bad["quality"][:n]).tolist() if "quality" in bad else None,
            **dict.fromkeys(("contract", "safety", "cost_usd")),
            **dict.fromkeys(("streamed", "timed"), True),
            "due": "quality" in bad,
            **dict.fromkeys(("left", "fell_back", "moved"), False),
        },
        schema=UNITS.schema,
        strict=False,
    )


def is_harm(stage: Simulated, metric: str, n: int) -> bool:
    """Whether the controller finds harm once it has seen n units."""
    units = frame(stage.units, stage.bad, until=n)
    now = T0 + timedelta(hours=1) * stage.units.looked(n) - timedelta(microseconds=1)
    found = compare(PLAN, QUARTER, windows_of(units, PLAN, entered_at=T0, now=now))
    return next(each for each in found if each.metric == metric).is_harm


def assert_found_at(stage: Simulated, metric: str, found: int | None, is_found: Callable[[int], bool]) -> None:
    """Assert that harm is found at that look, and neither at the one before nor at some earlier ones."""
    assert found is not None
    assert is_found(found)
    looks = stage.units.looks
    place = int(np.searchsorted(looks, found))
    assert looks[place] == found
    before = {place - 1, *(number * place // 8 for number in range(1, 8))}
    assert not any(is_found(int(looks[each])) for each in before if each >= 0), metric


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
    assert_found_at(stage, metric, found, partial(is_harm, stage, metric))


@pytest.mark.parametrize(
    ("world", "good_hours"),
    [
        (canary.World(RATE, 0.4), 0),
        (canary.World(RATE, 0.4, 0.05, 0.8), 0),
        (canary.World(RATE, 0.6, 0.05, 0.8), 13),  # found in a recent window
    ],
)
def test_a_loss_of_quality_is_found_at_the_very_look_at_which_the_controller_finds_it(
    world: canary.World, good_hours: float
) -> None:
    stage = simulated(world, good_hours=good_hours)
    found = canary.judges()["quality"]["ours"](stage.units, stage.bad["quality"])
    assert_found_at(stage, "quality", found, partial(is_harm, stage, "quality"))


@pytest.mark.parametrize(("loss", "good_hours"), [(0.3, 0.0), (0.18, 26.0), (0.5, 32.0)])
def test_at_100_percent_it_is_found_at_the_very_look_at_which_the_controller_finds_it(
    loss: float, good_hours: float
) -> None:
    """Traffic and quality swing; legacy was seen for the day before."""
    rng = np.random.default_rng(5)
    world = canary_watch.Watched(RATE, 0.05, 0.8, loss=loss, good_hours=good_hours)
    shared, alone = (  # none at the very end of a window, on whose side a rounded microsecond would decide
        arrivals(RATE, world.traffic, clock=clock, hours=hours) + 1e-4 for clock, hours in ((9.0, 24), (33.0, 54))
    )
    treated = dealt(PLAN.stages[HALF], len(shared), rng)
    before = Units(0.5, 24, treated, ~treated, shared)
    bad = {"quality": canary_watch.wrong_of(world, 9.0 + shared, np.zeros(len(shared)), rng)}
    stage_bad = canary_watch.wrong_of(world, 33.0 + alone, (alone >= good_hours).astype(np.float64), rng)
    stage = Simulated(
        Units(1.0, 54, np.ones(len(alone), bool), np.zeros(len(alone), bool), alone), {"quality": stage_bad}
    )
    legacy = canary_watch.Legacy((9.0 + shared)[~treated], bad["quality"][~treated])
    harm = canary_watch.alone_harm(legacy, began=33.0, rule="same hours")
    found = Ours(harm, canary_watch.LENGTHS["same hours"])(stage.units, stage_bad)
    reference, began = frame(before, bad), T0 + timedelta(hours=24)

    def is_found(n: int) -> bool:
        units = frame(stage.units, stage.bad, began=began, until=n)
        now = began + timedelta(hours=1) * stage.units.looked(n) - timedelta(microseconds=1)
        windows = windows_of(units, PLAN, entered_at=began, now=now, alone=True)
        return next(each for each in compare(PLAN, LAST, windows, before=reference) if each.metric == "quality").is_harm

    assert_found_at(stage, "quality", found, is_found)


@pytest.mark.parametrize("provider", ["steady", "bursty"])
def test_nothing_is_found_where_the_controller_finds_nothing(provider: str) -> None:
    stage = stage_of(World(RATE, provider, provider))
    for metric in LIMITS:
        assert judges()[metric]["ours"](stage.units, stage.bad[metric]) is None
        assert not is_harm(stage, metric, len(stage.units.treated))
