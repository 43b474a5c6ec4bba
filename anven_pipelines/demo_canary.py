"""How `anven demo` ends: after a GO the target takes users over in stages, through a real gateway, on live proof.

The gateway is that of `anven gateway`, the controller that of the sensor `rollout`, its statistics included; only the
plan is short (`nano/demo_world.py`). The controller is asked here every two seconds: a daemon would take as long to
start as the canary takes.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx
import polars as pl
from rich.markup import escape

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.exposure import exposure_of
from anven_pipelines.domain.rollout import Advance, Complete, Hold, RollBack
from anven_pipelines.gateway.settings import KEY_ENV
from anven_pipelines.gateway_run import GatewayPlan, running
from anven_pipelines.ingest.gateway_events import read_batch
from anven_pipelines.migrate import chain_of, of_kind, prepared
from anven_pipelines.nano.production import Place, crowd_traffic, use
from anven_pipelines.nano.traffic import Pace
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.rollouts import Rollouts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from anven_pipelines.domain.exposure import Exposure
    from anven_pipelines.domain.prompts import AdaptedPrompt
    from anven_pipelines.nano.exchange import Exchange
    from anven_pipelines.resources.rollouts import Look

AT_ONCE: Final = 4
"""Users who wait for an answer at a time: a slow machine is not asked more than it answers."""
FAULT_AFTER: Final = 40  # calls that the target answers well before it turns bad
LONGEST: Final = timedelta(minutes=10)
_ROUND: Final = 40  # calls; some two seconds of a usual machine
_LOOK_S: Final = 2.0
_TOLD_EVERY_S: Final = 8.0  # while it holds
_SHOWN_GAPS: Final = 3
_WHO: Final = "anven demo"
_ENDED: Final = ("completed", "rolled_back")


class Shift(NamedTuple):
    """What is moved: a workload, its prompts, and what becomes of its target.

    Attributes:
        file: Migration file with the sections `gateway` and `rollout`.
        workload: Its workload, with a verdict that is GO.
        prompt: What the target is asked with.
        target_url: Base URL of the nano server that is the target.
        fault: What that server is told after FAULT_AFTER calls; empty: nothing.
        folder: Where the gateway's prompts are written to.
    """

    file: Path
    workload: str
    prompt: AdaptedPrompt
    target_url: str
    fault: Mapping[str, float]
    folder: Path


class Canary(NamedTuple):
    """How it ended.

    Attributes:
        phase: `completed`, `rolled_back`, or `running` where it was not proven in LONGEST.
        share: Of the target at the end.
        steps: Each change of traffic with its reasons and the seconds since the start.
        sent: Calls of users.
        failed: Those of them that were not answered whole.
        scored: Answers whose score the gateway took.
        exposure: How long users had a target that turned bad; None where none did.
        rolled_back_s: Seconds from the first call to the bad target to the controller's roll back; None without one.
        seconds: From the first call to the end.
    """

    phase: str
    share: float
    steps: tuple[dict[str, Any], ...]
    sent: int
    failed: int
    scored: int
    exposure: Exposure | None
    rolled_back_s: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        found = self._asdict() | {"steps": list(self.steps), "seconds": round(self.seconds, 1)}
        if self.exposure is not None:
            first = self.exposure.first_bad_at.isoformat()
            found["exposure"] = self.exposure._asdict() | {"first_bad_at": first}
        return found


def roll_out(shift: Shift, *, home: Path, console: Console) -> Canary:
    """Start the gateway, let users ask, and follow the controller until all is the target's or legacy's.

    Args:
        shift: What is moved.
        home: Folder of local state.
        console: Gets each change with its reasons, and what is waited for.

    Raises:
        UnavailableService: the gateway does not start, or what it rests on is not installed.
        AnvenError: a step failed.
    """
    prompts = shift.folder / "prompts"
    prompts.mkdir(exist_ok=True)
    (prompts / f"{shift.workload}.json").write_text(
        canonical_json(shift.prompt.model_dump(mode="json")), encoding="utf-8"
    )
    key = f"sk-{secrets.token_hex(24)}"
    with prepared(home) as definitions:
        rollouts = of_kind(definitions, "rollouts", Rollouts)
        _end_earlier(rollouts, shift.workload)
        traffic, events = Path(rollouts.gateway.traffic), Path(rollouts.metrics.events)
        plan = GatewayPlan([shift.file], shift.folder / "gateway", traffic, events, prompts, until_stdin_closes=True)
        with running(plan, {**os.environ, KEY_ENV: key}) as started:
            place = Place(started.url, key, shift.workload)
            live = _Live(shift, rollouts, place, console)
            asyncio.run(live.go_on())
        ended = live.ended(read_batch(events, {}).events)  # the gateway has written its last ones by now
        if ended.phase in _ENDED:
            declared = of_kind(definitions, "migrations", Migrations).of(shift.workload)
            with chain_of(declared, definitions, home=home, steps=1, console=console) as chain:
                chain.show_rollout(shift.workload)
        return ended


def _end_earlier(rollouts: Rollouts, workload: str) -> None:
    """Abort what an earlier demo left, which would be in the way of a new attempt."""
    if rollouts.status(workload).is_open:
        payload = {"who": _WHO, "reason": "another demo begins", "generation": rollouts.status(workload).generation}
        rollouts.act(workload, "aborted", payload, now=datetime.now(UTC))


@dataclass
class _Live:
    """A canary under way: users on one side, the controller on the other."""

    shift: Shift
    rollouts: Rollouts
    place: Place
    console: Console
    sent: int = 0
    failed: int = 0
    scored: int = 0
    faulty_since: datetime | None = None
    has_ended: bool = False
    steps: list[dict[str, Any]] = field(default_factory=list)
    began: float = 0.0
    told_at: float = 0.0
    seconds: float = 0.0

    async def go_on(self) -> None:
        """Let users ask and the controller look until the rollout has ended."""
        await self._warm_up()
        status = self.rollouts.start(self.shift.workload, who=_WHO, now=datetime.now(UTC))
        self.began = self.told_at = time.monotonic()
        first = self.rollouts.plan(self.shift.workload, status).stages[0]
        self._say(f"[bold]{first.share:.0%}[/bold] of the users are the target's now")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask())
                group.create_task(self._control())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _warm_up(self) -> None:
        """Let the proxy load what its first requests load; they are legacy's, as no rollout has begun."""
        await use(crowd_traffic(AT_ONCE, seconds=0, seed=0), self.place, pace=Pace(), write=lambda _: None)

    async def _ask(self) -> None:
        number = 0
        while not self.has_ended:
            number += 1
            plan = crowd_traffic(_ROUND, seconds=0, seed=number)
            done = await use(plan, self.place, pace=Pace(most_in_flight=AT_ONCE), write=self._count)
            self.scored += done.told
            if self.shift.fault and self.faulty_since is None and self.sent >= FAULT_AFTER:
                await self._break()

    def _count(self, exchange: Exchange) -> None:
        self.sent, self.failed = self.sent + 1, self.failed + (exchange.error is not None)

    async def _break(self) -> None:
        words = ", ".join(f"{name} {value:g}" for name, value in self.shift.fault.items())
        before = datetime.now(UTC)
        async with httpx.AsyncClient(trust_env=False) as client:
            url = f"{self.shift.target_url.removesuffix('/v1')}/faults"
            (await client.put(url, json=dict(self.shift.fault))).raise_for_status()
        self.faulty_since = before
        self._say(f"[red]the target turns bad[/red]: {words}")

    async def _control(self) -> None:
        deadline = time.monotonic() + LONGEST.total_seconds()
        try:
            while time.monotonic() < deadline:
                found = await asyncio.to_thread(self.rollouts.step, self.shift.workload, now=datetime.now(UTC))
                self._tell(found)
                if found.status.phase in _ENDED:
                    return
                await asyncio.sleep(_LOOK_S)
        finally:
            self.has_ended = True
            self.seconds = time.monotonic() - self.began

    def _tell(self, found: Look) -> None:
        """Show what was decided; a hold now and then only."""
        match found.decision:
            case Hold():
                if time.monotonic() - self.told_at >= _TOLD_EVERY_S:
                    self._waits(found)
                return
            case Advance(stage):
                said = f"[green]advance[/green] to [bold]{found.plan.stages[stage].share:.0%}[/bold]: it is proven that"
            case Complete():
                said = "[green]complete[/green]: all users are the target's, and it is proven that"
            case RollBack():
                said = "[red]roll back[/red] to [bold]0 %[/bold]:"
        at_s = round(time.monotonic() - self.began, 1)
        share = found.status.share(found.plan)
        self.steps.append({"at_s": at_s, "share": share, "reasons": list(found.decision.reasons)})
        self._say(said)
        for reason in found.decision.reasons:
            self.console.print(f"        {reason}", markup=False, highlight=False, soft_wrap=True)

    def _waits(self, found: Look) -> None:
        self.told_at = time.monotonic()
        reasons = found.decision.reasons
        more = f"; and {len(reasons) - _SHOWN_GAPS} more" if len(reasons) > _SHOWN_GAPS else ""
        dealt = found.evidence.assignment
        units = f"{dealt.target} users of the target beside {dealt.legacy} of legacy; " if dealt else ""
        self._say(f"hold: {escape(units + '; '.join(reasons[:_SHOWN_GAPS]) + more)}")

    def _say(self, text: str) -> None:
        at_s = time.monotonic() - self.began
        self.console.print(f"   {at_s:3.0f} s  {text}", highlight=False, soft_wrap=True)

    def ended(self, events: pl.DataFrame) -> Canary:
        """Return how it ended, with what the gateway's events tell of a target that turned bad."""
        workload = self.shift.workload
        status = self.rollouts.status(workload)
        exposure, rolled_back_s = None, None
        if self.faulty_since is not None:
            exposure = exposure_of(events.filter(pl.col("workload") == workload), since=self.faulty_since)
        if exposure is not None and status.phase == "rolled_back" and status.entered_at is not None:
            rolled_back_s = (status.entered_at - exposure.first_bad_at).total_seconds()
        plan = self.rollouts.plan(workload, status)
        return Canary(
            phase=status.phase,
            share=status.share(plan),
            steps=tuple(self.steps),
            sent=self.sent,
            failed=self.failed,
            scored=self.scored,
            exposure=exposure,
            rolled_back_s=rolled_back_s,
            seconds=self.seconds,
        )
