"""The shipped weights load unchanged in the real vLLM and give the same tokens there as in the embedded engine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from anven_pipelines.nano.models import MODELS, model_folder
from anven_pipelines.nano.prompts import anven_messages, legacy_messages
from anven_pipelines.nano.tasks import generate
from anven_pipelines.worker.embedded import EmbeddedEngine
from anven_pipelines.worker.engine import EngineRequest, Sampling, answer
from anven_pipelines.worker.model_files import ModelFiles

if TYPE_CHECKING:
    from anven_pipelines.nano.tasks import Split

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SCRIPT: Final = Path(__file__).with_name("greedy_answers.py")
SPLITS: Final[tuple[Split, ...]] = ("golden", "adversarial")
END: Final = "<|end|>"
ITEMS: Final = 30  # a split, each asked in both styles: 120 prompts a model
SETTINGS: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
}

Chat = list[dict[str, str]]


class Given(NamedTuple):
    """One chat's prompt, as the tokenizer spells its tokens, and its answer, as the text of each token."""

    prompt: list[str]
    answer: list[str]
    finish_reason: str


@pytest.mark.parametrize("name", MODELS)
def test_vllm_gives_the_tokens_of_the_embedded_engine(name: str, vllm_python: str, tmp_path: Path) -> None:
    chats = [
        style(item)
        for split in SPLITS
        for item in generate(split, ITEMS, seed=31)
        for style in (legacy_messages, anven_messages)
    ]

    theirs = vllm_answers(vllm_python, name, chats, tmp_path)

    files = ModelFiles.read(model_folder(name))
    assert [found.prompt for found in theirs] == [files.prompt_tokens(chat) for chat in chats]
    assert [(found.answer, found.finish_reason) for found in theirs] == asyncio.run(embedded_answers(name, chats))


def vllm_answers(python: str, name: str, chats: list[Chat], scratch: Path) -> list[Given]:
    """Return what vLLM was asked and what it answered, without end marks."""
    asked, answers = scratch / "chats.json", scratch / "answers.json"
    asked.write_text(json.dumps(chats), encoding="utf-8")
    done = subprocess.run(
        [python, str(SCRIPT), str(model_folder(name)), str(asked), str(answers)],
        env={**os.environ, **SETTINGS},
        cwd=scratch,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [Given(**one) for one in json.loads(answers.read_text(encoding="utf-8"))]
    return [one._replace(answer=[token for token in one.answer if token != END]) for one in found]


async def embedded_answers(name: str, chats: list[Chat]) -> list[tuple[list[str], str]]:
    """Return the tokens of the answers, and why they ended."""
    engine = EmbeddedEngine(model_folder(name), name=name)
    try:
        requests = [
            EngineRequest(messages=tuple(chat), max_tokens=64, sampling=Sampling(temperature=0), top_logprobs=0)
            for chat in chats
        ]
        given = [await answer(engine, request) for request in requests]
    finally:
        await engine.close()
    return [([logprob.chosen.token for logprob in one.logprobs], one.finish_reason) for one in given]
