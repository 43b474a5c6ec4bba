"""Each state of a rollout whose evidence is Prometheus' meets a Prometheus that is down, answers in part or forgot.

The server that knows all is a real one, filled with what the gateway's own counters would have told in the hours that
the states are made of. docs/rollout.md tells in words what stands here.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import pytest

from anven_pipelines.domain.gateway_event import parse_event
from anven_pipelines.gateway.unit_metrics import Maturity, UnitMetrics
from anven_pipelines.spec_rollout import Rollout
from tests.prometheus_server import backfill, free_port, prometheus_server
from tests.rollout_runner import Runner, rollouts_at
from tests.rollout_states import ROLLOUT, STATES, place_of, require_one_change, rewritten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime
    from pathlib import Path

    from anven_pipelines.domain.gateway_event import GatewayEvent
    from tests.faults.conftest import EveryState

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(600)]

GRID: Final = timedelta(hours=1)
MATURITY: Final = Maturity((declared := Rollout.model_validate(ROLLOUT)).settle + declared.label_delay)
PROVEN: Final = [name for name, state in STATES.items() if state.change in ("advanced", "completed", "rolled_back")]
SCRAPED: Final = 'job="anven-gateway",instance="gateway:4000"'


def test_a_prometheus_that_is_down_or_answers_in_part_moves_nothing_but_what_is_logged(
    every_state: EveryState, runs: Runner, tmp_path: Path
) -> None:
    """All states ask one server; a step of each is taken while it is down, and two when it is whole again."""
    port = free_port()
    home = every_state.copy(tmp_path / "home")
    gateway, whole = home / "gateway" / "events", tmp_path / "whole"
    backfill(whole, scraped(gateway, every_state.now))
    metrics = {"source": "prometheus", "url": f"http://127.0.0.1:{port}", "match": {"job": "anven-gateway"}}
    rewritten(home, f"sqlite:///{home / 'prometheus.db'}", metrics)

    unmoved(home, runs, every_state.now, "does not answer")
    with answering_in_part(port):
        unmoved(home, runs, every_state.now, "answers in part: ['a store is gone']", PROVEN)
    with prometheus_server(tmp_path / "empty", port=port):
        unmoved(home, runs, every_state.now, "has not scraped the gateway of late", PROVEN)
    with prometheus_server(whole, port=port):
        for _ in range(2):
            for name, each in STATES.items():
                step(home, runs, every_state.now, name)
                assert place_of(rollouts_at(home), name) == each.after, name
                require_one_change(rollouts_at(home), name)


def unmoved(home: Path, runs: Runner, now: datetime, why: str, names: Iterable[str] = STATES) -> None:
    """Take a step of each state, and assert that none followed from evidence that was not there."""
    for name in names:
        state = STATES[name]
        found = step(home, runs, now, name)
        place = place_of(rollouts_at(home), name)
        if name in PROVEN:
            assert found["decision"] == "Hold", name
            assert any(why in reason for reason in found["reasons"]), (name, found)
            assert place == state.before, name
        else:  # what is logged, or is a person's to do, needs no evidence
            assert place == state.after, name
        require_one_change(rollouts_at(home), name)


def step(home: Path, runs: Runner, now: datetime, name: str) -> dict[str, Any]:
    begun = rollouts_at(home).status(name).generation
    (ended,) = runs.run(home, now, gone_by=timedelta(0), workload=name, action="step" if begun else "start")
    assert ended.said is not None, name
    return ended.said


@contextmanager
def answering_in_part(port: int) -> Iterator[None]:
    """Answer every question with nothing and a warning, as a server does whose stores are not all there."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind = "matrix" if "query_range" in self.path else "vector"
            data = {"resultType": kind, "result": []}
            text = json.dumps({"status": "success", "warnings": ["a store is gone"], "data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def scraped(log: Path, now: datetime) -> Iterator[str]:
    """Yield what a Prometheus would have scraped each hour, and now, of the workers that wrote this log."""
    yield f"up{{{SCRAPED}}} 1 {now.timestamp():.3f}"
    for file in sorted(log.glob("*.jsonl")):
        events = sorted(map(parse_event, file.read_bytes().splitlines()), key=attrgetter("ts", "event_id"))
        if events:
            yield from scraped_of(events, now)


def scraped_of(events: list[GatewayEvent], now: datetime) -> Iterator[str]:
    """Yield the samples of one worker with one workload, whose counters the gateway's own code keeps."""
    workload, worker = next(event.workload for event in events if event.workload), events[0].worker
    units, told, at = UnitMetrics({workload: MATURITY}), 0, events[0].ts
    mine = f'{SCRAPED},workload="{workload}",worker="{worker}"'
    while True:
        at_s = f"{at.timestamp():.3f}"
        while told < len(events) and events[told].ts <= at:
            units.observe(events[told])
            told += 1
        for name, labels, value in units.samples(at):
            more = "".join(f',{label}="{text}"' for label, text in labels if label != "workload")
            yield f"{name}{{{mine}{more}}} {value:.10g} {at_s}"
        own = {
            "up": 1.0,
            "started_seconds": events[0].ts.timestamp(),
            "written_seconds": at.timestamp(),
            "score_wait_seconds": MATURITY.after.total_seconds(),
            "judged_share": MATURITY.judged,
        }
        for name, value in own.items():
            yield f"anven_worker_{name}{{{mine}}} {value:.10g} {at_s}"
        if at >= now:
            return
        at = min(at + GRID, now)
