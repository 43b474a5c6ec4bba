"""Cost is judged on the interval of the saving, and what was not measured is never free."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.cost import COST, CostModel, cost_of
from anven_pipelines.domain.golden import GOLDEN
from anven_pipelines.domain.inference import ANSWERS
from anven_pipelines.domain.inventory import Traffic
from anven_pipelines.spec import Migration
from anven_pipelines.spec_values import Price

ITEMS = 40
START = datetime(2026, 11, 1, tzinfo=UTC)
TRAFFIC = Traffic(answered=10_000, first_ts=START, last_ts=START + timedelta(days=10))
UNTIMED = Traffic(answered=0, first_ts=None, last_ts=None)
LISTED = Price(input_usd_per_million=10.0, output_usd_per_million=20.0, source="public list")
ORDER = {"not met": 0, "undecided": 1, "met": 2}


def price(usd: float = 1.0, *, cached: float | None = None, source: str = "invoice 2026-10") -> dict[str, Any]:
    return {
        "input_usd_per_million": usd,
        "output_usd_per_million": usd,
        "cached_usd_per_million": cached,
        "source": source,
    }


def migration(
    *, legacy: Any = None, target: Any = None, level: float = 0.05, days: float = 30.0, **cost: float
) -> Migration:
    return Migration.model_validate(
        {
            "workload": "support",
            "legacy": {"model": "gpt-4o", "logs": "*.jsonl", "price": legacy},
            "target": {"engine": "recorded", "model": "ANVEN-3b-instruct", "answers": "a.jsonl", "price": target},
            "grading": [{"kind": "number"}],
            "sign_off": {"payback_days": days, "level": level},
            "cost": cost,
        }
    )


def answers(count: int = ITEMS, **columns: Any) -> pl.DataFrame:
    """Answers of 1,000 + 1,000 tokens, unless `columns` says otherwise."""
    given_or_default = {
        "item_id": [f"i{n:03}" for n in range(count)],
        "status": "answered",
        "input_tokens": 1_000,
        "output_tokens": 1_000,
        "tokens_computed": False,
        **columns,
    }
    named = {name: value if isinstance(value, list) else [value] * count for name, value in given_or_default.items()}
    return ANSWERS.conform(pl.DataFrame(named, strict=False))


def golden(count: int = ITEMS, conversations: int | None = None) -> pl.DataFrame:
    ids = [f"i{n:03}" for n in range(count)]
    clusters = ids if conversations is None else [f"k{n % conversations}" for n in range(count)]
    return of_traffic(ids, clusters)


def of_traffic(ids: list[str], clusters: list[str]) -> pl.DataFrame:
    stands_for = {"weight": [1.0] * len(ids), "role": ["traffic"] * len(ids)}
    return GOLDEN.conform(pl.DataFrame({"id": ids, "cluster": clusters} | stands_for))


def model_of(
    legacy: pl.DataFrame | None = None,
    target: pl.DataFrame | None = None,
    spec: Migration | None = None,
    *,
    traffic: Traffic = TRAFFIC,
    items: pl.DataFrame | None = None,
    legacy_price: Price | None = None,
) -> CostModel:
    return cost_of(
        answers() if legacy is None else legacy,
        answers() if target is None else target,
        spec or migration(legacy=price(5.0), target=price(1.0)),
        traffic,
        golden=golden() if items is None else items,
        legacy_price=legacy_price,
    )


def test_a_cheaper_target_meets_the_criterion() -> None:
    model = model_of(spec=migration(legacy=price(5.0), target=price(1.0), one_off_usd=160.0, target_usd_per_day=0.0))
    assert (model.status, model.paired) == ("met", ITEMS)
    assert model.legacy.mean_usd == pytest.approx(0.010)
    assert model.target.mean_usd == pytest.approx(0.002)
    assert model.saving_per_request is not None
    assert model.saving_per_request.estimate == pytest.approx(0.008)
    assert model.saving_per_request.level == pytest.approx(0.9)
    assert model.calls_per_day == 1_000.0
    assert model.saving_per_day is not None
    assert model.saving_per_day.estimate == pytest.approx(8.0)
    assert model.payback.days == pytest.approx(20.0)
    assert model.reason.endswith("pays back in 20 days at worst")


@pytest.mark.parametrize(
    ("cost", "status", "reason"),
    [
        ({"one_off_usd": 239.0}, "met", "pays back in 29.9 days at worst"),
        ({"one_off_usd": 241.0}, "not met", "pays back in 30.1 days at best"),
        ({"one_off_usd": 1.0, "target_usd_per_day": 7.9}, "met", "pays back in 10 days at worst"),
        ({"one_off_usd": 1.0, "target_usd_per_day": 9.0}, "not met", "never pays back"),
        ({"target_usd_per_day": 7.9}, "met", "pays back in 0 days at worst"),
        ({"target_usd_per_day": 8.1}, "not met", "never pays back"),
        ({}, "met", "there is no one-off cost to earn back"),
    ],
)
def test_the_payback_is_judged_after_fixed_cost(cost: dict[str, float], status: str, reason: str) -> None:
    model = model_of(spec=migration(legacy=price(5.0), target=price(1.0), **cost))
    assert model.status == status
    assert reason in model.reason


def test_equal_cost_without_anything_to_earn_back_is_neutral_and_met() -> None:
    model = model_of(spec=migration(legacy=price(1.0), target=price(1.0)))
    assert (model.status, model.payback.days) == ("met", 0.0)


def test_a_dearer_target_does_not_meet_it() -> None:
    model = model_of(spec=migration(legacy=price(1.0), target=price(1.1)))
    assert model.status == "not met"
    assert "costs more than before" in model.reason
    assert model.payback.days is None


def test_a_saving_that_may_be_chance_is_undecided() -> None:
    tokens = np.random.default_rng(1).lognormal(7, 1.5, size=ITEMS).astype(int).tolist()
    model = model_of(
        answers(output_tokens=tokens), answers(output_tokens=tokens[::-1]), migration(legacy=price(), target=price())
    )
    assert model.status == "undecided"
    assert "may cost more than before" in model.reason
    owing = migration(legacy=price(), target=price(), one_off_usd=1.0)
    assert model_of(answers(output_tokens=tokens), answers(output_tokens=tokens[::-1]), owing).status == "undecided"


def test_few_conversations_make_the_saving_less_certain() -> None:
    tokens = np.repeat(np.random.default_rng(2).integers(500, 5_000, size=10), 4).tolist()
    spread = answers(output_tokens=tokens)
    apart, together = (
        model_of(spread, items=of_traffic(spread["item_id"].to_list(), clusters))
        for clusters in (spread["item_id"].to_list(), [f"k{n // 4}" for n in range(ITEMS)])
    )
    assert apart.saving_per_request is not None
    assert together.saving_per_request is not None
    assert together.saving_per_request.lower < apart.saving_per_request.lower


@pytest.mark.parametrize(("items", "conversations"), [(9, None), (ITEMS, 9)])
def test_too_few_items_or_conversations_are_undecided(items: int, conversations: int | None) -> None:
    model = model_of(answers(items), answers(items), items=golden(items, conversations))
    assert model.status == "undecided"
    assert "too few for an interval" in model.reason
    assert model.saving_per_request is None


@pytest.mark.parametrize(
    ("legacy", "target", "spec", "found"),
    [
        ({}, {}, migration(), "neither a price nor a logged cost 40"),
        ({}, {}, migration(legacy=price()), "target: not measured: neither a price nor a logged cost 40"),
        (
            {"input_tokens": None},
            {},
            migration(legacy=price(), target=price()),
            "legacy: not measured: tokens not measured 40",
        ),
        (
            {},
            {"output_tokens": None},
            migration(legacy=price(), target=price()),
            "target: not measured: tokens not measured 40",
        ),
        ({}, {"status": "failed"}, migration(legacy=price(), target=price()), "target: no answer 40"),
        ({"cost_usd": float("nan")}, {}, migration(target=price()), "legacy: not measured"),
        ({"cost_usd": -1.0}, {}, migration(target=price()), "legacy: not measured"),
        ({"cached_tokens": 1_001}, {}, migration(legacy=price(cached=0.5), target=price()), "tokens not measured 40"),
    ],
)
def test_what_was_not_measured_is_unmeasured_and_never_zero(
    legacy: dict[str, Any], target: dict[str, Any], spec: Migration, found: str
) -> None:
    model = model_of(answers(**legacy), answers(**target), spec)
    assert model.status == "unmeasured"
    assert found in model.reason
    assert model.paired == 0
    assert model.items["saving_usd"].null_count() == ITEMS
    assert (model.saving_per_request, model.saving_per_day, model.payback.days) == (None, None, None)
    assert None in (model.legacy.mean_usd, model.target.mean_usd)


@pytest.mark.parametrize(("missing", "status"), [(2, "met"), (3, "unmeasured")])
def test_at_least_95_of_100_items_need_a_cost_in_both_arms(missing: int, status: str) -> None:
    failed = ["failed"] * missing + ["answered"] * (ITEMS - missing)
    model = model_of(target=answers(status=failed))
    assert model.status == status
    assert model.target.measured == model.paired == ITEMS - missing
    assert model.target.obtained["no answer"] == missing


def test_a_golden_item_without_a_row_of_answers_is_counted_as_unanswered() -> None:
    model = model_of(target=answers(30))
    assert (model.status, model.items.height, model.target.obtained["no answer"]) == ("unmeasured", ITEMS, 10)


def test_an_empty_golden_dataset_is_unmeasured() -> None:
    model = model_of(answers(0), answers(0), items=golden(0))
    assert model.status == "unmeasured"
    assert (model.legacy.mean_usd, model.legacy.input_tokens) == (None, None)


def test_without_timestamps_only_the_sign_of_the_saving_can_be_judged() -> None:
    assert model_of(traffic=UNTIMED).status == "met"
    for owed in ({"one_off_usd": 1.0}, {"target_usd_per_day": 1.0}):
        model = model_of(spec=migration(legacy=price(5.0), target=price(), **owed), traffic=UNTIMED)
        assert (model.status, model.saving_per_day, model.payback.days) == ("unmeasured", None, None)
        assert "no timestamps" in model.reason


@pytest.mark.parametrize(
    ("declared", "logged", "listed", "cost", "obtained"),
    [
        (price(1.0), 0.5, LISTED, 0.002, "logged tokens x invoice 2026-10"),
        (None, 0.5, LISTED, 0.5, "logged cost"),
        (None, 0.0, LISTED, 0.0, "logged cost"),
        (None, None, LISTED, 0.03, "logged tokens x public list"),
    ],
)
def test_a_declared_price_goes_before_a_logged_cost_and_that_before_a_list(
    declared: Any, logged: float | None, listed: Price, cost: float, obtained: str
) -> None:
    model = model_of(answers(cost_usd=logged), spec=migration(legacy=declared, target=price()), legacy_price=listed)
    assert model.legacy.mean_usd == pytest.approx(cost)
    assert model.legacy.obtained == {obtained: ITEMS}


def test_tokens_without_a_declared_price_s_counts_fall_back_to_the_logged_cost() -> None:
    tokens = [1_000] * 39 + [None]
    model = model_of(answers(input_tokens=tokens, cost_usd=0.5), spec=migration(legacy=price(), target=price()))
    assert model.legacy.obtained == {"logged tokens x invoice 2026-10": 39, "logged cost": 1}


def test_tokens_that_we_counted_are_said_to_be_so() -> None:
    model = model_of(target=answers(tokens_computed=True))
    assert model.target.obtained == {"tokens counted by us x invoice 2026-10": ITEMS}


@pytest.mark.parametrize(("cached", "expected"), [(None, 0.002), (0, 0.002), (1_000, 0.0011), (400, 0.00164)])
def test_cached_tokens_have_their_own_price(cached: int | None, expected: float) -> None:
    model = model_of(answers(cached_tokens=cached), spec=migration(legacy=price(1.0, cached=0.1), target=price()))
    assert model.legacy.mean_usd == pytest.approx(expected)
    assert model.legacy.cached_tokens == (None if cached is None else cached * ITEMS)


def test_free_cached_tokens_cost_nothing() -> None:
    model = model_of(answers(cached_tokens=1_000), spec=migration(legacy=price(1.0, cached=0.0), target=price()))
    assert model.legacy.mean_usd == pytest.approx(0.001)


def test_a_declared_price_of_zero_needs_no_tokens_but_an_answer() -> None:
    own_gpus = migration(legacy=price(5.0), target=price(0.0, source="own GPUs"), target_usd_per_day=4.0)
    statuses = ["failed"] + ["answered"] * (ITEMS - 1)
    model = model_of(target=answers(input_tokens=None, output_tokens=None, status=statuses), spec=own_gpus)
    assert (model.target.mean_usd, model.target.measured, model.status) == (0.0, ITEMS - 1, "met")


def test_the_item_table_shows_every_item_with_its_sources() -> None:
    items = model_of().items
    assert items.schema == COST.schema
    assert items["item_id"].to_list() == sorted(golden()["id"])
    assert items["saving_usd"].to_list() == pytest.approx([0.008] * ITEMS)


def test_answers_in_another_order_give_the_same_bytes() -> None:
    tokens = np.random.default_rng(3).integers(1, 5_000, size=ITEMS).tolist()
    legacy, target = answers(output_tokens=tokens), answers(input_tokens=tokens)
    first = model_of(legacy, target)
    second = model_of(legacy.reverse(), target.sample(fraction=1, shuffle=True, seed=1), items=golden().reverse())
    assert canonical_json(first.to_json()) == canonical_json(second.to_json())


@pytest.mark.parametrize(
    "model",
    [
        model_of(),
        model_of(spec=migration()),
        model_of(spec=migration(legacy=price(), target=price(9.0), one_off_usd=5.0)),
    ],
    ids=["met", "unmeasured", "never pays back"],
)
def test_the_model_is_plain_json(model: CostModel) -> None:
    written = model.to_json()
    assert json.loads(canonical_json(written)) == written
    assert (written["status"], written["reason"]) == (model.status, model.reason)
    assert written["payback"]["days"] == model.payback.days


tokens = st.lists(st.integers(1, 10_000), min_size=12, max_size=40)


@settings(max_examples=60, deadline=None)
@given(tokens, st.floats(0.0, 50.0), st.floats(0.0, 20.0), st.floats(0.0, 200.0), st.floats(0.0, 20.0), st.data())
def test_making_anything_dearer_never_improves_the_status(
    counts: list[int], target_usd: float, more_usd: float, one_off: float, fixed: float, data: st.DataObject
) -> None:
    size = len(counts)
    legacy = answers(size, input_tokens=counts)
    target = answers(size, output_tokens=data.draw(st.permutations(counts)))

    def status(usd: float, one_off_usd: float, target_usd_per_day: float) -> int:
        spec = migration(
            legacy=price(10.0), target=price(usd), one_off_usd=one_off_usd, target_usd_per_day=target_usd_per_day
        )
        return ORDER[model_of(legacy, target, spec, items=golden(size)).status]

    before = status(target_usd, one_off, fixed)
    assert status(target_usd, one_off + more_usd, fixed) <= before
    assert status(target_usd, one_off, fixed + more_usd) <= before


@settings(max_examples=60, deadline=None)
@given(tokens, st.floats(0.01, 50.0), st.floats(0.01, 20.0))
def test_a_dearer_token_makes_the_arm_dearer_and_the_saving_smaller(
    counts: list[int], target_usd: float, more_usd: float
) -> None:
    size = len(counts)
    cheap, dear = (
        model_of(
            answers(size),
            answers(size, input_tokens=counts),
            migration(legacy=price(10.0), target=price(usd)),
            items=golden(size),
        )
        for usd in (target_usd, target_usd + more_usd)
    )
    assert cheap.target.mean_usd is not None
    assert dear.target.mean_usd is not None
    assert dear.target.mean_usd > cheap.target.mean_usd
    assert cheap.saving_per_request is not None
    assert dear.saving_per_request is not None
    assert dear.saving_per_request.estimate < cheap.saving_per_request.estimate
    assert dear.legacy == cheap.legacy


def test_a_call_costs_what_the_traffic_costs_and_what_a_quota_added_counts_for_none() -> None:
    ids = [f"item-{at:04d}" for at in range(40)]
    weights = [9.0 if at < 20 else 1.0 for at in range(40)]
    roles = ["traffic"] * 38 + ["edge_case"] * 2
    items = of_traffic(ids, ids).with_columns(weight=pl.Series(weights), role=pl.Series(roles))
    priced = answers(40).with_columns(item_id=pl.Series(ids), cost_usd=pl.Series([2.0] * 20 + [1.0] * 18 + [99.0] * 2))
    model = model_of(priced, priced.with_columns(cost_usd=pl.lit(0.5)), migration(), items=items)
    assert model.items.height == 38
    assert model.legacy.mean_usd == pytest.approx((9 * 20 * 2 + 18) / (9 * 20 + 18))
    assert model.saving_per_request is not None
    assert model.saving_per_request.estimate == pytest.approx((9 * 20 * 2 + 18) / (9 * 20 + 18) - 0.5)
