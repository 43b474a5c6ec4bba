"""A rollout of `support` whose answers a judge scores: what the gateway wrote of it, and where scores are told."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from anven_pipelines.domain.gateway_event import GatewayEvent
from anven_pipelines.domain.gateway_text import GatewayText
from anven_pipelines.gateway.feedback_form import read_feedback
from anven_pipelines.gateway.refusals import Refusal
from anven_pipelines.migrate import of_kind
from anven_pipelines.resources.judge import Judge
from anven_pipelines.resources.online_judge import OnlineJudges
from tests.gateway_service import served
from tests.running_rollout import event_log
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from anven_pipelines.gateway.service import GatewayService
    from tests.pipeline.conftest import Place

KEY = "sk-scripted-gateway-7b1f"
NOW = datetime.now(UTC)
START = NOW - timedelta(hours=30)
LOOKED_AT = NOW + timedelta(days=2)
"""When the controller looks: scores, which are told now, have had their time by then."""
UPSTREAM = {"model": "openai/model", "url": "http://127.0.0.1:9/v1"}
GATEWAY = {"legacy": UPSTREAM, "target": UPSTREAM, "store_text": True}
ROLLOUT: dict[str, Any] = {
    "stages": [{"share": 0.5, "soak": "24h"}, {"share": 1.0, "soak": "24h"}],
    "limits": {"quality": 0.3},
    "least_units": 100,
    "label_delay": "2d",
    "stale": "9d",
    "waive": ["errors", "safety", "ttft", "latency", "cost", "drill"],
}


def begun(place: Place, judge_url: str, gateway_url: str, **changes: Any) -> OnlineJudges:
    """Sign `support` off and begin its first stage with a judge; return the judges of the place."""
    judge = {"model": "judge", "url": judge_url, "rubric": "It is right.", "concurrency": 8} | changes.pop("judge", {})
    declared = place.declare(rollout={**ROLLOUT, "judge": judge, **changes}, gateway=GATEWAY)
    set_up = of_kind(place.definitions, "judges", OnlineJudges)
    found = OnlineJudges(rollouts=set_up.rollouts, judge=Judge(), url=gateway_url, folder=set_up.folder)
    if not found.rollouts.status("support").is_open:
        sign_off(declared.migration, place.state, place.artifacts, now=START)
        found.rollouts.start("support", who="ada", now=START)
    return found


def serve(
    place: Place,
    units: int,
    answer: Callable[[bool, int], str],
    *,
    seed: int = 1,
    name: Callable[[int], str] | None = None,
) -> None:
    """Write what a gateway writes of so many users, half a day ago, one request and its text each, and a thumb up.

    Args:
        place: Where.
        units: How many.
        answer: What is answered, by whether the target did and by the user's number.
        seed: Of the draw of arms.
        name: Gives the request's id by the user's number; `q{seed}-{number}` where None.
    """
    rng = np.random.default_rng(seed)
    events, texts = [], []
    for number in range(units):
        at = START + timedelta(hours=12) * number / units
        target = bool(rng.random() < 0.5)
        arm = "target" if target else "legacy"
        request_id = f"q{seed}-{number}" if name is None else name(number)
        facts: dict[str, Any] = {"worker": f"w{seed}", "workload": "support", "request_id": request_id}
        request: dict[str, Any] = {
            "kind": "request",
            "attempt": 1,
            "generation": 1,
            "stage": 0,
            "share": 0.5,
            "bucket": 0.1,
        }
        request |= {"intended": arm, "served": arm, "status": "ok", "stream": False, "cached": False}
        request |= {"unit": f"{rng.integers(2**63):032x}"[::-1], "event_id": f"{seed}-r{number}"}
        events.append(GatewayEvent(**facts, **request, ts=at, seq=2 * number))
        thumb: dict[str, Any] = {"kind": "feedback", "event_id": f"{seed}-f{number}", "score": 1.0}
        events.append(GatewayEvent(**facts, **thumb, ts=at + timedelta(seconds=30), seq=2 * number + 1))
        said = json.dumps([{"role": "user", "content": f"Question {number}?"}])
        told = json.dumps({"role": "assistant", "content": answer(target, number)})
        text: dict[str, Any] = {"kind": "request", "event_id": f"{seed}-t{number}", "messages": said, "answer": told}
        redactor = {"worker": f"w{seed}-77"}  # a process of the worker's own
        texts.append(GatewayText(**facts | redactor, **text, ts=at + timedelta(milliseconds=2), seq=number))
    (event_log(place) / f"w{seed}-000000.jsonl").write_bytes(b"".join(event.to_line() for event in events))
    folder = event_log(place) / "texts"
    folder.mkdir(exist_ok=True)
    (folder / f"w{seed}-000000.jsonl").write_bytes(b"".join(text.to_line() for text in texts))


class Told(NamedTuple):
    """One score that a judge told the gateway."""

    request_id: str
    score: float
    outcome: str
    key: str | None


class Desk:
    """The gateway's feedback endpoint: a real worker's service takes what is told, and writes it to the event log."""

    def __init__(self, service: GatewayService) -> None:
        self.told: list[Told] = []
        self.refuse: int | None = None
        self.refuse_of: dict[str, int] = {}
        self.url = ""
        self._service = service

    def take(self, said: dict[str, Any], key: str | None) -> int:
        if self.refuse is not None:
            return self.refuse
        if (name := said["request_id"]) in self.refuse_of:
            return self.refuse_of[name]
        found = read_feedback(json.dumps(said).encode(), key=key)
        if isinstance(found, Refusal):
            return found.status
        if found.said.score is not None:
            self.told.append(Told(name, found.said.score, found.said.outcome or "", key))
        self._service.feedback(name, found.said, key=key)
        self._service.recorder.log.flush()
        return 202


@contextmanager
def desk(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Serve the endpoint until the block ends; its worker writes where the rollout's gateway does."""
    (place.folder / "desk").mkdir()
    with served(place.folder / "desk", events=event_log(place)) as service:
        found = Desk(service)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(401 if self.headers["Authorization"] != f"Bearer {KEY}" else 200)

            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(found.take(said, self.headers.get("Idempotency-Key")))

            def _answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            found.url = f"http://127.0.0.1:{server.server_port}"
            monkeypatch.setenv("ANVEN_GATEWAY_KEY", KEY)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield found
            finally:
                server.shutdown()
