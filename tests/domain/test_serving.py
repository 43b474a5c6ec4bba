"""What serving costs a day: declared, measured by a load benchmark, or unknown; hand-computed, and never paid twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.capacity import Demand
from anven_pipelines.domain.cost import CostModel, cost_of
from anven_pipelines.domain.load import Saturation
from anven_pipelines.domain.pricing import PAID_BY_THE_DAY
from anven_pipelines.domain.serving import Benchmark, Serving, self_served, serving_of, usd
from anven_pipelines.domain.workload import declared_digest
from anven_pipelines.spec import Migration
from tests.domain import test_cost as costs

DIGEST = "0123456789ab" + 52 * "c"
DEMAND = Demand(calls=1_000, mean_rate=5.0, peak_rate=21.0)
UNTIMED = Demand(calls=1_000, mean_rate=None, peak_rate=None)
ENDPOINT = {"engine": "endpoint", "model": "m", "url": "http://127.0.0.1:1/v1"}
NANO = {"engine": "nano", "model": "anven-nano"}
FREE = costs.price(0.0, source="own GPUs")


def migration(
    *, target: dict[str, Any] = ENDPOINT, cost: dict[str, float] | None = None, load: Any = None, legacy: Any = None
) -> Migration:
    sections = {} if load is None else {"load": {"slo": {"ttft_ms": 500}} | load}
    return Migration.model_validate(
        {
            "workload": "support",
            "legacy": {"model": "gpt-4o", "logs": "*.jsonl", "price": legacy},
            "target": target,
            "grading": [{"kind": "number"}],
            "cost": cost or {},
            **sections,
        }
    )


def bench(
    within: float | None = 8.0, beyond: float | None = None, *, stale: str | None = None, demand: Demand = DEMAND
) -> Benchmark:
    status: Any = "unmeasured" if within is None and beyond is None else "below" if within is None else "found"
    found = Saturation(status=status, sustained_rate=within, beyond_rate=beyond, goodput=within, reason="as it went")
    return Benchmark(DIGEST, stale, found, demand)


def serving(spec: Migration, benchmark: Benchmark | None, *, by_the_call: bool = False) -> Serving:
    return serving_of(spec, benchmark, paid_by_the_call=by_the_call)


PRICED = {"replica_usd_per_hour": 2.5}


@pytest.mark.parametrize(
    ("load", "benchmark", "replicas", "usd", "least"),
    [
        # 21/s at 8/s each take 3 replicas (2.6), each 60 USD a day; as no rate was too much, one may do.
        (PRICED, bench(8.0), 3, 180.0, 60.0),
        # Where 12/s was too much, 2 may do (1.75).
        (PRICED, bench(8.0, 12.0), 3, 180.0, 120.0),
        (PRICED, bench(8.0, 10.0), 3, 180.0, 180.0),
        # Two that were measured together bore 16/s, so 8/s each; both together were too slow at 24/s.
        (PRICED | {"replicas": 2}, bench(16.0, 24.0), 3, 180.0, 120.0),
        (PRICED, bench(21.0, 22.0), 1, 60.0, 60.0),
        (PRICED, bench(64.0), 1, 60.0, 60.0),
        ({"replica_usd_per_hour": 0.5}, bench(1.0, 2.0), 21, 252.0, 132.0),
    ],
)
def test_the_replicas_for_the_peak_run_all_day(
    load: dict[str, Any], benchmark: Benchmark, replicas: int, usd: float, least: float
) -> None:
    found = serving(migration(load=load), benchmark)
    assert (found.source, found.replicas, found.benchmark) == ("measured", replicas, DIGEST)
    assert found.usd_per_day == pytest.approx(usd)
    assert found.least_usd_per_day == pytest.approx(least)
    noun = "replica" if replicas == 1 else "replicas"
    assert f"load_benchmark 0123456789ab finds {replicas} {noun} for the busiest minute of 21/s" in found.reason
    assert f"x 24 h = {usd:g} USD" in found.reason


@pytest.mark.parametrize(
    ("benchmark", "reason"),
    [
        (
            bench(stale="golden_dataset is another"),
            "0123456789ab is stale and tells no cost: golden_dataset is another",
        ),
        (
            bench(None),
            "0123456789ab found no rate that keeps the service level; mend that and run it again: as it went",
        ),
        (bench(None, 1.0), "found no rate that keeps the service level"),
        (bench(demand=UNTIMED), "the log has no busiest minute"),
    ],
)
def test_what_a_benchmark_could_not_tell_is_unmeasured_and_what_is_declared_wins(
    benchmark: Benchmark, reason: str
) -> None:
    found = serving(migration(load=PRICED), benchmark)
    assert (found.source, found.usd_per_day, found.least_usd_per_day) == ("unmeasured", None, None)
    assert reason in found.reason
    assert "declare what serving costs in cost.target_usd_per_day" in found.reason
    declared = serving(migration(load=PRICED, cost={"target_usd_per_day": 40.0}), benchmark)
    assert (declared.source, declared.usd_per_day, declared.least_usd_per_day) == ("declared", 40.0, 40.0)
    assert reason in declared.reason


@pytest.mark.parametrize("usd", [0.0, 40.0])
def test_a_declared_cost_wins_and_says_what_the_benchmark_would_have_said(usd: float) -> None:
    found = serving(migration(load=PRICED, cost={"target_usd_per_day": usd}), bench(8.0))
    assert (found.source, found.usd_per_day, found.least_usd_per_day) == ("declared", usd, usd)
    assert found.reason.startswith("cost.target_usd_per_day of the migration file; load_benchmark 0123456789ab finds 3")
    assert "3 x 2.5 USD x 24 h = 180 USD" in found.reason


@pytest.mark.parametrize(
    ("load", "benchmark", "reason"),
    [
        (None, None, "there is no section load"),
        (None, bench(), "there is no section load"),
        ({}, None, "load.replica_usd_per_hour is not declared"),
        ({}, bench(8.0), "load.replica_usd_per_hour is not declared; load_benchmark 0123456789ab finds 3 replicas"),
        ({}, bench(None), "load.replica_usd_per_hour is not declared; load_benchmark 0123456789ab found no rate"),
    ],
)
def test_nothing_is_counted_where_nothing_was_asked_to_tell_it(
    load: dict[str, Any] | None, benchmark: Benchmark | None, reason: str
) -> None:
    found = serving(migration(load=load), benchmark)
    assert (found.source, found.usd_per_day) == ("not counted", 0.0)
    assert reason in found.reason


def test_what_is_paid_by_the_call_is_not_paid_by_the_day_again() -> None:
    found = serving(migration(load=PRICED), bench(8.0), by_the_call=True)
    assert (found.source, found.usd_per_day) == ("paid by the call", 0.0)
    assert "to which no server is added; load_benchmark 0123456789ab finds 3 replicas" in found.reason
    assert serving(migration(load=PRICED), bench(stale="old"), by_the_call=True).usd_per_day == 0.0


@pytest.mark.parametrize(
    ("spec", "own"),
    [
        (migration(), False),
        (migration(load={}), False),
        (migration(cost={"target_usd_per_day": 5.0}), False),
        (migration(load=PRICED), True),
        (migration(target=NANO), True),
    ],
)
def test_whose_servers_they_are_stands_in_the_migration_file(spec: Migration, *, own: bool) -> None:
    assert self_served(spec) is own


def model(spec: Migration, benchmark: Benchmark | None = None, **target: Any) -> CostModel:
    """Price 1,000 calls a day that save 0.01 USD each before what the target costs."""
    return cost_of(
        costs.answers(),
        costs.answers(**target),
        spec,
        costs.TRAFFIC,
        golden=costs.golden(),
        legacy_price=None,
        benchmark=benchmark,
    )


def owned(usd_per_hour: float = 0.1, *, target: dict[str, Any] = ENDPOINT, **cost: float) -> Migration:
    """Declare legacy calls of 0.01 USD and a target on own servers."""
    return migration(target=target, load={"replica_usd_per_hour": usd_per_hour}, cost=cost, legacy=costs.price(5.0))


def test_a_self_served_call_costs_nothing_and_a_day_costs_its_servers() -> None:
    # 3 replicas x 0.1 USD x 24 h = 7.2 USD of the 10 USD that 1,000 calls save.
    found = model(owned(one_off_usd=28.0), bench(8.0, 10.0))
    assert found.status == "met"
    assert found.target.obtained == {PAID_BY_THE_DAY: costs.ITEMS}
    assert found.target.mean_usd == 0.0
    assert found.saving_per_request is not None
    assert found.saving_per_day is not None
    assert found.net_saving_per_request is not None
    assert found.saving_per_request.estimate == pytest.approx(0.010)
    assert found.saving_per_day.estimate == pytest.approx(2.8)
    assert found.net_saving_per_request.estimate == pytest.approx(0.0028)
    assert found.payback.days == pytest.approx(10.0)
    assert "after 7.2 USD a day for serving (measured: load_benchmark 0123456789ab finds 3 replicas" in found.reason
    written = found.to_json()
    assert written["target_usd_per_day"] == pytest.approx(7.2)
    assert written["serving"]["benchmark"] == DIGEST
    assert written["serving"]["source"] == "measured"


@pytest.mark.parametrize(
    ("usd_per_hour", "benchmark", "status", "bounds"),
    [
        (0.1, bench(8.0, 10.0), "met", (2.8, 2.8)),
        (0.2, bench(8.0, 10.0), "not met", (-4.4, -4.4)),
        # Three take 14.4 USD; with no rate too much, one of 4.8 USD may do: harm is not proven.
        (0.2, bench(8.0), "undecided", (-4.4, 5.2)),
        (0.2, bench(8.0, 12.0), "undecided", (-4.4, 0.4)),
        (0.5, bench(8.0), "not met", (-26.0, -2.0)),
    ],
)
def test_the_saving_is_proven_at_the_proven_rate_and_harm_at_the_rate_that_is_too_much(
    usd_per_hour: float, benchmark: Benchmark, status: str, bounds: tuple[float, float]
) -> None:
    found = model(owned(usd_per_hour), benchmark)
    assert found.status == status
    assert found.saving_per_day is not None
    assert (found.saving_per_day.lower, found.saving_per_day.upper) == pytest.approx(bounds)
    assert found.saving_per_day.estimate == pytest.approx(bounds[0])


@pytest.mark.parametrize("benchmark", [bench(stale="old"), bench(None), bench(demand=UNTIMED)])
@pytest.mark.parametrize("target", [ENDPOINT, ENDPOINT | {"price": FREE}])
def test_a_benchmark_that_tells_nothing_leaves_the_cost_unmeasured(
    target: dict[str, Any], benchmark: Benchmark
) -> None:
    found = model(owned(target=target), benchmark)
    assert found.status == "unmeasured"
    assert found.reason.startswith("what serving the target costs is not measured: load_benchmark 0123456789ab")
    assert (found.saving_per_day, found.net_saving_per_request, found.payback.days) == (None, None, None)
    assert found.to_json()["target_usd_per_day"] is None
    assert model(owned(target=target, target_usd_per_day=4.0), benchmark).status == "met"


@pytest.mark.parametrize(
    ("spec", "benchmark", "target_usd", "saving_per_day"),
    [
        # A price of zero and no price mean the same where serving is paid by the day.
        (owned(target=ENDPOINT | {"price": FREE}), bench(8.0), 0.0, 2.8),
        (owned(), bench(8.0), 0.0, 2.8),
        # A price above zero pays for the servers: 0.002 USD a call, and no replica.
        (owned(target=ENDPOINT | {"price": costs.price(1.0)}), bench(8.0), 0.002, 8.0),
        # Both are paid where both are declared.
        (owned(target=ENDPOINT | {"price": costs.price(1.0)}, target_usd_per_day=3.0), bench(8.0), 0.002, 5.0),
        (owned(target_usd_per_day=3.0), None, 0.0, 7.0),
        (owned(target=NANO, target_usd_per_day=3.0), None, 0.0, 7.0),
    ],
)
def test_tokens_and_servers_are_each_paid_once(
    spec: Migration, benchmark: Benchmark | None, target_usd: float, saving_per_day: float
) -> None:
    found = model(spec, benchmark)
    assert found.target.mean_usd == pytest.approx(target_usd)
    assert found.saving_per_day is not None
    assert found.saving_per_day.estimate == pytest.approx(saving_per_day)
    assert found.status == "met"


@pytest.mark.parametrize(
    ("logged", "source", "measured"),
    [
        (0.002, "paid by the call", costs.ITEMS),
        ([0.002] + [None] * 39, "paid by the call", 1),
        (0.0, "measured", costs.ITEMS),
        ([0.0] + [None] * 39, "measured", costs.ITEMS),
        (float("nan"), "measured", costs.ITEMS),
    ],
)
def test_a_logged_cost_above_zero_is_a_price_too(logged: Any, source: str, measured: int) -> None:
    found = model(owned(), bench(8.0), cost_usd=logged)
    assert (found.serving.source, found.target.measured) == (source, measured)


@pytest.mark.parametrize(
    ("spec", "benchmark"),
    [
        (owned(target_usd_per_day=0.0), bench(8.0)),
        (migration(legacy=costs.price(5.0), cost={"target_usd_per_day": 3.0}), None),
        (migration(legacy=costs.price(5.0), target=NANO), None),
    ],
)
def test_a_target_without_a_price_is_free_nowhere(spec: Migration, benchmark: Benchmark | None) -> None:
    found = model(spec, benchmark)
    assert (found.status, found.target.measured) == ("unmeasured", 0)
    assert "declare load.replica_usd_per_hour and materialise load_benchmark" in found.reason


@pytest.mark.parametrize("target", [ENDPOINT, ENDPOINT | {"price": FREE}])
def test_a_replica_with_a_price_and_no_benchmark_is_unmeasured_whatever_a_call_costs(target: dict[str, Any]) -> None:
    found = model(owned(target=target))
    assert (found.status, found.serving.source, found.serving.usd_per_day) == ("unmeasured", "unmeasured", None)
    assert "no load_benchmark was made; `anven load` makes one" in found.reason


@pytest.mark.parametrize(
    ("amount", "said"),
    [(0.0, "0 USD"), (0.001234, "0.001234 USD"), (-4.4, "-4.4 USD"), (9999.4, "9999 USD"), (24_000.0, "24,000 USD")],
)
def test_an_amount_is_told_without_an_exponent(amount: float, said: str) -> None:
    assert usd(amount) == said


@settings(max_examples=80, deadline=None)
@given(
    st.floats(0.5, 64.0),
    st.one_of(st.none(), st.floats(1.01, 4.0)),
    st.floats(0.01, 5.0),
    st.integers(1, 4),
    st.floats(0.1, 200.0),
)
def test_the_least_is_never_more_than_what_is_taken_off_nor_nothing(
    within: float, factor: float | None, usd_per_hour: float, together: int, peak: float
) -> None:
    demand = Demand(calls=1_000, mean_rate=peak, peak_rate=peak)
    beyond = None if factor is None else within * factor
    spec = migration(load={"replica_usd_per_hour": usd_per_hour, "replicas": together})
    found = serving(spec, bench(within, beyond, demand=demand))
    assert found.usd_per_day is not None
    assert found.least_usd_per_day is not None
    assert 0 < found.least_usd_per_day <= found.usd_per_day


def test_prices_may_change_without_measuring_again_and_nothing_else_may() -> None:
    declared = migration(load=PRICED, legacy=costs.price())
    same = [
        migration(load={"replica_usd_per_hour": 9.0}, legacy=costs.price()),
        migration(load=PRICED),
        migration(load=PRICED, legacy=costs.price(), target=ENDPOINT | {"price": costs.price()}),
    ]
    other = [
        migration(load=PRICED | {"rates": [3]}, legacy=costs.price()),
        migration(load=PRICED | {"replicas": 2}, legacy=costs.price()),
        migration(load=PRICED, legacy=costs.price(), target=ENDPOINT | {"model": "other"}),
        migration(legacy=costs.price()),
    ]
    before = declared_digest(declared, "load_benchmark")
    assert {declared_digest(each, "load_benchmark") for each in same} == {before}
    assert before not in {declared_digest(each, "load_benchmark") for each in other}
    # The cost model takes both, so it is made again after each of them.
    assert declared_digest(declared, "cost_model") not in {declared_digest(each, "cost_model") for each in same + other}
