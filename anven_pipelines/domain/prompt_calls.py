"""A logged prompt taken apart: system text, earlier turns, the user's text, tools and output contract."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.spec import Contract

ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
"""What JSON mode promises."""


class LoggedCall(NamedTuple):
    """One logged prompt, taken apart; `trouble` says why it cannot be."""

    id: str
    application: str
    system: str | None
    turns: list[dict[str, Any]]
    user: str
    tools: tuple[dict[str, Any], ...]
    contract: dict[str, Any] | None
    trouble: str | None


def read_call(call_id: str | None, application: str | None, prompt: str | None, params: str | None) -> LoggedCall:
    """Take a prompt apart: system texts at its front are one, texts in parts are joined by line breaks."""
    call = LoggedCall(call_id or "", application or "unknown", None, [], "", (), None, None)
    try:
        messages, asked = json.loads(prompt or ""), json.loads(params or "{}") or {}
        roles = [each["role"] for each in messages]
    except (ValueError, TypeError, KeyError):
        return call._replace(trouble="the prompt is no JSON list of messages with roles")
    front = next((at for at, role in enumerate(roles) if role not in {"system", "developer"}), len(roles))
    if not roles or roles[-1] != "user":
        last = roles[-1] if roles else "no"
        return call._replace(trouble=f"the prompt ends with {last} message; one of the user is needed")
    if {"system", "developer"} & set(roles[front:]):
        return call._replace(trouble="a system message stands behind other messages; convert the prompts first")
    texts = [text_of(each) for each in (*messages[:front], messages[-1])]
    if None in texts:
        return call._replace(trouble="a system or user message holds more than text and a role")
    *systems, user = [text for text in texts if text is not None]
    return call._replace(
        system="\n\n".join(systems) if systems else None,
        turns=messages[front:-1],
        user=user,
        tools=_tools(asked),
        contract=_contract(asked.get("response_format")),
    )


def text_of(message: Mapping[str, Any]) -> str | None:
    """Return the text of a message; None where it holds anything but a role and text."""
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(each, dict) and each.get("type") == "text" for each in content):
        content = "\n".join(str(each.get("text", "")) for each in content)
    return content if isinstance(content, str) and set(message) <= {"role", "content"} else None


def _tools(asked: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the tools of a request; functions of the legacy form are tools, too."""
    functions = [{"type": "function", "function": each} for each in asked.get("functions") or ()]
    return tuple(asked.get("tools") or functions)


def _contract(response_format: object) -> dict[str, Any] | None:
    """Return the JSON Schema that a request demands; JSON mode demands an object."""
    if not isinstance(response_format, dict) or response_format.get("type") in {None, "text"}:
        return None
    schema = (response_format.get("json_schema") or {}).get("schema")
    return schema if isinstance(schema, dict) else dict(ANY_OBJECT)


def answer_schema(contract: dict[str, Any] | None, declared: Contract) -> dict[str, Any] | None:
    """Return the JSON Schema of the answers: what the calls demand, and of JSON mode also the fields that are declared.

    Args:
        contract: What the calls demand; None where they demand no JSON, which no declaration changes.
        declared: Of the migration file; dots step into nested objects.
    """
    return _object_with(declared.required) if contract == ANY_OBJECT and declared.required else contract


def _object_with(paths: Sequence[str]) -> dict[str, Any]:
    inner: dict[str, list[str]] = {}
    for path in paths:
        name, _, rest = path.partition(".")
        inner.setdefault(name, []).extend([rest] if rest else [])
    fields = {name: _object_with(rest) if rest else {} for name, rest in inner.items()}
    return {**ANY_OBJECT, "properties": fields, "required": list(inner)}


def is_example(turns: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether turns are one question and its answer, both plain text."""
    texts = all(set(each) == {"role", "content"} and isinstance(each["content"], str) for each in turns)
    return [each.get("role") for each in turns] == ["user", "assistant"] and texts
