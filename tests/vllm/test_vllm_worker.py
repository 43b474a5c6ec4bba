"""The worker on the real vLLM: the embedded engine's answers, structured outputs, an engine killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import pytest
import yaml

from anven_pipelines.domain.inference import CompletionRequest, merge_answers
from anven_pipelines.nano.models import model_folder
from anven_pipelines.nano.prompts import anven_messages
from anven_pipelines.nano.tasks import generate
from anven_pipelines.spec_target import JobTarget
from anven_pipelines.worker.job import VllmSettings
from anven_pipelines.worker.weights import Weights
from tests.pipeline.conftest import logged_call
from tests.vllm.test_nano_weights import SETTINGS
from tests.worker_jobs import REPOSITORY, command, kept, questions, worked, written

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

FOLDER: Final = model_folder("anven-nano")
VLLM: Final = VllmSettings(
    target=JobTarget(
        engine="vllm-job",
        model="anven-nano",
        weights=str(FOLDER),
        digest=Weights.in_folder(FOLDER).digest(),
        licence="Apache-2.0",
        precision="float32",
        max_model_len=512,
        max_num_seqs=64,
        enforce_eager=True,
    )
)
# The engine's core as a process of its own, as on a GPU.
ENVIRONMENT: Final = {**os.environ, **SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "TORCHDYNAMO_DISABLE": "1"}
SCHEMA: Final = {"enum": ["red", "blue"]}  # a tiny model fills an object with white space to the end
ASK: Final[list[dict[str, Any]]] = [{"role": "user", "content": "Hello"}]
SPECIAL: Final = [
    CompletionRequest("image", [{"role": "user", "content": [{"type": "image_url"}]}], {}),
    CompletionRequest("long", [{"role": "user", "content": "word " * 2000}], {}),
    CompletionRequest("tools", ASK, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}),
    CompletionRequest(
        "no schema", ASK, {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 7}}}}
    ),
    CompletionRequest(
        "schema",
        ASK,
        {"temperature": 0, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    ),
    CompletionRequest("seeded", ASK, {"temperature": 1.5, "seed": 3, "max_tokens": 20}),
    CompletionRequest("seeded again", ASK, {"temperature": 1.5, "seed": 3, "max_tokens": 20}),
]


def answers_of(store: Path, requests: Sequence[CompletionRequest]) -> pl.DataFrame:
    return merge_answers([request.item_id for request in requests], kept(store))


def test_it_gives_the_answers_of_the_embedded_engine(vllm_python: str, tmp_path: Path) -> None:
    requests = [*SPECIAL, *questions(120)]
    by_vllm, embedded = tmp_path / "vllm", tmp_path / "embedded"
    done = subprocess.run(
        command(by_vllm, written(by_vllm, requests, settings=VLLM), python=vllm_python),
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert worked(embedded, written(embedded, questions(120))).returncode == 0
    found, expected = answers_of(by_vllm, requests), answers_of(embedded, questions(120))
    compared = ("item_id", "status", "output", "finish_reason", "input_tokens", "output_tokens")
    assert found[len(SPECIAL) :].select(compared).equals(expected.select(compared))

    special = {row["item_id"]: row for row in found[: len(SPECIAL)].to_dicts()}
    assert {name for name, row in special.items() if row["status"] == "failed"} == {
        "image",
        "long",
        "tools",
        "no schema",
    }
    assert all(row["reason"].startswith("unsupported: ") for row in special.values() if row["reason"])
    assert json.loads(special["schema"]["output"]) in {"red", "blue"}
    assert special["seeded"]["output"] == special["seeded again"]["output"]
    answered = found.filter(pl.col("status") == "answered")
    assert answered.select((pl.col("ttft_ms") <= pl.col("latency_ms")).all()).item()
    assert answered["cached_tokens"].null_count() == 0


def test_an_engine_killed_in_the_middle_is_opened_again(vllm_python: str, tmp_path: Path) -> None:
    requests = questions(1_500)
    log = tmp_path / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command(tmp_path, written(tmp_path, requests, settings=VLLM), python=vllm_python),
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            stdout=output,
            stderr=output,
        ) as worker,
    ):
        deadline = time.monotonic() + 300
        while kept(tmp_path).height < 16:
            assert worker.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        [core] = children(worker.pid)
        os.kill(core, signal.SIGKILL)
        assert worker.wait(300) == 0, log.read_text()[-3000:]
    assert "requests in flight; they are asked again" in log.read_text()
    answers = answers_of(tmp_path, requests)
    assert set(answers["status"]) == {"answered"}
    assert kept(tmp_path)["item_id"].is_unique().all()


def test_a_migration_is_judged_on_answers_of_vllm(vllm_python: str, tmp_path: Path) -> None:
    items = generate("golden", 120, seed=8)
    calls = [
        logged_call(at, messages=anven_messages(item), output=item.answer, ground_truth=item.answer)
        for at, item in enumerate(items)
    ]
    (tmp_path / "log-2026-10-05.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
    declared = {
        "workload": "on-vllm",
        "legacy": {"model": "legacy-model", "logs": "log-*.jsonl"},
        "target": VLLM.target.model_dump(mode="json", exclude_none=True),
        "grading": [{"kind": "exact"}],
        "golden": {"size": "all", "holdout": 1.0, "near_duplicates": "keep"},
        "sign_off": {"quality_margin": 0.3, "waive": ["ttft", "cost", "safety"]},
    }
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(declared))
    places = {"ANVEN_HOME": str(tmp_path / "home"), "ANVEN_MIGRATIONS": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-m", "anven_pipelines.cli", "migrate", str(tmp_path / "m.yaml"), "--json"],
        env={**ENVIRONMENT, **places, "ANVEN_WORKER_PYTHON": vllm_python},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    verdict = json.loads(done.stdout)
    assert (verdict["verdict"], verdict["quality"]["n_measured"]) == ("GO", 120)
    assert verdict["speed"]["status"] == "unmeasured"


def children(pid: int) -> list[int]:
    """Return the children of a process that are engine cores."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
            is_core = b"EngineCore" in (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(after_name[1]) == pid and is_core:
            found.append(int(stat.parent.name))
    return found
