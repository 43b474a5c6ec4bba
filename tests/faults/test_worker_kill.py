"""Workers killed with -9 at random moments: nothing is lost or doubled, and the answers are the undisturbed ones."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final

from anven_pipelines.domain.inference import merge_answers
from tests.worker_jobs import REPOSITORY, command, kept, questions, worked, written

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

REQUESTS: Final = 1_500
KILLS: Final = 12
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
