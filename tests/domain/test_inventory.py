"""The inventory counts every call once and never shows zero for what was not measured."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.inventory import INVENTORY, Traffic, take_inventory, traffic_of
from anven_pipelines.domain.request_log import REQUEST_LOG
from anven_pipelines.spec import Migration

START = datetime(2026, 11, 1, 12, tzinfo=UTC)
PLACE = {"application": "chat", "endpoint": "/v1/chat/completions", "provider": "openai", "model": "gpt-4o"}
FEATURES = [name for name in INVENTORY.schema if name.startswith("with_")]


def log(*calls: dict[str, Any]) -> pl.DataFrame:
    rows = [{**PLACE, "status": "ok", "messages": '[{"content":"hi","role":"user"}]', **call} for call in calls]
    return REQUEST_LOG.conform(pl.DataFrame(rows, infer_schema_length=None))


def only_row(*calls: dict[str, Any]) -> dict[str, Any]:
    return take_inventory(log(*calls)).row(0, named=True)


def migration(model: str = "gpt-4o", applications: list[str] | None = None) -> Migration:
    return Migration.model_validate(
        {
            "workload": "support",
            "legacy": {"model": model, "logs": "*.jsonl", "applications": applications},
            "target": {"engine": "recorded", "model": "ANVEN-3b-instruct", "answers": "a.jsonl"},
            "grading": [{"kind": "number"}],
        }
    )


def test_a_measured_workload_is_summed_up() -> None:
    calls = [
        {"ts": START + timedelta(hours=n), "latency_ms": 100.0 + n, "ttft_ms": 10.0 + n, "cost_usd": 0.5}
        | {"input_tokens": 100, "output_tokens": 10}
        for n in range(49)
    ]
    row = only_row(*calls)
    assert {name: row[name] for name in PLACE} == PLACE
    assert (row["calls"], row["answered"], row["errors"], row["unanswered"], row["share"]) == (49, 49, 0, 0, 1.0)
    assert (row["first_ts"], row["last_ts"], row["days"]) == (START, START + timedelta(hours=48), 2.0)
    assert row["calls_per_day"] == 24.5
    assert (row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (4_900, 490, 24.5)
    latencies = np.arange(49) + 100.0
    for quantile in (50, 95, 99):
        assert row[f"latency_p{quantile}_ms"] == pytest.approx(np.percentile(latencies, quantile))
        assert row[f"ttft_p{quantile}_ms"] == pytest.approx(np.percentile(latencies - 90, quantile))


def test_what_no_call_measured_is_null_and_says_so() -> None:
    row = only_row({}, {})
    unmeasured = [name for name, value in row.items() if value is None]
    assert unmeasured == [
        "first_ts", "last_ts", "days", "calls_per_day", "input_tokens", "output_tokens",
        "latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "ttft_p50_ms", "ttft_p95_ms", "ttft_p99_ms", "cost_usd",
    ]  # fmt: skip
    counts = [row[name] for name in row if name.endswith("_measured") or name == "timed"]
    assert counts == [0] * 6


def test_a_sum_over_some_calls_says_over_how_many() -> None:
    row = only_row({"input_tokens": 7, "cost_usd": 0.0}, {}, {"input_tokens": 0})
    assert (row["input_tokens"], row["input_tokens_measured"]) == (7, 2)
    assert (row["cost_usd"], row["cost_measured"]) == (0.0, 1)


def test_failed_calls_count_as_calls_but_not_as_latency() -> None:
    row = only_row({"latency_ms": 10.0}, {"status": "error", "latency_ms": 60_000.0}, {"status": "unanswered"})
    assert (row["calls"], row["answered"], row["errors"], row["unanswered"]) == (3, 1, 1, 1)
    assert (row["latency_p99_ms"], row["latency_measured"]) == (10.0, 1)


def test_a_short_log_is_not_blown_up_to_a_day() -> None:
    row = only_row({"ts": START}, {"ts": START + timedelta(hours=1)}, {})
    assert (row["days"], row["timed"], row["calls_per_day"]) == (1.0, 2, 2.0)


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        ({"params": {"tools": [{"type": "function"}]}}, "with_tools"),
        ({"params": {"functions": [{"name": "f"}]}}, "with_tools"),
        ({"tool_calls": [{"id": "1"}]}, "with_tools"),
        ({"params": {"response_format": {"type": "json_object"}}}, "with_json"),
        ({"params": {"response_format": {"type": "json_schema", "json_schema": {}}}}, "with_json"),
        ({"params": {"stream": True}}, "with_streaming"),
        ({"params": {"logprobs": True}}, "with_logprobs"),
        ({"params": {"logprobs": 5}}, "with_logprobs"),
        ({"params": {"top_logprobs": 2}}, "with_logprobs"),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, "with_system_prompt"),
        ({"messages": [{"role": "developer", "content": "Be kind."}]}, "with_system_prompt"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "with_history"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "with_images"),
    ],
)
def test_a_feature_in_use_is_counted(change: dict[str, Any], feature: str) -> None:
    row = only_row({name: canonical_json(value) for name, value in change.items()}, {})
    assert {name: row[name] for name in FEATURES} == {name: int(name == feature) for name in FEATURES}


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"tools": [], "stream": False, "logprobs": False, "top_logprobs": 0, "response_format": {"type": "text"}},
        {"tools": None, "stream": None, "logprobs": None, "response_format": None},
    ],
)
def test_a_feature_that_is_switched_off_is_not_counted(params: dict[str, Any] | None) -> None:
    row = only_row({"params": None if params is None else canonical_json(params), "tool_calls": "[]"})
    assert all(row[name] == 0 for name in FEATURES)
    assert row["risk"] == "low"


@pytest.mark.parametrize(
    ("change", "risk"),
    [
        ({}, "low"),
        ({"params": {"stream": True}}, "low"),
        ({"params": {"tools": [{}]}}, "medium"),
        ({"params": {"response_format": {"type": "json_schema"}}}, "medium"),
        ({"tags": {"risk": "high"}}, "high"),
        ({"tags": {"risk": "High"}, "params": {"tools": [{}]}}, "high"),
        ({"tags": {"compliance": "HIPAA"}}, "high"),
        ({"tags": {"compliance": ["SOC2"]}}, "high"),
        ({"tags": {"compliance": True}}, "high"),
        ({"tags": {"risk": "low", "compliance": False}}, "low"),
        ({"tags": {"compliance": None}}, "low"),
        ({"tags": {"compliance": []}}, "low"),
    ],
)
def test_one_risky_call_sets_the_tier(change: dict[str, Any], risk: str) -> None:
    assert only_row({name: canonical_json(value) for name, value in change.items()}, {}, {})["risk"] == risk


def test_missing_names_are_unknown() -> None:
    row = only_row(dict.fromkeys(PLACE))
    assert {row[name] for name in PLACE} == {"unknown"}


def test_an_empty_log_has_an_empty_inventory() -> None:
    inventory = take_inventory(REQUEST_LOG.empty())
    assert inventory.is_empty()
    assert inventory.schema == INVENTORY.schema


place = st.fixed_dictionaries(
    {
        "application": st.sampled_from(["a", "b", None]),
        "model": st.sampled_from(["m", "n"]),
        "status": st.sampled_from(["ok", "error", "unanswered"]),
        "input_tokens": st.none() | st.integers(0, 1_000),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.lists(place, min_size=1, max_size=40))
def test_every_call_is_counted_once(calls: list[dict[str, Any]]) -> None:
    inventory = take_inventory(log(*calls))
    assert inventory.schema == INVENTORY.schema
    assert inventory["calls"].sum() == len(calls)
    assert inventory["share"].sum() == pytest.approx(1.0)
    assert inventory.select(pl.sum_horizontal("answered", "errors", "unanswered")).to_series().sum() == len(calls)
    known = [call["input_tokens"] for call in calls if call["input_tokens"] is not None]
    assert (inventory["input_tokens"].sum(), inventory["input_tokens_measured"].sum()) == (sum(known), len(known))


def test_traffic_is_what_the_legacy_model_answers() -> None:
    calls = [{"ts": START + timedelta(days=n)} for n in range(11)]
    others: list[dict[str, Any]] = [
        {"ts": START - timedelta(days=50), "model": "gpt-4"},
        {"ts": START, "status": "error"},
        {"ts": START, "application": "batch"},
        {},
    ]
    traffic = traffic_of(take_inventory(log(*calls, *others)), migration(applications=["chat"]))
    assert traffic == Traffic(answered=11, first_ts=START, last_ts=START + timedelta(days=10))
    assert traffic.calls_per_day == 1.1


def test_traffic_knows_the_model_by_its_provider_too() -> None:
    inventory = take_inventory(log({"ts": START}, {"ts": START, "provider": "azure"}))
    assert traffic_of(inventory, migration("azure/gpt-4o")).answered == 1


@pytest.mark.parametrize("calls", [[{}, {}], [{"ts": START, "model": "other"}]])
def test_without_timestamps_or_calls_the_traffic_per_day_is_unknown(calls: list[dict[str, Any]]) -> None:
    assert traffic_of(take_inventory(log(*calls)), migration()).calls_per_day is None
