"""The sensor of rollouts beside what breaks: no workload keeps another one from its roll back."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.gateway_event import GatewayEvent
from anven_pipelines.domain.notice import hold_stream
from anven_pipelines.migrate import of_kind
from anven_pipelines.resources.rollouts import Look, Rollouts
from anven_pipelines.sensors import rollout as sensor
from anven_pipelines.sensors import under_way
from tests.running_rollout import tick
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.pipeline.conftest import Place

NOW = datetime.now(UTC)
ROLLOUT = {"waive": ["drill"]}
PATIENCE_S = 60.0


@pytest.fixture
def rollouts(place: Place) -> Rollouts:
    return of_kind(place.definitions, "rollouts", Rollouts)


def begin(place: Place, rollouts: Rollouts, *workloads: str) -> None:
    """Sign workloads off and start their rollouts."""
    for workload in workloads:
        declared = place.declare(workload=workload, rollout=ROLLOUT)
        sign_off(declared.migration, place.state, place.artifacts, now=NOW)
        rollouts.start(workload, who="ada", now=NOW)


def trip(place: Place, *workloads: str) -> None:
    """Write what a gateway writes whose breakers tripped."""
    folder = place.folder / "home" / "gateway" / "events"
    folder.mkdir(parents=True)
    tripped: dict[str, Any] = {"kind": "breaker", "generation": 1, "outcome": "open", "error_class": "errors"}
    events = [
        GatewayEvent(**tripped, event_id=f"b{seq}", workload=workload, ts=NOW, worker="w", seq=seq)
        for seq, workload in enumerate(workloads, start=1)
    ]
    (folder / "w-000000.jsonl").write_bytes(b"".join(event.to_line() for event in events))


def asked(place: Place, rollouts: Rollouts) -> set[str | None]:
    """Return the workloads that a tick asks a step for."""
    return {each.partition_key for each in tick(place, rollouts).run_requests or []}


class Stuck:
    """A look at one workload that ends when it is told to; the looks that were begun are counted."""

    def __init__(self, workload: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.waited_in_vain = False
        self.begun: Counter[str] = Counter()
        self.ended = threading.Event()
        look = Rollouts.look

        def stuck(rollouts: Rollouts, asked: str, **how: Any) -> Look:
            self.begun[asked] += 1
            if asked == workload:
                self.waited_in_vain |= not self.go_on.wait(PATIENCE_S)
            try:
                return look(rollouts, asked, **how)
            finally:
                if asked == workload:
                    self.ended.set()

        monkeypatch.setattr(Rollouts, "look", stuck)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Stuck]]:
    made: list[Stuck] = []

    def make(workload: str) -> Stuck:
        monkeypatch.setattr(sensor, "LOOKS_S", 2.0)
        made.append(Stuck(workload, monkeypatch))
        return made[-1]

    yield make
    for each in made:
        each.go_on.set()


def test_a_look_that_hangs_keeps_no_other_workload_from_its_roll_back(
    place: Place, rollouts: Rollouts, stuck: Callable[[str], Stuck]
) -> None:
    begin(place, rollouts, "a-first", "support")
    trip(place, "support")
    hangs = stuck("a-first")

    found = tick(place, rollouts)

    assert [each.partition_key for each in found.run_requests or []] == ["support"]
    assert not hangs.waited_in_vain


def test_a_tick_says_of_each_workload_where_it_is_and_what_holds_it_though_the_ui_runs_lines_together(
    place: Place, rollouts: Rollouts
) -> None:
    begin(place, rollouts, "a-first", "support")

    (told,) = [each.skip_message or "" for each in [tick(place, rollouts).skip_reason] if each]

    first, second = " ".join(told.split()).split(" • ")
    assert first.startswith("a-first (5 % at the target, generation 1): ")
    assert second.startswith("support (5 % at the target, generation 1): ")


def test_a_look_that_was_not_waited_for_is_told_goes_on_and_its_finding_is_not_lost(
    place: Place, rollouts: Rollouts, stuck: Callable[[str], Stuck]
) -> None:
    begin(place, rollouts, "support")
    trip(place, "support")
    slow = stuck("support")

    first, second = tick(place, rollouts), tick(place, rollouts)

    for each in (first, second):
        assert each.skip_reason is not None
        assert "support: the look at it is still under way" in str(each.skip_reason.skip_message)
    assert slow.begun["support"] == 1  # never two looks of one workload at once

    slow.go_on.set()
    assert slow.ended.wait(PATIENCE_S)
    while not (requests := asked(place, rollouts)):
        pass  # between the end of the look and its being taken down lies no event to wait for
    assert requests == {"support"}


def test_a_locked_state_store_delays_no_request(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds a rollout cannot be written down meanwhile."""
    begin(place, rollouts, "a-first", "b-second", "support")
    trip(place, "support")
    monkeypatch.setattr(sensor, "NOTES_S", 0.1)
    note, given_up = Rollouts.note_hold, threading.Event()

    def noted(rollouts: Rollouts, workload: str, found: Look, **how: Any) -> None:
        try:
            note(rollouts, workload, found, **how)
        finally:
            if workload != "support":
                given_up.set()

    monkeypatch.setattr(Rollouts, "note_hold", noted)
    database = sqlite3.connect(place.folder / "home" / "state.db", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    try:
        assert asked(place, rollouts) == {"support"}
        assert not given_up.is_set()  # the tick did not wait until SQLite gave up
    finally:
        database.rollback()
        database.close()
    assert given_up.wait(PATIENCE_S)
    while not place.state.events(hold_stream("b-second")):
        tick(place, rollouts)


@pytest.mark.parametrize("act", ["paused", "aborted"])
def test_what_a_late_look_found_to_hold_a_rollout_that_has_moved_on_is_told_to_nobody(
    place: Place, rollouts: Rollouts, act: str
) -> None:
    begin(place, rollouts, "support")
    late = rollouts.look("support", now=NOW)
    rollouts.act("support", act, {"who": "bo", "reason": "enough"}, now=NOW)

    rollouts.note_hold("support", late, now=NOW)

    assert not place.state.events(hold_stream("support"))
    if act == "paused":
        rollouts.act("support", "resumed", {"who": "bo", "reason": ""}, now=NOW)
        rollouts.note_hold("support", rollouts.look("support", now=NOW), now=NOW)
        assert len(place.state.events(hold_stream("support"))) == 1


def test_many_workloads_are_looked_at_side_by_side_on_one_store(place: Place, rollouts: Rollouts) -> None:
    """Threads share resources, the SQLite file, the event log and what was read of it."""
    names = [f"w{number:02d}" for number in range(24)]
    begin(place, rollouts, *names)
    trip(place, *names[::2])
    due: set[str | None] = set()
    while len(due) < 12:
        due |= asked(place, rollouts)

    assert due == set(names[::2])
    for name in names[1::2]:
        while not place.state.events(hold_stream(name)):
            tick(place, rollouts)
    assert place.state.verify().ok


def test_a_step_is_asked_for_together_with_the_partition_that_it_runs_in(place: Place, rollouts: Rollouts) -> None:
    """Dagster refuses all requests of a tick where one names a partition that is not there."""
    begin(place, rollouts, "a-first", "support")
    trip(place, "a-first", "support")

    found = tick(place, rollouts)

    wanted = {each.partition_key for each in found.run_requests or []}
    [partitions] = found.dynamic_partitions_requests or []
    assert partitions.partitions_def_name == workloads.name
    assert set(partitions.partition_keys) == wanted == {"a-first", "support"}


def test_who_was_not_looked_at_comes_first_the_next_time(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch, stuck: Callable[[str], Stuck]
) -> None:
    begin(place, rollouts, "a-first", "support")
    trip(place, "support")
    monkeypatch.setattr("anven_pipelines.sensors.looks.AT_ONCE", 1)
    hangs = stuck("a-first")

    assert asked(place, rollouts) == set()
    assert asked(place, rollouts) == {"support"}
    assert hangs.begun == {"a-first": 1, "support": 1}


@pytest.mark.parametrize("is_logged", [False, True])
def test_a_roll_back_whose_run_waits_for_a_place_is_taken_by_the_sensor(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch, *, is_logged: bool
) -> None:
    begin(place, rollouts, "support")
    if is_logged:
        monkeypatch.setattr(Rollouts, "put_in_force", Rollouts.status)  # a step that was killed before it routed
        rollouts.act("support", "aborted", {"who": "ada", "reason": "enough"}, now=NOW)
    else:
        trip(place, "support")
    [request] = tick(place, rollouts).run_requests or []
    job = place.definitions.resolve_implicit_global_asset_job_def()
    place.instance.create_run_for_job(job, tags=request.tags, status=dg.DagsterRunStatus.STARTING)

    tick(place, rollouts)
    assert rollouts.gateway.read().of("support").share == 0.05  # it is given time

    monkeypatch.setattr(under_way, "QUEUE_PATIENCE", timedelta(0))
    found = tick(place, rollouts)

    assert rollouts.gateway.read().of("support").share == 0.0
    assert not found.run_requests
    assert found.skip_reason is not None
    assert "taken here, as the run of its step waits for a place to run" in str(found.skip_reason.skip_message)
    generation = rollouts.status("support").generation
    tick(place, rollouts)
    assert rollouts.status("support").generation == generation
