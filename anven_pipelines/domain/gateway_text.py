"""One line of the gateway's text log: what was asked and answered, redacted, tied to its event by the request's id.

Nothing in it is as it was written: personal data and secrets have become the names of their kinds. A line whose text
could not be redacted says so and holds none of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import polars as pl

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.table import UTC_TIMESTAMP, Column, Table

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence

Kind = Literal["request", "shadow"]

FOLDER: Final = "texts"
"""Folder of the log, in that of the events."""

TEXT_LIMIT: Final = 16_384
"""Longest text that is kept of one message or answer, in characters; what is longer is cut there and marked."""

CONVERSATION_LIMIT: Final = 131_072
"""Most characters of one request's messages together; the oldest ones are left out first."""

MESSAGES_LIMIT: Final = 200
"""Most messages of one request; the oldest ones are left out first."""


@dataclass(frozen=True, kw_only=True)
class GatewayText:
    """What was asked and answered; `GATEWAY_TEXTS` says what each field means."""

    event_id: str
    kind: Kind
    ts: datetime
    worker: str
    seq: int
    workload: str
    request_id: str | None = None
    messages: str | None = None
    answer: str | None = None
    found: str | None = None
    cut: int = 0
    left_out: int = 0
    problem: str | None = None

    def to_line(self) -> bytes:
        """Write the text as one line of JSON, its end included; half a surrogate pair, no text, becomes `?`."""
        written = asdict(self) | {"ts": self.ts.astimezone(UTC).isoformat()}
        line = json.dumps(written, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        return line.encode(errors="replace") + b"\n"

    def to_row(self) -> dict[str, Any]:
        """Return the text as a row of `GATEWAY_TEXTS`."""
        return asdict(self)


GATEWAY_TEXTS: Final = Table(
    "gateway_texts",
    (
        Column(
            "event_id", pl.String, "Unique; the same text read twice has the same. Not that of the request's event."
        ),
        Column("kind", pl.String, "request, or shadow for the answer to a mirrored one, which has no messages."),
        Column("ts", UTC_TIMESTAMP, "When the answer had ended, by the clock of its worker."),
        Column("worker", pl.String, "Process that redacted and wrote it."),
        Column("seq", pl.Int64, "Rises by one with each text of a worker."),
        Column("workload", pl.String, "Workload."),
        Column("request_id", pl.String, "The gateway's id of the client's request, as in its event."),
        Column(
            "messages", pl.String, "JSON list of role, content, tool_calls; redacted, as the application wrote them."
        ),
        Column("answer", pl.String, "JSON object of content and tool_calls of the first choice; redacted."),
        Column("found", pl.String, "JSON object: how often each kind was found."),
        Column("cut", pl.Int64, "Texts that were cut at their limit."),
        Column("left_out", pl.Int64, "Messages that were too old to fit, and parts that are no text, such as images."),
        Column("problem", pl.String, "Why there is no text."),
    ),
)

_NAMES: Final = frozenset(each.name for each in fields(GatewayText))
_TEXTS: Final = ("event_id", "worker", "workload")
_OPTIONAL: Final = ("request_id", "messages", "answer", "found", "problem")
_COUNTS: Final = ("seq", "cut", "left_out")


def parse_text(line: str | bytes) -> GatewayText:
    """Read one whole line of the text log.

    Raises:
        InvalidInput: it is no JSON object, its fields are not those of a text, or a value is not of its kind.
    """
    try:
        found = json.loads(line)
        if not isinstance(found, dict) or set(found) != _NAMES:
            message = "the line is no text of the gateway: its fields are others"
            raise InvalidInput(message)
        time = datetime.fromisoformat(str(found["ts"]))
        for name in (*_TEXTS, *_OPTIONAL):
            str(
                found[name]
            ).encode()  # half a surrogate pair fails here, and not in Polars, which would end each reading
    except (ValueError, RecursionError) as error:
        message = f"the line is no text of the gateway ({type(error).__name__})"
        raise InvalidInput(message) from error
    fits = (
        found["kind"] in {"request", "shadow"}
        and time.tzinfo is not None
        and all(isinstance(found[name], str) for name in _TEXTS)
        and all(isinstance(found[name], str | None) for name in _OPTIONAL)
        and all(type(found[name]) is int and found[name] >= 0 for name in _COUNTS)
    )
    if not fits:
        message = "a field of the gateway's text is not of its kind"
        raise InvalidInput(message)
    return GatewayText(**{**found, "ts": time.astimezone(UTC)})


def spoken(messages: Sequence[object], *, beyond: int) -> tuple[list[dict[str, Any]], int]:
    """Return what can be kept of a request's messages before it is redacted, and how many parts cannot.

    Args:
        messages: OpenAI chat messages. Of each, the role, its texts and its tool calls are taken; names of speakers,
            images and everything else are not.
        beyond: Characters to take behind each text's limit, for the redactor.
    """
    kept: list[dict[str, Any]] = []
    left_out = max(0, len(messages) - MESSAGES_LIMIT)
    room = CONVERSATION_LIMIT
    for message in reversed(messages[-MESSAGES_LIMIT:]):
        taken, dropped = said(message, beyond=beyond)
        room -= sum(map(len, _strings(taken)))
        if room < 0:
            left_out += 1
        else:
            kept.append(taken)
            left_out += dropped
    return kept[::-1], left_out


def said(message: object, *, beyond: int) -> tuple[dict[str, Any], int]:
    """Return what can be kept of one message before it is redacted, and how many parts of it cannot."""
    if not isinstance(message, dict):
        return {}, 1
    most = TEXT_LIMIT + beyond
    parts = content if isinstance(content := message.get("content"), list) else [content]
    texts = [each.get("text") if isinstance(each, dict) else each for each in parts if each is not None]
    kept: dict[str, Any] = {
        name: str(message[name])[:most] for name in ("role", "tool_call_id") if isinstance(message.get(name), str)
    }
    if words := [each for each in texts if isinstance(each, str)]:
        kept["content"] = "\n".join(words)[:most]
    called = message.get("tool_calls")
    if calls := [_called(each, most) for each in called if isinstance(each, dict)] if isinstance(called, list) else []:
        kept["tool_calls"] = calls[:MESSAGES_LIMIT]
    return kept, len(texts) - len(words)


def _called(call: Mapping[str, Any], most: int) -> dict[str, str]:
    function = call.get("function")
    named = function if isinstance(function, dict) else {}
    found = {"id": call.get("id"), "name": named.get("name"), "arguments": named.get("arguments")}
    return {name: value[:most] for name, value in found.items() if isinstance(value, str)}


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in _strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in _strings(each)]
    return [value] if isinstance(value, str) else []


def counted(found: Counter[str]) -> str:
    """Write how often each kind was found, by name."""
    return json.dumps(dict(sorted(found.items())))
