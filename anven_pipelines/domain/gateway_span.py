"""The span of a request, made of its event by OpenTelemetry's semantic conventions for generative AI.

The names stand here as text: the conventions are in development, and the package that holds them as constants calls
them deprecated, as they moved.

Source:
    https://github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/client-inference.md, November 2026.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.domain.gateway_event import GatewayEvent
    from anven_pipelines.domain.traffic import Arm

Value = str | bool | int | float | tuple[str, ...]

_PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""LiteLLM's names of providers that the conventions call otherwise; any other name stands as it is."""

_OURS: Final = (
    "event_id",
    "kind",
    "workload",
    "attempt",
    "generation",
    "stage",
    "share",
    "intended",
    "served",
    "request_id",
    "status",
    "error_class",
    "why",
    "ttft_ms",
    "cost_usd",
    "cached",
    "contract_ok",
    "prompt_version",
)
"""Fields of the event that go under `anven.`; the unit and its point in [0, 1) stay in the log: they stand for a user.

`gen_ai.response.time_to_first_chunk` is another time than `ttft_ms`: a stream's first chunk holds no token.
"""


class ServedModel(NamedTuple):
    """Which model an arm is, and where it is reached.

    Attributes:
        provider: As the conventions name it.
        model: As the provider names it.
        address: Host; None for the provider's own.
        port: Of the host; None with it.
    """

    provider: str
    model: str
    address: str | None = None
    port: int | None = None


class RequestSpan(NamedTuple):
    """A span without its time and its parent.

    Attributes:
        name: Few different ones, as the conventions ask for: operation and model.
        attributes: By name; what was not measured is left out.
        failed: Whether the client got an error.
    """

    name: str
    attributes: dict[str, Value]
    failed: bool


def served_model(litellm_model: str, *, address: str | None = None, port: int | None = None) -> ServedModel:
    """Read a model's name as LiteLLM writes it, `provider/model`."""
    provider, _, model = litellm_model.partition("/")
    return ServedModel(_PROVIDERS.get(provider, provider), model, address, port)


def request_span(event: GatewayEvent, models: Mapping[Arm, ServedModel]) -> RequestSpan:
    """Make the span of a request.

    What was asked (`gen_ai.request.model`, provider and server) is that of the arm that was asked first, what was
    answered (`gen_ai.response.model`, tokens, finish reason) that of the arm that served. They differ where legacy
    rescued a failure; then the operation ended well and has no `error.type`, and the failure is `anven.error_class`.

    Args:
        event: Of the kind request or shadow.
        models: The workload's arms.
    """
    asked = models[_asked(event)]
    found: dict[str, Value | None] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": asked.provider,
        "gen_ai.request.model": asked.model,
        "gen_ai.request.stream": event.stream,
        "gen_ai.response.model": None if event.served is None else models[event.served].model,
        "gen_ai.response.finish_reasons": None if event.finish_reason is None else (event.finish_reason,),
        "gen_ai.usage.input_tokens": event.input_tokens,
        "gen_ai.usage.output_tokens": event.output_tokens,
        "server.address": asked.address,
        "server.port": asked.port,
        "error.type": (event.error_class or "_OTHER") if event.status == "error" else None,
        "anven.flags": event.flags or None,
        **{f"anven.{name}": getattr(event, name) for name in _OURS},
    }
    attributes = {name: value for name, value in found.items() if value is not None}
    return RequestSpan(f"chat {asked.model}", attributes, failed=event.status == "error")


def _asked(event: GatewayEvent) -> Arm:
    """Return the arm that was asked first."""
    if event.kind == "shadow":
        return "target"
    return "legacy" if event.why in {"killed", "breaker"} or event.intended is None else event.intended
