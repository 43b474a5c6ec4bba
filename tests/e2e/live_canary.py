"""A whole canary in small: nano servers, a LiteLLM proxy with our plugin, users, and Dagster's daemon.

Every workload has a target server of its own, so that each can fail in its own way; the rest is shared.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import httpx
import polars as pl
import pytest
import yaml
from rich.console import Console

from anven_pipelines.domain.errors import AnvenError
from anven_pipelines.domain.exposure import exposure_of
from anven_pipelines.domain.rollout_status import stream_of
from anven_pipelines.gateway_run import GatewayPlan, Started, running
from anven_pipelines.ingest.event_store import EventStore, attributed
from anven_pipelines.migrate import of_kind, prepared, register_partitions
from anven_pipelines.nano.demand import APPLICATIONS
from anven_pipelines.nano.demo_world import LEGACY, TARGET, migration, rewrites
from anven_pipelines.nano.production import Place, crowd_traffic, use
from anven_pipelines.nano.serving import served
from anven_pipelines.nano.traffic import Pace
from anven_pipelines.resources.deployments import adopt_home
from anven_pipelines.resources.rollouts import Rollouts
from tests.dev_command import alive, descendants, wait_until
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anven_pipelines.domain.events import Event
    from anven_pipelines.nano.demand import Application
    from anven_pipelines.nano.exchange import Exchange

KEY: Final = "sk-live-canary-4f0c"
ROUND: Final = 24  # calls; between two rounds a workload looks whether its rollout has ended
PATIENCE_S: Final = 1500.0  # on two idle cores it takes some four minutes
SHORT_ANSWERS: Final = APPLICATIONS[:2]  # a tool call has 37 tokens, each a piece of a stream that the proxy handles
TIMEOUT: Final = "30s"
FOLLOWS: Final = timedelta(seconds=1)
"""The gateway's promise: from the traffic file, or its breaker's trip, to the last request that it deals otherwise."""
LOADED: Final = timedelta(seconds=5)
"""What a machine adds that runs a daemon, its runs, users and all models on two cores."""
_STOP_S: Final = 60.0
_LOOK_S: Final = 0.05


class Case(NamedTuple):
    """A workload and what becomes of its target.

    Attributes:
        name: The workload.
        shares: Stages before the one of 1.
        fault: What its target's server is told after `good_calls`; empty: nothing.
        good_calls: Calls before that.
        at_once: Users who wait for an answer at a time.
        price: Of the target, in USD per million tokens in and out; legacy's is 2.5 and 10.
        breaker: Changes of the gateway's breaker.
        applications: Who asks.
        kills_daemon: Whether Dagster's daemon is killed once the rollout has advanced.
    """

    name: str
    shares: tuple[float, ...]
    fault: Mapping[str, float] = {}
    good_calls: int = 72
    at_once: int = 2
    price: tuple[float, float] = (0.2, 0.4)
    breaker: Mapping[str, float] = {}
    applications: tuple[Application, ...] = SHORT_ANSWERS
    kills_daemon: bool = False


@dataclass
class Record:
    """What users of one workload saw."""

    case: Case
    sent: int = 0
    told: int = 0
    exchanges: list[Exchange] = field(default_factory=list)
    faulty_since: datetime | None = None
    last_round: set[str] = field(default_factory=set)  # answers after the rollout had ended


@dataclass
class Daemon:
    """Dagster's daemon with the code location; its sensors run by themselves."""

    log: Path
    process: subprocess.Popen[bytes] = field(init=False)
    killed_at: datetime | None = None
    orphans: set[int] = field(default_factory=set)

    def start(self) -> None:
        """Start it."""
        program = Path(sys.executable).parent / "dagster-daemon"
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(program), "run", "-m", "anven_pipelines.definitions"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        """Kill it with SIGKILL, whatever it is doing; its code server and runs are not told."""
        self.orphans |= descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        self.killed_at = datetime.now(UTC)

    def stop(self) -> None:
        """End it and what a killed one left."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # A code server ends by itself when no daemon calls it any more.
        wait_until(lambda: not self.orphans & alive(), _STOP_S, "what a killed daemon left has not ended")


class Published:
    """When each generation of each workload was first seen in the traffic file, by the clock of that file."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts
        self._file = Path(rollouts.gateway.traffic)
        self._at: dict[tuple[str, int], datetime] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def at(self, workload: str, generation: int) -> datetime:
        """Return it; another workload's change that came in between may make it some milliseconds late."""
        return self._at[workload, generation]

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_S):
            try:
                written_at = datetime.fromtimestamp(self._file.stat().st_mtime, UTC)
                routes = self._rollouts.gateway.read().routes
            except (AnvenError, OSError):  # the next look sees it
                continue
            for name, route in routes.items():
                self._at.setdefault((name, route.generation), written_at)


@dataclass
class Canary:
    """What runs, and where it is looked at."""

    home: Path
    started: Started
    rollouts: Rollouts
    targets: Mapping[str, str]  # URL of each workload's target
    daemon: Daemon
    published: Published

    def phase(self, workload: str) -> str:
        """Return how far a rollout is."""
        return self.rollouts.status(workload).phase

    def log(self, workload: str) -> list[Event]:
        """Return what was decided and done, oldest first."""
        return self.rollouts.state.events(stream_of(workload))

    def share_in_force(self, workload: str) -> float:
        """Return what the gateway itself says that the target gets."""
        answer = httpx.get(
            f"{self.started.url}/anven/status", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False
        )
        share: float = answer.raise_for_status().json()["routes"][workload]["share"]
        return share

    def events(self, folder: Path) -> pl.DataFrame:
        """Return all that the gateway wrote, feedback with its arms."""
        store = EventStore(folder)
        store.ingest(self.started.events)
        return attributed(store.events())

    def seen(self, cases: tuple[Case, ...], folder: Path) -> Seen:
        """Let users ask until all rollouts have ended, and return what was written of them."""
        records = {case.name: Record(case) for case in cases}

        async def serve() -> None:
            async with asyncio.TaskGroup() as group:
                for record in records.values():
                    group.create_task(self.serve(record))

        asyncio.run(serve())
        answered = {each.answer_id for record in records.values() for each in record.exchanges}
        while True:  # the last events are written some milliseconds after their answers
            events = self.events(folder)
            if answered <= set(events.filter(kind="request")["request_id"]):
                return Seen(self, records, events)

    async def serve(self, record: Record) -> None:
        """Let users ask until the rollout has ended, and one round more."""
        case, deadline, number = record.case, time.monotonic() + PATIENCE_S, 0
        place = Place(self.started.url, KEY, case.name)
        while True:
            has_ended = self.phase(case.name) in ("completed", "rolled_back")
            seen: list[Exchange] = []
            plan = crowd_traffic(ROUND, seconds=0, seed=1000 * len(case.name) + number, applications=case.applications)
            done = await use(plan, place, pace=Pace(most_in_flight=case.at_once), write=seen.append)
            record.sent, record.told = record.sent + len(plan.calls), record.told + done.told
            record.exchanges += seen
            number += 1
            if has_ended:
                record.last_round = {each.answer_id or "" for each in seen}
                return
            if case.fault and record.faulty_since is None and record.sent >= case.good_calls:
                record.faulty_since = await asyncio.to_thread(self._break, case)
            if case.kills_daemon and self.daemon.killed_at is None and self._has_advanced(case.name):
                self.daemon.kill()
                self.daemon.start()
            assert self.daemon.process.poll() is None, "the daemon ended"
            assert time.monotonic() < deadline, f"{case.name} is {self.phase(case.name)} after {record.sent} calls"

    def _has_advanced(self, workload: str) -> bool:
        return any(event.kind == "advanced" for event in self.log(workload))

    def _break(self, case: Case) -> datetime:
        base = self.targets[case.name].removesuffix("/v1")
        before = datetime.now(UTC)
        httpx.put(f"{base}/faults", json=dict(case.fault), trust_env=False).raise_for_status()
        return before


class Seen(NamedTuple):
    """What is left of all canaries when they have ended."""

    canary: Canary
    records: Mapping[str, Record]
    events: pl.DataFrame

    def requests(self, workload: str) -> pl.DataFrame:
        """Return the events of a workload's requests."""
        return self.events.filter(pl.col("workload") == workload, pl.col("kind") == "request")

    def last_round(self, workload: str) -> pl.DataFrame:
        """Return those that were asked after its rollout had ended."""
        ids = list(self.records[workload].last_round)
        return self.requests(workload).filter(pl.col("request_id").is_in(ids))

    def require_legacy_in_time(self, workload: str) -> None:
        """Assert that the target had no request any more once the gateway had had its time to follow.

        It counts from what the gateway follows, which is not the load of the machine that decides: its breaker's own
        trip, or else the traffic file with the roll back's generation.
        """
        since = self.records[workload].faulty_since or datetime.min.replace(tzinfo=UTC)  # its price was bad all along
        found = exposure_of(self.events.filter(pl.col("workload") == workload), since=since)
        assert found is not None
        last_dealt_at = found.first_bad_at + timedelta(seconds=found.last_dealt_s)
        if found.breaker_s is None:
            told_at = self.canary.published.at(workload, self.canary.rollouts.status(workload).generation)
        else:
            told_at = found.first_bad_at + timedelta(seconds=found.breaker_s)
        assert last_dealt_at - told_at < FOLLOWS + LOADED, f"{workload}: told at {told_at}, dealt at {last_dealt_at}"

    def require_all_answered(self) -> None:
        """Assert that what clients sent is what they got answered whole, and what the gateway says it answered."""
        for name, record in self.records.items():
            assert [each.error for each in record.exchanges if each.error is not None] == []
            assert len(record.exchanges) == record.sent
            written = self.requests(name)
            assert sorted(written["request_id"]) == sorted(each.answer_id or "" for each in record.exchanges)
            assert set(written["status"]) == {"ok"}
            assert written["generation"].n_unique() >= 2
            rescued = written.filter(pl.col("why").is_not_null())
            assert set(rescued["intended"]) <= {"target"}
            assert set(rescued["served"]) <= {"legacy"}


@contextmanager
def canary(
    folder: Path, cases: tuple[Case, ...], rollout: Mapping[str, Any], empty_mlflow: Path, *, port: int = 0
) -> Iterator[Canary]:
    """Start everything, sign every workload off and begin its rollout; a gateway without a port takes a free one."""
    (folder / "home" / "mlflow").mkdir(parents=True)
    shutil.copy(empty_mlflow, folder / "home" / "mlflow" / "mlflow.db")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("DAGSTER_HOME", "ANVEN_HOME", "ANVEN_MIGRATIONS"):
            patch.setenv(name, "")  # so that what `adopt_home` sets is taken back
            patch.delenv(name)
        patch.setenv("ANVEN_HOME", str(folder / "home"))
        patch.setenv("ANVEN_MIGRATIONS", str(folder / "migrations"))
        home = adopt_home()
        legacy = stack.enter_context(served(LEGACY, log=folder / "legacy.log"))
        targets = {case.name: stack.enter_context(served(TARGET, log=folder / f"{case.name}.log")) for case in cases}
        files = [declare(folder / "migrations", case, legacy, targets[case.name], rollout) for case in cases]
        register_partitions(home, Console(stderr=True))
        gateway = home / "gateway"
        plan = GatewayPlan(files, gateway, gateway / "traffic.json", gateway / "events", port=port)
        started = stack.enter_context(running(plan, {**os.environ, "ANVEN_GATEWAY_KEY": KEY}))
        definitions = stack.enter_context(prepared(home))
        rollouts = of_kind(definitions, "rollouts", Rollouts)
        published = stack.enter_context(Published(rollouts))
        for case in cases:
            now = datetime.now(UTC)
            sign_off(rollouts.migrations.of(case.name).migration, rollouts.state, rollouts.artifacts, now=now)
            rollouts.start(case.name, who="ada", now=now)
        daemon = Daemon(folder / "daemon.log")
        daemon.start()
        stack.callback(daemon.stop)
        yield Canary(home, started, rollouts, targets, daemon, published)


def declare(folder: Path, case: Case, legacy: str, target: str, rollout: Mapping[str, Any]) -> Path:
    """Write a workload's migration file: that of the demo, with its own target."""
    folder.mkdir(exist_ok=True)
    declared = migration(url=target, adapted=True)
    declared["workload"] = case.name
    declared["prompt"] = {"rewrites": rewrites()}
    paid = dict(zip(("input_usd_per_million", "output_usd_per_million"), case.price, strict=True))
    declared["target"]["price"] = {**paid, "source": "test"}
    declared["gateway"] = {
        "legacy": {"model": f"openai/{LEGACY}", "url": legacy},
        "target": {"model": f"openai/{TARGET}", "url": target, "timeout": TIMEOUT},
        "breaker": dict(case.breaker),
    }
    stages = [{"share": share, "soak": "10s"} for share in (*case.shares, 1.0)]
    declared["rollout"] = {**rollout, "stages": stages}
    file = folder / f"{case.name}.yaml"
    file.write_text(yaml.safe_dump(declared))
    return file
