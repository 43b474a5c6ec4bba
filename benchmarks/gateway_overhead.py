"""What the gateway's plugin adds to a LiteLLM proxy: our gateway beside a bare proxy, in one run.

    python benchmarks/gateway_overhead.py [--json] [--quick]
    python benchmarks/gateway_overhead.py --rate 20 [--stream-rate 5]

Both proxies run at once in front of the same endpoint (a process of its own that answers at once) and are asked in
turn, so that whatever else the machine does meets both. Their processor time is shown too: other work on the machine
makes requests wait, and adds little to that. The bare proxy has one model group and no callback, and collects garbage
as Python does by itself, where ours does so in a thread (`gateway/collection.py`; before Python 3.12 the bare one may
crash for that, about once in 23 starts: run this again then). Ours deals each request to an arm, rewrites its prompt
for the target, reads the traffic file and writes the event log.

With `--rate` both get the same throughput in an open loop: requests come as a Poisson process, whether or not those
before them are answered, and an answer's time counts from when its request was due, waiting in line included.
Blocks of both take turns, with the same arrivals, as each is to have the machine for itself.

The intervals of the differences are percentile bootstraps over pairs of requests, or of blocks.

Goals: p50 at most 1 ms and p99 at most 3 ms above the bare proxy, at equal throughput.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx
import numpy as np

from anven_pipelines.domain.traffic import Route, Traffic
from anven_pipelines.domain.traffic_file import print_traffic
from anven_pipelines.gateway_run import ENVIRONMENT, GatewayPlan, running
from tests.scripted_endpoint import endpoint_process

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY: Final = "sk-benchmark-gateway-51c9"
ANSWER: Final = "the invoice is due within thirty days of its date, see the third section " * 4
QUANTILES: Final = (10, 50, 90, 99)
BLOCK: Final = 50
"""Requests of a block at a fixed rate: those that wait behind one another are resampled together."""
LEAST_BLOCKS: Final = 10
"""Fewer tell nothing of how they vary; p99 needs 500 requests, too, so that five lie beyond it."""
PROMPT: Final = "Q: " + "what does the invoice say about the term of payment? " * 20


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer requests; under a minute")
    parser.add_argument("--pairs", type=int, help="requests to each proxy, one by one (2,000; 300 with --quick)")
    parser.add_argument("--rate", type=float, help="only an open loop, with so many requests a second to each proxy")
    parser.add_argument("--stream-rate", type=float, help="the same for streams")
    options = parser.parse_args()
    pairs = options.pairs or (300 if options.quick else 2000)
    rates = {"plain": options.rate, "stream": options.stream_rate}
    is_open = any(rate is not None for rate in rates.values())
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        script = Path(folder) / "script.json"
        script.write_text(json.dumps({"*": [{"text": ANSWER}]}))
        backend = stack.enter_context(endpoint_process("--script", str(script)))
        bare = stack.enter_context(bare_proxy(backend, Path(folder) / "bare"))
        ours = stack.enter_context(our_gateway(backend, Path(folder) / "ours"))
        proxies = {"bare": bare, "ours": ours}
        figures = asyncio.run(measure_at(proxies, rates, requests=pairs)) if is_open else measure(proxies, pairs=pairs)
    if options.json:
        print(json.dumps(figures))
        return
    for kind in ("plain", "stream"):
        show(kind, figures, how=f"at {rates[kind]} requests a second" if is_open else "one by one, in turn")
    if not is_open:
        bare_per_s, ours_per_s = figures["bare_per_s"], figures["ours_per_s"]
        print(f"\nthroughput at 4 in flight (requests/s): bare {bare_per_s:.0f}, ours {ours_per_s:.0f}")


def show(kind: str, figures: dict[str, float], *, how: str) -> None:
    """Print the table of a kind of answer, where it was measured."""
    if f"{kind}_requests" not in figures:
        return
    print(f"\n{kind}, {figures[f'{kind}_requests']:.0f} requests to each, {how} (ms)")
    for name in (*(f"p{quantile}" for quantile in QUANTILES), "cpu"):
        bare_ms, ours_ms = figures[f"{kind}_bare_{name}_ms"], figures[f"{kind}_ours_{name}_ms"]
        print(f"  {name}   bare {bare_ms:7.2f}   ours {ours_ms:7.2f}   added {ours_ms - bare_ms:+6.2f}", end="")
        low, high = (figures.get(f"{kind}_added_{name}_{end}_ms") for end in ("low", "high"))
        is_asked = name in ("p50", "p99")
        told = "   too few for an interval" if is_asked else ""
        print(told if low is None or high is None else f"   95 % interval {low:+.2f} to {high:+.2f}")
    if f"{kind}_bare_per_s" in figures:
        bare_per_s, ours_per_s = figures[f"{kind}_bare_per_s"], figures[f"{kind}_ours_per_s"]
        print(f"  answered a second, with the last answer's wait: bare {bare_per_s:.1f}, ours {ours_per_s:.1f}")


class Proxy(NamedTuple):
    """A proxy that is measured."""

    url: str
    pid: int

    def cpu_ms(self) -> float:
        """Return the processor time it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1e3 / os.sysconf("SC_CLK_TCK")


def measure(proxies: dict[str, Proxy], *, pairs: int) -> dict[str, float]:
    """Ask both in turn; the order within a pair is drawn, as the second one meets a warmer machine."""
    draw = random.Random(7)  # noqa: S311 - an order
    figures: dict[str, float] = {"pairs": pairs}
    headers = {"Authorization": f"Bearer {KEY}"}
    with ExitStack() as stack:
        clients = {
            name: stack.enter_context(httpx.Client(base_url=each.url, headers=headers, timeout=60, trust_env=False))
            for name, each in proxies.items()
        }
        for kind, stream in (("plain", False), ("stream", True)):
            for number in range(50):
                for client in clients.values():
                    ask(client, number, stream=stream)
            before = {name: each.cpu_ms() for name, each in proxies.items()}
            times: dict[str, list[float]] = {name: [] for name in clients}
            for number in range(pairs):
                for name in draw.sample(list(clients), 2):
                    times[name].append(ask(clients[name], number, stream=stream))
            for name, each in proxies.items():
                figures[f"{kind}_{name}_cpu_ms"] = (each.cpu_ms() - before[name]) / pairs
            figures |= summary(kind, np.asarray(times["bare"])[:, None], np.asarray(times["ours"])[:, None])
        rounds: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(6):
            for name in sorted(clients, reverse=bool(number % 2)):
                rounds[name].append(throughput(clients[name], requests=max(40, pairs // 6)))
        figures |= {f"{name}_per_s": float(np.median(each)) for name, each in rounds.items()}
    return figures


async def measure_at(proxies: dict[str, Proxy], rates: dict[str, float | None], *, requests: int) -> dict[str, float]:
    """Ask both at the same rates, in blocks that take turns; requests to each are rounded up to whole blocks."""
    figures: dict[str, float] = {}
    headers = {"Authorization": f"Bearer {KEY}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(
                httpx.AsyncClient(base_url=each.url, headers=headers, timeout=60, trust_env=False, limits=limits)
            )
            for name, each in proxies.items()
        }
        for kind, rate in rates.items():
            if rate is not None:
                blocks = -(-requests // BLOCK)
                figures |= await _measure_kind_at(kind, proxies, clients, rate=rate, blocks=blocks)
    return figures


async def _measure_kind_at(
    kind: str, proxies: dict[str, Proxy], clients: dict[str, httpx.AsyncClient], *, rate: float, blocks: int
) -> dict[str, float]:
    rng = np.random.default_rng(7)
    times: dict[str, list[list[float]]] = {name: [] for name in clients}
    cpu_ms, took_s = dict.fromkeys(clients, 0.0), dict.fromkeys(clients, 0.0)
    for number in range(-1, blocks):  # the first block warms up
        due_s = np.cumsum(rng.exponential(1 / rate, BLOCK))
        for name in rng.permutation(list(clients)):
            cpu_before, start = proxies[name].cpu_ms(), time.perf_counter()
            found = await ask_when_due(clients[name], due_s, first=BLOCK * (number + 1), stream=kind == "stream")
            if number >= 0:
                times[name].append(found)
                took_s[name] += time.perf_counter() - start
                cpu_ms[name] += proxies[name].cpu_ms() - cpu_before
    figures = {f"{kind}_rate_per_s": rate, **summary(kind, np.asarray(times["bare"]), np.asarray(times["ours"]))}
    for name in clients:
        figures[f"{kind}_{name}_cpu_ms"] = cpu_ms[name] / (blocks * BLOCK)
        figures[f"{kind}_{name}_per_s"] = blocks * BLOCK / took_s[name]
    return figures


async def ask_when_due(client: httpx.AsyncClient, due_s: np.ndarray, *, first: int, stream: bool) -> list[float]:
    """Ask once at each time, in seconds from now; return the milliseconds from then to each whole answer."""
    start = time.perf_counter()

    async def one(number: int, due: float) -> float:
        await asyncio.sleep(start + due - time.perf_counter())
        (await client.post("/v1/chat/completions", json=body_of(number, stream=stream))).raise_for_status()
        return (time.perf_counter() - start - due) * 1e3

    return await asyncio.gather(*(one(number, float(due)) for number, due in enumerate(due_s, first)))


def summary(kind: str, bare: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Return quantiles of both and their differences, those of p50 and p99 with an interval where there are enough.

    Args:
        kind: Begins the figures' names.
        bare: Milliseconds, shape (blocks, requests of a block).
        ours: The same; blocks of one row are pairs.
    """
    found: dict[str, float] = {f"{kind}_requests": bare.size}
    for quantile in QUANTILES:
        pair = float(np.percentile(bare, quantile)), float(np.percentile(ours, quantile))
        found[f"{kind}_bare_p{quantile}_ms"], found[f"{kind}_ours_p{quantile}_ms"] = pair
        found[f"{kind}_added_p{quantile}_ms"] = pair[1] - pair[0]
    rng = np.random.default_rng(7)
    for quantile, least in (50, 10), (99, 500):
        if len(bare) < LEAST_BLOCKS or bare.size < least:
            continue
        drawn = rng.integers(0, len(bare), (500, len(bare)))  # pairs stay together
        added = np.percentile(ours[drawn], quantile, axis=(1, 2)) - np.percentile(bare[drawn], quantile, axis=(1, 2))
        low, high = np.percentile(added, [2.5, 97.5])
        found[f"{kind}_added_p{quantile}_low_ms"], found[f"{kind}_added_p{quantile}_high_ms"] = float(low), float(high)
    return found


def ask(client: httpx.Client, number: int, *, stream: bool) -> float:
    """Ask once; return the milliseconds to the whole answer."""
    body = body_of(number, stream=stream)
    start = time.perf_counter()
    client.post("/v1/chat/completions", json=body).raise_for_status()
    return (time.perf_counter() - start) * 1e3


def body_of(number: int, *, stream: bool) -> dict[str, Any]:
    """Return a request of a user of its own."""
    return {
        "model": "support",
        "user": f"user {number}",
        "stream": stream,
        "messages": [{"role": "user", "content": f"{PROMPT} {number}"}],
    }


def throughput(client: httpx.Client, *, requests: int) -> float:
    """Return requests per second with four in flight."""
    start = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: ask(client, number, stream=False), range(requests)))
    return requests / (time.perf_counter() - start)


@contextmanager
def bare_proxy(backend: str, folder: Path) -> Iterator[Proxy]:
    """Run a proxy with one model group and no callback."""
    folder.mkdir()
    rates = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    params = {"model": "openai/target-model", "api_base": backend, "api_key": "none", **rates}
    config = {
        "model_list": [{"model_name": "support", "litellm_params": params}],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "litellm_settings": {"num_retries": 0},
        "general_settings": {"master_key": KEY},
    }
    (folder / "proxy.yaml").write_text(json.dumps(config))
    port = _free_port()
    program = str(Path(sys.executable).parent / "litellm")
    as_litellm_starts = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHON_GC_THRESHOLD"}
    arguments = ["--config", str(folder / "proxy.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *arguments],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, **as_litellm_starts},
            start_new_session=True,  # as ours: Linux shares out the processor by session
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process)
        yield Proxy(url, process.pid)
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def our_gateway(backend: str, folder: Path) -> Iterator[Proxy]:
    """Run our gateway with half of the users on the target."""
    folder.mkdir()
    upstream = {"url": backend}
    price = {"input_usd_per_million": 1.0, "output_usd_per_million": 2.0, "source": "made up"}
    rewrite = {"user": r"(?s)Q: (?P<question>.*)", "messages": [{"role": "user", "content": "A: {question}"}]}
    migration: dict[str, Any] = {
        "workload": "support",
        "legacy": {"model": "legacy-model", "logs": "none.jsonl", "price": price},
        "target": {"engine": "endpoint", "model": "target-model", "url": backend, "price": price},
        "grading": [{"kind": "exact"}],
        "prompt": {"rewrites": [rewrite]},
        "gateway": {"legacy": {"model": "openai/legacy-model", **upstream}},
    }
    (folder / "support.yaml").write_text(json.dumps(migration))
    route = Route("support", attempt=1, generation=1, stage=0, share=0.5)
    (folder / "traffic.json").write_text(print_traffic(Traffic({"support": route})))
    plan = GatewayPlan([folder / "support.yaml"], folder / "run", folder / "traffic.json", folder / "events")
    with running(plan, {**os.environ, "ANVEN_GATEWAY_KEY": KEY}) as started:
        yield Proxy(started.url, started.process.pid)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    message = f"the bare proxy ended by itself with {process.returncode}"
    raise RuntimeError(message)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
