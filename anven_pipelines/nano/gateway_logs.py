"""What a gateway logs of a call: LiteLLM's payload, or this project's own request/response lines; both are read back.

- `litellm`: the fields of LiteLLM's StandardLoggingPayload (1.106) that a proxy in front of the server would fill,
  with its placeholders: 0.0 for the cost of a model that has no price, `{}` for the response of a failed call.
- `openai`: request and response bodies, with what was measured beside them in an envelope of this project's own.

A gateway does not know the right answer, but the demo's questions have one: it travels as the caller's own metadata
(`metadata.requester_metadata.ground_truth`), and in the `openai` format as `ground_truth`. What was not measured has
no field.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from anven_pipelines.nano.exchange import Exchange

GatewayFormat = Literal["litellm", "openai"]

_BLOCK: Final = 65_536
_USAGE: Final = ("prompt_tokens", "completion_tokens", "total_tokens")


class GatewayLog:
    """A log file that calls are appended to, a whole line at a time, from `with` to its end.

    Each line is one write, so a killed program leaves whole lines. A torn last line, as a full disk or a power cut
    may leave, is cut off when the file is opened again.
    """

    def __init__(self, path: Path, log_format: GatewayFormat) -> None:
        """Prepare to append to a file that may exist."""
        self._path = path
        self._line_of = LINES[log_format]

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, _end_of_whole_lines(self._file))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def write(self, exchange: Exchange) -> None:
        """Append one call.

        Raises:
            OSError: The disk took only a part of the line; what it took is cut off again.
        """
        line = json.dumps(self._line_of(exchange), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        before = os.fstat(self._file).st_size
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, before)
            message = f"{self._path}: {written} of {len(line)} bytes of a line could be written; free some space"
            raise OSError(message)


def _end_of_whole_lines(file: int) -> int:
    """Return the size of a file up to its last line end."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - _BLOCK)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def litellm_line(exchange: Exchange) -> dict[str, Any]:
    """Return a call as LiteLLM's StandardLoggingPayload."""
    call, response, error = exchange.call, exchange.response or {}, exchange.error
    usage = response.get("usage") if error is None else None
    first = exchange.first_token_at
    outcome: dict[str, Any] = {"status": "success", "stream": True, "response": response, "error_str": None}
    if error is not None:
        code = str(exchange.http_status) if exchange.http_status not in {None, 200} else ""
        name = error.get("code") or error.get("type") or ""
        information = {"error_code": code, "error_class": str(name), "error_message": error.get("message")}
        failed = {"response": {}, "error_str": error.get("message"), "error_information": information}
        outcome |= {"status": "failure", "stream": None, **failed}
    return {
        "id": (response.get("id") if error is None else None) or exchange.call_id,
        "litellm_call_id": exchange.call_id,
        "trace_id": call.conversation_id,
        "session_id": "",
        "call_type": "acompletion",
        **outcome,
        "custom_llm_provider": "openai",
        "response_cost": 0.0,
        **({name: usage[name] for name in _USAGE if name in usage} if usage else {}),
        "startTime": exchange.started_at,
        "endTime": exchange.ended_at,
        **({} if first is None else {"completionStartTime": first}),
        "response_time": (exchange.ended_at if first is None else first) - exchange.started_at,
        "model": exchange.body["model"],
        "model_group": exchange.body["model"],
        "cache_hit": False,
        "request_tags": [],
        "end_user": call.user,
        "messages": exchange.body["messages"],
        "model_parameters": {name: value for name, value in exchange.body.items() if name not in {"model", "messages"}},
        "metadata": {
            "user_api_key_alias": call.application,
            "user_api_key_end_user_id": call.user,
            "requester_metadata": {"task": call.item.task, "ground_truth": call.item.answer},
            **({"usage_object": usage} if usage else {}),
        },
    }


def openai_line(exchange: Exchange) -> dict[str, Any]:
    """Return a call as its request and response bodies, with what was measured beside them."""
    call, first = exchange.call, exchange.first_token_at
    failed = {} if exchange.error is None else {"error": exchange.error}
    body = {**(exchange.response or {}), **failed}
    return {
        "request_id": exchange.call_id,
        "ts": exchange.started_at,
        "method": "POST",
        "path": "/v1/chat/completions",
        "provider": "openai",
        "request": exchange.body,
        **({} if exchange.http_status is None else {"status": exchange.http_status}),
        "response": body,
        "latency_ms": _milliseconds(exchange.started_at, exchange.ended_at),
        **({} if first is None else {"ttft_ms": _milliseconds(exchange.started_at, first)}),
        "application": call.application,
        "conversation_id": call.conversation_id,
        "task": call.item.task,
        "ground_truth": call.item.answer,
    }


def _milliseconds(since: float, till: float) -> float:
    return round((till - since) * 1000, 3)


LINES: Final[dict[GatewayFormat, Callable[[Exchange], dict[str, Any]]]] = {
    "litellm": litellm_line,
    "openai": openai_line,
}
