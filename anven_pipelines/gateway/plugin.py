"""LiteLLM's hooks, each handed to the service: `callbacks: [anven_pipelines.gateway.plugin.gateway]`.

A hook that fails must never fail a request: the model group `<workload>` is the legacy model, so a request that was
not dealt is answered by legacy.

LiteLLM calls its log callbacks by keyword, so the names of their parameters are part of its interface.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger

from anven_pipelines.domain.grading import check_contract
from anven_pipelines.domain.traffic import DRILL
from anven_pipelines.gateway.answers import answer_of, message_of, usage_of
from anven_pipelines.gateway.client_side import DRILL_HEADER, EXCHANGE_HEADER, ClientSide
from anven_pipelines.gateway.collection import collect_aside
from anven_pipelines.gateway.dealing import Asked, group
from anven_pipelines.gateway.exchange import Usage
from anven_pipelines.gateway.proxy import close_at_end
from anven_pipelines.gateway.proxy_log import keep_small, keep_text_out
from anven_pipelines.gateway.refusals import Refusals, messages_problem
from anven_pipelines.gateway.routes import add_routes
from anven_pipelines.gateway.service import GatewayService
from anven_pipelines.gateway.settings import (
    KEY_ENV,
    LOG_ENV,
    UNTIL_STDIN_CLOSES_ENV,
    assignment_key,
    read_settings,
    sends_spans,
)
from anven_pipelines.gateway.shadow import Shadows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.traffic import Arm
    from anven_pipelines.gateway.exchange import Exchange

_MARK: Final = "anven_exchange"
_CHAT: Final = frozenset({"completion", "acompletion"})
_TEXT_BYTES: Final = 2**20  # longest answer whose form is checked in the request's own loop


class AnvenGateway(CustomLogger):
    """The gateway in one worker of the proxy."""

    def __init__(self, service: GatewayService) -> None:
        """Stand between the proxy's hooks and the service."""
        super().__init__()
        self.service = service
        limits = {name: each.gateway.shadow for name, each in service.workloads.items()}
        self.shadows = Shadows(service, limits, service.spending)

    def close(self) -> None:
        """Write what waits and end the threads."""
        try:
            self.shadows.close()
        finally:
            self.service.close()

    async def async_pre_call_hook(
        self,
        user_api_key_dict: object,  # noqa: ARG002 - LiteLLM's interface
        cache: object,  # noqa: ARG002 - LiteLLM's interface
        data: dict[str, Any],
        call_type: str,
    ) -> dict[str, Any] | None:
        """Deal a request to an arm."""
        model = data.get("model")
        if not isinstance(model, str):
            return None
        name, _, arm = model.rpartition("--")
        if arm in get_args(Asked) and name in self.service.workloads:
            # Nobody asks an arm past the assignment: the arms would no longer be comparable.
            raise HTTPException(400, f"the model {name!r} is asked by its own name")
        if model not in self.service.workloads or call_type not in _CHAT:
            return None
        if model.endswith(DRILL) and DRILL_HEADER not in _headers(data):
            # Whatever a killed drill has left there, no application is served by it.
            raise HTTPException(400, f"the model {model!r} is for drills, which `anven drill` runs")
        if problem := messages_problem(data.get("messages")):
            raise HTTPException(400, problem)
        exchange = self._begun(data)
        if exchange is None:
            return None
        try:
            data.setdefault("metadata", {})[_MARK] = exchange.id
            self.service.deal(data, _headers(data), exchange)
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not fail the request
            self.service.mistakes.note("a request for %s was not dealt; legacy answers it", model, error=error)
        return data

    async def async_post_call_success_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: object,  # noqa: ARG002 - LiteLLM's interface
        response: Any,  # noqa: ANN401 - LiteLLM's interface
    ) -> None:
        """Hide which model answered; streams are seen to at the connection."""
        exchange = self._of(data.get("metadata"))
        if exchange is not None and exchange.assignment is not None and hasattr(response, "model"):
            response.model = exchange.assignment.route.workload

    async def async_post_call_failure_deployment_hook(
        self,
        request_data: Mapping[str, Any],
        exception: Exception,
        call_type: object,  # noqa: ARG002 - LiteLLM's interface
        fallback_depth: int | None = None,
    ) -> None:
        """Learn at once that an attempt failed, before the client or legacy knows."""
        exchange = self._of(request_data.get("metadata"))
        if exchange is not None:
            self.service.arm_failed(exchange, exception, is_first=not fallback_depth)

    async def log_success_fallback_event(
        self, original_model_group: str, kwargs: dict[str, Any], original_exception: Exception
    ) -> None:
        """Learn that legacy answered after the target had failed."""
        exchange = self._of(kwargs.get("metadata"))
        if exchange is not None and original_model_group.endswith("--target"):
            self.service.arm_failed(exchange, original_exception, is_first=True)
            self.service.rescued(exchange)

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: object,  # noqa: ARG002 - LiteLLM's interface
        traceback_str: str | None = None,  # noqa: ARG002 - LiteLLM's interface
    ) -> None:
        """Learn what the client gets instead of an answer."""
        exchange = self._of(request_data.get("metadata")) or self._begun(request_data)
        if exchange is not None:
            status = getattr(original_exception, "status_code", None)
            is_own = isinstance(original_exception, HTTPException)  # the proxy's, such as a rate limit
            self.service.refused(exchange, f"Gateway{status}" if is_own else type(original_exception).__name__)

    async def async_log_success_event(
        self,
        kwargs: dict[str, Any],
        response_obj: Any,  # noqa: ANN401 - LiteLLM's interface
        start_time: object,  # noqa: ARG002 - LiteLLM's interface
        end_time: object,  # noqa: ARG002 - LiteLLM's interface
    ) -> None:
        """Learn tokens, cost and the form of the answer; comes after the answer, or before its end."""
        metadata = (kwargs.get("litellm_params") or {}).get("metadata") or {}
        exchange = self._of(metadata)
        if exchange is None or exchange.assignment is None:
            return
        try:
            workload = self.service.workloads[exchange.assignment.route.workload]
            served: Arm = "target" if str(metadata.get("model_group", "")).endswith("--target") else "legacy"
            price = (workload.target if served == "target" else workload.legacy).price
            usage = usage_of(response_obj, price)
            usage.served, usage.cached = served, bool(kwargs.get("cache_hit"))
            text = answer_of(response_obj)
            if text is None or len(text) <= _TEXT_BYTES:
                usage.contract_ok = check_contract(workload.contract, text, answered=True).kept
            if exchange.messages is not None:
                exchange.answer = message_of(response_obj)
        except Exception as error:  # noqa: BLE001 - the event is written without what was not understood
            self.service.mistakes.note("what LiteLLM told of an answer was not understood", error=error)
            usage = Usage()
        self.service.told(exchange, usage)

    async def async_filter_listed_models(
        self,
        user_api_key_dict: object,  # noqa: ARG002 - LiteLLM's interface
        model_names: Sequence[str],
    ) -> Sequence[str]:
        """Leave the arms and the drills out of the list of models."""
        arms = {group(name, asked) for name in self.service.workloads for asked in get_args(Asked)}
        return [name for name in model_names if name not in arms and not name.endswith(DRILL)]

    def _begun(self, data: Mapping[str, Any]) -> Exchange | None:
        return self.service.requests.get(_headers(data).get(EXCHANGE_HEADER, ""))

    def _of(self, metadata: object) -> Exchange | None:
        if not isinstance(metadata, dict):
            return None
        return self.service.requests.get(str(metadata.get(_MARK)))


def _headers(data: Mapping[str, Any]) -> Mapping[str, str]:
    request = data.get("proxy_server_request")
    headers = request.get("headers") if isinstance(request, dict) else None
    return headers if isinstance(headers, dict) else {}


@functools.cache
def _gateway() -> AnvenGateway:
    """Make the plugin once, when the proxy asks for it, and put it round the proxy's connections."""
    from litellm.proxy.proxy_server import app  # noqa: PLC0415 - it is loaded by whoever loads this

    service = GatewayService(read_settings(os.environ), key=assignment_key(os.environ))
    plugin = AnvenGateway(service)
    service.after = plugin.shadows.mirror
    if sends_spans(os.environ):
        from anven_pipelines.gateway.spans import RequestSpans  # noqa: PLC0415 - half a second that few need

        service.recorder.spans = RequestSpans(service.workloads, worker=service.worker)
    add_routes(app, service)
    key = os.environ.get(KEY_ENV, "")
    if app.middleware_stack is None:
        app.add_middleware(Refusals, key=key)
        app.add_middleware(ClientSide, service=service)
    else:  # the proxy reads its configuration while it starts: its connections stand already
        app.middleware_stack = ClientSide(Refusals(app.middleware_stack, key), service)
    keep_text_out()
    if log := os.environ.get(LOG_ENV):
        keep_small(Path(log))
    collect_aside(service.is_idle)
    atexit.register(plugin.close)  # on Ctrl-C
    close_at_end(plugin.close)
    if os.environ.get(UNTIL_STDIN_CLOSES_ENV):
        threading.Thread(target=_stop_with_stdin, name="anven-stdin", daemon=True).start()
    return plugin


def _stop_with_stdin() -> None:
    while os.read(sys.stdin.fileno(), 1 << 12):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # the proxy serves what is in flight to its end


def __getattr__(name: str) -> AnvenGateway:
    """Make `gateway` when it is asked for: importing this module starts nothing."""
    if name == "gateway":
        return _gateway()
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
