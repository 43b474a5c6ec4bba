"""A PostgreSQL that is stopped at once between a step's decision and its event, and is back: in each state."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.rollout_runner import Runner, rollouts_at, stop_at_once
from tests.rollout_states import STATES, place_of, require_one_change, rewritten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgserver.postgres_server import PostgresServer

    from tests.faults.conftest import EveryState

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(600)]


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """Give a server of its own; each session of pytest closes its folders to the user that root starts it as."""
    from pgserver.postgres_server import get_server  # noqa: PLC0415 - no wheel for Python 3.13, where these tests are left out

    with TemporaryDirectory() as folder, get_server(Path(folder) / "pg") as running:
        yield running


@pytest.mark.parametrize(
    ("at", "names"),
    [
        pytest.param(1, list(STATES), id="before the event's row"),
        pytest.param(3, [name for name, state in STATES.items() if state.change], id="before the commit"),
    ],
)
def test_a_database_that_is_stopped_between_decision_and_event_takes_the_event_once_it_is_back(
    every_state: EveryState, runs: Runner, server: PostgresServer, tmp_path: Path, at: int, names: list[str]
) -> None:
    home = every_state.copy(tmp_path / "home")
    url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    rewritten(home, url)
    rollouts = rollouts_at(home)

    def step(name: str, *, begun: bool, **how: object) -> str:
        action = "step" if begun else "start"
        (ended,) = runs.run(home, every_state.now, gone_by=timedelta(0), workload=name, action=action, **how)
        assert ended.said is not None, name
        return str(ended.said["decision"])

    for name in names:
        state = STATES[name]
        if state.change is None:  # its step writes nothing, and finds the server gone from the first
            stop_at_once(server.pgdata)
            refused = step(name, begun=True)
        else:
            refused = step(name, begun=state.stages > 0, stops=str(server.pgdata), at=at)
        assert refused == "UnavailableService", name
        in_force = rollouts.gateway.read().of(name)
        assert (in_force.share, in_force.killed) == (state.before.share, state.change == "rolled_back"), name
        server.ensure_postgres_running()
        assert place_of(rollouts, name) == state.before, name
        for _ in range(2):
            step(name, begun=rollouts.status(name).generation > 0)
            assert place_of(rollouts, name) == state.after, name
            require_one_change(rollouts, name)
