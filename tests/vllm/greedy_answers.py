"""Runs in the environment of vLLM, not in the project's: answers chats greedily and writes the tokens as text.

python greedy_answers.py MODEL_FOLDER CHATS.json ANSWERS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main(folder: str, chats: Path, answers: Path) -> None:
    """Answer every chat; the prompt is written as the tokenizer spells it, the answer as each token's text."""
    model = LLM(
        model=folder,
        dtype="float32",  # in bfloat16 near-ties fall otherwise
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=64,
        disable_log_stats=True,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=64)
    outputs = model.chat(json.loads(chats.read_text(encoding="utf-8")), sampling, use_tqdm=False)
    tokenizer = model.get_tokenizer()
    written = [
        {
            "prompt": tokenizer.convert_ids_to_tokens(list(output.prompt_token_ids)),
            "answer": [tokenizer.decode([token_id]) for token_id in output.outputs[0].token_ids],
            "finish_reason": output.outputs[0].finish_reason,
        }
        for output in outputs
    ]
    answers.write_text(json.dumps(written), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
