"""How a chat completion is read, and what its failures mean: pure, so that every case can be tested without a server.

A failure's kind decides three things: whether it is retried, whether a later run asks the item again, and whether it
says something about the endpoint rather than about the item.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from anven_pipelines.domain.canonical import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Kind = Literal[
    "refused", "bad_request", "busy", "server_error", "timeout", "unreachable", "broken_answer", "unsupported", "poison"
]

RETRIED: Final[frozenset[Kind]] = frozenset({"busy", "server_error", "timeout", "unreachable", "broken_answer"})
ASKED_AGAIN: Final[frozenset[Kind]] = RETRIED | {"refused"}  # by a later run: the key or the address was mended
FORM_REFUSED: Final[frozenset[Kind]] = frozenset({"bad_request", "unsupported"})  # it is not taken as it is asked
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0
ITEMS_OWN: Final[frozenset[Kind]] = frozenset({"unsupported", "poison"})  # said by our own engine, which is well
LONGEST_RETRY_AFTER_S: Final = 300.0  # whoever asks for more has the item fail, to be asked by a later run
REASON_LENGTH: Final = 300

_KINDS: Final[Mapping[int, Kind]] = {
    401: "refused", 402: "refused", 403: "refused", 404: "refused",
    408: "timeout", 409: "busy", 425: "busy", 429: "busy",
}  # fmt: skip
_SERVER_ERRORS: Final = 500
_SECRETS: Final = re.compile(r"(?i)(?<=bearer )[^\s'\",]+|\bsk-[\w*-]{4,}|(?<=://)[^/@\s]+(?=@)")


@dataclass(frozen=True)
class Answer:
    """A whole answer, with what the server counted and what the client measured.

    `longest_gap_ms` is the longest wait between two of its pieces; no row of ANSWERS has it.
    """

    output: str | None
    tool_calls: str | None
    finish_reason: str
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    ttft_ms: float | None
    latency_ms: float
    longest_gap_ms: float | None = None

    @property
    def inter_token_ms(self) -> float | None:
        """Milliseconds per token after the first one; None where no such token was counted or seen to arrive.

        Source:
            "TPOT" of vLLM's `bench serve`: (latency - time to first token) / (output tokens - 1).
        """
        if self.ttft_ms is None or self.output_tokens is None or self.output_tokens < 2:  # noqa: PLR2004 - a first one and another
            return None
        return (self.latency_ms - self.ttft_ms) / (self.output_tokens - 1)

    def row(self, item_id: str, *, attempts: int) -> dict[str, Any]:
        """Return the answer as a row of ANSWERS."""
        counted = self.input_tokens is not None or self.output_tokens is not None
        return {
            "item_id": item_id,
            "status": "answered",
            "attempts": attempts,
            "tokens_computed": False if counted else None,
            **{name: value for name, value in vars(self).items() if name != "longest_gap_ms"},
        }


@dataclass(frozen=True)
class Failure:
    """Why there is no answer, without secrets.

    Attributes:
        kind: What the failure means.
        message: What the server or the client said.
        status: HTTP status, where there was a response.
        retry_after_s: How long the server asked to wait.
    """

    kind: Kind
    message: str
    status: int | None = None
    retry_after_s: float | None = None

    @property
    def reason(self) -> str:
        """The failure in one line; `settled` reads its kind back from the start."""
        status = "" if self.status is None else f"HTTP {self.status}: "
        return f"{self.kind}: {status}{self.message}"

    def row(self, item_id: str, *, attempts: int) -> dict[str, Any]:
        """Return the failure as a row of ANSWERS."""
        return {"item_id": item_id, "status": "failed", "attempts": attempts, "reason": self.reason}


Outcome = Answer | Failure


@dataclass
class AnswerInProgress:
    """An answer while its chunks arrive."""

    ttft_ms: float | None = None
    _last_ms: float | None = None
    _longest_gap_ms: float | None = None
    _text: list[str] = field(default_factory=list)
    _refusal: list[str] = field(default_factory=list)
    _calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    _finish_reason: str | None = None
    _model: str | None = None
    _usage: Mapping[str, Any] = field(default_factory=dict)

    def add(self, chunk: Mapping[str, Any], *, elapsed_ms: float | None) -> None:
        """Take in a chunk, or a whole answer that was not streamed.

        Args:
            chunk: A `chat.completion.chunk` or `chat.completion` object; of several choices the first counts.
            elapsed_ms: Milliseconds since the request was sent; None for an answer that was not streamed, whose
                first token nobody saw.
        """
        self._model = chunk.get("model") or self._model
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) == 0:
                self._take(choice.get("delta") or choice.get("message") or {}, elapsed_ms)
                self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def whole(self, *, latency_ms: float) -> Outcome:
        """Return the answer, or a failure where its end is missing: a short answer never passes as a whole one."""
        if self._finish_reason is None:
            length = sum(map(len, self._text))
            return Failure("broken_answer", f"the answer ended without a finish_reason, after {length} characters")
        calls = [self._calls[index] for index in sorted(self._calls)]
        text = "".join(self._text or self._refusal)
        details = self._usage.get("prompt_tokens_details") or {}
        return Answer(
            output=text if text or not calls else None,
            tool_calls=canonical_json(calls) if calls else None,
            finish_reason=self._finish_reason,
            model=self._model,
            input_tokens=self._usage.get("prompt_tokens"),
            output_tokens=self._usage.get("completion_tokens"),
            cached_tokens=details.get("cached_tokens"),
            ttft_ms=self.ttft_ms,
            latency_ms=latency_ms,
            longest_gap_ms=self._longest_gap_ms,
        )

    def _take(self, delta: Mapping[str, Any], elapsed_ms: float | None) -> None:
        text, refusal, calls = delta.get("content"), delta.get("refusal"), delta.get("tool_calls")
        if elapsed_ms is not None and (text or refusal or calls):
            self._time(elapsed_ms)
        if text:
            self._text.append(text)
        if refusal:
            self._refusal.append(refusal)
        for place, call in enumerate(calls or ()):
            self._take_call(call, place)

    def _time(self, elapsed_ms: float) -> None:
        """Note when a piece came."""
        if self.ttft_ms is None or self._last_ms is None:
            self.ttft_ms = elapsed_ms
        else:
            self._longest_gap_ms = max(self._longest_gap_ms or 0.0, elapsed_ms - self._last_ms)
        self._last_ms = elapsed_ms

    def _take_call(self, part: Mapping[str, Any], place: int) -> None:
        """Lay a part of a tool call on what came before; names come whole, arguments come in pieces."""
        index = part.get("index")
        call = self._calls.setdefault(
            place if index is None else index, {"type": "function", "function": {"name": "", "arguments": ""}}
        )
        call.update({name: part[name] for name in ("id", "type") if part.get(name)})
        function = part.get("function") or {}
        call["function"]["name"] = function.get("name") or call["function"]["name"]
        call["function"]["arguments"] += function.get("arguments") or ""


def kind_of(status: int) -> Kind:
    """Return what an HTTP status other than success means."""
    return _KINDS.get(status) or ("server_error" if status >= _SERVER_ERRORS else "bad_request")


def retry_after_s(header: str | None, *, now: datetime) -> float | None:
    """Read a Retry-After header, seconds or an HTTP date, as seconds from now; None where it cannot be read."""
    if header is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", header):
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (zoned - now).total_seconds())


def wait_s(failure: Failure, *, attempt: int, jitter: float) -> float | None:
    """Return how long to wait before the next attempt; None where another attempt makes no sense.

    Args:
        failure: How the attempt ended.
        attempt: Number of the attempt that failed, from 1.
        jitter: Random number in [0, 1): spreads clients that failed together.
    """
    if failure.kind not in RETRIED:
        return None
    if failure.retry_after_s is None:
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempt - 1)) * (0.5 + jitter / 2)
    return None if failure.retry_after_s > LONGEST_RETRY_AFTER_S else failure.retry_after_s + FIRST_WAIT_S * jitter


def without_secrets(text: str, *, secrets: Sequence[str]) -> str:
    """Return the text on one line, cut to REASON_LENGTH, with keys and credentials blanked out."""
    for secret in secrets:
        text = text.replace(secret, "[secret]")
    text = " ".join(_SECRETS.sub("[secret]", text).split())
    return text if len(text) <= REASON_LENGTH else f"{text[: REASON_LENGTH - 1]}…"
