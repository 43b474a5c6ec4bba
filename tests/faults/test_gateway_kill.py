"""A gateway that is killed while it serves, and one that is started after it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from anven_pipelines.gateway.segments import OPEN
from anven_pipelines.gateway_run import GatewayPlan, running
from anven_pipelines.ingest.event_store import EventStore
from tests.gateway_proxy import KEY, gateway
from tests.scripted_endpoint import Reply

if TYPE_CHECKING:
    from pathlib import Path


def test_a_gateway_that_is_stopped_writes_every_event_and_closes_its_log(tmp_path: Path) -> None:
    with gateway(tmp_path, {"support": {}}) as gate:
        gate.routed("support", 0.5)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda number: gate.ask("support", f"user {number}"), range(20)))
        gate.started.process.terminate()  # the last events are not made yet
        assert gate.started.process.wait() == -signal.SIGTERM
    assert not list(gate.started.events.glob(f"*{OPEN}"))
    written = set(gate.events_of("support")["request_id"])
    assert written == {answer.headers["x-litellm-call-id"] for answer in answers}


@pytest.mark.timeout(500)
def test_a_killed_gateway_loses_no_event_that_was_written_and_its_successor_knows_the_open_breaker(
    tmp_path: Path,
) -> None:
    store = EventStore(tmp_path / "store")
    answered: list[str] = []
    with gateway(tmp_path, {"support": {}, "burst": {}}) as gate:
        gate.routed("support", 0.5)
        route = gate.routed("burst", 1.0)
        gate.arms.target = lambda ask: Reply("boom", status=500) if "burst" in ask.prompt else Reply("fine")
        for number in range(8):
            gate.ask("burst", f"user {number}", content="Q: burst")
        assert gate.status()["breakers"]["burst"] == "errors"

        def keep_asking(number: int) -> None:
            with suppress(httpx.HTTPError):
                while True:
                    answer = gate.ask("support", f"user {number}")
                    answered.append(answer.headers["x-litellm-call-id"])

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(keep_asking, number) for number in range(4)]
            gate.until(lambda: len(answered) > 60)
            first = list(answered)
            gate.events(*first)  # they are written; others are under way
            os.kill(gate.started.process.pid, signal.SIGKILL)
            for each in clients:
                each.result()
        store.ingest(gate.started.events)
        assert set(first) <= set(store.events().filter(kind="request")["request_id"])

        run = gate.started.traffic.parent
        files = sorted(tmp_path.glob("*.yaml"))
        plan = GatewayPlan(
            [file for file in files if file.stem != "litellm"], run, gate.started.traffic, run / "events"
        )
        gate.arms.target = lambda _: Reply('{"answer": "target"}')
        with (
            running(plan, {**os.environ, "ANVEN_GATEWAY_KEY": KEY}) as again,
            httpx.Client(
                base_url=again.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30, trust_env=False
            ) as client,
        ):
            status = client.get("/anven/status").json()
            assert status["routes"]["burst"]["generation"] == route.generation
            assert status["breakers"]["burst"] == "errors"
            body = {"model": "burst", "user": "ada", "messages": [{"role": "user", "content": "Q: x"}]}
            assert "legacy" in client.post("/v1/chat/completions", json=body).text
        found = store.ingest(gate.started.events)
        assert found.bad_lines == ()
        events = store.events()
        assert events["event_id"].is_unique().all()
        assert events["worker"].n_unique() == 2
        assert events.row(-1, named=True)["why"] == "breaker"


@pytest.mark.timeout(500)
def test_a_killed_gateways_successor_knows_how_fast_legacy_was_and_what_its_shadows_have_spent(tmp_path: Path) -> None:
    workloads: dict[str, dict[str, Any]] = {
        "support": {"gateway": {"breaker": {"slow_at_ms": None}}},
        "mirrored": {"gateway": {"shadow": {"calls_per_day": 2}}},
    }
    with gateway(tmp_path, workloads) as gate:
        gate.routed("mirrored", 0.0, shadow=1.0)
        for number in range(3):
            gate.ask("mirrored", f"user {number}", content="Q: mirrored")
        gate.until(lambda: gate.target.asked["adapted mirrored"] == 2)
        gate.routed("support", 0.0)
        for number in range(30):
            gate.ask("support", f"user {number}")
        reference = gate.started.events / "breakers" / "reference-support.json"
        gate.until(reference.exists)
        gate.routed("support", 1.0)
        gate.started.process.kill()
        gate.started.process.wait()
        gate.arms.target = lambda _: Reply('{"answer": "target"}', delay_s=4.0)  # its timeout is 5 s
        run = gate.started.traffic.parent
        files = [tmp_path / f"{name}.yaml" for name in workloads]
        plan = GatewayPlan(files, run, gate.started.traffic, run / "events")
        with (
            running(plan, {**os.environ, "ANVEN_GATEWAY_KEY": KEY}) as again,
            httpx.Client(
                base_url=again.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30, trust_env=False
            ) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            mirrored = {"model": "mirrored", "messages": [{"role": "user", "content": "Q: mirrored"}]}
            assert "legacy" in client.post("/v1/chat/completions", json=mirrored).text
            body = {"model": "support", "messages": [{"role": "user", "content": "Q: x"}]}
            asked = [pool.submit(client.post, "/v1/chat/completions", json=body) for _ in range(8)]
            assert {each.result().status_code for each in asked} == {200}
            assert gate.target.asked["adapted mirrored"] == 2
            assert client.get("/anven/status").json()["breakers"]["support"] == "latency"
