"""Looks at every rollout every few seconds and asks for a step where one is due; the step decides for itself."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, partial
from typing import Final, NamedTuple

import dagster as dg

from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.errors import AnvenError, InvalidInput
from anven_pipelines.domain.rollout import Hold, RollBack
from anven_pipelines.domain.rollout_report import percent
from anven_pipelines.domain.rollout_status import RolloutStatus
from anven_pipelines.resources.rollouts import Look, Rollouts
from anven_pipelines.resources.uptime import uptime
from anven_pipelines.sensors.looks import Looks
from anven_pipelines.sensors.under_way import is_under_way, waits_for_a_place

STEP_TAG = "anven/rollout_step"
_log = logging.getLogger("anven.rollout")
rollout_step_job = dg.define_asset_job(
    "rollout_step",
    selection=dg.AssetSelection.assets("rollout_status"),
    tags={"dagster/priority": "20"},  # before whatever else waits for a place to run
    description="Decides on a rollout's next step on fresh evidence, and takes it.",
)


LOOKS_S: Final = 10.0
"""Longest wait of a tick for its looks; Prometheus, too, has 10 s for one, unless its section says otherwise ..."""
NOTES_S: Final = 2.0
"""... and for what holds the rollouts to be written down. Dagster ends a tick after 60 s and loses what it asks for."""


class _Glance(NamedTuple):
    """What one workload's rollout asks for.

    Attributes:
        workload: Its name.
        told: What was found, in words.
        due: The status that the next step rests on; None where none is due.
        found: The look at an open rollout.
        error: Why it cannot be looked at.
    """

    workload: str
    told: str | None = None
    due: RolloutStatus | None = None
    found: Look | None = None
    error: Exception | None = None


@dg.sensor(
    job=rollout_step_job,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks at every open rollout each 15 s and asks for a run of rollout_step where one is to advance, "
    "roll back or complete. A tick without a run says what holds each workload. Turned off, no stage is entered and "
    "the controller rolls nothing back; the gateway's breaker still does.",
)
def rollout(context: dg.SensorEvaluationContext, rollouts: Rollouts) -> dg.SensorResult:
    """Ask for a step of each rollout that has one to take.

    Every rollout that ever began is looked at, whatever has become of its migration file. A workload that cannot be
    looked at, or whose look takes long, is told and leaves the others alone. A step that is under way is not asked for
    twice, and one that failed, or was killed, is asked for again: the run key carries the generation and how often it
    was tried. A roll back does not wait for a place to run: where its step has not begun in time, it is taken here.
    """
    looks, notes = _of_deployment(rollouts.gateway.traffic)
    is_stuck = partial(_is_stuck, context.instance)
    glances, late = looks.take(rollouts.begun(), partial(_glance, rollouts, is_stuck), wait_s=LOOKS_S)
    for glance in glances:
        if glance.error is not None:
            is_known = isinstance(glance.error, AnvenError)
            context.log.warning("%s", glance.told, exc_info=None if is_known else glance.error)
    requests = [
        request
        for glance in glances
        if glance.due and (request := _request(context.instance, glance.workload, glance.due))
    ]
    held = {glance.workload: glance.found for glance in glances if glance.found}
    notes.take(held, lambda workload: _note_hold(rollouts, held[workload]), wait_s=NOTES_S)
    # Dagster refuses all requests of a tick where one names a partition that is not there.
    partitions = workloads.build_add_request([str(request.partition_key) for request in requests])
    # The UI runs lines together, so a sign of its own stands before each workload but the first.
    told = [glance.told for glance in glances if glance.told]
    told += [f"{workload}: the look at it is still under way, and is taken up by the next tick" for workload in late]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason("\n• ".join(told) or "no rollout is open"),
        dynamic_partitions_requests=[partitions] if requests else None,
    )


@cache
def _of_deployment(traffic: str) -> tuple[Looks[_Glance], Looks[None]]:
    """Return the looks and the notes that are under way in this process, whose ticks of one deployment share them."""
    del traffic
    return Looks(), Looks()


def _glance(rollouts: Rollouts, is_stuck: Callable[[str], bool], workload: str) -> _Glance:
    """Look at one workload, in a thread of its own."""
    try:
        return _looked_at(rollouts, is_stuck, workload)
    except AnvenError as error:
        return _Glance(workload, f"{workload}: {error}", error=error)
    except Exception as error:  # noqa: BLE001 - a mistake of ours in one workload must not keep another from its roll back
        return _Glance(workload, f"{workload}: {type(error).__name__}: {error}", error=error)


def _looked_at(rollouts: Rollouts, is_stuck: Callable[[str], bool], workload: str) -> _Glance:
    status = rollouts.status(workload)
    if not status.is_open:
        if not _is_behind(rollouts, workload, status):
            return _Glance(workload)
        if is_stuck(_step_of(workload, status)):
            return _given_back(rollouts, workload)
        told = f"{workload}: {status.phase.replace('_', ' ')}, which the gateway does not know yet"
        return _Glance(workload, told, status)
    found = rollouts.look(workload, now=datetime.now(UTC), uptime=uptime())
    if isinstance(found.decision, RollBack) and is_stuck(_step_of(workload, found.before)):
        return _given_back(rollouts, workload)
    is_due = not isinstance(found.decision, Hold) or rollouts.is_behind(workload, found.before)
    told = f"{_place(found)}: {'; '.join(found.decision.reasons)}"
    return _Glance(workload, told, found.before if is_due else None, found)


def _given_back(rollouts: Rollouts, workload: str) -> _Glance:
    """Take the step that gives legacy its traffic back; the run that waits finds it done."""
    found = rollouts.step(workload, now=datetime.now(UTC), uptime=uptime())
    reasons = "; ".join(found.decision.reasons)
    return _Glance(workload, f"{_place(found)}: {reasons}; taken here, as the run of its step waits for a place to run")


def _place(found: Look) -> str:
    """Say which rollout it is and where it stood, with the generation that an approval names."""
    before = found.before
    return f"{found.plan.workload} ({percent(before.share(found.plan))} at the target, generation {before.generation})"


def _is_behind(rollouts: Rollouts, workload: str, status: RolloutStatus) -> bool:
    """Tell whether a rollout that is not open has still to be put in force."""
    try:
        rollouts.gateway.route(workload)
    except InvalidInput:
        if not status.generation:
            raise
        return True  # the step writes what the log says over a file that is none
    rollouts.require_known(workload)
    return rollouts.is_behind(workload, status)


def _note_hold(rollouts: Rollouts, found: Look) -> None:
    """Write down for people what holds a rollout; whatever goes wrong with that moves nothing."""
    try:
        rollouts.note_hold(found.plan.workload, found, now=datetime.now(UTC))
    except Exception:  # noqa: BLE001 - a notice must not keep a roll back waiting
        _log.exception("what holds %s was not written down", found.plan.workload)


def _request(instance: dg.DagsterInstance, workload: str, status: RolloutStatus) -> dg.RunRequest | None:
    """Return the request for the next step; None while one is under way."""
    step = _step_of(workload, status)
    if is_under_way(instance, {STEP_TAG: step}):
        return None
    tried = instance.get_runs_count(filters=dg.RunsFilter(tags={STEP_TAG: step}))
    return dg.RunRequest(run_key=f"{step}/{tried}", partition_key=workload, tags={STEP_TAG: step})


def _step_of(workload: str, status: RolloutStatus) -> str:
    """Return the value of STEP_TAG of the step that rests on this status."""
    return f"{workload}/{status.attempt}/{status.generation}"


def _is_stuck(instance: dg.DagsterInstance, step: str) -> bool:
    return waits_for_a_place(instance, {STEP_TAG: step})
