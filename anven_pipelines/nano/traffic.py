r"""Drives a server with the demo's traffic and logs each call as a gateway would.

    python -m anven_pipelines.nano.traffic --url http://127.0.0.1:8000/v1 --model legacy-nano \
        --out calls.jsonl --format litellm --requests 600 --seconds 60

Calls are sent at their arrival times whether or not earlier ones are answered (open loop), as far as the bound on
calls in flight lets them. Latency, TTFT and failures are measured here, tokens are the server's count.

Exits with 0 when calls were answered, 2 for bad input, 3 when it could not be done (every call failed, the disk is
full), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

import httpx
import numpy as np

from anven_pipelines.domain.arrivals import Rhythm, arrival_times, fit
from anven_pipelines.domain.errors import AnvenError, InvalidInput
from anven_pipelines.nano.arrivals import read_trace
from anven_pipelines.nano.demand import TrafficPlan, plan_traffic
from anven_pipelines.nano.exchange import Clock, ask
from anven_pipelines.nano.gateway_logs import GatewayFormat, GatewayLog
from anven_pipelines.nano.tasks import Split

if TYPE_CHECKING:
    from collections.abc import Callable

    from anven_pipelines.nano.demand import PlannedCall
    from anven_pipelines.nano.exchange import Exchange

BAD_INPUT: Final = 2
COULD_NOT: Final = 3
INTERRUPTED: Final = 130


class Pace(NamedTuple):
    """How fast a plan is driven.

    Attributes:
        speed: The plan's seconds that pass in one.
        most_in_flight: Calls at once; a call that finds as many waits, which `TrafficSummary.late_s` shows.
        timeout_s: Longest wait for a connection, and between two parts of a response.
    """

    speed: float = 1.0
    most_in_flight: int = 64
    timeout_s: float = 60.0


class TrafficSummary(NamedTuple):
    """What was sent.

    Attributes:
        sent: Calls with an outcome, each of which was written.
        failed: Those among them that failed.
        seconds: From the first to the last moment of the drive.
        late_s: Longest that a call was sent after its time; more than a little is a load that was not open loop.
        ttft_p95_ms: 95th percentile of the milliseconds to the first token; None where none came.
    """

    sent: int
    failed: int
    seconds: float
    late_s: float
    ttft_p95_ms: float | None


async def drive(
    plan: TrafficPlan,
    *,
    url: str,
    model: str,
    write: Callable[[Exchange], None],
    progress: Callable[[int, int], None] | None = None,
    pace: Pace | None = None,
    api_key: str | None = None,
) -> TrafficSummary:
    """Send a plan's calls and write each as soon as its outcome is known.

    When it is cancelled, calls in flight are given up and what was written stays.

    Args:
        plan: What to send when.
        url: Base URL of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
        model: Name that the server knows the model by.
        write: Gets each exchange, in the order of their ends.
        progress: Gets the number of calls that have ended, and of all.
        pace: How fast.
        api_key: Bearer token, for a gateway that wants one.

    Raises:
        InvalidInput: the URL is none, or the pace cannot be kept.
    """
    pace = pace or Pace()
    _require_sense(url, pace)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=pace.most_in_flight, max_keepalive_connections=pace.most_in_flight)
    # The environment's proxies have no business with a server that is named.
    client = httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=pace.timeout_s, trust_env=False)
    clock, places = Clock(), asyncio.Semaphore(pace.most_in_flight)
    failed = ended = 0
    late_s = start = 0.0
    ttft_ms: list[float] = []

    async def send(call: PlannedCall) -> None:
        nonlocal failed, ended, late_s
        due = start + call.at_s / pace.speed
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        async with places:
            late_s = max(late_s, time.monotonic() - due)
            exchange = await ask(client, call, model=model, clock=clock)
        write(exchange)
        if exchange.first_token_at is not None:
            ttft_ms.append((exchange.first_token_at - exchange.started_at) * 1e3)
        ended, failed = ended + 1, failed + (exchange.error is not None)
        if progress:
            progress(ended, len(plan.calls))

    try:
        async with client, asyncio.TaskGroup() as group:
            await _warm_up(client)
            start = time.monotonic()
            for call in plan.calls:
                group.create_task(send(call))
    except ExceptionGroup as errors:  # a call's failure raises nothing: this is `write` or `progress`
        raise errors.exceptions[0] from errors
    ttft_p95_ms = float(np.percentile(ttft_ms, 95)) if ttft_ms else None
    return TrafficSummary(ended, failed, time.monotonic() - start, late_s, ttft_p95_ms)


async def _warm_up(client: httpx.AsyncClient) -> None:
    """Let the client load what its first request loads (0.4 s), which is no latency of the server."""
    with suppress(httpx.HTTPError):  # a server that is down fails the calls, one by one
        await client.get("models")


def _require_sense(url: str, pace: Pace) -> None:
    if not _is_http(url):
        message = f"the server's URL is {url!r}; a base URL such as http://127.0.0.1:8000/v1 is needed"
        raise InvalidInput(message)
    if not (0 < pace.speed < math.inf and pace.most_in_flight >= 1 and 0 < pace.timeout_s < math.inf):
        message = (
            f"speed {pace.speed:g}, {pace.most_in_flight} calls in flight and a timeout of {pace.timeout_s:g} s cannot "
            "be kept; a finite speed and timeout above 0 and at least one call in flight are needed"
        )
        raise InvalidInput(message)


def _is_http(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in {"http", "https"} and bool(parsed.host)


def main(arguments: list[str] | None = None) -> int:
    """Drive a server from the command line; return the exit status, as the module's first lines list it."""
    options = _parser().parse_args(arguments)
    log = GatewayLog(options.out, options.format)
    ended = total = 0

    def progress(done: int, of: int) -> None:
        nonlocal ended, total
        ended, total = done, of
        if sys.stderr.isatty() or done == of:
            print(f"\r{done} of {of} calls", end="\n" if done == of else "", file=sys.stderr, flush=True)  # noqa: T201 - a program's progress

    try:
        api_key = _api_key(options.api_key_env)
        plan = plan_traffic(_arrivals(options), split=options.split, seed=options.seed)
        with log:
            driven = drive(
                plan,
                url=options.url,
                model=options.model,
                write=log.write,
                progress=progress,
                pace=Pace(options.speed, options.in_flight, options.timeout),
                api_key=api_key,
            )
            summary = asyncio.run(driven)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {ended} calls of {total or 'the plan'} are in {options.out}", file=sys.stderr)  # noqa: T201 - a program's last word
        return INTERRUPTED
    except (AnvenError, OSError) as error:
        print(f"traffic: {error}", file=sys.stderr)  # noqa: T201 - a program's error
        return BAD_INPUT if isinstance(error, InvalidInput) else COULD_NOT
    print(  # noqa: T201 - a program's result
        f"{summary.sent} calls in {summary.seconds:.1f} s, {summary.failed} failed, at most {summary.late_s:.2f} s "
        f"late: {options.out}"
    )
    return COULD_NOT if summary.failed == summary.sent else 0


def _api_key(variable: str | None) -> str | None:
    """Return the key in an environment variable; None where no variable is named.

    Raises:
        InvalidInput: the variable is empty.
    """
    if variable is None:
        return None
    if key := os.environ.get(variable):
        return key
    message = f"the environment variable {variable} is empty; the key that the server asks for is needed in it"
    raise InvalidInput(message)


def _arrivals(options: argparse.Namespace) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if options.trace:
        return fit(read_trace(options.trace), count=options.requests, seconds=options.seconds)
    rng = np.random.default_rng(options.seed)
    count = 300 if options.requests is None else options.requests
    return arrival_times(count, seconds=options.seconds, rhythm=Rhythm(), rng=rng)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anven_pipelines.nano.traffic",
        description="Sends an OpenAI-compatible server the traffic of a support desk, and logs it as a gateway does.",
        epilog="Exits with 0 when calls were answered, 2 for bad input, 3 when it could not be done, 130 after Ctrl-C.",
    )
    parser.add_argument("--url", required=True, help="base URL, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--model", required=True, help="name that the server knows the model by")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable with the bearer key to send")
    parser.add_argument("--out", required=True, type=Path, help="log file; calls are appended")
    parser.add_argument("--format", choices=get_args(GatewayFormat), default="litellm", help="default: litellm")
    parser.add_argument("--requests", type=int, help="number of calls; default: 300, of a trace all")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the plan; default: 60")
    parser.add_argument("--trace", type=Path, help="CSV of arrivals to replay: timestamp or arrived_at, s or ISO 8601")
    parser.add_argument("--speed", type=float, default=1.0, help="seconds of the plan per second; default: 1")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals, users and questions; default: 0")
    parser.add_argument("--split", choices=get_args(Split), default="golden", help="of the questions; default: golden")
    parser.add_argument("--in-flight", type=int, default=64, help="most calls at once; default: 64")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for a response; default: 60")
    return parser


if __name__ == "__main__":
    sys.exit(main())
