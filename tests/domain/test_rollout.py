"""The controller's decisions: one case in which all is proven, then one row for each gate that has to close."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from anven_pipelines.domain.rollout import Advance, Complete, Decision, Gap, Hold, RollBack, decide, drill_gaps
from anven_pipelines.domain.rollout_evidence import Assignment, Comparison, Evidence
from anven_pipelines.domain.rollout_flag import Flag
from anven_pipelines.domain.rollout_plan import METRICS, RolloutPlan
from anven_pipelines.domain.rollout_status import Drill, Override, RolloutStatus
from anven_pipelines.domain.uptime import Uptime
from anven_pipelines.spec_rollout import Metric, Rollout, Stage
from anven_pipelines.stats.interval import Interval

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
PLAN = RolloutPlan(workload="support", rollout=Rollout(), metrics=METRICS)
STATUS = RolloutStatus(
    phase="running",
    attempt=1,
    generation=1,
    stage=0,
    entered_at=NOW - timedelta(hours=25),
    plan=PLAN.digest,
    drill=Drill(NOW - timedelta(days=1), passed=True, seconds=0.8),
)
FLAG = Flag("3fa81c02", "dr-li", "doses are wrong", NOW - timedelta(hours=1))


def found(metric: Metric, lower: float, upper: float, *, limit: float = 0.01) -> Comparison:
    bounds = Interval((lower + upper) / 2, lower, upper, 0.9, "for a test")
    return Comparison(metric=metric, unit="points", harm=bounds, harm_limit=limit, proof=bounds, proof_limit=limit)


ALL_GOOD = Evidence(
    generation=1,
    as_of=NOW,
    comparisons=tuple(found(metric, -0.01, 0.002) for metric in METRICS),
    assignment=Assignment(target=600, legacy=11_400, p_value=0.4),
)


def with_comparison(comparison: Comparison) -> dict[str, Any]:
    rest = tuple(other for other in ALL_GOOD.comparisons if other.metric != comparison.metric)
    return {"comparisons": (*rest, comparison)}


def assigned(**change: Any) -> dict[str, Any]:
    return {"assignment": replace(Assignment(target=600, legacy=11_400, p_value=0.4), **change)}


def decided(evidence: Evidence = ALL_GOOD, status: RolloutStatus = STATUS, plan: RolloutPlan = PLAN) -> Decision:
    return decide(plan, status, evidence, now=NOW)


def test_where_all_is_proven_it_advances_and_says_what_was_proven() -> None:
    decision = decided()

    assert isinstance(decision, Advance)
    assert decision.stage == 1
    assert decision.reasons[0] == "quality -0.4 points worse [-1, +0.2], allowed 1 points x 4 in this stage"


def test_after_the_last_stage_it_is_complete_and_still_rolls_back() -> None:
    last = replace(STATUS, stage=3, entered_at=NOW - timedelta(days=8))
    harmed = replace(ALL_GOOD, **with_comparison(found("errors", 0.02, 0.05)))

    assert isinstance(decided(status=last), Complete)
    assert isinstance(decided(status=replace(last, phase="completed")), Hold)
    assert isinstance(decided(harmed, status=replace(last, phase="completed")), RollBack)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_comparison(found("quality", -0.05, 0.05)), "not proven: quality +0 points worse [-5, +5]"),
        (
            with_comparison(Comparison(metric="cost", unit="USD", unknown="3 of 600 units of target were measured")),
            "cost unknown: 3 of 600 units of target were measured",
        ),
        ({"comparisons": ALL_GOOD.comparisons[1:]}, "quality unknown: it was not measured"),
        (assigned(target=499), "499 of 500 units of target"),
        (assigned(legacy=499), "499 of 500 units of legacy"),
        (assigned(p_value=0.0009), "sample ratio mismatch: 600 of 12,000 units at the target, planned share 0.05"),
        (assigned(moved=13), "13 units were asked of both arms"),
        (assigned(fell_back=13), "legacy answered for 13 of 600 units of the target"),
        ({"assignment": None}, "how traffic was dealt to the arms is unknown"),
        ({"problem": "Prometheus did not answer"}, "Prometheus did not answer"),
        ({"generation": 0}, "the evidence is of generation 0, the traffic of generation 1"),
        ({"as_of": None}, "no event has come yet"),
        ({"as_of": NOW - timedelta(minutes=6)}, "the newest evidence is 6.0 min old, at most 5.0 min counts"),
        ({"as_of": NOW + timedelta(minutes=1)}, "the newest event is dated 0:01:00 ahead of this clock"),
        ({"capacity": "4 replicas are planned, 2 are ready"}, "4 replicas are planned, 2 are ready"),
        ({"killed": "the kill switch is on"}, "the kill switch is on"),
    ],
)
def test_one_gate_that_is_open_in_the_evidence_holds(change: dict[str, Any], reason: str) -> None:
    decision = decided(replace(ALL_GOOD, **change))

    assert isinstance(decision, Hold)
    assert [reason in each for each in decision.reasons] == [True]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"entered_at": NOW - timedelta(hours=23)}, "23.0 h of 1.0 d in this stage"),
        ({"entered_at": NOW + timedelta(hours=1)}, "the stage was entered 1.0 h ahead of this clock"),
        ({"phase": "paused"}, "the rollout is paused"),
        ({"phase": "rolled_back"}, "the rollout is rolled back"),
        ({"phase": "not_started"}, "the rollout is not started"),
        ({"plan": "another"}, "rollout changed since this attempt began"),
        ({"drill": None}, "no roll back was rehearsed"),
        ({"drill": Drill(NOW, passed=False, seconds=None)}, "the last rehearsed roll back failed"),
        ({"drill": Drill(NOW, passed=True, seconds=5.1)}, "took 5.1 s, at most 2 s is allowed"),
        ({"drill": Drill(NOW - timedelta(days=8), passed=True, seconds=1)}, "is of 2026-02-24 12:00 UTC"),
        ({"drill": Drill(NOW + timedelta(days=1), passed=True, seconds=1)}, "is of 2026-03-05 12:00 UTC"),
        ({"flags": (FLAG,)}, "flag 3fa81c02 of dr-li, open since 2026-03-04 11:00 UTC: doses are wrong"),
    ],
)
def test_one_gate_that_is_open_in_the_status_holds(change: dict[str, Any], reason: str) -> None:
    decision = decided(status=replace(STATUS, **change))

    assert isinstance(decision, Hold)
    assert [reason in each for each in decision.reasons] == [True]


@pytest.mark.parametrize("metric", METRICS)
def test_proven_harm_rolls_back_whatever_else_is_missing(metric: Metric) -> None:
    harmed = replace(ALL_GOOD, **with_comparison(found(metric, 0.011, 0.3)), assignment=None)

    missing = replace(STATUS, entered_at=NOW, drill=None, flags=(FLAG,))
    for status in (STATUS, replace(STATUS, phase="paused"), missing):
        decision = decided(harmed, status)
        assert isinstance(decision, RollBack)
        assert decision.reasons == (f"{metric} is proven to be more than 1 points worse: at least 1.1",)


def test_harm_at_the_limit_itself_is_not_proven() -> None:
    assert isinstance(decided(replace(ALL_GOOD, **with_comparison(found("errors", 0.01, 0.3)))), Hold)


def test_a_wide_interval_around_harm_is_no_harm() -> None:
    assert isinstance(decided(replace(ALL_GOOD, **with_comparison(found("errors", -0.2, 0.9)))), Hold)


def test_a_tripped_breaker_rolls_back_though_its_source_knows_in_part_only() -> None:
    decision = decided(replace(ALL_GOOD, breaker="9 of 20 requests failed", problem="1 of 2 workers is silent"))

    assert decision == RollBack(("the gateway's breaker tripped: 9 of 20 requests failed",))


def test_harm_in_evidence_that_is_partial_or_of_other_traffic_is_none() -> None:
    harmed = replace(ALL_GOOD, **with_comparison(found("errors", 0.2, 0.3)))

    assert isinstance(decided(replace(harmed, problem="1 of 2 workers is silent")), Hold)
    assert isinstance(decided(replace(harmed, generation=0)), Hold)


def test_a_limit_is_wider_where_few_are_exposed_and_never_for_harm() -> None:
    loose = replace(ALL_GOOD, **with_comparison(found("errors", -0.02, 0.03)))
    last = replace(STATUS, stage=2)

    assert isinstance(decided(loose), Advance)
    assert isinstance(decided(loose, last), Hold)
    assert isinstance(decided(replace(ALL_GOOD, **with_comparison(found("errors", 0.02, 0.03)))), RollBack)


def test_an_approval_is_needed_where_the_coming_stage_wants_one() -> None:
    stages = [Stage(share=0.5, soak=timedelta(0)), Stage(share=1, soak=timedelta(0), approvals=2)]
    plan = replace(PLAN, rollout=Rollout(stages=stages))
    status = replace(STATUS, plan=plan.digest, approvals=frozenset({"ada"}))
    decision = decided(status=status, plan=plan)

    assert isinstance(decision, Hold)
    assert decision.reasons == ("1 of 2 people approved the next stage: `anven rollout approve`",)
    assert isinstance(decided(status=replace(status, approvals=frozenset({"ada", "bo"})), plan=plan), Advance)
    signed = tuple(Override(who, NOW, NOW + timedelta(hours=1), None) for who in ("ada", "bo"))
    assert decided(status=replace(status, overrides=signed), plan=plan) == decision


def test_two_people_override_what_is_missing_until_it_expires_and_never_harm() -> None:
    soon, gone = NOW + timedelta(hours=1), NOW
    unproven = replace(ALL_GOOD, **with_comparison(found("quality", -0.05, 0.05)))

    def signed(*people: tuple[str, datetime]) -> RolloutStatus:
        return replace(STATUS, overrides=tuple(Override(who, NOW, until, None) for who, until in people))

    assert isinstance(decided(unproven, signed(("ada", soon), ("ada", soon))), Hold)
    assert isinstance(decided(unproven, signed(("ada", soon), ("bo", gone))), Hold)
    overridden = decided(unproven, signed(("ada", soon), ("bo", soon)))
    assert isinstance(overridden, Advance)
    assert overridden.reasons[0].startswith("overridden by ada, bo: not proven: quality")
    harmed = replace(ALL_GOOD, **with_comparison(found("errors", 0.2, 0.3)))
    assert isinstance(decided(harmed, signed(("ada", soon), ("bo", soon))), RollBack)
    paused = replace(signed(("ada", soon), ("bo", soon)), phase="paused")
    assert isinstance(decided(unproven, paused), Hold)


def test_an_override_answers_no_flag() -> None:
    signed = tuple(Override(who, NOW, NOW + timedelta(hours=1), None) for who in ("ada", "bo"))
    unproven = replace(ALL_GOOD, **with_comparison(found("quality", -0.05, 0.05)))

    decision = decided(unproven, replace(STATUS, overrides=signed, flags=(FLAG,)))

    assert isinstance(decision, Hold)
    assert [gap.kind for gap in decision.gaps] == ["wait", "person"]
    assert "flag 3fa81c02 of dr-li" in decision.reasons[1]


def test_an_override_counts_nothing_before_it_was_signed_nor_after_its_hours_by_any_clock() -> None:
    up = Uptime("boot", 7200.0)
    unproven = replace(ALL_GOOD, **with_comparison(found("quality", -0.05, 0.05)))

    def decided_at(now: datetime, uptime: Uptime | None) -> Decision:
        overrides = tuple(Override(who, NOW, NOW + timedelta(hours=1), up) for who in ("ada", "bo"))
        return decide(PLAN, replace(STATUS, overrides=overrides), replace(unproven, as_of=now), now=now, uptime=uptime)

    assert isinstance(decided_at(NOW, up), Advance)
    assert isinstance(decided_at(NOW, Uptime("after a start", 1.0)), Advance)
    assert isinstance(decided_at(NOW - timedelta(hours=1), None), Hold)
    assert isinstance(decided_at(NOW + timedelta(hours=1), None), Hold)
    assert isinstance(decided_at(NOW, Uptime("boot", 7200.0 + 3600)), Hold)  # the clock was set back


def test_a_clock_that_is_set_makes_no_stay_longer() -> None:
    """The stage was entered 30 minutes ago, whatever the clock says."""
    entered = replace(STATUS, entered_up=Uptime("boot", 100.0))
    half_an_hour = Uptime("boot", 1900.0)

    held = decide(PLAN, entered, ALL_GOOD, now=NOW, uptime=half_an_hour)

    assert held == Hold((Gap("wait", "30.0 min of 1.0 d in this stage", until=NOW + timedelta(hours=23.5)),))
    assert isinstance(decide(PLAN, entered, ALL_GOOD, now=NOW, uptime=Uptime("after a start", 1.0)), Advance)
    assert isinstance(decide(PLAN, entered, ALL_GOOD, now=NOW, uptime=None), Advance)
    back = replace(ALL_GOOD, as_of=NOW - timedelta(days=2))
    assert isinstance(decide(PLAN, entered, back, now=NOW - timedelta(days=2), uptime=Uptime("boot", 9e6)), Hold)


def test_a_big_bang_says_that_it_proves_nothing_and_ends_by_a_waiver_or_by_two_people() -> None:
    def big_bang(*waived: Metric) -> tuple[RolloutPlan, RolloutStatus]:
        plan = replace(PLAN, rollout=Rollout(strategy="big_bang", waive=list(waived)))
        return plan, replace(STATUS, plan=plan.digest, entered_at=NOW - timedelta(days=8))

    silent = tuple(Comparison(metric=metric, unit="", unknown="legacy had no traffic") for metric in METRICS)
    nothing = replace(ALL_GOOD, comparisons=silent, assignment=Assignment(target=9_000, legacy=0))
    plan, status = big_bang()
    held = decided(nothing, status, plan)
    assert isinstance(held, Hold)
    assert len(held.reasons) == 1
    assert held.reasons[0].startswith("legacy has no traffic beside the target in any stage, so quality, errors, ")
    assert isinstance(decided(nothing, replace(status, entered_at=NOW - timedelta(days=6)), plan), Hold)

    two = tuple(Override(who, NOW, NOW + timedelta(hours=1), None) for who in ("ada", "bo"))
    assert isinstance(decided(nothing, replace(status, overrides=two), plan), Complete)
    plan, status = big_bang(*METRICS)
    completed = decided(nothing, status, plan)
    assert isinstance(completed, Complete)
    assert completed.reasons == tuple(f"{metric} is waived" for metric in METRICS)
    assert isinstance(decided(replace(nothing, breaker="a burst"), status, plan), RollBack)


def test_what_is_waived_is_said_and_still_rolls_back() -> None:
    plan = replace(PLAN, rollout=Rollout(waive=["cost"]))
    status = replace(STATUS, plan=plan.digest)
    unknown = replace(ALL_GOOD, **with_comparison(Comparison(metric="cost", unit="USD", unknown="no price")))
    decision = decided(unknown, status, plan)

    assert isinstance(decision, Advance)
    assert decision.reasons[-1] == "cost is waived"
    dear = replace(ALL_GOOD, **with_comparison(found("cost", 0.02, 0.03)))
    assert isinstance(decided(dear, status, plan), RollBack)


def test_the_first_stage_waits_for_no_approval_and_a_recent_window_has_a_length() -> None:
    with pytest.raises(ValueError, match="approvals of 0 are needed there, found 2"):
        Rollout(stages=[Stage(share=1, soak=timedelta(0), approvals=2)])
    with pytest.raises(ValueError, match="`recent` of at least 1m is needed, found 0 s"):
        Rollout(recent=timedelta(0))


def test_a_comparison_without_bounds_or_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="quality has no bounds and no reason"):
        Comparison(metric="quality", unit="points")
    with pytest.raises(ValueError, match="limits of quality are nan"):
        Comparison(metric="quality", unit="points", unknown="x", harm_limit=float("nan"))


ASKED = replace(STATUS, prompt="a" * 64)
OTHER = "b" * 64


def test_a_target_that_is_asked_with_another_prompt_than_its_verdict_stops_the_ramp_whoever_overrides() -> None:
    served = replace(ALL_GOOD, prompt=OTHER, prompts={OTHER: 500, "a" * 64: 100})
    signed = tuple(Override(who, NOW, NOW + timedelta(hours=1), None) for who in ("ada", "bo"))

    decision = decided(served, status=replace(ASKED, overrides=signed))

    assert isinstance(decision, Hold)
    assert decision.gaps[0].kind == "stopped"
    assert decision.reasons[0].startswith(
        "the gateway asks the target with prompt bbbbbbbbbbbb, the verdict was given for aaaaaaaaaaaa: start"
    )


def test_answers_to_another_prompt_are_no_evidence_once_the_right_one_is_served_again_and_two_may_override() -> None:
    served = replace(ALL_GOOD, prompt=ASKED.prompt, prompts={OTHER: 5, "a" * 64: 595})
    signed = tuple(Override(who, NOW, NOW + timedelta(hours=1), None) for who in ("ada", "bo"))

    decision = decided(served, status=ASKED)

    assert isinstance(decision, Hold)
    assert [gap.kind for gap in decision.gaps] == ["stopped"]
    assert decision.reasons[0].startswith(
        "5 of 600 answers of the target in this stage were to another prompt than aaa"
    )
    assert isinstance(decided(served, status=replace(ASKED, overrides=signed)), Advance)


def test_another_prompt_hides_no_harm() -> None:
    harmed = replace(ALL_GOOD, prompt=OTHER, prompts={OTHER: 600}, **with_comparison(found("errors", 0.02, 0.05)))

    assert isinstance(decided(harmed, status=ASKED), RollBack)


@pytest.mark.parametrize(
    ("status", "evidence"),
    [
        (ASKED, replace(ALL_GOOD, prompt="a" * 64, prompts={"a" * 64: 600})),
        (STATUS, replace(ALL_GOOD, prompt=OTHER, prompts={OTHER: 600})),  # the log of an older release names no prompt
        (ASKED, ALL_GOOD),  # the source knows no prompts
    ],
)
def test_the_right_prompt_and_one_that_nobody_knows_stop_nothing(status: RolloutStatus, evidence: Evidence) -> None:
    assert isinstance(decided(evidence, status=status), Advance)


def test_a_clock_that_is_set_back_makes_no_drill_younger() -> None:
    old = Uptime("boot", 1_000.0)
    drill = Drill(NOW - timedelta(days=1), passed=True, seconds=0.8, uptime=old)
    eight_days = Uptime("boot", 1_000.0 + 8 * 86_400)

    assert not drill_gaps(drill, PLAN, now=NOW)
    assert not drill_gaps(drill, PLAN, now=NOW, uptime=Uptime("boot", 1_000.0 + 86_400))
    assert not drill_gaps(drill, PLAN, now=NOW, uptime=Uptime("another boot", 8 * 86_400))
    assert "the last rehearsed roll back is of" in drill_gaps(drill, PLAN, now=NOW, uptime=eight_days)[0].reason
    assert drill_gaps(drill, PLAN, now=NOW - timedelta(days=2), uptime=eight_days)  # dated ahead of this clock
