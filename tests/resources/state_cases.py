"""What a state store does on whatever database it stands; run on SQLite and on PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.errors import InvalidInput, TamperedLog
from anven_pipelines.resources.event_database import _chain_head, _events, _schema
from anven_pipelines.resources.state_store import StateStore

if TYPE_CHECKING:
    import sqlalchemy as sa

    from anven_pipelines.domain.events import Event

# Each process appends thirty events of its own, and the same three as the others.
# Forks after the one import, so that they start in the same millisecond.
THREE_PROCESSES = """
import os, sys
from anven_pipelines.resources.state_store import StateStore
from tests.resources.state_cases import append

def work(name):
    state = StateStore(url=sys.argv[1])
    for stream, key in [(name, str(n)) for n in range(30)] + [("shared", str(n)) for n in range(3)]:
        append(state, key, stream=stream)

children = []
for name in "abc":
    if not (child := os.fork()):
        work(name)
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)
"""

NOON = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)


def append(state: StateStore, key: str, **changes: Any) -> Event:
    event: dict[str, Any] = {
        "stream": "rollout/support",
        "kind": "advanced",
        "key": key,
        "payload": {"share": 0.05},
        "now": NOON,
    }
    return state.append(**(event | changes))


def execute(state: StateStore, *statements: sa.Executable) -> None:
    """Write to the database behind the store's back."""
    with state._database._transaction(writes=True) as connection:
        for statement in statements:
            connection.execute(statement)


class StateCases:
    """Inherited by a test class that provides the `state` fixture."""

    def test_an_event_comes_back_exactly(self, state: StateStore) -> None:
        tokyo = timezone(timedelta(hours=9))
        payload = {"ü": "\x00 “x”", "n": [1, 1.0, 1e300, -0.0, 2**70], "none": None, "deep": {"b": 1, "a": True}}
        written = append(state, "k1", payload=payload, now=NOON.astimezone(tokyo))

        (read,) = state.events()
        assert read == written
        assert read.payload == payload
        assert (read.ts, read.ts_text) == (NOON, "2026-11-20T12:00:00.123456+00:00")
        assert (read.seq, read.stream, read.kind, read.key) == (1, "rollout/support", "advanced", "k1")

    def test_a_whole_second_keeps_its_microseconds(self, state: StateStore) -> None:
        assert append(state, "k1", now=NOON.replace(microsecond=0)).ts_text == "2026-11-20T12:00:00.000000+00:00"

    def test_events_are_found_by_stream_and_kind_oldest_first(self, state: StateStore) -> None:
        append(state, "1", stream="a", kind="x")
        append(state, "2", stream="b", kind="x")
        append(state, "3", stream="a", kind="y")
        append(state, "4", stream="a", kind="x")

        assert [event.key for event in state.events()] == ["1", "2", "3", "4"]
        assert [event.key for event in state.events("a")] == ["1", "3", "4"]
        assert [event.key for event in state.events("a", "x")] == ["1", "4"]
        assert [event.key for event in state.events(kind="x")] == ["1", "2", "4"]

    def test_the_latest_event_is_the_last_written(self, state: StateStore) -> None:
        append(state, "1", payload={"share": 0.25})
        append(state, "2", payload={"share": 0.05}, now=NOON - timedelta(days=1))
        append(state, "3", kind="held")

        latest = state.latest("rollout/support", "advanced")
        assert latest is not None
        assert latest.payload == {"share": 0.05}
        assert state.latest("rollout/support") == state.events()[-1]
        assert state.latest("rollout/billing", "advanced") is None

    def test_appending_twice_changes_nothing(self, state: StateStore) -> None:
        first = append(state, "k1", payload={"a": 1, "b": 2})
        again = append(state, "k1", payload={"b": 2, "a": 1}, now=NOON + timedelta(hours=1))

        assert again == first
        assert state.events() == [first]

    def test_a_key_stands_for_one_event_per_stream(self, state: StateStore) -> None:
        append(state, "k1", stream="a")
        append(state, "k1", stream="b")

        assert len(state.events()) == 2

    @pytest.mark.parametrize("change", [{"payload": {"share": 0.5}}, {"kind": "rolled_back"}])
    def test_a_key_cannot_stand_for_two_events(self, state: StateStore, change: dict[str, Any]) -> None:
        append(state, "k1")

        with pytest.raises(InvalidInput, match=r"the key 'k1' stands in the stream 'rollout/support' as event 1"):
            append(state, "k1", **change)
        assert len(state.events()) == 1
        assert state.verify().ok

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"payload": {"score": float("nan")}}, "the event's payload is not JSON"),
            ({"payload": {"at": NOON}}, "the event's payload is not JSON"),
            ({"payload": {"text": "\ud800"}}, "the event's payload is not JSON"),
            ({"now": NOON.replace(tzinfo=None)}, "without a time zone"),
            ({"stream": ""}, "the event's stream is ''"),
            ({"kind": "a\x00b"}, "the event's kind is"),
            ({"key": "k" * 501}, "1 to 500 printable characters are needed"),
        ],
    )
    def test_what_cannot_be_written_is_refused(self, state: StateStore, change: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            append(state, **({"key": "k1"} | change))
        assert state.events() == []

    def test_an_untouched_log_verifies(self, state: StateStore) -> None:
        assert state.verify().ok
        events = [append(state, str(n)) for n in range(5)]

        assert state.verify() == (5, events[-1].hash, None, None)

    @pytest.mark.parametrize("column", [column.name for column in _events.columns])
    @pytest.mark.parametrize("seq", [1, 3, 5])
    def test_an_altered_event_is_found(self, state: StateStore, column: str, seq: int) -> None:
        for n in range(5):
            append(state, str(n))
        changed = 99 if column == "seq" else _events.c[column] + " "
        execute(state, _events.update().where(_events.c.seq == seq).values({column: changed}))

        verification = state.verify()
        assert not verification.ok
        assert (verification.events, verification.broken_seq) == (seq - 1, seq)

    @pytest.mark.parametrize("seq", [1, 3, 5])
    def test_a_removed_event_is_found(self, state: StateStore, seq: int) -> None:
        for n in range(5):
            append(state, str(n))
        execute(state, _events.delete().where(_events.c.seq == seq))

        verification = state.verify()
        assert (verification.ok, verification.broken_seq) == (False, seq)

    def test_removing_all_events_is_found(self, state: StateStore) -> None:
        append(state, "k1")
        execute(state, _events.delete())

        assert (state.verify().ok, state.verify().broken_seq) == (False, 1)

    def test_swapped_events_are_found(self, state: StateStore) -> None:
        for n in range(5):
            append(state, str(n))
        for old, new in ((2, 99), (4, 2), (99, 4)):
            execute(state, _events.update().where(_events.c.seq == old).values(seq=new))

        assert state.verify().broken_seq == 2

    def test_an_inserted_event_is_found(self, state: StateStore) -> None:
        first, second = append(state, "1"), append(state, "2")
        row = {"seq": 3, "ts": second.ts_text, "stream": "a", "kind": "b", "key": "c", "payload": "{}"}
        execute(state, _events.insert().values(**row, prev_hash=second.hash, hash=first.hash))

        assert state.verify().broken_seq == 3

    def test_a_removed_head_is_found_and_stops_the_log(self, state: StateStore) -> None:
        append(state, "1")
        execute(state, _chain_head.delete())

        assert state.verify().reason == "the head is missing"
        with pytest.raises(TamperedLog, match="restore the database from a backup"):
            append(state, "2")

    def test_cutting_the_log_and_its_head_changes_the_hash_that_was_written_down(self, state: StateStore) -> None:
        first = append(state, "1")
        append(state, "2")
        written_down = state.verify().head
        cut = _chain_head.update().values(seq=1, hash=first.hash)
        execute(state, _events.delete().where(_events.c.seq == 2), cut)

        assert state.verify().ok  # the limit that domain/events.py states
        assert state.verify().head != written_down

    def test_a_newer_schema_is_refused(self, state: StateStore) -> None:
        append(state, "1")
        execute(state, _schema.insert().values(version=2))

        with pytest.raises(InvalidInput, match=r"has schema version 2; this release knows up to 1: upgrade"):
            StateStore(url=state.url).events()

    def test_processes_that_start_and_append_at_once_make_one_chain(self, state: StateStore) -> None:
        assert subprocess.run([sys.executable, "-c", THREE_PROCESSES, state.url], check=False).returncode == 0

        assert (state.verify().ok, state.verify().events) == (True, 93)
        assert len({(event.stream, event.key) for event in state.events()}) == 93
