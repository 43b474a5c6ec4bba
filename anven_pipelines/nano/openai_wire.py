"""OpenAI's chat completions on the wire: what a request may hold, and what is answered."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anven_pipelines.worker.chat_request import NEUTRAL, Parameters
from anven_pipelines.worker.engine import UnsupportedRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.worker.engine import EngineAnswer, EngineChunk, EngineRequest, ModelFacts, TokenLogprob

# Parameters that the server does not carry out, with the values that ask for nothing.
_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    **NEUTRAL,
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}
_SHOWN: Final = 80  # characters of a refused value


class ApiError(Exception):
    """A request that is answered with an error in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the HTTP status, the error object and the headers."""
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = dict(headers or {})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Section):
    """A part of a message's content; there are no images or sounds here."""

    type: Literal["text"]
    text: str


class Message(_Section):
    """One turn; `refusal` is what answers carry, so that an answer can be sent back as the turn that it was."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None

    def for_template(self) -> dict[str, str]:
        """Return the turn as chat templates take it: parts joined, and `developer` as the `system` it replaced."""
        parts = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": parts}


class ResponseFormat(_Section):
    """Plain text, or JSON as far as the model can."""

    type: Literal["text", "json_object"]


class StreamOptions(_Section):
    """What a stream carries beside the answer."""

    include_usage: bool = False


class ChatRequest(Parameters):
    """The parameters that are carried out, and those that change no answer."""

    model: str
    messages: list[Message] = Field(min_length=1)
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None

    def wants_usage(self) -> bool:
        """Say whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def wants_json(self) -> bool:
        """Say whether the answer is to be a JSON object."""
        return self.response_format is not None and self.response_format.type == "json_object"

    def for_engine(self) -> EngineRequest:
        """Return what the engine is asked; a missing temperature is OpenAI's default, 1.

        Raises:
            ApiError: parameters contradict each other.
        """
        try:
            return self.engine_request(
                [message.for_template() for message in self.messages],
                response_format="json_object" if self.wants_json() else "text",
            )
        except UnsupportedRequest as error:
            _refuse(str(error), param=error.field)


def read_request(body: bytes) -> ChatRequest:
    """Read a request's body.

    Raises:
        ApiError: the body is no JSON object, or a parameter is unknown, unsupported or out of range.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        _refuse(f"the body is not JSON: {error}", code="invalid_json")
    if not isinstance(given, dict):
        _refuse(f"the body is a JSON {type(given).__name__}; an object is needed", code="invalid_json")
    for name in given.keys() & _NEUTRAL.keys():
        value = given.pop(name)
        if value is not None and value not in _NEUTRAL[name]:
            message = f"{name} is {_shown(value)}, which this server cannot carry out; leave it out"
            _refuse(message, param=name, code="unsupported_parameter")
    try:
        return ChatRequest.model_validate_json(json.dumps(given))
    except ValidationError as error:
        _refuse_problem(error)


def _refuse_problem(error: ValidationError) -> NoReturn:
    """Refuse a body for one thing that is wrong in it; the most deeply nested says most."""
    problem = max(error.errors(include_url=False), key=lambda problem: len(problem["loc"]))
    param = _path(problem["loc"]) or "the body"
    match problem["type"]:
        case "extra_forbidden":
            _refuse(f"{param} is no parameter of this server", param=param, code="unknown_parameter")
        case "missing":
            _refuse(f"{param} is missing", param=param, code="missing_required_parameter")
    message = f"{param} is {_shown(problem['input'])}: {problem['msg']}"
    _refuse(message, param=param, code="invalid_value")


def _path(loc: Sequence[str | int]) -> str:
    """Write a place as OpenAI does, `messages[0].content`; pydantic names the branches of a union in between."""
    path = ""
    for step in loc:
        if isinstance(step, str) and (step in {"str", "bool"} or step.startswith("list[")):
            continue
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _refuse(message: str, *, param: str | None = None, code: str | None = None) -> NoReturn:
    raise ApiError(400, message, param=param, code=code)


@dataclass(frozen=True)
class Reply:
    """The answer to one request, whole or in chunks that share an id."""

    facts: ModelFacts
    request: ChatRequest
    completion_id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: EngineAnswer) -> dict[str, Any]:
        """Return a `chat.completion` object."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(answer.logprobs),
            "finish_reason": answer.finish_reason,
        }
        usage = _usage(answer.prompt_tokens, answer.output_tokens)
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage, **self._warnings(answer.text)}

    def chunk(self, chunk: EngineChunk, *, first: bool, text_before: str) -> dict[str, Any]:
        """Return a `chat.completion.chunk` object; a warning stands in the last one.

        Args:
            chunk: What the engine added.
            first: It opens the stream, so it names the role.
            text_before: The answer's text up to this chunk.
        """
        delta = {"role": "assistant"} if first else {}
        choice = {
            "index": 0,
            "delta": delta | ({"content": chunk.text} if chunk.text or first else {}),
            "logprobs": self._logprobs(chunk.logprobs) if chunk.logprobs else None,
            "finish_reason": chunk.finish_reason,
        }
        usage = {"usage": None} if self.request.wants_usage() else {}
        warnings = {} if chunk.finish_reason is None else self._warnings(text_before + chunk.text)
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage, **warnings}

    def usage_chunk(self, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
        """Return the chunk that ends a stream whose usage was asked for."""
        usage = _usage(prompt_tokens, output_tokens)
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.completion_id,
            "object": kind,
            "created": self.created,
            "model": self.facts.model,
            "system_fingerprint": f"{self.facts.engine} {self.facts.precision} {self.facts.weights[:12]}",
        }

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.request.logprobs:
            return None
        content = [
            _logprob(*one.chosen) | {"top_logprobs": [_logprob(*other) for other in one.top]} for one in logprobs
        ]
        return {"content": content, "refusal": None}

    def _warnings(self, text: str) -> dict[str, Any]:
        """Say where JSON was asked for and the model wrote none; its words are handed on as they are."""
        if not self.request.wants_json() or _is_json_object(text):
            return {}
        return {"warnings": ["response_format asks for a JSON object; the model's answer is none"]}


def _usage(prompt_tokens: int, output_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
    }


def _logprob(token: str, token_bytes: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token, "bytes": list(token_bytes), "logprob": logprob}


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
