"""A request that kills the worker's whole process is found; a worker that is killed from outside blames nobody."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import pytest

from anven_pipelines.domain.inference import CompletionRequest, merge_answers
from anven_pipelines.domain.suspects import ALONE_DEATHS
from tests.worker_jobs import KEY, REPOSITORY, kept, written

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

ITEMS: Final = 120
DEATHS: Final = 2 + ALONE_DEATHS
pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("deadly", [[17], [50, 51]], ids=["one", "two neighbours"])
def test_what_kills_the_worker_alone_has_failed_and_the_rest_is_answered(tmp_path: Path, deadly: list[int]) -> None:
    requests = asked(deadly)
    job = written(tmp_path, requests)
    ends: list[int] = []
    said: list[str] = []
    while not ends or ends[-1] != 0:
        done = worked(tmp_path, job)
        ends.append(done.returncode)
        said.append(done.stderr)
        assert len(ends) <= len(deadly) * DEATHS + 1, said[-1]
    assert set(ends[:-1]) == {-signal.SIGKILL}
    assert_only_failed(tmp_path, requests, deadly)
    assert "workers before this one died" not in said[0]
    assert "workers before this one died 1 times" in said[1]
    assert json.loads(done.stdout)["rows"] == ITEMS
    assert not files(tmp_path)


def test_a_deadly_request_is_found_beside_kills_at_random_moments(tmp_path: Path) -> None:
    requests, chance = asked([33]), random.Random(8)
    job, kills, lives = written(tmp_path, requests), 0, 0
    while True:
        lives += 1
        assert lives <= 40
        with started(tmp_path, job, ECHO_S="0.05") as worker:
            if kills < 8 and began(tmp_path, worker):
                time.sleep(chance.uniform(0.0, 0.8))
                kills += worker.poll() is None
                worker.kill()
            if worker.wait(100) == 0:
                break
    assert kills >= 3  # it killed itself at other times
    assert_only_failed(tmp_path, requests, [33])


def test_kills_at_random_moments_alone_blame_nobody(tmp_path: Path) -> None:
    requests, chance = asked([]), random.Random(9)
    job = written(tmp_path, requests)
    for _ in range(8):
        with started(tmp_path, job, ECHO_S="0.1") as worker:
            began(tmp_path, worker)
            time.sleep(chance.uniform(0.0, 0.6))
            worker.kill()
    done = worked(tmp_path, job)
    assert done.returncode == 0, done.stderr
    assert_only_failed(tmp_path, requests, [])
    assert not files(tmp_path)


def test_an_engine_that_dies_with_everything_blames_nobody(tmp_path: Path) -> None:
    job = written(tmp_path, asked([])[:2])
    for _ in range(DEATHS + 2):
        assert worked(tmp_path, job, ALL_DEADLY="1").returncode == -signal.SIGKILL
    assert kept(tmp_path).is_empty()


@pytest.mark.parametrize(
    "ended_by", [signal.SIGTERM, signal.SIGKILL], ids=["in time", "killed at the end of its grace"]
)
def test_a_worker_that_was_asked_to_end_leaves_no_suspects(tmp_path: Path, ended_by: int) -> None:
    requests = asked([])
    job = written(tmp_path, requests)
    with started(tmp_path, job, "--drain-s", "1" if ended_by == signal.SIGTERM else "60", ECHO_S="40") as worker:
        assert began(tmp_path, worker)
        worker.terminate()
        if ended_by == signal.SIGKILL:
            wait_for(lambda: not any(json.loads(file.read_bytes())["items"] for file in files(tmp_path)), worker)
            worker.kill()
        assert worker.wait(60) == -ended_by
    assert not any(json.loads(file.read_bytes())["items"] for file in files(tmp_path))
    done = worked(tmp_path, job)
    assert done.returncode == 0, done.stderr
    assert "workers before this one died" not in done.stderr
    assert_only_failed(tmp_path, requests, [])


@pytest.mark.parametrize("half", [b"", b'{"at": "2026-11-2', b'{"at": "x", "search": true, "items": 7}', b"\xff"])
def test_a_file_that_is_not_whole_says_nothing(tmp_path: Path, half: bytes) -> None:
    requests = asked([])
    job = written(tmp_path, requests)
    (tmp_path / "asking" / KEY).mkdir(parents=True)
    (tmp_path / "asking" / KEY / "dead.json").write_bytes(half)
    done = worked(tmp_path, job)
    assert done.returncode == 0, done.stderr
    assert "is damaged and says nothing" in done.stderr
    assert_only_failed(tmp_path, requests, [])


def test_nothing_is_asked_where_the_disk_is_full(tmp_path: Path) -> None:
    requests = asked([])
    job = written(tmp_path, requests)
    full = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
    run = "runpy.run_module('tests.fakes.deadly_worker', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", full + run, *options(tmp_path, job)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=100,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 3
    assert "File too large; check that the artifact store is reachable" in done.stderr.splitlines()[-1]
    assert kept(tmp_path).is_empty()
    assert not files(tmp_path)
    assert worked(tmp_path, job).returncode == 0
    assert_only_failed(tmp_path, requests, [])


def test_each_index_finds_its_own(tmp_path: Path) -> None:
    requests = asked([10, 110])
    job = written(tmp_path, requests, shards=2)
    ends: dict[int, list[int]] = {0: [], 1: []}
    for _ in range(DEATHS + 1):
        both = [started(tmp_path, job, "--indexes", "2", "--index", str(index)) for index in ends]
        for index, worker in enumerate(both):
            ends[index].append(worker.wait(100))
    assert ends == dict.fromkeys(ends, [-signal.SIGKILL] * DEATHS + [0])
    assert_only_failed(tmp_path, requests, [10, 110])


def asked(deadly: Collection[int]) -> list[CompletionRequest]:
    """Return requests of which some are deadly to `tests.fakes.deadly_worker`."""
    return [
        CompletionRequest(
            f"item-{at:03d}", [{"role": "user", "content": f"{at:03d}{' deadly' if at in deadly else ''}"}], {}
        )
        for at in range(ITEMS)
    ]


def options(store: Path, job: str, *more: str) -> list[str]:
    return ["--store", str(store), "--job", job, *more]


def worked(store: Path, job: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fakes.deadly_worker", *options(store, job, *more)],
        cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip


def started(store: Path, job: str, *more: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.fakes.deadly_worker", *options(store, job, *more)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | environment, stderr=subprocess.DEVNULL)


def files(store: Path) -> list[Path]:
    """Return what workers said that they ask."""
    return list(store.glob("asking/*/*.json"))


def began(store: Path, worker: subprocess.Popen[bytes]) -> bool:
    """Wait until a worker says what it asks; False where it died before anybody saw it."""
    before = {file: file.stat().st_mtime_ns for file in files(store)}
    return wait_for(lambda: bool(set(files(store)) - set(before)), worker)


def wait_for(condition: Any, worker: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + 60
    while not condition():
        if worker.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


def assert_only_failed(store: Path, requests: list[CompletionRequest], deadly: Collection[int]) -> None:
    """Hold that rows in are answers and failures, and that the failures are the deadly ones."""
    answers = merge_answers([request.item_id for request in requests], kept(store))
    failed = answers.filter(pl.col("status") == "failed")
    assert failed["item_id"].to_list() == [f"item-{at:03d}" for at in deadly]
    said = f"poison: the worker died {ALONE_DEATHS} times with this request alone in flight"
    assert failed["reason"].str.starts_with(said).all()
    assert answers.filter(pl.col("status") == "answered")["output"].to_list() == [
        request.messages[0]["content"] for at, request in enumerate(requests) if at not in deadly
    ]
