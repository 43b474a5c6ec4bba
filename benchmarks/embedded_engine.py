"""How fast a nano model answers: the embedded engine alone, and through its server.

    python benchmarks/embedded_engine.py [--quick] [--json]

The same golden prompts go to the engine in this process (its floor: no HTTP), to the engine with int8 weights, and to
a server process over loopback, one at a time and eight at a time, in turns, so that all meet the same load on the
machine. Answers are greedy streams. A time to first token is the engine's own where there is no server, else from the
first byte sent to the first token read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx
import numpy as np

from anven_pipelines.nano.models import MODELS, model_folder
from anven_pipelines.nano.prompts import anven_messages, legacy_messages
from anven_pipelines.nano.serving import served
from anven_pipelines.nano.tasks import MAX_ANSWER_TOKENS, generate
from anven_pipelines.worker.embedded import EmbeddedEngine
from anven_pipelines.worker.engine import EngineRequest, Sampling, answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Messages = list[dict[str, str]]
    Ask = Callable[[Messages], Awaitable[float]]  # returns the milliseconds to the first token

STYLES: Final = {"legacy-nano": legacy_messages, "anven-nano": anven_messages}
CONCURRENCIES: Final = (1, 8)


class Timing(NamedTuple):
    """One round: seconds for all prompts, and milliseconds to the first token of each."""

    seconds: float
    ttft_ms: list[float]


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--quick", action="store_true", help="60 prompts and 3 rounds instead of 200 and 7")
    options.add_argument("--model", choices=MODELS, default="anven-nano")
    chosen = options.parse_args()
    prompts = [STYLES[chosen.model](item) for item in generate("golden", 60 if chosen.quick else 200, seed=1)]
    figures = asyncio.run(measure(chosen.model, prompts, rounds=3 if chosen.quick else 7))
    if chosen.json:
        print(json.dumps(figures))
        return
    print(f"{'':<14}{'at once':>8}{'requests/s':>12}{'TTFT p50':>10}{'p95 ms':>9}")
    for name in ("engine", "engine_int8", "server"):
        for concurrency in CONCURRENCIES:
            rate, p50, p95 = (figures[f"{name}_{concurrency}_{what}"] for what in ("rps", "ttft_p50_ms", "ttft_p95_ms"))
            print(f"{name:<14}{concurrency:>8}{rate:>12.0f}{p50:>10.1f}{p95:>9.1f}")
    shares = ", ".join(f"{figures[f'server_to_engine_{c}']:.2f} at {c}" for c in CONCURRENCIES)
    print(f"the server keeps this share of the engine's rate: {shares}")


async def measure(model: str, prompts: Sequence[Messages], *, rounds: int) -> dict[str, float]:
    """Return the figures: medians over rounds of rates, quantiles over all requests of times to first token."""
    engines = {
        "engine": EmbeddedEngine(model_folder(model), name=model),
        "engine_int8": EmbeddedEngine(model_folder(model), name=model, precision="int8"),
    }
    timings: dict[tuple[str, int], list[Timing]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="anven-") as folder,
        served(model, log=Path(folder) / "server.log") as url,
    ):
        asks: dict[str, Ask] = {name: engine_ask(engine) for name, engine in engines.items()}
        asks["server"] = server_ask(httpx.URL(url).port or 80, model)
        for round_number in range(rounds + 1):
            for name, ask in asks.items():
                for concurrency in CONCURRENCIES:
                    timing = await run_round(ask, prompts, concurrency)
                    if round_number:  # the first one warms up
                        timings.setdefault((name, concurrency), []).append(timing)
    for engine in engines.values():
        await engine.close()
    return figures_of(timings, len(prompts))


def figures_of(timings: dict[tuple[str, int], list[Timing]], prompts: int) -> dict[str, float]:
    """Name and round the figures."""
    figures: dict[str, float] = {}
    for (name, concurrency), taken in timings.items():
        firsts = np.concatenate([timing.ttft_ms for timing in taken])
        figures[f"{name}_{concurrency}_rps"] = round(prompts / float(np.median([one.seconds for one in taken])), 1)
        for quantile in (50, 95):
            figures[f"{name}_{concurrency}_ttft_p{quantile}_ms"] = round(float(np.percentile(firsts, quantile)), 2)
    for name in ("engine_int8", "server"):
        for concurrency in CONCURRENCIES:
            ratio = figures[f"{name}_{concurrency}_rps"] / figures[f"engine_{concurrency}_rps"]
            figures[f"{name}_to_engine_{concurrency}"] = round(ratio, 2)
    return figures


async def run_round(ask: Ask, prompts: Sequence[Messages], concurrency: int) -> Timing:
    """Ask all prompts, so many at a time."""
    left = iter(prompts)
    firsts: list[float] = []

    async def work() -> None:
        for prompt in left:
            firsts.append(await ask(prompt))  # noqa: PERF401 - the workers share the iterator

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return Timing(time.perf_counter() - begun, firsts)


def engine_ask(engine: EmbeddedEngine) -> Ask:
    """Ask an engine in this process."""

    async def ask(prompt: Messages) -> float:
        request = EngineRequest(messages=tuple(prompt), max_tokens=MAX_ANSWER_TOKENS, sampling=Sampling(temperature=0))
        return (await answer(engine, request)).ttft_ms or 0.0

    return ask


def server_ask(port: int, model: str) -> Ask:
    """Ask a server over kept connections, by hand: httpx alone takes more time than the model."""
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(prompt: Messages) -> float:
        body = {"model": model, "messages": prompt, "max_tokens": MAX_ANSWER_TOKENS, "temperature": 0, "stream": True}
        content = json.dumps(body).encode()
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        begun = time.perf_counter()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        status = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in status:
            message = f"the server answered {status.decode()!r}"
            raise RuntimeError(message)
        await reader.readuntil(b"data: ")
        first_ms = (time.perf_counter() - begun) * 1e3
        await reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        idle.append((reader, writer))
        return first_ms

    return ask


if __name__ == "__main__":
    main()
