"""Trains a nano model from nothing and exports it.

    python -m anven_pipelines.nano.train --model legacy-nano --out data/nano

Needs the dependency group `train`. Steps, seed and the single thread are fixed, not the time. A run can
repeat itself only on the same machine and library; another one gives other weights, and another accuracy.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from anven_pipelines.nano.export import write_model
from anven_pipelines.nano.messages import WIDER
from anven_pipelines.nano.models import MODELS
from anven_pipelines.nano.styles import CHAT_TEMPLATES, training_messages
from anven_pipelines.nano.tasks import FACTS, TASKS, converse, wordings_of
from anven_pipelines.nano.tokenizer_training import BEGIN, CONTEXT, END, VOCABULARY, train_tokenizer
from anven_pipelines.worker.chat_template import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenizers import Tokenizer

    from anven_pipelines.nano.tasks import Task, Wordings

SEED: Final = 7
# The model that is moved to is the better trained one.
STEPS: Final = {"legacy-nano": 1000, "anven-nano": 1400}
# Conversations in a batch, and most turns of each: every answer teaches, and the long system prompt is read once.
BATCH: Final = 24
TURNS: Final = 4
# A batch runs in parts of similar length, which saves a third of the padding.
MICRO_BATCHES: Final = 4
# Question answering is the one that takes long to learn.
TASK_SHARES: Final[dict[Task, float]] = {"answer": 0.6, "intent": 0.15, "tool": 0.25}
PROMPT_WEIGHT: Final = 0.1
# An intent is one or two tokens where a tool call has thirty.
ANSWER_WEIGHTS: Final[dict[Task, float]] = {"answer": 1.0, "intent": 3.0, "tool": 1.0}
WARMUP: Final = 40
REPORT: Final = 50
# Share of the steps over which contexts grow to their full number of facts, and long system prompts come in: under a
# hundred tokens of policies a model finds out late that answers are copied (not after 400 of 1,000 steps).
CURRICULUM: Final = 0.4
LONG_SYSTEM: Final = ("legacy-nano",)
# The newer model knows more ways to say the same.
WORDINGS: Final[dict[str, Wordings]] = {
    "legacy-nano": wordings_of("train"),
    "anven-nano": {intent: (*templates, *WIDER[intent]) for intent, templates in wordings_of("train").items()},
}
MATRIX_LEARNING_RATE: Final = 3e-3
VECTOR_LEARNING_RATE: Final = 3e-3


class Example(NamedTuple):
    """Token ids of a conversation, and how much the loss counts each of them."""

    ids: list[int]
    weights: list[float]


def new_model() -> LlamaForCausalLM:
    """Return an untrained model: a Llama of 754,816 parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        ),
    )


def example_source(name: str, tokenizer: Tokenizer, rng: random.Random) -> Callable[[float], Example]:
    """Return a function that invents one conversation, given how far training has come, from 0 to 1."""
    template = ChatTemplate(CHAT_TEMPLATES[name], special_tokens={"bos_token": BEGIN})

    def tokens(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    def draw(progress: float) -> Example:
        task = rng.choices(TASKS, [TASK_SHARES[task] for task in TASKS])[0]
        items = converse(
            task,
            "train",
            rng,
            turns=TURNS,
            most_facts=_most_facts(progress),
            wordings=WORDINGS[name],
        )
        messages = training_messages(name, items, rng)
        if name in LONG_SYSTEM and rng.random() > progress / CURRICULUM:
            messages = [message for message in messages if message["role"] != "system"]
        example = Example([], [])
        written = ""
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt, answer = template.render(messages[:place]), message["content"] + END
                for ids, weight in (
                    (tokens(prompt[len(written) :]), PROMPT_WEIGHT),
                    (tokens(answer), ANSWER_WEIGHTS[task]),
                ):
                    example.ids.extend(ids)
                    example.weights.extend([weight] * len(ids))
                written = prompt + answer
        return example

    return draw


def weighted_loss(model: LlamaForCausalLM, examples: Sequence[Example]) -> tuple[torch.Tensor, float]:
    """Return the summed loss, each token counted by its weight, and the sum of weights.

    Answers count fully, those of `intent` three times (ANSWER_WEIGHTS), prompts a tenth (PROMPT_WEIGHT).
    """
    longest = max(len(example.ids) for example in examples)
    ids = torch.ones((len(examples), longest), dtype=torch.long)
    weights = torch.zeros((len(examples), longest))
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : len(example.ids)] = torch.tensor(example.weights)
    # Padding stands on the right and weighs nothing, so causal attention needs no mask.
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum(), float(weights[:, 1:].sum())


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers and AdamW for embeddings and norms."""
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]  # noqa: PLR2004 - a matrix
    others = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]  # noqa: PLR2004 - a matrix
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=VECTOR_LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def train(name: str, tokenizer: Tokenizer, *, seed: int, steps: int) -> LlamaForCausalLM:
    """Train one model and print its progress."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    draw = example_source(name, tokenizer, random.Random(f"train/{name}/{seed}"))  # noqa: S311 - reproducible data
    model = new_model()
    steppers = optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(stepper, lambda step: _learning_rate_factor(step, steps))
        for stepper in steppers
    ]
    started = time.perf_counter()
    tokens = 0
    for step in range(steps):
        examples = sorted((draw(step / steps) for _ in range(BATCH)), key=lambda one: len(one.ids))
        loss = _update(model, steppers, examples)
        for schedule in schedules:
            schedule.step()
        tokens += sum(len(example.ids) for example in examples)
        if (step + 1) % REPORT == 0 or step + 1 == steps:
            seconds = time.perf_counter() - started
            speed = f"{tokens / seconds:,.0f} tokens/s {seconds:.0f} s"
            print(f"{name} step {step + 1}/{steps} loss {loss:.4f} {speed}", flush=True)  # noqa: T201 - progress
    return model


def _update(model: LlamaForCausalLM, steppers: list[torch.optim.Optimizer], examples: list[Example]) -> float:
    """Take one step on a batch sorted by length; return its mean loss."""
    size = len(examples) // MICRO_BATCHES
    total, weight = 0.0, 0.0
    for part in range(MICRO_BATCHES):
        loss, weights = weighted_loss(model, examples[part * size : (part + 1) * size])
        loss.backward()
        total, weight = total + loss.item(), weight + weights
    for parameter in model.parameters():
        parameter.grad.div_(weight)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for stepper in steppers:
        stepper.step()
        stepper.zero_grad()
    return total / weight


def _learning_rate_factor(step: int, steps: int) -> float:
    """Return the share of the full rate: a short warm-up, then half a cosine down to 2 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARMUP) * max(0.02, cosine)


def _most_facts(progress: float) -> int:
    """Return how many facts a context may hold by now."""
    least, most = FACTS["train"]
    return min(most, least + int((most - least + 1) * progress / CURRICULUM))


def main() -> None:
    """Train and export as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets MODEL/ and digests.json")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, help="for a trial; the shipped weights take the default")
    wanted = parser.parse_args()
    # One tokenizer for both models, whatever their seeds.
    tokenizer = train_tokenizer(seed=SEED)
    model = train(wanted.model, tokenizer, seed=wanted.seed, steps=wanted.steps or STEPS[wanted.model])
    write_model(model, tokenizer, wanted.model, wanted.out)


if __name__ == "__main__":
    main()
