"""Spans of a gateway as it runs: a real LiteLLM proxy, and a real OTLP receiver that takes them, refuses or hangs."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from anven_pipelines.ingest.gateway_events import read_batch
from tests.gateway_proxy import Arms, Gateway, gateway
from tests.receivers import Hook, hook
from tests.scripted_endpoint import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import polars as pl

pytestmark = pytest.mark.timeout(400)

CALLER: Final = "00f067aa0ba902b7"
SECRET: Final = "Rumpelstiltskin"
NEVER_MS: Final = "3600000"
WORKLOADS: dict[str, dict[str, Any]] = {
    "told": {},
    "failing": {},
    "broken": {"gateway": {"breaker": {"error_burst": 0.9}}},
    "shadow": {"gateway": {"shadow": {"calls_per_day": 3}}},
}


@contextmanager
def traced(folder: Path, **settings: str) -> Iterator[tuple[Gateway, Hook]]:
    """Run a gateway that sends its spans to a receiver; `settings` are further variables of OpenTelemetry."""
    with hook(ExportTraceServiceRequest.FromString) as receiver:
        environ = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": receiver.url, **settings}
        with gateway(folder, WORKLOADS, environ) as started:
            yield started, receiver


def spans_in(receiver: Hook) -> list[dict[str, Any]]:
    """Return what the receiver got, attributes and ids as Python's own values."""
    return [
        {
            "trace": span.trace_id.hex(),
            "parent": span.parent_span_id.hex(),
            "name": span.name,
            "ms": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6,
            "code": span.status.code,
            **{each.key: _value(each.value) for each in span.attributes},
        }
        for request in list(receiver.got)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _value(found: Any) -> Any:
    kind = found.WhichOneof("value")
    return [_value(each) for each in found.array_value.values] if kind == "array_value" else getattr(found, kind)


def trace_of(number: int) -> str:
    return f"{number + 1:032x}"


def ask(gate: Gateway, workload: str, number: int, **body: Any) -> httpx.Response:
    """Ask as a caller that records its own span."""
    content = [{"role": "user", "content": f"Q: {SECRET}"}]
    return gate.client.post(
        "/v1/chat/completions",
        json={"model": workload, "user": f"{SECRET} {number}", "messages": content, **body},
        headers={"traceparent": f"00-{trace_of(number)}-{CALLER}-01", "tracestate": f"app={SECRET}"},
    )


def requests_in(gate: Gateway) -> pl.DataFrame:
    """Return the events that have spans."""
    events = read_batch(gate.started.events, {}).events
    return events.filter(events["kind"].is_in(["request", "shadow"]))


def drive(gate: Gateway) -> dict[str, str]:
    """Ask in every way that a request may end; return the trace of each request by its id."""
    answers: list[httpx.Response] = []

    def keep(workload: str, **body: Any) -> None:
        answers.append(ask(gate, workload, len(answers), **body))

    gate.routed("told", 0.5)
    for number in range(8):
        keep("told", stream=bool(number % 2))
    gate.routed("told", 1.0, killed=True)
    keep("told")
    gate.routed("failing", 1.0)
    gate.arms.target = lambda _: Reply(SECRET, status=500)
    keep("failing")
    keep("failing", stream=True)
    gate.arms.legacy = lambda _: Reply(SECRET, status=400)
    keep("failing")
    gate.routed("broken", 1.0)
    gate.arms.target = lambda _: Reply(f"{SECRET} two three four", breaks="error")
    with suppress(httpx.HTTPError):
        keep("broken", stream=True)
    fresh = Arms()
    gate.arms.legacy, gate.arms.target = fresh.legacy, fresh.target
    gate.routed("shadow", 0.0, shadow=1.0)
    for _ in range(4):
        keep("shadow")
    return {
        answer.headers["x-litellm-call-id"]: trace_of(number)
        for number, answer in enumerate(answers)
        if "x-litellm-call-id" in answer.headers
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, list[dict[str, Any]], Mapping[str, str]]:
    """Return the events, the spans and the trace of each request id of a gateway that was asked and then stopped."""
    # It would wait an hour before it sends by itself: what comes is what is sent while it stops.
    with traced(tmp_path_factory.mktemp("spans"), OTEL_BSP_SCHEDULE_DELAY=NEVER_MS) as (gate, receiver):
        traces = drive(gate)
        gate.until(lambda: gate.status()["in_flight"] == 0 and requests_in(gate).height >= len(traces) + 3)
        waiting = gate.status()["spans"]
        assert (waiting["exported"], waiting["waiting"]) == (0, requests_in(gate).height)
        assert spans_in(receiver) == []
        gate.started.process.terminate()
        gate.started.process.wait()
        events = requests_in(gate)
        return events, spans_in(receiver), traces


def test_each_event_has_one_span_which_says_the_same(
    seen: tuple[pl.DataFrame, list[dict[str, Any]], Mapping[str, str]],
) -> None:
    events, spans, traces = seen
    assert events.height >= len(traces) + 3
    assert set(events["status"]) == {"ok", "error"}
    assert {"killed", "fallback"} <= set(events["why"])
    assert sorted(events["event_id"]) == sorted(span["anven.event_id"] for span in spans)
    by_id = {span["anven.event_id"]: span for span in spans}
    for event in events.iter_rows(named=True):
        span = by_id[event["event_id"]]
        for name in ("kind", "workload", "intended", "served", "generation", "why", "error_class", "ttft_ms", "status"):
            assert span.get(f"anven.{name}") == event[name], (name, event)
        assert span.get("gen_ai.usage.output_tokens") == event["output_tokens"]
        assert span.get("gen_ai.response.finish_reasons") == (event["finish_reason"] and [event["finish_reason"]])
        assert span.get("error.type") == (event["error_class"] if event["status"] == "error" else None)
        assert (span["code"] == 2) == (event["status"] == "error")
        model = "target-model" if event["served"] == "target" else "legacy-model" if event["served"] else None
        assert span.get("gen_ai.response.model") == model
        assert span["server.address"] == "127.0.0.1"
        if event["kind"] == "request" and event["latency_ms"] is not None:
            assert span["ms"] == pytest.approx(event["latency_ms"], abs=0.01)


def test_each_span_is_a_child_of_its_callers(
    seen: tuple[pl.DataFrame, list[dict[str, Any]], Mapping[str, str]],
) -> None:
    _, spans, traces = seen
    assert {span["parent"] for span in spans} == {CALLER}
    told = {span["anven.request_id"]: span["trace"] for span in spans if span["anven.request_id"] in traces}
    assert told == traces
    mirrored = [span for span in spans if span["anven.kind"] == "shadow"]
    assert len(mirrored) == 3
    assert {traces[span["anven.request_id"]] == span["trace"] for span in mirrored} == {True}


def test_no_span_holds_text_of_a_prompt_an_answer_or_a_user(
    seen: tuple[pl.DataFrame, list[dict[str, Any]], Mapping[str, str]],
) -> None:
    events, spans, _ = seen
    told = json.dumps(spans)
    assert SECRET not in told
    assert "adapted" not in told
    assert not [unit for unit in set(events["unit"]) if unit in told]


def test_a_receiver_that_refuses_or_hangs_harms_no_request_and_no_end_and_its_loss_is_counted(
    tmp_path: Path,
) -> None:
    small = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "8",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "600",
    }
    with traced(tmp_path, **small) as (gate, receiver):
        gate.routed("told", 0.5)
        receiver.status = 400
        assert ask(gate, "told", 0).status_code == 200
        gate.until(lambda: gate.status()["spans"]["dropped"] == 1)
        assert "did not take spans" in gate.status()["spans"]["problem"]
        receiver.status = None
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda number: ask(gate, "told", number), range(1, 41)))
        assert {answer.status_code for answer in answers} == {200}
        gate.until(lambda: gate.status()["in_flight"] == 0)
        status = gate.status()
        assert status["spans"] == {**status["spans"], "exported": 0, "dropped": 1 + 40 - 8, "waiting": 8}
        assert (status["internal_errors"], status["events"]["dropped"]) == (0, 0)
        gate.started.process.terminate()  # the receiver hangs still
        assert gate.started.process.wait() == -signal.SIGTERM
        assert requests_in(gate).height == 41
        [samples] = (gate.started.events / "metrics").glob("*.prom")
        assert dropped_in(samples.read_text()) == 41


def dropped_in(samples: str) -> int:
    [line] = [line for line in samples.splitlines() if line.startswith("anven_spans_dropped_total{")]
    return int(line.rpartition(" ")[2])
