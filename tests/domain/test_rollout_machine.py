"""Whatever production shows and people do: a rollout never moves without proof and never skips a stage."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.rollout import Advance, Complete, Decision, Hold, RollBack, decide
from anven_pipelines.domain.rollout_evidence import Assignment, Comparison, Evidence
from anven_pipelines.domain.rollout_plan import METRICS, RolloutPlan
from anven_pipelines.domain.rollout_status import OVERRIDE_PEOPLE, RolloutStatus, after, refusal
from anven_pipelines.spec_rollout import Rollout, Stage
from anven_pipelines.stats.interval import Interval

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
KINDS = ("started", "paused", "resumed", "aborted", "approved", "overridden", "drilled")


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[Comparison, ...]:
    """Draw findings that are mostly good, so that stages are reached at all."""
    found = []
    for metric in METRICS:
        kind = draw(st.sampled_from(("good",) * 12 + ("wide", "bad", "unknown", "absent", "endless")))
        if kind == "absent":
            continue
        if kind == "unknown":
            found.append(Comparison(metric=metric, unit="points", unknown="it was not measured"))
            continue
        low, high = {
            "good": (-0.01, 0.005),
            "wide": (-0.5, 0.5),
            "bad": (0.02, 0.5),
            "endless": (-math.inf, math.inf),
        }[kind]
        bounds = Interval(0.0 if kind == "endless" else (low + high) / 2, low, high, 0.9, "drawn")
        found.append(
            Comparison(metric=metric, unit="points", harm=bounds, harm_limit=0.01, proof=bounds, proof_limit=0.01)
        )
    return tuple(found)


assignments = st.one_of(
    st.just(Assignment(target=5_000, legacy=5_000, p_value=0.5)),
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
mostly_none = st.sampled_from((None, None, None, None, None, None, None, "something"))


class Rollouts(RuleBasedStateMachine):
    """One workload's rollout under arbitrary evidence, people and clocks."""

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 3, 4, tzinfo=UTC)
        self.status = RolloutStatus()
        self.share_before = 0.0
        self.decision: Decision | None = None
        self.evidence: Evidence | None = None

    def happen(self, kind: str, **payload: object) -> None:
        self.status = after(self.status, kind, payload, at=self.now)

    @rule(hours=st.floats(0, 6), back=st.booleans())
    def time_goes_on(self, hours: float, *, back: bool) -> None:
        """Clocks are set back too, by little."""
        self.now += timedelta(hours=-min(hours, 0.5) if back else hours)

    @rule(kind=st.sampled_from(KINDS), who=st.sampled_from("abc"), late=st.booleans(), passed=st.booleans())
    def somebody_acts(self, kind: str, who: str, *, late: bool, passed: bool) -> None:
        payload = {
            "plan": PLAN.digest,
            "who": who,
            "generation": self.status.generation - late,
            "until": (self.now + timedelta(hours=3)).isoformat(),
            "passed": passed,
            "seconds": 1.0 if passed else None,
        }
        before = self.status
        reason = refusal(before, kind)
        try:
            self.happen(kind, **payload)
        except InvalidInput:
            assert reason is not None
            assert self.status == before
        else:
            assert reason is None
        if self.status.share(PLAN) > before.share(PLAN):
            assert (kind, self.status.stage) == ("started", 0)

    @rule(
        comparisons=comparisons(),
        assignment=assignments,
        problem=mostly_none,
        breaker=mostly_none,
        capacity=mostly_none,
        late=st.sampled_from((0, 0, 0, 0, 1)),
        age=st.sampled_from((0, 0, 0, 0, 10, -10)),
        flags=st.sampled_from((0, 0, 0, 0, 1)),
    )
    def the_controller_looks(
        self,
        comparisons: tuple[Comparison, ...],
        assignment: Assignment | None,
        problem: str | None,
        breaker: str | None,
        capacity: str | None,
        late: int,
        age: int,
        flags: int,
    ) -> None:
        evidence = Evidence(
            generation=self.status.generation - late,
            as_of=self.now - timedelta(minutes=age),
            comparisons=comparisons,
            assignment=assignment,
            problem=problem,
            breaker=breaker,
            capacity=capacity,
            open_flags=flags,
        )
        before = self.status
        decision = decide(PLAN, before, evidence, now=self.now)
        assert decide(PLAN, before, evidence, now=self.now) == decision
        self.judge(before, evidence, decision)
        match decision:
            case Advance(stage):
                self.happen("advanced", stage=stage)
            case RollBack():
                self.happen("rolled_back")
            case Complete():
                self.happen("completed")
        assert self.status.generation == before.generation + (not isinstance(decision, Hold))

    def judge(self, before: RolloutStatus, evidence: Evidence, decision: Decision) -> None:
        """Assert what must hold of every decision."""
        harm = any(evidence.of(metric).is_harm for metric in METRICS) and evidence.problem is None
        proven_bad = (harm or evidence.breaker is not None) and evidence.generation == before.generation
        assert isinstance(decision, RollBack) == (proven_bad and before.is_open)
        if not isinstance(decision, Advance | Complete):
            assert decision.reasons
            return
        assert before.phase == "running"
        assert before.stage is not None
        assert before.plan == PLAN.digest
        if isinstance(decision, Advance):
            assert decision.stage == before.stage + 1
        if len(before.overriders(self.now)) >= OVERRIDE_PEOPLE:
            return
        stage = PLAN.stages[before.stage]
        assert before.entered_at is not None
        assert self.now - before.entered_at >= stage.soak
        assert all(evidence.of(metric).is_proven(widened=stage.widened) for metric in METRICS)
        assert evidence.assignment is not None
        assert evidence.assignment.target >= PLAN.rollout.least_units
        assert (evidence.problem, evidence.capacity, evidence.open_flags) == (None, None, 0)
        assert evidence.generation == before.generation
        assert before.drill is not None
        assert before.drill.passed
        if isinstance(decision, Advance) and decision.stage == 1:
            assert before.approvals

    @precondition(lambda self: not self.status.is_open)
    @invariant()
    def legacy_has_all_traffic_where_nothing_runs(self) -> None:
        assert self.status.share(PLAN) == 0


Rollouts.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRollouts = Rollouts.TestCase
