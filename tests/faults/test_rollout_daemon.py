"""Dagster's daemon is killed while its sensor looks at a rollout in each state, and is started again."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

from anven_pipelines.ingest.event_store import EventStore
from anven_pipelines.resources.deployments import adopt_home
from tests.dev_command import descendants, wait_until
from tests.e2e.live_canary import Daemon
from tests.rollout_runner import rollouts_at
from tests.rollout_states import STATES, place_of, require_one_change

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.conftest import EveryState

PATIENCE_S = 500.0  # on two idle cores it takes less than a minute in all


@pytest.fixture
def home(every_state: EveryState, empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a home whose workloads are in each state, and which this process and its children go by."""
    folder = every_state.copy(tmp_path / "home")
    (folder / "mlflow").mkdir()
    shutil.copy(empty_mlflow, folder / "mlflow" / "mlflow.db")
    monkeypatch.setenv("ANVEN_HOME", str(folder))
    monkeypatch.setenv("ANVEN_MIGRATIONS", str(folder / "migrations"))
    monkeypatch.setenv("DAGSTER_HOME", str(folder / "dagster"))
    return adopt_home()


@pytest.mark.timeout(1200)
def test_a_daemon_that_is_killed_while_its_sensor_looks_leaves_each_rollout_to_the_next_one(
    home: Path, tmp_path: Path
) -> None:
    rollouts = rollouts_at(home)
    daemon = Daemon(tmp_path / "daemon.log")
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        with EventStore(home / "gateway" / "ingested").alone():  # what a look waits for
            daemon.start()
            try:
                wait_until(
                    lambda: [each.status for each in ticks(instance)] == [TickStatus.STARTED], PATIENCE_S, "no tick"
                )
            finally:
                killed(daemon)
        assert [each.status for each in ticks(instance)] == [TickStatus.STARTED]  # it never ended
        # MLflow's sensor waits for nothing, and may have been first.
        assert {run.job_name for run in instance.get_runs()} <= {"rollout_tracking_job"}
        assert {name: place_of(rollouts, name) for name in STATES} == {
            name: each.before for name, each in STATES.items()
        }

        # Nobody but a person starts a rollout.
        expected = {name: state.after if state.stages else state.before for name, state in STATES.items()}
        daemon.start()
        try:
            wait_until(
                lambda: {name: place_of(rollouts, name) for name in STATES} == expected, PATIENCE_S, "not recovered"
            )
            wait_until(lambda: all(run.is_finished for run in steps(instance)), PATIENCE_S, "a step does not end")
        finally:
            killed(daemon)
        done = sorted(run.tags["dagster/partition"] for run in steps(instance))
    due = [name for name, state in STATES.items() if state.stages and (state.change or state.before != state.after)]
    assert done == sorted(due)
    for name, state in STATES.items():
        require_one_change(rollouts, name)
        assert place_of(rollouts, name) == (state.after if state.stages else state.before)


def ticks(instance: dg.DagsterInstance) -> list[InstigatorTick]:
    """Return the ticks of the sensor, the newest first."""
    return [
        tick
        for state in instance.all_instigator_state()
        if state.instigator_name == "rollout"
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
    ]


def steps(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    return list(instance.get_runs(filters=dg.RunsFilter(job_name="rollout_step")))


def killed(daemon: Daemon) -> None:
    """Kill it and all that it started, its code server among them, at once."""
    for pid in [daemon.process.pid, *descendants(daemon.process.pid)]:
        os.kill(pid, signal.SIGKILL)
    daemon.process.wait()
