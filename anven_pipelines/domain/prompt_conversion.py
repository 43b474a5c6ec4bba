"""A logged request in the form that the target's server takes: structure only, no wording.

Roles, tools, output format, limits and sampling parameters are put as the target's profile says. Each change says what
was there, what stands there now and why; a request that needs none stays as it is, and a converted one needs none.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.prompt_parameters import converted_params
from anven_pipelines.domain.prompt_target import Change, TargetProfile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Message = dict[str, Any]
BREAK: Final = "\n\n"


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
        prompt_tokens: Length of the prompt, or a bound on it, where it is known: the answer's limit leaves room.
    """
    changes: list[Change] = []
    turns = [_Turn(at, dict(copy.deepcopy(message))) for at, message in enumerate(messages)]
    steps: tuple[Callable[[Turns, TargetProfile, list[Change]], Turns], ...] = (
        _renamed, _with_tool_calls, _one_system, _with_directives, _folded, _alternating,
    )  # fmt: skip
    for step in steps:
        turns = step(turns, target, changes)
    converted = converted_params(params, target, changes, contract=contract, prompt_tokens=prompt_tokens)
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
