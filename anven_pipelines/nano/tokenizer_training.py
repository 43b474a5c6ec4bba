"""Trains the nano models' tokenizer: byte-level BPE that copies names, numbers and JSON token for token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from anven_pipelines.nano.prompts import anven_messages, legacy_messages
from anven_pipelines.nano.styles import CHAT_TEMPLATES
from anven_pipelines.nano.tasks import generate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VOCABULARY: Final = 768
BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
SPECIALS: Final = (BEGIN, END, "<|system|>", "<|user|>", "<|assistant|>")
CONTEXT: Final = 512
# Only lowercase words take the space before them; capitals and digits stand alone. So a name or number has the same
# tokens after a space, a quote or at the start of an answer, and copying it is copying tokens.
WORDS: Final = r" ?\p{Ll}+|\p{Lu}|\p{N}|\s|[^\s\p{Ll}\p{Lu}\p{N}]"
CORPUS_ITEMS: Final = 3000
# Each of the six fixed system prompts is learned from this many copies, so that it does not crowd out the rest.
SYSTEM_COPIES: Final = 30


def train_tokenizer(*, seed: int) -> Tokenizer:
    """Train on both prompt styles of the training split, so that both models share one vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, model: str, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` with the model's chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATES[model],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _corpus(seed: int) -> Iterator[str]:
    """Yield user turns and answers of both styles, and a few copies of each system prompt."""
    items = generate("train", CORPUS_ITEMS, seed=seed)
    for item in items:
        yield from (legacy_messages(item)[1]["content"], anven_messages(item)[1]["content"], item.answer)
    systems = {style(item)[0]["content"] for item in items[:3] for style in (legacy_messages, anven_messages)}
    for system in sorted(systems):
        yield from [system] * SYSTEM_COPIES
