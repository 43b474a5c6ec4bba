"""What people do to a rollout from the Launchpad: each act through the job, once a request, or refused in words."""

from __future__ import annotations

import json
import os
import pwd
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

from anven_pipelines.domain.errors import AnvenError, InvalidInput, UnavailableService, UnknownWorkload
from anven_pipelines.domain.rollout import Advance, Hold
from anven_pipelines.domain.rollout_act import Act, Verb
from anven_pipelines.domain.rollout_status import change_key, stream_of
from anven_pipelines.domain.signature import shared_accounts
from anven_pipelines.domain.traffic import Traffic
from anven_pipelines.domain.traffic_file import print_traffic
from anven_pipelines.jobs import RolloutVerb, rollout_act
from anven_pipelines.migrate import of_kind
from anven_pipelines.resources.gateway import Gateway
from anven_pipelines.resources.rollout_acts import perform, what_stands
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.rollout_run import _asked, _do
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.pipeline.conftest import Place

CONFIG = "ops.act_on_rollout.config"


@pytest.fixture
def rollouts(place: Place) -> Rollouts:
    """Give the rollouts of a place in which `support` is signed off, and nothing has begun."""
    declared = place.declare(rollout={"waive": ["drill"]})
    sign_off(declared.migration, place.state, place.artifacts, now=datetime.now(UTC))
    return of_kind(place.definitions, "rollouts", Rollouts)


def job(place: Place) -> dg.JobDefinition:
    """Return the job with the resources of the place."""
    settings: dict[str, Any] = {"resources": place.definitions.resources, "executor": dg.in_process_executor}
    return dg.Definitions(jobs=[rollout_act], **settings).get_job_def("rollout_act")


def launch(place: Place, act: str, **config: Any) -> dg.ExecuteInProcessResult:
    """Launch the job as the Launchpad does; the run fails instead of raising."""
    asked = {"workload": "support", "act": act, "who": "ada", **config}
    run_config = {"ops": {"act_on_rollout": {"config": asked}}}
    return job(place).execute_in_process(run_config=run_config, instance=place.instance, raise_on_error=False)


def again(place: Place, done: dg.ExecuteInProcessResult) -> dg.JobExecutionResult:
    """Execute a run anew, as the button in the UI and a retry do: the new run descends from the old one."""
    old = place.instance.get_run_by_id(done.run_id)
    assert old is not None
    run = place.instance.create_run_for_job(
        job(place), run_config=old.run_config, parent_run_id=old.run_id, root_run_id=old.root_run_id or old.run_id
    )
    return execute_run(InMemoryJob(job(place)), run, place.instance)


def shown(done: dg.ExecuteInProcessResult | dg.JobExecutionResult) -> dict[str, Any]:
    """Return the metadata of the op's output, as plain values."""
    assert done.success
    [event] = [each for each in done.all_node_events if each.event_type_value == "STEP_OUTPUT"]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def refusal(done: dg.ExecuteInProcessResult) -> str:
    """Return why the run failed."""
    assert not done.success
    [event] = [each for each in done.all_node_events if each.event_type_value == "STEP_FAILURE"]
    failure = event.step_failure_data
    if failure.user_failure_data and failure.user_failure_data.description:
        return failure.user_failure_data.description
    assert failure.error is not None
    return failure.error.to_string()


def kinds(place: Place) -> list[str]:
    return [event.kind for event in place.state.events(stream_of("support"))]


def test_each_act_is_done_by_the_job_and_stands_in_the_log_with_who_why_and_the_run(
    place: Place, rollouts: Rollouts
) -> None:
    begun = launch(place, "start", reason="the board agreed")
    told = shown(begun)
    assert (told["act"], told["phase"], told["generation"], told["share"]) == ("start by ada", "running", 1, 0.05)
    assert (told["stage"], told["decision"]) == ("1 of 4", "hold")
    assert "no event has come yet" in told["reasons"]
    assert rollouts.gateway.read().of("support").share == 0.05
    assert shown(launch(place, "approve", generation=1))["approvals"] == "ada"
    assert shown(launch(place, "pause", reason="a holiday"))["phase"] == "paused"
    assert shown(launch(place, "resume", who=" bo "))["phase"] == "running"
    assert shown(launch(place, "override", reason="the judge was down", generation=1, hours=2.0))["overrides"] == "ada"
    last = launch(place, "abort", who="bo", reason="enough")
    assert (shown(last)["phase"], shown(last)["share"]) == ("aborted", 0.0)

    assert kinds(place) == ["started", "approved", "paused", "resumed", "overridden", "aborted"]
    events = place.state.events(stream_of("support"))
    assert [event.payload["who"] for event in events] == ["ada", "ada", "ada", "bo", "ada", "bo"]
    assert (events[0].payload["reason"], events[0].payload["request"]) == ("the board agreed", begun.run_id)
    assert (events[5].payload["reason"], events[5].payload["request"]) == ("enough", last.run_id)
    assert place.state.verify().ok
    assert rollouts.gateway.read().of("support").share == 0.0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"act": "pause", "who": "  "}, f"{CONFIG}.who is ''; the name of who does it"),
        (
            {"act": "override", "reason": "late", "generation": 1, "hours": 25.0},
            f"{CONFIG}.hours is 25; above 0 and at most 24 is needed",
        ),
        (
            {"act": "override", "reason": "late", "generation": 1, "hours": float("nan")},
            f"{CONFIG}.hours is nan; above 0",
        ),
        ({"act": "pause", "hours": 2.0}, f"{CONFIG}.hours is 2; only an override lasts: leave it out of pause"),
        ({"act": "flag"}, f"{CONFIG}.reason is empty; what was seen is needed"),
        ({"act": "unflag", "reason": " "}, f"{CONFIG}.reason is empty; how it was answered is needed"),
        ({"act": "pause", "flag": "3fa81c02"}, f"{CONFIG}.flag is '3fa81c02'; only unflag names one"),
        (
            {"act": "unflag", "reason": "a typo", "flag": "x"},
            f"{CONFIG}: flag is 'x'; the id of an open flag is needed: none is open",
        ),
        ({"act": "approve"}, f"{CONFIG}.generation is missing; to approve needs the generation that you looked at"),
        ({"act": "override", "reason": "late"}, f"{CONFIG}.generation is missing; to override needs"),
        (
            {"act": "override", "generation": 1},
            f"{CONFIG}.reason is empty; what makes up for the missing proof is needed",
        ),
        ({"act": "approve", "generation": 3}, f"{CONFIG}: generation is 3, and the rollout of support is at 1 by now"),
        ({"act": "pause", "reason": "x" * 2001}, f"{CONFIG}.reason is 2,001 characters long; at most 2,000"),
        ({"act": "pause", "workload": "suport"}, f"{CONFIG}: workload 'suport' is declared by no readable file"),
        (
            {"act": "resume"},
            f"{CONFIG}: support: resume is not possible: the rollout is running; one that is paused is needed",
        ),
        ({"act": "start"}, f"{CONFIG}: the rollout of support cannot start: attempt 1 is running: abort it first"),
    ],
)
def test_a_wrong_config_is_refused_by_field_with_what_to_do_and_nothing_is_written(
    place: Place, rollouts: Rollouts, config: dict[str, Any], words: str
) -> None:
    rollouts.start("support", who="ada", now=datetime.now(UTC))
    before = place.state.verify()

    why = refusal(launch(place, **config))

    assert why.startswith(words)
    assert why.endswith("nothing was written")
    assert place.state.verify() == before


@pytest.mark.parametrize(("change", "field"), [({"who": None}, "who"), ({"act": "stop"}, "act")])
def test_a_config_that_has_not_its_form_begins_no_run(
    place: Place, rollouts: Rollouts, change: dict[str, Any], field: str
) -> None:
    asked = {"workload": "support", "act": "start", "who": "ada"} | change
    config = {name: value for name, value in asked.items() if value is not None}
    with pytest.raises(dg.DagsterInvalidConfigError, match=field):
        job(place).execute_in_process(
            run_config={"ops": {"act_on_rollout": {"config": config}}}, instance=place.instance
        )
    assert rollouts.status("support").phase == "not_started"


def test_a_run_that_is_executed_anew_acts_once(place: Place, rollouts: Rollouts) -> None:
    """Even where what it asks for could happen again by now."""
    begun = launch(place, "start")
    approved = launch(place, "approve", generation=1)
    advanced = {"stage": 1, "reasons": [], "evidence": [], "as_of": None}
    now = datetime.now(UTC)
    place.state.append(stream=stream_of("support"), kind="advanced", key=change_key(2), payload=advanced, now=now)

    assert shown(again(place, approved))["approvals"] == "none"  # the next stage is not approved
    aborted = launch(place, "abort")
    assert shown(again(place, begun))["phase"] == "aborted"  # no second attempt
    assert shown(again(place, aborted))["phase"] == "aborted"
    assert kinds(place) == ["started", "approved", "advanced", "aborted"]


def test_an_approval_launched_once_more_lets_no_further_stage_be_left(place: Place, rollouts: Rollouts) -> None:
    launch(place, "start")
    launch(place, "approve", generation=1)
    advanced = {"stage": 1, "reasons": [], "evidence": [], "as_of": None}
    now = datetime.now(UTC)
    place.state.append(stream=stream_of("support"), kind="advanced", key=change_key(2), payload=advanced, now=now)

    assert "generation is 1, and the rollout of support is at 2 by now" in refusal(
        launch(place, "approve", generation=1)
    )
    assert rollouts.status("support").approvals == frozenset()


def test_an_act_that_was_killed_before_the_gateway_heard_of_it_is_ended_by_its_run_anew(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(place, "start")

    def refuse(*_: Any) -> bool:
        message = "the disk of the traffic file is full"
        raise UnavailableService(message)

    with monkeypatch.context() as patch:
        patch.setattr(Gateway, "publish", refuse)
        failed = launch(place, "abort")
        assert "the disk of the traffic file is full" in refusal(failed)
    assert (rollouts.status("support").phase, rollouts.gateway.read().of("support").share) == ("aborted", 0.05)

    assert shown(again(place, failed))["phase"] == "aborted"
    assert rollouts.gateway.read().of("support").share == 0.0
    assert kinds(place) == ["started", "aborted"]


def test_an_act_stands_that_the_gateway_cannot_be_told_of_and_the_error_says_so(
    place: Place, rollouts: Rollouts
) -> None:
    launch(place, "start")
    traffic = place.folder / "home" / "gateway" / "traffic.json"
    traffic.write_text("{")

    why = refusal(launch(place, "pause"))

    assert why.endswith("it is in the audit log, and the next step puts it in force once that is mended")
    assert rollouts.status("support").phase == "paused"
    assert traffic.read_text() == "{"


def test_the_command_line_says_so_too_and_of_nothing_that_was_not_written(place: Place, rollouts: Rollouts) -> None:
    launch(place, "start")
    (place.folder / "home" / "gateway" / "traffic.json").write_text("{")
    asked = _asked("support", "pause", who="ada", hours=4.0, reason="", flag=None, generation=None)
    assert asked is not None

    with pytest.raises(UnavailableService, match="it is in the audit log, and the next step puts it in force once"):
        _do(rollouts, asked, now=datetime.now(UTC), uptime=None)
    assert rollouts.status("support").phase == "paused"

    once_more = _asked("support", "pause", who="ada", hours=4.0, reason="", flag=None, generation=None)
    assert once_more is not None
    with pytest.raises(InvalidInput, match="pause is not possible") as refused:
        _do(rollouts, once_more, now=datetime.now(UTC), uptime=None)
    assert "audit log" not in str(refused.value)


def test_an_abort_is_in_force_though_the_traffic_file_is_none(place: Place, rollouts: Rollouts) -> None:
    launch(place, "start")
    (place.folder / "home" / "gateway" / "traffic.json").write_text("{")

    launch(place, "abort")

    assert (rollouts.status("support").phase, rollouts.gateway.read().of("support").share) == ("aborted", 0.0)


def test_the_command_line_says_for_which_generation_an_act_is_meant(place: Place, rollouts: Rollouts) -> None:
    launch(place, "start")

    asked = _asked("support", "approve", who="ada", hours=4.0, reason="", flag=None, generation=2)

    assert asked is not None
    with pytest.raises(InvalidInput, match="generation is 2, and the rollout of support is at 1 by now"):
        perform(rollouts, asked, now=datetime.now(UTC))
    assert kinds(place) == ["started"]


def test_a_flag_is_opened_once_a_request_and_closed_by_whoever_answers_it(place: Place, rollouts: Rollouts) -> None:
    launch(place, "start")
    flagged = launch(place, "flag", who="dr-li", reason="doses are wrong")
    again(place, flagged)
    (flag,) = rollouts.status("support").flags

    assert shown(launch(place, "pause"))["flags"] == flag.words
    assert f"{flag.words}: `anven rollout unflag`" in shown(launch(place, "resume"))["reasons"]
    assert shown(launch(place, "unflag", flag=flag.id, who="bo", reason="the label was"))["flags"] == "none"
    assert kinds(place) == ["started", "flagged", "paused", "resumed", "unflagged"]


def test_two_people_override_until_it_expires_and_one_of_them_twice_is_one(place: Place, rollouts: Rollouts) -> None:
    launch(place, "start")
    launch(place, "override", reason="the judge was down", generation=1, hours=1.0)
    again_by_ada = shown(launch(place, "override", reason="the judge was down", generation=1, hours=1.0, who="Ada "))
    assert again_by_ada["overrides"] == "ada"
    now = datetime.now(UTC)
    assert isinstance(rollouts.look("support", now=now).decision, Hold)

    assert (
        shown(launch(place, "override", reason="the judge was down", generation=1, hours=0.5, who="Bo"))["overrides"]
        == "ada, bo"
    )
    account = pwd.getpwuid(os.getuid()).pw_name
    assert shared_accounts(rollouts.status("support").signed) == {account: ["ada", "bo"]}

    later = now + timedelta(minutes=45)  # bo's has expired, ada's has not
    assert rollouts.status("support").overriders(later) == {"ada"}
    assert isinstance(rollouts.look("support", now=later).decision, Hold)
    found = rollouts.step("support", now=now + timedelta(minutes=1))
    assert isinstance(found.decision, Advance)
    assert (found.status.generation, found.status.overrides) == (2, ())  # it lets one stage be left


def test_an_abort_needs_no_migration_file(place: Place, rollouts: Rollouts) -> None:
    launch(place, "start")
    (place.folder / "migrations" / "support.yaml").unlink()

    told = shown(launch(place, "abort"))

    assert told["phase"] == "aborted"
    assert "is declared by no readable file" in told["look"]
    assert rollouts.gateway.read().of("support").share == 0.0


def without_log(place: Place, rollouts: Rollouts) -> Rollouts:
    """Replace the state store by an empty one, and return the rollouts that use it."""
    for file in (place.folder / "home").glob("state.db*"):
        file.unlink()
    return rollouts.model_copy(update={"state": StateStore(url=rollouts.state.url)})


def set_back(place: Place, rollouts: Rollouts) -> Rollouts:
    """Have the traffic file stand two generations ahead of the log, as after a backup of the log was restored."""
    ahead = replace(rollouts.gateway.read().of("support"), generation=3, share=0.5)
    Path(rollouts.gateway.traffic).write_text(print_traffic(Traffic({"support": ahead})))
    return rollouts


def of_a_later_release(place: Place, rollouts: Rollouts) -> Rollouts:
    """Have the log hold a kind of event that this release does not know."""
    place.state.append(stream=stream_of("support"), kind="slowed", key="slowed-1", payload={}, now=datetime.now(UTC))
    return rollouts


def with_a_torn_file(place: Place, rollouts: Rollouts) -> Rollouts:
    """Have the log know nothing, and the traffic file stand half written."""
    Path(rollouts.gateway.traffic).write_text("{")
    return without_log(place, rollouts)


def by_act(rollouts: Rollouts) -> None:
    perform(rollouts, Act(verb="abort", workload="support", who="ada"), now=datetime.now(UTC))


def by_resource(rollouts: Rollouts) -> None:
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=datetime.now(UTC))


@pytest.mark.parametrize("breaks", [without_log, set_back, of_a_later_release, with_a_torn_file])
@pytest.mark.parametrize("abort", [by_act, by_resource])
def test_an_abort_moves_the_traffic_though_the_log_cannot_say_so(
    place: Place, rollouts: Rollouts, breaks: Callable[[Place, Rollouts], Rollouts], abort: Callable[[Rollouts], None]
) -> None:
    launch(place, "start")
    broken = breaks(place, rollouts)

    with pytest.raises(InvalidInput):
        abort(broken)

    assert rollouts.gateway.read().of("support").killed


def test_an_abort_that_is_a_slip_of_the_pen_or_meant_for_another_generation_changes_no_route(
    place: Place, rollouts: Rollouts
) -> None:
    launch(place, "start")
    traffic, now = Path(rollouts.gateway.traffic), datetime.now(UTC)
    whole = traffic.read_text()

    with pytest.raises(UnknownWorkload):
        perform(rollouts, Act(verb="abort", workload="suport", who="ada"), now=now)
    with pytest.raises(InvalidInput, match="generation is 3, and the rollout of support is at 1 by now"):
        perform(rollouts, Act(verb="abort", workload="support", who="ada", generation=3), now=now)
    with pytest.raises(InvalidInput, match="pause is not possible"):
        perform(without_log(place, rollouts), Act(verb="pause", workload="support", who="ada"), now=now)
    assert traffic.read_text() == whole

    traffic.write_text("{")
    with pytest.raises(UnknownWorkload):
        perform(rollouts, Act(verb="abort", workload="suport", who="ada"), now=now)
    assert traffic.read_text() == "{"


def test_the_launchpad_offers_what_the_command_line_does_and_describes_each_field() -> None:
    assert [verb.value for verb in RolloutVerb] == list(get_args(Verb))
    assert [verb.name for verb in RolloutVerb] == [verb.value for verb in RolloutVerb]
    [op] = rollout_act.nodes
    schema: Any = op.definition.config_schema
    fields = schema.as_field().config_type.fields
    assert sorted(fields) == ["act", "flag", "generation", "hours", "reason", "share", "who", "workload"]
    assert all(field.description for field in fields.values())
    assert {name for name, field in fields.items() if field.is_required} == {"act", "who", "workload"}
    assert rollout_act.description


def test_what_is_mirrored_is_set_in_the_generation_in_force_and_stands_in_the_log(
    place: Place, rollouts: Rollouts
) -> None:
    before = launch(place, "shadow", share=0.5)  # of no attempt as yet
    assert rollouts.gateway.read().of("support").shadow == 0.5
    launch(place, "start")
    launch(place, "shadow", share=0.25, who="bo", reason="too dear")
    route = rollouts.gateway.read().of("support")
    assert (route.shadow, route.generation) == (0.25, 1)
    assert again(place, before).success  # delivered once more, it is as old as it was
    assert rollouts.gateway.read().of("support") == route
    launch(place, "shadow", share=0)
    assert rollouts.gateway.read().of("support").shadow == 0
    assert kinds(place) == ["shadowed", "started", "shadowed", "shadowed"]
    assert "share is 1.5; the share of legacy's requests to mirror" in refusal(launch(place, "shadow", share=1.5))
    assert "share is missing" in refusal(launch(place, "shadow"))
    assert "share is 0.1; only shadow has one" in refusal(launch(place, "kill", share=0.1))


def test_a_kill_of_a_misspelt_workload_names_it_whatever_is_wrong_with_another_entry(
    place: Place, rollouts: Rollouts
) -> None:
    launch(place, "start")
    traffic = Path(rollouts.gateway.traffic)
    routes = json.loads(traffic.read_text())
    routes["routes"]["other"] = {"share": "much"}
    traffic.write_text(json.dumps(routes))
    words = refusal(launch(place, "kill", workload="suport"))
    assert "suport" in words
    assert "nothing was written" in words


def test_nothing_is_mirrored_by_a_bad_traffic_file(place: Place, rollouts: Rollouts) -> None:
    launch(place, "start")
    Path(rollouts.gateway.traffic).write_text("{")
    act = Act(verb="shadow", workload="support", who="ada", share=0.5, request="a")
    with pytest.raises(InvalidInput):
        perform(rollouts, act, now=datetime.now(UTC))
    assert Path(rollouts.gateway.traffic).read_text() == "{"
    assert "may not be in force" in str(what_stands(rollouts, act))


def test_a_kill_is_in_force_whatever_the_log_does_and_is_lifted_once_no_attempt_is_open(
    place: Place, rollouts: Rollouts
) -> None:
    launch(place, "start")
    killed = launch(place, "kill", reason="it insults people")
    assert shown(killed)["decision"] == "hold"
    assert rollouts.gateway.read().of("support").killed

    assert "unkill is not possible: the rollout is running" in refusal(launch(place, "unkill", reason="mended"))
    assert rollouts.gateway.read().of("support").killed
    launch(place, "abort", who="bo")
    assert rollouts.gateway.read().of("support").killed  # an abort lifts nothing
    launch(place, "unkill", reason="mended")
    assert not rollouts.gateway.read().of("support").killed
    assert again(place, killed).success  # delivered once more, it is as old as it was
    assert not rollouts.gateway.read().of("support").killed
    assert kinds(place) == ["started", "killed", "aborted", "unkilled"]
    assert shown(launch(place, "start"))["phase"] == "running"

    cut_off = without_log(place, rollouts)
    act = Act(verb="kill", workload="support", who="ada")
    with pytest.raises(AnvenError):  # the traffic file is ahead of a log that was lost
        perform(cut_off, act, now=datetime.now(UTC))
    assert rollouts.gateway.read().of("support").killed
    assert "the switch is on at the gateway" in str(what_stands(cut_off, act))


def test_an_unkill_that_is_delivered_once_more_lifts_no_later_kill_of_an_open_attempt(
    place: Place, rollouts: Rollouts
) -> None:
    launch(place, "kill")
    lifted = launch(place, "unkill", reason="mended")
    launch(place, "start")
    rollouts.gateway.kill("support")  # as a roll back does that cannot be logged
    assert again(place, lifted).success
    assert rollouts.gateway.read().of("support").killed
