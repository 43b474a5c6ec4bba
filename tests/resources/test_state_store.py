from __future__ import annotations

import gc
import shutil
import sqlite3
import threading
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.events import GENESIS, Event, Head, follow, verify_chain
from anven_pipelines.resources.state_store import StateStore
from tests.resources.state_cases import NOON, StateCases, append


class TestSqlite(StateCases):
    @pytest.fixture
    def state(self, tmp_path: Path) -> StateStore:
        return StateStore(url=f"sqlite:///{tmp_path}/new folder/state.db")

    def test_the_file_is_in_wal_mode_and_flushed_at_every_commit(self, state: StateStore) -> None:
        with state._database._transaction() as connection:
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }

        assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}

    def test_readers_do_not_wait_for_a_writer(self, state: StateStore) -> None:
        append(state, "1")
        with state._database._transaction(writes=True):
            assert len(StateStore(url=state.url).events()) == 1

    def test_broken_text_is_named_not_raised(self, state: StateStore, tmp_path: Path) -> None:
        for n in range(3):
            append(state, str(n))
        with sqlite3.connect(tmp_path / "new folder" / "state.db") as connection:
            connection.execute("UPDATE events SET payload = CAST(x'ff7b7d' AS TEXT) WHERE seq = 2")
        connection.close()

        assert state.verify().broken_seq == 2

    def test_nothing_stays_open(self, state: StateStore) -> None:
        before = (set(_open_files()), threading.active_count())
        append(state, "1")
        state.verify()
        gc.collect()

        assert (set(_open_files()), threading.active_count()) == before


def _open_files() -> list[str]:
    links = Path("/proc/self/fd").iterdir()
    return [str(link.readlink()) for link in links if link.is_symlink() and "state.db" in str(link.readlink())]


@pytest.fixture(scope="module")
def eight_events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "state.db"
    state = StateStore(url=f"sqlite:///{path}")
    for n in range(8):
        append(state, str(n), stream=f"s{n % 2}", payload={"n": n})
    return path


COLUMNS = ("seq", "ts", "stream", "kind", "key", "payload", "prev_hash", "hash")
VALUES = st.one_of(
    st.integers(-(2**60), 2**60),
    st.text(max_size=40).map(lambda text: text.replace("\x00", "")),
    st.binary(max_size=40),
)


@given(
    tampering=st.one_of(
        st.tuples(st.just("UPDATE"), st.integers(1, 8), st.sampled_from(COLUMNS), VALUES),
        st.tuples(st.just("DELETE"), st.integers(1, 8), st.none(), st.none()),
        st.tuples(st.just("HEAD"), st.none(), st.sampled_from(("seq", "hash")), VALUES),
    )
)
@settings(deadline=None, max_examples=150)
def test_any_single_tampering_is_found(
    eight_events: Path, tampering: tuple[str, int | None, str | None, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = tmp_path_factory.mktemp("copy") / "state.db"
    shutil.copy(eight_events, copy)
    what, seq, column, value = tampering
    connection = sqlite3.connect(copy)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    before = connection.execute("SELECT * FROM events, chain_head ORDER BY 1").fetchall()
    try:
        if what == "DELETE":
            connection.execute("DELETE FROM events WHERE seq = ?", (seq,))
        elif what == "HEAD":
            connection.execute(f"UPDATE chain_head SET {column} = ?", (_storable(value),))  # noqa: S608 - own names
        else:
            connection.execute(f"UPDATE events SET {column} = ? WHERE seq = ?", (_storable(value), seq))  # noqa: S608 - own names
    except sqlite3.IntegrityError:
        pass  # the database itself refused it
    connection.commit()
    after = connection.execute("SELECT * FROM events, chain_head ORDER BY 1").fetchall()
    connection.close()

    assert StateStore(url=f"sqlite:///{copy}").verify().ok == (after == before)


def _storable(value: object) -> object:
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _chain(length: int) -> list[Event]:
    head, events = GENESIS, []
    for n in range(length):
        events.append(follow(head, stream="s", kind="k", key=str(n), payload={"n": n}, now=NOON))
        head = Head(events[-1].seq, events[-1].hash)
    return events


@given(st.permutations(range(6)))
def test_only_the_written_order_verifies(order: list[int]) -> None:
    events = _chain(6)
    head = Head(6, events[-1].hash)

    assert verify_chain([events[n] for n in order], head).ok == (order == sorted(order))


@given(st.sets(st.integers(0, 5)))
def test_only_all_events_verify(removed: set[int]) -> None:
    events = _chain(6)
    kept = [event for n, event in enumerate(events) if n not in removed]

    assert verify_chain(kept, Head(6, events[-1].hash)).ok == (not removed)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://root:hunter2@db/state", "is for mysql; sqlite:///path or postgresql"),
        ("not a url hunter2", "is not a SQLAlchemy URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_a_url_that_cannot_be_used_says_why(url: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        StateStore(url=url).events()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://anven:hunter2@127.0.0.1:1/state",
        "postgresql+psycopg2://anven@127.0.0.1:1/state?password=hunter2",
    ],
)
def test_a_database_that_does_not_answer_is_named_without_its_password(url: str) -> None:
    state = StateStore(url=url)
    with pytest.raises(
        UnavailableService, match=r"the state store postgresql\+psycopg2://anven.*127\.0\.0\.1:1/state"
    ) as caught:
        state.verify()

    assert "check that the database is up" in str(caught.value)
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__} {state!r}"


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database" * 100)

    with pytest.raises(UnavailableService, match="file is not a database"):
        StateStore(url=f"sqlite:///{tmp_path}/state.db").events()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(UnavailableService, match=r"file/deeper/state\.db cannot be created: Not a directory"):
        StateStore(url=f"sqlite:///{tmp_path}/file/deeper/state.db").events()


def test_an_asset_appends_through_dagster(tmp_path: Path) -> None:
    state = StateStore(url=f"sqlite:///{tmp_path}/state.db")

    @dg.asset(required_resource_keys={"state"})
    def rollout_status(context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - Dagster cannot read quoted annotations
        append(context.resources.state, "1")

    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize([rollout_status], resources={"state": state}, instance=instance).success
    assert state.verify().events == 1
