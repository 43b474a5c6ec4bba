"""A real Prometheus that scrapes a real gateway tells what the gateway's event log tells, or that it does not know."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx
import polars as pl
import pytest

from anven_pipelines.domain.rollout import Hold, RollBack, decide
from anven_pipelines.domain.rollout_plan import RolloutPlan
from anven_pipelines.domain.rollout_scrape import snapshot_of
from anven_pipelines.domain.rollout_status import RolloutStatus
from anven_pipelines.domain.traffic import Route, Traffic, bucket
from anven_pipelines.domain.traffic_file import print_traffic
from anven_pipelines.gateway.settings import assignment_key
from anven_pipelines.gateway_run import GatewayPlan, Started, running
from anven_pipelines.ingest.event_store import EventStore
from anven_pipelines.resources.production_metrics import ProductionMetrics
from anven_pipelines.resources.prometheus import Prometheus
from anven_pipelines.spec_rollout import Rollout
from tests.nano_server import nano_server
from tests.prometheus_server import PrometheusServer, free_port, prometheus_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anven_pipelines.domain.rollout_evidence import Evidence
    from anven_pipelines.domain.unit_counts import WorkerCounts
    from tests.nano_server import NanoServer

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(600)]

KEY: Final = "sk-scraped-gateway-4e02"
USERS: Final = 120
PRICE: Final = {"input_usd_per_million": 1, "output_usd_per_million": 2, "source": "test"}
ROLLOUT: Final = {
    "stages": [{"share": 0.5, "soak": "1s"}, {"share": 1.0, "soak": "1s"}],
    "settle": "500ms",
    "label_delay": "25s",
    "least_units": 20,
    "waive": ["drill"],
}


@dataclass
class Place:
    """A gateway between two nano servers, and the Prometheus that scrapes it."""

    folder: Path
    port: int
    file: Path
    server: PrometheusServer | None = None
    generation: int = 0
    share: float = 0.5
    entered_at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    started: Started | None = None

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @contextmanager
    def gateway(self) -> Iterator[httpx.Client]:
        """Run the gateway at its port; each run is a new worker."""
        plan = GatewayPlan([self.file], self.run, self.run / "traffic.json", self.run / "events", port=self.port)
        environ = {**os.environ, "ANVEN_GATEWAY_KEY": KEY}
        headers = {"Authorization": f"Bearer {KEY}"}
        with (
            running(plan, environ) as self.started,
            httpx.Client(base_url=self.started.url, headers=headers, timeout=60, trust_env=False) as client,
        ):
            yield client

    def enter(self, client: httpx.Client, *, share: float = 0.5) -> None:
        """Begin the next generation, as the controller does, and wait until it is in force."""
        self.generation, self.share = self.generation + 1, share
        self.entered_at = datetime.now(UTC)
        route = Route("support", attempt=1, generation=self.generation, stage=0, share=share)
        new = self.run / "traffic.new"
        new.write_text(print_traffic(Traffic({"support": route})))
        new.replace(self.run / "traffic.json")

        def is_in_force() -> bool:
            found = client.get("/anven/status").json()["routes"].get("support", {})
            return bool(found.get("generation") == self.generation)

        self.until(is_in_force)

    def until(self, holds: Any) -> None:
        assert self.server is not None
        self.server.until(holds)

    def plan(self, source: str = "prometheus", **changes: Any) -> RolloutPlan:
        url = {"url": self.server.url} if self.server and source == "prometheus" else {}
        metrics = {"source": source, **url, **changes}
        rollout = Rollout.model_validate({**ROLLOUT, "metrics": metrics})
        return RolloutPlan(
            workload="support", rollout=rollout, metrics=("quality", "errors", "ttft", "latency", "cost")
        )

    def status(self, **changes: Any) -> RolloutStatus:
        status = RolloutStatus(
            phase="running", attempt=1, generation=self.generation, stage=0, entered_at=self.entered_at
        )
        status = replace(status, **changes)
        return replace(status, plan=self.plan().digest)

    def known(self, **changes: Any) -> Evidence:
        """Return the evidence of Prometheus, once there is no problem: a busy machine may miss a scrape."""
        found: list[Evidence] = []

        def is_known() -> bool:
            found.append(self.evidence(**changes))
            return found[-1].problem is None

        self.until(is_known)
        return found[-1]

    def evidence(self, source: str = "prometheus", **changes: Any) -> Evidence:
        metrics = ProductionMetrics(events=str(self.run / "events"), store=str(self.folder / "store"))
        return metrics.evidence(self.plan(source), self.status(**changes), now=datetime.now(UTC))

    def events(self) -> pl.DataFrame:
        store = EventStore(self.folder / "store")
        store.ingest(self.run / "events")
        return store.events().filter(pl.col("generation") == self.generation)

    def counts(self) -> dict[str, WorkerCounts]:
        """Return what Prometheus holds of the present generation, by worker."""
        server = Prometheus(self.plan().rollout.metrics)
        selector = '{__name__=~"anven_(unit|worker)_.+", workload="support"}'
        return dict(snapshot_of(server.instant(selector, at=datetime.now(UTC))).of(self.generation))

    def requests(self) -> float:
        """Return how many requests Prometheus knows, of all workers and generations."""
        query = "sum(last_over_time(anven_requests_total[1m]))"
        found = Prometheus(self.plan().rollout.metrics).instant(query, at=datetime.now(UTC))
        return found[0].value if found else 0.0

    def drive(
        self, client: httpx.Client, *, users: range = range(USERS), times: int = 1, scores: tuple[float, float] = (1, 1)
    ) -> None:
        """Ask as these users, score each answer by the arm that it was meant for, and wait until all is scraped."""
        before = self.requests()
        key = assignment_key({"ANVEN_GATEWAY_KEY": KEY})

        def ask(user: int) -> None:
            body = {
                "model": "support",
                "user": f"user {user}",
                "messages": [{"role": "user", "content": f"Order {user} has not come. Where is it?"}],
                "max_tokens": 4,
                "stream": True,
            }
            answer = client.post("/v1/chat/completions", json=body).raise_for_status()
            is_target = bucket(key, workload="support", attempt=1, unit=f"user {user}") < self.share
            told = {"request_id": answer.headers["x-litellm-call-id"], "score": scores[is_target]}
            client.post("/anven/feedback", json=told).raise_for_status()

        with ThreadPoolExecutor(4) as pool:
            asked = list(pool.map(ask, list(users) * times))
        self.until(lambda: self.requests() == before + len(asked))

    def await_scores(self) -> None:
        """Wait until the score of each unit was due, and that is scraped."""
        self.until(lambda: sum(arm.of("due") for arm in self.arms()) == USERS)

    def arms(self) -> list[Any]:
        return [arm for worker in self.counts().values() for arm in (worker.target, worker.legacy)]


@pytest.fixture(scope="module")
def nano() -> Iterator[tuple[NanoServer, NanoServer]]:
    with nano_server(model="legacy-nano") as legacy, nano_server(model="anven-nano") as target:
        yield legacy, target


@pytest.fixture
def place(tmp_path: Path, nano: tuple[NanoServer, NanoServer]) -> Iterator[Place]:
    legacy, target = nano
    file = tmp_path / "support.yaml"
    declared = {
        "workload": "support",
        "legacy": {"model": "legacy-nano", "logs": "none.jsonl", "price": PRICE},
        "target": {"engine": "endpoint", "model": "anven-nano", "url": target.url, "price": PRICE},
        "grading": [{"kind": "exact"}],
        "prompt": {},
        "rollout": ROLLOUT,
        "gateway": {
            "legacy": {"model": "openai/legacy-nano", "url": legacy.url},
            "target": {"model": "openai/anven-nano", "url": target.url},
        },
    }
    file.write_text(json.dumps(declared))
    port = free_port()
    with prometheus_server(tmp_path / "prometheus", target=f"127.0.0.1:{port}", key=KEY) as server:
        yield Place(tmp_path, port, file, server)


def test_both_sources_count_the_same_stream_and_come_to_the_same_decision(place: Place) -> None:
    with place.gateway() as client:
        place.enter(client)
        place.drive(client, times=2)
        place.await_scores()
        events = place.events().filter(pl.col("kind") == "request")
        scraped, logged = place.known(), place.evidence("event_log")
        [worker] = place.counts().values()

        assert (scraped.problem, logged.problem) == (None, None)
        assert scraped.assignment == logged.assignment
        assert scraped.assignment is not None
        assert scraped.assignment.target + scraped.assignment.legacy == USERS
        assert place.requests() == events.height == 2 * USERS
        first = events.sort("ts", "event_id").group_by("unit", maintain_order=True).first()
        for arm, name in ((worker.target, "target"), (worker.legacy, "legacy")):
            mine = first.filter(pl.col("intended") == name)
            assert arm.of("seen") == arm.of("streamed") == arm.of("scored") == mine.height
            assert arm.of("ttft_measured") == mine["ttft_ms"].count()  # an answer may be empty
            assert arm.of("cost_usd") == pytest.approx(mine["cost_usd"].sum())
            for histogram, column in (("ttft", "ttft_ms"), ("latency", "latency_ms")):
                seconds = (mine[column].drop_nulls() / 1e3).to_list()
                expected = {
                    edges: sum(edges[0] < each <= edges[1] for each in seconds) for edges in arm.buckets[histogram]
                }
                assert dict(arm.buckets[histogram]) == expected
        for found in scraped.comparisons:
            exact = logged.of(found.metric)
            assert (found.unknown is None) == (exact.unknown is None), (found.words, exact.words)
            if found.proof and exact.proof:
                assert max(found.proof.lower, exact.proof.lower) <= min(found.proof.upper, exact.proof.upper)
        decisions = [decide(place.plan(), place.status(), each, now=datetime.now(UTC)) for each in (scraped, logged)]
        assert [type(each) for each in decisions] == [Hold, Hold]

        place.enter(client)
        place.drive(client, scores=(1, 0))
        place.await_scores()
        for evidence in (place.known(), place.evidence("event_log")):
            decision = decide(place.plan(), place.status(), evidence, now=datetime.now(UTC))
            assert isinstance(decision, RollBack), evidence
            assert "quality is proven to be more than" in decision.reasons[0]

        # The stage in which legacy has nothing is held against the generation before.
        place.enter(client, share=1.0)
        place.drive(client)
        last = place.known(stage=1)
        assert last.of("errors").unknown is None
        assert last.of("errors").proof_limit == 2 * place.plan().rollout.limits.errors


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_gateway_loses_nothing_and_doubles_nothing(place: Place, how: signal.Signals) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(place.gateway())
        place.enter(client)
        place.drive(client, users=range(60))
        assert place.started is not None
        place.started.process.send_signal(how)
        place.started.process.wait()
        place.until(lambda: "it is down" in str(place.evidence().problem))
        down = place.evidence()
        assert (down.comparisons, down.assignment) == ((), None)

        client = stack.enter_context(place.gateway())
        place.until(lambda: place.requests() == 60)  # the successor tells what its predecessor counted
        place.drive(client, users=range(40, 100))
        workers = place.counts()
        events = place.events().filter(pl.col("kind") == "request")
        by_worker = Counter(dict(events.group_by("worker").agg(pl.col("unit").n_unique()).iter_rows()))
        assert len(workers) == 2
        assert {name: each.target.of("seen") + each.legacy.of("seen") for name, each in workers.items()} == by_worker
        assert place.requests() == events.height == 120
        found = place.known()
        assert found.assignment is not None
        assert found.assignment.target + found.assignment.legacy <= 100


def test_a_prometheus_that_is_stopped_makes_everything_unknown_and_one_that_is_back_knows_it_all(place: Place) -> None:
    with place.gateway() as client:
        place.enter(client)
        place.drive(client)
        assert place.server is not None
        port = int(place.server.url.rpartition(":")[2])
        place.server.process.kill()
        place.server.process.wait()
        gone = place.evidence()
        assert gone.problem is not None
        assert f"Prometheus at {place.server.url} does not answer" in gone.problem
        assert isinstance(decide(place.plan(), place.status(), gone, now=datetime.now(UTC)), Hold)

        with prometheus_server(
            place.folder / "prometheus", target=f"127.0.0.1:{place.port}", key=KEY, port=port
        ) as place.server:
            place.until(lambda: place.requests() == USERS)
            back = place.known()
            assert back.assignment is not None
            assert back.assignment.target + back.assignment.legacy == USERS
            # What it knew some time ago it knows no more.
            late = ProductionMetrics(events="", store="").evidence(
                place.plan(), place.status(), now=datetime.now(UTC) + timedelta(hours=1)
            )
            assert late.problem is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"match": {"job": "another"}}, "Prometheus has not scraped the gateway of late"),
        ({"url": "http://127.0.0.1:9/"}, "does not answer"),
    ],
)
def test_what_cannot_be_asked_is_unknown(place: Place, changes: dict[str, Any], words: str) -> None:
    place.generation, place.entered_at = 1, datetime.now(UTC)
    found = ProductionMetrics(events="", store="").evidence(
        place.plan(**changes), place.status(), now=datetime.now(UTC)
    )
    assert found.problem is not None
    assert words in found.problem
