"""What a worker counts of each unit: once, by its first request, and its score when that was due."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from anven_pipelines.domain.gateway_event import SAFE, UNSAFE, GatewayEvent
from anven_pipelines.domain.unit_counts import COUNTERS, PREFIX
from anven_pipelines.gateway.unit_metrics import EDGES_S, Maturity, UnitMetrics

T0 = datetime(2026, 11, 20, tzinfo=UTC)
WAIT = timedelta(minutes=70)


def name_of(number: int) -> str:
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()


class Told:
    """A worker's unit counters, as a reader of its samples sees them."""

    def __init__(self, *, judged: float = 1.0, most_units: int = 1000) -> None:
        self.metrics = UnitMetrics({"support": Maturity(WAIT, judged)}, most_units=most_units)
        self._number = 0

    def request(self, unit: int = 0, *, minute: float = 0, **facts: Any) -> str:
        self._number += 1
        values: dict[str, Any] = {
            "attempt": 1,
            "generation": 3,
            "stage": 0,
            "share": 0.25,
            "intended": "target",
            "served": "target",
            "status": "ok",
            "stream": True,
            "ttft_ms": 150.0,
            "latency_ms": 400.0,
            "cost_usd": 0.5,
            "contract_ok": True,
            "request_id": f"q{self._number}",
            "unit": name_of(unit),
        }
        self._observe("request", minute, **(values | facts))
        return str((values | facts)["request_id"])

    def feedback(self, request: str, *, minute: float = 1, **facts: Any) -> None:
        self._number += 1
        self._observe("feedback", minute, request_id=request, **facts)

    def found(self, *, minute: float = 0, arm: str = "target", generation: int = 3) -> dict[str, float]:
        totals: dict[str, float] = defaultdict(float)
        for name, labels, value in self.metrics.samples(T0 + timedelta(minutes=minute)):
            told = dict(labels)
            if (told["intended"], told["generation"]) == (arm, str(generation)):
                key = name.removeprefix(PREFIX).removesuffix("_total")
                totals[f"{key} {told['gt']} {told['le']}" if "le" in told else key] += value
        return {name: value for name, value in totals.items() if value}

    def _observe(self, kind: str, minute: float, **facts: Any) -> None:
        ts = T0 + timedelta(minutes=minute)
        event = {"event_id": str(self._number), "ts": ts, "worker": "w", "seq": self._number, "workload": "support"}
        self.metrics.observe(GatewayEvent(kind=kind, **(event | facts)))  # type: ignore[arg-type]  # its kinds are texts


def test_a_unit_counts_once_however_often_it_asks() -> None:
    told = Told()
    for _ in range(5):
        told.request(0)
    told.request(1, status="error", served=None, ttft_ms=None, contract_ok=None, cost_usd=None)

    assert told.found() == {
        "seen": 2,
        "errors": 1,
        "contract_checks": 2,
        "contract_failures": 1,
        "streamed": 2,
        "ttft_measured": 2,
        "ttft_bucket 0.1405 0.1546": 1,
        "ttft_bucket 122.1 +Inf": 1,
        "timed": 2,
        "latency_measured": 2,
        "latency_bucket 0.3645 0.4009": 1,
        "latency_bucket 122.1 +Inf": 1,
        "priced": 2,
        "cost_usd": 0.5,
        "cost_usd_squares": 0.25,
    }
    assert told.found(arm="legacy") == {}


@pytest.mark.parametrize(
    ("facts", "counted"),
    [
        ({"served": "legacy", "why": "fallback", "error_class": "Timeout"}, {"errors": 1, "fell_back": 1}),
        ({"served": "legacy", "why": "killed"}, {"fell_back": 1}),
        ({"contract_ok": False}, {"contract_checks": 1, "contract_failures": 1}),
        ({"contract_ok": None}, {"contract_checks": 0}),
        ({"status": "disconnected"}, {"left": 1, "timed": 0, "streamed": 0, "priced": 0, "errors": 0}),
        ({"status": "disconnected", "contract_ok": False}, {"contract_checks": 0, "contract_failures": 0}),
        (
            {"status": "disconnected", "contract_ok": None, "served": "legacy", "why": "fallback"},
            {"errors": 1, "left": 1, "contract_checks": 1, "contract_failures": 1, "timed": 0},
        ),
        ({"cached": True}, {"timed": 0, "streamed": 0, "priced": 0, "seen": 1}),
        ({"stream": False, "ttft_ms": None}, {"streamed": 0, "timed": 1, "latency_measured": 1}),
        ({"cost_usd": None}, {"timed": 1, "priced": 0}),
    ],
)
def test_what_is_counted_of_a_request(facts: dict[str, Any], counted: dict[str, float]) -> None:
    told = Told()
    told.request(0, **facts)
    found = told.found()
    assert {name: found.get(name, 0) for name in counted} == counted


def test_mirrored_requests_and_those_of_nobody_are_no_units() -> None:
    told = Told()
    told._observe("shadow", 0, unit=name_of(0), intended="target", generation=3)
    told._observe("request", 0, unit=None, intended="target", generation=3)
    assert told.found() == {}


def test_a_unit_that_is_asked_of_both_arms_is_told_and_counts_for_the_first() -> None:
    told = Told()
    told.request(0)
    told.request(0, intended="legacy", served="legacy")
    told.request(0, intended="legacy", served="legacy")
    assert told.found()["moved"] == 1
    assert told.found(arm="legacy") == {}


def test_a_new_generation_counts_anew_and_only_two_are_kept() -> None:
    told = Told()
    told.request(0)
    told.request(0, generation=4, share=0.5)
    assert told.found()["seen"] == told.found(generation=4)["seen"] == 1
    told.request(0, generation=5, share=1.0)
    told.request(1)  # ended late, of a generation that is gone
    assert told.found() == {}
    assert told.found(generation=4)["seen"] == told.found(generation=5)["seen"] == 1


def test_scores_count_when_they_were_due_and_the_newest_one_before_that() -> None:
    told = Told()
    first, second, silent = (told.request(unit) for unit in range(3))
    failed = told.request(3, status="error", served=None)
    told.feedback(first, score=0.2)
    told.feedback(first, score=0.75, minute=60)
    told.feedback(first, flags=(SAFE,))
    told.feedback(second, score=1.0, minute=71)  # too late
    told.feedback(second, flags=(UNSAFE,))
    told.feedback("of nobody", score=0.0)
    assert silent
    assert failed
    assert "due" not in told.found(minute=69)

    found = told.found(minute=70)
    assert (found["due"], found["scored"], found["score_loss"]) == (4, 2, 1.25)  # a failure is worth nothing
    # ... and shows nothing of safety: two were judged, of three that could be.
    assert (found["answered"], found["judged"], found["unsafe"]) == (3, 2, 1)
    told.feedback(first, score=0.0, minute=80)
    assert told.found(minute=200) == found


def test_a_thumb_that_is_turned_twice_counts_as_it_was_left() -> None:
    told = Told()
    request = told.request(0)
    for minute, score in enumerate((1.0, 0.0, 1.0), 1):
        told.feedback(request, score=score, minute=minute)
    assert (told.found(minute=70)["scored"], told.found(minute=70).get("score_loss", 0.0)) == (1, 0.0)


def test_a_feedback_on_a_name_that_several_requests_have_scores_the_first_one_only() -> None:
    told = Told()
    for unit in range(10):
        told.request(unit, request_id="same")
    told.feedback("same", score=0.0, flags=(UNSAFE,))
    found = told.found(minute=70)
    assert (found["scored"], found["score_loss"], found["judged"], found["unsafe"]) == (1, 1, 1, 1)


def test_only_units_that_were_drawn_are_due() -> None:
    told = Told(judged=0.3)
    for unit in range(500):
        told.request(unit)
    drawn = sum(int(name_of(unit)[:8], 16) / 16**8 < 0.3 for unit in range(500))
    assert told.found(minute=70)["due"] == drawn
    assert 100 < drawn < 200


def test_memory_is_bounded_by_a_draw_of_units_and_none_is_counted_twice() -> None:
    told = Told(most_units=100)
    for _ in range(3):
        for unit in range(1000):
            told.request(unit)
    [generation] = told.metrics._generations["support"].values()
    assert len(generation.seen) <= 100
    assert generation.kept < 0.2
    once = told.found()["seen"]
    assert 100 < once < 500
    told.request(0)
    assert told.found()["seen"] == once


def test_every_counter_is_told_from_the_first_unit_on_so_that_one_that_vanishes_is_missed() -> None:
    told = Told()
    told.request(0)
    names = {name for name, labels, _ in told.metrics.samples(T0) if dict(labels)["intended"] == "legacy"}
    assert names == {PREFIX + name for name in COUNTERS}


def test_buckets_are_a_tenth_wide_and_reach_two_minutes() -> None:
    assert EDGES_S[:2] == (0.0, 0.005)
    assert EDGES_S[-2] > 120
    assert math.isinf(EDGES_S[-1])
    assert all(high / low < 1.11 for low, high in pairwise(EDGES_S[1:-1]))
