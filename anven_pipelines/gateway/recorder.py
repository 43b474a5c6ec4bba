"""Where one worker takes down what happened: the event log, the counters, and spans and texts where they are kept."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anven_pipelines.domain.gateway_event import TEXT_LIMIT, GatewayEvent
from anven_pipelines.domain.gateway_text import FOLDER as TEXTS_FOLDER
from anven_pipelines.gateway.event_log import EventLog
from anven_pipelines.gateway.metrics import GatewayMetrics, hold_lock, write_metrics
from anven_pipelines.gateway.segments import LogLimits
from anven_pipelines.gateway.texts import TextLog
from anven_pipelines.gateway.unit_metrics import Maturity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.gateway_text import Kind
    from anven_pipelines.gateway.exchange import Exchange, Trace
    from anven_pipelines.gateway.mistakes import Mistakes
    from anven_pipelines.gateway.settings import GatewaySettings
    from anven_pipelines.gateway.spans import RequestSpans


class Recorder:
    """The events of one worker, and what is made of them."""

    def __init__(self, settings: GatewaySettings, *, worker: str, mistakes: Mistakes) -> None:
        """Open the logs.

        Args:
            settings: What `anven gateway` wrote.
            worker: Name of this process, never used by another.
            mistakes: Gets those of ours; the request goes on.
        """
        self.spans: RequestSpans | None = None
        """Gets the event of each request, where spans are sent."""
        self._worker = worker
        self._mistakes = mistakes
        self._seq = itertools.count(1)
        events = Path(settings.events)
        maturity = {name: Maturity(each.score_wait, each.judged) for name, each in settings.workloads.items()}
        self.metrics = GatewayMetrics(worker, maturity)
        self.metrics_folder = events / "metrics"
        self._metrics_lock = hold_lock(self.metrics_folder, worker)
        self.log = EventLog(events, worker=worker, limits=LogLimits(total_bytes=settings.events_bytes))
        self.texts = _text_log(settings, events / TEXTS_FOLDER, worker)

    def close(self) -> None:
        """Write what waits and end the threads."""
        self.log.close()
        if self.spans is not None:
            self.spans.close()
        if self.texts is not None:
            self.texts.close()
        self.publish_metrics()
        if self._metrics_lock is not None:
            self._metrics_lock.close()

    def append(
        self,
        trace: Trace | None = None,
        /,
        *,
        is_repeat: bool = False,
        **facts: Any,  # noqa: ANN401 - the fields of an event
    ) -> None:
        """Write an event of now.

        Args:
            trace: The request's own time, for its span; None where the event is of no request.
            is_repeat: Whether an event with this id was written before.
            facts: Its fields; `event_id` is made where it is missing.
        """
        seq = next(self._seq)
        facts.setdefault("event_id", f"{self._worker}-{seq}")
        event = GatewayEvent(**facts, ts=datetime.now(UTC), worker=self._worker, seq=seq)
        if not is_repeat:  # the log's reader knows it by its id; counters would take it in again
            self.metrics.observe(event)
        self.log.append(event)
        if self.spans is not None and trace is not None:
            try:
                self.spans.append(event, trace)
            except Exception as error:  # noqa: BLE001 - a span must not fail a request
                self._mistakes.note("the span of a request was not made", error=error)

    def shadowed(self, exchange: Exchange, facts: Mapping[str, Any], trace: Trace) -> None:
        """Write the event of a mirrored request; `facts` are its outcome, `trace` its own time."""
        if (assignment := exchange.assignment) is not None:
            version = exchange.prompt_versions.get("target")
            request = {
                "prompt_version": version,
                "request_id": (exchange.request_id or "")[:TEXT_LIMIT] or None,
                **facts,
            }
            self.append(trace, **assignment.facts() | request, kind="shadow")

    def keep_text(
        self, exchange: Exchange, kind: Kind, messages: Sequence[Any] | None, answer: Mapping[str, Any] | None
    ) -> None:
        """Hand over what was asked and answered, to be redacted and kept beside the event of that kind."""
        if self.texts is None or exchange.assignment is None:
            return
        try:
            self.texts.append(
                kind=kind,
                ts=datetime.now(UTC),
                workload=exchange.assignment.route.workload,
                request_id=(exchange.request_id or "")[:TEXT_LIMIT] or None,
                messages=messages,
                answer=answer,
            )
        except Exception:  # noqa: BLE001 - the event is written, and what it came from must not fail
            self._mistakes.note("a text of %s was not taken", exchange.assignment.route.workload)

    def metric_lines(self) -> list[str]:
        """Return this worker's samples as they are now; gauges are as they were last set."""
        self.metrics.total("anven_events_dropped_total", self.log.status.dropped)
        if self.spans is not None:
            self.metrics.total("anven_spans_dropped_total", self.spans.status.dropped)
        if self.texts is not None:
            texts = self.texts.status
            for name in ("written", "failed", "dropped"):
                self.metrics.total(f"anven_texts_{name}_total", getattr(texts, name))
        return self.metrics.lines()

    def publish_metrics(self) -> None:
        """Write the samples to where the other workers read them."""
        write_metrics(self.metrics_folder, self._worker, self.metric_lines())


def _text_log(settings: GatewaySettings, folder: Path, worker: str) -> TextLog | None:
    """Return the log of texts where a workload keeps its own; else nothing of it runs."""
    kept = {name: each.gateway.redact for name, each in settings.workloads.items() if each.gateway.store_text}
    if not kept:
        return None
    return TextLog(folder, worker=worker, patterns=kept, total_bytes=settings.texts_bytes)
