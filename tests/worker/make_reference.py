"""Writes what the nano models answer under Hugging Face transformers, greedily in float32, for the engine's test.

Needs torch and transformers (dependency group `train`) and the shipped weights:

    python tests/worker/make_reference.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from anven_pipelines.nano.models import MODELS, model_folder
from anven_pipelines.nano.prompts import anven_messages, legacy_messages
from anven_pipelines.nano.tasks import generate

REFERENCE: Final = Path(__file__).parent / "reference_outputs.json"
SEED: Final = 4711
ITEMS: Final = 24
MOST_TOKENS: Final = 48
STYLES: Final = {"legacy": legacy_messages, "anven": anven_messages}  # a model meets the other's style as well


def main() -> None:
    """Ask both models in both styles and write the reference."""
    torch.set_num_threads(1)
    written = ",\n".join(f"{json.dumps(name)}: {one_answer_a_line(reference(name))}" for name in MODELS)
    REFERENCE.write_text(f"{{{written}}}\n", encoding="utf-8")


def one_answer_a_line(model: dict[str, Any]) -> str:
    """Write a model's reference so that a change shows where it is."""
    answers = ",\n".join(json.dumps(answer, ensure_ascii=False) for answer in model["answers"])
    return f'{{"weights": "{model["weights"]}", "answers": [\n{answers}\n]}}'


def reference(name: str) -> dict[str, Any]:
    """Return the digest of a model's weights and its answers."""
    folder = model_folder(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    items = generate("golden", ITEMS, seed=SEED)
    return {
        "weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "answers": [answer(model, tokenizer, style(item)) for style in STYLES.values() for item in items],
    }


def answer(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, Any]:
    """Return one prompt, its tokens, and the answer's tokens with their log-probabilities, the end token left out."""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    made = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        do_sample=False,
        max_new_tokens=MOST_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = made.sequences[0, len(prompt) :].tolist()
    rows = [torch.log_softmax(row[0], dim=-1) for row in made.logits]
    kept = tokens[:-1] if tokens[-1] == tokenizer.eos_token_id else tokens
    return {
        "messages": messages,
        "prompt": prompt,
        "tokens": kept,
        "logprobs": [round(row[token].item(), 5) for row, token in zip(rows, kept, strict=False)],
        "text": tokenizer.decode(kept, skip_special_tokens=True),
        "finish_reason": "stop" if len(kept) < len(tokens) else "length",
    }


if __name__ == "__main__":
    main()
