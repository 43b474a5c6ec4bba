"""A rollout through Dagster: the gateway's log is read, the step decides anew, and the route follows once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from anven_pipelines.assets.partitions import workloads
from anven_pipelines.assets.rollout import rollout_status
from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.gateway_event import GatewayEvent
from anven_pipelines.domain.load import LOAD_REQUESTS
from anven_pipelines.domain.rollout import Advance, Hold, RollBack
from anven_pipelines.domain.rollout_status import stream_of
from tests.load_rows import load_report
from tests.running_rollout import LIMITS, NOW, ROLLOUT, START, begun, event_log, serve, share_in_force

if TYPE_CHECKING:
    from anven_pipelines.resources.rollouts import Rollouts
    from tests.pipeline.conftest import Place


@pytest.fixture
def rollouts(place: Place) -> Rollouts:
    """Give the rollouts of a place in which `support` is signed off and has begun its first stage."""
    return begun(place)


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
    assert "errors is proven to be more than 5 points worse" in found.decision.reasons[0]
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


def test_people_pause_resume_and_abort_and_all_of_it_is_in_the_log(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    rollouts.act("support", "paused", {"who": "ada", "reason": "a holiday"}, now=NOW)
    assert "the rollout is paused" in rollouts.step("support", now=NOW).decision.reasons[0]
    rollouts.act("support", "resumed", {"who": "ada", "reason": ""}, now=NOW)
    aborted = rollouts.act("support", "aborted", {"who": "bo", "reason": "enough"}, now=NOW)

    assert (aborted.phase, share_in_force(rollouts)) == ("aborted", 0.0)
    kinds = [event.kind for event in place.state.events(stream_of("support"))]
    assert kinds == ["started", "paused", "resumed", "aborted"]
    with pytest.raises(InvalidInput, match="pause is not possible: the rollout is aborted"):
        rollouts.act("support", "paused", {"who": "ada", "reason": ""}, now=NOW)
    again = rollouts.start("support", who="ada", now=NOW)
    assert (again.attempt, again.generation, share_in_force(rollouts)) == (2, 3, 0.5)


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


def test_the_command_line_sets_what_is_mirrored(place: Place, rollouts: Rollouts) -> None:
    asked(place, "shadow", "support", "--share", "0.125", "--who", "bo")
    assert rollouts.gateway.read().of("support").shadow == 0.125
    refused = asked(place, "shadow", "support")["error"]["message"]
    assert refused.startswith("--share is missing; the share of legacy's requests")


def test_nothing_starts_while_a_flag_is_open(place: Place, rollouts: Rollouts) -> None:
    rollouts.act("support", "flagged", {"who": "dr-li", "reason": "doses are wrong", "flag": "3fa81c02"}, now=NOW)
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)

    with pytest.raises(InvalidInput, match="cannot start: flag 3fa81c02 of dr-li"):
        rollouts.start("support", who="ada", now=NOW)


def looked_at_in_the_ui(place: Place) -> dg.ExecuteInProcessResult:
    """Materialise where `support` stands."""
    place.instance.add_dynamic_partitions(str(workloads.name), ["support"])
    resources = place.definitions.resources
    done = dg.materialize([rollout_status], partition_key="support", instance=place.instance, resources=resources)
    assert done.success
    return done


def test_materialised_in_the_ui_it_tells_what_it_found_and_did(place: Place, rollouts: Rollouts) -> None:
    serve(place, errors=0.3)

    done = looked_at_in_the_ui(place)

    (shown_there,) = done.asset_materializations_for_node("rollout_status")
    shown = {name: entry.value for name, entry in shown_there.metadata.items()}
    assert shown["decision"] == "roll back"
    assert "errors is proven to be more than 5 points worse" in str(shown["reasons"])
    assert (shown["traffic"], shown["stage"], shown["phase"]) == (
        "0 % at the target, 50 % before",
        "none",
        "rolled back",
    )
    assert (shown["attempt"], shown["generation"]) == (1, 2)
    assert re.search(r"\| errors +\| harm +\| [\d.]+ points worse \(between", str(shown["evidence"]))
    history = str(shown["history"]).splitlines()
    assert [row.split("|")[2].strip().split(":")[0] for row in history[2:]] == [
        "ROLLED BACK, all traffic goes to legacy",
        "rollout started by ada",
    ]
    assert "errors is proven" in history[2]
    (check,) = done.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == ("no_proven_harm", False)
    assert share_in_force(rollouts) == 0.0


def test_a_rollout_that_was_rolled_back_does_not_look_sound_at_the_next_look(place: Place, rollouts: Rollouts) -> None:
    """The check of the step that rolled back must not turn green because nothing is left to be judged."""
    serve(place, errors=0.3)
    assert rollouts.step("support", now=NOW).status.phase == "rolled_back"

    (check,) = looked_at_in_the_ui(place).get_asset_check_evaluations()

    assert (check.passed, check.partition) == (False, "support")
    assert "errors is proven to be more than 5 points worse" in str(check.description)
