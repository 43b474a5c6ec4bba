"""What a load benchmark sends, when, and to which server; decided before the first request."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import polars as pl

from anven_pipelines.domain.arrivals import Rhythm, arrival_times, fit
from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.golden import opened
from anven_pipelines.domain.inference import requests_for
from anven_pipelines.domain.load import figures_of, judged, may_go_on
from anven_pipelines.domain.prompts import carry_over
from anven_pipelines.domain.request_log import of_applications, of_model
from anven_pipelines.spec_target import EndpointTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from anven_pipelines.domain.arrivals import FloatArray
    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.domain.prompts import AdaptedPrompt
    from anven_pipelines.spec import Legacy, Migration
    from anven_pipelines.spec_load import Load

POISSON: Final = Rhythm(gap_cv=1.0, daily_amplitude=0.0)
FIRST_AUTO_RATE: Final = 1.0
AUTO_FACTOR: Final = 2.0
MIN_TRACE: Final = 20
"""Logged calls with a time; the gaps of fewer show no shape."""

CALLS_SQL: Final = "SELECT model, provider, application, ts FROM request_log WHERE ts IS NOT NULL"


class LoadArm(NamedTuple):
    """One server and what it can be asked.

    Attributes:
        name: `target` or `legacy`.
        server: The endpoint; each request is asked once, however it ends.
        requests: The open traffic items, as this server is asked.
        weights: Logged calls that each of them stands for.
    """

    name: str
    server: EndpointTarget
    requests: list[CompletionRequest]
    weights: FloatArray


class Due(NamedTuple):
    """A request and the moment at which it has to go, in seconds from the start of its rate."""

    at_s: float
    request: CompletionRequest


class LoadPlan(NamedTuple):
    """What is sent at one rate."""

    rate: float
    seconds: float
    due: list[Due]


def target_server(migration: Migration) -> EndpointTarget | None:
    """Return where the target is put under load; None where the migration file names nothing that serves it."""
    load, target = migration.load, migration.target
    if load is None or (load.url is None and not isinstance(target, EndpointTarget)):
        return None
    own = target.url if isinstance(target, EndpointTarget) else None
    key = target.api_key_env if isinstance(target, EndpointTarget) and load.url in (None, own) else None
    return _server(
        load,
        model=load.model or target.model,
        url=load.url or own,
        api_key_env=load.api_key_env or key,
        params=getattr(target, "params", {}),
    )


def load_arms(migration: Migration, golden: pl.DataFrame, prompt: AdaptedPrompt) -> list[LoadArm]:
    """Return the target's server, and the legacy model's where one is declared, with the open traffic items.

    A sealed item is sent by nothing but `target_answers`, and an item that a quota added stands for no traffic. The
    legacy model is asked what it was asked in production.
    """
    server, legacy = target_server(migration), migration.load and migration.load.legacy
    items = opened(golden).filter(pl.col("weight") > 0).sort("id")
    weights = items["weight"].to_numpy()
    arms = [] if server is None else [LoadArm("target", server, requests_for(items, prompt, server), weights)]
    if migration.load is not None and legacy is not None:
        paid = _server(
            migration.load,
            model=legacy.model or migration.legacy.model,
            url=legacy.url,
            api_key_env=legacy.api_key_env,
            params={},
        )
        arms.append(LoadArm("legacy", paid, requests_for(items, carry_over(), paid), weights))
    return arms


def planned(load: Load, arm: LoadArm, rate: float, *, trace: FloatArray) -> LoadPlan:
    """Draw what is sent at a rate; both arms get the same items at the same moments.

    Args:
        load: Kind of arrivals, duration and seed.
        arm: What the server can be asked.
        rate: Requests per second.
        trace: Seconds of the log's arrivals, ascending; read for `arrivals: trace` only.
    """
    seconds = load.duration.total_seconds()
    rng = np.random.default_rng([load.seed, round(rate * 1000)])
    if load.arrivals == "poisson":
        times = poisson_arrivals(rate, seconds, rng=rng)
    else:
        times = replayed_arrivals(trace, rate, seconds, rng=rng)
    items = mixed(arm.weights, len(times), rng=rng)
    due = [Due(at_s, arm.requests[item]) for at_s, item in zip(times.tolist(), items.tolist(), strict=True)]
    return LoadPlan(rate, seconds, due)


def poisson_arrivals(rate: float, seconds: float, *, rng: np.random.Generator) -> FloatArray:
    """Draw a Poisson process of a known number of arrivals: independent uniform moments.

    The number is not drawn: what is then said of a rate would be said of a lower one, by chance. vLLM's `bench serve`
    scales its gaps to the rate for the same reason.

    Args:
        rate: Arrivals per second over the whole duration, exact but for rounding to a whole number of arrivals.
        seconds: Duration.
        rng: Seeded by the caller.

    Returns:
        Seconds from the start, ascending, at least one, shape (n,).
    """
    count = max(1, round(rate * seconds))
    return arrival_times(count, seconds=seconds, rhythm=POISSON, rng=rng)


def replayed_arrivals(trace: FloatArray, rate: float, seconds: float, *, rng: np.random.Generator) -> FloatArray:
    """Replay a stretch of a trace at a rate: gaps keep their order and proportions, the stretch starts at random.

    A trace that is too short goes on from its start.

    Args:
        trace: Seconds, ascending, shape (m,).
        rate: Arrivals per second over the whole duration, exact but for rounding to a whole number of arrivals.
        seconds: Duration.
        rng: Seeded by the caller.

    Returns:
        Seconds from the start, ascending, shape (n,).

    Raises:
        InvalidInput: the trace has too few arrivals, or a stretch of it comes at once.
    """
    if trace.size < MIN_TRACE:
        message = (
            f"load.arrivals is trace and the log has {trace.size} calls with a time; at least {MIN_TRACE} are needed: "
            "log `ts`, or write `arrivals: poisson`"
        )
        raise InvalidInput(message)
    count = max(1, round(rate * seconds))
    gaps = np.diff(trace)
    stretch = gaps[(int(rng.integers(gaps.size)) + np.arange(count)) % gaps.size]
    return fit(np.concatenate([[0.0], np.cumsum(stretch)]), count=None, seconds=seconds)[:-1]


def mixed(weights: FloatArray, count: int, *, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Draw items in proportion to their weights and in random order, each as seldom twice as can be.

    Systematic sampling (Madow 1949, Annals of Mathematical Statistics 20:333): an item is drawn its expected number of
    times, rounded up or down. A server that caches prompts would gain from more repetitions than that.

    Args:
        weights: Above 0, shape (items,).
        count: How many are drawn.
        rng: Seeded by the caller.

    Returns:
        Positions in `weights`, shape (count,).
    """
    ends = np.cumsum(weights) / weights.sum()
    places = (np.arange(count) + rng.uniform()) / count
    drawn = np.minimum(np.searchsorted(ends, places, side="right"), weights.size - 1)
    return rng.permutation(drawn)


def warm_up(load: Load, arm: LoadArm) -> list[CompletionRequest]:
    """Draw what is asked before the first rate."""
    drawn = mixed(arm.weights, load.warm_up, rng=np.random.default_rng(load.seed))
    return [arm.requests[item] for item in drawn.tolist()]


def next_plan(
    load: Load, arm: LoadArm, done: Sequence[pl.DataFrame], *, trace: FloatArray, highest: float = math.inf
) -> LoadPlan | None:
    """Return what is sent next; None after a rate that was too much or told nothing, and after the last declared one.

    Args:
        load: Names the rates and the limits.
        arm: What the server can be asked.
        done: LOAD_REQUESTS of the rates that were run, without judgement.
        trace: Seconds of the log's arrivals.
        highest: No higher rate is run, whatever is declared.
    """
    seconds = load.duration.total_seconds()
    figures = [figures_of(judged(rows, load.slo), load.slo, seconds=seconds) for rows in done]
    rate = next_rate(load, [each.rate for each in figures])
    if rate is None or rate > highest or not may_go_on(figures):
        return None
    return planned(load, arm, rate, trace=trace)


def next_rate(load: Load, done: Sequence[float]) -> float | None:
    """Return the rate after those that were run; None where the migration file allows no further one."""
    if load.rates == "auto":
        rate = done[-1] * AUTO_FACTOR if done else FIRST_AUTO_RATE
        return rate if rate <= load.max_rate else None
    return next((rate for rate in load.rates if not done or rate > done[-1]), None)


def logged_calls(calls: pl.DataFrame, legacy: Legacy) -> FloatArray:
    """Return when the workload's calls came, in seconds since the first one, ascending.

    Args:
        calls: What CALLS_SQL selects.
        legacy: Names the model and the applications.
    """
    models = of_model(legacy).fill_null(value=False) | pl.col("model").is_null()
    times = calls.filter(models & of_applications(legacy))["ts"].sort().dt.epoch("us").to_numpy()
    since_first: FloatArray = (times - times[:1]) / 1e6
    return since_first


def _server(
    load: Load, *, model: str, url: str | None, api_key_env: str | None, params: dict[str, object]
) -> EndpointTarget:
    return EndpointTarget.model_validate(
        {
            "engine": "endpoint",
            "model": model,
            "url": url,
            "api_key_env": api_key_env,
            "params": params,
            "timeout": load.timeout,
            "max_attempts": 1,
        }
    )
