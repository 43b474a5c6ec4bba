"""Our batch worker beside bare vLLM, `vllm run-batch` and HTTP calls one by one: same prompts, engine, settings.

    ANVEN_WORKER_PYTHON=$(.ci/vllm_env) python benchmarks/batch_inference.py [--quick] [--json]

Each way answers the same greedy questions with the shipped anven-nano in float32, in a process of its own; rounds take
turns, so that what the machine does meanwhile hits all. Time is from the first request to the last answer; loading and
freeing the model is left out. Ours reads and writes: it checks each request and holds checkpoints on the disk.

`generate` is `vllm.LLM.generate` on prompts to which the chat template was applied before the time began; `chat` is
`vllm.LLM.chat`, which applies it, as ours does.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
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
from anven_pipelines.spec import JobTarget
from anven_pipelines.worker.generate import Watch, read_job, write_job
from anven_pipelines.worker.generate import generate as work
from anven_pipelines.worker.job import Job, VllmSettings
from anven_pipelines.worker.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx

    from anven_pipelines.resources.answer_batch import Progress

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
MOST_TOKENS: Final = 64
BASE: Final = "generate"
QUICK: Final = (BASE, "ours")
ROUNDS: Final = 5
SEEN_ONCE: Final = ("run-batch", "HTTP calls one by one")  # far off, so one round tells
READY_S: Final = 300.0


def main() -> None:
    """Measure and print, or be one of the processes that are measured."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help=f"300 prompts, one round, {' and '.join(QUICK)} alone")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--measure", nargs="+", choices=list(WAYS), help=argparse.SUPPRESS)
    options.add_argument("--prompts", type=int, default=2_500, help="how many (default 2,500)")
    chosen = options.parse_args()
    if chosen.measure:
        print(json.dumps({"seconds": {way: WAYS[way](chosen.prompts) for way in chosen.measure}}))
        return
    python = os.environ.get("ANVEN_WORKER_PYTHON") or sys.exit("set ANVEN_WORKER_PYTHON to the python of .ci/vllm_env")
    prompts, rounds = (300, 1) if chosen.quick else (chosen.prompts, ROUNDS)
    speeds = quick(python, prompts) if chosen.quick else compare(python, prompts, rounds)
    ways = {way: against(found, speeds[BASE]) for way, found in speeds.items()}
    if chosen.json:
        print(json.dumps({"prompts": prompts, "rounds": rounds, "ways": ways}))
        return
    print(f"{prompts:,} prompts, {rounds} rounds: median (lowest to highest)\n")
    print(f"| way | prompts/s | of `{BASE}` in the same round |\n|---|---:|---:|")
    for way, told in ways.items():
        print(f"| {way} | {told['prompts_per_s']:.1f} | {told['of']:.3f} ({told['least']:.3f} to {told['most']:.3f}) |")


def against(found: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Return a way's speed, and its share of the base's: the median of the rounds' ratios, the lowest, the highest."""
    shares = [each / other for each, other in zip(found, base, strict=False)]
    return {
        "prompts_per_s": statistics.median(found),
        "of": statistics.median(shares),
        "least": min(shares),
        "most": max(shares),
    }


def compare(python: str, prompts: int, rounds: int) -> dict[str, list[float]]:
    """Return each way's prompts/s in each round; the order of the ways turns, as a machine's load drifts."""
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        turned = [*list(WAYS)[number % 3 : 3], *list(WAYS)[: number % 3], *(SEEN_ONCE if number == 0 else ())]
        for way in turned:
            asked = prompts if way not in SEEN_ONCE else prompts // 10
            speeds[way].append(asked / measured(python, [way], asked)[way])
    return speeds


def quick(python: str, prompts: int) -> dict[str, list[float]]:
    """Return the speed of two ways, one after the other in one process, which loads vLLM once."""
    return {way: [prompts / seconds] for way, seconds in measured(python, QUICK, prompts).items()}


def measured(python: str, ways: Sequence[str], prompts: int) -> dict[str, float]:
    """Return the seconds of each way, in a process of its own."""
    command = [python, __file__, "--prompts", str(prompts), "--measure", *ways]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    [line] = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]  # vLLM logs there too
    found: dict[str, float] = json.loads(line)["seconds"]
    return found


def chats(count: int) -> list[list[dict[str, str]]]:
    """Return the questions of the golden split in the model's own style."""
    return [anven_messages(item) for item in generate("golden", count, seed=SEED)]


def bare_generate(count: int) -> float:
    """Return the seconds of vLLM's own batch call on prompts that are written out already."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - only there where it is measured

    model = LLM(model=FOLDER, dtype="float32", **ARGUMENTS)
    write = model.get_tokenizer().apply_chat_template
    prompts = [write(chat, add_generation_prompt=True, tokenize=False) for chat in chats(count)]
    sampling = SamplingParams(temperature=0.0, max_tokens=MOST_TOKENS)
    began = time.perf_counter()
    model.generate(prompts, sampling, use_tqdm=False, tokenization_kwargs={"add_special_tokens": False})
    return time.perf_counter() - began


def bare_chat(count: int) -> float:
    """Return the seconds of vLLM's own batch call on messages."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - only there where it is measured

    model = LLM(model=FOLDER, dtype="float32", **ARGUMENTS)
    asked, sampling = chats(count), SamplingParams(temperature=0.0, max_tokens=MOST_TOKENS)
    began = time.perf_counter()
    model.chat(asked, sampling, use_tqdm=False)
    return time.perf_counter() - began


def ours(count: int) -> float:
    """Return the seconds of the worker's run, from its first request to its last durable row."""
    target = JobTarget(
        engine="vllm-job",
        model="anven-nano",
        weights=FOLDER,
        digest=Weights.in_folder(Path(FOLDER)).digest(),
        licence="Apache-2.0",
        precision="float32",
        **ARGUMENTS,
    )
    requests = [
        CompletionRequest(str(at), [dict(turn) for turn in chat], {"temperature": 0, "max_tokens": MOST_TOKENS})
        for at, chat in enumerate(chats(count))
    ]
    told: list[Progress] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = DurableFolder(scratch, {})
        job = Job(key="benchmark", shards=[], settings=VllmSettings(target=target))
        written = read_job(folder, write_job(folder, job, requests))
        answers = work(folder, written, written.shards, Watch(report=told.append, say=lambda _: None))
    if set(answers["status"]) != {"answered"}:
        sys.exit(f"not all was answered: {answers['status'].value_counts()}")
    return told[-1].elapsed_s


def run_batch(count: int) -> float:
    """Return the seconds of `vllm run-batch` without those of its engine's start; it writes its file at the end."""
    import asyncio  # noqa: PLC0415 - as below

    from vllm.entrypoints.launchers import run_batch as command  # noqa: PLC0415 - only there where it is measured

    seconds: list[float] = []
    answer_file = command.run_batch

    async def timed(*arguments: object) -> None:
        began = time.perf_counter()
        await answer_file(*arguments)
        seconds.append(time.perf_counter() - began)

    command.run_batch = timed
    with tempfile.TemporaryDirectory() as scratch:
        asked, answers = Path(scratch) / "asked.jsonl", Path(scratch) / "answers.jsonl"
        asked.write_text(
            "".join(
                json.dumps({"custom_id": str(at), "method": "POST", "url": "/v1/chat/completions", "body": body(chat)})
                + "\n"
                for at, chat in enumerate(chats(count))
            )
        )
        sys.argv = ["vllm run-batch", "-i", str(asked), "-o", str(answers), *SERVED]
        asyncio.run(command.main(command.parse_args()))
        if len(answers.read_text().splitlines()) != count:
            sys.exit("vllm run-batch lost answers")
    return seconds[0]


def calls_one_by_one(count: int) -> float:
    """Return the seconds of HTTP calls to a server of vLLM, each after the answer to the last."""
    import httpx  # noqa: PLC0415 - only there where it is measured

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    with (
        subprocess.Popen([*command, *SERVED], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        try:
            wait_until_ready(client, server)
            asked = [body(chat) for chat in chats(count)]
            began = time.perf_counter()
            for each in asked:
                client.post("/v1/chat/completions", json=each).raise_for_status()
            return time.perf_counter() - began
        finally:
            server.terminate()


def wait_until_ready(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server has loaded its model."""
    import httpx  # noqa: PLC0415 - as above

    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if client.get("/health").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    sys.exit(f"the server was not ready within {READY_S:g} s")


def body(chat: list[dict[str, str]]) -> dict[str, Any]:
    """Return one question as the chat completions API takes it."""
    return {"model": "anven-nano", "messages": chat, "temperature": 0, "max_tokens": MOST_TOKENS}


SERVED: Final = [
    *("--model", FOLDER, "--served-model-name", "anven-nano", "--dtype", "float32", "--enforce-eager"),
    *("--max-model-len", str(ARGUMENTS["max_model_len"]), "--max-num-seqs", str(ARGUMENTS["max_num_seqs"])),
]
WAYS: Final[dict[str, Callable[[int], float]]] = {
    "generate": bare_generate,
    "chat": bare_chat,
    "ours": ours,
    "run-batch": run_batch,
    "HTTP calls one by one": calls_one_by_one,
}


if __name__ == "__main__":
    main()
