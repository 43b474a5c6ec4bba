"""The gateway's event log: killed writers, full disks, torn tails, and an ingestion that takes each line once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.gateway_event import UNKNOWN_REQUEST, GatewayEvent
from anven_pipelines.gateway.event_log import EventLog
from anven_pipelines.gateway.segments import LogLimits, ingested_bytes, segments_in
from anven_pipelines.ingest.event_store import MANIFEST, EventStore, attributed
from anven_pipelines.ingest.gateway_events import read_batch

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from anven_pipelines.domain.gateway_event import GatewayEvent
from anven_pipelines.gateway.event_log import EventLog
from anven_pipelines.gateway.segments import LogLimits

log = EventLog(Path(sys.argv[1]), worker=sys.argv[2], limits=LogLimits(segment_bytes=20_000, sync_s=0.01))
seq = 0
while True:
    for _ in range(25):
        seq += 1
        log.append(GatewayEvent(event_id=f"{sys.argv[2]}-{seq}", kind="request", ts=datetime.now(UTC),
                                worker=sys.argv[2], seq=seq, workload="support", latency_ms=1.5))
    assert log.flush()
    print(seq, flush=True)
"""


def event(seq: int, worker: str = "w", **changes: Any) -> GatewayEvent:
    values = {"event_id": f"{worker}-{seq}", "kind": "request", "ts": datetime.now(UTC), "worker": worker, "seq": seq}
    return GatewayEvent(**{**values, **changes})


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    log = EventLog(tmp_path / "log", worker="w")
    yield log
    log.close()


def test_a_segment_that_cannot_be_closed_does_not_end_the_log(log: EventLog, tmp_path: Path) -> None:
    log.append(event(1))
    assert log.flush()
    [segment] = segments_in(tmp_path / "log")
    [number] = [each.name for each in Path("/proc/self/fd").iterdir() if each.exists() and each.samefile(segment)]
    os.close(int(number))  # what follows on it gets EBADF: the write, the cut and the closing
    log.append(event(2))
    assert log.flush()
    assert read_batch(tmp_path / "log", {}).events["seq"].to_list() == [1, 2]


@pytest.mark.parametrize("acknowledged", [1, 7, 23])
def test_a_killed_writer_loses_nothing_it_acknowledged_and_nothing_is_read_twice(
    tmp_path: Path, acknowledged: int
) -> None:
    folder, store = tmp_path / "log", EventStore(tmp_path / "store")
    last: dict[str, int] = {}
    for worker in ("a", "b"):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), worker], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            for _ in range(acknowledged):
                last[worker] = int(process.stdout.readline())
                store.ingest(folder)  # while it writes
            os.kill(process.pid, signal.SIGKILL)
            last[worker] = max([last[worker], *map(int, process.stdout.read().split())])
    store.ingest(folder)
    events = store.events()
    for worker, acknowledged_seq in last.items():
        seqs = events.filter(worker=worker)["seq"].to_list()
        assert sorted(seqs) == list(range(1, len(seqs) + 1))
        assert len(seqs) >= acknowledged_seq
    assert store.ingest(folder).events == 0


def test_a_torn_tail_is_no_event_until_its_end_is_there(log: EventLog, tmp_path: Path) -> None:
    log.append(event(1))
    assert log.flush()
    [path] = segments_in(tmp_path / "log")
    line = event(2).to_line()
    with path.open("ab") as file:
        file.write(line[:40])
    batch = read_batch(tmp_path / "log", {})
    assert batch.events["seq"].to_list() == [1]
    assert batch.torn == {"w-000001": 40}
    with path.open("ab") as file:
        file.write(line[40:])
    rest = read_batch(tmp_path / "log", batch.cursor)
    assert rest.events["seq"].to_list() == [2]
    assert rest.torn == {}


def test_a_line_that_is_no_event_is_counted_and_the_others_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    bad = b'{"kind": "request"}\n'
    (folder / "w-000001.jsonl").write_bytes(event(1).to_line() + bad + b"\xff\n" + event(2).to_line())
    store = EventStore(tmp_path / "store")
    found = store.ingest(folder)
    assert found.events == 2
    assert [(each.file, each.line_at) for each in found.bad_lines] == [
        ("w-000001.jsonl", len(event(1).to_line())),
        ("w-000001.jsonl", len(event(1).to_line()) + len(bad)),
    ]
    assert "lacks event_id" in found.bad_lines[0].reason


def test_a_segment_keeps_its_place_when_it_is_closed(tmp_path: Path) -> None:
    log = EventLog(tmp_path, worker="w", limits=LogLimits(segment_s=1e9))
    store = EventStore(tmp_path / "store")
    log.append(event(1))
    assert log.flush()
    assert store.ingest(tmp_path).events == 1
    log.append(event(2))
    log.close()
    assert [path.name for path in segments_in(tmp_path)] == ["w-000001.jsonl"]
    assert store.ingest(tmp_path).events == 1
    assert sorted(store.events()["seq"]) == [1, 2]


def test_an_id_that_was_there_before_is_dropped_within_and_across_ingestions(log: EventLog, tmp_path: Path) -> None:
    store = EventStore(tmp_path / "store")
    for seq in (1, 2):
        log.append(event(seq, event_id="feedback-1", kind="feedback"))
    assert log.flush()
    first = store.ingest(tmp_path / "log")
    log.append(event(3, event_id="feedback-1", kind="feedback"))
    log.append(event(4))
    assert log.flush()
    second = store.ingest(tmp_path / "log")
    assert [(each.events, each.duplicates) for each in (first, second)] == [(1, 1), (1, 1)]
    assert store.events()["seq"].to_list() == [1, 4]


def test_an_ingestion_killed_between_part_and_manifest_takes_the_lines_once(log: EventLog, tmp_path: Path) -> None:
    store = EventStore(tmp_path / "store")
    log.append(event(1))
    assert log.flush()
    store.ingest(tmp_path / "log")
    before = (tmp_path / "store" / MANIFEST).read_bytes()
    log.append(event(2))
    assert log.flush()
    store.ingest(tmp_path / "log")
    (tmp_path / "store" / MANIFEST).write_bytes(before)  # as if the process had died before it was replaced
    assert store.ingest(tmp_path / "log").events == 1
    assert store.events()["seq"].to_list() == [1, 2]


def test_a_full_disk_drops_and_counts_and_what_is_written_later_is_whole(tmp_path: Path) -> None:
    # RLIMIT_FSIZE cuts a write short in its midst, as a full disk does; the segments behind it are new files.
    program = """
import json, resource, sys
from pathlib import Path
from tests.faults.test_event_log import event
from anven_pipelines.gateway.event_log import EventLog
from anven_pipelines.gateway.segments import LogLimits

soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
log = EventLog(Path(sys.argv[1]), worker="w", limits=LogLimits(queued=400))
for seq in range(1, 21):
    log.append(event(seq))
assert log.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
for seq in range(21, 5000):
    log.append(event(seq))
full = log.flush(1.0)
during = log.status
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
assert log.flush(20)
log.append(event(5000))
log.close()
print(json.dumps([full, during.problem, log.status.written, log.status.dropped]))
"""
    folder = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], check=True, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    flushed, problem, written, dropped = json.loads(done.stdout)
    assert not flushed
    assert "cannot write" in problem
    assert written + dropped == 5000
    assert dropped > 0
    batch = read_batch(folder, {})
    assert batch.bad_lines == ()
    assert batch.events.height == written
    assert {1, 20, 5000} <= set(batch.events["seq"])


def fill(folder: Path, store: EventStore | None) -> EventLog:
    log = EventLog(folder, worker="w", limits=LogLimits(segment_bytes=2_000, total_bytes=10_000))
    for seq in range(1, 400):
        log.append(event(seq))
        if seq % 5 == 0:
            assert log.flush()
            if store is not None:
                store.ingest(folder)
    assert log.flush()
    log.close()
    return log


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in segments_in(folder))


def test_the_folder_stays_small_as_long_as_its_segments_are_ingested(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "store")
    log = fill(tmp_path / "log", store)
    store.ingest(tmp_path / "log")
    assert (log.status.written, log.status.dropped) == (399, 0)
    assert store.events()["seq"].to_list() == list(range(1, 400))
    assert size_of(tmp_path / "log") <= 10_000 + 2_000
    assert not list((tmp_path / "log").glob("w-000001*"))  # segment and mark


def test_what_nobody_ingested_is_never_removed_and_new_events_are_dropped(tmp_path: Path) -> None:
    log = fill(tmp_path / "log", None)
    assert log.status.dropped > 0
    assert log.status.written + log.status.dropped == 399
    assert size_of(tmp_path / "log") <= 10_000
    batch = read_batch(tmp_path / "log", {})
    assert batch.events["seq"].to_list() == list(range(1, log.status.written + 1))


def test_an_open_segment_is_not_removed_though_all_of_it_is_ingested(log: EventLog, tmp_path: Path) -> None:
    log.append(event(1))
    assert log.flush()
    EventStore(tmp_path / "store").ingest(tmp_path / "log")
    [path] = segments_in(tmp_path / "log")
    assert ingested_bytes(path) == path.stat().st_size
    other = EventLog(tmp_path / "log", worker="x", limits=LogLimits(total_bytes=1))
    other.append(event(1, "x"))
    assert other.flush()
    other.close()
    assert path.exists()
    assert other.status.dropped == 1


def test_taking_an_event_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    log = EventLog(tmp_path, worker="w", limits=LogLimits(queued=10))
    taken = [log.append(event(seq)) for seq in range(20_000)]
    log.close()
    assert log.status.written + log.status.dropped == 20_000
    assert taken.count(False) == log.status.dropped


def test_a_gap_in_seq_shows_what_was_dropped(tmp_path: Path) -> None:
    log = EventLog(tmp_path, worker="w", limits=LogLimits(queued=10))
    for seq in range(1, 5_001):
        log.append(event(seq))
    log.close()
    seqs = read_batch(tmp_path, {}).events["seq"].to_list()
    assert seqs == sorted(seqs)
    assert 5_000 - len(seqs) == log.status.dropped


def test_feedback_gets_the_arms_of_its_request_when_both_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    arms: dict[str, Any] = {"workload": "support", "intended": "target", "served": "legacy", "stage": 1}
    lines = [
        event(1, "a", request_id="r1", **arms),
        event(1, "b", kind="feedback", request_id="r1", score=0.0, flags=(UNKNOWN_REQUEST,)),
        event(2, "b", kind="feedback", request_id="r2", score=1.0, flags=(UNKNOWN_REQUEST,)),
    ]
    (folder / "a-000001.jsonl").write_bytes(b"".join(each.to_line() for each in lines))
    rows = attributed(read_batch(folder, {}).events).filter(kind="feedback").rows(named=True)
    assert [(row["workload"], row["intended"], row["served"], row["flags"]) for row in rows] == [
        ("support", "target", "legacy", []),
        (None, None, None, [UNKNOWN_REQUEST]),
    ]


def test_events_come_in_their_order_and_time_is_utc(log: EventLog, tmp_path: Path) -> None:
    start = time.time()
    for seq in range(1, 4):
        log.append(event(seq))
    assert log.flush()
    events = read_batch(tmp_path / "log", {}).events
    assert events["seq"].to_list() == [1, 2, 3]
    assert abs(events["ts"][0].timestamp() - start) < 60
