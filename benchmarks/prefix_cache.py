"""What the packed order of requests saves: vLLM's own count of prompt tokens found in its prefix cache.

    PYTHONPATH=. $(.ci/vllm_env) benchmarks/prefix_cache.py [--blocks N] [--json]

Beginnings that many questions share come in the order of a log (shuffled, seeded), and in the order in which a job is
written (`worker.job.packed`). vLLM keeps whole blocks, of 128 tokens on a CPU, and forgets the oldest when there are
more than `--blocks`: the cache holds fewer beginnings than there are, as it does when a golden dataset is larger than a
GPU's memory. The same engine answers both, emptied in between, one token each, as only the prompt counts. Ends with 1
where an answer depends on the order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.inference import CompletionRequest
from anven_pipelines.nano.models import model_folder
from anven_pipelines.nano.tasks import generate
from anven_pipelines.worker.job import packed

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTINGS: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}
BEGINNINGS: Final = 40
QUESTIONS: Final = 20  # asked after each beginning
FACTS: Final = 30  # numbered lines of a beginning
SEQUENCES: Final = 16
SEED: Final = 23


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--blocks", type=int, default=96, help="size of the cache (default 96, of 128 tokens each)")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = options.parse_args()
    os.environ.update(SETTINGS)  # before vLLM is imported
    figures = measure(chosen.blocks)
    if chosen.json:
        print(json.dumps(figures))
        return
    print(f"{BEGINNINGS} beginnings, {QUESTIONS} questions each; {chosen.blocks} blocks\n")
    print("| order | prompt tokens | found in the cache | share | seconds |\n|---|---:|---:|---:|---:|")
    for order, found in figures.items():
        share = found["hits"] / found["queries"]
        print(f"| {order} | {found['queries']:,} | {found['hits']:,} | {share:.1%} | {found['seconds']:.1f} |")


def measure(blocks: int) -> dict[str, dict[str, float]]:
    """Answer the same requests in both orders."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - only vLLM's environment has it

    model = LLM(
        model=str(model_folder("anven-nano")),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=SEQUENCES,
        enforce_eager=True,
        num_gpu_blocks_override=blocks,
        disable_log_stats=False,
    )
    logged = requests()
    random.Random(SEED).shuffle(logged)  # noqa: S311 - an order, no secret
    figures: dict[str, dict[str, float]] = {}
    answers: dict[str, dict[str, str]] = {}
    for order, asked in {"as logged": logged, "packed": packed(logged)}.items():
        if not model.reset_prefix_cache():
            sys.exit("vLLM did not empty its cache")
        before, began = counted(model), time.perf_counter()
        outputs = model.chat(
            [each.messages for each in asked], SamplingParams(temperature=0.0, max_tokens=1), use_tqdm=False
        )
        seconds, after = time.perf_counter() - began, counted(model)
        figures[order] = {name: after[name] - before[name] for name in after} | {"seconds": seconds}
        answers[order] = {each.item_id: out.outputs[0].text for each, out in zip(asked, outputs, strict=True)}
    if answers["as logged"] != answers["packed"]:
        sys.exit("an answer depends on the order")
    return figures


def requests() -> list[CompletionRequest]:
    """Return the requests, each beginning with a text of its own that others share."""
    facts = generate("golden", BEGINNINGS * FACTS, seed=SEED)
    asked: Sequence[Any] = generate("golden", QUESTIONS, seed=SEED + 1)
    found = []
    for number in range(BEGINNINGS):
        known = "\n".join(f"{at} {item.answer}" for at, item in enumerate(facts[number * FACTS : (number + 1) * FACTS]))
        beginning = f"Case {number}.\n{known}"[:640]
        found += [
            CompletionRequest(
                f"{number:02d}-{at:02d}",
                [{"role": "system", "content": beginning}, {"role": "user", "content": f"{at}: {item.answer}"[:60]}],
                {"temperature": 0, "max_tokens": 1},
            )
            for at, item in enumerate(asked)
        ]
    return found


def counted(model: Any) -> dict[str, float]:  # noqa: ANN401 - vllm.LLM
    """Return vLLM's counters of prompt tokens that were looked up and that were found."""
    metrics = {metric.name: metric.value for metric in model.get_metrics() if hasattr(metric, "value")}
    return {"queries": metrics["vllm:prefix_cache_queries"], "hits": metrics["vllm:prefix_cache_hits"]}


if __name__ == "__main__":
    main()
