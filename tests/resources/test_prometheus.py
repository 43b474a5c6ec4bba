"""A Prometheus that answers anything but a whole answer is told what was found and what was needed."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.rollout import Hold, decide
from anven_pipelines.domain.rollout_plan import RolloutPlan
from anven_pipelines.domain.rollout_status import RolloutStatus
from anven_pipelines.resources.production_metrics import ProductionMetrics
from anven_pipelines.resources.prometheus import Prometheus
from anven_pipelines.spec_rollout import Metrics, Rollout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = datetime(2026, 11, 20, tzinfo=UTC)
VECTOR = {"resultType": "vector", "result": [{"metric": {"a": "b"}, "value": [1.0, "3"]}]}


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Serve one answer to everything, on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_address[1]}"
        finally:
            found.shutdown()
            thread.join()


def saying(
    body: object, *, status: int = 200, kind: str = "application/json"
) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    return answer


def ask(url: str, **changes: Any) -> Any:
    metrics = Metrics.model_validate({"source": "prometheus", "url": url, "timeout": "5s", **changes})
    return Prometheus(metrics, environment={"TOKEN": " secret "}).instant("up", at=NOW)


def test_a_whole_answer_is_read_and_the_token_is_sent() -> None:
    asked: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(f"{handler.path} {handler.headers['Authorization']}")
        saying({"status": "success", "data": VECTOR})(handler)

    with server(answer) as url:
        [found] = ask(f"{url}/prefix/", token_env="TOKEN")
    assert (found.labels, found.value) == ({"a": "b"}, 3.0)
    assert asked == [f"/prefix/api/v1/query?query=up&time={NOW.timestamp():.3f} Bearer secret"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (saying({"status": "success", "data": VECTOR, "warnings": ["a store is gone"]}), "in part: .*a store is gone"),
        (saying({"status": "success", "data": VECTOR, "infos": ["not a counter"]}), "in part: .*not a counter"),
        (saying("<html>Sign in</html>", kind="text/html"), "is none: .*text/html of 20 bytes: '<html>Sign in</html>'"),
        (saying("404 page not found", status=404, kind="text/plain"), "is none: it answered with status 404"),
        (saying("{", status=200), "is none"),
        (saying([], status=200), "is none"),
        (saying("no", status=401), "refuses with status 401: the token that rollout.metrics.token_env names"),
        (saying("", status=302), "a redirect, status 302"),
        (saying({"status": "error", "errorType": "bad_data", "error": "parse"}, status=400), "400, bad_data: parse"),
        (saying({"status": "success", "data": {"resultType": "matrix", "result": []}}), "where a vector was asked for"),
        (saying({"status": "success", "data": None}), "where a vector was asked for"),
        (saying({"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}}]}}), "has no value"),
    ],
)
def test_what_is_no_whole_answer_is_refused(answer: Callable[[BaseHTTPRequestHandler], None], words: str) -> None:
    with server(answer) as url, pytest.raises(UnavailableService, match=words) as caught:
        ask(url)
    assert url in str(caught.value)


def test_an_answer_that_drips_ends_at_the_limit() -> None:
    ended = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not ended.wait(0.05):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return

    with server(drip) as url:
        with pytest.raises(UnavailableService, match=r"within 0\.5 s \(rollout\.metrics\.timeout\)"):
            ask(url, timeout="500ms")
        ended.set()


def test_a_token_that_is_not_set_is_told_before_anything_is_sent() -> None:
    with pytest.raises(InvalidInput, match="the environment variable OTHER is not set or empty"):
        ask("http://127.0.0.1:9", token_env="OTHER")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"source": "prometheus"}, "`url` is needed with `source: prometheus`"),
        ({"url": "http://here"}, "`url` is needed with `source: prometheus`"),
        ({"source": "prometheus", "url": "http://user:word@here"}, "pattern"),
        ({"source": "prometheus", "url": "here"}, "pattern"),
        ({"source": "prometheus", "url": "http://here", "timeout": "3m"}, "a `timeout` above 0 and up to 2m"),
        ({"source": "prometheus", "url": "http://here", "match": {"a-b": "c"}}, "pattern"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Metrics.model_validate(section)


@pytest.mark.parametrize("answer", [saying("<html>", kind="text/html"), saying({"status": "success", "data": VECTOR})])
def test_whatever_it_says_instead_is_unknown_and_holds(answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
    """A vector of something else is answered everywhere: no worker is known by it."""
    status = RolloutStatus(phase="running", attempt=1, generation=1, stage=0, entered_at=NOW - timedelta(days=9))
    with server(answer) as url:
        rollout = Rollout.model_validate({"metrics": {"source": "prometheus", "url": url}})
        plan = RolloutPlan(workload="support", rollout=rollout, metrics=("errors",))
        status = RolloutStatus(**{**status.__dict__, "plan": plan.digest})
        found = ProductionMetrics(events="", store="").evidence(plan, status, now=NOW)
    assert found.problem is not None
    decision = decide(plan, status, found, now=NOW)
    assert isinstance(decision, Hold)
    assert ("unknown", found.problem) in [(gap.kind, gap.reason) for gap in decision.gaps]
