"""What is sent under load: only open traffic, in its own proportions, when it is due, at declared rates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.load_plan import (
    load_arms,
    logged_calls,
    mixed,
    next_plan,
    next_rate,
    planned,
    poisson_arrivals,
    replayed_arrivals,
    target_server,
    warm_up,
)
from anven_pipelines.domain.prompts import AdaptedPrompt, carry_over, declared_prompt
from anven_pipelines.spec_load import Load
from anven_pipelines.spec_prompt import PromptAdaptation
from tests.builders import a_migration, golden_of
from tests.load_rows import requests_at

SLO = {"ttft_ms": 500}
SERVED = {"engine": "endpoint", "model": "m", "url": "http://target/v1", "api_key_env": "TARGET_KEY"}
OPEN = ["open"] * 30
TRACE = np.cumsum(np.tile([0.1, 0.1, 0.1, 3.7], 50))


def load_of(**changes: Any) -> Load:
    return Load.model_validate({"slo": SLO} | changes)


def arms(items: int = 30, prompt: AdaptedPrompt | None = None, load: Any = None, **columns: Any) -> Any:
    migration = a_migration(target=SERVED, load={"slo": SLO} | (load or {}))
    return load_arms(migration, golden_of(items, **({"split": ["open"] * items} | columns)), prompt or carry_over())


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    runs = [poisson_arrivals(4.0, 50.0, rng=rng(seed)) for seed in range(600)]
    assert {times.size for times in runs} == {200}
    firsts = np.array([(times < 12.5).sum() for times in runs])
    # Of 200 independent moments a quarter falls into the first quarter: mean 50, variance 37.5; over 600 runs their
    # estimates err by 0.25 and 2.2 (one sigma).
    assert firsts.mean() == pytest.approx(50, abs=1.0)
    assert firsts.var(ddof=1) == pytest.approx(37.5, abs=9.0)
    gaps = np.diff(poisson_arrivals(100.0, 200.0, rng=rng()))
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.03)


def test_a_replay_has_the_rate_and_keeps_the_bursts_of_the_log() -> None:
    times = replayed_arrivals(TRACE, 8.0, 25.0, rng=rng())
    assert times.size == 200
    assert times[0] == 0
    assert times[-1] < 25.0
    gaps = np.diff(times)
    long = gaps > gaps.mean()
    assert int(long.sum()) == 50  # of each four gaps one is 3.7 s long, the others 0.1 s
    assert gaps[long] == pytest.approx(37 * gaps[~long][0])


def test_a_log_that_is_too_short_is_replayed_from_its_start_again() -> None:
    times = replayed_arrivals(TRACE, 40.0, 25.0, rng=rng())
    assert times.size == 1000
    assert (np.diff(times) >= 0).all()


def test_a_log_without_times_cannot_be_replayed() -> None:
    with pytest.raises(InvalidInput, match=r"load.arrivals is trace and the log has 3 calls with a time; at least 20"):
        replayed_arrivals(np.arange(3.0), 1.0, 10.0, rng=rng())


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=40),
    st.integers(1, 300),
    st.integers(0, 2**32),
)
def test_an_item_is_drawn_as_often_as_its_weight_says(weights: list[float], count: int, seed: int) -> None:
    drawn = mixed(np.array(weights), count, rng=rng(seed))
    assert drawn.size == count
    expected = np.array(weights) / np.sum(weights) * count
    counted = np.bincount(drawn, minlength=len(weights))
    assert (counted >= np.floor(expected - 1e-6)).all()
    assert (counted <= np.ceil(expected + 1e-6)).all()


def test_no_sealed_item_and_none_that_stands_for_no_traffic_is_ever_sent() -> None:
    splits = ["open", "sealed", "open"] * 10
    (arm,) = arms(split=splits, weight=[0.0 if at % 5 == 0 else 2.0 for at in range(30)])
    sendable = {f"item-{at:05d}" for at in range(30) if at % 3 != 1 and at % 5 != 0}
    assert {request.item_id for request in arm.requests} == sendable
    plan = planned(load_of(), arm, 50.0, trace=np.empty(0))
    assert {due.request.item_id for due in plan.due} == sendable


def test_both_arms_are_asked_the_same_items_at_the_same_moments_each_in_its_own_words() -> None:
    rewrite = {"user": "question (?<n>\\d+)", "messages": [{"role": "user", "content": "Q{n}"}]}
    prompt = declared_prompt(PromptAdaptation.model_validate({"rewrites": [rewrite]}))
    load = {"legacy": {"url": "http://legacy/v1", "api_key_env": "LEGACY_KEY"}, "timeout": "7s"}
    target, legacy = arms(prompt=prompt, load=load)
    plans = [planned(load_of(), arm, 5.0, trace=np.empty(0)) for arm in (target, legacy)]
    assert [(due.at_s, due.request.item_id) for due in plans[0].due] == [
        (due.at_s, due.request.item_id) for due in plans[1].due
    ]
    assert target.requests[3].messages == [{"role": "user", "content": "Q3"}]
    assert legacy.requests[3].messages == [{"role": "user", "content": "question 3"}]
    assert (legacy.server.model, legacy.server.url, legacy.server.api_key_env) == (
        "legacy-model",
        "http://legacy/v1",
        "LEGACY_KEY",
    )
    assert {arm.server.max_attempts for arm in (target, legacy)} == {1}
    assert {arm.server.timeout for arm in (target, legacy)} == {timedelta(seconds=7)}


@pytest.mark.parametrize(
    ("target", "load", "expected"),
    [
        (SERVED, {}, ("http://target/v1", "m", "TARGET_KEY")),
        (SERVED, {"url": "http://target/v1"}, ("http://target/v1", "m", "TARGET_KEY")),
        (SERVED, {"url": "http://other/v1", "model": "n"}, ("http://other/v1", "n", None)),
        (SERVED, {"url": "http://other/v1", "api_key_env": "K"}, ("http://other/v1", "m", "K")),
        ({"engine": "nano", "model": "anven-nano"}, {"url": "http://x/v1"}, ("http://x/v1", "anven-nano", None)),
        ({"engine": "nano", "model": "anven-nano"}, {}, None),
    ],
)
def test_the_server_is_the_declared_one_and_a_key_goes_nowhere_else(
    target: dict[str, Any], load: dict[str, Any], expected: tuple[str, str, str | None] | None
) -> None:
    server = target_server(a_migration(target=target, load={"slo": SLO} | load))
    assert (None if server is None else (server.url, server.model, server.api_key_env)) == expected


def test_nothing_serves_where_no_load_is_declared() -> None:
    migration = a_migration(target=SERVED)
    assert target_server(migration) is None
    assert load_arms(migration, golden_of(3), carry_over()) == []


@pytest.mark.parametrize(
    ("load", "rates"),
    [({"rates": [0.5, 2, 3]}, [0.5, 2, 3]), ({"rates": "auto", "max_rate": 9}, [1, 2, 4, 8]), ({}, [1, 2, 4, 8])],
)
def test_only_declared_rates_are_run(load: dict[str, Any], rates: list[float]) -> None:
    done: list[float] = []
    while (rate := next_rate(load_of(**load), done)) is not None:
        done.append(rate)
    assert done == rates


def test_a_rate_that_was_too_much_is_the_last_one() -> None:
    load, (arm,) = load_of(rates=[10, 20, 40], duration="20s"), arms()
    fine, slow = requests_at(10.0, ttft_ms=[100.0] * 200), requests_at(20.0, ttft_ms=[900.0] * 200)
    follow = [next_plan(load, arm, done, trace=np.empty(0)) for done in ([], [fine], [fine, slow])]
    assert [plan and plan.rate for plan in follow] == [10, 20, None]
    assert next_plan(load, arm, [fine], trace=np.empty(0), highest=10.0) is None


def test_a_seed_decides_everything_and_each_rate_draws_anew() -> None:
    (arm,) = arms()
    load = load_of(arrivals="trace")
    assert planned(load, arm, 4.0, trace=TRACE) == planned(load, arm, 4.0, trace=TRACE)
    assert planned(load, arm, 4.0, trace=TRACE) != planned(load_of(arrivals="trace", seed=1), arm, 4.0, trace=TRACE)
    assert [due.request for due in planned(load, arm, 4.0, trace=TRACE).due[:20]] != [
        due.request for due in planned(load, arm, 8.0, trace=TRACE).due[:20]
    ]
    assert len(warm_up(load_of(warm_up=7), arm)) == 7


def test_the_logs_arrivals_are_those_of_the_workload() -> None:
    start = datetime(2026, 10, 5, tzinfo=UTC)
    rows = [
        ("legacy-model", None, "a", 3.5),
        ("other", None, "a", 1.0),
        (None, None, "a", 2.0),
        ("legacy-model", "p", "b", 9.0),
    ]
    calls = pl.DataFrame(
        [(model, provider, application, start + timedelta(seconds=at)) for model, provider, application, at in rows],
        schema={"model": pl.String, "provider": pl.String, "application": pl.String, "ts": pl.Datetime("us", "UTC")},
        orient="row",
    )
    legacy = a_migration().legacy
    assert logged_calls(calls, legacy).tolist() == [0.0, 1.5, 7.0]
    assert logged_calls(calls, legacy.model_copy(update={"applications": ["b"]})).tolist() == [0.0]
    assert logged_calls(calls.clear(), legacy).size == 0
