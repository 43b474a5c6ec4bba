"""Rollouts in each state of their machine, made once, and the process that takes their steps."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.rollout_runner import Runner, runner
from tests.rollout_states import all_made

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class EveryState(NamedTuple):
    """A folder with a workload in each state, and the moment for which it was made."""

    home: Path
    now: datetime

    def copy(self, into: Path) -> Path:
        """Copy it, so that a fault can have it."""
        shutil.copytree(self.home, into)
        return into


@pytest.fixture(scope="session")
def runs() -> Iterator[Runner]:
    """Start the process that takes steps."""
    with runner() as started:
        yield started


@pytest.fixture(scope="session")
def every_state(tmp_path_factory: pytest.TempPathFactory) -> EveryState:
    """Make a workload in each state."""
    home, now = tmp_path_factory.mktemp("every-state") / "home", datetime.now(UTC)
    all_made(home, now=now)
    return EveryState(home, now)
