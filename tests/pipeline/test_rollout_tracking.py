"""A rollout in MLflow: one run an attempt, whatever is down or killed meanwhile, and nothing of it waits for MLflow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg
import pytest
from mlflow import MlflowClient

from anven_pipelines.domain.gateway_event import GatewayEvent
from anven_pipelines.domain.notice import HELD, hold_stream
from anven_pipelines.domain.prompt_report import served_versions
from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate, TemplateMessage, unchanged
from anven_pipelines.domain.prompts import AdaptedPrompt, candidate_part, carry_over, found_prompt
from anven_pipelines.domain.rollout import RollBack
from anven_pipelines.domain.rollout_status import stream_of
from anven_pipelines.domain.sign_off import sign_off_stream
from anven_pipelines.domain.tracking import RegisteredPrompt, StepRecord
from anven_pipelines.migrate import filled_in, of_kind
from anven_pipelines.resources.mlflow_run import SEQ_TAG
from anven_pipelines.resources.rollout_tracking import RolloutTracking
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.resources.told import claimed
from anven_pipelines.sensors.rollout_tracking import ALL, TRACKING_TAG, rollout_tracking, rollout_tracking_job
from tests.mlflow_server import free_uri
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from mlflow.entities import Run

    from tests.pipeline.conftest import Place

NOW = datetime.now(UTC)
REPOSITORY = Path(__file__).resolve().parents[2]
PLAN = {"strategy": "blue_green", "waive": ["drill"]}
NUMBERS = {"difference": 0.01, "lower": -0.02, "upper": 0.04}
WRITES = ("create_run", "log_batch", "log_text", "log_batch", "set_terminated", "set_tag")
"""In their order: metrics are the first batch, parameters and tags the second."""


@pytest.fixture
def rollouts(place: Place) -> Rollouts:
    """Give the rollouts of a place in which `support` has begun."""
    declared = place.declare(rollout=PLAN)
    found = of_kind(place.definitions, "rollouts", Rollouts)
    sign_off(declared.migration, place.state, place.artifacts, now=NOW)
    found.start("support", who="ada", now=NOW, reason="the board agreed")
    return found


@pytest.fixture
def tracking(place: Place) -> RolloutTracking:
    return of_kind(place.definitions, "rollout_tracking", RolloutTracking)


def without_mlflow(tracking: RolloutTracking) -> RolloutTracking:
    """Return the same where nothing listens on MLflow's address."""
    down = tracking.tracking.model_copy(update={"tracking_uri": free_uri()})
    return tracking.model_copy(update={"tracking": down})


class Shown(NamedTuple):
    """What MLflow shows of an attempt."""

    run: Run
    points: dict[str, list[tuple[int, float]]]
    audit: list[dict[str, Any]]


def client_of(place: Place) -> MlflowClient:
    return MlflowClient(f"sqlite:///{place.folder / 'home' / 'mlflow' / 'mlflow.db'}")


def shown(place: Place) -> list[Shown]:
    """Return the runs of the attempts of `support`, oldest first."""
    client = client_of(place)
    experiment = client.get_experiment_by_name("anven/support")
    if experiment is None:
        return []
    runs = client.search_runs([experiment.experiment_id], "tags.`rollout.attempt` != ''")
    found = []
    for run in sorted(runs, key=lambda run: int(run.data.tags["rollout.attempt"])):  # some start in one instant
        points = {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        audit = Path(client.download_artifacts(run.info.run_id, "audit.jsonl")).read_text()
        found.append(Shown(run, points, [json.loads(line) for line in audit.splitlines()]))
    return found


BACK = {"who": "bo", "reason": "enough"}


def advance(place: Place, generation: int, stage: int) -> None:
    """Write what a step writes that advances."""
    payload = {"stage": stage, "reasons": ["proven"], "evidence": [], "measured": {"errors": NUMBERS}, "as_of": None}
    key = f"generation-{generation}"
    place.state.append(stream=stream_of("support"), kind="advanced", key=key, payload=payload, now=NOW)


def trip(place: Place) -> None:
    """Write what a gateway writes whose breaker tripped."""
    folder = place.folder / "home" / "gateway" / "events"
    folder.mkdir(parents=True)
    tripped: dict[str, Any] = {"kind": "breaker", "generation": 1, "outcome": "open", "error_class": "errors"}
    event = GatewayEvent(**tripped, event_id="b", workload="support", ts=NOW, worker="w", seq=1)
    (folder / "w-000000.jsonl").write_bytes(event.to_line())


def test_an_attempt_is_a_run_that_says_what_began_what_changed_and_where_it_stands(
    place: Place, rollouts: Rollouts, tracking: RolloutTracking
) -> None:
    assert tracking.deliver("support", now=NOW).problem is None
    [begun] = shown(place)
    assert (begun.run.info.status, begun.run.data.tags["rollout.state"]) == ("RUNNING", "running")
    assert begun.points == {"share": [(1, 0.05)], "stage": [(1, 0.0)]}
    params = begun.run.data.params
    started = place.state.events(stream_of("support"))[0]
    assert (params["plan"], params["strategy"]) == (started.payload["plan"], "blue_green")
    assert [stage["share"] for stage in json.loads(params["stages"])] == [0.05, 1.0]
    signed = place.state.latest(sign_off_stream("support"))
    assert signed is not None
    assert (params["verdict"], params["verdict_digest"]) == (signed.hash, "d" * 64)
    assert (params["legacy_model"], params["target_model"]) == ("legacy-model", "target-model")

    rollouts.act("support", "paused", {"who": "bo", "reason": "a holiday"}, now=NOW)
    rollouts.act("support", "resumed", {"who": "bo", "reason": ""}, now=NOW)
    advance(place, 2, 1)
    tracking.deliver("support", now=NOW)
    [ahead] = shown(place)
    assert ahead.run.info.run_id == begun.run.info.run_id
    assert ahead.points["share"] == [(1, 0.05), (2, 1.0)]
    assert {name: ahead.points[f"errors/{name}"] for name in NUMBERS} == {
        name: [(2, value)] for name, value in NUMBERS.items()
    }
    assert [line["kind"] for line in ahead.audit] == ["started", "paused", "resumed", "advanced"]
    assert [line["hash"] for line in ahead.audit] == [each.hash for each in place.state.events(stream_of("support"))]

    rollouts.act("support", "aborted", {"who": "bo", "reason": "enough"}, now=NOW)
    rollouts.start("support", who="cy", now=NOW + timedelta(seconds=1))
    tracking.deliver("support", now=NOW)
    first, second = shown(place)
    assert (first.run.info.status, first.run.data.tags["rollout.reasons"]) == ("KILLED", "enough")
    assert first.points["share"] == [(1, 0.05), (2, 1.0), (3, 0.0)]
    tags = second.run.data.tags
    assert (tags["rollout.attempt"], tags["rollout.started_by"], tags["deployment"]) == ("2", "cy", "local")
    assert second.points["share"] == [(4, 0.05)]


DESK = PromptTemplate(name="desk", user="Question: {question}", slots=("question",))
ROUTER = PromptTemplate(name="router", user="Sort: {text}", slots=("text",))
ASKED: dict[str, Any] = {"reasons": ["proven"], "evidence": [], "measured": {}, "as_of": None}


def served(word: str) -> AdaptedPrompt:
    """Return a prompt that changes the desk's and leaves the router's as it was logged."""
    message = TemplateMessage(role="user", content=f"{word}: {{question}}")
    part = candidate_part(DESK, Candidate(template="desk", messages=(message,)))
    return found_prompt([part], profile=None, description="")


def registers(tracking: RolloutTracking, prompt: AdaptedPrompt, key: str) -> None:
    """Have MLflow register a prompt, and the legacy ones of both templates, as the assets do."""
    legacy = [
        RegisteredPrompt(
            name=f"support.{each.name}",
            version=unchanged(each).version,
            messages=[{"role": "user", "content": each.user}],
            slots=list(each.slots),
            note="",
            tags={},
            aliases=["legacy"],
            first_aliases=["production"],
        )
        for each in (DESK, ROUTER)
    ]
    versions = served_versions(prompt)
    found = [
        replace(each, version=versions[name], aliases=["candidate"], first_aliases=[])
        for name, each in zip(("desk", "router"), legacy, strict=True)
        if name in versions
    ]
    step = StepRecord(
        key=key,
        experiment="anven/support",
        name="adapted_prompt",
        started=NOW,
        ended=NOW,
        status="FINISHED",
        prompts=[*legacy, *found],
    )
    tracking.tracking.record(step)


def in_production(place: Place) -> dict[str, str]:
    client = client_of(place)
    names = ("support.desk", "support.router")
    return {name: client.get_prompt_version_by_alias(name, "production").tags["anven.version"] for name in names}


@pytest.fixture
def adapted(place: Place, tracking: RolloutTracking) -> tuple[Rollouts, AdaptedPrompt]:
    """Give the rollouts of a place in which `support` has begun with a prompt that was found and is registered."""
    declared, prompt = place.declare(rollout=PLAN), served("Well")
    registers(tracking, prompt, "adapted")
    sign_off(declared.migration, place.state, place.artifacts, now=NOW, prompt=prompt)
    rollouts = of_kind(place.definitions, "rollouts", Rollouts)
    rollouts.start("support", who="ada", now=NOW)
    return rollouts, prompt


LEGACY = {"support.desk": unchanged(DESK).version, "support.router": unchanged(ROUTER).version}


def completes(place: Place, generation: int = 3) -> None:
    stream, key = stream_of("support"), f"generation-{generation}"
    place.state.append(stream=stream, kind="completed", key=key, payload=ASKED, now=NOW)


@pytest.mark.parametrize("ended", ["aborted", "rolled_back"])
def test_the_alias_production_follows_what_is_served_for_good_and_goes_back(
    place: Place, adapted: tuple[Rollouts, AdaptedPrompt], tracking: RolloutTracking, ended: str
) -> None:
    rollouts, prompt = adapted
    found = LEGACY | {"support.desk": served_versions(prompt)["desk"]}
    advance(place, 2, 1)
    assert tracking.deliver("support", now=NOW).problem is None
    assert in_production(place) == LEGACY, "at 100 % it still has to prove itself"
    completes(place)
    assert tracking.deliver("support", now=NOW).problem is None
    assert in_production(place) == found
    [run] = shown(place)
    assert run.run.data.tags["rollout.production"] == "support.desk 2"
    place.state.append(stream=stream_of("support"), kind=ended, key="generation-4", payload=BACK | ASKED, now=NOW)
    assert tracking.deliver("support", now=NOW).problem is None
    assert in_production(place) == LEGACY
    assert rollouts.status("support").phase == ended


def both_served() -> AdaptedPrompt:
    """Return a prompt that changes both templates."""
    quick = Candidate(template="router", messages=(TemplateMessage(role="user", content="Quick: {text}"),))
    parts = [*served("Well").transformation["templates"], candidate_part(ROUTER, quick)]
    return found_prompt(parts, profile=None, description="")


@pytest.mark.parametrize("later", [served("Well"), carry_over()], ids=["the desk's alone", "none"])
def test_a_prompt_that_the_next_rollout_leaves_as_logged_is_legacy_in_production(
    place: Place, tracking: RolloutTracking, later: AdaptedPrompt
) -> None:
    declared, both = place.declare(rollout=PLAN), both_served()
    registers(tracking, both, "adapted")
    rollouts = of_kind(place.definitions, "rollouts", Rollouts)
    for prompt, first in ((both, 2), (later, 6)):
        registers(tracking, prompt, f"adapted-{first}")
        sign_off(declared.migration, place.state, place.artifacts, now=NOW, prompt=prompt, templates=(DESK, ROUTER))
        rollouts.start("support", who="ada", now=NOW)
        advance(place, first, 1)
        completes(place, first + 1)
        assert tracking.deliver("support", now=NOW).problem is None
        served_now = {f"support.{name}": version for name, version in served_versions(prompt).items()}
        assert in_production(place) == LEGACY | served_now
        if prompt is both:
            rollouts.act("support", "aborted", {"who": "bo", "reason": "once more"}, now=NOW)


def test_production_is_moved_once_mlflow_is_up_again_and_a_delivery_that_breaks_off_is_ended(
    place: Place,
    adapted: tuple[Rollouts, AdaptedPrompt],
    tracking: RolloutTracking,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rollouts, prompt = adapted
    advance(place, 2, 1)
    completes(place)
    assert without_mlflow(tracking).deliver("support", now=NOW).problem
    assert rollouts.status("support").phase == "completed", "no step waits for MLflow"
    for done in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "set_prompt_alias", broken("set_prompt_alias", done=done))
            assert "broken off at set_prompt_alias" in str(tracking.deliver("support", now=NOW).problem)
    assert tracking.deliver("support", now=NOW).problem is None
    assert in_production(place)["support.desk"] == served_versions(prompt)["desk"]
    assert len(shown(place)) == 1


def test_a_prompt_whose_registration_still_waits_is_waited_for_and_one_that_is_gone_is_told(
    place: Place, rollouts: Rollouts, tracking: RolloutTracking
) -> None:
    prompt = served("Well")
    rollouts.act("support", "aborted", {"who": "bo", "reason": "enough"}, now=NOW)
    declared = place.migrations.of("support")
    sign_off(declared.migration, place.state, place.artifacts, now=NOW, prompt=prompt)
    rollouts.start("support", who="ada", now=NOW)
    advance(place, 4, 1)
    completes(place, 5)
    registers(without_mlflow(tracking), prompt, "adapted")
    told = tracking.deliver("support", now=NOW)
    assert "the version of support.desk that is served is not registered yet; 1 records wait" in str(told.problem)
    assert tracking.tracking.fill().delivered == 1
    assert tracking.deliver("support", now=NOW).problem is None
    assert in_production(place)["support.desk"] == served_versions(prompt)["desk"]

    rollouts.act("support", "aborted", {"who": "bo", "reason": "enough"}, now=NOW)
    sign_off(declared.migration, place.state, place.artifacts, now=NOW, prompt=served("Unheard"))
    rollouts.start("support", who="ada", now=NOW)
    advance(place, 8, 1)
    completes(place, 9)
    assert tracking.deliver("support", now=NOW).problem is None, "nothing that waits could bring it"
    assert shown(place)[-1].run.data.tags["rollout.production"] == "support.desk is not registered"
    assert in_production(place) == LEGACY


def test_what_happens_after_an_attempt_has_ended_is_no_part_of_its_run(
    place: Place, rollouts: Rollouts, tracking: RolloutTracking
) -> None:
    flagged = {"who": "bo", "reason": "odd answers", "flag": "odd"}
    rollouts.act("support", "flagged", flagged, now=NOW)
    rollouts.act("support", "aborted", {"who": "bo", "reason": "enough"}, now=NOW)
    tracking.deliver("support", now=NOW)
    [ended] = shown(place)

    unflagged = {"who": "cy", "reason": "mended", "flag": "odd"}
    place.state.append(stream=stream_of("support"), kind="unflagged", key="late", payload=unflagged, now=NOW)
    held = {"generation": 1, "shape": [], "reasons": ["late"], "kinds": [], "until": None}
    place.state.append(stream=hold_stream("support"), kind=HELD, key="late", payload=held, now=NOW)
    assert tracking.deliver("support", now=NOW).problem is None

    [after] = shown(place)
    assert [line["kind"] for line in after.audit] == ["started", "flagged", "aborted"]
    assert after.run.to_dictionary() == ended.run.to_dictionary()
    assert not tracking.is_due("support", now=NOW)


def test_the_numbers_that_a_step_rested_on_stand_in_its_event(place: Place, rollouts: Rollouts) -> None:
    """What is unknown has none."""
    trip(place)
    rollouts.step("support", now=NOW)
    written = place.state.events(stream_of("support"))[-1]
    assert written.kind == "rolled_back"
    assert written.payload["measured"] == {}


def test_mlflow_is_down_while_a_roll_back_happens_and_is_caught_up_with_afterwards(
    place: Place, rollouts: Rollouts, tracking: RolloutTracking
) -> None:
    down = without_mlflow(tracking)
    told = down.deliver("support", now=NOW)
    assert "did not take rollout, attempt 1: " in str(told.problem)
    assert not down.is_due("support", now=NOW + timedelta(seconds=14))
    assert down.is_due("support", now=NOW + timedelta(seconds=16))
    trip(place)

    found = rollouts.step("support", now=NOW)

    assert isinstance(found.decision, RollBack)
    assert rollouts.gateway.read().of("support").share == 0.0
    assert down.deliver("support", now=NOW + timedelta(minutes=1)).failures == 2
    assert shown(place) == []
    later = NOW + timedelta(minutes=5)
    assert tracking.is_due("support", now=later)
    assert tracking.deliver("support", now=later).problem is None
    [run] = shown(place)
    assert (run.run.info.status, run.run.data.tags["rollout.state"]) == ("FAILED", "rolled_back")
    assert "the gateway's breaker tripped: errors" in run.run.data.tags["rollout.reasons"]
    assert run.points["share"] == [(1, 0.05), (2, 0.0)]
    assert [line["kind"] for line in run.audit] == ["started", "rolled_back"]
    assert not tracking.is_due("support", now=later)


def broken(name: str, *, done: bool) -> Any:
    """Return a method of MLflow's client that fails, before or after it has done its work."""
    write = getattr(MlflowClient, name)

    def breaking(self: MlflowClient, *args: Any, **kwargs: Any) -> None:
        if done:
            write(self, *args, **kwargs)
        message = f"broken off at {name}"
        raise OSError(message)

    return breaking


def test_a_delivery_that_breaks_off_at_any_write_is_ended_by_the_next_and_doubles_nothing(
    place: Place, rollouts: Rollouts, tracking: RolloutTracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance(place, 2, 1)
    rollouts.act("support", "aborted", {"who": "bo", "reason": "enough"}, now=NOW)
    for name in WRITES:
        for done in (False, True):
            with monkeypatch.context() as patch:
                patch.setattr(MlflowClient, name, broken(name, done=done))
                assert f"broken off at {name}" in str(tracking.deliver("support", now=NOW).problem)

    assert tracking.deliver("support", now=NOW).problem is None

    [run] = shown(place)
    assert run.run.info.status == "KILLED"
    assert run.points["share"] == [(1, 0.05), (2, 1.0), (3, 0.0)]
    assert run.points["errors/upper"] == [(2, 0.04)]
    assert [line["kind"] for line in run.audit] == ["started", "advanced", "aborted"]
    assert not tracking.is_due("support", now=NOW + timedelta(hours=2))


KILLED = """
import os, signal, sys
from datetime import UTC, datetime
import dagster as dg
from mlflow import MlflowClient
from anven_pipelines.migrate import of_kind
from anven_pipelines.resources.deployments import resources
from anven_pipelines.resources.rollout_tracking import RolloutTracking

MlflowClient.log_text = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
environment = {"ANVEN_HOME": sys.argv[1] + "/home", "ANVEN_MIGRATIONS": sys.argv[1] + "/migrations"}
definitions = dg.Definitions(resources=resources("local", environment))
of_kind(definitions, "rollout_tracking", RolloutTracking).deliver("support", now=datetime.now(UTC))
"""


def test_a_process_that_is_killed_between_metrics_and_document_leaves_what_the_next_one_ends(
    place: Place, rollouts: Rollouts, tracking: RolloutTracking
) -> None:
    advance(place, 2, 1)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(place.folder)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=False,
        timeout=240,
    )
    assert done.returncode == -signal.SIGKILL
    client = client_of(place)
    experiment = client.get_experiment_by_name("anven/support")
    assert experiment is not None
    [half] = client.search_runs([experiment.experiment_id])
    assert (half.data.metrics["share"], SEQ_TAG in half.data.tags) == (1.0, False)

    assert tracking.deliver("support", now=NOW).problem is None

    [run] = shown(place)
    assert run.run.info.run_id == half.info.run_id
    assert run.points["share"] == [(1, 0.05), (2, 1.0)]
    assert len(run.audit) == 2
    assert rollouts.status("support").generation == 2


def test_a_place_that_forgot_what_it_told_doubles_nothing(
    place: Place, rollouts: Rollouts, tracking: RolloutTracking
) -> None:
    tracking.deliver("support", now=NOW)
    before = shown(place)
    (place.folder / "home" / "mlflow" / "rollouts" / "support" / "mlflow.json").write_text("{")

    assert tracking.is_due("support", now=NOW)
    assert tracking.deliver("support", now=NOW).problem is None

    assert [each.points for each in shown(place)] == [each.points for each in before]
    assert rollouts.status("support").attempt == 1


def test_who_knows_less_of_the_log_changes_nothing_of_a_run_that_is_ahead(
    place: Place, rollouts: Rollouts, tracking: RolloutTracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = place.state.events(stream_of("support"))
    rollouts.act("support", "aborted", {"who": "bo", "reason": "enough"}, now=NOW)
    tracking.deliver("support", now=NOW)
    other = tracking.model_copy(update={"folder": str(place.folder / "another")})
    monkeypatch.setattr(RolloutTracking, "_events", lambda *_: old)

    assert other.deliver("support", now=NOW).problem is None

    [run] = shown(place)
    assert (run.run.info.status, run.run.data.tags["rollout.state"]) == ("KILLED", "aborted")


def test_the_sensor_asks_for_a_run_once_and_that_run_tells_mlflow(
    place: Place, rollouts: Rollouts, tracking: RolloutTracking
) -> None:
    def asked() -> list[dg.RunRequest]:
        given = {"rollouts": rollouts, "rollout_tracking": tracking}
        with dg.build_sensor_context(place.instance, resources=given) as context:
            found = rollout_tracking(context)
        assert isinstance(found, dg.SensorResult)
        return list(found.run_requests or [])

    place.state.append(stream=stream_of("broken"), kind="nonsense", key="x", payload={}, now=NOW)
    whole = dg.Definitions(jobs=[rollout_tracking_job], resources=place.definitions.resources)
    job = whole.get_job_def("rollout_tracking_job")
    [request] = asked()
    assert request.tags == {TRACKING_TAG: ALL}
    under_way = place.instance.create_run_for_job(
        job, tags=request.tags, run_config=request.run_config, status=dg.DagsterRunStatus.STARTED
    )
    assert asked() == []
    place.instance.delete_run(under_way.run_id)
    done = job.execute_in_process(run_config=request.run_config, instance=place.instance, tags=request.tags)
    assert done.success
    assert len(shown(place)) == 1
    assert asked() == []  # what this release cannot read is tried again later


def test_by_hand_everything_is_filled_in_and_one_workload_keeps_no_other_waiting(
    place: Place, rollouts: Rollouts
) -> None:
    place.state.append(stream=stream_of("broken"), kind="nonsense", key="x", payload={}, now=NOW)

    filled = filled_in(place.definitions)

    assert (filled.delivered, filled.remaining) == (1, 1)
    assert "broken: the rollout's stream holds an event 'nonsense'" in filled.problems[0]
    assert len(shown(place)) == 1
    assert rollouts.status("support").attempt == 1


def test_a_log_that_this_release_reads_wrongly_keeps_no_other_workload_from_mlflow(
    place: Place, rollouts: Rollouts, tracking: RolloutTracking
) -> None:
    place.state.append(stream=stream_of("broken"), kind="started", key="generation-1", payload={}, now=NOW)
    kept = place.folder / "home" / "mlflow" / "rollouts" / "unlike" / "mlflow.json"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"seq": "of another release"}')
    place.state.append(stream=stream_of("unlike"), kind="started", key="generation-1", payload={}, now=NOW)

    given = {"rollouts": rollouts, "rollout_tracking": tracking}
    with dg.build_sensor_context(place.instance, resources=given) as context:
        asked = rollout_tracking(context)
    assert isinstance(asked, dg.SensorResult)
    [request] = asked.run_requests or []
    assert request.run_config["ops"]["track_rollouts"]["config"]["workloads"] == ["broken", "support"]
    filled = filled_in(place.definitions)

    assert (filled.delivered, filled.remaining) == (1, 2)
    assert filled.problems[0] == "broken: KeyError: 'plan'"
    assert filled.problems[1].startswith("unlike: TypeError: ")
    assert not tracking.is_due("broken", now=NOW)
    assert len(shown(place)) == 1


def test_by_hand_nothing_is_called_delivered_that_is_locked_or_cannot_be(
    place: Place, rollouts: Rollouts, tracking: RolloutTracking
) -> None:
    lock = place.folder / "home" / "mlflow" / "rollouts" / "support" / ".lock"
    lock.parent.mkdir(parents=True)
    with claimed(lock) as is_mine:
        assert is_mine
        assert filled_in(place.definitions) == (0, 1, ("support: another process tells MLflow of it right now",))
    lock.unlink()
    lock.mkdir()
    filled = filled_in(place.definitions)
    assert (filled.delivered, filled.remaining) == (0, 1)
    assert filled.problems[0].startswith(f"support: {lock} cannot be locked (Is a directory)")
    lock.rmdir()

    assert filled_in(place.definitions) == (1, 0, ())
    assert rollouts.status("support").attempt == 1
    assert not tracking.is_due("support", now=NOW)
