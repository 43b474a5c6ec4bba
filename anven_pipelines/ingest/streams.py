"""From the raw text of a streamed response (server-sent events) to the body that it would have had unstreamed."""

from __future__ import annotations

import re
from typing import Any, Final

from anven_pipelines.ingest.screen import STRICT_JSON

_HEAD: Final = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
_LINE_END: Final = re.compile(r"\r\n|\n|\r")  # not str.splitlines: U+2028 and others may stand raw in an answer
_FINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_CUT: Final = {"error": {"code": "stream_cut", "message": "the stream ends before the answer is finished"}}


class BrokenStreamError(ValueError):
    """The text is no event stream of a text generation call."""


def assemble(stream: str) -> dict[str, Any]:
    """Join the chunks of a streamed chat completion, completion or response.

    A stream that ends before its answer is finished, or that carries an error, gives a body with both what
    came and an `error`.

    Args:
        stream: The response's text: lines of `data: {...}`, one event each, as every provider writes them.

    Raises:
        BrokenStreamError: an event is not a JSON object or not of a known shape.
    """
    data = [line[5:].strip() for line in _LINE_END.split(stream) if line.startswith("data:")]
    events = [_event(number, text) for number, text in enumerate(data, start=1) if text and text != "[DONE]"]
    try:
        if any(str(event.get("type", "")).startswith("response.") for event in events):
            return _response(events)
        return _completion(events, done="[DONE]" in data)
    except (AttributeError, KeyError, TypeError) as error:
        message = "the stream's events have an unknown shape; OpenAI's chunks are needed"
        raise BrokenStreamError(message) from error


def _event(number: int, text: str) -> dict[str, Any]:
    try:
        event = STRICT_JSON.decode(text)
    except (ValueError, RecursionError) as error:
        message = f"the stream's event {number} is not JSON; one JSON object per event is needed"
        raise BrokenStreamError(message) from error
    if not isinstance(event, dict):
        message = f"the stream's event {number} is no object; one JSON object per event is needed"
        raise BrokenStreamError(message)
    return event


def _completion(events: list[dict[str, Any]], *, done: bool) -> dict[str, Any]:
    body: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        # Azure's first chunk names neither id nor model: the first value that is not empty counts.
        body |= {key: event[key] for key in _HEAD if event.get(key) and key not in body}
        if usage := event.get("usage") or (event.get("x_groq") or {}).get("usage"):
            body["usage"] = usage
        if event.get("error"):
            body["error"] = event["error"]
        for part in event.get("choices") or []:
            _add(choices.setdefault(part.get("index", 0), {}), part)
    finished = done or any(choice.get("finish_reason") for choice in choices.values())
    return ({} if finished else _CUT) | body | {"choices": [choices[index] for index in sorted(choices)]}


def _add(choice: dict[str, Any], part: dict[str, Any]) -> None:
    """Add one chunk's part of a choice to what came before."""
    if part.get("finish_reason"):
        choice["finish_reason"] = part["finish_reason"]
    if "text" in part:
        choice["text"] = choice.get("text", "") + (part["text"] or "")
    delta = part.get("delta") or {}
    message = choice.setdefault("message", {})
    for key in ("content", "refusal"):
        if delta.get(key) is not None:
            message[key] = message.get(key, "") + _text(delta[key])
    if delta.get("function_call"):
        _add_function(message.setdefault("function_call", {}), delta["function_call"])
    calls = message.setdefault("tool_calls", [])
    for call in delta.get("tool_calls") or []:
        # Mistral sends whole calls, some without an index.
        place = call.get("index", len(calls))
        calls.extend({"type": "function", "function": {}} for _ in range(place + 1 - len(calls)))
        calls[place] |= {key: call[key] for key in ("id", "type") if call.get(key)}
        _add_function(calls[place]["function"], call.get("function") or {})


def _add_function(function: dict[str, Any], part: dict[str, Any]) -> None:
    for key in ("name", "arguments"):
        if part.get(key) is not None:
            function[key] = function.get(key, "") + part[key]


def _text(content: str | list[dict[str, Any]]) -> str:
    """Return the text of a delta: text, or a list of parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _response(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the final body that a Responses stream repeats at its end, or what came before it broke off."""
    for event in reversed(events):
        if event.get("type") in _FINAL:
            return dict(event["response"])
    body: dict[str, Any] = dict(next((event["response"] for event in events if "response" in event), {}))
    text = "".join(event["delta"] for event in events if event.get("type") == "response.output_text.delta")
    return body | _CUT | {"output": [{"type": "message", "content": [{"type": "output_text", "text": text}]}]}
