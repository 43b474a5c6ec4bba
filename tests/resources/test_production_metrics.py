"""What production shows is judged whatever fails beside it: marks, the store's disk, a neighbour's lost events."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from anven_pipelines.domain.gateway_event import GatewayEvent, parse_event
from anven_pipelines.domain.rollout import Advance, Hold, RollBack, decide
from anven_pipelines.domain.rollout_plan import RolloutPlan
from anven_pipelines.domain.rollout_status import RolloutStatus
from anven_pipelines.ingest import event_store
from anven_pipelines.ingest.event_parts import MERGED
from anven_pipelines.ingest.event_store import MANIFEST, Contents, EventStore
from anven_pipelines.resources import production_metrics
from anven_pipelines.resources.production_metrics import ProductionMetrics
from anven_pipelines.spec_rollout import Limits, Rollout, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from anven_pipelines.domain.rollout import Decision
    from anven_pipelines.domain.rollout_evidence import Evidence

START = datetime(2026, 11, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)
SOAKED = START + 25 * HOUR
ROLLOUT = Rollout(
    stages=[Stage(share=0.5, soak=24 * HOUR), Stage(share=1.0, soak=HOUR)],
    limits=Limits(errors=0.05),
    stale=48 * HOUR,
    waive=["drill"],
)
PLAN = RolloutPlan(workload="quiet", rollout=ROLLOUT, metrics=("errors",))
STATUS = RolloutStatus(phase="running", attempt=1, generation=1, stage=0, entered_at=START, plan=PLAN.digest)


class Production:
    """A gateway's log, and what the controller makes of it."""

    def __init__(self, folder: Path) -> None:
        self.log, self.store = folder / "events", folder / "store"
        self.log.mkdir()
        self.metrics = ProductionMetrics(events=str(self.log), store=str(self.store))

    def write(self, worker: str, *events: dict[str, Any]) -> None:
        lines = [
            GatewayEvent(**({"worker": worker, "event_id": f"{worker}-{each['seq']}"} | each)).to_line()
            for each in events
        ]
        with (self.log / f"{worker}-000001.jsonl.open").open("ab") as file:
            file.write(b"".join(lines))

    def serve(self, *, errors: float, units: int = 6_000) -> None:
        """Write the requests of so many users, spread over 24 hours."""
        rng = np.random.default_rng(1)
        self.write("w1", *(self._request(seq, units, rng, errors) for seq in range(1, units + 1)))

    def _request(self, seq: int, units: int, rng: np.random.Generator, errors: float) -> dict[str, Any]:
        arm = "target" if rng.random() < 0.5 else "legacy"
        fails = arm == "target" and rng.random() < errors
        return {
            "seq": seq,
            "kind": "request",
            "ts": START + 24 * HOUR * seq / units,
            "workload": "quiet",
            "attempt": 1,
            "generation": 1,
            "share": 0.5,
            "unit": f"{seq:032x}",
            "intended": arm,
            "served": None if fails else arm,
            "request_id": f"q{seq}",
            "status": "error" if fails else "ok",
        }

    def trip(self) -> None:
        tripped = {"kind": "breaker", "workload": "quiet", "generation": 1, "outcome": "open", "error_class": "errors"}
        self.write("w2", {**tripped, "seq": 1, "ts": START + HOUR})

    def neighbour_loses(self, count: int, *, at: datetime) -> None:
        """Let another worker drop so many events, none of which need be ours."""
        busy = {"kind": "request", "workload": "busy"}
        self.write("w3", {**busy, "seq": 1, "ts": at - HOUR}, {**busy, "seq": count + 2, "ts": at})

    def evidence(self, *, now: datetime = SOAKED) -> Evidence:
        return self.metrics.evidence(PLAN, STATUS, now=now)

    def decision(self, *, now: datetime = SOAKED) -> Decision:
        return decide(PLAN, STATUS, self.evidence(now=now), now=now)


@pytest.fixture
def production(tmp_path: Path) -> Production:
    return Production(tmp_path)


@contextmanager
def full_disk() -> Iterator[None]:
    """Have the system refuse to write more than a few bytes into any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refuse_marks(production: Production) -> None:
    """Let a folder stand where a mark belongs: as a mount that is read-only, it takes none."""
    (production.log / "w1-000001.ingested").mkdir()


def test_a_good_target_advances(production: Production) -> None:
    production.serve(errors=0.0)
    assert isinstance(production.decision(), Advance)


def test_a_log_that_takes_no_marks_hides_no_harm(production: Production) -> None:
    production.serve(errors=0.3)
    refuse_marks(production)
    assert isinstance(production.decision(), RollBack)


def test_a_log_that_takes_no_marks_is_told_and_no_stage_is_left(production: Production) -> None:
    production.serve(errors=0.0)
    refuse_marks(production)
    for _ in range(2):  # what was read is kept, and counts once
        evidence = production.evidence()
        assert evidence.problem is None
        assert evidence.assignment is not None
        assert evidence.assignment.target + evidence.assignment.legacy == 6_000
    decision = production.decision()
    assert isinstance(decision, Hold)
    [reason] = decision.reasons
    assert f"log {production.log} takes no marks of what was read (Is a directory)" in reason
    assert not list(production.log.glob(".*.tmp"))


def test_a_store_on_a_full_disk_hides_no_harm_and_counts_nothing_twice_later(production: Production) -> None:
    production.serve(errors=0.3)
    with full_disk():
        evidence = production.evidence()
        assert evidence.problem is None
        assert evidence.lost is not None
        assert "are read and cannot be kept: cannot write" in evidence.lost
        assert isinstance(production.decision(), RollBack)
    later = production.evidence()
    assert later.lost is None
    assert later.assignment == evidence.assignment
    assert EventStore(production.store).events().height == 6_000


def test_a_store_on_a_full_disk_proves_no_advance(production: Production) -> None:
    production.serve(errors=0.0, units=5_000)
    production.decision()
    production.write("w9", {"kind": "request", "workload": "other", "seq": 1, "ts": SOAKED})
    with full_disk():
        assert isinstance(production.decision(), Hold)
    assert isinstance(production.decision(), Advance)


STOPPED = """
import os, signal, sys
from pathlib import Path
from anven_pipelines.ingest.event_store import EventStore

with EventStore(Path(sys.argv[1])).alone():
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@contextmanager
def stopped_reader(production: Production) -> Iterator[None]:
    """Let another process read the event log that somebody has stopped (Ctrl-Z)."""
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(production.store)])
    try:
        _, how = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(how)
        yield
    finally:
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("errors", "expected"), [(0.3, RollBack), (0.0, Hold)])
def test_another_process_that_was_stopped_while_it_reads_is_told_hides_no_harm_and_lets_no_stage_be_left(
    production: Production, errors: float, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_store, "LOCK_S", 0.2)
    production.serve(errors=errors)
    with stopped_reader(production):
        evidence = production.evidence()
        assert evidence.lost is not None
        assert f"another process has held {production.store / '.lock'} for 0.2 s" in evidence.lost
        assert isinstance(production.decision(), expected)
    assert production.evidence().lost is None


@pytest.mark.timeout(60)
def test_a_reading_that_hangs_in_this_process_hides_no_other_workloads_harm(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(production_metrics, "READING_S", 0.2)
    production.serve(errors=0.3)
    decided: list[Decision] = []
    with production_metrics._READING:  # as a thread has it that hangs
        thread = threading.Thread(target=lambda: decided.append(production.decision()))
        thread.start()
        thread.join()
    assert isinstance(decided[0], RollBack)
    assert not production_metrics._READING.locked()


def test_a_part_that_another_process_merges_while_it_is_read_without_the_lock_is_read_where_it_is_now(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, contents = EventStore(production.store), EventStore.contents
    for seq in range(1, MERGED):
        production.write("w9", {"kind": "request", "workload": "other", "seq": seq, "ts": START})
        store.ingest(production.log)
    production.serve(errors=0.3)

    def merged_meanwhile(asked: EventStore, log: Path | None = None) -> Contents:
        found = contents(asked, log)
        monkeypatch.setattr(EventStore, "contents", contents)
        assert store.ingest(production.log).events == 6_000
        return found

    monkeypatch.setattr(event_store, "LOCK_S", 0.0)
    monkeypatch.setattr(EventStore, "contents", merged_meanwhile)
    with stopped_reader(production):
        evidence = production.evidence()
    assert evidence.problem is None
    assert evidence.assignment is not None
    assert evidence.assignment.target + evidence.assignment.legacy == 6_000


def break_manifest(production: Production) -> None:
    production.store.mkdir()
    (production.store / MANIFEST).write_text("no JSON")


def break_segment(production: Production) -> None:
    (production.log / "w0-000001.jsonl").mkdir()


@pytest.mark.parametrize("break_it", [break_manifest, break_segment])
def test_what_cannot_be_read_hides_no_tripped_breaker(
    production: Production, break_it: Callable[[Production], None]
) -> None:
    production.serve(errors=0.0)
    break_it(production)
    held = production.decision()
    assert isinstance(held, Hold)
    assert any("the event log cannot be read" in reason for reason in held.reasons)

    production.trip()
    decision = production.decision()
    assert isinstance(decision, RollBack)
    assert decision.reasons == ("the gateway's breaker tripped: errors at 01:00:00 UTC",)


def test_a_neighbours_loss_hides_harm_in_its_own_window_only(production: Production) -> None:
    """5,000 events are lost in the stage's second hour: of its first six hours nobody knows, of the later ones all."""
    production.serve(errors=0.3)
    production.neighbour_loses(5_000, at=START + 2 * HOUR)

    spoilt = decide(PLAN, STATUS, seen_until(production, START + 5 * HOUR), now=START + 5 * HOUR)
    assert isinstance(spoilt, Hold)
    found = production.decision(now=START + 20 * HOUR)
    assert isinstance(found, RollBack)
    assert "errors is proven to be more than 5 points worse" in found.reasons[0]


def seen_until(production: Production, now: datetime) -> Evidence:
    """Return the evidence of a moment, before the later events were written."""
    folder = production.log.with_name(f"until {now:%H}")
    folder.mkdir()
    earlier = Production(folder)
    for path in production.log.glob("*.open"):
        lines = [line for line in path.read_bytes().splitlines(keepends=True) if parse_event(line).ts <= now]
        (earlier.log / path.name).write_bytes(b"".join(lines))
    return earlier.evidence(now=now)


def test_a_neighbours_loss_proves_no_advance(production: Production) -> None:
    production.serve(errors=0.0)
    production.neighbour_loses(5_000, at=START + 2 * HOUR)

    decision = production.decision()

    assert isinstance(decision, Hold)
    assert decision.reasons == ("5,000 events of the gateway are lost: its disk was full, or its log was cut",)
