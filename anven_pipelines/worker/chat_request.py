"""A logged chat completion as an engine is asked it: parameters checked, messages as chat templates take them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anven_pipelines.worker.engine import EngineRequest, ResponseFormat, Sampling, UnsupportedRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Parameters that no engine of ours carries out, with the values that ask for nothing.
NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "n": (1,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
}
_TRANSPORT: Final = frozenset(
    {"stream", "stream_options", "user", "safety_identifier", "prompt_cache_key", "metadata", "timeout"}
)


class Parameters(BaseModel):
    """The parameters of a chat completion that shape one plain answer; names and ranges are OpenAI's and vLLM's."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    def engine_request(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        response_format: ResponseFormat = "text",
        tools: Sequence[Mapping[str, Any]] = (),
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
    ) -> EngineRequest:
        """Return what the engine is asked; a missing temperature is OpenAI's default, 1.

        Args:
            messages: Turns as chat templates take them.
            response_format: See `EngineRequest`.
            tools: See `EngineRequest`.
            presence_penalty: See `Sampling`.
            frequency_penalty: See `Sampling`.

        Raises:
            UnsupportedRequest: parameters contradict each other.
        """
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(stop):
            message = "stop holds an empty text; leave it out"
            raise UnsupportedRequest(message, field="stop")
        if self.top_logprobs is not None and not self.logprobs:
            message = "top_logprobs needs logprobs to be true"
            raise UnsupportedRequest(message, field="top_logprobs")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            message = "max_tokens and max_completion_tokens differ; give one"
            raise UnsupportedRequest(message, field="max_tokens")
        return EngineRequest(
            messages=tuple(messages),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            sampling=Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                top_k=max(0, self.top_k or 0),
                seed=self.seed,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
            ),
            stop=stop,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            response_format=response_format,
            tools=tuple(tools),
        )


class _LoggedParameters(Parameters):
    """What may stand in the parameters of a logged call beside them."""

    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)


def engine_request(messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> EngineRequest:
    """Read a logged call.

    Args:
        messages: Turns of the chat completions API.
        params: Its parameters; those that only concern the transport are left out.

    Raises:
        UnsupportedRequest: a message or a parameter is malformed, or asks for what no engine here can do.
    """
    if not messages:
        message = "there are no messages to answer"
        raise UnsupportedRequest(message, field="messages")
    given = {name: value for name, value in params.items() if name not in _TRANSPORT and value is not None}
    for name in given.keys() & NEUTRAL.keys():
        if (value := given.pop(name)) not in NEUTRAL[name]:
            message = f"{name} is {json.dumps(value)}, which the engine cannot carry out"
            raise UnsupportedRequest(message, field=name)
    try:
        read = _LoggedParameters.model_validate_json(json.dumps(given))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"]))
        message = f"parameter {field}: {problem['msg']}"
        raise UnsupportedRequest(message, field=field) from error
    if read.tools and read.tool_choice not in {None, "auto", "none"}:
        message = f"tool_choice is {read.tool_choice!r}; the engine lets the model choose"
        raise UnsupportedRequest(message, field="tool_choice")
    return read.engine_request(
        [_turn(place, message) for place, message in enumerate(messages)],
        response_format=_response_format(read.response_format),
        tools=() if read.tool_choice == "none" else read.tools or (),
        presence_penalty=read.presence_penalty or 0.0,
        frequency_penalty=read.frequency_penalty or 0.0,
    )


def _response_format(given: Mapping[str, Any] | None) -> ResponseFormat:
    match given:
        case None | {"type": "text"}:
            return "text"
        case {"type": "json_object"}:
            return "json_object"
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
    message = f"response_format {json.dumps(given)[:80]} is none of text, json_object and json_schema"
    raise UnsupportedRequest(message, field="response_format")


def _turn(place: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn as chat templates take it: text parts joined, `developer` as `system`, tool arguments read."""
    field = f"messages[{place}]"
    if not isinstance(message, dict) or not isinstance(role := message.get("role"), str):
        text = f"{field} is no object with a role"
        raise UnsupportedRequest(text, field=field)
    turn = {**message, "role": "system" if role == "developer" else role, "content": _content(field, message)}
    if calls := message.get("tool_calls"):
        turn["tool_calls"] = [_read_arguments(field, call) for call in calls]
    return turn


def _content(field: str, message: Mapping[str, Any]) -> str:
    match message.get("content"):
        case None:
            return ""
        case str(text):
            return text
        case list(parts) if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
            return "\n".join(part["text"] for part in parts)
    text = f"{field} holds something else than text, which the engine cannot read"
    raise UnsupportedRequest(text, field=field)


def _read_arguments(field: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool call with its arguments as an object, as templates write them."""
    try:
        function = call["function"]
        arguments = function["arguments"]
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (KeyError, TypeError, ValueError) as error:
        text = f"{field} holds a tool call whose arguments cannot be read: {error!r}"
        raise UnsupportedRequest(text, field=field) from error
    return {**call, "function": {**function, "arguments": read}}
