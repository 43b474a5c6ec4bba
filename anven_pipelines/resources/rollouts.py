"""Rollouts as a Dagster resource: looks at production, writes what was decided, and tells the gateway.

What was decided is written to the log first, and the gateway's route is derived from the log. Whoever is killed between
the two leaves a decision that the next look puts in force. Two that decide at once mean to begin the same generation,
whose key the log takes once: the slower one has changed nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.rollout import Gap, Hold, decide
from anven_pipelines.domain.rollout_plan import plan_of
from anven_pipelines.domain.rollout_status import CHANGES, RolloutStatus, change_key, refusal, status_of, stream_of
from anven_pipelines.domain.rollout_steps import route_of, start_refusal, step_of
from anven_pipelines.domain.sign_off import sign_off_stream
from anven_pipelines.resources.gateway import Gateway
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.production_metrics import ProductionMetrics
from anven_pipelines.resources.state_store import StateStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from anven_pipelines.domain.rollout import Decision
    from anven_pipelines.domain.rollout_evidence import Evidence
    from anven_pipelines.domain.rollout_plan import RolloutPlan


class Look(NamedTuple):
    """What one look at a rollout found.

    Attributes:
        plan: What it aims at.
        before: Where it stood.
        evidence: What production showed.
        decision: What follows from both.
        status: Where it stands now.
    """

    plan: RolloutPlan
    before: RolloutStatus
    evidence: Evidence
    decision: Decision
    status: RolloutStatus


class Rollouts(dg.ConfigurableResource[None]):
    """Looks, steps and people's acts, all through one append-only log."""

    migrations: Migrations
    state: StateStore
    gateway: Gateway
    metrics: ProductionMetrics

    def status(self, workload: str) -> RolloutStatus:
        """Return where a workload's rollout stands.

        Raises:
            UnavailableService: the state store does not answer.
        """
        return status_of(self.state.events(stream_of(workload)))

    def look(self, workload: str, *, now: datetime) -> Look:
        """Decide on the next step, and take none.

        Raises:
            UnknownWorkload: no readable file declares the workload.
            UnavailableService: the state store does not answer.
        """
        plan = plan_of(self.migrations.of(workload).migration)
        status = self.status(workload)
        evidence = self.metrics.evidence(plan, status, now=now)
        return Look(plan, status, evidence, decide(plan, status, evidence, now=now), status)

    def step(self, workload: str, *, now: datetime) -> Look:
        """Put what was decided before in force, look, decide anew and act on it.

        Raises:
            UnknownWorkload: no readable file declares the workload.
            TamperedLog: the log was altered: nothing is decided on it.
            UnavailableService: the state store or the traffic file does not answer; what was written stays and is put
                in force by the next step.
        """
        self.state.require_intact()
        plan = plan_of(self.migrations.of(workload).migration)
        before = self.status(workload)
        self._publish(plan, before)
        found = self.look(workload, now=now)
        step = step_of(found.decision, found.before, found.evidence)
        if step is None:
            return found
        try:
            self.state.append(stream=stream_of(workload), kind=step.kind, key=step.key, payload=step.payload, now=now)
        except InvalidInput:
            overtaken = self.status(workload)
            if overtaken.generation == found.before.generation:
                raise
            gap = Gap("wait", f"another step began generation {overtaken.generation} first; this one changed nothing")
            self._publish(plan, overtaken)
            return found._replace(decision=Hold((gap,)), status=overtaken)
        status = self.status(workload)
        self._publish(plan, status)
        if status.phase == "paused" and step.kind in ("advanced", "completed"):
            gap = Gap("person", "the rollout was paused while this step decided; it changed nothing")
            return found._replace(decision=Hold((gap,)), status=status)
        return found._replace(status=status)

    def start(self, workload: str, *, who: str, now: datetime) -> RolloutStatus:
        """Begin a new attempt with the first stage.

        Raises:
            InvalidInput: the workload is not signed off, or an attempt is open.
        """
        plan, status = plan_of(self.migrations.of(workload).migration), self.status(workload)
        verdict = self.state.latest(sign_off_stream(workload))
        if reason := start_refusal(verdict, status):
            message = f"the rollout of {workload} cannot start: {reason}"
            raise InvalidInput(message)
        signed = verdict.hash if verdict else None
        return self.act(workload, "started", {"who": who, "plan": plan.digest, "verdict": signed}, now=now)

    def act(self, workload: str, kind: str, payload: Mapping[str, Any], *, now: datetime) -> RolloutStatus:
        """Write what a person or a drill did, and put it in force.

        Raises:
            InvalidInput: it cannot happen now.
            TamperedLog: the log was altered.
            UnavailableService: the state store or the traffic file does not answer.
        """
        self.state.require_intact()
        plan, status = plan_of(self.migrations.of(workload).migration), self.status(workload)
        if reason := refusal(status, kind):
            message = f"{workload}: {kind} is not possible: {reason}"
            raise InvalidInput(message)
        key = change_key(status.generation + 1) if kind in CHANGES else f"{kind}-{now.isoformat()}"
        try:
            self.state.append(stream=stream_of(workload), kind=kind, key=key, payload=payload, now=now)
        except InvalidInput:
            if self.status(workload).generation == status.generation:
                raise
            return self.act(workload, kind, payload, now=now)  # a step came first; each is one generation further
        status = self.status(workload)
        self._publish(plan, status)
        return status

    def is_behind(self, plan: RolloutPlan, status: RolloutStatus) -> bool:
        """Tell whether the gateway's file does not say what the log does: a step was killed in between.

        Raises:
            InvalidInput: the file is none.
            UnavailableService: it cannot be read.
        """
        return bool(status.generation) and self.gateway.read().of(plan.workload) != route_of(plan, status)

    def _publish(self, plan: RolloutPlan, status: RolloutStatus) -> None:
        if status.generation:
            self.gateway.publish(route_of(plan, status))
