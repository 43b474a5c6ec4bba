"""Reads LiteLLM's responses: tokens, cost, how the answer ended and its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anven_pipelines.gateway.exchange import Usage

if TYPE_CHECKING:
    from anven_pipelines.spec_values import Price


def usage_of(response: Any, price: Price | None) -> Usage:  # noqa: ANN401 - LiteLLM's response
    """Read the tokens and the reason of the end from LiteLLM's response; what it does not say stays None."""
    found = Usage()
    usage = getattr(response, "usage", None)
    if usage is not None:
        details = getattr(usage, "prompt_tokens_details", None)
        cached = getattr(details, "cached_tokens", None) or 0
        found.input_tokens, found.output_tokens = usage.prompt_tokens, usage.completion_tokens
        found.cost_usd = cost_usd(
            price,
            input_tokens=found.input_tokens,
            output_tokens=found.output_tokens,
            cached=min(cached, found.input_tokens or 0),
        )
    if choices := getattr(response, "choices", None):
        found.finish_reason = getattr(choices[0], "finish_reason", None)
    return found


def answer_of(response: Any) -> str | None:  # noqa: ANN401 - LiteLLM's response
    """Return the answer's text; None where it has none, such as a tool call."""
    choices = getattr(response, "choices", None)
    message = getattr(choices[0], "message", None) if choices else None
    content = getattr(message, "content", None)
    return content if isinstance(content, str) else None


def message_of(response: Any) -> dict[str, Any] | None:  # noqa: ANN401 - LiteLLM's response
    """Return the whole message of the first choice as OpenAI writes it; None where there is none."""
    choices = getattr(response, "choices", None)
    message = getattr(choices[0], "message", None) if choices else None
    dump = getattr(message, "model_dump", None)
    return dump(exclude_none=True) if callable(dump) else None


def cost_usd(price: Price | None, *, input_tokens: int | None, output_tokens: int | None, cached: int) -> float | None:
    """Return what an answer cost; None where the price or a count is not known.

    Args:
        price: Of the arm that answered.
        input_tokens: Tokens of the prompt.
        output_tokens: Tokens of the answer.
        cached: Those of the prompt that came from the provider's cache.
    """
    if price is None or input_tokens is None or output_tokens is None:
        return None
    cheaper = price.input_usd_per_million if price.cached_usd_per_million is None else price.cached_usd_per_million
    paid = (input_tokens - cached) * price.input_usd_per_million + cached * cheaper
    return (paid + output_tokens * price.output_usd_per_million) / 1e6
