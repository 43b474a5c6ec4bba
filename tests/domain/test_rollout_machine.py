"""Whatever production shows, people do and clocks say: a rollout never moves without proof and never skips a stage.

`ANVEN_ROLLOUT_STEPS` is how many steps are taken; what must hold is asserted at each.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from anven_pipelines.domain.events import GENESIS, Event, Head, follow
from anven_pipelines.domain.rollout import Advance, Complete, Decision, Hold, RollBack, decide
from anven_pipelines.domain.rollout_evidence import Assignment, Comparison, Evidence
from anven_pipelines.domain.rollout_plan import METRICS, RolloutPlan
from anven_pipelines.domain.rollout_status import (
    CHANGES,
    OVERRIDE_PEOPLE,
    RolloutStatus,
    change_key,
    refusal,
    status_of,
    stream_of,
)
from anven_pipelines.domain.rollout_steps import Step, step_of
from anven_pipelines.domain.uptime import Uptime
from anven_pipelines.spec_rollout import Rollout, Stage
from anven_pipelines.stats.interval import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping

ALL_STEPS: Final = 100_000
STEPS: Final = int(os.environ.get("ANVEN_ROLLOUT_STEPS", ALL_STEPS // 10))
STEPS_A_RUN: Final = 50
PLAN = RolloutPlan(
    workload="support",
    rollout=Rollout(
        stages=[
            Stage(share=0.1, soak=timedelta(hours=1), widened=3),
            Stage(share=0.5, soak=timedelta(hours=2), approvals=1),
            Stage(share=1.0, soak=timedelta(hours=4)),
        ]
    ),
    metrics=METRICS,
)
START: Final = datetime(2026, 3, 4, tzinfo=UTC)
KINDS: Final = ("approved", "overridden", "drilled", "resumed", "paused", "aborted", "flagged", "unflagged")


@dataclass
class Taken:
    """What was done in all runs together, so that a machine that does nothing fails."""

    steps: int
    seen: Counter[str]


taken = Taken(0, Counter())


numbers = st.floats(-0.05, 0.05) | st.floats(allow_nan=False) | st.sampled_from((-0.01, 0.0, 0.01))
reasons = st.sampled_from((None, None, "something"))
intervals = st.builds(
    lambda bounds, estimate: Interval(estimate, min(bounds), max(bounds), 0.9, "drawn"),
    st.tuples(numbers, numbers),
    numbers,
)


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[Comparison, ...]:
    """Draw findings of every kind, and often only good ones, so that stages are left at all."""
    if draw(st.booleans()):
        return tuple(compared(metric, "good") for metric in METRICS)
    kinds = st.sampled_from(("good",) * 8 + ("wide", "bad", "unknown", "doubted", "absent", "endless") + ("any",) * 4)
    drawn = [(metric, draw(kinds)) for metric in METRICS]
    return tuple(
        draw(anything_of(metric)) if kind == "any" else compared(metric, kind)
        for metric, kind in drawn
        if kind != "absent"
    )


@st.composite
def anything_of(draw: st.DrawFn, metric: Any) -> Comparison:
    """Draw any finding that can be written down, of which the parts need not fit together."""
    unknown = draw(reasons)
    found = intervals if unknown is None else st.none() | intervals
    return Comparison(
        metric=metric,
        unit=draw(st.sampled_from(("points", "ms"))),
        harm=draw(found),
        harm_limit=draw(numbers),
        proof=draw(found),
        proof_limit=draw(numbers),
        unknown=unknown,
        doubt=draw(reasons),
    )


def compared(metric: Any, kind: str) -> Comparison:
    if kind == "unknown":
        return Comparison(metric=metric, unit="points", unknown="it was not measured")
    low, high = {"wide": (-0.5, 0.5), "bad": (0.02, 0.5), "endless": (-math.inf, math.inf)}.get(kind, (-0.01, 0.005))
    bounds = Interval(0.0 if kind == "endless" else (low + high) / 2, low, high, 0.9, "drawn")
    doubt = "one arm lacks more" if kind == "doubted" else None
    return Comparison(
        metric=metric, unit="points", harm=bounds, harm_limit=0.01, proof=bounds, proof_limit=0.01, doubt=doubt
    )


def is_worse(found: Comparison) -> bool:
    """Whether harm is proven, from the numbers alone."""
    return found.unknown is None and found.harm is not None and found.harm.lower > found.harm_limit


WRONG: Final = ("problem", "lost", "breaker", "capacity", "killed", "refuted")
GOOD: Final = Assignment(target=5_000, legacy=5_000, p_value=0.5)
assignments = st.one_of(
    st.just(GOOD),
    st.just(GOOD),
    st.builds(
        Assignment,
        target=st.integers(0, 2_000),
        legacy=st.integers(0, 2_000),
        p_value=st.none() | st.floats(0, 1),
        moved=st.integers(0, 5),
        fell_back=st.integers(0, 100),
    ),
    st.none(),
)


@st.composite
def findings(draw: st.DrawFn) -> dict[str, Any]:
    """Draw an evidence: `as_of` is minutes of age, `generation` what it is off; often only numbers are wrong."""
    found: dict[str, Any] = {"comparisons": draw(comparisons()), "assignment": draw(assignments)}
    if draw(st.booleans()):
        return found
    some = st.sets(st.sampled_from((*WRONG, "generation", "as_of")), min_size=1)
    for wrong in sorted(draw(some)):
        match wrong:
            case "generation":
                found[wrong] = draw(st.integers(-2, 2))
            case "as_of":
                found[wrong] = draw(st.none() | st.sampled_from((-10.0, 10.0)) | st.floats(-1e5, 1e5))
            case _:
                found[wrong] = "something"
    served = draw(st.dictionaries(st.sampled_from(("a", "b")), st.integers(0, 1_000)))
    return found | {"prompts": served, "prompt": draw(reasons), "peak_rate": draw(st.none() | st.floats(0))}


class Rollouts(RuleBasedStateMachine):
    """One workload's log under arbitrary evidence, people, clocks, and steps that write late or never."""

    def __init__(self) -> None:
        super().__init__()
        self.gone_by = timedelta(0)  # in truth
        self.wrong_by = timedelta(0)  # what the clock says beyond it
        self.boot = 0
        self.log: list[Event] = []
        self.status = RolloutStatus()
        self.entered: tuple[timedelta, int] = (timedelta(0), -1)  # when and in which boot, in truth
        self.signed: list[tuple[str, timedelta, int]] = []
        self.flags: set[str] = set()
        self.late: Step | None = None
        self.steps_run = -1  # the invariant is looked at once before the first step

    @property
    def now(self) -> datetime:
        return START + self.gone_by + self.wrong_by

    @property
    def uptime(self) -> Uptime:
        return Uptime(str(self.boot), self.gone_by.total_seconds())

    def written(self, kind: str, key: str, payload: Mapping[str, Any]) -> None:
        """Write an event as the state store does: a key that is taken takes nothing more."""
        if any(event.key == key for event in self.log):
            return
        head = Head(self.log[-1].seq, self.log[-1].hash) if self.log else GENESIS
        told = {**payload, **self.uptime.written()}
        before = self.status
        self.log.append(follow(head, stream=stream_of("support"), kind=kind, key=key, payload=told, now=self.now))
        self.status = status_of(self.log)
        self.judge_change(before, kind)

    def judge_change(self, before: RolloutStatus, kind: str) -> None:
        """Assert what must hold of every event, whoever writes it when."""
        after = self.status
        assert after.generation == before.generation + (kind in CHANGES)
        assert after.attempt == before.attempt + (kind == "started" and not before.is_open)
        if after.share(PLAN) > before.share(PLAN):
            assert kind in {"started", "advanced"}
            assert after.stage == (0 if before.stage is None else before.stage + 1)
        if before.phase in {"rolled_back", "aborted"}:
            assert kind == "started" or (after.phase, after.share(PLAN)) == (before.phase, 0)
        if before.phase == "completed":
            assert after.phase in {"completed", "rolled_back", "aborted"}
        if before.phase == "paused" and kind not in {"rolled_back", "aborted"}:
            assert after.share(PLAN) == before.share(PLAN)
        if kind in {"advanced", "completed"} and self.flags:
            assert (after.phase, after.stage) == (before.phase, before.stage)
        if after.generation > before.generation:
            self.entered = (self.gone_by, self.boot)
            self.signed = []

    @rule(hours=st.floats(0, 2) | st.just(5.0))
    def time_goes_on(self, hours: float) -> None:
        self.gone_by += timedelta(hours=hours)

    @rule(hours=st.floats(-12, 12))
    def the_clock_is_set(self, hours: float) -> None:
        self.wrong_by = timedelta(hours=hours)

    @rule()
    def the_machine_is_started_anew(self) -> None:
        self.boot += 1

    @precondition(lambda self: not self.status.is_open)
    @rule()
    def it_is_started(self) -> None:
        self.written("started", change_key(self.status.generation + 1), {"plan": PLAN.digest})
        self.somebody_acts("drilled", "a", late=False, passed=True)

    @rule(
        kind=st.sampled_from(KINDS),
        who=st.sampled_from(("a", "b", "c", "A", "b ")),
        late=st.booleans(),
        passed=st.booleans(),
    )
    def somebody_acts(self, kind: str, who: str, *, late: bool, passed: bool) -> None:
        if refusal(self.status, kind):
            return
        payload = {
            "who": who,
            "generation": self.status.generation - (late and not passed),
            "until": (self.now + timedelta(hours=3)).isoformat(),
            "passed": passed,
            "seconds": 1.0 if passed else None,
            "flag": who,
            "reason": "doses are wrong",
        }
        key = change_key(self.status.generation + 1) if kind in CHANGES else f"{kind}-{len(self.log)}"
        self.written(kind, key, payload)
        if kind in {"flagged", "unflagged"}:
            getattr(self.flags, "add" if kind == "flagged" else "discard")(who)
        if kind == "overridden" and payload["generation"] == self.status.generation:
            self.signed.append((who.strip().lower(), self.gone_by, self.boot))

    @rule(found=findings(), end=st.sampled_from(("writes", "writes", "writes", "is late", "is late", "is killed")))
    def the_controller_looks(self, found: dict[str, Any], end: str) -> None:
        before = self.status
        age = found.get("as_of", 0)
        evidence = Evidence(
            **found
            | {
                "generation": before.generation + found.get("generation", 0),
                "as_of": None if age is None else self.now - timedelta(minutes=age),
            }
        )
        decision = decide(PLAN, before, evidence, now=self.now, uptime=self.uptime)
        self.judge(before, evidence, decision)
        taken.seen[f"{type(decision).__name__} when {before.phase} {before.stage}"] += 1
        step = step_of(decision, before, evidence)
        assert (step is None) == isinstance(decision, Hold)
        if step is not None and end == "writes":
            self.written(step.kind, step.key, step.payload)
        elif step is not None and end == "is late":
            self.late = step

    @precondition(lambda self: self.status.is_open)
    @rule(end=st.sampled_from(("writes", "writes", "writes", "is late")))
    def all_is_well_for_long(self, end: str) -> None:
        for who in sorted(self.flags):
            self.somebody_acts("unflagged", who, late=False, passed=True)
        self.somebody_acts("approved", "a", late=False, passed=True)
        self.time_goes_on(5.0)
        good = {"comparisons": tuple(compared(metric, "good") for metric in METRICS), "assignment": GOOD}
        self.the_controller_looks(good, end)

    @precondition(lambda self: self.late is not None)
    @rule(held_by=st.sampled_from((None, None, "flagged", "paused")))
    def a_step_writes_late(self, held_by: str | None) -> None:
        """Whatever was written since it decided."""
        assert self.late is not None
        if held_by is not None:
            self.somebody_acts(held_by, "a", late=False, passed=True)
        is_overtaken = self.late.key != change_key(self.status.generation + 1)
        taken.seen["a step that was overtaken" if is_overtaken else "a step that was late"] += 1
        before = self.status
        self.written(self.late.kind, self.late.key, self.late.payload)
        assert not is_overtaken or self.status == before
        self.late = None

    def judge(self, before: RolloutStatus, evidence: Evidence, decision: Decision) -> None:
        """Assert what must hold of every decision."""
        assert decision.reasons
        harm = any(is_worse(each) for each in evidence.comparisons) and evidence.problem is None
        proven_bad = (harm or evidence.breaker is not None) and evidence.generation == before.generation
        assert isinstance(decision, RollBack) == (proven_bad and before.is_open)
        if not isinstance(decision, Advance | Complete):
            return
        assert (before.phase, before.plan) == ("running", PLAN.digest)
        assert (evidence.killed, evidence.refuted) == (None, None)
        assert not self.flags
        assert before.stage is not None
        assert isinstance(decision, Complete) or decision.stage == before.stage + 1
        assert isinstance(decision, Advance) or before.stage + 1 == len(PLAN.stages)
        assert isinstance(decision, Complete) or decision.stage != 1 or before.approvals
        if "overridden by" in decision.reasons[0]:
            self.judge_override()
        else:
            self.judge_proof(before, evidence, before.stage)

    def judge_override(self) -> None:
        counting = {who for who, at, boot in self.signed if boot != self.boot or self.gone_by - at < timedelta(hours=3)}
        assert len(counting) >= OVERRIDE_PEOPLE

    def judge_proof(self, before: RolloutStatus, evidence: Evidence, place: int) -> None:
        stage, (at, boot) = PLAN.stages[place], self.entered
        assert before.entered_at is not None
        assert self.now - before.entered_at >= stage.soak
        assert boot != self.boot or self.gone_by - at >= stage.soak - timedelta(microseconds=1)
        found = [evidence.of(metric) for metric in METRICS]
        assert all(each.unknown is None and each.doubt is None for each in found)
        assert all(each.proof and each.proof.upper < each.proof_limit * stage.widened for each in found)
        assert evidence.assignment is not None
        assert evidence.assignment.target >= PLAN.rollout.least_units
        assert (evidence.problem, evidence.lost, evidence.capacity) == (None, None, None)
        assert evidence.generation == before.generation
        assert evidence.as_of is not None
        assert abs(self.now - evidence.as_of) <= PLAN.rollout.stale
        assert before.drill is not None
        assert before.drill.passed

    @invariant()
    def a_roll_back_is_one_step_away_wherever_the_target_has_traffic(self) -> None:
        self.steps_run += 1
        if not self.status.is_open:
            assert self.status.share(PLAN) == 0
            return
        tripped = Evidence(generation=self.status.generation, as_of=None, breaker="a burst", problem="and no answer")
        assert isinstance(decide(PLAN, self.status, tripped, now=self.now, uptime=self.uptime), RollBack)
        assert refusal(self.status, "rolled_back") is None
        assert refusal(self.status, "aborted") is None

    def teardown(self) -> None:
        taken.steps += self.steps_run
        changes = [event.key for event in self.log if event.kind in CHANGES]
        assert changes == [change_key(number + 1) for number in range(len(changes))]


@pytest.mark.timeout(900)
def test_so_many_steps_move_nothing_without_proof() -> None:
    taken.steps, taken.seen = 0, Counter()
    run_state_machine_as_test(
        Rollouts,
        settings=settings(
            max_examples=STEPS * 23 // (20 * STEPS_A_RUN),  # some runs are cut short
            stateful_step_count=STEPS_A_RUN,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )

    assert taken.steps >= STEPS
    wanted = {"Advance when running 0", "Advance when running 1", "Complete when running 2", "RollBack when running 0"}
    if STEPS >= ALL_STEPS:  # the rare ones
        wanted |= {f"{kind} when running {at}" for at in range(3) for kind in ("Hold", "RollBack")}
        wanted |= {"Hold when paused 0", "RollBack when paused 0", "Hold when completed 2", "RollBack when completed 2"}
        wanted |= {"Hold when rolled_back None", "Hold when aborted None", "Hold when not_started None"}
        wanted |= {"a step that was late", "a step that was overtaken"}
    assert not wanted - taken.seen.keys()
