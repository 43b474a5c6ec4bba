"""Counters give the verdict that single units give, with wider bounds, however many workers met the same units."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from anven_pipelines.domain.gateway_event import GATEWAY_EVENTS, SAFE, UNSAFE, GatewayEvent
from anven_pipelines.domain.rollout_counts import CountWindow, assignment_of_counts, compare_counts
from anven_pipelines.domain.rollout_measure import assignment_of, compare, windows_of
from anven_pipelines.domain.rollout_plan import METRICS, RolloutPlan
from anven_pipelines.domain.rollout_scrape import Sample, snapshot_of
from anven_pipelines.domain.rollout_units import units_of
from anven_pipelines.domain.unit_counts import ArmCounts, WorkerCounts
from anven_pipelines.gateway.unit_metrics import Maturity, UnitMetrics
from anven_pipelines.ingest.event_store import attributed
from anven_pipelines.spec_rollout import Limits, Metric, Rollout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.rollout_evidence import Comparison

T0 = datetime(2026, 3, 4, 12, tzinfo=UTC)
PLAN = RolloutPlan(workload="support", rollout=Rollout(), metrics=METRICS)
QUARTER, HALF, LAST = 1, 2, 3
DAY = timedelta(days=1)
NOW = T0 + DAY + timedelta(hours=2)
HARMS: Mapping[Metric, Mapping[str, Any]] = {
    "quality": {"quality": -0.12},
    "errors": {"errors": 0.08},
    "safety": {"safety": 0.06},
    "contract": {"contract": 0.08},
    "ttft": {"ttft_ms": 900.0},
    "latency": {"latency_ms": 4000.0},
    "cost": {"cost_usd": 0.02},
}


def production(n: int, *, share: float = 0.25, seed: int = 1, workers: int = 1, **worse: float) -> list[GatewayEvent]:
    """Simulate a day of units, each asked once of every worker; `worse` is added to the target's chance or value."""
    rng = np.random.default_rng(seed)
    events: list[GatewayEvent] = []
    for number in range(n):
        target = bool(rng.random() < share)
        at, arm = T0 + DAY * (number / n), "target" if target else "legacy"

        def chance(name: str, usual: float, target: bool = target) -> bool:
            return bool(rng.random() < usual + worse.get(name, 0.0) * target)

        ttft = rng.lognormal(5.5, 0.5)
        request: dict[str, Any] = {
            "attempt": 1,
            "generation": 2,
            "share": share,
            "unit": f"{number * 2654435761 % 2**32:08x}" * 4,
            "intended": arm,
            "served": arm,
            "status": "ok",
            "stream": True,
            "ttft_ms": ttft + worse.get("ttft_ms", 0.0) * target,
            "latency_ms": 3 * ttft + worse.get("latency_ms", 0.0) * target,
            "cost_usd": rng.lognormal(-5, 0.4) * (0.5 if target else 1) + worse.get("cost_usd", 0.0) * target,
            "contract_ok": not chance("contract", 0.01),
        }
        if chance("errors", 0.01):
            request |= {"status": "error", "served": None, "contract_ok": None, "cost_usd": None, "ttft_ms": None}
        flag = UNSAFE if chance("safety", 0.001) else SAFE
        score = float(chance("quality", 0.9))
        for worker in range(workers):
            base: dict[str, Any] = {"ts": at, "worker": f"w{worker}", "workload": "support", "seq": 2 * number}
            told: dict[str, Any] = {"request_id": f"q{worker}-{number}"}
            events += [
                GatewayEvent(kind="request", event_id=f"r{worker}-{number}", **base, **told, **request),
                GatewayEvent(
                    kind="feedback", event_id=f"f{worker}-{number}", score=score, flags=(flag,), **base, **told
                ),
            ]
    return events


def counted(events: Sequence[GatewayEvent]) -> list[WorkerCounts]:
    """Count events as the gateway's workers do, and read the counters as they are scraped."""
    workers: dict[str, UnitMetrics] = defaultdict(
        lambda: UnitMetrics({"support": Maturity(PLAN.rollout.settle + PLAN.rollout.label_delay)})
    )
    for event in events:
        workers[event.worker].observe(event)
    samples = [
        Sample({"__name__": name, "worker": worker, **dict(labels)}, value)
        for worker, metrics in workers.items()
        for name, labels, value in metrics.samples(NOW)
    ]
    found = snapshot_of(samples).of(2)
    return [found[name] for name in sorted(found)]


def gateway_events(events: Sequence[GatewayEvent]) -> pl.DataFrame:
    return pl.DataFrame([event.to_row() for event in events], schema=GATEWAY_EVENTS.schema)


def by_counts(events: Sequence[GatewayEvent], *, stage: int = QUARTER, **more: Any) -> dict[str, Comparison]:
    window = CountWindow(counted(events), PLAN.harm_level / 2)
    return {each.metric: each for each in compare_counts(PLAN, stage, [window], **more)}


def by_units(events: Sequence[GatewayEvent]) -> dict[str, Comparison]:
    units = units_of(attributed(gateway_events(events)), PLAN, generation=2, now=NOW)
    windows = windows_of(units, PLAN, entered_at=T0, now=NOW)[:1]
    return {each.metric: each for each in compare(PLAN, QUARTER, windows)}


@pytest.fixture(scope="module")
def good() -> list[GatewayEvent]:
    return production(20_000)


def test_counters_count_the_units_of_the_event_log(good: list[GatewayEvent]) -> None:
    units = units_of(attributed(gateway_events(good)), PLAN, generation=2, now=NOW)
    [worker] = counted(good)

    for arm, counts in ((units.filter("treated"), worker.target), (units.filter(~units["treated"]), worker.legacy)):
        assert counts.of("seen") == arm.height
        assert counts.of("errors") == arm["errors"].sum()
        assert counts.of("due") == arm["due"].sum()
        assert counts.of("scored") == arm.height
        assert counts.of("cost_usd") == pytest.approx(arm["cost_usd"].sum())
    assert assignment_of_counts(PLAN, QUARTER, [worker]) == assignment_of(PLAN, QUARTER, units)


def test_a_good_target_is_proven_in_every_metric_and_harmful_in_none(good: list[GatewayEvent]) -> None:
    counts, units = by_counts(good), by_units(good)

    assert list(counts) == list(units) == list(METRICS)
    for metric, found in counts.items():
        assert found.is_proven(widened=2.0), found.words
        assert not found.is_harm
        exact = units[metric]
        assert exact.proof is not None
        assert found.proof is not None
        assert found.proof.estimate == pytest.approx(exact.proof.estimate, abs=0.01 if found.unit == "points" else 60)
        if metric != "cost":
            assert found.proof.upper >= exact.proof.upper


@pytest.mark.parametrize("metric", METRICS)
def test_harm_is_found_in_the_metric_that_it_is_in(metric: Metric) -> None:
    events = production(10_000, seed=2, **HARMS[metric])
    counts, units = by_counts(events), by_units(events)

    implied = ["contract", "ttft", "latency"] if metric == "errors" else []  # a failed request has no form, and no end
    assert [name for name, found in counts.items() if found.is_harm] == [metric, *implied]
    assert units[metric].is_harm
    assert not counts[metric].is_proven(widened=1.0)


def test_harm_within_one_bucket_is_not_proven_and_neither_is_its_absence() -> None:
    """The target is 300 ms slower. Buckets of a second cannot tell: that fits a target that is as fast."""
    [worker] = counted(production(4_000, ttft_ms=300.0))
    for arm in (worker.target, worker.legacy):
        held = arm.buckets["ttft"]
        wide: dict[tuple[float, float], float] = defaultdict(float)
        for (low, high), count in held.items():
            wide[(0.0, 1.0) if high <= 1 else (1.0, float("inf"))] += count
            assert low < high
        arm.buckets["ttft"] = dict(wide)  # type: ignore[index]  # read-only for whoever reads it
    [found] = [each for each in compare_counts(PLAN, QUARTER, [CountWindow([worker], 0.01)]) if each.metric == "ttft"]

    assert not found.is_harm
    assert not found.is_proven(widened=4.0)
    assert found.proof is not None
    assert found.proof.lower <= 300 <= found.proof.upper


@pytest.mark.parametrize(
    ("facts", "metric", "words"),
    [
        ({"contract_ok": None}, "contract", "of target were measured, 99% are needed"),
        ({"cost_usd": None}, "cost", "of target were measured, 99% are needed"),
        ({"latency_ms": None}, "latency", "of target were measured, 99% are needed"),
        (None, "quality", "of target were measured, 90% are needed"),
        (None, "safety", "of target were measured, 90% are needed"),
    ],
)
def test_what_was_not_measured_is_unknown(facts: dict[str, Any] | None, metric: str, words: str) -> None:
    requests = [event for event in production(2_000) if event.kind == "request"]
    found = by_counts([GatewayEvent(**{**event.to_row(), "flags": (), **(facts or {})}) for event in requests])[metric]

    assert found.unknown is not None
    assert words in found.unknown
    assert (found.harm, found.proof) == (None, None)


def test_clients_that_hang_up_on_the_target_leave_its_speed_in_doubt(good: list[GatewayEvent]) -> None:
    gone = [
        GatewayEvent(**{**event.to_row(), "flags": event.flags, "status": "disconnected"})
        if event.kind == "request" and event.intended == "target" and event.seq % 20 == 0
        else event
        for event in good
    ]
    found = by_counts(gone)["latency"]
    assert found.doubt is not None
    assert "clients hung up" in found.doubt
    assert not found.is_proven(widened=10.0)
    assert found.harm is not None  # harm would be told all the same


@pytest.mark.parametrize("metric", ["ttft", "latency", "cost", "contract"])
def test_clients_that_hang_up_on_both_arms_alike_leave_nothing_unknown(good: list[GatewayEvent], metric: str) -> None:
    gone = [
        GatewayEvent(**{**event.to_row(), "flags": event.flags, "status": "disconnected", "contract_ok": None})
        if event.kind == "request" and event.seq % 20 == 0
        else event
        for event in good
    ]
    found = by_counts(gone)[metric]
    assert (found.unknown, found.doubt) == (None, None)


def hung_up(events: Sequence[GatewayEvent], often: Mapping[str, int]) -> list[GatewayEvent]:
    """Let the clients of so many requests of each hundred of an arm leave before they have an answer whole."""
    return [
        GatewayEvent(**{**event.to_row(), "flags": event.flags, "status": "disconnected", "contract_ok": None})
        if event.kind == "request" and event.seq // 2 % 100 < often[event.intended or ""]
        else event
        for event in events
    ]


@pytest.mark.parametrize("often", [{"target": 2, "legacy": 40}, {"target": 40, "legacy": 2}], ids=str)
def test_clients_that_hang_up_on_one_arm_more_often_break_no_form(often: Mapping[str, int]) -> None:
    """A difference weighed by the share takes them for an effect; 3 in 10 whole answers are broken in each arm."""
    rng = np.random.default_rng(3)
    plain = [
        GatewayEvent(**{**event.to_row(), "flags": event.flags, "contract_ok": bool(rng.random() > 0.3)})
        if event.kind == "request" and event.status == "ok"
        else event
        for event in production(20_000)
    ]
    found = by_counts(hung_up(plain, often))["contract"]
    assert found.unknown is None
    assert not found.is_harm
    assert not found.is_proven(widened=10.0)


def test_harm_to_the_form_that_missing_answers_cannot_undo_is_found() -> None:
    worse = production(40_000, contract=0.5)
    assert by_counts(hung_up(worse, {"target": 30, "legacy": 2}))["contract"].is_harm


def test_scores_that_lack_unevenly_are_no_harm_by_themselves() -> None:
    """A judge fails on three in sixteen of the target's right answers; half are right."""
    n = 200_000.0

    def arm(scored: float, loss: float) -> ArmCounts:
        return ArmCounts({**ArmCounts().totals, "due_total": n, "scored_total": scored, "score_loss_total": loss})

    worker = WorkerCounts("w0", target=arm(n * (1 - 3 / 32), n / 2), legacy=arm(n, n / 2))
    window = CountWindow([worker], PLAN.harm_level / 2)
    found = {each.metric: each for each in compare_counts(PLAN, HALF, [window])}["quality"]
    assert found.unknown is None
    assert found.doubt is not None
    assert not found.is_harm


@pytest.mark.parametrize("metric", ["ttft", "latency", "cost", "contract"])
def test_clients_that_hang_up_once_legacy_has_no_traffic_leave_what_is_timed_in_doubt(metric: str) -> None:
    before, alone = counted(production(6_000, seed=5)), production(6_000, share=1.0, seed=6)
    gone = [
        GatewayEvent(**{**event.to_row(), "flags": event.flags, "status": "disconnected"})
        if event.kind == "request" and event.seq % 20 < 6
        else event
        for event in alone
    ]

    found = by_counts(gone, stage=LAST, before=before)[metric]

    assert found.doubt is not None
    assert "clients hung up, or nothing was measured, on 30.0% of the units of target and 0.0% of" in found.doubt
    assert by_counts(alone, stage=LAST, before=before)[metric].doubt is None


def test_workers_that_met_the_same_units_are_not_taken_for_more_evidence() -> None:
    once, thrice = production(3_000, workers=1), production(3_000, workers=3)
    one, three = by_counts(once), by_counts(thrice)
    for metric in ("errors", "contract", "quality", "ttft"):
        narrow, wide = one[metric].proof, three[metric].proof
        assert narrow is not None
        assert wide is not None
        assert wide.lower <= narrow.lower
        assert wide.upper >= narrow.upper
    counted_once, counted_thrice = (assignment_of_counts(PLAN, QUARTER, counted(each)) for each in (once, thrice))
    assert (counted_thrice.target, counted_thrice.legacy) == (counted_once.target, counted_once.legacy)


def test_a_mismatch_of_the_shares_is_told() -> None:
    found = assignment_of_counts(PLAN, QUARTER, counted(production(8_000, share=0.30)))
    assert found.p_value is not None
    assert found.p_value < 1e-6


def test_at_the_last_stage_the_target_is_held_against_legacy_of_before() -> None:
    before = counted(production(6_000, seed=5))
    found = by_counts(production(6_000, share=1.0, seed=6), stage=LAST, before=before)
    assert not any(each.is_harm for each in found.values())
    assert found["errors"].proof_limit == 2 * PLAN.rollout.limits.errors
    failing = by_counts(production(6_000, share=1.0, seed=6, errors=0.1), stage=LAST, before=before)
    assert failing["errors"].is_harm
    assert {each.unknown for each in by_counts(production(50, share=1.0), stage=LAST).values()} == {
        "legacy has no traffic in this stage and had none before that could be compared with"
    }


def test_an_equal_target_is_hardly_ever_rolled_back() -> None:
    """100 ramps whose two workers meet the same units, at 12 looks each, at a level of 20 % for this one metric."""
    wrong, runs, looks, step = 0, 100, 12, 400
    rng = np.random.default_rng(13)
    plan = RolloutPlan(workload="support", rollout=Rollout(limits=Limits(errors=1e-6)), metrics=("errors",))
    for _ in range(runs):
        treated, bad = rng.random(looks * step) < 0.25, rng.random(looks * step) < 0.05
        is_wrong = False
        for n in range(step, looks * step + 1, step):
            [worker] = counted(production(2))  # its counters are overwritten
            for arm, chosen in ((worker.target, treated[:n]), (worker.legacy, ~treated[:n])):
                totals: dict[str, float] = arm.totals  # type: ignore[assignment]  # read-only for whoever reads it
                totals |= {"seen_total": float(chosen.sum()), "errors_total": float((chosen & bad[:n]).sum())}
            [found] = compare_counts(plan, QUARTER, [CountWindow([worker, worker], 0.2)])
            is_wrong |= found.is_harm
        wrong += is_wrong
    assert wrong <= 0.2 * runs
