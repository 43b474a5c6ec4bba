"""What `anven demo` does: two tiny models are served here, and a workload is migrated from one to the other, live."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from contextlib import ExitStack, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import yaml
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from anven_pipelines.chain import only_one
from anven_pipelines.demo_canary import Shift, roll_out
from anven_pipelines.domain.arrivals import Rhythm, arrival_times
from anven_pipelines.domain.errors import InvalidInput, StepFailed
from anven_pipelines.gateway_run import require_proxy
from anven_pipelines.migrate import migrate_file
from anven_pipelines.nano.demand import plan_traffic
from anven_pipelines.nano.demo_world import LEGACY, TARGET, later_fault, migration, server_faults
from anven_pipelines.nano.gateway_logs import GatewayLog
from anven_pipelines.nano.serving import served
from anven_pipelines.nano.traffic import Pace, TrafficSummary, drive
from anven_pipelines.prompt_view import found_lines, read_prompt
from anven_pipelines.verdict_view import show

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from anven_pipelines.demo_canary import Canary
    from anven_pipelines.domain.sign_off import Verdict
    from anven_pipelines.nano.demo_world import Breakage

MOST_CALLS_PER_SECOND: Final = 30.0
# Share of what the server answers one after another that is sent to it: latencies without much of a queue.
LOAD: Final = 0.4
_PROBES: Final = 30
_TOLD_EVERY_S: Final = 15.0  # where no progress bar can be drawn
_LEAST_CALLS: Final = 900  # for two verdicts and a search
_CANARY: Final = "the canary: users ask a LiteLLM proxy with our plugin, and the controller moves them to the target"
_LOCK: Final = "_demo"  # no workload's name begins so
_HEADER: Final = """\
# Written by `anven demo`, which starts anew each time: copy this file to keep it. The server at target.url ended with
# it; `python -m anven_pipelines.nano.server --model anven-nano --port N` starts one.
"""


class Demonstration(NamedTuple):
    """What the demo ended with.

    Attributes:
        traffic: What was asked of the legacy model.
        verdicts: By workload, in the order in which they were reached.
        adaptation: What the search for prompts found; empty where none was made.
        canary: How the target took over users; None where the last verdict is not GO.
        folder: Where the log and the migration files are.
        seconds: How long it took.
    """

    traffic: TrafficSummary
    verdicts: dict[str, Verdict]
    adaptation: Mapping[str, Any]
    canary: Canary | None
    folder: Path
    seconds: float

    @property
    def is_moved(self) -> bool:
        """Whether all users are the target's at the end."""
        return self.canary is not None and self.canary.phase == "completed"

    @property
    def verdict(self) -> Verdict:
        """The last verdict: that of the adapted prompts."""
        return next(reversed(self.verdicts.values()))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "verdict": self.verdict.verdict,
            "verdicts": {name: verdict.model_dump(mode="json") for name, verdict in self.verdicts.items()},
            "adaptation": self.adaptation or None,
            "rollout": self.canary.to_json() if self.canary else None,
            "traffic": self.traffic._asdict(),
            "folder": str(self.folder),
            "seconds": round(self.seconds, 1),
        }


def demonstrate(home: Path, *, breakage: Breakage | None, calls: int, seed: int, console: Console) -> Demonstration:
    """Serve both models, make a legacy log, migrate with the legacy prompts as they are, then searched, and roll out.

    Args:
        home: Folder of local state; what the demo writes is in its `demo`.
        breakage: Makes the target worse, at once or once it has users, asks it with declared prompts, and leaves the
            unchanged ones out.
        calls: Of the legacy log.
        seed: Of the traffic.
        console: Gets what goes on.

    Raises:
        InvalidInput: another demo runs here, or the calls are too few for two verdicts.
        UnavailableService: LiteLLM's proxy is not installed, with which it would end.
        AnvenError: a step failed.
    """
    if breakage is None and calls < _LEAST_CALLS:
        message = f"--calls is {calls}; at least {_LEAST_CALLS} are needed: each verdict has items of its own"
        raise InvalidInput(message)
    if breakage is None or later_fault(breakage):
        require_proxy()
    began, folder = time.monotonic(), home / "demo"
    with only_one(home, "a demo", name=_LOCK), ExitStack() as servers:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _say(console, 1, f"serving {LEGACY} on this machine, then {TARGET} (0.75 million weights each)")
        legacy_url = servers.enter_context(served(LEGACY, log=folder / "legacy-nano.log"))
        _say(console, 2, f"sending {LEGACY} {calls:,} calls of three applications, logged as a LiteLLM proxy does")
        traffic = _legacy_log(folder, legacy_url, calls=calls, seed=seed, console=console)
        faults = server_faults(breakage, legacy_ttft_p95_ms=traffic.ttft_p95_ms)
        target_url = servers.enter_context(served(TARGET, *faults, log=folder / "anven-nano.log"))
        verdicts: dict[str, Verdict] = {}
        adaptation: Mapping[str, Any] = {}
        urls = {LEGACY: legacy_url, TARGET: target_url}
        files = {adapted: _declare(folder, urls, adapted=adapted, breakage=breakage) for adapted in (False, True)}
        canary: Canary | None = None
        step = 2
        for adapted in [True] if breakage else [False, True]:
            step += 1
            _say(console, step, _what(adapted=adapted, breakage=breakage))
            # Asked afresh: a verdict of the demo comes from answers of this minute.
            epoch = datetime.now(UTC).isoformat()
            verdict = migrate_file(files[adapted], home=home, epoch=epoch, console=console)
            verdicts[verdict.workload] = verdict
            current = read_prompt(files[adapted], home=home)
            adaptation = current.report
            for line in found_lines(adaptation) if adaptation else ():
                console.print(f"   {line}", markup=False, highlight=False, soft_wrap=True)
            console.print(
                f"   [bold]{verdict.verdict}[/bold]  {escape(_in_short(verdict))}", highlight=False, soft_wrap=True
            )
        if verdict.verdict == "GO":
            _say(console, step + 1, _CANARY)
            shift = Shift(files[True], verdict.workload, current.prompt, target_url, later_fault(breakage), folder)
            canary = roll_out(shift, home=home, console=console)
            for line in _in_sum(canary):
                console.print(f"   {line}", highlight=False, soft_wrap=True)
    return Demonstration(traffic, verdicts, adaptation, canary, folder, time.monotonic() - began)


def _declare(folder: Path, urls: Mapping[str, str], *, adapted: bool, breakage: Breakage | None) -> Path:
    """Write a migration file; both are there before either is used, as an earlier demo has registered both."""
    file = folder / f"{'adapted' if adapted else 'unchanged'}.yaml"
    declared = migration(url=urls[TARGET], legacy_url=urls[LEGACY], adapted=adapted, breakage=breakage)
    file.write_text(_HEADER + yaml.safe_dump(declared, sort_keys=False, width=110), encoding="utf-8")
    return file


def show_demonstration(shown: Demonstration, console: Console) -> None:
    """Print the last verdict whole, and where to go from here."""
    show(shown.verdict, console)
    if shown.canary is not None:
        console.print(f"\n{ending(shown.canary)}", highlight=False, soft_wrap=True)
    anven = _anven()
    console.print(
        f"""
[bold]Look at it[/bold]       {anven} dev   opens the Dagster UI and MLflow: assets, checks, charts, answers, rollout
[bold]What it read[/bold]     {escape(str(shown.folder))}: the log, both migration files, the servers' output
[bold]The prompts[/bold]      {anven} prompt {escape(str(shown.folder / "adapted.yaml"))}   what changed and why
[bold]See it refuse[/bold]    {anven} demo --break regress         (or slow, errors, cost)
[bold]See it roll back[/bold] {anven} demo --break regress-later   (or slow-later, errors-later)
[bold]The rollout[/bold]      {anven} rollout status {shown.verdict.workload}
[bold]Your own[/bold]         {anven} migrate FILE   ("Your own migration" in the README)
Took {shown.seconds:.0f} s""",
        highlight=False,
        soft_wrap=True,
    )


def _anven() -> str:
    """Return how the command is called here: within `./uvw run` it is not on the PATH."""
    within_uv = "UV_RUN_RECURSION_DEPTH" in os.environ and Path("uvw").is_file()
    return "./uvw run anven" if within_uv else "anven"


def _legacy_log(folder: Path, url: str, *, calls: int, seed: int, console: Console) -> TrafficSummary:
    rng = np.random.default_rng(seed)
    arrivals = arrival_times(calls, seconds=calls / _calls_per_second(url), rhythm=Rhythm(), rng=rng)
    plan = plan_traffic(arrivals, split="golden", seed=seed)
    now = datetime.now(UTC)
    # A seed asks the same questions in every demo; under new ids, as an earlier demo's NO-GO has burnt the old ones.
    calls_now = tuple(
        call._replace(conversation_id=f"{call.conversation_id}-{now:%Y%m%dT%H%M%S}") for call in plan.calls
    )
    plan = plan._replace(calls=calls_now)
    log = GatewayLog(folder / f"calls-{now.date()}.jsonl", "litellm")
    columns = (TextColumn("  "), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True)
    with log, bar if console.is_terminal else nullcontext():
        task = bar.add_task("calls", total=len(plan.calls))
        told = time.monotonic()

        def progress(done: int, of: int) -> None:
            nonlocal told
            bar.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - told >= _TOLD_EVERY_S:
                told = time.monotonic()
                console.print(f"   {done:,} of {of:,} calls", highlight=False)

        summary = asyncio.run(drive(plan, url=url, model=LEGACY, write=log.write, progress=progress))
    if summary.failed == summary.sent:
        message = f"all {summary.sent} calls to {LEGACY} failed; its output is in {folder / 'legacy-nano.log'}"
        raise StepFailed(message)
    console.print(
        f"   {summary.sent:,} calls in {summary.seconds:.0f} s, {summary.failed} failed; latency, time to first token "
        "and tokens are measured",
        highlight=False,
        soft_wrap=True,
    )
    return summary


def _calls_per_second(url: str) -> float:
    """Return a rate that this machine serves with ease: a slow one would measure its own queue as latency."""
    plan = plan_traffic(np.zeros(_PROBES), split="train", seed=0)
    probes = asyncio.run(drive(plan, url=url, model=LEGACY, write=lambda _: None, pace=Pace(most_in_flight=1)))
    return min(MOST_CALLS_PER_SECOND, LOAD * probes.sent / probes.seconds)


def _say(console: Console, step: int, text: str) -> None:
    console.print(f"[bold]{step}[/bold]  {text}", highlight=False, soft_wrap=True)


def _what(*, adapted: bool, breakage: Breakage | None) -> str:
    declared = f"migrating to {TARGET} with declared prompts, not searched ones"
    if later_fault(breakage):
        return f"{declared}; the target is sound, and turns bad once it has users: {breakage}"
    if breakage:
        return f"{declared}, and the target made worse: {breakage}"
    if adapted:
        return f"the same migration, which now looks for prompts that {TARGET} takes better (`prompt.mode: full`)"
    return f"migrating to {TARGET} with the legacy prompts as they are"


def _in_sum(canary: Canary) -> list[str]:
    """Say what became of the users' calls and of the target."""
    unanswered = f"{canary.failed} of them failed" if canary.failed else "every one answered"
    moved = "all" if canary.share == 1 else f"{canary.share:.0%}"
    calls = f"{canary.sent:,} calls of users in {canary.seconds:.0f} s, {unanswered}"
    lines = [f"{calls}; {moved} of the users are the target's at the end"]
    if (found := canary.exposure) is not None:
        breaker = "" if found.breaker_s is None else f"the breaker gave them back after {found.breaker_s:.1f} s, "
        controller = "" if canary.rolled_back_s is None else f"the controller after {canary.rolled_back_s:.1f} s, "
        lines.append(
            f"from the first call to the bad target on: {breaker}{controller}the last call went to it after "
            f"{found.last_dealt_s:.1f} s; {found.bad} bad calls, {found.rescued} of them answered by legacy instead"
        )
    return lines


def ending(canary: Canary) -> str:
    """Say last what became of the users: above stands a verdict that may be GO all the same."""
    last = escape("; ".join(canary.steps[-1]["reasons"])) if canary.steps else "nothing was decided"
    match canary.phase:
        case "completed":
            return "[bold green]the canary completed[/bold green]: all users are the target's, each stage on proof"
        case "rolled_back":
            return f"[bold red]the canary was rolled back[/bold red], and all users are legacy's again: {last}"
        case _:
            return (
                f"[bold yellow]the canary did not end[/bold yellow]: {canary.share:.0%} of the users are the target's"
            )


def _in_short(verdict: Verdict) -> str:
    """Say what keeps the verdict from GO, or what proved it."""
    gating = [each for each in verdict.criteria if not each.waived]
    worst = [each for status in ("not met", "undecided", "unmeasured") for each in gating if each.status == status]
    shown = (worst or gating)[0]
    return f"{shown.name}: {shown.reason}"
