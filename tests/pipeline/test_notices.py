"""Notices beside a rollout in Dagster: the step tells nobody, the sensor asks for a run, and the run tells."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from anven_pipelines.cli import app
from anven_pipelines.domain.gateway_event import GatewayEvent
from anven_pipelines.domain.notice import hold_stream
from anven_pipelines.domain.rollout import RollBack
from anven_pipelines.domain.rollout_status import stream_of
from anven_pipelines.migrate import of_kind
from anven_pipelines.resources.notices import Notices
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.sensors.notices import NOTICES_TAG, rollout_notices, rollout_notices_job
from anven_pipelines.sensors.rollout import rollout
from tests.receivers import Hook, hook
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.pipeline.conftest import Place

NOW = datetime.now(UTC)
NOTIFY = {"notify": [{"kind": "webhook", "url_env": "HOOK_URL"}], "waive": ["drill"]}


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    with hook() as server:
        monkeypatch.setenv("HOOK_URL", server.url)
        yield server


@pytest.fixture
def rollouts(place: Place, web: Hook) -> Rollouts:
    """Give the rollouts of a place in which `support` has begun."""
    declared = place.declare(rollout=NOTIFY)
    found = of_kind(place.definitions, "rollouts", Rollouts)
    sign_off(declared.migration, place.state, place.artifacts, now=NOW)
    found.start("support", who="ada", now=NOW)
    return found


def look(place: Place, rollouts: Rollouts) -> list[dg.RunRequest]:
    """Let the sensor of rollouts look once."""
    with dg.build_sensor_context(place.instance, resources={"rollouts": rollouts}) as context:
        found = rollout(context)
    assert isinstance(found, dg.SensorResult)
    return list(found.run_requests or [])


def asked(place: Place, rollouts: Rollouts) -> list[dg.RunRequest]:
    """Let the sensor of notices look once."""
    notices = of_kind(place.definitions, "notices", Notices)
    with dg.build_sensor_context(place.instance, resources={"rollouts": rollouts, "notices": notices}) as context:
        found = rollout_notices(context)
    assert isinstance(found, dg.SensorResult)
    return list(found.run_requests or [])


def job(place: Place) -> dg.JobDefinition:
    """Return the job with the resources of the place, its IO manager among them."""
    whole = dg.Definitions(jobs=[rollout_notices_job], resources=place.definitions.resources)
    return whole.get_job_def("rollout_notices_job")


def run(place: Place, request: dg.RunRequest) -> None:
    """Run the job that the sensor asked for."""
    done = job(place).execute_in_process(run_config=request.run_config, instance=place.instance, tags=request.tags)
    assert done.success


def trip(place: Place) -> None:
    """Write what a gateway writes whose breaker tripped."""
    folder = place.folder / "home" / "gateway" / "events"
    folder.mkdir(parents=True)
    tripped: dict[str, Any] = {"kind": "breaker", "generation": 1, "outcome": "open", "error_class": "errors"}
    event = GatewayEvent(**tripped, event_id="b", workload="support", ts=NOW, worker="w", seq=1)
    (folder / "w-000000.jsonl").write_bytes(event.to_line())


def test_what_begins_to_hold_is_told_once_and_the_start_before_it(place: Place, rollouts: Rollouts, web: Hook) -> None:
    for _ in range(3):
        look(place, rollouts)
    [request] = asked(place, rollouts)
    run(place, request)
    assert [each["change"] for each in web.got] == ["start", "hold"]
    assert "no event has come yet" in web.got[1]["reasons"]
    assert web.got[1]["resolution"].startswith("it goes on by itself once the evidence is there")
    look(place, rollouts)
    assert asked(place, rollouts) == []
    assert len(place.state.events(hold_stream("support"))) == 1


def test_a_roll_back_waits_for_no_receiver_and_is_told_afterwards(place: Place, rollouts: Rollouts, web: Hook) -> None:
    trip(place)
    web.status = 500
    [request] = asked(place, rollouts)
    run(place, request)
    tried = len(web.got)

    [step] = look(place, rollouts)
    found = rollouts.step("support", now=NOW)

    assert (step.partition_key, rollouts.gateway.read().of("support").share) == ("support", 0.0)
    assert isinstance(found.decision, RollBack)
    assert len(web.got) == tried  # neither sensor nor step asks a receiver
    web.status, web.got[:] = 200, []
    later = datetime.now(UTC) + timedelta(minutes=5)  # the run's own clock told when to try again
    of_kind(place.definitions, "notices", Notices).deliver("support", now=later)
    assert [each["change"] for each in web.got] == ["start", "roll_back"]
    assert "the gateway's breaker tripped: errors" in web.got[1]["reasons"][0]


@pytest.mark.usefixtures("rollouts")
def test_the_command_ends_with_1_while_a_receiver_was_not_told(
    place: Place, web: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANVEN_HOME", str(place.folder / "home"))
    monkeypatch.setenv("ANVEN_MIGRATIONS", str(place.folder / "migrations"))
    web.status = 400
    refused = CliRunner().invoke(app, ["rollout", "notify", "support", "--json"])
    assert (refused.exit_code, json.loads(refused.stdout)["notices"][0]["waiting"]) == (1, 1)
    assert len(web.got) == 1


@pytest.mark.usefixtures("rollouts", "web")
def test_the_command_ends_with_0_once_all_are_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANVEN_HOME", str(place.folder / "home"))
    monkeypatch.setenv("ANVEN_MIGRATIONS", str(place.folder / "migrations"))
    told = CliRunner().invoke(app, ["rollout", "notify", "support", "--json"])
    assert (told.exit_code, json.loads(told.stdout)["notices"][0]["waiting"]) == (0, 0)


def test_while_a_delivery_is_under_way_no_other_is_asked_for(place: Place, rollouts: Rollouts) -> None:
    [request] = asked(place, rollouts)
    assert request.tags[NOTICES_TAG] == "support"
    status = dg.DagsterRunStatus.STARTED
    place.instance.create_run_for_job(job(place), tags=request.tags, status=status, run_config=request.run_config)
    assert asked(place, rollouts) == []


def test_a_delivery_that_was_killed_while_it_ran_is_asked_for_again(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody ends its run: to Dagster it goes on for ever."""
    [request] = asked(place, rollouts)
    status = dg.DagsterRunStatus.STARTED
    place.instance.create_run_for_job(job(place), tags=request.tags, status=status, run_config=request.run_config)
    monkeypatch.setattr("anven_pipelines.sensors.under_way.PATIENCE", timedelta(0))

    [again] = asked(place, rollouts)

    assert again.run_key != request.run_key


def test_a_mistake_in_one_workload_keeps_no_other_from_its_notices(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.state.append(stream=stream_of("a-first"), kind="started", key="generation-1", payload={}, now=NOW)
    is_due = Notices.is_due

    def mistaken(notices: Notices, workload: str, *, now: datetime) -> bool:
        if workload == "a-first":
            raise ZeroDivisionError
        return is_due(notices, workload, now=now)

    monkeypatch.setattr(Notices, "is_due", mistaken)

    assert [each.tags[NOTICES_TAG] for each in asked(place, rollouts)] == ["support"]


def test_a_hold_that_cannot_be_written_down_keeps_no_step_waiting(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = place.declare(workload="other", rollout=NOTIFY)
    sign_off(declared.migration, place.state, place.artifacts, now=NOW)
    rollouts.start("other", who="ada", now=NOW)
    trip(place)

    def refuse(*_: Any, **__: Any) -> None:
        message = "the database is full"
        raise OSError(message)

    monkeypatch.setattr(StateStore, "append", refuse)
    assert [each.partition_key for each in look(place, rollouts)] == ["support"]
