"""A local deployment of its own for each test of the chain."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg
import pytest
import yaml

from anven_pipelines.chain import Chain
from anven_pipelines.definitions import MODULES
from anven_pipelines.migrate import of_kind
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.deployments import resources
from anven_pipelines.resources.migrations import Declared, Migrations
from anven_pipelines.resources.state_store import StateStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anven_pipelines.domain.sign_off import Verdict
    from anven_pipelines.run_watch import Told


class Place(NamedTuple):
    """A workload's folder with everything that a run of its chain needs."""

    folder: Path
    definitions: dg.Definitions
    instance: dg.DagsterInstance
    told: list[Told]

    @property
    def artifacts(self) -> ArtifactStore:
        return of_kind(self.definitions, "artifacts", ArtifactStore)

    @property
    def state(self) -> StateStore:
        return of_kind(self.definitions, "state", StateStore)

    @property
    def migrations(self) -> Migrations:
        return of_kind(self.definitions, "migrations", Migrations)

    def write_log(self, calls: list[dict[str, Any]], name: str = "log-2026-10-05.jsonl") -> None:
        """Write canonical log lines."""
        (self.folder / name).write_text("".join(json.dumps(call) + "\n" for call in calls))

    def declare(self, **changes: Any) -> Declared:
        """Write a migration file over `log-*.jsonl` and `answers.jsonl`; keyword arguments replace sections."""
        migration = {
            "workload": "support",
            "legacy": {"model": "legacy-model", "logs": "../log-*.jsonl"},
            "target": {"model": "target-model", "engine": "recorded", "answers": "../answers.jsonl"},
            "grading": [{"kind": "json_field", "field": "answer"}],
            "golden": {"size": "all", "holdout": 1.0},
            "sign_off": {"quality_margin": 0.05, "waive": ["ttft", "cost", "safety"]},
        } | changes
        file = self.folder / "migrations" / f"{migration['workload']}.yaml"
        file.write_text(yaml.safe_dump(migration))
        return self.migrations.register(file)

    def migrate(self, declared: Declared, *, epoch: str = "") -> Verdict:
        """Run the chain."""
        return Chain(self.definitions, self.instance, self.artifacts, "test", self.told.append).run(
            declared, epoch=epoch
        )


def new_place(folder: Path, empty_mlflow: Path) -> Path:
    """Make a folder for `place_at`."""
    (folder / "migrations").mkdir(parents=True)
    (folder / "home" / "mlflow").mkdir(parents=True)
    shutil.copy(empty_mlflow, folder / "home" / "mlflow" / "mlflow.db")
    return folder


@contextmanager
def place_at(folder: Path) -> Iterator[Place]:
    """Open what `new_place` made; what an earlier process has left there is known."""
    environment = {"ANVEN_HOME": str(folder / "home"), "ANVEN_MIGRATIONS": str(folder / "migrations")}
    definitions = dg.Definitions(assets=dg.load_assets_from_modules(MODULES), resources=resources("local", environment))
    with dg.DagsterInstance.ephemeral(tempdir=str(folder)) as instance:
        yield Place(folder, definitions, instance, [])


@pytest.fixture
def place(tmp_path: Path, empty_mlflow: Path) -> Iterator[Place]:
    """Give a folder, its definitions and an instance that forgets."""
    with place_at(new_place(tmp_path, empty_mlflow)) as opened:
        yield opened


def logged_call(at: int, *, answer: str | None = None, **fields: Any) -> dict[str, Any]:
    """Build one canonical log line: a question whose answer is its number."""
    return {
        "request_id": f"call-{at:04d}",
        "ts": f"2026-10-05T08:{at // 60 % 60:02d}:{at % 60:02d}Z",
        "application": "helpdesk",
        "endpoint": "/v1/chat/completions",
        "model": "legacy-model",
        "messages": [{"role": "user", "content": f"What is the number of ticket {at}?"}],
        "params": {"temperature": 0},
        "output": json.dumps({"answer": answer if answer is not None else str(at)}),
        "status": "ok",
        "ground_truth": str(at),
    } | fields


def recorded_answer(at: int, answer: str, **fields: Any) -> dict[str, Any]:
    """Build one recorded answer of the target to `logged_call(at)`."""
    return logged_call(at, answer=answer, model="target-model") | fields
