"""Spans as a real receiver gets them, one that is slow or down included."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.gateway_event import GatewayEvent
from anven_pipelines.domain.prompts import carry_over
from anven_pipelines.gateway.exchange import Trace
from anven_pipelines.gateway.proxy_log import keep_text_out
from anven_pipelines.gateway.settings import ArmSettings, WorkloadSettings, sends_spans
from anven_pipelines.gateway.spans import RequestSpans
from anven_pipelines.spec import Contract
from anven_pipelines.spec_gateway import Gateway, Upstream
from tests.receivers import Hook, hook, until

if TYPE_CHECKING:
    from collections.abc import Iterator

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SENT = Trace(f"00-{TRACE}-{CALLER}-01", started_ns=1_700_000_000_000_000_000, ended_ns=1_700_000_000_250_000_000)
WORKLOADS = {
    "support": WorkloadSettings(
        legacy=ArmSettings(model="openai/gpt-4o", prompt=carry_over()),
        target=ArmSettings(model="hosted_vllm/ANVEN-3b", prompt=carry_over(), url="https://vllm/v1"),
        gateway=Gateway(legacy=Upstream(model="openai/gpt-4o")),
        contract=Contract(),
    )
}


def event(number: int = 1, **changes: Any) -> GatewayEvent:
    values = {"workload": "support", "intended": "target", "served": "target", "status": "ok", **changes}
    ts = datetime(2026, 11, 20, tzinfo=UTC)
    return GatewayEvent(event_id=f"w-{number}", kind="request", ts=ts, worker="w", seq=number, **values)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Log as the proxy does."""
    before = logging.getLogRecordFactory()
    keep_text_out()
    yield
    logging.setLogRecordFactory(before)


@contextmanager
def sending(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Iterator[tuple[Hook, RequestSpans]]:
    """Send to a receiver of the test's own; `settings` are further variables of OpenTelemetry."""
    with hook(ExportTraceServiceRequest.FromString) as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", receiver.url)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        spans = RequestSpans(WORKLOADS, worker="w")
        try:
            yield receiver, spans
        finally:
            receiver.ended.set()
            spans.close()


def got(receiver: Hook) -> list[Any]:
    return [
        span for each in receiver.got for found in each.resource_spans for of in found.scope_spans for span in of.spans
    ]


def test_a_span_has_the_time_of_the_request_and_the_callers_span_as_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with sending(monkeypatch) as (receiver, spans):
        assert spans.append(event(), SENT)
        spans.close()  # without it the SDK would wait for more
        [span] = got(receiver)
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER)
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (SENT.started_ns, SENT.ended_ns)
        assert (span.name, span.kind, span.status.code) == ("chat ANVEN-3b", span.SPAN_KIND_CLIENT, 0)
        told = {each.key: each.value for each in span.attributes}
        assert told["anven.event_id"].string_value == "w-1"
        assert (told["server.address"].string_value, told["server.port"].int_value) == ("vllm", 443)
        [resource] = {str(found.resource) for each in receiver.got for found in each.resource_spans}
        assert "anven-gateway" in resource
        assert spans.status == (1, 0, 0, None)


@pytest.mark.parametrize("traceparent", [None, "", "none", f"00-{'0' * 32}-{CALLER}-01", f"00-{TRACE}-{CALLER}"])
def test_a_request_without_a_callers_trace_begins_one(monkeypatch: pytest.MonkeyPatch, traceparent: str | None) -> None:
    with sending(monkeypatch) as (receiver, spans):
        spans.append(event(), SENT._replace(traceparent=traceparent))
        spans.close()
        [span] = got(receiver)
        assert span.parent_span_id == b""
        assert span.trace_id.hex() not in {TRACE, "0" * 32}


def test_a_trace_that_its_caller_does_not_record_gets_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    with sending(monkeypatch) as (receiver, spans):
        spans.append(event(), SENT._replace(traceparent=f"00-{TRACE}-{CALLER}-00"))
        spans.close()
        assert got(receiver) == []
        assert spans.status == (0, 0, 0, None)


def test_a_client_that_got_an_error_has_a_failed_span(monkeypatch: pytest.MonkeyPatch) -> None:
    with sending(monkeypatch) as (receiver, spans):
        spans.append(event(status="error", served=None, error_class="Timeout"), SENT)
        spans.close()
        [span] = got(receiver)
        assert span.status.code == span.status.STATUS_CODE_ERROR


def test_a_receiver_that_hangs_holds_nobody_up_and_what_is_too_much_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"OTEL_BSP_MAX_QUEUE_SIZE": "4", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2", "OTEL_EXPORTER_OTLP_TIMEOUT": "900"}
    with sending(monkeypatch, **small) as (receiver, spans):
        receiver.status = None
        taken = [spans.append(event(number), SENT) for number in range(1, 11)]
        assert taken == [True] * 4 + [False] * 6
        assert spans.status[:3] == (0, 6, 4)
        spans.close(timeout_s=0.5)  # it hangs still: what it has not taken is given up
        assert spans.status[:3] == (0, 10, 0)
        assert not spans.append(event(11), SENT)


@pytest.mark.usefixtures("quiet")
def test_a_receiver_that_refuses_is_told_until_it_takes_spans_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with sending(monkeypatch, OTEL_BSP_SCHEDULE_DELAY="20") as (receiver, spans):
        receiver.status = 400
        spans.append(event(1), SENT)
        until(lambda: spans.status.dropped == 1)
        assert "did not take spans; proxy.log says why" in (spans.status.problem or "")
        assert "code: 400, reason: Bad Request" in caplog.text
        receiver.status = 200
        spans.append(event(2), SENT)
        until(lambda: spans.status.exported == 1)
        assert spans.status == (1, 1, 0, None)


@pytest.mark.usefixtures("quiet")
def test_where_nobody_listens_spans_are_given_up_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and not listened at
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1/traces"
        with sending(
            monkeypatch,
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=url,
            OTEL_EXPORTER_OTLP_TIMEOUT="0.5",
            OTEL_BSP_SCHEDULE_DELAY="20",
        ) as (_, spans):
            assert spans.append(event(), SENT)
            until(lambda: spans.status.dropped == 1)
            assert spans.status[:3] == (0, 1, 0)
            assert "Failed to export spans batch due to timeout" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "few"),
    ],
)
def test_a_value_that_the_sdk_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match="OTEL_"):
        RequestSpans(WORKLOADS, worker="w")


def test_a_gateway_that_sends_no_spans_loads_no_exporter() -> None:
    program = (
        "import sys, anven_pipelines.gateway.plugin, anven_pipelines.gateway_run;"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.exporter', 'opentelemetry.sdk'))"
        " or name == 'anven_pipelines.gateway.spans'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
    ],
)
def test_the_standard_variables_say_whether_spans_are_sent(environ: dict[str, str], *, expected: bool) -> None:
    assert sends_spans(environ) is expected


def test_a_protocol_that_is_not_spoken_is_refused() -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(InvalidInput, match=r"OTEL_EXPORTER_OTLP_PROTOCOL is grpc.*OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="):
        sends_spans(environ)
    assert sends_spans({**environ, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"})
