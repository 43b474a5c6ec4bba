"""One line of the gateway's event log: a request, its shadow, a feedback, or a breaker that changed its state.

What was not measured is null; nothing is invented. `intended` is the arm by assignment, `served` the one that answered:
evidence counts by `intended` (intention to treat), so that a failure that legacy rescued stays the target's.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final, Literal, NoReturn, get_args

import polars as pl

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.table import UTC_TIMESTAMP, Column, Table
from anven_pipelines.domain.traffic import Arm

Kind = Literal["request", "shadow", "feedback", "breaker"]
Status = Literal["ok", "error", "disconnected"]
Why = Literal["killed", "breaker", "fallback"]

UNKNOWN_REQUEST: Final = "unknown_request"
"""Flag of a feedback whose request the worker that took it had not served itself."""

MIRRORED: Final = "mirrored"
"""Flag of a request of legacy's that was drawn to be asked of the target, too, whatever has become of that."""

SAFE: Final = "safe"
"""Flag of a feedback, by a judge or a person, on an answer that was looked at and may be given."""
UNSAFE: Final = "unsafe"
"""Flag of a feedback, by a judge or a person, on an answer that must not be given."""

TEXT_LIMIT: Final = 500
"""Longest text of one field in characters: what a client sends must not fill the disk."""


@dataclass(frozen=True, kw_only=True)
class GatewayEvent:
    """What happened; `GATEWAY_EVENTS` says what each field means.

    Raises:
        InvalidInput: a number is NaN, infinite, negative or out of range, or the time has no zone.
    """

    event_id: str
    kind: Kind
    ts: datetime
    worker: str
    seq: int
    workload: str | None = None
    attempt: int | None = None
    generation: int | None = None
    stage: int | None = None
    share: float | None = None
    unit: str | None = None
    bucket: float | None = None
    intended: Arm | None = None
    served: Arm | None = None
    request_id: str | None = None
    status: Status | None = None
    error_class: str | None = None
    why: Why | None = None
    stream: bool | None = None
    ttft_ms: float | None = None
    latency_ms: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    cached: bool | None = None
    finish_reason: str | None = None
    contract_ok: bool | None = None
    prompt_version: str | None = None
    score: float | None = None
    outcome: str | None = None
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ts.tzinfo is None:
            message = f"ts is {self.ts.isoformat()}, which has no zone; UTC is needed"
            raise InvalidInput(message)
        for name, most in _NUMBERS.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 <= value <= most):
                message = f"{name} is {value!r}; a finite number from 0 to {most:g} is needed, or null"
                raise InvalidInput(message)

    def to_line(self) -> bytes:
        """Write the event as one line of JSON, its end included; nulls are left out."""
        written = {name: value for name in _NAMES if (value := getattr(self, name)) is not None}
        written["ts"] = self.ts.astimezone(UTC).isoformat()
        written["flags"] = list(self.flags)
        return json.dumps(written, separators=(",", ":"), allow_nan=False).encode() + b"\n"

    def to_row(self) -> dict[str, Any]:
        """Return the event as a row of `GATEWAY_EVENTS`."""
        return {name: getattr(self, name) for name in _NAMES} | {"flags": list(self.flags)}


_NAMES: Final = tuple(each.name for each in fields(GatewayEvent))

_NUMBERS: Final = {
    "share": 1.0,
    "bucket": 1.0,
    "score": 1.0,
    **dict.fromkeys(
        ("seq", "attempt", "generation", "stage", "ttft_ms", "latency_ms", "input_tokens", "output_tokens", "cost_usd"),
        math.inf,
    ),
}

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "kind": get_args(Kind),
    "intended": get_args(Arm),
    "served": get_args(Arm),
    "status": get_args(Status),
    "why": get_args(Why),
}

GATEWAY_EVENTS: Final = Table(
    "gateway_events",
    (
        Column("event_id", pl.String, "Unique; the same event read twice has the same."),
        Column("kind", pl.String, "request, shadow, feedback or breaker."),
        Column("ts", UTC_TIMESTAMP, "When it ended, by the clock of its worker."),
        Column("worker", pl.String, "Worker process that wrote it."),
        Column("seq", pl.Int64, "Rises by one with each event of a worker; a gap is an event that was dropped."),
        Column("workload", pl.String, "Workload; null for a feedback on an unknown request."),
        Column("attempt", pl.Int64, "Try of the rollout at the time of the assignment."),
        Column("generation", pl.Int64, "Generation of the route at the time of the assignment."),
        Column("stage", pl.Int64, "Stage at the time of the assignment."),
        Column("share", pl.Float64, "The target's share at the time of the assignment, in [0, 1]."),
        Column("unit", pl.String, "Keyed hash of the user or conversation, in hex; never the name."),
        Column("bucket", pl.Float64, "The unit's point in [0, 1); below the share it is the target's."),
        Column("intended", pl.String, "Arm by assignment; evidence counts by it."),
        Column("served", pl.String, "Arm that answered; null where none did."),
        Column("request_id", pl.String, "The gateway's id of the client's request."),
        Column("status", pl.String, "As the client saw it: ok, error or disconnected."),
        Column("error_class", pl.String, "What failed, of the intended arm also where the other answered."),
        Column("why", pl.String, "Why the intended arm did not answer: killed, breaker or fallback."),
        Column("stream", pl.Boolean, "Whether the answer was streamed."),
        Column("ttft_ms", pl.Float64, "Milliseconds to the first token, as the client waited; streams only."),
        Column("latency_ms", pl.Float64, "Milliseconds to the end of the answer, as the client waited."),
        Column("input_tokens", pl.Int64, "Tokens of the prompt, as the server that answered counted them."),
        Column("output_tokens", pl.Int64, "Tokens of the answer, as the server that answered counted them."),
        Column("cost_usd", pl.Float64, "Cost of the answer; null where no price is known."),
        Column("cached", pl.Boolean, "Whether the gateway's cache answered; such a row has no speed and no cost."),
        Column("finish_reason", pl.String, "Why the answer ended."),
        Column("contract_ok", pl.Boolean, "Whether a whole answer has the declared form; null where none is declared."),
        Column("prompt_version", pl.String, "Version of the prompt that was asked."),
        Column("score", pl.Float64, "Of a feedback, in [0, 1]; 1 is best."),
        Column("outcome", pl.String, "Of a feedback: what became of the answer. Of a breaker: its new state."),
        Column("flags", pl.List(pl.String), "Remarks, such as unknown_request or mirrored."),
    ),
)

_SCHEMA: Final = GATEWAY_EVENTS.schema
_ALWAYS: Final = frozenset({"event_id", "kind", "ts", "worker", "seq"})
_PYTHON: Final[dict[Any, tuple[type, ...]]] = {
    pl.String: (str,),
    pl.Boolean: (bool,),
    pl.Int64: (int,),
    pl.Float64: (int, float),
}


def parse_event(line: str | bytes) -> GatewayEvent:
    """Read one whole line of the event log.

    Raises:
        InvalidInput: it is no JSON object, lacks a field, has an unknown one, or a value is not of its kind.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = f"the line is not JSON ({error})"
        raise InvalidInput(message) from error
    if not isinstance(found, dict):
        message = f"the line is {type(found).__name__}; a JSON object is needed"
        raise InvalidInput(message)
    if missing := sorted(name for name in _ALWAYS if found.get(name) is None):
        message = f"the event lacks {', '.join(missing)}"
        raise InvalidInput(message)
    if unknown := sorted(set(found) - set(_NAMES)):
        message = f"the event has {', '.join(unknown)}, which is unknown"
        raise InvalidInput(message)
    values: dict[str, Any] = {name: _value(name, value) for name, value in found.items() if value is not None}
    return GatewayEvent(**values)


def _value(name: str, value: object) -> object:
    if name == "flags":
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
        _refuse(name, value, "a list of texts")
    if name == "ts":
        return _time(value)
    kinds = _PYTHON[_SCHEMA[name].base_type()]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        _refuse(name, value, " or ".join(kind.__name__ for kind in kinds))
    if name in _CHOICES and value not in _CHOICES[name]:
        _refuse(name, value, f"one of {', '.join(_CHOICES[name])}")
    return value


def _time(value: object) -> datetime:
    try:
        time = datetime.fromisoformat(str(value))
        return time.astimezone(UTC) if time.tzinfo else time  # one without a zone is refused as such
    except (ValueError, OverflowError) as error:
        message = f"ts is {value!r}; an ISO 8601 time with its zone is needed"
        raise InvalidInput(message) from error


def _refuse(name: str, found: object, needed: str) -> NoReturn:
    message = f"{name} is {found!r}; {needed} is needed"
    raise InvalidInput(message)
