"""A rollout whose log, state store or traffic file is damaged, set back or changed by hand."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.errors import InvalidInput, TamperedLog, UnavailableService
from anven_pipelines.domain.rollout import Hold
from anven_pipelines.domain.rollout_act import Act
from anven_pipelines.domain.rollout_status import stream_of
from anven_pipelines.domain.traffic import Route, Traffic, accept, drill_of
from anven_pipelines.domain.traffic_file import print_traffic
from anven_pipelines.resources import event_database
from anven_pipelines.resources.rollout_acts import perform
from anven_pipelines.resources.state_store import StateStore
from tests.running_rollout import NOW, begun, serve, share_in_force, tick

if TYPE_CHECKING:
    from anven_pipelines.resources.rollouts import Rollouts
    from tests.pipeline.conftest import Place


@pytest.fixture
def rollouts(place: Place) -> Rollouts:
    """Give the rollouts of a place in which `support` is signed off and has begun its first stage."""
    return begun(place)


def test_harm_in_an_altered_log_is_rolled_back_at_the_gateway_alone(place: Place, rollouts: Rollouts) -> None:
    serve(place, errors=0.3)
    with sqlite3.connect(place.folder / "home" / "state.db") as database:
        database.execute("update events set payload = replace(payload, 'ada', 'eve') where kind = 'started'")
    database.close()

    with pytest.raises(TamperedLog):
        rollouts.step("support", now=NOW)

    assert rollouts.gateway.read().of("support").killed
    assert rollouts.status("support").phase == "running"


def test_an_altered_log_without_harm_changes_nothing(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    with sqlite3.connect(place.folder / "home" / "state.db") as database:
        database.execute("update events set payload = replace(payload, 'ada', 'eve') where kind = 'started'")
    database.close()

    with pytest.raises(TamperedLog):
        rollouts.step("support", now=NOW)

    assert not rollouts.gateway.read().of("support").killed


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
    assert decision.reasons[0].startswith(
        "the kill switch is on: legacy answers, and nothing is learnt of the target. Abort "
    )
    in_force = rollouts.gateway.read().of("support")
    assert (in_force.generation, in_force.killed, in_force.shadow) == (1, True, 0.25)

    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    with pytest.raises(InvalidInput, match="its kill switch is on: `anven rollout unkill"):
        rollouts.start("support", who="ada", now=NOW)
    given_back = rollouts.gateway.read()
    lifted = Traffic({"support": replace(given_back.of("support"), killed=False)})
    file.write_text(print_traffic(lifted))
    assert accept(given_back, lifted, highest={"support": 2}).traffic == lifted
    rollouts.start("support", who="ada", now=NOW)
    assert accept(lifted, rollouts.gateway.read(), highest={"support": 2}).traffic.of("support").share == 0.5


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
