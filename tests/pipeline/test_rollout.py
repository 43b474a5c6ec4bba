"""A rollout through Dagster: the gateway's log is read, the step decides anew, and the route follows once."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pytest

from anven_pipelines.assets.partitions import workloads
from anven_pipelines.assets.rollout import rollout_status
from anven_pipelines.domain.errors import InvalidInput, TamperedLog, UnavailableService, UnknownWorkload
from anven_pipelines.domain.gateway_event import SAFE, GatewayEvent
from anven_pipelines.domain.load import LOAD_REQUESTS
from anven_pipelines.domain.prompts import AdaptedPrompt, version_of
from anven_pipelines.domain.rollout import Advance, Hold, RollBack
from anven_pipelines.domain.rollout_act import Act
from anven_pipelines.domain.rollout_plan import edit_of, plan_in
from anven_pipelines.domain.rollout_status import stream_of
from anven_pipelines.domain.sign_off import SIGNED_OFF, sign_off_stream
from anven_pipelines.domain.signed_target import TARGET, declared_target
from anven_pipelines.domain.traffic import Route, Traffic, drill_of
from anven_pipelines.domain.traffic_file import print_traffic
from anven_pipelines.migrate import of_kind
from anven_pipelines.resources import event_database
from anven_pipelines.resources.rollout_acts import perform
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.sensors.rollout import rollout
from anven_pipelines.spec_rollout import Rollout
from tests.load_rows import load_report
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from anven_pipelines.spec import Migration
    from tests.pipeline.conftest import Place

START = datetime.now(UTC) - timedelta(hours=30)
NOW = START + timedelta(hours=25)
LIMITS = {"errors": 0.05, "safety": 0.05, "quality": 0.1}
ROLLOUT = {
    "stages": [{"share": 0.5, "soak": "24h"}, {"share": 1.0, "soak": "24h"}],
    "limits": LIMITS,
    "stale": "2d",
    "waive": ["drill"],
}


PRICED = {
    "model": "legacy-model",
    "logs": "../log-*.jsonl",
    "price": {"input_usd_per_million": 1.0, "output_usd_per_million": 2.0, "source": "a test"},
}


@pytest.fixture
def rollouts(place: Place) -> Rollouts:
    """Give the rollouts of a place in which `support` is signed off and has begun its first stage."""
    declared = place.declare(rollout=ROLLOUT)
    found = of_kind(place.definitions, "rollouts", Rollouts)
    sign_off(declared.migration, place.state, place.artifacts, now=START)
    found.start("support", who="ada", now=START)
    return found


def event_log(place: Place) -> Path:
    folder = place.folder / "home" / "gateway" / "events"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def serve(place: Place, units: int = 6_000, *, errors: float = 0.0, seed: int = 1, **change: Any) -> None:
    """Write what a gateway writes of so many users in the first 24 hours, one request and one score each."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(units):
        at = START + timedelta(hours=24) * number / units
        target = bool(rng.random() < 0.5)
        fails = target and bool(rng.random() < errors)
        arm = "target" if target else "legacy"
        request: dict[str, Any] = {
            "event_id": f"{seed}-r{number}",
            "kind": "request",
            "ts": at,
            "worker": f"w{seed}",
            "seq": 2 * number,
            "workload": "support",
            "attempt": 1,
            "generation": 1,
            "stage": 0,
            "share": 0.5,
            "unit": f"{number:032x}",
            "bucket": 0.1,
            "intended": arm,
            "served": None if fails else arm,
            "request_id": f"q{seed}-{number}",
            "status": "error" if fails else "ok",
            "error_class": "Timeout" if fails else None,
            "stream": True,
            "cached": False,
        }
        if not fails:
            speed = float(rng.lognormal(5, 0.3))
            request |= {"ttft_ms": speed, "latency_ms": 2 * speed, "cost_usd": 0.001 if target else 0.01 * speed}
        score: dict[str, Any] = {
            "event_id": f"{seed}-f{number}",
            "kind": "feedback",
            "ts": at + timedelta(seconds=30),
            "worker": f"w{seed}",
            "seq": 2 * number + 1,
            "request_id": f"q{seed}-{number}",
            "score": float(rng.random() < 0.9),
            "flags": (SAFE,),
        }
        lines += [GatewayEvent(**(request | change)).to_line(), GatewayEvent(**score).to_line()]
    (event_log(place) / f"w{seed}-000000.jsonl").write_bytes(b"".join(lines))


def tick(place: Place, rollouts: Rollouts) -> dg.SensorResult:
    with dg.build_sensor_context(place.instance, resources={"rollouts": rollouts}) as context:
        result = rollout(context)
    assert isinstance(result, dg.SensorResult)
    return result


def share_in_force(rollouts: Rollouts) -> float:
    return rollouts.gateway.read().of("support").share


def test_a_start_puts_the_first_stage_in_force_and_needs_a_verdict(place: Place, rollouts: Rollouts) -> None:
    assert share_in_force(rollouts) == 0.5
    with pytest.raises(InvalidInput, match=r"cannot start: attempt 1 is running: abort it first"):
        rollouts.start("support", who="ada", now=NOW)
    place.declare(workload="other", rollout=ROLLOUT)
    with pytest.raises(InvalidInput, match="the workload has no verdict"):
        rollouts.start("other", who="ada", now=NOW)


def test_a_good_target_advances_on_proof_and_the_route_follows(place: Place, rollouts: Rollouts) -> None:
    serve(place)

    found = rollouts.step("support", now=NOW)

    assert isinstance(found.decision, Advance), found.decision
    assert (found.status.stage, found.status.generation, share_in_force(rollouts)) == (1, 2, 1.0)
    written = place.state.events(stream_of("support"))[-1]
    assert (written.kind, written.key) == ("advanced", "generation-2")
    assert written.payload["evidence"][0].startswith("quality ")
    errors = written.payload["measured"]["errors"]
    assert errors["lower"] < errors["difference"] < errors["upper"] < LIMITS["errors"]
    # The new generation has no evidence yet.
    assert isinstance(rollouts.step("support", now=NOW).decision, Hold)
    assert share_in_force(rollouts) == 1.0


def test_a_failing_target_is_rolled_back_before_the_soak_is_over(place: Place, rollouts: Rollouts) -> None:
    serve(place, errors=0.3)

    found = rollouts.step("support", now=START + timedelta(hours=6))

    assert isinstance(found.decision, RollBack)
    assert "errors is proven to be more than 0.05 points worse" in found.decision.reasons[0]
    assert (found.status.phase, share_in_force(rollouts)) == ("rolled_back", 0.0)


def test_without_traffic_nothing_moves(rollouts: Rollouts) -> None:
    found = rollouts.step("support", now=NOW)

    assert isinstance(found.decision, Hold)
    assert "no event has come yet" in found.decision.reasons
    assert share_in_force(rollouts) == 0.5


def cut(place: Place, start: int, end: int) -> None:
    """Take these lines out of the gateway's log."""
    log = event_log(place) / "w1-000000.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:start] + lines[end:]))


def test_events_that_were_lost_prove_no_advance(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    cut(place, 100, 103)

    found = rollouts.step("support", now=NOW)

    assert isinstance(found.decision, Hold)
    assert "3 events of the gateway are lost: its disk was full, or its log was cut" in found.decision.reasons


@pytest.mark.parametrize(("lost", "decision"), [(3, RollBack), (600, Hold)])
def test_few_lost_events_hide_no_harm_and_many_may_make_it_up(
    place: Place, rollouts: Rollouts, lost: int, decision: type
) -> None:
    serve(place, errors=0.3)
    cut(place, 100, 100 + lost)

    assert isinstance(rollouts.step("support", now=NOW).decision, decision)


def test_a_loss_before_the_stage_is_no_concern_of_it(place: Place, rollouts: Rollouts) -> None:
    """A worker dropped events days before; its later ones all came."""
    old: dict[str, Any] = {"kind": "request", "worker": "w0", "workload": "other", "generation": 0}
    lines = [
        GatewayEvent(**old, event_id=f"o{seq}", seq=seq, ts=START - timedelta(days=1)).to_line() for seq in (1, 2, 9)
    ]
    (event_log(place) / "w0-000000.jsonl").write_bytes(b"".join(lines))
    serve(place)

    assert isinstance(rollouts.step("support", now=NOW).decision, Advance)


def test_a_feedback_that_was_sent_twice_is_no_lost_event(place: Place, rollouts: Rollouts) -> None:
    """It has the number of an event that is not kept, within one reading of the log and across two."""
    serve(place)
    twice: dict[str, Any] = {
        "kind": "feedback",
        "ts": NOW,
        "worker": "w9",
        "event_id": "same",
        "request_id": "q1-1",
        "score": 1.0,
    }
    log = event_log(place) / "w9-000000.jsonl.open"
    log.write_bytes(b"".join(GatewayEvent(**twice, seq=seq).to_line() for seq in (1, 2)))
    rollouts.look("support", now=NOW)
    last = GatewayEvent(**(twice | {"event_id": "last"}), seq=4).to_line()
    with log.open("ab") as file:
        file.write(GatewayEvent(**twice, seq=3).to_line() + last)

    assert isinstance(rollouts.step("support", now=NOW).decision, Advance)


def test_events_that_cannot_be_evaluated_are_a_reason_and_hide_no_tripped_breaker(
    place: Place, rollouts: Rollouts
) -> None:
    serve(place, unit="not a hash")
    decision = rollouts.look("support", now=NOW).decision
    assert isinstance(decision, Hold)
    assert any("the events cannot be evaluated: " in reason for reason in decision.reasons)

    tripped: dict[str, Any] = {
        "kind": "breaker",
        "workload": "support",
        "generation": 1,
        "outcome": "open",
        "error_class": "errors",
    }
    line = GatewayEvent(**tripped, event_id="b", ts=NOW, worker="w8", seq=1).to_line()
    (event_log(place) / "w8-000000.jsonl").write_bytes(line)

    assert isinstance(rollouts.step("support", now=NOW).decision, RollBack)


def test_a_decision_whose_step_was_killed_is_put_in_force_by_the_next(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    advanced = {"stage": 1, "reasons": [], "evidence": [], "as_of": None}
    state = place.state
    state.append(stream=stream_of("support"), kind="advanced", key="generation-2", payload=advanced, now=NOW)
    assert share_in_force(rollouts) == 0.5

    assert rollouts.is_behind("support", rollouts.status("support"))
    rollouts.step("support", now=NOW)

    assert (share_in_force(rollouts), rollouts.status("support").generation) == (1.0, 2)


@pytest.mark.parametrize(("sustained", "decision"), [(10.0, Advance), (0.01, Hold)])
def test_a_stage_that_the_load_benchmark_does_not_bear_is_not_entered(
    place: Place, rollouts: Rollouts, sustained: float, decision: type
) -> None:
    """6,000 users in 24 hours are .07 requests a second."""
    serve(place)
    report = load_report(sustained).model_dump(mode="json")
    manifest = place.artifacts.publish(LOAD_REQUESTS, [LOAD_REQUESTS.empty()], facts={"load": report})
    place.artifacts.save_manifest("load_benchmark", "support", manifest)

    found = rollouts.step("support", now=NOW)

    assert isinstance(found.decision, decision)
    if decision is Hold:
        assert found.decision.reasons[0].startswith("capacity for the next stage: 100% of 0.0")


def test_a_load_benchmark_that_cannot_be_read_holds_an_advance_and_no_roll_back(
    place: Place, rollouts: Rollouts
) -> None:
    serve(place)
    file = place.folder / "home" / "artifacts" / "manifests" / "load_benchmark" / "support" / "current.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")

    assert "what the load benchmark found cannot be read" in rollouts.step("support", now=NOW).decision.reasons[0]
    assert rollouts.status("support").stage == 0


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


def test_people_pause_resume_and_abort_and_all_of_it_is_in_the_log(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    rollouts.act("support", "paused", {"who": "ada", "reason": "a holiday"}, now=NOW)
    assert "the rollout is paused" in rollouts.step("support", now=NOW).decision.reasons[0]
    rollouts.act("support", "resumed", {"who": "ada", "reason": ""}, now=NOW)
    aborted = rollouts.act("support", "aborted", {"who": "bo", "reason": "enough"}, now=NOW)

    assert (aborted.phase, share_in_force(rollouts)) == ("aborted", 0.0)
    kinds = [event.kind for event in place.state.events(stream_of("support"))]
    assert kinds == ["started", "paused", "resumed", "aborted"]
    with pytest.raises(InvalidInput, match="paused is not possible: the rollout is aborted"):
        rollouts.act("support", "paused", {"who": "ada", "reason": ""}, now=NOW)
    again = rollouts.start("support", who="ada", now=NOW)
    assert (again.attempt, again.generation, share_in_force(rollouts)) == (2, 3, 0.5)


def test_an_edit_of_the_plan_stops_the_ramp(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    place.declare(rollout=ROLLOUT | {"limits": LIMITS | {"quality": 0.5}})

    decision = rollouts.step("support", now=NOW).decision

    assert isinstance(decision, Hold)
    assert "the migration file's rollout changed since this attempt began" in decision.reasons[0]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"target": {"model": "another", "engine": "recorded", "answers": "../answers.jsonl"}}, "target"),
        ({"prompt": {"longest": 3.0}}, "prompt"),
        (
            {"gateway": {"legacy": {"model": "openai/gpt-4o"}, "target": {"model": "hosted_vllm/another"}}},
            "gateway",
        ),
        ({"contract": {"json_object": True}}, "contract"),
        ({"legacy": PRICED}, "legacy.price"),
    ],
)
def test_an_edit_of_what_is_served_stops_the_ramp_as_well(
    place: Place, rollouts: Rollouts, section: dict[str, Any], words: str
) -> None:
    serve(place)
    place.declare(rollout=ROLLOUT, **section)

    decision = rollouts.step("support", now=NOW).decision

    assert isinstance(decision, Hold)
    assert decision.reasons == (
        f"the migration file's {words} changed since this attempt began: abort it and start anew, or restore the file",
    )
    place.declare(rollout=ROLLOUT)
    assert isinstance(rollouts.step("support", now=NOW).decision, Advance)


def asked(place: Place, *words: str) -> dict[str, Any]:
    """Run `anven rollout` in a process of its own."""
    folders = {"ANVEN_HOME": str(place.folder / "home"), "ANVEN_MIGRATIONS": str(place.folder / "migrations")}
    done = subprocess.run(
        [sys.executable, "-m", "anven_pipelines.cli", "rollout", *words, "--json"],
        env={**os.environ, **folders, "DAGSTER_HOME": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_flag_of_a_domain_expert_holds_until_somebody_answers_it(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    (flag,) = asked(place, "flag", "support", "--who", "dr-li", "--reason", "doses are wrong")["flags"]
    words = f"flag {flag['id']} of dr-li, open since {flag['at'][:10]}"

    held = rollouts.step("support", now=NOW).decision
    assert isinstance(held, Hold)
    assert [reason[: len(words)] for reason in held.reasons] == [words]
    assert (flag["who"], flag["reason"], share_in_force(rollouts)) == ("dr-li", "doses are wrong", 0.5)

    assert asked(place, "unflag", "support", "--who", "bo", "--reason", "the label was")["flags"] == []
    assert isinstance(rollouts.step("support", now=NOW).decision, Advance)
    kinds = [event.kind for event in place.state.events(stream_of("support"))]
    assert kinds == ["started", "flagged", "unflagged", "advanced"]


def test_nothing_starts_while_a_flag_is_open(place: Place, rollouts: Rollouts) -> None:
    rollouts.act("support", "flagged", {"who": "dr-li", "reason": "doses are wrong", "flag": "3fa81c02"}, now=NOW)
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)

    with pytest.raises(InvalidInput, match="cannot start: flag 3fa81c02 of dr-li"):
        rollouts.start("support", who="ada", now=NOW)


def test_an_edit_of_what_the_form_requires_stops_the_ramp_as_well(place: Place, rollouts: Rollouts) -> None:
    def declare(*required: str) -> None:
        place.declare(rollout=ROLLOUT, contract={"json_object": True, "required": list(required)})

    declare("answer", "cause")
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=START)
    rollouts.start("support", who="ada", now=START)
    serve(place, attempt=2, generation=3, contract_ok=True)
    declare("answer")

    decision = rollouts.step("support", now=NOW).decision

    assert isinstance(decision, Hold)
    assert decision.reasons[0].startswith("the migration file's contract changed since this attempt began")
    declare("answer", "cause")
    assert isinstance(rollouts.step("support", now=NOW).decision, Advance)


def test_an_attempt_of_an_earlier_release_goes_on_by_what_its_plan_holds() -> None:
    written = {
        "rollout": Rollout().model_dump(mode="json"),
        "metrics": [],
        "serving": {"target": "a", "prompt": "b", "gateway": "c"},
    }
    begun = plan_in("support", written)
    declared = replace(begun, serving=(*begun.serving, ("contract", "d"), ("legacy.price", "e")))

    assert edit_of(begun, declared) is None
    assert edit_of(declared, replace(declared, serving=begun.serving)) == (
        "the migration file's contract and legacy.price changed"
    )


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


@pytest.mark.parametrize("text", [None, "workload: [support"])
def test_harm_is_rolled_back_though_the_migration_file_is_gone_or_broken(
    place: Place, rollouts: Rollouts, text: str | None
) -> None:
    serve(place, errors=0.3)
    file = place.folder / "migrations" / "support.yaml"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)

    (request,) = tick(place, rollouts).run_requests or []
    found = rollouts.step("support", now=NOW)

    assert isinstance(found.decision, RollBack)
    assert (request.partition_key, share_in_force(rollouts)) == ("support", 0.0)


@pytest.mark.parametrize(("errors", "share"), [(0.0, 0.5), (0.3, 0.0)])
def test_an_edit_of_the_stages_neither_moves_traffic_nor_hides_harm(
    place: Place, rollouts: Rollouts, errors: float, share: float
) -> None:
    serve(place, errors=errors)
    place.declare(rollout=ROLLOUT | {"stages": [{"share": 1.0, "soak": "24h"}]})

    rollouts.step("support", now=NOW)

    assert share_in_force(rollouts) == share


def test_a_plan_that_shrank_below_the_stage_is_no_crash(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    rollouts.step("support", now=NOW)
    place.declare(rollout=ROLLOUT | {"stages": [{"share": 1.0, "soak": "24h"}]})

    assert isinstance(rollouts.step("support", now=NOW).decision, Hold)
    assert (rollouts.status("support").stage, share_in_force(rollouts)) == (1, 1.0)


def test_harm_in_an_altered_log_is_rolled_back_at_the_gateway_alone(place: Place, rollouts: Rollouts) -> None:
    serve(place, errors=0.3)
    with sqlite3.connect(place.folder / "home" / "state.db") as database:
        database.execute("update events set payload = replace(payload, 'ada', 'eve') where kind = 'started'")
    database.close()

    with pytest.raises(TamperedLog):
        rollouts.step("support", now=NOW)

    assert rollouts.gateway.read().of("support").killed
    assert rollouts.status("support").phase == "running"


def test_an_abort_that_cannot_be_logged_is_told_to_the_gateway_all_the_same(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_database, "_BUSY_SECONDS", 0.1)
    database = sqlite3.connect(place.folder / "home" / "state.db", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    try:
        fresh = replaced_store(rollouts)
        with pytest.raises(UnavailableService, match="database is locked"):
            fresh.act("support", "paused", {"who": "ada", "reason": ""}, now=NOW)
        assert not rollouts.gateway.read().of("support").killed
        with pytest.raises(UnavailableService, match="database is locked"):
            fresh.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    finally:
        database.rollback()
        database.close()

    assert rollouts.gateway.read().of("support").killed
    aborted = rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    assert (aborted.phase, share_in_force(rollouts)) == ("aborted", 0.0)


def test_an_abort_needs_no_state_store_that_can_be_read(place: Place, rollouts: Rollouts) -> None:
    state = place.folder / "home" / "state.db"
    for file in state.parent.glob("state.db*"):
        file.unlink()
    state.write_text("this is no database " * 100)

    with pytest.raises(UnavailableService):
        perform(rollouts, Act(verb="pause", workload="support", who="ada"), now=NOW)
    assert not rollouts.gateway.read().of("support").killed
    with pytest.raises(UnavailableService):
        perform(rollouts, Act(verb="abort", workload="support", who="ada"), now=NOW)

    assert rollouts.gateway.read().of("support").killed


def replaced_store(rollouts: Rollouts) -> Rollouts:
    """Return the rollouts with a connection of their own to the same store."""
    return rollouts.model_copy(update={"state": StateStore(url=rollouts.state.url)})


def of_another_release(place: Place) -> None:
    """Have the log's plan name what this release does not know."""
    with sqlite3.connect(place.folder / "home" / "state.db") as database:
        written = """update events set payload = replace(payload, '"rollout":{', '"rollout":{"new_section":1,')"""
        database.execute(f"{written} where kind = 'started'")
    database.close()


@pytest.mark.parametrize(("errors", "share"), [(0.0, 0.5), (0.3, 0.0)])
@pytest.mark.parametrize("stages", [ROLLOUT["stages"], [{"share": 0.1, "soak": "24h"}, {"share": 1.0, "soak": "24h"}]])
def test_a_plan_of_another_release_stops_the_ramp_and_hides_no_harm(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch, errors: float, share: float, stages: Any
) -> None:
    monkeypatch.setattr(StateStore, "require_intact", lambda _: None)  # the other release wrote it whole
    serve(place, errors=errors)
    of_another_release(place)
    place.declare(rollout=ROLLOUT | {"stages": stages})

    asked = tick(place, rollouts)
    decision = rollouts.step("support", now=NOW).decision

    assert share_in_force(rollouts) == share
    if errors:
        assert asked.run_requests
        assert isinstance(decision, RollBack)
    else:
        assert not asked.run_requests
        assert isinstance(decision, Hold)
        assert "another release wrote the attempt's plan, which this one cannot read, since" in decision.reasons[0]


def test_an_altered_log_without_harm_changes_nothing(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    with sqlite3.connect(place.folder / "home" / "state.db") as database:
        database.execute("update events set payload = replace(payload, 'ada', 'eve') where kind = 'started'")
    database.close()

    with pytest.raises(TamperedLog):
        rollouts.step("support", now=NOW)

    assert not rollouts.gateway.read().of("support").killed


def test_a_roll_back_is_in_force_though_the_traffic_file_is_none(place: Place, rollouts: Rollouts) -> None:
    serve(place, errors=0.3)
    file = Path(rollouts.gateway.traffic)
    torn = file.read_bytes()[:-9]
    file.write_bytes(torn)

    rollouts.step("support", now=NOW)

    assert (rollouts.status("support").phase, share_in_force(rollouts)) == ("rolled_back", 0.0)
    (copy,) = file.parent.glob("*.broken-*")
    assert copy.read_bytes() == torn


def test_nothing_advances_over_a_traffic_file_that_is_none(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    file = Path(rollouts.gateway.traffic)
    torn = file.read_bytes()[:-9]
    file.write_bytes(torn)

    with pytest.raises(InvalidInput, match=re.escape(str(file))):
        rollouts.step("support", now=NOW)

    assert (rollouts.status("support").stage, file.read_bytes()) == (0, torn)


def with_bad_entry(rollouts: Rollouts, workload: str, **entry: Any) -> Path:
    """Break an entry of the traffic file as a person does who types it."""
    file = Path(rollouts.gateway.traffic)
    document = json.loads(file.read_text())
    document["routes"][workload] = document["routes"].get(workload, {}) | entry
    file.write_text(json.dumps(document))
    return file


@pytest.mark.parametrize("workload", ["other", "support"])
def test_a_bad_entry_keeps_no_workload_from_its_roll_back_and_stays_if_it_is_anothers(
    place: Place, rollouts: Rollouts, workload: str
) -> None:
    serve(place, errors=0.3)
    file = with_bad_entry(rollouts, workload, share=1.5)

    assert tick(place, rollouts).run_requests
    rollouts.step("support", now=NOW)

    routes = json.loads(file.read_text())["routes"]
    assert (routes["support"]["share"], routes["support"]["generation"]) == (0.0, 2)
    assert workload == "support" or routes["other"] == {"share": 1.5}
    assert not tick(place, rollouts).run_requests


def test_a_roll_back_that_was_logged_is_put_in_force_over_a_bad_entry_of_its_own(
    place: Place, rollouts: Rollouts
) -> None:
    rolled_back = {"from_stage": 0, "reasons": ["harm"], "evidence": [], "as_of": None}
    place.state.append(
        stream=stream_of("support"), kind="rolled_back", key="generation-2", payload=rolled_back, now=NOW
    )
    with_bad_entry(rollouts, "support", share="half")

    assert tick(place, rollouts).run_requests
    rollouts.step("support", now=NOW)

    assert share_in_force(rollouts) == 0.0


def test_a_roll_back_that_was_logged_is_asked_for_and_put_in_force_over_a_torn_file(
    place: Place, rollouts: Rollouts
) -> None:
    rolled_back = {"from_stage": 0, "reasons": ["harm"], "evidence": [], "as_of": None}
    place.state.append(
        stream=stream_of("support"), kind="rolled_back", key="generation-2", payload=rolled_back, now=NOW
    )
    file = Path(rollouts.gateway.traffic)
    file.write_bytes(file.read_bytes()[:-9])

    (request,) = tick(place, rollouts).run_requests or []
    rollouts.step("support", now=NOW)

    assert (request.partition_key, share_in_force(rollouts)) == ("support", 0.0)
    assert not tick(place, rollouts).run_requests


def test_a_bad_entry_stops_every_advance_and_keeps_no_workload_from_its_kill(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    file = with_bad_entry(rollouts, "other", share=1.5)

    decision = rollouts.step("support", now=NOW).decision

    assert isinstance(decision, Hold)
    assert "routes.other lacks" in decision.reasons[0]
    rollouts.gateway.kill("support")
    routes = json.loads(file.read_text())["routes"]
    assert (routes["support"]["killed"], routes["other"]) == (True, {"share": 1.5})


def test_no_step_lifts_the_kill_switch_or_ends_the_shadow(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    file = Path(rollouts.gateway.traffic)
    by_hand = replace(rollouts.gateway.read().of("support"), killed=True, shadow=0.25)
    file.write_text(print_traffic(Traffic({"support": by_hand})))
    assert not rollouts.is_behind("support", rollouts.status("support"))

    decision = rollouts.step("support", now=NOW).decision
    assert isinstance(decision, Hold)
    assert decision.reasons[0].startswith("the kill switch is on: set `killed` to false in ")
    in_force = rollouts.gateway.read().of("support")
    assert (in_force.generation, in_force.killed, in_force.shadow) == (1, True, 0.25)

    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    with pytest.raises(InvalidInput, match="its kill switch is on: set `killed` to false"):
        rollouts.start("support", who="ada", now=NOW)


def test_a_log_that_was_set_back_is_told(place: Place, rollouts: Rollouts) -> None:
    ahead = replace(rollouts.gateway.read().of("support"), generation=7, share=1.0)
    Path(rollouts.gateway.traffic).write_text(print_traffic(Traffic({"support": ahead})))

    with pytest.raises(InvalidInput, match="support is at generation 7, the log at 1: the state store was replaced"):
        rollouts.step("support", now=NOW)


def test_a_log_that_is_gone_is_told_by_the_sensor(place: Place, rollouts: Rollouts) -> None:
    rehearsed = Route(workload=drill_of("support"), attempt=1, generation=3, stage=0, share=0.0)
    rollouts.gateway.publish(rehearsed)
    assert rollouts.begun() == ["support"]
    for file in (place.folder / "home").glob("state.db*"):
        file.unlink()

    told = tick(place, rollouts).skip_reason

    assert told is not None
    assert "support is at generation 1, the log at 0: the state store was replaced or set back" in str(told)
    assert share_in_force(rollouts) == 0.5


def test_a_mistake_in_one_workload_keeps_no_other_from_its_roll_back(place: Place, rollouts: Rollouts) -> None:
    serve(place, errors=0.3)
    place.state.append(stream=stream_of("a-first"), kind="started", key="generation-1", payload={"nothing": 1}, now=NOW)

    (request,) = tick(place, rollouts).run_requests or []

    assert request.partition_key == "support"


def test_materialised_in_the_ui_it_tells_what_it_found_and_did(place: Place, rollouts: Rollouts) -> None:
    serve(place, errors=0.3)
    place.instance.add_dynamic_partitions(str(workloads.name), ["support"])
    done = dg.materialize(
        [rollout_status],
        partition_key="support",
        instance=place.instance,
        resources=place.definitions.resources,
    )

    assert done.success
    (materialised,) = done.asset_materializations_for_node("rollout_status")
    assert materialised.metadata["decision"].value == "roll back"
    assert "errors is proven to be more than 0.05 points worse" in str(materialised.metadata["reasons"].value)
    (check,) = done.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == ("no_proven_harm", False)
    assert share_in_force(rollouts) == 0.0


def sign_off_with_prompt(place: Place, rewritten: str) -> str:
    """Sign `support` off once more, for a prompt that a search found; return its version."""
    transformation = {"rewrites": [{"system": None, "user": "(?P<all>.*)", "messages": [{"content": rewritten}]}]}
    prompt = AdaptedPrompt(
        strategy="rewrite",
        transformation=transformation,
        description="found",
        version=version_of("rewrite", transformation),
    )
    migration = place.migrations.of("support").migration
    return sign_off(migration, place.state, place.artifacts, now=START, prompt=prompt)


def started_anew(place: Place, rollouts: Rollouts) -> str:
    """Begin attempt 2 with a verdict that names its prompt."""
    version = sign_off_with_prompt(place, "Answer: {all}")
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=START)
    rollouts.start("support", who="ada", now=START)
    return version


def test_the_ramp_goes_on_with_the_prompt_of_its_verdict_though_the_search_found_another_since(
    place: Place, rollouts: Rollouts
) -> None:
    version = started_anew(place, rollouts)
    sign_off_with_prompt(place, "Think, then answer: {all}")
    serve(place, attempt=2, generation=3, prompt_version=version)

    assert rollouts.status("support").prompt == version
    assert isinstance(rollouts.step("support", now=NOW).decision, Advance)


def test_the_ramp_stops_where_the_gateway_asks_with_another_prompt(place: Place, rollouts: Rollouts) -> None:
    version, newer = started_anew(place, rollouts), sign_off_with_prompt(place, "Think, then answer: {all}")
    serve(place, attempt=2, generation=3, prompt_version=newer)

    decision = rollouts.step("support", now=NOW).decision

    assert isinstance(decision, Hold)
    assert decision.reasons[0].startswith(
        f"the gateway asks the target with prompt {newer[:12]}, the verdict was given"
    )
    assert version[:12] in decision.reasons[0]
    assert share_in_force(rollouts) == 0.5


def test_harm_with_another_prompt_is_rolled_back(place: Place, rollouts: Rollouts) -> None:
    started_anew(place, rollouts)
    serve(place, attempt=2, generation=3, prompt_version="f" * 64, errors=0.3)

    assert isinstance(rollouts.step("support", now=NOW).decision, RollBack)


@pytest.mark.parametrize(
    ("section", "declares"),
    [
        ({"target": {"model": "another", "engine": "recorded", "answers": "../answers.jsonl"}}, r"another \(target"),
        (
            {"target": {"model": "target-model", "engine": "recorded", "answers": "../others.jsonl"}},
            r"target-model \(target",
        ),
    ],
)
def test_nothing_starts_with_a_target_that_no_verdict_was_given_for(
    place: Place, rollouts: Rollouts, section: dict[str, Any], declares: str
) -> None:
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    place.declare(rollout=ROLLOUT, **section)

    words = rf"its verdict was given for target-model \(target \w+\), and the migration file declares {declares} "
    with pytest.raises(InvalidInput, match=words):
        rollouts.start("support", who="ada", now=NOW)
    assert share_in_force(rollouts) == 0.0
    place.declare(rollout=ROLLOUT)
    assert rollouts.start("support", who="ada", now=NOW).phase == "running"


def test_nothing_starts_behind_another_upstream_than_was_signed_off(place: Place, rollouts: Rollouts) -> None:
    def declare(model: str) -> Migration:
        arms = {"legacy": {"model": "openai/gpt-4o"}, "target": {"model": model}}
        return place.declare(rollout=ROLLOUT, gateway=arms).migration

    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    migration = declare("hosted_vllm/a")
    assert rollouts.start("support", who="ada", now=NOW).phase == "running"  # declared after the verdict
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    sign_off(migration, place.state, place.artifacts, now=NOW)
    declare("hosted_vllm/b")

    with pytest.raises(InvalidInput, match=r"target-model behind hosted_vllm/a .* behind hosted_vllm/b "):
        rollouts.start("support", who="ada", now=NOW)


def test_nothing_starts_behind_an_upstream_that_took_the_place_of_the_targets_own_endpoint(
    place: Place, rollouts: Rollouts
) -> None:
    endpoint = {"model": "small", "engine": "endpoint", "url": "http://127.0.0.1:9/v1"}

    def declare(**arms: Any) -> Migration:
        gateway = {"legacy": {"model": "openai/gpt-4o"}, **arms}
        return place.declare(rollout=ROLLOUT, target=endpoint, gateway=gateway).migration

    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    sign_off(declare(), place.state, place.artifacts, now=NOW)
    declare(target={"model": "hosted_vllm/another"})

    with pytest.raises(InvalidInput, match=r"small behind openai/small .* behind hosted_vllm/another "):
        rollouts.start("support", who="ada", now=NOW)
    declare(target={"model": "openai/small"})  # the same one, in other words
    assert rollouts.start("support", who="ada", now=NOW).phase == "running"


def test_nothing_starts_on_a_verdict_that_does_not_say_what_it_was_given_for(place: Place, rollouts: Rollouts) -> None:
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    stream, payload = sign_off_stream("support"), {"verdict": "GO"}
    place.state.append(stream=stream, kind=SIGNED_OFF, key="v2", payload=payload, now=NOW)

    with pytest.raises(InvalidInput, match="its verdict does not say which target and prompt it was given for"):
        rollouts.start("support", who="ada", now=NOW)


def test_nothing_starts_whose_prompt_is_gone(place: Place, rollouts: Rollouts) -> None:
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    target = declared_target(place.migrations.of("support").migration)
    payload = {"adapted_prompt": "e" * 64, TARGET: target}
    place.state.append(stream=sign_off_stream("support"), kind=SIGNED_OFF, key="v2", payload=payload, now=NOW)

    with pytest.raises(InvalidInput, match="adapted_prompt eeeeeeeeeeee, is not in the artifact store"):
        rollouts.start("support", who="ada", now=NOW)
