"""Counters and histograms of events, of all workers."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from anven_pipelines.domain.gateway_event import GatewayEvent
from anven_pipelines.gateway.metrics import HELP, GatewayMetrics, exposition, hold_lock, write_metrics
from anven_pipelines.gateway.unit_metrics import Maturity

if TYPE_CHECKING:
    from pathlib import Path

BASE: dict[str, Any] = {
    "event_id": "e",
    "kind": "request",
    "ts": datetime(2026, 11, 20, tzinfo=UTC),
    "worker": "w",
    "seq": 1,
    "workload": "support",
    "intended": "target",
    "served": "target",
    "status": "ok",
    "stream": True,
}


def samples(text: str, name: str, **labels: str) -> dict[str, float]:
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = [
        line for line in text.splitlines() if line.startswith(f"{name}{{") and all(each in line for each in wanted)
    ]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def told(tmp_path: Path, *events: dict[str, Any]) -> str:
    metrics = GatewayMetrics("w")
    for event in events:
        metrics.observe(GatewayEvent(**{**BASE, **event}))
    return exposition(tmp_path, "w", metrics.lines())


def test_a_rescued_failure_is_an_error_of_the_arm_that_was_meant(tmp_path: Path) -> None:
    text = told(tmp_path, {"served": "legacy", "why": "fallback", "error_class": "Timeout"}, {}, {"contract_ok": False})
    assert list(samples(text, "anven_errors_total", intended="target", error_class="Timeout").values()) == [1]
    assert sum(samples(text, "anven_requests_total", intended="target").values()) == 3
    assert list(samples(text, "anven_requests_total", served="legacy", why="fallback").values()) == [1]
    assert list(samples(text, "anven_contract_failures_total").values()) == [1]


def test_times_fall_into_cumulative_buckets_in_seconds(tmp_path: Path) -> None:
    text = told(
        tmp_path,
        {"ttft_ms": 150.0, "latency_ms": 400.0},
        {"ttft_ms": 50.0, "latency_ms": 4e5},
        {"status": "error", "latency_ms": 1.0},
    )
    buckets = samples(text, "anven_ttft_seconds_bucket")
    ttft = {key.partition('le="')[2].partition('"')[0]: value for key, value in buckets.items()}
    assert (ttft["0.05"], ttft["0.1"], ttft["0.2"], ttft["+Inf"]) == (1, 1, 2, 2)
    assert list(samples(text, "anven_ttft_seconds_sum").values()) == [0.2]
    assert list(samples(text, "anven_latency_seconds_bucket", le="120.0").values()) == [1]
    assert list(samples(text, "anven_latency_seconds_count").values()) == [2]


def test_what_is_not_known_is_not_counted(tmp_path: Path) -> None:
    text = told(tmp_path, {})
    for name in ("anven_tokens_total", "anven_cost_usd_total", "anven_contract_checks_total", "anven_ttft_seconds"):
        assert name not in text


def test_every_worker_is_told_and_gauges_of_others_are_not(tmp_path: Path) -> None:
    other = GatewayMetrics("gone")
    other.observe(GatewayEvent(**BASE))
    other.gauge("anven_target_share", "support", 0.5)
    write_metrics(tmp_path, "gone", other.lines())
    mine = GatewayMetrics("w")
    mine.observe(GatewayEvent(**BASE))
    mine.gauge("anven_target_share", "support", 0.25)
    text = exposition(tmp_path, "w", mine.lines())
    assert sum(samples(text, "anven_requests_total").values()) == 2
    assert list(samples(text, "anven_target_share").values()) == [0.25]
    assert text.count("# TYPE anven_requests_total counter") == 1


def test_a_worker_is_up_until_it_ends_however_and_is_never_guessed_to_have_ended(tmp_path: Path) -> None:
    serving = {"support": Maturity(timedelta(minutes=5))}
    for name in ("lives", "ended", "unlocked"):
        write_metrics(tmp_path, name, GatewayMetrics(name, serving).lines())
    living, ended = hold_lock(tmp_path, "lives"), hold_lock(tmp_path, "ended")
    assert living is not None
    assert ended is not None
    ended.close()
    text = exposition(tmp_path, "w", GatewayMetrics("w", serving).lines())

    up = {worker: samples(text, "anven_worker_up", worker=worker) for worker in ("w", "lives", "ended", "unlocked")}
    assert {worker: list(found.values()) for worker, found in up.items()} == {
        "w": [1],
        "lives": [1],
        "ended": [0],
        "unlocked": [1],  # whether it lives is not known: one that is silent makes the evidence unknown
    }
    assert list(samples(text, "anven_worker_score_wait_seconds", worker="w").values()) == [300]
    living.close()


def test_what_ended_more_than_a_day_ago_is_told_no_more_and_what_lives_always_is(tmp_path: Path) -> None:
    living = hold_lock(tmp_path, "lives")
    ended = hold_lock(tmp_path, "ended")
    assert living is not None
    assert ended is not None
    ended.close()
    for name in ("lives", "ended"):
        write_metrics(tmp_path, name, GatewayMetrics(name, {"support": Maturity()}).lines())
        os.utime(tmp_path / f"{name}.prom", (0, 0))
    text = exposition(tmp_path, "w", [])

    assert 'worker="lives"' in text
    assert 'worker="ended"' not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lives.lock", "lives.prom"]
    living.close()


def test_feedback_and_breakers_are_counted(tmp_path: Path) -> None:
    text = told(
        tmp_path,
        {"kind": "feedback", "score": 0.5, "status": None},
        {"kind": "feedback", "score": None, "status": None},
        {"kind": "breaker", "error_class": "errors", "status": None},
    )
    assert list(samples(text, "anven_quality_score_sum", intended="target").values()) == [0.5]
    assert list(samples(text, "anven_quality_score_count").values()) == [1]
    assert list(samples(text, "anven_breaker_trips_total", reason="errors").values()) == [1]


def test_each_sample_belongs_to_a_described_family(tmp_path: Path) -> None:
    text = told(tmp_path, {"ttft_ms": 1.0, "latency_ms": 2.0, "input_tokens": 3, "output_tokens": 4, "cost_usd": 0.1})
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert families <= set(HELP)
    assert {"anven_ttft_seconds", "anven_tokens_total", "anven_cost_usd_total"} <= families
