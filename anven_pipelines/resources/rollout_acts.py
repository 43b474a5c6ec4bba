"""Does to a rollout what a person asked for, for the command line and for Dagster alike."""

from __future__ import annotations

import os
import pwd
from contextlib import nullcontext
from typing import TYPE_CHECKING

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.rollout_flag import flag_to_close
from anven_pipelines.domain.rollout_status import refusal, status_of, stream_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from anven_pipelines.domain.events import Event
    from anven_pipelines.domain.rollout_act import Act
    from anven_pipelines.domain.rollout_status import RolloutStatus
    from anven_pipelines.domain.uptime import Uptime
    from anven_pipelines.resources.rollouts import Rollouts


def perform(rollouts: Rollouts, act: Act, *, now: datetime, uptime: Uptime | None = None) -> RolloutStatus:
    """Write an act to the audit log and put it in force; one whose request stands there is only put in force.

    Args:
        rollouts: The rollouts of the deployment.
        act: What is asked for.
        now: This machine's clock.
        uptime: The same moment by how long it has been up; None where unknown.

    Returns:
        Where the rollout stands then.

    Raises:
        InvalidInput: something is wrong with the act, or it cannot happen now: nothing was written; or the traffic
            file is none, or ahead of the log: the act is in the log.
        TamperedLog: the log was altered.
        UnavailableService: the state store or the traffic file does not answer. What was written stays, and the next
            step, or the same request, puts it in force.

    An abort that ends in any of these while the gateway may serve the target kills the workload at the gateway, unless
    it is wrong by itself or meant for another generation. A kill is at the gateway before it is in the log.
    """
    if problems := act.problems():
        raise InvalidInput("; ".join(map(str, problems)))
    with rollouts.gateway.giving_back(act.workload) if act.verb in ("abort", "kill") else nullcontext():
        events = rollouts.state.events(stream_of(act.workload))
        if act.is_done(events):
            _switch(rollouts, act, events)
            return rollouts.put_in_force(act.workload)
        if not events:
            rollouts.migrations.of(act.workload)  # a name that nobody declares is a slip of the pen
        told = {**act.told(now=now), "account": _account()}
        if act.verb == "abort" and act.generation is None:  # needs nothing of a log that may have been altered
            return rollouts.act(act.workload, act.kind, {"who": act.who, **told}, now=now, uptime=uptime)
        status = rollouts.status(act.workload)
    payload = act.payload(status.generation, now=now) | told
    if act.verb == "unflag":
        payload["flag"] = flag_to_close(status.flags, act.flag)
    if act.verb == "start":
        return rollouts.start(act.workload, who=act.who, now=now, uptime=uptime, **told)
    if act.verb == "kill":
        rollouts.gateway.kill(act.workload)
    status = rollouts.act(act.workload, act.kind, payload, now=now, uptime=uptime)
    _switch(rollouts, act, rollouts.state.events(stream_of(act.workload)))
    return status


def _switch(rollouts: Rollouts, act: Act, events: Sequence[Event]) -> None:
    """Turn the kill switch, or set the shadow, as the log says, where that is what the act is about."""
    if act.verb == "shadow":
        newest_share = [event.payload["shadow"] for event in events if event.kind == act.kind][-1]
        rollouts.gateway.mirror(act.workload, newest_share)
    if act.verb not in ("kill", "unkill"):
        return
    newest = [event.kind for event in events if event.kind in ("killed", "unkilled")][-1]
    if newest == "killed":
        rollouts.gateway.kill(act.workload)
    elif refusal(status_of(events), act.kind) is None:  # an attempt that began since may have been killed without a log
        rollouts.gateway.unkill(act.workload)


def what_stands(rollouts: Rollouts, act: Act) -> str | None:
    """Say what of an act that ended in an error stands all the same; None where nothing was written.

    Raises:
        UnavailableService: the state store does not answer, or the traffic file cannot be read.
    """
    if act.verb == "kill" and rollouts.gateway.is_killed(act.workload):
        return "the switch is on at the gateway, and may not be in the audit log: do it again once that is mended"
    if act.is_done(rollouts.state.events(stream_of(act.workload))):
        if act.verb == "unkill":
            return "it is in the audit log, and the switch may be on still: do it again once that is mended"
        if act.verb == "shadow":
            return "it is in the audit log, and may not be in force: do it again once that is mended"
        return "it is in the audit log, and the next step puts it in force once that is mended"
    return None


def _account() -> str:
    """Return the account that this process runs under; the environment, which anybody can set, is not asked."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container that runs under a bare number
        return f"uid {os.getuid()}"
