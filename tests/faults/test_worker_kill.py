"""Workers killed with -9 at random moments: nothing is lost or doubled, and the answers are the undisturbed ones."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import yaml

from anven_pipelines.domain.inference import merge_answers
from anven_pipelines.nano.prompts import anven_messages
from anven_pipelines.nano.tasks import generate
from tests.faults.test_migrate_kill import kept_answers, start, wait_for
from tests.pipeline.conftest import logged_call
from tests.worker_jobs import REPOSITORY, command, kept, questions, worked, written

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

REQUESTS: Final = 2_500
KILLS: Final = 12
STEP_ITEMS: Final = 900
MIGRATION: Final = {
    "workload": "killed",
    "legacy": {"model": "legacy-model", "logs": "log-*.jsonl"},
    "target": {"engine": "nano", "model": "anven-nano"},
    "grading": [{"kind": "exact"}],
    "golden": {"size": "all", "holdout": 1.0, "near_duplicates": "keep"},
    "sign_off": {"quality_margin": 0.3, "waive": ["ttft", "cost", "safety"]},
}
MEASURED: Final = ("ttft_ms", "latency_ms", "attempts")  # these differ from run to run


def test_what_killed_workers_answered_is_what_an_undisturbed_one_answers(tmp_path: Path) -> None:
    requests = questions(REQUESTS)
    disturbed, quiet = tmp_path / "disturbed", tmp_path / "quiet"
    job = written(disturbed, requests)
    chance = random.Random(5)
    progress = [0]
    for _ in range(KILLS):
        kill_a_worker(disturbed, job, after_s=chance.uniform(0.0, 1.0))
        progress.append(kept(disturbed)["item_id"].n_unique())
    assert progress == sorted(progress)  # what was durable stays
    assert 0 < progress[-1] < REQUESTS  # killed in the middle of it, or the test shows nothing
    last = worked(disturbed, job)
    assert last.returncode == 0, last.stderr
    assert worked(quiet, written(quiet, requests)).returncode == 0

    names = [request.item_id for request in requests]
    assert answers(disturbed, names).equals(answers(quiet, names))
    assert set(answers(disturbed, names)["status"]) == {"answered"}
    # Only what was in flight when a worker died was asked twice: 32 requests, and one part not yet durable.
    assert kept(disturbed).height - REQUESTS <= KILLS * (32 + 16)


@pytest.mark.timeout(600)
def test_a_killed_step_takes_its_worker_along_and_the_next_goes_on(tmp_path: Path) -> None:
    items = generate("golden", STEP_ITEMS, seed=6)
    calls = [
        logged_call(at, messages=anven_messages(item), output=item.answer, ground_truth=item.answer)
        for at, item in enumerate(items)
    ]
    (tmp_path / "log-2026-10-05.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(MIGRATION))
    killed = start(tmp_path / "m.yaml", tmp_path)
    checkpoints = tmp_path / "home" / "artifacts" / "checkpoints"
    wait_for(lambda: len(list(checkpoints.glob("*/*.parquet"))) >= 2, killed)
    killed.kill()
    killed.communicate(timeout=30)
    wait_until_gone(str(tmp_path))
    parts = len(list(checkpoints.glob("*/*.parquet")))
    second = start(tmp_path / "m.yaml", tmp_path)
    stdout, stderr = second.communicate(timeout=400)
    assert second.returncode in {0, 1}, stderr.decode()
    assert json.loads(stdout)["quality"]["n_measured"] == STEP_ITEMS
    assert parts < len(list(checkpoints.glob("*/*.parquet")))
    rows = kept_answers(tmp_path)
    assert rows["item_id"].n_unique() == rows.height == STEP_ITEMS
    assert set(rows["status"]) == {"answered"}


def wait_until_gone(store: str) -> None:
    """Wait until no worker of that store runs: it ends when its standard input closes, and drains first."""
    deadline = time.monotonic() + 100
    while any(store in line and "anven_pipelines.worker" in line for line in command_lines()):
        assert time.monotonic() < deadline, "the worker outlived the step that started it"
        time.sleep(0.1)


def command_lines() -> Iterator[str]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield file.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def answers(store: Path, names: list[str]) -> pl.DataFrame:
    return merge_answers(names, kept(store)).drop(MEASURED)


def kill_a_worker(store: Path, job: str, *, after_s: float) -> None:
    """Kill a worker so long after it began to work, or as it starts."""
    before = len(list((store / "checkpoints").glob("*/*.parquet")))
    with subprocess.Popen(command(store, job), cwd=REPOSITORY, stderr=subprocess.DEVNULL) as worker:
        deadline = time.monotonic() + 60
        while len(list((store / "checkpoints").glob("*/*.parquet"))) == before and worker.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(after_s)
        worker.send_signal(signal.SIGKILL)
