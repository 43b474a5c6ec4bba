"""Rollouts as a Dagster resource: looks at production, writes what was decided, and tells the gateway.

What was decided is written to the log first, and the gateway's route is derived from the log. Whoever is killed between
the two leaves a decision that the next look puts in force. Two that decide at once mean to begin the same generation,
whose key the log takes once: the slower one has changed nothing.

An open attempt goes by the plan that it began with, which stands in the log: a migration file that is edited, broken or
removed meanwhile stops the ramp, and neither moves traffic nor keeps harm from being rolled back.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg

from anven_pipelines.domain.errors import AnvenError, InvalidInput, TamperedLog, UnavailableService, UnknownWorkload
from anven_pipelines.domain.load_report import LoadReport
from anven_pipelines.domain.notice import HELD, NOTIFIED, hold_stream, new_hold
from anven_pipelines.domain.rollout import Advance, Gap, Hold, RollBack, decide
from anven_pipelines.domain.rollout_capacity import shortfall
from anven_pipelines.domain.rollout_plan import edit_of, in_place_of_unread, plan_of, read_plan
from anven_pipelines.domain.rollout_status import CHANGES, RolloutStatus, change_key, refusal, status_of, stream_of
from anven_pipelines.domain.rollout_steps import route_of, start_refusal, step_of
from anven_pipelines.domain.sign_off import sign_off_stream
from anven_pipelines.domain.signed_target import declared_target, refuted
from anven_pipelines.domain.traffic import DRILL
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.gateway import Gateway
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.production_metrics import ProductionMetrics
from anven_pipelines.resources.signed_verdict import signed_for
from anven_pipelines.resources.state_store import StateStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from anven_pipelines.domain.rollout import Decision
    from anven_pipelines.domain.rollout_evidence import Evidence
    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.domain.traffic import Route
    from anven_pipelines.domain.uptime import Uptime


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
    artifacts: ArtifactStore

    def status(self, workload: str) -> RolloutStatus:
        """Return where a workload's rollout stands.

        Raises:
            UnavailableService: the state store does not answer.
        """
        return status_of(self.state.events(stream_of(workload)))

    def begun(self) -> list[str]:
        """Return the workloads whose rollout has ever begun, declared by now or not, by the log or the traffic file.

        Raises:
            UnavailableService: the state store does not answer.
        """
        prefix = stream_of("")
        logged = {event.stream.removeprefix(prefix) for event in self.state.events_under(prefix)}
        try:
            routes = self.gateway.read().routes
        except AnvenError:  # each workload's look says so
            return sorted(logged)
        routed = {name for name, route in routes.items() if route.generation and not name.endswith(DRILL)}
        return sorted(logged | routed)

    def plan(self, workload: str, status: RolloutStatus) -> RolloutPlan:
        """Return the plan that the open attempt began with; the declared one where none is open.

        Raises:
            UnknownWorkload: none is open, and no readable file declares the workload.
        """
        if not status.is_open or status.planned is None:
            return plan_of(self.migrations.of(workload).migration)
        begun = read_plan(workload, status.planned)
        try:
            declared = plan_of(self.migrations.of(workload).migration)
        except UnknownWorkload as error:
            if begun is None:
                raise
            return replace(begun, edited=f"the migration file is gone or broken ({error})")
        return (
            in_place_of_unread(declared, status.stage)
            if begun is None
            else replace(begun, edited=edit_of(begun, declared))
        )

    def look(self, workload: str, *, now: datetime, uptime: Uptime | None = None) -> Look:
        """Decide on the next step, and take none.

        Args:
            workload: Whose rollout it is.
            now: This machine's clock.
            uptime: The same moment by how long it has been up, against clocks that are set; None where unknown.

        Raises:
            UnknownWorkload: no attempt is open, and no readable file declares the workload.
            UnavailableService: the state store does not answer.
        """
        status = self.status(workload)
        plan = self.plan(workload, status)
        found = self.metrics.evidence(plan, status, now=now)
        newer = refuted(self.state.events(sign_off_stream(workload)), status.verdict)
        evidence = replace(found, killed=self._killed(workload), refuted=newer)
        decision = decide(plan, status, evidence, now=now, uptime=uptime)
        if isinstance(decision, Advance):  # nothing else waits for the artifact store
            share = plan.stages[decision.stage].share
            evidence = replace(evidence, capacity=self._shortfall(workload, share, evidence.peak_rate))
            decision = decide(plan, status, evidence, now=now, uptime=uptime)
        return Look(plan, status, evidence, decision, status)

    def step(self, workload: str, *, now: datetime, uptime: Uptime | None = None) -> Look:
        """Look, decide anew and act on it; what was decided before is put in force where nothing new follows.

        Raises:
            UnknownWorkload: no attempt is open, and no readable file declares the workload.
            TamperedLog: the log was altered: nothing is decided on it. Where harm is proven or the breaker tripped the
                gateway is told to keep the workload at legacy all the same.
            UnavailableService: the state store or the traffic file does not answer; what was written stays and is put
                in force by the next step. Where harm is proven and cannot be written, the gateway is told to keep the
                workload at legacy all the same.
        """
        try:
            self.state.require_intact()
        except TamperedLog:
            if isinstance(self.look(workload, now=now, uptime=uptime).decision, RollBack):
                self.gateway.kill(workload)
            raise
        if not (status := self.status(workload)).is_open:  # needs no plan, whose file may be gone
            self._publish(workload, status)
        found = self.look(workload, now=now, uptime=uptime)
        step = step_of(found.decision, found.before, found.evidence)
        if step is None:
            self._publish(workload, found.before)
            return found
        payload = step.payload | (uptime.written() if uptime else {})
        try:
            self.state.append(stream=stream_of(workload), kind=step.kind, key=step.key, payload=payload, now=now)
        except UnavailableService:
            if isinstance(found.decision, RollBack):  # it is written once the log can be
                self.gateway.kill(workload)
            raise
        except InvalidInput:
            overtaken = self.status(workload)
            if overtaken.generation == found.before.generation:
                raise
            gap = Gap("wait", f"another step began generation {overtaken.generation} first; this one changed nothing")
            self._publish(workload, overtaken)
            return found._replace(decision=Hold((gap,)), status=overtaken)
        status = self.status(workload)
        self._publish(workload, status)
        is_kept_back = status.stage == found.before.stage and status.phase in ("running", "paused")
        if step.kind in ("advanced", "completed") and is_kept_back:
            was = "paused" if status.phase == "paused" else "flagged"
            gap = Gap("person", f"the rollout was {was} while this step decided; it changed nothing")
            return found._replace(decision=Hold((gap,)), status=status)
        return found._replace(status=status)

    def start(
        self, workload: str, *, who: str, now: datetime, uptime: Uptime | None = None, **told: str
    ) -> RolloutStatus:
        """Begin a new attempt with the first stage; what else is told stands in the log beside who did it.

        Raises:
            InvalidInput: the workload is not signed off, or not for the declared target, an attempt is open, or the
                verdict's prompt is gone.
            UnavailableService: the state store, the artifact store or the traffic file does not answer.
        """
        migration, status = self.migrations.of(workload).migration, self.status(workload)
        plan, models = plan_of(migration), {"legacy": migration.legacy.model, "target": migration.target.model}
        verdict = self.state.latest(sign_off_stream(workload))
        if reason := start_refusal(verdict, status, declared_target(migration)):
            message = f"the rollout of {workload} cannot start: {reason}"
            raise InvalidInput(message)
        if self.gateway.read().of(workload).killed:
            message = (
                f"the rollout of {workload} cannot start: its kill switch is on: `anven rollout unkill {workload}` "
                "turns it off"
            )
            raise InvalidInput(message)
        signed = signed_for(self.artifacts, workload, verdict)
        began = {"plan": plan.digest, "planned": plan.written(), "models": models, **signed}
        return self.act(workload, "started", {**told, "who": who, **began}, now=now, uptime=uptime)

    def act(
        self, workload: str, kind: str, payload: Mapping[str, Any], *, now: datetime, uptime: Uptime | None = None
    ) -> RolloutStatus:
        """Write what a person or a drill did, and put it in force.

        An abort that ends in an error has the gateway keep the workload at legacy all the same, as
        `Gateway.giving_back` says.

        Raises:
            InvalidInput: it cannot happen now, or the log or the traffic file cannot be followed.
            TamperedLog: the log was altered.
            UnavailableService: the state store or the traffic file does not answer.
        """
        with self.gateway.giving_back(workload) if kind == "aborted" else nullcontext():
            self._write(workload, kind, payload, now=now, uptime=uptime)
            return self.put_in_force(workload)

    def _write(
        self, workload: str, kind: str, payload: Mapping[str, Any], *, now: datetime, uptime: Uptime | None
    ) -> None:
        self.state.require_intact()
        status = self.status(workload)
        if reason := refusal(status, kind):
            message = f"{workload}: {NOTIFIED[kind].replace('_', ' ')} is not possible: {reason}"
            raise InvalidInput(message)
        key = change_key(status.generation + 1) if kind in CHANGES else f"{kind}-{now.isoformat()}"
        told = {**payload, **(uptime.written() if uptime else {})}
        try:
            self.state.append(stream=stream_of(workload), kind=kind, key=key, payload=told, now=now)
        except InvalidInput:
            if self.status(workload).generation == status.generation:
                raise
            # A step came first; each is one generation further.
            self._write(workload, kind, payload, now=now, uptime=uptime)

    def put_in_force(self, workload: str) -> RolloutStatus:
        """Tell the gateway what the log says, and return where the rollout stands.

        Raises:
            UnavailableService: the state store or the traffic file does not answer.
        """
        status = self.status(workload)
        self._publish(workload, status)
        return status

    def note_hold(self, workload: str, found: Look, *, now: datetime) -> None:
        """Write down what holds a rollout, where that is new: people are told of it.

        A look may come late; what held a rollout that has moved on since holds nothing.

        Raises:
            UnavailableService: the state store does not answer.
        """
        if not isinstance(found.decision, Hold):
            return
        status = self.status(workload)
        if (status.generation, status.phase) != (found.before.generation, found.before.phase):
            return
        stream = hold_stream(workload)
        if held := new_hold(found.decision, found.before, self.state.latest(stream), now=now):
            self.state.append(stream=stream, kind=HELD, key=held.key, payload=held.payload, now=now)

    def is_behind(self, workload: str, status: RolloutStatus) -> bool:
        """Tell whether the gateway's file does not say what the log does: a step was killed in between.

        Raises:
            InvalidInput: the file is none.
            UnavailableService: it cannot be read.
        """
        if not status.generation:
            return False
        in_force = self.gateway.route(workload)
        if in_force is None:  # a person broke it: only what gives the target less can be written there
            return not status.is_open
        wanted = self._route(workload, status)
        # The kill switch and the shadow are people's.
        return wanted is not None and replace(in_force, killed=False, shadow=0.0) != wanted

    def _shortfall(self, workload: str, share: float, peak_rate: float | None) -> str | None:
        """Say why the target may not bear a share; None where it does, or no load benchmark was run."""
        try:
            manifest = self.artifacts.load_manifest("load_benchmark", workload)
            planned = None if manifest is None else LoadReport.model_validate(manifest.facts["load"])
        except (AnvenError, LookupError, ValueError) as error:
            return f"what the load benchmark found cannot be read: {error}"
        return shortfall(share, peak_rate, planned)

    def _killed(self, workload: str) -> str | None:
        """Say that people keep the workload at legacy, or that nobody can tell; None where they do not."""
        try:
            killed = self.gateway.read().of(workload).killed
        except AnvenError as error:
            return f"whether the kill switch is on cannot be read: {error}"
        if not killed:
            return None
        return (
            "the kill switch is on: legacy answers, and nothing is learnt of the target. Abort the attempt, turn it "
            f"off with `anven rollout unkill {workload}`, and start anew"
        )

    def require_known(self, workload: str) -> None:
        """Refuse a traffic file that is ahead of the log: what the gateway does was decided by nobody who is known.

        Raises:
            InvalidInput: it is ahead, or the file is none.
            UnavailableService: the state store does not answer, or the file cannot be read.
        """
        in_force, logged = self.gateway.route(workload), self.status(workload).generation
        if in_force is not None and in_force.generation > logged:
            message = (
                f"{self.gateway.traffic}: {workload} is at generation {in_force.generation}, the log at {logged}: the "
                "state store was replaced or set back, or the route was written by hand. Restore the store; or remove "
                "the workload from the file, which gives its traffic to legacy, and restart the gateway"
            )
            raise InvalidInput(message)

    def _publish(self, workload: str, status: RolloutStatus) -> None:
        if status.generation and (route := self._route(workload, status)):
            self.gateway.publish(route)
        self.require_known(workload)

    def _route(self, workload: str, status: RolloutStatus) -> Route | None:
        """Return what the gateway has to do; None where the attempt's plan cannot be read, and its share stays."""
        if not status.is_open:
            return route_of(workload, status, None)
        if status.planned is not None and read_plan(workload, status.planned) is None:
            return None
        return route_of(workload, status, self.plan(workload, status))
