"""The store of the gateway's events: merged, killed at any of its writes, and nothing is lost or counted twice."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from anven_pipelines.domain.gateway_event import UNKNOWN_REQUEST, GatewayEvent
from anven_pipelines.gateway.segments import ingested_bytes, segments_in
from anven_pipelines.ingest import event_parts
from anven_pipelines.ingest.event_parts import MERGED
from anven_pipelines.ingest.event_store import MANIFEST, EventStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

ROOT = Path(__file__).parents[2]
T0 = datetime(2026, 11, 20, tzinfo=UTC)
FEW = 3
"""Parts that are merged in the tests with kills, so that two levels fill up with nine ingestions."""

KILLED = """
# Takes in the log, or removes rows, in children that are killed before their first write, their second, and so on.
import os, shutil, signal, sys
from pathlib import Path
import polars as pl
from anven_pipelines.ingest import event_parts
from anven_pipelines.ingest.event_store import EventStore

template, home = Path(sys.argv[1]), Path(sys.argv[2])
event_parts.MERGED = int(sys.argv[3])
number = 0
while True:
    number += 1
    place = home / str(number)
    shutil.copytree(template, place)
    child = os.fork()  # Polars, whose threads do not survive a fork, has not been used by now
    if child == 0:
        left = number

        def count(event, args):
            global left
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove", "os.mkdir"):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        store = EventStore(place / "store")
        if sys.argv[4] == "ingest":
            store.ingest(place / "log")
        else:
            store.retain(pl.col("seq") > int(sys.argv[4]))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        break
print(number)
"""


def event(seq: int, **changes: Any) -> GatewayEvent:
    values: dict[str, Any] = {"event_id": f"w-{seq}", "kind": "request", "ts": T0 + timedelta(seconds=seq)}
    values |= {"worker": "w", "seq": seq, "workload": "support", "attempt": 1, "request_id": f"q{seq}"}
    values |= {"intended": "target", "served": "target"}
    return GatewayEvent(**(values | changes))


def write(log: Path, events: Iterable[GatewayEvent]) -> None:
    log.mkdir(parents=True, exist_ok=True)
    with (log / "w-000001.jsonl.open").open("ab") as file:
        file.write(b"".join(each.to_line() for each in events))


def filled(place: Path, *, ingestions: int, each: int = 2) -> EventStore:
    """Return a store that has taken in so many batches of so many events."""
    store = EventStore(place / "store")
    for first in range(1, ingestions * each + 1, each):
        write(place / "log", map(event, range(first, first + each)))
        store.ingest(place / "log")
    return store


def parts(store: Path) -> list[str]:
    found: list[str] = json.loads((store / MANIFEST).read_bytes())["parts"]
    return found


def on_disk(store: Path) -> set[str]:
    return {path.name for path in store.glob("*.parquet")}


def test_parts_are_merged_in_their_order_and_nothing_else_is_left(tmp_path: Path) -> None:
    store = filled(tmp_path, ingestions=2 * MERGED + 3)

    assert [name.split("-")[0] for name in parts(tmp_path / "store")] == ["merged"] * 2 + ["part"] * 3
    assert on_disk(tmp_path / "store") == set(parts(tmp_path / "store"))
    assert store.events()["seq"].to_list() == list(range(1, 2 * (2 * MERGED + 3) + 1))
    assert store.ingest(tmp_path / "log").events == 0


def test_an_id_that_lies_in_a_merged_part_is_known(tmp_path: Path) -> None:
    store = filled(tmp_path, ingestions=MERGED)
    write(tmp_path / "log", [event(2 * MERGED + 1, event_id="w-1")])

    found = store.ingest(tmp_path / "log")

    assert (found.events, found.duplicates) == (0, 1)
    assert store.contents().numbers()["seq"].to_list() == list(range(1, 2 * MERGED + 2))


def test_a_merge_stays_within_its_rows_and_the_parts_stay_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_parts, "MERGED", FEW)
    monkeypatch.setattr(event_parts, "MOST_ROWS", 10)
    filled(tmp_path, ingestions=1, each=11)  # by itself too large for any merge

    store = filled(tmp_path, ingestions=40)

    rows = [event_parts.rows_of(tmp_path / "store", part) for part in parts(tmp_path / "store")]
    assert rows[0] == 11
    assert max(rows[1:]) <= 10
    assert len(rows) <= 16  # of 36 without merges
    assert store.events()["seq"].to_list() == list(range(1, 81))


def test_where_the_disk_has_no_room_for_a_merge_the_new_events_are_kept_by_themselves(tmp_path: Path) -> None:
    store = filled(tmp_path, ingestions=MERGED - 1, each=200)
    write(tmp_path / "log", [event(200 * MERGED)])
    most = 2 * max(path.stat().st_size for path in (tmp_path / "store").glob("*.parquet"))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        assert store.ingest(tmp_path / "log").events == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(parts(tmp_path / "store")) == MERGED
    write(tmp_path / "log", [event(200 * MERGED + 1)])
    store.ingest(tmp_path / "log")

    [merged] = parts(tmp_path / "store")
    assert (tmp_path / "store" / merged).stat().st_size > most
    assert store.events()["seq"].to_list() == [*range(1, 200 * (MERGED - 1) + 1), 200 * MERGED, 200 * MERGED + 1]


def test_after_an_older_manifest_was_restored_nothing_is_removed_whose_events_are_nowhere_else(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "store"
    store = filled(tmp_path, ingestions=2)
    backup, known = (folder / MANIFEST).read_bytes(), on_disk(folder)
    write(log, [event(5)])
    store.ingest(log)
    [lost] = on_disk(folder) - known
    (folder / MANIFEST).write_bytes(backup)
    for segment in segments_in(log):  # as the gateway does where its log is full and all is ingested
        segment.unlink()
    (log / "w-000002.jsonl.open").write_bytes(event(6).to_line())

    assert store.ingest(log).events == 1

    assert lost in on_disk(folder)
    assert event_parts.scan(folder, [lost]).collect()["seq"].to_list() == [5]
    assert store.events()["seq"].to_list() == [1, 2, 3, 4, 6]

    (log / "w-000003.jsonl.open").write_bytes(event(5).to_line())  # as soon as its event is in, it goes
    store.ingest(log)
    assert on_disk(folder) == set(parts(folder))


def test_an_ingestion_that_is_killed_at_any_write_takes_each_event_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ninth ingestion merges two levels, meets an event again, and removes what it merged."""
    monkeypatch.setattr(event_parts, "MERGED", FEW)
    template = tmp_path / "template"
    filled(template, ingestions=FEW**2 - 1)
    assert len(parts(template / "store")) == 2 * (FEW - 1)
    last = 2 * (FEW**2 - 1)
    write(template / "log", [event(last + 1), event(last + 2), event(last + 3, event_id="w-1")])

    command = [sys.executable, "-c", KILLED, str(template), str(tmp_path), str(FEW), "ingest"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=300)
    survived = int(done.stdout)

    assert survived > 8  # part, manifest and mark are opened and renamed each, and four parts are removed
    for number in range(1, survived + 1):
        place = tmp_path / str(number)
        store = EventStore(place / "store")
        before = store.events()["seq"].to_list()  # as somebody finds it who looks before the next ingestion
        assert before in (list(range(1, last + 1)), list(range(1, last + 3))), number

        write(place / "log", [event(last + 4)])
        store.ingest(place / "log")

        assert store.events()["seq"].to_list() == [*range(1, last + 3), last + 4], number
        assert sorted(store.contents().numbers()["seq"]) == list(range(1, last + 5)), number
        assert on_disk(place / "store") == set(parts(place / "store")), number
        [segment] = segments_in(place / "log")
        assert ingested_bytes(segment) == segment.stat().st_size, number
        shutil.rmtree(place)


def test_a_workload_is_read_with_its_attempt_and_the_feedback_whose_request_is_there(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "store")
    unknown: dict[str, Any] = {"kind": "feedback", "workload": None, "attempt": None}
    unknown |= {"intended": None, "served": None, "flags": (UNKNOWN_REQUEST,)}
    write(
        tmp_path / "log",
        [
            event(1),
            event(2, attempt=2),
            event(3, workload="other"),
            event(4, kind="breaker", attempt=None, request_id=None),
            event(5, request_id="q1", score=1.0, **unknown),
            event(6, request_id="q2", score=1.0, **unknown),  # of the other attempt
            event(7, request_id="q3", score=1.0, **unknown),  # of the other workload
            event(8, request_id="nobody's", score=1.0, **unknown),
        ],
    )
    store.ingest(tmp_path / "log")

    assert store.contents().of("support", attempt=1)["seq"].to_list() == [1, 4, 5]
    assert store.contents().of("support", attempt=2)["seq"].to_list() == [2, 4, 6]
    assert store.contents().numbers().height == 8


def test_rows_that_are_not_retained_are_in_no_file_wherever_a_removal_was_killed(tmp_path: Path) -> None:
    """The next one ends what the killed one began, and what is wanted is there after either."""
    template = tmp_path / "template"
    filled(template, ingestions=5)
    command = [sys.executable, "-c", KILLED, str(template), str(tmp_path), str(MERGED), "7"]
    kills = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert kills > 5
    for number in range(1, kills):
        place = tmp_path / str(number)
        store = EventStore(place / "store")
        assert store.events()["seq"].to_list()[-3:] == [8, 9, 10]
        write(place / "log", [event(11)])
        store.ingest(place / "log")

        assert store.retain(pl.col("seq") > 7)["seq"].to_list() == [8, 9, 10, 11]

        assert store.events()["seq"].to_list() == [8, 9, 10, 11]
        assert store.rows() == 4
        left = pl.scan_parquet(place / "store" / "*.parquet").collect()
        assert sorted(left["seq"].to_list()) == [8, 9, 10, 11]
        assert store.retain(pl.lit(value=False)).is_empty()
        assert list((place / "store").glob("*.parquet")) == []


def test_who_takes_in_a_part_of_a_log_leaves_the_rest_to_others(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, [event(1), event(2, workload="other"), event(3)])
    mine, others = EventStore(tmp_path / "mine"), EventStore(tmp_path / "others")

    assert mine.ingest(log, wanted=pl.col("workload") == "support").events == 2

    assert [ingested_bytes(path) for path in segments_in(log)] == [0]
    assert mine.events()["seq"].to_list() == [1, 3]
    assert mine.ingest(log, wanted=pl.col("workload") == "support").events == 0
    assert others.ingest(log).events == 3
    assert [ingested_bytes(path) for path in segments_in(log)] != [0]
