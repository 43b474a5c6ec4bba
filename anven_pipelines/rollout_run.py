"""What `anven rollout` does: shows where a rollout stands, takes its next step, and writes down what people decide."""

from __future__ import annotations

import getpass
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from rich.table import Table

from anven_pipelines.domain.errors import AnvenError, InvalidInput, UnavailableService
from anven_pipelines.domain.rollout_act import Act, Verb
from anven_pipelines.domain.rollout_report import drill_report, percent, report_of, units_words
from anven_pipelines.migrate import of_kind, prepared
from anven_pipelines.resources.drills import Drills
from anven_pipelines.resources.notices import Notices
from anven_pipelines.resources.online_judge import OnlineJudges
from anven_pipelines.resources.rollout_acts import perform, what_stands
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.resources.uptime import uptime

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from anven_pipelines.domain.uptime import Uptime

Action = Verb | Literal["status", "step", "notify", "judge"]

_COLOURS: Final = {"advance": "green", "complete": "green", "hold": "yellow", "roll back": "red"}


def act(  # noqa: PLR0913 - what all acts take
    workload: str,
    action: Action,
    *,
    home: Path,
    who: str | None,
    hours: float,
    reason: str,
    flag: str | None = None,
    generation: int | None = None,
    share: float | None = None,
) -> dict[str, Any]:
    """Do what was asked of a rollout, then look at it.

    Args:
        workload: Whose rollout it is.
        action: What to do.
        home: Folder of local state.
        who: Who does it; the user of this machine where None.
        hours: How long an override counts.
        reason: Why, for the audit log.
        flag: Id of the flag to close; the only open one where None.
        generation: Of the traffic that it is meant for; None for whatever is in force.
        share: Of legacy's requests that `shadow` mirrors; None with any other act.

    Returns:
        The report of `rollout_report.report_of`, `drill`, the newest rehearsal, `notices`, how each receiver
        fares, and `judge`, how the online judge does, None where there is none and only `problem` where that is
        unknown; as plain JSON.

    Raises:
        InvalidInput: it cannot happen now, or the workload is unknown: nothing was written.
        UnavailableService: the state store or the traffic file does not answer; or it is in the audit log, and cannot
            be put in force.
    """
    now, up, person = datetime.now(UTC), uptime(), getpass.getuser() if who is None else who
    asked = _asked(
        workload, action, who=person, hours=hours, reason=reason, flag=flag, generation=generation, share=share
    )
    with prepared(home) as definitions:
        rollouts = of_kind(definitions, "rollouts", Rollouts)
        if asked is not None:
            _do(rollouts, asked, now=now, uptime=up)
        judges = of_kind(definitions, "judges", OnlineJudges)
        judged = judges.run(workload, now=now) if action == "judge" else _judge_report(judges, workload, now=now)
        if action == "judge" and judged is None:
            message = (
                f"{workload} has no open rollout with a judge: declare rollout.judge, and start it (docs/rollout.md)"
            )
            raise InvalidInput(message)
        look = rollouts.step if action == "step" else rollouts.look
        found = look(workload, now=now, uptime=up)
        notices = of_kind(definitions, "notices", Notices)
        told = notices.deliver(workload, now=now) if action == "notify" else notices.report(workload, now=now)
        interrupted = of_kind(definitions, "drills", Drills).interrupted(workload)
    report = report_of(found.plan, found.before, found.evidence, found.decision, found.status)
    drill = drill_report(found.plan, found.status, now=now)
    report |= {"notices": told, "judge": judged}
    return report | {"drill": drill | {"interrupted": interrupted.isoformat() if interrupted else None}}


def _judge_report(judges: OnlineJudges, workload: str, *, now: datetime) -> dict[str, Any] | None:
    """Say how the online judge does; what cannot be read of it hides neither what was done nor where the rollout is."""
    try:
        return judges.report(workload, now=now)
    except (AnvenError, OSError) as error:
        return {"problem": str(error)}


def _do(rollouts: Rollouts, asked: Act, *, now: datetime, uptime: Uptime | None) -> None:
    """Do what a person asked for; an error says where it stands in the log all the same, so that nobody repeats it."""
    try:
        perform(rollouts, asked, now=now, uptime=uptime)
    except AnvenError as error:
        stands = None
        with suppress(AnvenError):
            stands = what_stands(rollouts, asked)
        if stands is None:
            raise
        message = f"{error}; {stands}"
        raise UnavailableService(message) from error


def _asked(
    workload: str,
    action: Action,
    *,
    who: str,
    hours: float,
    reason: str,
    flag: str | None,
    generation: int | None,
    share: float | None = None,
) -> Act | None:
    """Return what a person does; None where the action is only to look, to step, to tell or to judge."""
    match action:
        case "status" | "step" | "notify" | "judge":
            return None
    lasts = hours if action == "override" else None
    asked = Act(
        verb=action,
        workload=workload,
        who=who,
        reason=reason,
        hours=lasts,
        flag=flag,
        generation=generation,
        share=share,
        request=f"command-{uuid.uuid4().hex}",  # so that it is found in the log if it cannot be put in force
    )
    if problems := asked.problems():
        raise InvalidInput("; ".join(f"--{problem}" for problem in problems))
    return asked


def show_rollout(report: dict[str, Any], console: Console) -> None:
    """Print where a rollout stands, what was found, and what follows."""
    place = (
        "legacy has all traffic"
        if report["share"] == 0
        else f"the target has {percent(report['share'])} of the traffic"
    )
    attempt = f", attempt {report['attempt']}, generation {report['generation']}" if report["generation"] else ""
    console.print(f"[bold]{report['workload']}[/bold]  {report['phase'].replace('_', ' ')}: {place}{attempt}")
    if units := report["units"]:
        console.print(f"units: {units_words(units)}", highlight=False)
    if report["units"]:
        table = Table("state", "found", box=None, pad_edge=False)
        for found in report["evidence"]:
            table.add_row(f"{found['state']}{' (waived)' if found['waived'] else ''}", found["found"])
        console.print(table)
    for flag in report["flags"]:
        told = f"flag {flag['id']} of {flag['who']}, open since {flag['at'][:16]} UTC: {flag['reason']}"
        console.print(told, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for account, people in report["shared_accounts"].items():
        told = f"{' and '.join(people)} signed from one account of the system, {account}"
        console.print(told, style="yellow", highlight=False, markup=False, soft_wrap=True)
    console.print(_drill_line(report["drill"]), highlight=False, markup=False, soft_wrap=True)
    for receiver in report["notices"]:
        if receiver["problem"] or receiver["dropped"]:
            console.print(_receiver_line(receiver), style="yellow", highlight=False, markup=False, soft_wrap=True)
    if report["judge"]:
        style = "yellow" if report["judge"]["problem"] else None
        console.print(_judge_line(report["judge"]), style=style, highlight=False, markup=False, soft_wrap=True)
    colour = _COLOURS[report["decision"]]
    console.print(f"[{colour}]{report['decision']}[/{colour}]")
    for reason in report["reasons"]:
        console.print(f"  {reason}", highlight=False, markup=False, soft_wrap=True)


def _drill_line(drill: dict[str, Any]) -> str:
    """Say how the newest drill went and how old it is."""
    told = "drill: none"
    if drill["at"] is not None:
        took = "" if drill["seconds"] is None else f" in {drill['seconds']:.2f} s"
        told = f"drill: {'passed' if drill['passed'] else 'failed'}{took}, {drill['age_h']:.1f} h ago"
    if drill["interrupted"]:
        told += f"; one that began at {drill['interrupted'][:16]} UTC never ended, unless it is under way"
    return told + ("; waived" if drill["waived"] else "")


def _receiver_line(receiver: dict[str, Any]) -> str:
    """Say why a receiver of notices is not told, and what it misses."""
    state = "dead" if receiver["dead"] else "failing"
    tries = "1 try" if receiver["failures"] == 1 else f"{receiver['failures']} tries"
    problem = f"{state} since {tries}: {receiver['problem']}" if receiver["problem"] else "answers"
    return f"notices to {receiver['receiver']}: {problem}; {receiver['waiting']} wait, {receiver['dropped']} dropped"


def _judge_line(judge: dict[str, Any]) -> str:
    """Say how the online judge does, and what keeps answers from being scored."""
    if "model" not in judge:
        return f"judge: unknown; {judge['problem']}"
    told = (
        f"judge {judge['model']}: {judge['asked_today']:,} of {judge['most_a_day']:,} judgements today, "
        f"{judge['waiting']:,} answers wait"
    )
    return f"{told}; {judge['problem']}" if judge["problem"] else told
