"""A logged request in the form that the target's server takes: structure only, no wording.

Roles, tools, output format, limits and sampling parameters are put as the target's profile says. Each change says what
was there, what stands there now and why; a request that needs none stays as it is, and a converted one needs none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

Message = dict[str, Any]
BREAK: Final = "\n\n"

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


@dataclass(frozen=True)
class TargetProfile:
    """What the target's chat template and server take; the defaults are what vLLM serves for most open models.

    Attributes:
        has_system_role: Whether the chat template has a system tier; without one its text opens the first user turn.
        needs_alternation: Whether the template refuses two turns of one role in a row.
        max_context: Tokens of prompt and answer together; None is unknown.
        supports_tools: Whether the server parses the model's tool calls.
        supports_structured_output: Whether answers can be held to a JSON Schema.
        supports_stop: Whether stop sequences are taken.
        most_stops: So many at most; None is no limit.
        supports_n: Whether several answers to one call are.
        supports_penalties: Whether frequency and presence penalties are.
        same_tokenizer: Whether token ids of the legacy model mean the same to the target, as `logit_bias` needs.
        role_renames: Roles that the template does not know, and what stands for them.
        scaffolding: Text that the model needs in its system message, such as a switch of its reasoning.
        language: Language to answer in, in words for the model, where it is to be said.
    """

    has_system_role: bool = True
    needs_alternation: bool = False
    max_context: int | None = None
    supports_tools: bool = True
    supports_structured_output: bool = True
    supports_stop: bool = True
    most_stops: int | None = None
    supports_n: bool = True
    supports_penalties: bool = True
    same_tokenizer: bool = False
    role_renames: Mapping[str, str] = field(default_factory=lambda: {"developer": "system"})
    scaffolding: str = ""
    language: str = ""


class Change(NamedTuple):
    """One change of a request.

    Attributes:
        path: Where, such as `messages[1].role` or `params.stop`; messages are counted as logged.
        before: What was logged; None where nothing was.
        after: What stands there now; None where nothing does.
        reason: Why, in words.
    """

    path: str
    before: Any
    after: Any
    reason: str


class Conversion(NamedTuple):
    """A request for the target, and every change that made it from the logged one."""

    messages: list[Message]
    params: dict[str, Any]
    changes: tuple[Change, ...]


class _Turn(NamedTuple):
    """A message and its number as logged; -1 where it was not."""

    at: int
    message: Message


Turns = list[_Turn]


def convert(
    messages: Sequence[Mapping[str, Any]],
    params: Mapping[str, Any],
    target: TargetProfile,
    *,
    contract: Mapping[str, Any] | None = None,
    prompt_tokens: int | None = None,
) -> Conversion:
    """Put a logged request in the target's form; what was given stays as it is.

    Args:
        messages: As logged.
        params: As logged, without the messages.
        target: What the target takes.
        contract: JSON Schema of the answers, where one is known; JSON mode then becomes structured output.
        prompt_tokens: Length of the prompt, where it was counted: the answer's limit leaves room for it.
    """
    changes: list[Change] = []
    turns = [_Turn(at, dict(copy.deepcopy(message))) for at, message in enumerate(messages)]
    converted = dict(copy.deepcopy(params))
    steps: tuple[Callable[[Turns, TargetProfile, list[Change]], Turns], ...] = (
        _renamed, _with_tool_calls, _one_system, _with_directives, _folded, _alternating,
    )  # fmt: skip
    for step in steps:
        turns = step(turns, target, changes)
    _put_functions(converted, target, changes)
    _put_output_format(converted, target, contract, changes)
    _put_limit(converted, target, prompt_tokens, changes)
    _put_stop(converted, target, changes)
    _take_unsupported(converted, target, changes)
    return Conversion([turn.message for turn in turns], converted, tuple(changes))


def _renamed(turns: Turns, target: TargetProfile, changes: list[Change]) -> Turns:
    renamed = []
    for at, message in turns:
        role = message.get("role")
        name = target.role_renames.get(str(role), role)
        if name != role:
            changes.append(Change(f"messages[{at}].role", role, name, f"the target knows no role {role}"))
        renamed.append(_Turn(at, {**message, "role": name}))
    return renamed


def _with_tool_calls(turns: Turns, _: TargetProfile, changes: list[Change]) -> Turns:
    """Write function calls and their results as tool calls; a result belongs to the last call before it."""
    used = {str(call.get("id")) for _, message in turns for call in message.get("tool_calls") or ()}
    written: Turns = []
    asked: list[str] = []
    for at, logged in turns:
        message, reason = logged, "functions are the older form of tools"
        if message.get("function_call"):
            asked.append(_free_id(at, used))
            call = {"id": asked[-1], "type": "function", "function": message["function_call"]}
            message = {key: value for key, value in message.items() if key != "function_call"}
            message["tool_calls"] = [*(message.get("tool_calls") or ()), call]
            changes.append(Change(f"messages[{at}].function_call", logged["function_call"], call, reason))
        elif "function_call" in message:
            message = {key: value for key, value in message.items() if key != "function_call"}
            changes.append(Change(f"messages[{at}].function_call", None, None, f"it is empty; {reason}"))
        if message.get("role") == "function":
            known = asked.pop() if asked else _free_id(at, used)
            message = {"role": "tool", "tool_call_id": known, "content": message.get("content")}
            changes.append(Change(f"messages[{at}]", logged, message, f"{reason}; a result names its call"))
        written.append(_Turn(at, message))
    return written


def _free_id(at: int, used: set[str]) -> str:
    name = f"call_{at}"
    while name in used:
        name += "_"
    used.add(name)
    return name


def _one_system(turns: Turns, _: TargetProfile, changes: list[Change]) -> Turns:
    """Merge system messages into one at the front: chat templates know one, and there."""
    systems = [turn for turn in turns if turn.message.get("role") == "system"]
    if not systems or (len(systems) == 1 and turns[0] is systems[0]):
        return turns
    rest = [turn for turn in turns if turn.message.get("role") != "system"]
    first, *further = systems
    content = first.message.get("content")
    if turns[0] is not first:
        further = systems
    for turn in further:
        reason = "the target's template knows one system message, at the front"
        changes.append(Change(f"messages[{turn.at}]", turn.message, None, f"{reason}; its text stands there now"))
    for turn in systems[1:]:
        content = _with_text(content, turn.message.get("content"))
    return [_Turn(first.at, {**first.message, "content": content}), *rest]


def _with_text(content: Any, more: Any) -> Any:  # noqa: ANN401 - text or parts
    """Put one content behind another; parts stay parts."""
    if not isinstance(content, list) and not isinstance(more, list):
        return BREAK.join(each for each in (content, more) if each)
    return [*_in_parts(content), *_in_parts(more)]


def _in_parts(content: Any) -> list[Any]:  # noqa: ANN401 - text or parts
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _text(content: Any) -> str:  # noqa: ANN401 - text or parts
    return "\n".join(str(part["text"]) for part in _in_parts(content) if isinstance(part, dict) and "text" in part)


def _with_directives(turns: Turns, target: TargetProfile, changes: list[Change]) -> Turns:
    """Add what the profile wants said, once, behind the system text; without a system tier it is folded next."""
    language = f"Answer in {target.language}." if target.language else ""
    for text, reason in (
        (target.scaffolding, "the target wants it in its prompt"),
        (language, "the target may answer in another language unless it is told"),
    ):
        front = turns[0].message if turns else {}
        if not text or text in _text(front.get("content")):
            continue
        if front.get("role") == "system":
            turns = [_Turn(turns[0].at, {**front, "content": _with_text(front.get("content"), text)}), *turns[1:]]
        else:
            turns = [_Turn(-1, {"role": "system", "content": text}), *turns]
        changes.append(Change(f"messages[{max(turns[0].at, 0)}].content", None, text, reason))
    return turns


def _folded(turns: Turns, target: TargetProfile, changes: list[Change]) -> Turns:
    if target.has_system_role or not turns or turns[0].message.get("role") != "system":
        return turns
    system, *rest = turns
    text = system.message.get("content")
    if rest and rest[0].message.get("role") == "user":
        user = {**rest[0].message, "content": _with_text(text, rest[0].message.get("content"))}
        folded = [_Turn(rest[0].at, user), *rest[1:]]
    else:
        folded = [_Turn(system.at, {"role": "user", "content": text}), *rest]
    if system.at >= 0:
        reason = "the target has no system tier; the text opens the first user turn"
        changes.append(Change(f"messages[{system.at}]", system.message, folded[0].message, reason))
    return folded


def _alternating(turns: Turns, target: TargetProfile, changes: list[Change]) -> Turns:
    if not target.needs_alternation:
        return turns
    merged: Turns = []
    for turn in turns:
        last = merged[-1].message if merged else {}
        plain = all(set(each) == {"role", "content"} for each in (last, turn.message))
        if plain and last["role"] == turn.message["role"] and last["role"] in {"user", "assistant"}:
            content = _with_text(last["content"], turn.message["content"])
            merged[-1] = merged[-1]._replace(message={**last, "content": content})
            reason = "the target's template wants user and assistant in turn; the text stands behind the turn before it"
            changes.append(Change(f"messages[{turn.at}]", turn.message, None, reason))
        else:
            merged.append(turn)
    return merged


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
    room = max(1, target.max_context - (prompt_tokens or 0))
    if limit > room:
        params["max_tokens"] = room
        reason = (
            f"the target's context has {target.max_context} tokens, {prompt_tokens or 'some'} of them for the prompt"
        )
        changes.append(Change("params.max_tokens", limit, room, reason))


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
