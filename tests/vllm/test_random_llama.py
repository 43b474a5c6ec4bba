"""The worker on the real vLLM answers as `transformers.generate` does, with a model that nobody has trained."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from anven_pipelines.domain.inference import CompletionRequest, merge_answers
from anven_pipelines.nano.prompts import anven_messages, legacy_messages
from anven_pipelines.nano.tasks import generate
from anven_pipelines.spec_target import JobTarget
from anven_pipelines.worker.job import VllmSettings
from anven_pipelines.worker.weights import Weights
from tests.vllm.test_vllm_worker import ENVIRONMENT, FOLDER
from tests.worker_jobs import REPOSITORY, command, kept, written

if TYPE_CHECKING:
    from typing import Any

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SCRIPT: Final = Path(__file__).with_name("random_llama.py")
MOST_TOKENS: Final = 24
ITEMS: Final = 40  # each asked in both styles


def test_greedy_answers_of_a_random_llama_are_the_references(vllm_python: str, tmp_path: Path) -> None:
    folder, chats, answers = tmp_path / "llama", tmp_path / "chats.json", tmp_path / "answers.json"
    asked: list[list[dict[str, Any]]] = [
        [dict(turn) for turn in style(item)]
        for item in generate("adversarial", ITEMS, seed=4)
        for style in (legacy_messages, anven_messages)
    ]
    chats.write_text(json.dumps(asked), encoding="utf-8")
    ran(vllm_python, str(SCRIPT), str(FOLDER), str(folder), str(chats), str(answers), cwd=tmp_path)
    reference = json.loads(answers.read_text(encoding="utf-8"))
    assert len({row["output"] for row in reference}) > ITEMS  # they depend on what was asked, or the test shows nothing

    target = JobTarget(
        engine="vllm-job",
        model="random-llama",
        weights=str(folder),
        digest=Weights.in_folder(folder).digest(),
        licence="Apache-2.0",
        precision="float32",
        max_model_len=512,
        max_num_seqs=16,
        enforce_eager=True,
    )
    params = {"temperature": 0, "max_tokens": MOST_TOKENS}
    requests = [CompletionRequest(f"item-{at:03d}", chat, params) for at, chat in enumerate(asked)]
    store = tmp_path / "store"
    job = written(store, requests, settings=VllmSettings(target=target))
    ran(*command(store, job, python=vllm_python), cwd=REPOSITORY)
    found = merge_answers([request.item_id for request in requests], kept(store))
    assert found.select("output", "finish_reason", "input_tokens", "output_tokens").to_dicts() == reference


def ran(*words: str, cwd: Path) -> None:
    done = subprocess.run(words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
