"""The worker as a process: shards in, one row per request out, whatever is wrong with a request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import polars as pl
import pytest

from anven_pipelines.domain.inference import CompletionRequest, merge_answers
from tests.scripted_endpoint import Reply, ScriptedEndpoint
from tests.worker_jobs import NANO, REPOSITORY, command, kept, questions, worked, written

if TYPE_CHECKING:
    from pathlib import Path

from anven_pipelines.spec_target import EndpointTarget
from anven_pipelines.worker.job import EndpointSettings, packed

ASK = [{"role": "user", "content": "Hello"}]
BROKEN = [
    CompletionRequest("image", [{"role": "user", "content": [{"type": "image_url"}]}], {}),
    CompletionRequest("long", [{"role": "user", "content": "word " * 2000}], {}),
    CompletionRequest("schema", ASK, {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
    CompletionRequest("hot", ASK, {"temperature": "hot"}),
    CompletionRequest("no turn", [], {}),
]


def test_every_request_has_one_row_and_a_malformed_one_harms_no_other(tmp_path: Path) -> None:
    requests = [*BROKEN, *questions(60)]
    done = worked(tmp_path, written(tmp_path, requests))
    assert done.returncode == 0, done.stderr
    answers = merge_answers([request.item_id for request in requests], kept(tmp_path))
    failed = answers.filter(pl.col("status") == "failed")
    assert failed["item_id"].to_list() == [request.item_id for request in BROKEN]
    assert failed["reason"].str.starts_with("unsupported: ").all()
    answered = answers.filter(pl.col("status") == "answered")
    assert answered.select(pl.col("output", "input_tokens", "output_tokens", "ttft_ms", "latency_ms").count()).row(
        0
    ) == (60, 60, 60, 60, 60)
    figures = json.loads(done.stdout)
    assert (figures["rows"], figures["answered"], figures["failed"]) == (65, 60, 5)
    assert figures["tokens"] == answered.select(pl.col("input_tokens") + pl.col("output_tokens")).sum().item()


def test_workers_share_a_job_and_a_second_run_asks_nothing(tmp_path: Path) -> None:
    requests = questions(50)
    job = written(tmp_path, requests, shards=5)
    for index in range(3):
        done = worked(tmp_path, job, "--indexes", "3", env={**os.environ, "JOB_COMPLETION_INDEX": str(index)})
        assert done.returncode == 0, done.stderr
    rows = kept(tmp_path)
    assert sorted(rows["item_id"]) == sorted(request.item_id for request in requests)
    again = worked(tmp_path, job)
    assert json.loads(again.stdout)["tokens"] == 0
    assert kept(tmp_path).height == 50


def test_a_job_written_twice_is_the_same_job_whatever_the_order(tmp_path: Path) -> None:
    requests = questions(20)
    assert written(tmp_path, requests) == written(tmp_path, requests[::-1])
    assert [each.messages for each in packed(requests)] == sorted(
        (each.messages for each in requests), key=lambda messages: json.dumps(messages, ensure_ascii=False)
    )


def test_an_empty_job_is_done(tmp_path: Path) -> None:
    done = worked(tmp_path, written(tmp_path, []))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 0


def test_an_endpoint_is_asked_as_well(tmp_path: Path) -> None:
    with ScriptedEndpoint(lambda ask: Reply(f"echo: {ask.prompt}")) as endpoint:
        target = EndpointTarget(engine="endpoint", model="m", url=endpoint.url)
        job = written(tmp_path, [CompletionRequest("a", ASK, {})], settings=EndpointSettings(target=target))
        done = worked(tmp_path, job)
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path)["output"].to_list() == ["echo: Hello"]


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"folder": "/nowhere"}, 2, "is no model folder"),
        ({"weights": "0" * 64}, 2, "declared is 000000"),
    ],
)
def test_a_model_that_is_not_the_declared_one_is_refused(
    tmp_path: Path, changes: dict[str, str], code: int, message: str
) -> None:
    done = worked(tmp_path, written(tmp_path, questions(1), settings=NANO.model_copy(update=changes)))
    assert done.returncode == code
    assert message in done.stderr.splitlines()[-1]
    assert kept(tmp_path).is_empty()


def test_a_job_that_is_missing_or_changed_is_refused(tmp_path: Path) -> None:
    job = written(tmp_path, questions(1))
    assert "is missing; run the step again" in worked(tmp_path, "jobs/none.json").stderr
    (tmp_path / job).write_text("{}")
    changed = worked(tmp_path, job)
    assert changed.returncode == 2
    assert "has the digest" in changed.stderr


@pytest.mark.parametrize("how", ["SIGTERM", "stdin"])
def test_it_drains_and_the_next_worker_goes_on(tmp_path: Path, how: str) -> None:
    requests = questions(1500)
    job = written(tmp_path, requests)
    with subprocess.Popen(
        command(tmp_path, job, "--drain-s", "60", "--until-stdin-closes"), cwd=REPOSITORY, stdin=subprocess.PIPE
    ) as worker:
        wait_for_rows(tmp_path, 30)
        if how == "SIGTERM":
            worker.terminate()
        elif worker.stdin:
            worker.stdin.close()
        assert worker.wait(100) == -signal.SIGTERM
    before = kept(tmp_path)
    assert before.height < 1500
    assert before["item_id"].is_unique().all()
    done = worked(tmp_path, job)
    assert done.returncode == 0, done.stderr
    rows = kept(tmp_path)
    assert (
        rows["item_id"].is_unique().all()
    )  # what was in flight was answered before it ended, so nothing is asked twice
    assert rows.height == 1500


def test_a_second_worker_waits_and_asks_nothing(tmp_path: Path) -> None:
    job = written(tmp_path, questions(600))
    first, second = (
        subprocess.Popen(
            command(tmp_path, job), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    )
    figures, said = zip(*(process.communicate(timeout=200) for process in (first, second)), strict=True)
    assert (first.returncode, second.returncode) == (0, 0)
    assert sum("another worker is at this work" in each for each in said) == 1
    assert sum(json.loads(each)["tokens"] == 0 for each in figures) == 1
    assert kept(tmp_path)["item_id"].is_unique().all()


def wait_for_rows(store: Path, rows: int) -> None:
    deadline = time.monotonic() + 100
    while kept(store).height < rows:
        assert time.monotonic() < deadline
        time.sleep(0.05)
