"""What the gateway does with a request, apart from LiteLLM: deal it to an arm, watch the arm, write the event."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
import uuid
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.breaker import Observation
from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.gateway_event import SAFE, TEXT_LIMIT, UNKNOWN_REQUEST, UNSAFE, GatewayEvent
from anven_pipelines.domain.prompts import apply
from anven_pipelines.domain.traffic import is_mirrored
from anven_pipelines.gateway.assignment import Assignment, assign, unit_of
from anven_pipelines.gateway.breakers import Breakers
from anven_pipelines.gateway.event_log import EventLog, LogLimits
from anven_pipelines.gateway.exchange import Exchange, Usage
from anven_pipelines.gateway.feedback import FeedbackIds
from anven_pipelines.gateway.metrics import GatewayMetrics, hold_lock, write_metrics
from anven_pipelines.gateway.shadow_request import shadow_request
from anven_pipelines.gateway.texts import TextLog
from anven_pipelines.gateway.traffic_source import TrafficSource
from anven_pipelines.gateway.unit_metrics import Maturity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anven_pipelines.domain.breaker import BreakerState
    from anven_pipelines.domain.gateway_text import Kind
    from anven_pipelines.domain.traffic import Arm
    from anven_pipelines.gateway.exchange import Trace
    from anven_pipelines.gateway.feedback import Said
    from anven_pipelines.gateway.settings import ArmSettings, GatewaySettings, WorkloadSettings
    from anven_pipelines.gateway.spans import RequestSpans

METRICS_S: Final = 1.0

GRACE_S: Final = 3.0
"""How long an event waits for the log callback, which knows tokens; then it is written without them."""

PROMPT_UNFIT: Final = "PromptUnfit"
"""Error class of a request whose messages no rewrite of the target's prompt fits; legacy serves it."""

NOT_DEALT: Final = "NotDealt"
"""Error class of a request that a mistake of ours kept from the target; legacy serves it."""

_REMEMBERED: Final = 100_000
_REFUSED: Final = frozenset({400, 413, 422})
"""HTTP statuses that blame the request. LiteLLM's classes do not say it: a 402 is a BadRequestError there."""

_log = logging.getLogger("anven.gateway")


class _Served(NamedTuple):
    """What a feedback needs to know of the request it is about."""

    assignment: Assignment
    served: Arm | None


class GatewayService:
    """One worker's part of the gateway."""

    def __init__(self, settings: GatewaySettings, *, key: bytes) -> None:
        """Open the event log and follow the traffic file.

        Args:
            settings: What `anven gateway` wrote.
            key: Secret that deals units to arms.
        """
        self.worker = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.workloads = settings.workloads
        self.internal_errors = 0
        self.after: Callable[[Exchange], None] = lambda _: None
        """Gets each request that ended well, for what is done after the client has its answer."""
        self.spans: RequestSpans | None = None
        """Gets the event of each request, where spans are sent."""
        self.requests: dict[str, Exchange] = {}
        self._key = key
        self._seq = itertools.count(1)
        self._numbers = itertools.count(1)
        self._feedback_ids = FeedbackIds()
        self._served: OrderedDict[str, _Served] = OrderedDict()
        events = Path(settings.events)
        maturity = {name: Maturity(each.score_wait, each.judged) for name, each in settings.workloads.items()}
        self.metrics = GatewayMetrics(self.worker, maturity)
        self.metrics_folder = events / "metrics"
        self._metrics_lock = hold_lock(self.metrics_folder, self.worker)
        self._metrics_at = 0.0
        self.log = EventLog(events, worker=self.worker, limits=LogLimits(total_bytes=settings.events_bytes))
        self.texts = _text_log(settings, events / "texts", self.worker)
        self.traffic = TrafficSource(Path(settings.traffic))
        limits = {name: each.limits for name, each in settings.workloads.items()}
        self.breakers = Breakers(events / "breakers", limits, changed=self._breaker_changed)
        self.traffic.follow(self._tick)

    def close(self) -> None:
        """Write what waits and end the threads."""
        self.traffic.stop()
        for exchange in list(self.requests.values()):
            if exchange.status is not None:
                self._write(exchange)
        self.log.close()
        if self.spans is not None:
            self.spans.close()
        if self.texts is not None:
            self.texts.close()
        write_metrics(self.metrics_folder, self.worker, self.metric_lines())
        if self._metrics_lock is not None:
            self._metrics_lock.close()

    def is_idle(self) -> bool:
        """Return whether no client waits for an answer."""
        return all(exchange.status is not None for exchange in list(self.requests.values()))

    def begin(self, now_s: float) -> Exchange:
        """Return the exchange of a request whose first byte is here."""
        exchange = Exchange(str(next(self._numbers)), now_s)
        self.requests[exchange.id] = exchange
        return exchange

    def deal(self, data: dict[str, Any], headers: Mapping[str, str], exchange: Exchange) -> None:
        """Deal a chat request to an arm: rewrite model, messages, parameters and cache namespace in place.

        Args:
            data: LiteLLM's request; `model` is the workload's name.
            headers: The client's headers, in lower case.
            exchange: Gets the assignment.
        """
        workload = self.workloads[data["model"]]
        route = self.traffic.traffic.of(data["model"])
        unit = unit_of(data, headers, kind=workload.gateway.unit)
        assignment = assign(self._key, route, unit, breaker_open=self.breakers.is_open(route))
        exchange.request_id = data.get("litellm_call_id")
        exchange.traceparent = headers.get("traceparent")
        exchange.stream = bool(data.get("stream"))
        exchange.prompt_versions = {
            "legacy": workload.legacy.prompt.version,
            "target": workload.target.prompt.version,
        }
        if self.texts is not None and workload.gateway.store_text:
            exchange.messages = list(data.get("messages") or [])  # the list itself is LiteLLM's to change
        exchange.assignment = assignment
        if assignment.asked == "target" and (unfit := self._ask_target(data, workload, assignment)):
            exchange.is_unfit, exchange.is_counted, exchange.error_class = True, True, unfit
        elif assignment.asked == "legacy":
            self._mirror(data, workload, exchange)
        if data["model"] == route.workload:
            data.update(model=group(route.workload, "legacy"))
            data["cache"] = _cache(data, workload.legacy, assignment, "legacy")

    def arm_failed(self, exchange: Exchange, error: Exception, *, is_first: bool) -> None:
        """Take down that an attempt failed; the first one is that of the arm that was asked first.

        A request that the arm refuses is the client's mistake where the other arm refuses it, too; where legacy can
        answer it, `rescued` counts it against the target.
        """
        if not is_first or exchange.assignment is None:
            return
        exchange.error_class = exchange.error_class or type(error).__name__
        if getattr(error, "status_code", None) not in _REFUSED:
            self._count(exchange, failed=True)

    def rescued(self, exchange: Exchange) -> None:
        """Take down that legacy answered after the target had failed."""
        exchange.is_rescued = True
        self._count(exchange, failed=True)

    def refused(self, exchange: Exchange, error_class: str) -> None:
        """Take down what the client is told instead of an answer."""
        exchange.error_class = exchange.error_class or error_class

    def told(self, exchange: Exchange, usage: Usage) -> None:
        """Take down what the log callback knows; it may come before or after the end."""
        exchange.usage = usage
        if exchange.status is not None:
            self._write(exchange)

    def ended(self, exchange: Exchange) -> None:
        """Take the end of a request: the breaker learns of it, and the event is written when all is known."""
        if exchange.assignment is None:
            self.requests.pop(exchange.id, None)
            return
        if exchange.status == "ok":
            self._count(exchange, failed=False)
        elif exchange.stream_failed:
            self._count(exchange, failed=True)
        if exchange.request_id:
            self._remember(exchange)
        if exchange.status == "ok":
            self.after(exchange)
        if exchange.usage is not None or exchange.status == "error":
            self._write(exchange)
        else:
            exchange.timer = asyncio.get_running_loop().call_later(GRACE_S, self._write, exchange)

    def feedback(self, request_id: str, said: Said, *, key: str | None = None) -> bool:
        """Write a feedback; return whether the request is one that this worker served.

        Args:
            request_id: The request that it is about.
            said: What it says.
            key: Idempotency key of the client.

        Raises:
            InvalidInput: the score is not in [0, 1].
        """
        served = self._served.get(request_id)
        facts: dict[str, Any] = {} if served is None else _of_request(served)
        flags = () if said.safe is None else (SAFE if said.safe else UNSAFE,)
        event_id, is_repeat = self._feedback_ids.id_of(request_id, said, key=key, now_s=time.perf_counter())
        self._append(
            **facts,
            is_repeat=is_repeat,
            event_id=event_id,
            kind="feedback",
            request_id=request_id[:TEXT_LIMIT],
            flags=(*flags, UNKNOWN_REQUEST) if served is None else flags,
            score=said.score,
            outcome=said.outcome,
        )
        return served is not None

    def shadowed(self, exchange: Exchange, facts: Mapping[str, Any], trace: Trace) -> None:
        """Write the event of a mirrored request; `facts` are its outcome, `trace` its own time."""
        if (assignment := exchange.assignment) is not None:
            request = _of_request(_Served(assignment, None))
            version = exchange.prompt_versions.get("target")
            request |= {"prompt_version": version, "request_id": exchange.request_id, **facts}
            self._append(trace, **request, kind="shadow")

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
            self.internal_errors += 1
            _log.error("a text of %s was not taken", exchange.assignment.route.workload)

    def metric_lines(self) -> list[str]:
        """Return this worker's samples as they are now."""
        for name in self.workloads:
            route = self.traffic.traffic.of(name)
            self.metrics.gauge("anven_target_share", name, 0.0 if route.killed else route.share)
            self.metrics.gauge("anven_breaker_open", name, float(self.breakers.reason(name) is not None))
        self.metrics.total("anven_events_dropped_total", self.log.status.dropped)
        if self.spans is not None:
            self.metrics.total("anven_spans_dropped_total", self.spans.status.dropped)
        if self.texts is not None:
            texts = self.texts.status
            for name in ("written", "failed", "dropped"):
                self.metrics.total(f"anven_texts_{name}_total", getattr(texts, name))
        return self.metrics.lines()

    def _ask_target(self, data: dict[str, Any], workload: WorkloadSettings, assignment: Assignment) -> str | None:
        """Rewrite a request for the target and say how legacy is asked should it fail; return why it stays legacy's."""
        name = assignment.route.workload
        original = data.get("messages") or []
        try:
            call = apply(workload.target.prompt, original, workload.target.params)
        except InvalidInput:
            return PROMPT_UNFIT
        except Exception:  # noqa: BLE001 - legacy's answer to a mistake of ours is not the target's success
            self.internal_errors += 1
            _log.exception("the prompt of a request for %s was not adapted; legacy answers it", name)
            return NOT_DEALT
        back = {changed: data.get(changed) for changed in call.params}
        cache = _cache(data, workload.legacy, assignment, "legacy")
        data["fallbacks"] = [{**back, "model": group(name, "legacy"), "messages": original, "cache": cache}]
        data["cache"] = _cache(data, workload.target, assignment, "target")
        data.update(call.params, model=group(name, "target"), messages=call.messages)
        return None

    def _mirror(self, data: dict[str, Any], workload: WorkloadSettings, exchange: Exchange) -> None:
        assignment = exchange.assignment
        if assignment is None or assignment.why or self.breakers.reason(assignment.route.workload):
            return
        if not is_mirrored(self._key, assignment.route, request_id=exchange.request_id or exchange.id):
            return
        try:
            call = apply(workload.target.prompt, data.get("messages") or [], workload.target.params)
            exchange.shadow = shadow_request(data, call)
        except InvalidInput:
            return
        except Exception:  # noqa: BLE001 - legacy is asked all the same, and as itself
            self.internal_errors += 1
            _log.exception("a request for %s was not mirrored", assignment.route.workload)

    def _count(self, exchange: Exchange, *, failed: bool) -> None:
        """Tell the breaker once of each request."""
        if exchange.is_counted or exchange.assignment is None:
            return
        exchange.is_counted = True
        is_timed = not failed and not exchange.is_slow and not (exchange.usage and exchange.usage.cached)
        waited = exchange.waited_ms if is_timed else None
        seen = Observation(exchange.assignment.asked, failed=failed, waited_ms=waited, stream=exchange.stream)
        self.breakers.observe(exchange.assignment.route, seen)

    def _tick(self) -> None:
        """Do what is due five times a second, in the traffic file's thread."""
        try:
            self.breakers.refresh()
            now_s = time.perf_counter()
            for exchange in list(self.requests.values()):
                self._watch(exchange, now_s)
            if now_s - self._metrics_at >= METRICS_S:
                self._metrics_at = now_s
                write_metrics(self.metrics_folder, self.worker, self.metric_lines())
        except Exception:  # noqa: BLE001 - the thread that follows the traffic file must not end
            self.internal_errors += 1
            _log.exception("the gateway's tick failed")

    def _watch(self, exchange: Exchange, now_s: float) -> None:
        """Count a request as slow while it still waits: a target that hangs would else be seen at the timeout only."""
        assignment = exchange.assignment
        if assignment is None or assignment.asked == "legacy" or exchange.is_slow or exchange.status is not None:
            return
        if exchange.first_token_s is not None or exchange.is_counted:
            return
        limit = self.breakers.slow_above_ms(assignment.route.workload, stream=exchange.stream)
        waited = (now_s - exchange.started_s) * 1e3
        if limit is not None and waited > limit:
            exchange.is_slow = True
            seen = Observation("target", failed=None, waited_ms=waited, stream=exchange.stream)
            self.breakers.observe(assignment.route, seen)

    def _remember(self, exchange: Exchange) -> None:
        facts = exchange.facts()
        if exchange.assignment is not None and exchange.request_id:
            self._served[exchange.request_id] = _Served(exchange.assignment, facts.get("served"))
            if len(self._served) > _REMEMBERED:
                self._served.popitem(last=False)

    def _write(self, exchange: Exchange) -> None:
        if self.requests.pop(exchange.id, None) is None:
            return  # it is written
        if exchange.timer is not None:
            exchange.timer.cancel()
        self._append(exchange.trace, **exchange.facts())
        if exchange.messages is not None:
            self.keep_text(exchange, "request", exchange.messages, exchange.answer)

    def _breaker_changed(self, workload: str, state: BreakerState) -> None:
        self._append(
            kind="breaker", workload=workload, generation=state.generation, outcome="open", error_class=state.tripped
        )

    def _append(
        self,
        trace: Trace | None = None,
        /,
        *,
        is_repeat: bool = False,
        **facts: Any,  # noqa: ANN401 - the fields of an event
    ) -> None:
        seq = next(self._seq)
        facts.setdefault("event_id", f"{self.worker}-{seq}")
        event = GatewayEvent(**facts, ts=datetime.now(UTC), worker=self.worker, seq=seq)
        if not is_repeat:  # the log's reader knows it by its id; counters would take it in again
            self.metrics.observe(event)
        self.log.append(event)
        if self.spans is not None and trace is not None:
            try:
                self.spans.append(event, trace)
            except Exception:  # noqa: BLE001 - a span must not fail a request
                self.internal_errors += 1
                _log.exception("the span of a request was not made")


def _text_log(settings: GatewaySettings, folder: Path, worker: str) -> TextLog | None:
    """Return the log of texts where a workload keeps its own; else nothing of it runs."""
    kept = {name: each.gateway.redact for name, each in settings.workloads.items() if each.gateway.store_text}
    if not kept:
        return None
    return TextLog(folder, worker=worker, patterns=kept, total_bytes=settings.texts_bytes)


def group(workload: str, arm: Arm) -> str:
    """Return the proxy's model group of an arm."""
    return f"{workload}--{arm}"


def _cache(data: Mapping[str, Any], arm: ArmSettings, assignment: Assignment, name: Arm) -> dict[str, Any]:
    """Return the cache controls of an arm: answers of two arms, models, prompts or generations never meet."""
    route = assignment.route
    namespace = f"{route.workload}:{name}:{arm.model}:{arm.prompt.version[:16]}:{route.attempt}.{route.generation}"
    asked = data.get("cache")
    return {**(asked if isinstance(asked, dict) else {}), "namespace": namespace}


def _of_request(served: _Served) -> dict[str, Any]:
    assignment = served.assignment
    route = assignment.route
    return {
        "workload": route.workload,
        "attempt": route.attempt,
        "generation": route.generation,
        "stage": route.stage,
        "share": route.share,
        "unit": assignment.unit,
        "bucket": assignment.bucket,
        "intended": assignment.intended,
        "served": served.served,
        "why": assignment.why,
    }
