"""Our batch worker beside bare vLLM, `vllm run-batch` and HTTP calls one by one: same prompts, engine, settings.

    ANVEN_WORKER_PYTHON=$(.ci/vllm_env) python benchmarks/batch_inference.py [--rounds N] [--quick] [--json]

All answer the same greedy questions with the shipped anven-nano in float32. Ours and the bare engine stand loaded in
one process and take turns, each round with other prompts, so that neither finds them cached and what the machine does
meanwhile hits both. Time is from the first request to the last answer, which for ours is on the disk; loading and
freeing the model is left out. Processor time is that of the process and of the engine's core; it grows less than the
clock's with what else the machine does.

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
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.inference import CompletionRequest
from anven_pipelines.nano.models import model_folder
from anven_pipelines.nano.prompts import anven_messages
from anven_pipelines.nano.tasks import generate
from anven_pipelines.resources.durable_folder import DurableFolder
from anven_pipelines.spec_target import JobTarget
from anven_pipelines.worker import engines
from anven_pipelines.worker.generate import Watch, read_job, write_job
from anven_pipelines.worker.generate import generate as work_off
from anven_pipelines.worker.job import Job, VllmSettings
from anven_pipelines.worker.weight_sources import ModelCaches
from anven_pipelines.worker.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx

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
WARM_UP: Final = 64  # prompts that each way answers before its first round
BASE: Final = "generate"
READY_S: Final = 300.0


class Spent(NamedTuple):
    """Seconds of the clock and of the processors."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Measure and print, or be one of the processes that are measured."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--prompts", type=int, default=2_500, help="of each round (default 2,500)")
    options.add_argument("--rounds", type=int, default=5, help="how many (default 5)")
    options.add_argument("--quick", action="store_true", help="one round of 300 prompts, without run-batch and HTTP")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--measure", choices=list(MEASURED), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.measure:
        print(json.dumps({"spent": MEASURED[chosen.measure](chosen.prompts, chosen.rounds)}))
        return
    python = os.environ.get("ANVEN_WORKER_PYTHON") or sys.exit("set ANVEN_WORKER_PYTHON to the python of .ci/vllm_env")
    prompts, rounds = (300, 1) if chosen.quick else (chosen.prompts, chosen.rounds)
    spent = measured(python, "in turns", prompts, rounds)
    ways = {way: figures(found, spent[BASE], prompts) for way, found in spent.items()}
    if not chosen.quick:
        # In processes of their own, after the turns: what the machine does then hits them alone.
        for way, asked in (("run-batch", prompts), ("HTTP, one by one", prompts // 10)):
            [found] = measured(python, way, asked, 1)[way]
            ways[way] = {"prompts_per_s": asked / found[0]}
    if chosen.json:
        print(json.dumps({"prompts": prompts, "rounds": rounds, "ways": ways}))
        return
    print(f"{prompts:,} prompts, {rounds} rounds; of `{BASE}` in the same round: median (lowest to highest)\n")
    print("| way | prompts/s | speed | processor time |\n|---|---:|---:|---:|")
    for way, told in ways.items():
        shares = " | ".join(
            f"{told[name]:.3f} ({told[f'{name}_least']:.3f} to {told[f'{name}_most']:.3f})" if name in told else ""
            for name in ("speed", "cpu")
        )
        print(f"| {way} | {told['prompts_per_s']:.1f} | {shares} |")


def figures(found: Sequence[Sequence[float]], base: Sequence[Sequence[float]], prompts: int) -> dict[str, float]:
    """Return a way's speed, and its speed and processor time as shares of the base's in the same round."""
    pairs = [(Spent(*each), Spent(*other)) for each, other in zip(found, base, strict=True)]
    speeds = [other.wall_s / each.wall_s for each, other in pairs]
    cpus = [each.cpu_s / other.cpu_s for each, other in pairs]
    return {
        "prompts_per_s": statistics.median(prompts / each.wall_s for each, _ in pairs),
        "speed": statistics.median(speeds),
        "speed_least": min(speeds),
        "speed_most": max(speeds),
        "cpu": statistics.median(cpus),
        "cpu_least": min(cpus),
        "cpu_most": max(cpus),
    }


def measured(python: str, what: str, prompts: int, rounds: int) -> dict[str, list[list[float]]]:
    """Return what each way spent in each round, in a process of its own."""
    command = [python, __file__, "--prompts", str(prompts), "--rounds", str(rounds), "--measure", what]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    sys.stderr.writelines(line + "\n" for line in done.stderr.splitlines() if line.startswith("round "))
    [line] = [line for line in done.stdout.splitlines() if line.startswith('{"spent"')]  # vLLM logs there too
    found: dict[str, list[list[float]]] = json.loads(line)["spent"]
    return found


def chats(count: int, *, number: int = 0) -> list[list[dict[str, str]]]:
    """Return a round's questions of the golden split in the model's own style."""
    return [anven_messages(item) for item in generate("golden", count, seed=SEED + number)]


def in_turns(prompts: int, rounds: int) -> dict[str, list[Spent]]:
    """Return what ours and the bare engine spent; the order turns from round to round."""
    ways = {**bare_ways(), "ours": our_way()}
    spent: dict[str, list[Spent]] = {way: [] for way in ways}
    for answer in ways.values():
        answer(chats(WARM_UP, number=-1))
    for number in range(rounds):
        asked = chats(prompts, number=number)
        for at in range(len(ways)):
            way = list(ways)[(number + at) % len(ways)]
            spent[way].append(ways[way](asked))
        print(f"round {number}: { ({way: found[-1] for way, found in spent.items()}) }", file=sys.stderr, flush=True)
    return spent


def bare_ways() -> dict[str, Callable[[list[list[dict[str, str]]]], Spent]]:
    """Load vLLM as its own batch interface does."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - only there where it is measured

    model = LLM(model=FOLDER, dtype="float32", **ARGUMENTS)
    core = model.llm_engine.engine_core
    sampling = SamplingParams(temperature=0.0, max_tokens=MOST_TOKENS)
    write = model.get_tokenizer().apply_chat_template

    def bare_generate(asked: list[list[dict[str, str]]]) -> Spent:
        prompts = [write(chat, add_generation_prompt=True, tokenize=False) for chat in asked]
        took = stopwatch(core)
        model.generate(prompts, sampling, use_tqdm=False, tokenization_kwargs={"add_special_tokens": False})
        return took()

    def bare_chat(asked: list[list[dict[str, str]]]) -> Spent:
        took = stopwatch(core)
        model.chat(asked, sampling, use_tqdm=False)
        return took()

    return {BASE: bare_generate, "chat": bare_chat}


def our_way() -> Callable[[list[list[dict[str, str]]]], Spent]:
    """Load the worker's engine, which then outlives each of its runs."""
    from anven_pipelines.worker.vllm_engine import VllmEngine  # noqa: PLC0415 - only there where it is measured

    target = JobTarget(
        engine="vllm-job",
        model="anven-nano",
        weights=FOLDER,
        digest=Weights.in_folder(Path(FOLDER)).digest(),
        licence="Apache-2.0",
        precision="float32",
        **ARGUMENTS,
    )
    engine = VllmEngine(target, folder=Path(FOLDER), digest=target.digest)

    async def stays_open() -> None:
        """Stand in for `close`."""

    engine.close = stays_open  # type: ignore[method-assign]
    engines.load = lambda *_: engine

    def work(asked: list[list[dict[str, str]]]) -> Spent:
        requests = [
            CompletionRequest(str(at), [dict(turn) for turn in chat], {"temperature": 0, "max_tokens": MOST_TOKENS})
            for at, chat in enumerate(asked)
        ]
        with tempfile.TemporaryDirectory() as scratch:
            folder = DurableFolder(scratch, {})
            job = Job(key="benchmark", shards=[], settings=VllmSettings(target=target))
            uri = write_job(folder, job, requests)
            took = stopwatch(engine._engine.engine_core)  # noqa: SLF001 - its process is what is measured
            written = read_job(folder, uri)
            watch = Watch(report=lambda _: None, say=lambda _: None)
            answers = work_off(folder, written, written.shards, watch, caches=ModelCaches.of(os.environ))
            spent = took()
        if set(answers["status"]) != {"answered"}:
            sys.exit(f"not all was answered: {answers['status'].value_counts()}")
        return spent

    return work


def stopwatch(core: Any) -> Callable[[], Spent]:  # noqa: ANN401 - vLLM's client of an engine's core
    """Start to count; the result tells what was spent since."""
    import psutil  # type: ignore[import-untyped]  # noqa: PLC0415 - vLLM's environment has it

    [process] = core.resources.engine_manager.processes
    root = psutil.Process(process.pid)

    def cpu_s() -> float:
        times = [each.cpu_times() for each in (root, *root.children(recursive=True))]  # its worker is a child of it
        core_s: float = sum(each.user + each.system for each in times)
        return time.process_time() + core_s

    wall, cpu = time.perf_counter(), cpu_s()
    return lambda: Spent(time.perf_counter() - wall, cpu_s() - cpu)


def run_batch(count: int, _: int) -> dict[str, list[Spent]]:
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
    return {"run-batch": [Spent(seconds[0], 0.0)]}


def calls_one_by_one(count: int, _: int) -> dict[str, list[Spent]]:
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
            return {"HTTP, one by one": [Spent(time.perf_counter() - began, 0.0)]}
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
MEASURED: Final[dict[str, Callable[[int, int], dict[str, list[Spent]]]]] = {
    "in turns": in_turns,
    "run-batch": run_batch,
    "HTTP, one by one": calls_one_by_one,
}


if __name__ == "__main__":
    main()
