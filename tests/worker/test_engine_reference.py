"""The embedded engine gives, token for token, what Hugging Face transformers gives (made by make_reference.py)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any, Final

import pytest

from anven_pipelines.nano.models import MODELS, model_folder
from anven_pipelines.worker.embedded import EmbeddedEngine
from anven_pipelines.worker.engine import EngineAnswer, EngineRequest, Sampling, answer
from anven_pipelines.worker.model_files import ModelFiles

REFERENCE: Final = json.loads((Path(__file__).parent / "reference_outputs.json").read_text(encoding="utf-8"))
MOST_TOKENS: Final = 48


def answers(name: str, *, logprobs: bool) -> list[EngineAnswer]:
    """Ask all reference prompts at once, so that prompts of about equal length share batches."""

    async def ask_all() -> list[EngineAnswer]:
        engine = EmbeddedEngine(model_folder(name), name=name)
        try:
            return await asyncio.gather(*(answer(engine, request) for request in requests))
        finally:
            await engine.close()

    requests = [
        EngineRequest(
            messages=tuple(expected["messages"]),
            max_tokens=MOST_TOKENS,
            sampling=Sampling(temperature=0),
            top_logprobs=0 if logprobs else None,
        )
        for expected in REFERENCE[name]["answers"]
    ]
    return asyncio.run(ask_all())


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_was_made_from_the_shipped_weights(name: str) -> None:
    weights = (model_folder(name) / "model.safetensors").read_bytes()
    assert REFERENCE[name]["weights"] == hashlib.sha256(weights).hexdigest()


@pytest.mark.parametrize("name", MODELS)
def test_prompts_have_the_references_tokens(name: str) -> None:
    files = ModelFiles.read(model_folder(name))
    for expected in REFERENCE[name]["answers"]:
        tokens = files.prompt_tokens(expected["messages"])
        assert [files.tokenizer.token_to_id(token) for token in tokens] == expected["prompt"]


@pytest.mark.parametrize("name", MODELS)
def test_tokens_and_their_log_probabilities_are_the_references(name: str) -> None:
    files = ModelFiles.read(model_folder(name))
    for found, expected in zip(answers(name, logprobs=True), REFERENCE[name]["answers"], strict=True):
        chosen = [entry.chosen for entry in found.logprobs]
        assert [token.token_bytes for token in chosen] == [files.token(token)[1] for token in expected["tokens"]]
        assert [token.logprob for token in chosen] == pytest.approx(expected["logprobs"], abs=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_answers_in_shared_batches_are_the_references(name: str) -> None:
    found = [said(vars(answer)) for answer in answers(name, logprobs=False)]
    assert found == [said(expected) for expected in REFERENCE[name]["answers"]]
    assert {finish_reason for _, _, finish_reason in found} >= {"stop"}


def said(answer: dict[str, Any]) -> tuple[str, int, str]:
    """Return text, number of tokens and finish reason of an answer or of a reference."""
    tokens = answer["output_tokens"] if "output_tokens" in answer else len(answer["tokens"])
    return answer["text"], tokens, answer["finish_reason"]
