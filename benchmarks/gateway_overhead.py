"""What the gateway's plugin adds to a LiteLLM proxy: our gateway beside a bare proxy, in one run.

    python benchmarks/gateway_overhead.py [--json] [--quick]

Both proxies run at once in front of the same endpoint (a process of its own that answers at once) and are asked in
turn, so that whatever else the machine does meets both. Their processor time is shown too: other work on the machine
makes requests wait, and adds little to that. The bare proxy has one model group and no callback, and collects garbage
as Python does by itself, where ours does so in a thread (`gateway/collection.py`; before Python 3.12 the bare one may
crash for that, about once in 23 starts: run this again then). Ours deals each request to an arm, rewrites its prompt
for the target, reads the traffic file and writes the event log.

Goals: p50 at most 1 ms and p99 at most 3 ms above the bare proxy, at equal throughput.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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
PROMPT: Final = "Q: " + "what does the invoice say about the term of payment? " * 20


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer requests; under a minute")
    parser.add_argument("--pairs", type=int, help="requests to each proxy, one by one (2,000; 300 with --quick)")
    options = parser.parse_args()
    pairs = options.pairs or (300 if options.quick else 2000)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        script = Path(folder) / "script.json"
        script.write_text(json.dumps({"*": [{"text": ANSWER}]}))
        backend = stack.enter_context(endpoint_process("--script", str(script)))
        bare = stack.enter_context(bare_proxy(backend, Path(folder) / "bare"))
        ours = stack.enter_context(our_gateway(backend, Path(folder) / "ours"))
        figures = measure({"bare": bare, "ours": ours}, pairs=pairs)
    if options.json:
        print(json.dumps(figures))
        return
    for kind in ("plain", "stream"):
        print(f"\n{kind}, {pairs} requests to each, one by one, in turn (ms)")
        for quantile in ("p10", "p50", "p90", "p99"):
            bare_ms, ours_ms = figures[f"{kind}_bare_{quantile}_ms"], figures[f"{kind}_ours_{quantile}_ms"]
            print(f"  {quantile}   bare {bare_ms:7.2f}   ours {ours_ms:7.2f}   added {ours_ms - bare_ms:+6.2f}")
        cpu_bare, cpu_ours = figures[f"{kind}_bare_cpu_ms"], figures[f"{kind}_ours_cpu_ms"]
        print(f"  CPU   bare {cpu_bare:7.2f}   ours {cpu_ours:7.2f}   added {cpu_ours - cpu_bare:+6.2f}")
        low, high = figures[f"{kind}_added_p50_low_ms"], figures[f"{kind}_added_p50_high_ms"]
        print(f"  added to the median: 95 % interval {low:+.2f} to {high:+.2f}")
    print(
        f"\nthroughput at 4 in flight (requests/s): bare {figures['bare_per_s']:.0f}, ours {figures['ours_per_s']:.0f}"
    )


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
            figures |= summary(kind, np.asarray(times["bare"]), np.asarray(times["ours"]))
        rounds: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(6):
            for name in sorted(clients, reverse=bool(number % 2)):
                rounds[name].append(throughput(clients[name], requests=max(40, pairs // 6)))
        figures |= {f"{name}_per_s": float(np.median(each)) for name, each in rounds.items()}
    return figures


def summary(kind: str, bare: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Return quantiles of both, their differences, and an interval for the difference of the medians."""
    found: dict[str, float] = {}
    for quantile in (10, 50, 90, 99):
        pair = float(np.percentile(bare, quantile)), float(np.percentile(ours, quantile))
        found[f"{kind}_bare_p{quantile}_ms"], found[f"{kind}_ours_p{quantile}_ms"] = pair
        found[f"{kind}_added_p{quantile}_ms"] = pair[1] - pair[0]
    rng = np.random.default_rng(7)
    for quantile in (50, 99):
        drawn = rng.integers(0, len(bare), (500, len(bare)))  # pairs stay together
        added = np.percentile(ours[drawn], quantile, axis=1) - np.percentile(bare[drawn], quantile, axis=1)
        low, high = np.percentile(added, [2.5, 97.5])
        found[f"{kind}_added_p{quantile}_low_ms"], found[f"{kind}_added_p{quantile}_high_ms"] = float(low), float(high)
    return found


def ask(client: httpx.Client, number: int, *, stream: bool) -> float:
    """Ask once; return the milliseconds to the whole answer."""
    body = {
        "model": "support",
        "user": f"user {number}",
        "stream": stream,
        "messages": [{"role": "user", "content": f"{PROMPT} {number}"}],
    }
    start = time.perf_counter()
    client.post("/v1/chat/completions", json=body).raise_for_status()
    return (time.perf_counter() - start) * 1e3


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
