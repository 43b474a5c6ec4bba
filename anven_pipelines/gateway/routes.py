"""What the gateway adds to the proxy's API: feedback, and its own state; authenticated as the proxy's routes are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from fastapi import Depends, Header, HTTPException, Request
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, model_validator

from anven_pipelines.domain.traffic_file import print_traffic
from anven_pipelines.gateway.feedback import OUTCOME, Said
from anven_pipelines.gateway.metrics import exposition, workers_in

if TYPE_CHECKING:
    from fastapi import FastAPI

    from anven_pipelines.gateway.service import GatewayService

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_NO_HEALTH: Final = (
    "this would ask every model, at its price, and name the arms; ask /health/readiness whether the proxy is up, and "
    "/anven/status what the gateway does"
)
_NO_NAME: Final = (
    "outcome is a text of {} characters; a name of at most 64 letters, digits and _ . : - is needed, such as resolved: "
    "free text is not kept"
)


class Feedback(BaseModel):
    """What a user or a program says of an answer."""

    model_config = ConfigDict(extra="forbid")

    request_id: Annotated[str, Field(min_length=1, max_length=200)]
    """`x-litellm-call-id` of the answer."""
    score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    """0 is worst, 1 is best; a thumb is 0 or 1."""
    outcome: str | None = None
    """What became of the answer, as a name such as `resolved`."""
    safe: bool | None = None
    """Whether the answer may be given, where somebody looked at that."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.score is None and self.outcome is None and self.safe is None:
            message = "nothing is said of the answer; at least one of score, outcome and safe is needed"
            raise ValueError(message)
        return self


def add_routes(app: FastAPI, service: GatewayService) -> None:
    """Put the routes before the proxy's own, which end with one that takes every path."""
    from litellm.proxy.auth.user_api_key_auth import user_api_key_auth  # noqa: PLC0415 - loads the whole proxy

    async def give_feedback(
        feedback: Feedback, idempotency_key: Annotated[str | None, Header(max_length=200)] = None
    ) -> dict[str, Any]:
        if feedback.outcome is not None and not OUTCOME.fullmatch(feedback.outcome):
            raise HTTPException(400, _NO_NAME.format(len(feedback.outcome)))
        said = Said(feedback.score, feedback.outcome, feedback.safe)
        known = service.feedback(feedback.request_id, said, key=idempotency_key)
        return {"recorded": True, "known_request": known}

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
    of_object = [Depends(_require_object), *guarded]
    app.router.routes[:0] = [
        APIRoute("/anven/feedback", give_feedback, methods=["POST"], dependencies=of_object, status_code=202),
        APIRoute("/anven/metrics", tell_metrics, methods=["GET"], dependencies=guarded),
        APIRoute("/anven/status", tell_status, methods=["GET"], dependencies=guarded),
        APIRoute("/health", refuse_health, methods=["GET"], dependencies=guarded),
    ]


async def _require_object(request: Request) -> None:
    """Refuse a body that is JSON and no object, which LiteLLM's own look at it takes for a mistake of the server."""
    if not await request.body():
        return
    try:
        is_object = isinstance(await request.json(), dict)
    except ValueError:
        return  # told by whoever reads it
    if not is_object:
        raise HTTPException(422, 'the body is no JSON object; one such as {"request_id": ..., "score": 1} is needed')


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
