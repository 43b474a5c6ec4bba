"""`anven migrate` killed in the middle of target_answers: what is durable survives, nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import dagster as dg
import pytest
import yaml

from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.state_store import StateStore
from tests.pipeline.conftest import logged_call
from tests.scripted_endpoint import asks_in, endpoint_process

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

ITEMS = 240
CONCURRENCY = 4
PART_ROWS = 16


@pytest.mark.timeout(400)
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    asked, answers, file = tmp_path / "asked.jsonl", tmp_path / "answers.json", tmp_path / "m.yaml"
    calls = [logged_call(at) for at in range(ITEMS)]
    (tmp_path / "log-2026-10-05.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
    answers.write_text(json.dumps({call["messages"][0]["content"]: call["output"] for call in calls}))
    with endpoint_process("--answers", str(answers), "--log", str(asked), "--delay", "0.05") as url:
        file.write_text(migration(url))
        killed = start(file, tmp_path)
        wait_for(lambda: sum(asks_in(asked).values()) >= ITEMS // 2, killed)
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate(timeout=30)
        before = asks_in(asked)
        assert ITEMS // 2 <= sum(before.values()) < ITEMS
        second = start(file, tmp_path)
        stdout, stderr = second.communicate(timeout=300)
    assert second.returncode == 0, stderr.decode()
    assert json.loads(stdout)["quality"]["n_measured"] == ITEMS
    after = asks_in(asked)
    assert len(after) == ITEMS
    assert max(after.values()) <= 2
    assert sum(after.values()) - ITEMS <= CONCURRENCY + PART_ROWS
    rows = kept_answers(tmp_path)
    assert rows.height == rows["item_id"].n_unique() == ITEMS
    assert rows["status"].unique().to_list() == ["answered"]
    with dg.DagsterInstance.from_config(str(tmp_path / "home" / "dagster")) as instance:
        statuses = Counter(run.status for run in instance.get_runs())
    assert statuses[dg.DagsterRunStatus.FAILURE] == 1
    assert set(statuses) == {dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS}
    assert StateStore(url=f"sqlite:///{tmp_path / 'home' / 'state.db'}").verify().ok


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.timeout(300)
def test_an_interrupted_run_says_so_in_one_object(number: signal.Signals, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    calls = [logged_call(at) for at in range(ITEMS)]
    (tmp_path / "log-2026-10-05.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
    with endpoint_process("--log", str(asked), "--delay", "0.2") as url:
        (tmp_path / "m.yaml").write_text(migration(url))
        process = start(tmp_path / "m.yaml", tmp_path)
        wait_for(lambda: sum(asks_in(asked).values()) >= CONCURRENCY, process)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr.decode()
    assert json.loads(stdout)["error"]["kind"] == "Interrupted"
    assert b"goes on from there" in stderr
    assert b"Traceback" not in stderr


def migration(url: str) -> str:
    return yaml.safe_dump(
        {
            "workload": "killed",
            "legacy": {"model": "legacy-model", "logs": "log-*.jsonl"},
            "target": {"engine": "endpoint", "model": "target-model", "url": url, "concurrency": CONCURRENCY},
            "grading": [{"kind": "json_field", "field": "answer"}],
            "golden": {"size": "all", "holdout": 1.0},
            "sign_off": {"quality_margin": 0.05, "waive": ["ttft", "cost", "safety"]},
        }
    )


def start(file: Path, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "anven_pipelines.cli", "migrate", str(file), "--json"],
        env={
            **os.environ,
            "ANVEN_HOME": str(folder / "home"),
            "ANVEN_MIGRATIONS": str(folder / "none"),
            "DAGSTER_HOME": "",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(reached: object, process: subprocess.Popen[bytes]) -> None:
    assert callable(reached)
    deadline = time.monotonic() + 200
    while not reached():
        assert process.poll() is None, (process.stderr.read() if process.stderr else b"").decode()
        assert time.monotonic() < deadline, "the run never came to the target's answers"
        time.sleep(0.02)


def kept_answers(folder: Path) -> pl.DataFrame:
    store = ArtifactStore(url=str(folder / "home" / "artifacts"))
    manifest = store.load_manifest("target_answers", "killed")
    assert manifest is not None
    return store.read(manifest)
