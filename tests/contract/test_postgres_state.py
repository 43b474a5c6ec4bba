"""The state store and Dagster's own storage on a real PostgreSQL server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import dagster as dg
import pytest
import sqlalchemy as sa

from anven_pipelines.domain.errors import UnavailableService
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
