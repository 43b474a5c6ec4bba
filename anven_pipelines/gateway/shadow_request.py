"""What the target is asked in place of a legacy request that is mirrored, and what it may cost at most."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from anven_pipelines.gateway.answers import cost_usd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.domain.prompts import Call
    from anven_pipelines.spec_values import Price

# fmt: off
SHAPING: Final = frozenset({
    "audio", "bad_words", "chat_template_kwargs", "frequency_penalty", "function_call", "functions", "guided_choice",
    "guided_grammar", "guided_json", "guided_regex", "ignore_eos", "logit_bias", "logprobs", "max_completion_tokens",
    "max_tokens", "min_p", "min_tokens", "modalities", "n", "parallel_tool_calls", "prediction", "presence_penalty",
    "reasoning_effort", "repetition_penalty", "response_format", "seed", "stop", "stop_token_ids",
    "stream_options", "structured_outputs", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_logprobs",
    "top_p", "verbosity",
})
# fmt: on
"""Parameters that shape an answer, of OpenAI's API and of vLLM's. Only these are mirrored: whatever else a client sends
names its user, such as `user`, `safety_identifier` and `metadata`, or steers LiteLLM, such as `fallbacks`."""

MOST_TOKENS: Final = 131_072
"""Longest answer that is reckoned with where a request names no limit: the context of today's larger models."""

_ENDLESS: Final = 10**12  # a client may send any whole number, and floats end somewhere


def shaping(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a request that shape its answer."""
    return {name: data[name] for name in SHAPING & data.keys()}


def shadow_request(data: Mapping[str, Any], call: Call) -> dict[str, Any]:
    """Return the messages and parameters of a mirrored request.

    Args:
        data: The request as the client sent it.
        call: What the target's prompt and parameters make of it; null takes a parameter away.
    """
    asked = {name: value for name, value in {**shaping(data), **call.params}.items() if value is not None}
    # A copy: what legacy is asked with is rewritten in place on its way to some providers.
    return copy.deepcopy({**asked, "messages": call.messages})


def most_usd(price: Price | None, request: Mapping[str, Any]) -> float:
    """Return a bound on what a request has cost whose answer says nothing of it; 0 where no price is declared.

    A token is at least a byte of the request. Images behind a URL are not reckoned.
    """
    limits = [request.get("max_completion_tokens"), request.get("max_tokens")]
    most = next((each for each in limits if _is_count(each)), MOST_TOKENS)
    answers = request["n"] if _is_count(request.get("n")) else 1
    tokens = min(most * answers, _ENDLESS)
    bytes_sent = len(json.dumps(request, default=str))  # of ASCII, so never fewer than in UTF-8
    return cost_usd(price, input_tokens=bytes_sent, output_tokens=tokens, cached=0) or 0.0


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
