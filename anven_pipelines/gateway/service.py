"""What the gateway does with a request, apart from LiteLLM: deal it to an arm, watch the arm, write the event."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.breaker import Observation
from anven_pipelines.domain.gateway_event import SAFE, TEXT_LIMIT, UNKNOWN_REQUEST, UNSAFE
from anven_pipelines.gateway.breakers import Breakers, Upstream
from anven_pipelines.gateway.dealing import Dealer
from anven_pipelines.gateway.exchange import Exchange, Usage
from anven_pipelines.gateway.feedback import FeedbackIds
from anven_pipelines.gateway.mistakes import Mistakes
from anven_pipelines.gateway.recorder import Recorder
from anven_pipelines.gateway.traffic_source import TrafficSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anven_pipelines.domain.breaker import BreakerState
    from anven_pipelines.domain.traffic import Arm
    from anven_pipelines.gateway.assignment import Assignment
    from anven_pipelines.gateway.feedback import Said
    from anven_pipelines.gateway.settings import GatewaySettings

METRICS_S: Final = 1.0

GRACE_S: Final = 3.0
"""How long an event waits for the log callback, which knows tokens; then it is written without them."""

_REMEMBERED: Final = 100_000
_REFUSED: Final = frozenset({400, 413, 422})
"""HTTP statuses that blame the request. LiteLLM's classes do not say it: a 402 is a BadRequestError there."""


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
        self.mistakes = Mistakes()
        self.after: Callable[[Exchange], None] = lambda _: None
        """Gets each request that did not fail, for what is done after the client has its answer or has hung up."""
        self.requests: dict[str, Exchange] = {}
        self._numbers = itertools.count(1)
        self._feedback_ids = FeedbackIds()
        self._served: OrderedDict[str, _Served] = OrderedDict()
        self._metrics_at = 0.0
        self.recorder = Recorder(settings, worker=self.worker, mistakes=self.mistakes)
        self.spending = Path(settings.events) / "shadow"
        """Folder of what mirrored requests have spent."""
        self.traffic = TrafficSource(Path(settings.traffic))
        limits = {name: each.limits for name, each in settings.workloads.items()}
        legacy = {name: Upstream(each.legacy.model, each.legacy.url) for name, each in settings.workloads.items()}
        self.breakers = Breakers(
            Path(settings.events) / "breakers", limits, legacy=legacy, changed=self._breaker_changed
        )
        self._dealer = Dealer(
            key, workloads=self.workloads, traffic=self.traffic, breakers=self.breakers, mistakes=self.mistakes
        )
        self.traffic.follow(self._tick)

    def close(self) -> None:
        """Write what waits and end the threads."""
        self.traffic.stop()
        self.breakers.keep_reference()
        for exchange in list(self.requests.values()):
            if exchange.status is not None:
                self._write(exchange)
        self._set_gauges()
        self.recorder.close()

    def is_idle(self) -> bool:
        """Return whether no client waits for an answer."""
        return all(exchange.status is not None for exchange in list(self.requests.values()))

    def begin(self, now_s: float) -> Exchange:
        """Return the exchange of a request whose first byte is here."""
        exchange = Exchange(str(next(self._numbers)), now_s)
        self.requests[exchange.id] = exchange
        return exchange

    def deal(self, data: dict[str, Any], headers: Mapping[str, str], exchange: Exchange) -> None:
        """Deal a chat request to an arm, as `Dealer.deal` does."""
        self._dealer.deal(data, headers, exchange)

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
        if exchange.status != "error":
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
        facts = {} if served is None else served.assignment.facts() | {"served": served.served}
        flags = () if said.safe is None else (SAFE if said.safe else UNSAFE,)
        event_id, is_repeat = self._feedback_ids.id_of(request_id, said, key=key, now_s=time.perf_counter())
        self.recorder.append(
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

    def metric_lines(self) -> list[str]:
        """Return this worker's samples as they are now."""
        self._set_gauges()
        return self.recorder.metric_lines()

    def _set_gauges(self) -> None:
        metrics = self.recorder.metrics
        for name in self.workloads:
            route = self.traffic.traffic.of(name)
            metrics.gauge("anven_target_share", name, 0.0 if route.killed else route.share)
            metrics.gauge("anven_breaker_open", name, float(self.breakers.reason(name) is not None))

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
            self.breakers.keep_reference(now_s)
            for exchange in list(self.requests.values()):
                self._watch(exchange, now_s)
            if now_s - self._metrics_at >= METRICS_S:
                self._metrics_at = now_s
                self._set_gauges()
                self.recorder.publish_metrics()
        except Exception as error:  # noqa: BLE001 - the thread that follows the traffic file must not end
            self.mistakes.note("the gateway's tick failed", error=error)

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
        self.recorder.append(exchange.trace, **exchange.facts())
        if exchange.messages is not None:
            self.recorder.keep_text(exchange, "request", exchange.messages, exchange.answer)

    def _breaker_changed(self, workload: str, state: BreakerState) -> None:
        self.recorder.append(
            kind="breaker", workload=workload, generation=state.generation, outcome="open", error_class=state.tripped
        )
