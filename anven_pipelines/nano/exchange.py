"""One streamed call to an OpenAI-compatible server, and what was measured of it."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from anven_pipelines.ingest.streams import BrokenStreamError, assemble
from anven_pipelines.nano.prompts import legacy_messages
from anven_pipelines.nano.tasks import MAX_ANSWER_TOKENS

if TYPE_CHECKING:
    from anven_pipelines.nano.demand import PlannedCall

ANSWER_ID_HEADER: Final = "x-litellm-call-id"
_OK: Final = 200
_PAGE: Final = 2_000  # characters kept of an error body that is not JSON


class Clock:
    """Wall times that cannot jump: the monotonic clock, set once by the wall clock."""

    def __init__(self) -> None:
        """Set the clock."""
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Return seconds since 1970."""
        return self._offset + time.monotonic()


@dataclass(frozen=True)
class Exchange:
    """What one call was, and what was measured of it; what was not measured is None.

    Attributes:
        call: What was planned.
        call_id: Unique, also over several runs.
        body: The request's body.
        started_at: When it was sent, seconds since 1970.
        first_token_at: When the first part of the answer came.
        ended_at: When the response was over.
        http_status: None where no response began.
        response: The whole answer as an unstreamed body, or what had come of it; the server's usage is within.
        error: The server's error object, or what broke the connection; None where the answer is whole.
        answer_id: What a gateway calls the request (`x-litellm-call-id`), and wants to be told with a feedback.
    """

    call: PlannedCall
    call_id: str
    body: dict[str, Any]
    started_at: float
    first_token_at: float | None
    ended_at: float
    http_status: int | None
    response: dict[str, Any] | None
    error: dict[str, Any] | None
    answer_id: str | None = None

    @property
    def text(self) -> str:
        """The answer's text; empty where none came."""
        with suppress(LookupError, TypeError):
            return str((self.response or {})["choices"][0]["message"]["content"] or "")
        return ""

    @property
    def is_right(self) -> bool:
        """Whether the answer is whole, and exactly the one that was expected."""
        return self.error is None and self.text == self.call.item.answer


class _Stream:
    """The text of a response as it comes in, and when its first token came."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._parts: list[str] = []
        self.first_token_at: float | None = None

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def take(self, part: str) -> None:
        self._parts.append(part)
        # An event may come in two parts; until the first token there is little text to look at again.
        if self.first_token_at is None and any(map(_holds_a_token, self.text.split("\n"))):
            self.first_token_at = self._clock.now()


def _holds_a_token(line: str) -> bool:
    """Say whether a line of the stream carries a part of the answer; the first event has a role only."""
    with suppress(ValueError, LookupError, AttributeError, TypeError):
        delta = json.loads(line.removeprefix("data:"))["choices"][0]["delta"]
        return bool(delta.get("content") or delta.get("tool_calls"))
    return False


async def ask(client: httpx.AsyncClient, call: PlannedCall, *, model: str, clock: Clock) -> Exchange:
    """Send a planned call in the legacy style and measure it; whatever goes wrong is part of the exchange.

    Args:
        client: Its base URL ends in the server's `/v1`.
        call: What to ask.
        model: Name that the server knows the model by.
        clock: Where the times come from.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": legacy_messages(call.item),
        "temperature": 0,
        "max_tokens": MAX_ANSWER_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": call.user,
    }
    stream = _Stream(clock)
    http_status: int | None = None
    answer_id: str | None = None
    response: dict[str, Any] | None = None
    started_at = clock.now()
    try:
        async with client.stream("POST", "chat/completions", json=body) as reply:
            http_status, answer_id = reply.status_code, reply.headers.get(ANSWER_ID_HEADER)
            async for part in reply.aiter_text():
                stream.take(part)
        ended_at = clock.now()
        response, error = _read(http_status, stream.text)
    except httpx.HTTPError as broken:
        ended_at = clock.now()
        response, _ = _read(http_status, stream.text) if http_status == _OK else (None, None)
        error = {"type": type(broken).__name__, "message": str(broken) or "the connection broke"}
    first_token_at = stream.first_token_at if http_status == _OK else None
    return Exchange(
        call=call,
        call_id=str(uuid.uuid4()),
        body=body,
        started_at=started_at,
        first_token_at=first_token_at,
        ended_at=ended_at,
        http_status=http_status,
        response=response,
        error=error,
        answer_id=answer_id,
    )


def _read(http_status: int, text: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the answer and the error that a response's text holds."""
    if http_status != _OK:
        return None, _error_of(text)
    try:
        # A server that cannot stream answers with one body.
        answer = json.loads(text) if text.lstrip().startswith("{") else assemble(text)
    except (BrokenStreamError, ValueError) as broken:
        return None, {"type": "BrokenStreamError", "message": str(broken)}
    if not isinstance(answer, dict):
        return None, {"type": "BrokenStreamError", "message": f"the answer is {text[:_PAGE]!r}; an object is needed"}
    error = answer.pop("error", None)
    return answer, error if error is None or isinstance(error, dict) else {"type": "error", "message": str(error)}


def _error_of(text: str) -> dict[str, Any]:
    """Return the error object of a response; of a page that holds none, its text."""
    with suppress(ValueError, LookupError, TypeError):
        error = json.loads(text)["error"]
        if isinstance(error, dict):
            return error
    return {"message": text.strip()[:_PAGE]}
