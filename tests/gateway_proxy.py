"""A running gateway in front of two scripted endpoints, and what a test asks of it."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx

from anven_pipelines.domain.traffic import Route, Traffic
from anven_pipelines.domain.traffic_file import print_traffic
from anven_pipelines.gateway_run import LOOPBACK, GatewayPlan, Started, running
from anven_pipelines.ingest.gateway_events import read_batch
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import polars as pl

KEY: Final = "sk-scripted-gateway-7b1f"
WITHIN_S: Final = 30.0  # a bound against hanging; what is promised is asserted on measured times

MIGRATION: Final[dict[str, Any]] = {
    "legacy": {
        "model": "legacy-model",
        "logs": "none.jsonl",
        "price": {"input_usd_per_million": 10, "output_usd_per_million": 30, "source": "test"},
    },
    "grading": [{"kind": "exact"}],
    "contract": {"json_object": True, "required": ["answer"]},
    "prompt": {
        "rewrites": [
            {"user": r"(?s)Q: (?P<question>.*)", "messages": [{"role": "user", "content": "adapted {question}"}]}
        ]
    },
}


@dataclass
class Arms:
    """What each arm does now; tests change it."""

    legacy: Callable[[Ask], Reply] = lambda _: Reply('{"answer": "legacy"}')
    target: Callable[[Ask], Reply] = lambda _: Reply('{"answer": "target"}')

    def answer_legacy(self, ask: Ask) -> Reply:
        """Answer as legacy does now."""
        return self.legacy(ask)

    def answer_target(self, ask: Ask) -> Reply:
        """Answer as the target does now."""
        return self.target(ask)


@dataclass
class Gateway:
    """A gateway and its two arms."""

    started: Started
    arms: Arms
    legacy: ScriptedEndpoint
    target: ScriptedEndpoint
    client: httpx.Client
    routes: dict[str, Route] = field(default_factory=dict)

    def route(self, workload: str, share: float, **changes: Any) -> Route:
        """Set a workload's route with the next generation, as the controller does: a whole file, renamed."""
        before = self.routes.get(workload)
        generation = changes.pop("generation", before.generation + 1 if before else 1)
        values: dict[str, Any] = {"attempt": before.attempt if before else 1, "stage": 0, **changes}
        route = Route(workload, generation=generation, share=share, **values)
        self.routes[workload] = route
        self.write(print_traffic(Traffic(self.routes)))
        return route

    def write(self, text: str) -> None:
        """Replace the traffic file."""
        temporary = self.started.traffic.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(self.started.traffic)

    def routed(self, workload: str, share: float, **changes: Any) -> Route:
        """Set a route and wait until it is in force."""
        route = self.route(workload, share, **changes)
        self.until(lambda: self.status()["routes"].get(workload, {}).get("generation") == route.generation)
        return route

    def ask(self, workload: str, user: str, content: str = "Q: hello", **body: Any) -> httpx.Response:
        """Ask once, not streamed unless told so."""
        messages = [{"role": "user", "content": content}]
        return self.client.post(
            "/v1/chat/completions", json={"model": workload, "user": user, "messages": messages, **body}
        )

    def arm(self, workload: str, user: str) -> str:
        """Ask once and return the arm that answered, which only its text says."""
        answer: str = json.loads(self.ask(workload, user).json()["choices"][0]["message"]["content"])["answer"]
        return answer

    def status(self) -> dict[str, Any]:
        """Return what the gateway says of itself."""
        found: dict[str, Any] = self.client.get("/anven/status").raise_for_status().json()
        return found

    def events(self, *request_ids: str, kind: str = "request") -> pl.DataFrame:
        """Return the events of these requests, when all are written."""
        import polars as pl  # noqa: PLC0415 - here alone

        def found() -> pl.DataFrame:
            events = read_batch(self.started.events, {}).events
            return events.filter(pl.col("kind") == kind, pl.col("request_id").is_in(request_ids))

        self.until(lambda: found().height >= len(request_ids))
        return found()

    def events_of(self, workload: str) -> pl.DataFrame:
        """Return the requests of a workload that are written so far, in the order of the log."""
        return read_batch(self.started.events, {}).events.filter(workload=workload, kind="request")

    def next_event(self, workload: str, *, after: int) -> dict[str, Any]:
        """Return a workload's last request once more than `after` are written: that comes after the answer."""
        self.until(lambda: self.events_of(workload).height > after)
        return self.events_of(workload).row(-1, named=True)

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + WITHIN_S
        while not holds():
            if time.monotonic() > deadline:
                log = (self.started.traffic.parent / "proxy.log").read_text()[-2000:]
                message = f"it did not come about within {WITHIN_S:g} s; the gateway says {self.status()}\n{log}"
                raise AssertionError(message)
            time.sleep(0.02)


@contextmanager
def gateway(
    folder: Path,
    workloads: dict[str, dict[str, Any]],
    environ: Mapping[str, str] | None = None,
    *,
    host: str = LOOPBACK,
) -> Iterator[Gateway]:
    """Run a gateway for workloads, each with its changes of `MIGRATION`; `environ` is added to this process's."""
    arms = Arms()
    with (
        ScriptedEndpoint(arms.answer_legacy) as legacy,
        ScriptedEndpoint(arms.answer_target) as target,
    ):
        files = []
        for name, changes in workloads.items():
            own = changes.get("gateway", {})
            section = {
                **own,
                "legacy": {"model": "openai/legacy-model", "url": legacy.url, **own.get("legacy", {})},
                "target": {"model": "openai/target-model", "url": target.url, "timeout": "5s", **own.get("target", {})},
            }
            target_section = {
                "engine": "endpoint",
                "model": "target-model",
                "url": target.url,
                "price": {"input_usd_per_million": 1, "output_usd_per_million": 2, "source": "test"},
            }
            rest = {key: value for key, value in changes.items() if key != "gateway"}
            file = folder / f"{name}.yaml"
            declared = {**MIGRATION, "workload": name, "target": target_section, **rest, "gateway": section}
            file.write_text(json.dumps(declared))
            files.append(file)
        more = folder / "litellm.yaml"
        more.write_text("litellm_settings: {cache: true, cache_params: {type: local, mode: default_off}}\n")
        run = folder / "run"
        plan = GatewayPlan(files, run, run / "traffic.json", run / "events", litellm=more, host=host)
        with (
            running(plan, {**os.environ, "ANVEN_GATEWAY_KEY": KEY, **(environ or {})}) as started,
            httpx.Client(
                base_url=started.url,
                headers={"Authorization": f"Bearer {KEY}"},
                timeout=WITHIN_S,
                trust_env=False,
            ) as client,
        ):
            yield Gateway(started, arms, legacy, target, client)
