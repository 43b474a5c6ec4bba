"""Our batch worker beside a bare `vllm.LLM.chat` on the same prompts, engine and settings, and beside one at a time.

    ANVEN_WORKER_PYTHON=$(.ci/vllm_env) python benchmarks/batch_inference.py [--quick] [--json]

Each way answers the same greedy questions with the shipped anven-nano in float32, in a process of its own; rounds take
turns, so that what the machine does meanwhile hits all. Time is from the first request to the last answer, the loading
of the model left out. Ours holds checkpoints on the disk, checks each request and writes rows; bare vLLM does not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.inference import CompletionRequest
from anven_pipelines.nano.models import model_folder
from anven_pipelines.nano.prompts import anven_messages
from anven_pipelines.nano.tasks import generate
from anven_pipelines.resources.durable_folder import DurableFolder
from anven_pipelines.spec_target import JobTarget
from anven_pipelines.worker.generate import Watch, read_job, write_job
from anven_pipelines.worker.generate import generate as work
from anven_pipelines.worker.job import Job, VllmSettings
from anven_pipelines.worker.weight_sources import ModelCaches
from anven_pipelines.worker.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY: Final = Path(__file__).parents[1]
FOLDER: Final = str(model_folder("anven-nano"))
ARGUMENTS: Final[dict[str, Any]] = {"max_model_len": 512, "max_num_seqs": 64, "enforce_eager": True}
ENVIRONMENT: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}
SEED: Final = 17


def main() -> None:
    """Measure and print, or be one of the processes that are measured."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="300 prompts in one round instead of 4,000 in three")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--measure", choices=["bare", "ours", "one at a time"], help=argparse.SUPPRESS)
    options.add_argument("--prompts", type=int, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.measure:
        print(json.dumps({"seconds": WAYS[chosen.measure](chosen.prompts)}))
        return
    python = os.environ.get("ANVEN_WORKER_PYTHON") or sys.exit("set ANVEN_WORKER_PYTHON to the python of .ci/vllm_env")
    prompts, rounds = (300, 1) if chosen.quick else (4_000, 3)
    figures = compare(python, prompts, rounds)
    if chosen.json:
        print(json.dumps(figures))
        return
    print(f"{prompts:,} prompts, {rounds} rounds, median\n\n| way | prompts/s | of bare vLLM |\n|---|---:|---:|")
    for way, found in figures.items():
        print(f"| {way} | {found['prompts_per_s']:.1f} | {found['of_bare']:.3f} |")


def compare(python: str, prompts: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return each way's speed, and its share of bare vLLM's: the median of the rounds' ratios."""
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, found in speeds.items():
            asked = prompts if way != "one at a time" else prompts // 10
            command = [python, __file__, "--measure", way, "--prompts", str(asked)]
            environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            [figures] = [
                line for line in done.stdout.splitlines() if line.startswith('{"seconds"')
            ]  # vLLM logs there too
            found.append(asked / json.loads(figures)["seconds"])
    return {
        way: {
            "prompts_per_s": statistics.median(found),
            "of_bare": statistics.median(each / bare for each, bare in zip(found, speeds["bare"], strict=True)),
        }
        for way, found in speeds.items()
    }


def chats(count: int) -> list[list[dict[str, str]]]:
    """Return the questions of the golden split in the model's own style."""
    return [anven_messages(item) for item in generate("golden", count, seed=SEED)]


def bare(count: int) -> float:
    """Return the seconds of vLLM's own batch call."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - only there where it is measured

    model = LLM(model=FOLDER, dtype="float32", **ARGUMENTS)
    asked, sampling = chats(count), SamplingParams(temperature=0.0, max_tokens=64)
    began = time.perf_counter()
    model.chat(asked, sampling, use_tqdm=False)
    return time.perf_counter() - began


def ours(count: int, *, concurrency: int = 256) -> float:
    """Return the seconds of the worker's run, from its first request to its last durable row."""
    digest = Weights.in_folder(Path(FOLDER)).digest()
    target = JobTarget(
        engine="vllm-job",
        model="anven-nano",
        weights=FOLDER,
        digest=digest,
        licence="Apache-2.0",
        precision="float32",
        **ARGUMENTS,
    )
    requests = [
        CompletionRequest(str(at), [dict(turn) for turn in chat], {"temperature": 0, "max_tokens": 64})
        for at, chat in enumerate(chats(count))
    ]
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = DurableFolder(scratch, {})
        job = Job(key="benchmark", shards=[], settings=VllmSettings(target=target), concurrency=concurrency)
        written = read_job(folder, write_job(folder, job, requests))
        watch = Watch(report=lambda progress: seconds.append(progress.elapsed_s), say=lambda _: None)
        work(folder, written, written.shards, watch, caches=ModelCaches.of(os.environ))
    return seconds[-1]


WAYS: Final[dict[str, Callable[[int], float]]] = {
    "bare": bare,
    "ours": ours,
    "one at a time": lambda count: ours(count, concurrency=1),
}


if __name__ == "__main__":
    main()
