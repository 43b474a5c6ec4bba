"""Request parameters in the form that the target's server takes; what it would not know is left out."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.prompt_target import Change, TargetProfile

if TYPE_CHECKING:
    from collections.abc import Mapping

# OpenAI's API as of 2026-06; vLLM's server ignores or refuses them.
PROVIDER_ONLY: Final[Mapping[str, str]] = {
    "service_tier": "a tier of the provider's prices; an own server has none",
    "store": "keeps the call at the provider",
    "metadata": "labels of calls that the provider keeps",
    "reasoning_effort": "steers the provider's reasoning models; the target's reasoning is switched in its template",
    "verbosity": "steers the provider's models",
    "prediction": "speculative text for the provider's models",
    "modalities": "asks for sound, which the target does not answer",
    "audio": "asks for sound, which the target does not answer",
    "web_search_options": "a search of the provider's",
    "user": "names the caller to the provider",
    "safety_identifier": "names the caller to the provider",
    "prompt_cache_key": "steers the provider's cache; an own server finds equal beginnings itself",
    "prompt_cache_retention": "steers the provider's cache",
}
PENALTIES: Final = ("frequency_penalty", "presence_penalty", "repetition_penalty")


def converted_params(
    params: Mapping[str, Any],
    target: TargetProfile,
    changes: list[Change],
    *,
    contract: Mapping[str, Any] | None,
    prompt_tokens: int | None,
) -> dict[str, Any]:
    """Return a request's parameters as the target takes them; what nothing speaks against is kept.

    Args:
        params: As logged, left as they are.
        target: What the target takes.
        changes: Gets every change.
        contract: JSON Schema of the answers, where one is known.
        prompt_tokens: Length of the prompt, or a bound on it, where it is known.
    """
    converted = dict(copy.deepcopy(params))
    _put_functions(converted, target, changes)
    _put_output_format(converted, target, contract, changes)
    _put_limit(converted, target, prompt_tokens, changes)
    _put_stop(converted, target, changes)
    _take_unsupported(converted, target, changes)
    return converted


def _put_functions(params: dict[str, Any], target: TargetProfile, changes: list[Change]) -> None:
    reason = "functions are the older form of tools"
    if "functions" in params:
        functions = params.pop("functions")
        tools = list(params.get("tools") or ())
        known = {(each.get("function") or {}).get("name") for each in tools}
        tools += [{"type": "function", "function": each} for each in functions or () if each.get("name") not in known]
        if tools:
            params["tools"] = tools
        changes.append(Change("params.functions", functions, tools or None, reason))
    if "function_call" in params:
        choice = params.pop("function_call")
        named = {"type": "function", "function": {"name": choice.get("name")}} if isinstance(choice, dict) else choice
        if named is not None:
            params.setdefault("tool_choice", named)
        changes.append(Change("params.function_call", choice, params.get("tool_choice"), reason))
    if not target.supports_tools:
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            _take(params, name, "the target's server reads no tool calls", changes)
    elif params.get("tools") in (None, []):
        _take(params, "tool_choice", "there are no tools to choose from", changes)


def _put_output_format(
    params: dict[str, Any], target: TargetProfile, contract: Mapping[str, Any] | None, changes: list[Change]
) -> None:
    asked = params.get("response_format")
    if not isinstance(asked, dict) or asked.get("type") in {None, "text"}:
        return
    if not target.supports_structured_output:
        _take(params, "response_format", "the target's server cannot hold answers to JSON; the prompt must", changes)
    elif asked["type"] == "json_object" and contract is not None:
        schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": copy.deepcopy(dict(contract))}}
        params["response_format"] = schema
        reason = "JSON mode promises an object, structured output this schema"
        changes.append(Change("params.response_format", asked, schema, reason))


def _put_limit(params: dict[str, Any], target: TargetProfile, prompt_tokens: int | None, changes: list[Change]) -> None:
    if "max_completion_tokens" in params:
        limit = params.pop("max_completion_tokens")
        before = params.get("max_tokens")
        params["max_tokens"] = before if limit is None else limit
        reason = "one name for the limit, which every server knows; the newer one counts where both are set"
        changes.append(Change("params.max_completion_tokens", limit, params["max_tokens"], reason))
        if params["max_tokens"] is None:
            del params["max_tokens"]
    limit = params.get("max_tokens")
    if target.max_context is None or not isinstance(limit, int):
        return
    room = target.max_context - (prompt_tokens or 0)
    if limit <= room:
        return
    context = f"the target's context has {target.max_context} tokens"
    if room > 0:
        params["max_tokens"] = room
        reason = f"{context}, those of the prompt among them" if prompt_tokens else context
        changes.append(Change("params.max_tokens", limit, room, reason))
    else:  # the bound on the prompt is no count: an answer of one token would be the worse mistake
        reason = f"{context}, and the prompt may need them all; without a limit a server gives what is left"
        _take(params, "max_tokens", reason, changes)


def _put_stop(params: dict[str, Any], target: TargetProfile, changes: list[Change]) -> None:
    if "stop" not in params:
        return
    logged = params["stop"]
    stops = list(dict.fromkeys([logged] if isinstance(logged, str) else logged or ()))
    kept = [each for each in stops if each][: target.most_stops] if target.supports_stop else []
    if kept == logged:
        return
    del params["stop"]
    if kept:
        params["stop"] = kept
    limits = not target.supports_stop or (target.most_stops is not None and len(stops) > target.most_stops)
    reason = "the target's server takes fewer stop sequences" if limits else "a list without empty or repeated ones"
    changes.append(Change("params.stop", logged, kept or None, reason))


def _take_unsupported(params: dict[str, Any], target: TargetProfile, changes: list[Change]) -> None:
    for name, reason in PROVIDER_ONLY.items():
        _take(params, name, reason, changes)
    if not target.same_tokenizer:
        _take(params, "logit_bias", "names tokens of the legacy model's tokenizer", changes)
    if not target.supports_n:
        for name in ("n", "best_of"):
            _take(params, name, "the target's server gives one answer to a call", changes)
    if not target.supports_penalties:
        for name in PENALTIES:
            _take(params, name, "the target's server has no penalties", changes)


def _take(params: dict[str, Any], name: str, reason: str, changes: list[Change]) -> None:
    if name in params:
        changes.append(Change(f"params.{name}", params.pop(name), None, reason))
