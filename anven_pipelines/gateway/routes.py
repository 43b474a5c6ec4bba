"""What the gateway adds to the proxy's API: feedback, and its own state; authenticated as the proxy's routes are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from fastapi import Depends, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute

from anven_pipelines.domain.traffic_file import print_traffic
from anven_pipelines.gateway.feedback_form import read_feedback
from anven_pipelines.gateway.metrics import exposition, workers_in
from anven_pipelines.gateway.refusals import Refusal

if TYPE_CHECKING:
    from fastapi import FastAPI

    from anven_pipelines.gateway.service import GatewayService

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_NO_HEALTH: Final = (
    "this would ask every model, at its price, and name the arms; ask /health/readiness whether the proxy is up, and "
    "/anven/status what the gateway does"
)


def add_routes(app: FastAPI, service: GatewayService) -> None:
    """Put the routes before the proxy's own, which end with one that takes every path."""
    from litellm.proxy.auth.user_api_key_auth import user_api_key_auth  # noqa: PLC0415 - loads the whole proxy

    async def give_feedback(request: Request) -> JSONResponse:
        found = read_feedback(await request.body(), key=request.headers.get("idempotency-key"))
        if isinstance(found, Refusal):
            return JSONResponse(found.content(), found.status)
        known = service.feedback(found.request_id, found.said, key=found.key)
        return JSONResponse({"recorded": True, "known_request": known}, 202)

    async def refuse_health() -> None:
        raise HTTPException(403, _NO_HEALTH)

    async def tell_status() -> dict[str, Any]:
        return status(service)

    async def tell_metrics() -> PlainTextResponse:
        lines = service.metric_lines()
        return PlainTextResponse(
            exposition(service.recorder.metrics_folder, service.worker, lines), media_type=METRICS_TYPE
        )

    guarded = [Depends(user_api_key_auth)]
    app.router.routes[:0] = [
        APIRoute("/anven/feedback", give_feedback, methods=["POST"], dependencies=[Depends(_hold_body), *guarded]),
        APIRoute("/anven/metrics", tell_metrics, methods=["GET"], dependencies=guarded),
        APIRoute("/anven/status", tell_status, methods=["GET"], dependencies=guarded),
        APIRoute("/health", refuse_health, methods=["GET"], dependencies=guarded),
    ]


async def _hold_body(request: Request) -> None:
    """Read the body before LiteLLM does, which may take it for a form and leave nothing of it."""
    await request.body()


def status(service: GatewayService) -> dict[str, Any]:
    """Return what this worker does: routes in force, open breakers, the event log, and what is wrong."""
    recorder = service.recorder
    return {
        "worker": service.worker,
        "workers": workers_in(recorder.metrics_folder, service.worker),
        "workloads": sorted(service.workloads),
        "routes": json.loads(print_traffic(service.traffic.traffic))["routes"],
        "breakers": {name: service.breakers.reason(name) for name in service.workloads},
        "in_flight": len(service.requests),
        "events": recorder.log.status._asdict(),
        "spans": None if recorder.spans is None else recorder.spans.status._asdict(),
        "texts": None if recorder.texts is None else recorder.texts.status._asdict(),
        "traffic_problem": service.traffic.problem,
        "internal_errors": service.mistakes.count,
    }
