"""Each state of a rollout meets each fault: never an advance without proof, never two changes for one; it recovers.

docs/rollout.md tells in words what stands here as a table.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from anven_pipelines.domain.gateway_event import GatewayEvent
from anven_pipelines.domain.rollout_status import CHANGES, change_key, stream_of
from anven_pipelines.gateway_run import GatewayPlan, running
from tests.gateway_proxy import KEY
from tests.rollout_runner import Ended, Runner, rollouts_at
from tests.rollout_states import STATES, State, made, place_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from anven_pipelines.domain.events import Event
    from anven_pipelines.resources.rollouts import Rollouts
    from tests.faults.conftest import EveryState

HOURS: Final = timedelta(hours=1)
ADVANCES: Final = ("advanced", "completed")


class Made:
    """The states of one session, each made once and copied for each cell."""

    def __init__(self, folder: Path, runs: Runner) -> None:
        self.folder, self.runs, self.now = folder, runs, datetime.now(UTC)
        self.began = self.now

    def copy(self, name: str, into: Path) -> Path:
        made_once = self.folder / name
        if not made_once.exists():
            made(name, made_once, now=self.now)
        shutil.copytree(made_once, into)
        return into


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory, runs: Runner) -> Made:
    return Made(tmp_path_factory.mktemp("states"), runs)


@dataclass
class Cell:
    """One state that meets one fault."""

    name: str
    home: Path
    states: Made

    @property
    def state(self) -> State:
        return STATES[self.name]

    @property
    def rollouts(self) -> Rollouts:
        return rollouts_at(self.home)

    @property
    def gateway(self) -> Path:
        return self.home / "gateway"

    @property
    def changes(self) -> list[Event]:
        return [event for event in self.rollouts.state.events(stream_of("support")) if event.kind in CHANGES]

    def step(self, *, clock: timedelta = timedelta(0), gone_by: timedelta = timedelta(0), **how: Any) -> list[Ended]:
        """Do what is next, while the clock says so much more than the time that has gone by."""
        action = "step" if self.changes else "start"
        now = self.states.now + gone_by + clock
        return self.states.runs.run(self.home, now, gone_by=gone_by, **({"action": action} | how))

    def require_unmoved(self) -> None:
        assert place_of(self.rollouts) == self.state.before
        self.require_whole()

    def require_whole(self, *, reads_traffic: bool = True) -> None:
        """Assert what holds whatever happened: a log that verifies, and at most the one change that is proven."""
        rollouts, before, after = self.rollouts, self.state.before, self.state.after
        assert rollouts.state.verify().ok
        kinds = [event.kind for event in self.changes]
        assert [event.key for event in self.changes] == [change_key(at + 1) for at in range(len(kinds))]
        began = self.state.stages + sum(each.split(",")[0] in CHANGES for each in self.state.then)
        assert kinds[began:] in ([], [self.state.change])
        if not reads_traffic:
            return
        route = rollouts.gateway.read().of("support")
        assert route.generation <= len(kinds)
        assert route.share in ({before.share} if len(kinds) == began else {before.share, after.share}) | (
            {after.share} if self.name == "rolling_back" else set()
        )

    def require_killed(self) -> None:
        """Assert that harm which cannot be written down took the target's traffic all the same."""
        assert self.rollouts.gateway.read().of("support").killed == (self.state.change == "rolled_back")

    def require_routed(self) -> None:
        """Assert that a roll back which is logged reached the gateway: that needs nothing else."""
        assert self.name != "rolling_back" or place_of(self.rollouts) == self.state.after

    def require_recovered(self, **how: Any) -> None:
        """Assert that the next undisturbed step ends where it ends without the fault, and one more changes nothing."""
        for _ in range(2):
            (ended,) = self.step(**how)
            assert ended.said is not None
            assert place_of(self.rollouts) == self.state.after, ended
            self.require_whole()


def said(ended: list[Ended]) -> str:
    (one,) = ended
    assert one.said is not None
    return str(one.said["decision"])


def a_step_is_killed_before_each_write(cell: Cell) -> None:
    killed = 0
    for write in range(1, 100):
        home = cell.home.with_name(f"killed-{write}")
        each = Cell(cell.name, cell.states.copy(cell.name, home), cell.states)
        (ended,) = each.step(die_at=write)
        each.require_whole()
        if ended.signal is None:
            break
        killed += 1
        (ended,) = each.step()
        assert place_of(each.rollouts) == cell.state.after, (write, ended)
        each.require_whole()
        shutil.rmtree(home)
    assert killed >= (8 if cell.state.change else 1)  # lock, row, head, commit, lock, file, name, and reading's own
    cell.require_recovered()


def three_steps_decide_at_once(cell: Cell) -> None:
    """As two sensors do, or a run key that is delivered twice."""
    ended = cell.step(at_once=3)
    assert len(ended) == 3
    assert place_of(cell.rollouts) == cell.state.after
    cell.require_recovered()


def the_event_log_cannot_be_read(cell: Cell) -> None:
    segment = cell.gateway / "events" / "w2-000000.jsonl"
    segment.mkdir(parents=True)
    ended = cell.step()
    if cell.state.change in {*ADVANCES, "rolled_back"}:
        assert said(ended) == "Hold"
        cell.require_unmoved()
    cell.require_whole()
    cell.require_routed()
    segment.rmdir()
    cell.require_recovered()


def the_gateway_is_silent_for_days(cell: Cell) -> None:
    late = timedelta(days=3)
    ended = cell.step(gone_by=late)
    if cell.state.change in ADVANCES:
        assert said(ended) == "Hold"
        cell.require_unmoved()
    cell.require_whole()
    cell.require_routed()
    if cell.state.before.share and cell.state.before.phase != "rolled_back":
        speak(cell, late)
    cell.require_recovered(gone_by=late)


def speak(cell: Cell, at: timedelta) -> None:
    """Have the gateway serve one more request."""
    last = cell.state.stages
    event = GatewayEvent(
        event_id="again",
        kind="request",
        ts=cell.states.now + at,
        worker="w2",
        seq=1,
        workload="support",
        attempt=1,
        generation=last,
        stage=last - 1,
        share=cell.state.before.share,
        unit="f" * 32,
        bucket=0.1,
        intended="target",
        served="target",
        request_id="again",
        status="ok",
        stream=True,
        cached=False,
        ttft_ms=100.0,
        latency_ms=200.0,
        cost_usd=0.001,
    )
    (cell.gateway / "events" / "w2-000000.jsonl").write_bytes(event.to_line())


def the_state_database_is_locked(cell: Cell) -> None:
    holder = sqlite3.connect(cell.home / "state.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    ended = cell.step()
    if cell.state.change:
        assert said(ended) == "UnavailableService"
        cell.require_unmoved()
    cell.require_killed()
    cell.require_routed()
    holder.execute("ROLLBACK")
    holder.close()
    cell.require_recovered()


def the_state_database_is_gone(cell: Cell) -> None:
    """A new and empty one is made in its place, which is no log of the traffic that goes on."""
    aside = cell.home / "aside"
    aside.mkdir()
    for file in cell.home.glob("state.db*"):
        file.rename(aside / file.name)
    (ended,) = cell.step(action="step" if cell.state.stages else "start")
    assert ended.said is not None
    assert ended.said["decision"] == "InvalidInput"
    needed = "the state store was replaced or set back" if cell.state.stages else "has no verdict"
    assert needed in ended.said["reasons"][0]
    for file in cell.home.glob("state.db*"):
        file.unlink()
    for file in aside.iterdir():
        file.rename(cell.home / file.name)
    cell.require_unmoved()
    cell.require_recovered()


def the_disk_of_the_state_database_is_full(cell: Cell) -> None:
    ended = cell.step(full="database")
    if cell.state.change:
        assert said(ended) == "UnavailableService"
        cell.require_unmoved()
    cell.require_killed()
    cell.require_routed()
    cell.require_recovered()


def the_disk_of_the_traffic_file_is_full(cell: Cell) -> None:
    publishes = cell.state.before.share != cell.state.after.share or cell.state.change is not None
    ended = cell.step(full="traffic")
    if publishes:
        assert said(ended) == "UnavailableService"
        assert cell.rollouts.gateway.read().of("support").share == cell.state.before.share
    cell.require_whole()
    cell.require_recovered()


def the_traffic_file_is_half_written(cell: Cell) -> None:
    file = cell.gateway / "traffic.json"
    whole = file.read_bytes() if file.exists() else None
    file.write_bytes(whole[:-9] if whole else b'{"version": 1, "rou')
    (ended,) = cell.step()
    if whole and cell.state.after.share == 0:
        assert place_of(cell.rollouts) == cell.state.after, ended
        cell.require_whole()
        return
    assert ended.said is not None
    assert ended.said["decision"] == "InvalidInput"
    wrote = [event.kind for event in cell.changes[cell.state.stages :]]
    assert not {*wrote} & {"advanced", "completed", "started"} or cell.name == "completed"
    cell.require_whole(reads_traffic=False)
    if whole:
        file.write_bytes(whole)
    else:
        file.unlink()
    cell.require_recovered()


def the_clock_is_set_back_by_hours(cell: Cell) -> None:
    ended = cell.step(clock=-5 * HOURS)
    if cell.state.change in ADVANCES:
        assert said(ended) == "Hold"
        cell.require_unmoved()
    elif cell.state.change:
        assert place_of(cell.rollouts) == cell.state.after
    cell.require_whole()
    cell.require_routed()
    cell.require_recovered()


def the_clock_is_set_forward_by_hours(cell: Cell) -> None:
    """The stay is two hours short of what is needed, and by the clock three hours longer."""
    early = -3 * HOURS
    ended = cell.step(gone_by=early, clock=5 * HOURS)
    if cell.state.change in ADVANCES:
        assert said(ended) == "Hold"
        cell.require_unmoved()
    elif cell.state.change:
        assert place_of(cell.rollouts) == cell.state.after
    cell.require_whole()
    cell.require_routed()
    cell.require_recovered()


FAULTS: Final = (
    a_step_is_killed_before_each_write,
    three_steps_decide_at_once,
    the_event_log_cannot_be_read,
    the_gateway_is_silent_for_days,
    the_state_database_is_locked,
    the_state_database_is_gone,
    the_disk_of_the_state_database_is_full,
    the_disk_of_the_traffic_file_is_full,
    the_traffic_file_is_half_written,
    the_clock_is_set_back_by_hours,
    the_clock_is_set_forward_by_hours,
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("name", STATES)
def test_what_survives_what(name: str, fault: Callable[[Cell], None], states: Made, tmp_path: Path) -> None:
    fault(Cell(name, states.copy(name, tmp_path / "home"), states))


@pytest.mark.timeout(900)
def test_a_gateway_that_is_killed_follows_the_log_again_in_every_state(
    every_state: EveryState, runs: Runner, tmp_path: Path
) -> None:
    """All states at one real gateway; each rollout takes its step while nothing serves."""
    home = every_state.copy(tmp_path / "home")
    rollouts = rollouts_at(home)
    with gateway_at(home) as (url, process):
        assert shares_at(url) == {name: state.before.share for name, state in STATES.items() if state.stages}
        process.send_signal(signal.SIGKILL)
        process.wait()
    for name, state in STATES.items():
        action = "step" if state.stages else "start"
        (ended,) = runs.run(home, every_state.now, gone_by=timedelta(0), workload=name, action=action)
        assert place_of(rollouts, name) == state.after, ended
    assert rollouts.state.verify().ok
    with gateway_at(home) as (url, _):
        assert shares_at(url) == {name: state.after.share for name, state in STATES.items()}


@contextmanager
def gateway_at(home: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start the real gateway on a home's files."""
    run = home / "gateway"
    plan = GatewayPlan(sorted((home / "migrations").iterdir()), run, run / "traffic.json", run / "events")
    keys = {"ANVEN_GATEWAY_KEY": KEY, "OPENAI_API_KEY": "sk-none", "HOSTED_VLLM_API_KEY": "sk-none"}
    with running(plan, {**os.environ, **keys}) as started:
        yield started.url, started.process


def shares_at(url: str) -> dict[str, float]:
    """Return the shares in force, as the gateway tells them."""
    answer = httpx.get(f"{url}/anven/status", headers={"Authorization": f"Bearer {KEY}"}, timeout=30, trust_env=False)
    return {name: route["share"] for name, route in answer.json()["routes"].items()}
