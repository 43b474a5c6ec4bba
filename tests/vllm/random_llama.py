"""Runs in the environment of vLLM, not in the project's: writes a random tiny Llama, and its answers by `generate`.

python random_llama.py TOKENIZER_FOLDER MODEL_FOLDER CHATS.json ANSWERS.json
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

MOST_TOKENS = 24


def main(tokenizer_folder: Path, folder: Path, chats: Path, answers: Path) -> None:
    """Write the model, then answer every chat greedily, one after the other."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder / name, folder / name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = random_model(tokenizer)
    model.save_pretrained(folder)
    written = [answer(model, tokenizer, chat) for chat in json.loads(chats.read_text(encoding="utf-8"))]
    answers.write_text(json.dumps(written), encoding="utf-8")


def random_model(tokenizer: AutoTokenizer) -> LlamaForCausalLM:
    """Return a model with grouped queries and untied embeddings, as large ones have and the shipped ones have not.

    Weights are large, so that logits lie far apart: the two libraries add in different orders. Tokens that are no plain
    text have the logit 0, which is never the largest: half a character would be written differently.
    """
    torch.manual_seed(20)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config).eval()
    plain = [
        tokenizer.decode([token]).isascii() and token not in tokenizer.all_special_ids
        for token in range(len(tokenizer))
    ]
    plain[tokenizer.eos_token_id] = True
    with torch.no_grad():
        model.lm_head.weight.mul_(torch.tensor(plain, dtype=torch.float32)[:, None])
    return model


def answer(model: LlamaForCausalLM, tokenizer: AutoTokenizer, chat: list[dict[str, str]]) -> dict[str, object]:
    """Return an answer as a row of the worker's has it."""
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        whole = model.generate(**prompt, do_sample=False, max_new_tokens=MOST_TOKENS)[0]
    made = whole[prompt["input_ids"].shape[1] :].tolist()
    ended = made[-1] == tokenizer.eos_token_id
    return {
        "output": tokenizer.decode(made, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        "finish_reason": "stop" if ended else "length",
        "input_tokens": prompt["input_ids"].shape[1],
        "output_tokens": len(made) - ended,
    }


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
