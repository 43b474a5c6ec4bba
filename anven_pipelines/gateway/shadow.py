"""Mirrored requests: the target answers beside legacy, the client never sees it, and a cap bounds what it spends."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.grading import check_contract
from anven_pipelines.gateway.answers import answer_of, message_of, usage_of
from anven_pipelines.gateway.dealing import group
from anven_pipelines.gateway.exchange import Trace
from anven_pipelines.gateway.purse import Purse
from anven_pipelines.gateway.shadow_request import most_usd

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anven_pipelines.gateway.exchange import Exchange
    from anven_pipelines.gateway.purse import Right
    from anven_pipelines.gateway.service import GatewayService
    from anven_pipelines.spec_gateway import Shadow

STOPPED: Final = "Stopped"
"""Error class of a mirrored request that the gateway's end cut off."""


class Shadows:
    """Asks the target what legacy was asked, in tasks of their own."""

    def __init__(self, service: GatewayService, limits: Mapping[str, Shadow], folder: Path) -> None:
        """Prepare a purse for each workload; what they spend is kept in a folder."""
        self._service = service
        self._purses = {name: Purse(each, folder / f"{name}.json") for name, each in limits.items()}
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them weakly
        self._open: dict[str, tuple[Exchange, int]] = {}

    def mirror(self, exchange: Exchange) -> None:
        """Ask the target in a task of its own, once the client has its answer, where a cap allows it."""
        if exchange.assignment is None:
            return
        if exchange.unmirrored is not None:  # as for the target's own users, whom legacy then answers
            facts = {"stream": exchange.stream, "status": "error", "error_class": exchange.unmirrored}
            now_ns = time.time_ns()
            self._service.recorder.shadowed(exchange, facts, Trace(exchange.traceparent, now_ns, now_ns))
        if exchange.shadow is None:
            return
        purse = self._purses[exchange.assignment.route.workload]
        if right := purse.take(datetime.now(UTC).date(), self._most_usd(exchange)):
            self._open[exchange.id] = exchange, time.time_ns()
            task = asyncio.get_running_loop().create_task(self._ask(exchange, purse, right))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Write the events of those that have not ended, as the program ends and cuts them off."""
        for exchange, started_ns in list(self._open.values()):
            self._end(exchange, {"stream": exchange.stream, "status": "error", "error_class": STOPPED}, started_ns)

    async def _ask(self, exchange: Exchange, purse: Purse, right: Right) -> None:
        facts: dict[str, Any] = {"stream": exchange.stream}
        started, started_ns = time.perf_counter(), time.time_ns()
        response: Any = None
        try:
            response = await self._answer(exchange)
            facts.update(self._outcome(exchange, response), latency_ms=(time.perf_counter() - started) * 1e3)
        except Exception as error:  # noqa: BLE001 - whatever the target does, the gateway goes on
            facts.update(status="error", error_class=type(error).__name__)
        finally:
            known = facts.get("cost_usd")
            purse.give_back(right, right.usd if known is None else known)
        self._end(exchange, facts, started_ns)
        if response is not None and exchange.messages is not None:
            self._service.recorder.keep_text(exchange, "shadow", None, message_of(response))

    def _end(self, exchange: Exchange, facts: Mapping[str, Any], started_ns: int) -> None:
        if self._open.pop(exchange.id, None) is not None:
            self._service.recorder.shadowed(exchange, facts, Trace(exchange.traceparent, started_ns, time.time_ns()))

    def _most_usd(self, exchange: Exchange) -> float:
        if exchange.assignment is None or exchange.shadow is None:
            return 0.0
        price = self._service.workloads[exchange.assignment.route.workload].target.price
        return most_usd(price, exchange.shadow)

    async def _answer(self, exchange: Exchange) -> Any:  # noqa: ANN401 - LiteLLM's response
        from litellm.proxy.proxy_server import llm_router  # noqa: PLC0415 - it is set when the proxy has started

        if exchange.assignment is None or exchange.shadow is None or llm_router is None:
            message = "the proxy has no router"
            raise RuntimeError(message)
        response = await llm_router.acompletion(
            model=group(exchange.assignment.route.workload, "shadow"),
            **exchange.shadow,
            stream=exchange.stream,
            disable_fallbacks=True,
            num_retries=0,
            cache={"no-cache": True},
        )
        return await _whole(response) if exchange.stream else response

    def _outcome(self, exchange: Exchange, response: Any) -> dict[str, Any]:  # noqa: ANN401 - LiteLLM's response
        if exchange.assignment is None:
            return {}
        workload = self._service.workloads[exchange.assignment.route.workload]
        usage = usage_of(response, workload.target.price)
        kept = check_contract(workload.contract, answer_of(response), answered=True).kept
        return {
            "status": "ok",
            "served": "target",
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost_usd": usage.cost_usd,
            "finish_reason": usage.finish_reason,
            "contract_ok": kept,
            "cached": False,
        }


async def _whole(stream: Any) -> Any:  # noqa: ANN401 - LiteLLM's stream, and its response
    """Read a stream to its end and put it together, as LiteLLM does for what it logs of a client's."""
    from litellm import stream_chunk_builder  # noqa: PLC0415 - the proxy has loaded it

    response = stream_chunk_builder([chunk async for chunk in stream])
    if response is None:
        message = "the stream was empty"
        raise RuntimeError(message)
    return response
