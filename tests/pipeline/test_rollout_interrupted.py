"""A step that something comes between: it is killed, overtaken or held, and asked for again where it must be."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from anven_pipelines.domain.errors import UnknownWorkload
from anven_pipelines.domain.rollout import Hold
from anven_pipelines.domain.rollout_status import stream_of
from anven_pipelines.resources.rollouts import Rollouts
from tests.running_rollout import NOW, ROLLOUT, begun, serve, share_in_force, tick

if TYPE_CHECKING:
    from tests.pipeline.conftest import Place


@pytest.fixture
def rollouts(place: Place) -> Rollouts:
    """Give the rollouts of a place in which `support` is signed off and has begun its first stage."""
    return begun(place)


def test_a_decision_whose_step_was_killed_is_put_in_force_by_the_next(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    advanced = {"stage": 1, "reasons": [], "evidence": [], "as_of": None}
    state = place.state
    state.append(stream=stream_of("support"), kind="advanced", key="generation-2", payload=advanced, now=NOW)
    assert share_in_force(rollouts) == 0.5

    assert rollouts.is_behind("support", rollouts.status("support"))
    rollouts.step("support", now=NOW)

    assert (share_in_force(rollouts), rollouts.status("support").generation) == (1.0, 2)


def test_a_step_that_was_overtaken_changes_nothing(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another step rolls back between this one's look and its event."""
    serve(place)
    look = Rollouts.look

    def look_and_be_overtaken(self: Rollouts, workload: str, *, now: datetime, uptime: Any) -> Any:
        found = look(self, workload, now=now, uptime=uptime)
        rolled_back = {"from_stage": 0, "reasons": ["harm"], "evidence": [], "as_of": None}
        place.state.append(
            stream=stream_of(workload), kind="rolled_back", key="generation-2", payload=rolled_back, now=now
        )
        return found

    monkeypatch.setattr(Rollouts, "look", look_and_be_overtaken)
    found = rollouts.step("support", now=NOW)

    assert isinstance(found.decision, Hold)
    assert found.decision.reasons == ("another step began generation 2 first; this one changed nothing",)
    assert (rollouts.status("support").phase, share_in_force(rollouts)) == ("rolled_back", 0.0)


def test_an_abort_that_a_step_overtook_is_written_all_the_same(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = Rollouts.status

    def status_and_be_overtaken(self: Rollouts, workload: str) -> Any:
        found = status(self, workload)
        advanced = {"stage": 1, "reasons": [], "evidence": [], "as_of": None}
        place.state.append(stream=stream_of(workload), kind="advanced", key="generation-2", payload=advanced, now=NOW)
        return found

    monkeypatch.setattr(Rollouts, "status", status_and_be_overtaken)
    aborted = rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)

    assert (aborted.phase, aborted.generation, share_in_force(rollouts)) == ("aborted", 3, 0.0)


@pytest.mark.parametrize(
    ("kind", "phase", "words"),
    [("paused", "paused", "the rollout was paused while"), ("flagged", "running", "the rollout was flagged while")],
)
def test_a_pause_or_a_flag_that_comes_while_a_step_decides_holds_it(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch, kind: str, phase: str, words: str
) -> None:
    serve(place)
    look, payload = Rollouts.look, {"who": "bo", "reason": "doses are wrong", "flag": "3fa81c02"}

    def look_and_be_held(self: Rollouts, workload: str, *, now: datetime, uptime: Any) -> Any:
        found = look(self, workload, now=now, uptime=uptime)
        place.state.append(stream=stream_of(workload), kind=kind, key=f"{kind}-1", payload=payload, now=now)
        return found

    monkeypatch.setattr(Rollouts, "look", look_and_be_held)
    found = rollouts.step("support", now=NOW)

    assert isinstance(found.decision, Hold)
    assert found.decision.reasons == (f"{words} this step decided; it changed nothing",)
    assert (found.status.phase, found.status.stage, share_in_force(rollouts)) == (phase, 0, 0.5)


def test_the_sensor_asks_for_a_step_once_and_again_when_it_failed(place: Place, rollouts: Rollouts) -> None:
    serve(place, errors=0.3)
    place.declare(workload="broken", rollout=ROLLOUT)
    place.state.append(stream=stream_of("broken"), kind="nonsense", key="x", payload={}, now=NOW)

    (request,) = tick(place, rollouts).run_requests or []
    assert (request.run_key, request.partition_key) == ("support/1/1/0", "support")
    place.instance.create_run_for_job(
        dg.Definitions(jobs=[dg.GraphDefinition("rollout_step").to_job()]).get_job_def("rollout_step"),
        tags=request.tags,
        status=dg.DagsterRunStatus.FAILURE,
    )
    (request,) = tick(place, rollouts).run_requests or []
    assert request.run_key == "support/1/1/1"


def test_a_step_that_was_killed_while_it_ran_is_asked_for_again(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody ends its run: to Dagster it goes on for ever."""
    serve(place, errors=0.3)
    (request,) = tick(place, rollouts).run_requests or []
    place.instance.create_run_for_job(
        dg.Definitions(jobs=[dg.GraphDefinition("rollout_step").to_job()]).get_job_def("rollout_step"),
        tags=request.tags,
        status=dg.DagsterRunStatus.STARTED,
    )
    assert not tick(place, rollouts).run_requests

    monkeypatch.setattr("anven_pipelines.sensors.under_way.PATIENCE", timedelta(0))
    (again,) = tick(place, rollouts).run_requests or []
    assert again.run_key == "support/1/1/1"


def test_a_roll_back_that_did_not_reach_the_gateway_is_asked_for_and_put_in_force(
    place: Place, rollouts: Rollouts
) -> None:
    """A step is killed between log and gateway, and the migration file is gone, too."""
    rolled_back = {"from_stage": 0, "reasons": ["harm"], "evidence": [], "as_of": None}
    place.state.append(
        stream=stream_of("support"), kind="rolled_back", key="generation-2", payload=rolled_back, now=NOW
    )
    (place.folder / "migrations" / "support.yaml").unlink()
    assert share_in_force(rollouts) == 0.5

    (request,) = tick(place, rollouts).run_requests or []
    with pytest.raises(UnknownWorkload):
        rollouts.step("support", now=NOW)

    assert (request.partition_key, share_in_force(rollouts)) == ("support", 0.0)
    assert not tick(place, rollouts).run_requests


def test_a_mistake_in_one_workload_keeps_no_other_from_its_roll_back(place: Place, rollouts: Rollouts) -> None:
    serve(place, errors=0.3)
    place.state.append(stream=stream_of("a-first"), kind="started", key="generation-1", payload={"nothing": 1}, now=NOW)

    (request,) = tick(place, rollouts).run_requests or []

    assert request.partition_key == "support"
