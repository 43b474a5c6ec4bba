"""Spans of the event log's requests, sent by OpenTelemetry's SDK over OTLP/HTTP.

What is sent, where and how often is set by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_*`, `OTEL_BSP_*`,
`OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`, ...), which the SDK reads. A provider of our own: the process-wide one is
left to LiteLLM.

The SDK's queue throws out the oldest span without a word where it is full. So what waits is counted before it, and
what is too much is dropped, and counted, there.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.gateway_span import request_span, served_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan

    from anven_pipelines.domain.gateway_event import GatewayEvent
    from anven_pipelines.domain.gateway_span import ServedModel
    from anven_pipelines.domain.traffic import Arm
    from anven_pipelines.gateway.exchange import Trace
    from anven_pipelines.gateway.settings import ArmSettings, WorkloadSettings

SERVICE: Final = "anven-gateway"
STOP_S: Final = 5.0
"""Longest time that spans may still need when the gateway stops."""

_QUEUE_ENV: Final = "OTEL_BSP_MAX_QUEUE_SIZE"
_QUEUED: Final = 2048  # the SDK's own default
_PORTS: Final = {"http": 80, "https": 443}


class SpanStatus(NamedTuple):
    """What became of the spans so far, and what keeps them from the receiver."""

    exported: int
    dropped: int
    waiting: int
    problem: str | None


class RequestSpans:
    """Takes the events of one worker at once; threads of the SDK send their spans."""

    def __init__(self, workloads: Mapping[str, WorkloadSettings], *, worker: str) -> None:
        """Get ready to send; nothing is asked of the receiver yet.

        Args:
            workloads: What the gateway serves.
            worker: Name of this process.

        Raises:
            InvalidInput: a variable of OpenTelemetry has a value that the SDK cannot use.
        """
        self._models = {name: _models(each) for name, each in workloads.items()}
        self._queued = _queue_size()
        self._taken = self._refused = 0
        try:
            self._exporter = _CountingExporter(OTLPSpanExporter())
            self._provider = TracerProvider(resource=_resource(worker), shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter, max_queue_size=self._queued))
        except ValueError as error:
            message = f"the variables OTEL_* (OTEL_BSP_* above all) cannot be used: {error} Mend or unset them"
            raise InvalidInput(message) from error
        self._tracer = self._provider.get_tracer("anven_pipelines.gateway")
        self._parents = TraceContextTextMapPropagator()
        self._stopping, self._stopped = threading.Event(), threading.Event()
        # Made now: while the interpreter ends, when `close` may be called, Python makes no threads.
        threading.Thread(target=self._stop, name="anven-spans", daemon=True).start()

    def append(self, event: GatewayEvent, trace: Trace) -> bool:
        """Take the event of a request without waiting; return False where its span is dropped as too many wait."""
        if event.workload not in self._models:
            return True
        if self.status.waiting >= self._queued or self._stopping.is_set():
            self._refused += 1
            return False
        made = request_span(event, self._models[event.workload])
        span = self._tracer.start_span(
            made.name,
            context=self._parent(trace.traceparent),
            kind=SpanKind.CLIENT,
            attributes=made.attributes,
            start_time=trace.started_ns,
        )
        if made.failed:
            span.set_status(Status(StatusCode.ERROR))
        if span.get_span_context().trace_flags.sampled:
            self._taken += 1  # before its end, from which on it may be sent
        span.end(trace.ended_ns)
        return True

    def close(self, timeout_s: float = STOP_S) -> None:
        """Send what waits; what a receiver has not taken by then is dropped."""
        self._stopping.set()
        self._stopped.wait(timeout_s)
        self._exporter.is_open = False

    @property
    def status(self) -> SpanStatus:
        """What became of the spans so far."""
        sent = self._exporter
        waiting = self._taken - sent.exported - sent.failed
        lost = 0 if sent.is_open else waiting
        return SpanStatus(sent.exported, self._refused + sent.failed + lost, waiting - lost, sent.problem)

    def _parent(self, traceparent: str | None) -> Context:
        """Read the caller's header; without one, or with one that is none, the span is the first of its trace.

        `tracestate` is left alone: it is text of the client's.
        """
        return self._parents.extract({} if traceparent is None else {"traceparent": traceparent})

    def _stop(self) -> None:
        self._stopping.wait()
        self._provider.shutdown()
        self._stopped.set()


class _CountingExporter(SpanExporter):
    """Counts what becomes of the spans; used by the SDK's thread alone."""

    def __init__(self, exporter: SpanExporter) -> None:
        self.exported = 0
        self.failed = 0
        self.problem: str | None = None
        self.is_open = True
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.exported += len(spans)
                self.problem = None
            else:
                self.failed += len(spans)
                self.problem = "the receiver of OTEL_EXPORTER_OTLP_ENDPOINT did not take spans; proxy.log says why"
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _queue_size() -> int:
    found = os.environ.get(_QUEUE_ENV) or str(_QUEUED)
    if not found.isdecimal():
        message = f"{_QUEUE_ENV} is {found!r}; a number of spans is needed, such as {_QUEUED}"
        raise InvalidInput(message)
    return int(found)


def _resource(worker: str) -> Resource:
    """Describe this process by what the environment says; each worker is an instance of its own."""
    told = Resource.create()
    ours = Resource({SERVICE_INSTANCE_ID: worker})
    if str(told.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        ours = ours.merge(Resource({SERVICE_NAME: SERVICE}))
    return told.merge(ours)


def _models(workload: WorkloadSettings) -> dict[Arm, ServedModel]:
    return {"legacy": _model(workload.legacy), "target": _model(workload.target)}


def _model(arm: ArmSettings) -> ServedModel:
    if arm.url is None:
        return served_model(arm.model)
    url = urlsplit(arm.url)
    return served_model(arm.model, address=url.hostname, port=url.port or _PORTS.get(url.scheme))
