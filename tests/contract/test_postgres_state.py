"""The state store and Dagster's own storage on a real PostgreSQL server."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import dagster as dg
import pytest
import sqlalchemy as sa

from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.resources import event_database
from anven_pipelines.resources.state_store import StateStore
from tests.resources.state_cases import StateCases, append

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    from pgserver.postgres_server import get_server  # noqa: PLC0415 - no wheel for Python 3.13, where these tests are left out

    with get_server(tmp_path_factory.mktemp("pg")) as running:
        yield sa.make_url(running.get_uri())


@pytest.fixture
def database(server: sa.URL) -> sa.URL:
    engine = sa.create_engine(server, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    return server


class TestPostgres(StateCases):
    @pytest.fixture
    def state(self, database: sa.URL) -> StateStore:
        url = database.set(drivername="postgresql+psycopg2")
        return StateStore(url=url.render_as_string(hide_password=False))

    def test_no_connection_is_left_open(self, state: StateStore) -> None:
        append(state, "1")
        state.verify()

        with state._database._transaction() as connection:
            others = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            assert connection.scalar(others) == 1

    def test_readers_do_not_wait_for_a_writer(self, state: StateStore) -> None:
        append(state, "1")
        with state._database._transaction(writes=True):
            assert len(StateStore(url=state.url).events()) == 1

    def test_a_database_that_does_not_exist_is_named(self, database: sa.URL) -> None:
        url = database.set(drivername="postgresql+psycopg2", database="nosuch")

        with pytest.raises(UnavailableService, match='database "nosuch" does not exist'):
            StateStore(url=url.render_as_string(hide_password=False)).events()

    @pytest.mark.parametrize("limit", ["_BUSY_SECONDS", "_STATEMENT_SECONDS"])
    def test_a_writer_that_is_stuck_is_no_end_of_it_for_the_others(
        self, state: StateStore, monkeypatch: pytest.MonkeyPatch, limit: str
    ) -> None:
        append(state, "1")
        with state._database._transaction(writes=True):
            monkeypatch.setattr(event_database, limit, 0.2)
            other = StateStore(url=state.url)
            with pytest.raises(UnavailableService, match="canceling statement due to"):
                append(other, "2")
            assert len(other.events()) == 1  # a reader does not wait
        append(state, "2")

    def test_a_writer_that_hangs_in_its_transaction_loses_the_lock(
        self, state: StateStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        append(state, "1")
        monkeypatch.setattr(event_database, "_IDLE_SECONDS", 0.2)

        def hang() -> None:
            with StateStore(url=state.url)._database._transaction(writes=True) as stuck:
                append(state, "2")  # waits until the server has ended the other one
                stuck.execute(sa.text("SELECT 1"))

        with pytest.raises(UnavailableService, match="closed the connection"):
            hang()
        assert len(state.events()) == 2

    def test_a_server_that_is_gone_without_a_word_is_noticed(self, database: sa.URL) -> None:
        """A real server behind a TCP port of this machine; what the kernel was told is read from the socket."""
        with tcp_to(str(database.query["host"]), 5432) as port:
            url = database.set(drivername="postgresql+psycopg2", host="127.0.0.1", port=port, query={})
            with StateStore(url=url.render_as_string(hide_password=False))._database._transaction() as connection:
                file = connection.connection.dbapi_connection.fileno()  # type: ignore[union-attr]  # psycopg2's has one
                with socket.socket(fileno=os.dup(file)) as wire:
                    assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                    tcp = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT]
                    assert [wire.getsockopt(socket.IPPROTO_TCP, each) for each in tcp] == [10, 5, 3, 25_000]


@contextmanager
def tcp_to(folder: str, port: int) -> Iterator[int]:
    """Give a TCP port that leads to the server's socket in a folder, for one connection after the other."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, socket.socket(socket.AF_UNIX) as server:
                    server.connect(f"{folder}/.s.PGSQL.{port}")
                    relay(client, server)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def relay(client: socket.socket, server: socket.socket) -> None:
    """Pass on what either end says until one of them ends."""
    while True:
        for source in select.select([client, server], [], [])[0]:
            if not (data := source.recv(65_536)):
                return
            (server if source is client else client).sendall(data)


def test_dagster_keeps_its_records_in_postgres(database: sa.URL, tmp_path: Path) -> None:
    @dg.asset
    def scores() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata={"n": 1319})

    storage = {"postgres": {"postgres_url": database.render_as_string(hide_password=False)}}
    settings = {"storage": storage, "telemetry": {"enabled": False}}
    (tmp_path / "dagster.yaml").write_text(json.dumps(settings))  # JSON is YAML

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert dg.materialize([scores], instance=instance).success
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("scores"))
        (run,) = instance.get_runs()

    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["n"].value == 1319
    assert (run.status, event.run_id) == (dg.DagsterRunStatus.SUCCESS, run.run_id)
