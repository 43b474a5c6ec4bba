"""A roll back rehearsed on a real gateway in front of two real models, through the command line."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import dagster as dg
import httpx
import pytest
import yaml

from anven_pipelines.assets.drill import rollout_drill
from anven_pipelines.domain.rollout_status import status_of, stream_of
from anven_pipelines.domain.traffic_file import parse_traffic
from anven_pipelines.gateway_run import GatewayPlan, running
from anven_pipelines.ingest.gateway_events import read_batch
from anven_pipelines.migrate import of_kind
from anven_pipelines.migration_file import parse
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.deployments import resources
from anven_pipelines.resources.drills import drill_stream
from anven_pipelines.resources.state_store import StateStore
from tests.nano_server import NanoServer, nano_server
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anven_pipelines.domain.rollout_status import RolloutStatus

pytestmark = pytest.mark.timeout(600)

KEY = "sk-drilled-gateway-51c0"
WITHIN_S = 60.0  # a bound against hanging
LIMIT_S = 30.0  # what a busy machine keeps; the promise itself is the default of rollout.drill_s


class Drilled(NamedTuple):
    """A gateway with everything that a drill needs."""

    home: Path
    folder: Path
    url: str
    target: NanoServer

    @property
    def state(self) -> StateStore:
        return StateStore(url=f"sqlite:///{self.home / 'state.db'}")

    @property
    def artifacts(self) -> ArtifactStore:
        environment = {"ANVEN_HOME": str(self.home), "ANVEN_MIGRATIONS": str(self.folder)}
        return of_kind(dg.Definitions(resources=resources("local", environment)), "artifacts", ArtifactStore)

    @property
    def traffic(self) -> Path:
        return self.home / "gateway" / "traffic.json"

    def environment(self, **more: str) -> dict[str, str]:
        settings = {"ANVEN_HOME": str(self.home), "ANVEN_MIGRATIONS": str(self.folder), "ANVEN_GATEWAY_KEY": KEY}
        return {**os.environ, **settings, "ANVEN_GATEWAY_URL": self.url, **more}

    def anven(self, *words: str, **more: str) -> tuple[int, dict[str, Any]]:
        """Run a command and return its exit status and its JSON."""
        done = subprocess.run(
            [sys.executable, "-m", "anven_pipelines.cli", *words, "--json"],
            env=self.environment(**more),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def status(self, workload: str = "support") -> RolloutStatus:
        return status_of(self.state.events(stream_of(workload)))

    def share(self, route: str) -> float:
        return parse_traffic(self.traffic.read_bytes(), source="traffic").of(route).share


@contextmanager
def balancer(*urls: str) -> Iterator[str]:
    """Give each connection on a port to the next gateway."""
    backends = itertools.cycle([(urlsplit(url).hostname, urlsplit(url).port) for url in urls])

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(next(backends)) as backend:
                back = threading.Thread(target=pump, args=(backend, self.request), daemon=True)
                back.start()
                pump(self.request, backend)
                back.join()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def migration(workload: str, legacy: NanoServer, target: NanoServer) -> dict[str, Any]:
    return {
        "workload": workload,
        "legacy": {"model": "legacy-nano", "logs": "none.jsonl"},
        "target": {"engine": "endpoint", "model": "anven-nano", "url": target.url},
        "grading": [{"kind": "exact"}],
        "gateway": {
            "legacy": {"model": "openai/legacy-nano", "url": legacy.url},
            "target": {"model": "openai/anven-nano", "url": target.url, "timeout": "4s"},
        },
        "rollout": {"drill_s": LIMIT_S if workload == "support" else 3.0},
    }


@pytest.fixture(scope="module")
def drilled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drilled]:
    folder = tmp_path_factory.mktemp("drill")
    home, migrations = folder / "home", folder / "migrations"
    migrations.mkdir()
    with nano_server(model="legacy-nano") as legacy, nano_server() as target:
        # The rewrites of the real workload fit no drill: the drill asks in its own words.
        rewrites = [{"user": "(?s)Q: (?P<question>.*)", "messages": [{"role": "user", "content": "{question}"}]}]
        files = []
        for workload in ("support", "other"):
            file = migrations / f"{workload}.yaml"
            file.write_text(yaml.safe_dump(migration(workload, legacy, target) | {"prompt": {"rewrites": rewrites}}))
            files.append(file)
        (home / "gateway").mkdir(parents=True)
        plan = GatewayPlan(files, folder / "run", home / "gateway" / "traffic.json", home / "gateway" / "events")
        with running(plan, {**os.environ, "ANVEN_GATEWAY_KEY": KEY}) as started:
            place = Drilled(home, migrations, started.url, target)
            for file in files:
                signed = parse(file.read_text(), file=file.name)
                sign_off(signed, place.state, place.artifacts, now=datetime.now(UTC))
            place.anven("rollout", "start", "support")
            yield place


def test_a_drill_measures_the_roll_back_and_opens_the_gate_and_touches_no_application(drilled: Drilled) -> None:
    _, before = drilled.anven("rollout", "status", "support")
    assert any("no roll back was rehearsed" in reason for reason in before["reasons"])
    share = drilled.share("support")

    code, found = drilled.anven("drill", "support")

    assert (code, found["passed"], found["failed"], found["reasons"]) == (0, True, 0, [])
    assert 0 < found["seconds"] <= LIMIT_S
    assert found["by_target"] >= 4
    assert 8 <= found["requests"] <= 48
    assert len(found["workers"]) == 1
    assert found["tokens"]["legacy"]["output"] > 0
    assert (drilled.share("support--drill"), drilled.share("support")) == (0.0, share)
    kinds = [event.kind for event in drilled.state.events(drill_stream("support"))]
    assert kinds == ["begun", "rolled_back"]
    _, after = drilled.anven("rollout", "status", "support")
    assert not any("rehearsed" in reason for reason in after["reasons"])
    assert (after["drill"]["passed"], after["drill"]["missing"], after["drill"]["interrupted"]) == (True, [], None)
    assert after["drill"]["age_h"] < 1
    assert after["units"] is None  # the drill's requests are no evidence of the workload


def test_every_request_of_the_drill_is_an_event_of_the_drills_own_route(drilled: Drilled) -> None:
    _, found = drilled.anven("drill", "other")
    deadline = time.monotonic() + WITHIN_S
    while True:
        events = read_batch(drilled.home / "gateway" / "events", {}).events
        mine = events.filter(workload="other--drill", kind="request")
        if mine.height >= found["requests"] or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert mine.height == found["requests"]
    assert mine.filter(served="target").height == found["by_target"] + found["late"]
    assert events.filter(workload="other").is_empty()


def test_a_drill_through_dagster_is_a_result_with_its_check(drilled: Drilled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANVEN_GATEWAY_KEY", KEY)
    found = resources("local", drilled.environment())
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("workload", ["support"])
        done = dg.materialize([rollout_drill], partition_key="support", instance=instance, resources=found)
    assert done.success
    [check] = done.get_asset_check_evaluations()
    assert (check.passed, check.check_name) == (True, "rolls_back_in_time")
    last = drilled.state.events(stream_of("support"))[-1]
    assert (last.kind, last.payload["passed"]) == ("drilled", True)
    assert last.payload["who"].startswith("dagster run ")


@pytest.mark.parametrize("is_blind", [False, True], ids=["all follow", "one reads another traffic file"])
def test_every_worker_behind_a_balancer_has_to_follow(drilled: Drilled, tmp_path: Path, *, is_blind: bool) -> None:
    workload = "other" if is_blind else "support"
    traffic = tmp_path / "traffic.json" if is_blind else drilled.traffic
    files = [drilled.folder / f"{name}.yaml" for name in ("support", "other")]
    plan = GatewayPlan(files, tmp_path, traffic, drilled.home / "gateway" / "events")
    environment = {**os.environ, "ANVEN_GATEWAY_KEY": KEY}
    with running(plan, environment) as second, balancer(drilled.url, second.url) as url:
        code, found = drilled.anven("drill", workload, "--url", url)
    blind = [name for name, seconds in found["workers"].items() if seconds is None]
    if is_blind:
        assert (code, len(blind)) == (1, 1)
        assert f"not seen to follow: workers {blind[0]}" in found["reasons"]
        assert found["seconds"] is None
    else:
        assert (code, len(found["workers"]), blind, found["reasons"]) == (0, 2, [], [])


def test_a_target_that_fails_gives_no_passed_drill_and_shuts_the_gate(drilled: Drilled) -> None:
    process = drilled.target.process
    process.send_signal(signal.SIGSTOP)  # it hangs: the drill is not served by it
    try:
        code, found = drilled.anven("drill", "support")
    finally:
        process.send_signal(signal.SIGCONT)
    assert (code, found["passed"]) == (1, False)
    assert "the target answered no request before the roll back" in "; ".join(found["reasons"])
    _, status = drilled.anven("rollout", "status", "support")
    assert any("the last rehearsed roll back failed" in reason for reason in status["reasons"])
    assert drilled.share("support--drill") == 0.0


def test_a_drill_that_is_killed_leaves_no_passed_one_and_serves_no_application(drilled: Drilled) -> None:
    before = drilled.status()
    process = subprocess.Popen(
        [sys.executable, "-m", "anven_pipelines.cli", "drill", "support"], env=drilled.environment()
    )
    with process:
        deadline = time.monotonic() + WITHIN_S
        while drilled.share("support--drill") != 1.0:
            assert time.monotonic() < deadline
            assert process.poll() is None
        process.kill()
    assert drilled.share("support--drill") == 1.0
    assert drilled.status() == before

    body = {"model": "support--drill", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{drilled.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=60)
    assert (answer.status_code, "is for drills" in answer.text) == (400, True)
    _, status = drilled.anven("rollout", "status", "support")
    assert status["drill"]["interrupted"]

    code, found = drilled.anven("drill", "support")
    assert (code, found["reasons"], drilled.share("support--drill")) == (0, [], 0.0)


@pytest.mark.parametrize(
    ("words", "environment", "code", "message"),
    [
        (("support",), {"ANVEN_GATEWAY_KEY": ""}, 2, "ANVEN_GATEWAY_KEY is not set"),
        (("support",), {"ANVEN_GATEWAY_KEY": "sk-another-one"}, 2, "refuses the key in ANVEN_GATEWAY_KEY"),
        (("support", "--url", "http://127.0.0.1:9"), {}, 3, "does not answer"),
        (("nobody",), {}, 2, "workload 'nobody' is declared by no readable file"),
    ],
)
def test_what_keeps_a_drill_from_beginning_is_told_and_is_no_drill(
    drilled: Drilled, words: tuple[str, ...], environment: dict[str, str], code: int, message: str
) -> None:
    before = drilled.status()
    found, told = drilled.anven("drill", *words, **environment)
    assert (found, message in told["error"]["message"]) == (code, True), told
    assert drilled.status() == before


def test_a_gateway_that_was_started_without_the_workload_is_told(drilled: Drilled) -> None:
    text = (drilled.folder / "other.yaml").read_text().replace("workload: other", "workload: late")
    (drilled.folder / "late.yaml").write_text(text)
    try:
        code, told = drilled.anven("drill", "late")
    finally:
        (drilled.folder / "late.yaml").unlink()
    assert code == 2
    assert "serves no 'late--drill', only other, support and their drills" in told["error"]["message"]
