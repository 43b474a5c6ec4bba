"""One client request from its first to its last byte, and the event that is written of it.

Three sides tell of it: the connection (what the client waited for and got), LiteLLM's hooks (which arm failed, which
one answered) and its log callback, which comes last and knows tokens. The event is made when all have told.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.gateway_event import MIRRORED, TEXT_LIMIT

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from anven_pipelines.domain.gateway_event import Status, Why
    from anven_pipelines.domain.traffic import Arm
    from anven_pipelines.gateway.assignment import Assignment

OK: Final = 200
CLIENT_CLOSED: Final = 499


class Trace(NamedTuple):
    """When a request was here, in nanoseconds since 1970, and what its caller says of the trace that it belongs to."""

    traceparent: str | None
    started_ns: int
    ended_ns: int


@dataclass
class Usage:
    """What the log callback tells of an answer."""

    served: Arm | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    cached: bool | None = None
    finish_reason: str | None = None
    contract_ok: bool | None = None


@dataclass
class Exchange:
    """What is known of one client request so far.

    Attributes:
        id: Number within the worker.
        started_s: Monotonic time at which the first byte of the request was here.
        started_ns: The same in nanoseconds since 1970.
        traceparent: The client's header of that name (W3C Trace Context).
        assignment: Set by the pre-call hook; None for requests that are not a workload's.
        request_id: LiteLLM's call id, which the client gets as `x-litellm-call-id`.
        stream: Whether a stream was asked for.
        http_status: Of the response.
        first_token_s: Monotonic time at which the first token went out; streams only.
        latency_ms: From the first byte in to the last byte out, or to the client's hanging up.
        status: As the client saw it; None while it waits.
        error_class: First failure of the arm that was asked first, else what the client got.
        is_rescued: Legacy answered after the target had failed.
        is_counted: The breaker knows whether it failed.
        is_slow: The breaker knows that it was slow.
        is_unfit: The target was not asked, as its prompt could not be made; legacy was.
        stream_failed: An error came where the stream should have gone on.
        usage: What the log callback told; None before it did.
        timer: Writes the event without what the log callback has not told by then.
        is_mirrored: This request was drawn to be asked of the target, too.
        shadow: What to ask the target, where this request is mirrored.
        unmirrored: Error class of a drawn request that the target cannot be asked.
        prompt_versions: Arm to the version of the prompt that it would be asked with.
        messages: As the application wrote them, where the workload's text is kept.
        answer: The whole message that answered, where the workload's text is kept.
    """

    id: str
    started_s: float
    started_ns: int = field(default_factory=time.time_ns)
    traceparent: str | None = None
    assignment: Assignment | None = None
    request_id: str | None = None
    stream: bool = False
    http_status: int | None = None
    first_token_s: float | None = None
    latency_ms: float | None = None
    status: Status | None = None
    error_class: str | None = None
    is_rescued: bool = False
    is_counted: bool = False
    is_slow: bool = False
    is_unfit: bool = False
    stream_failed: bool = False
    usage: Usage | None = None
    timer: TimerHandle | None = None
    is_mirrored: bool = False
    shadow: dict[str, Any] | None = None
    unmirrored: str | None = None
    messages: list[Any] | None = None
    answer: dict[str, Any] | None = None
    prompt_versions: dict[Arm, str] = field(default_factory=dict)

    @property
    def ttft_ms(self) -> float | None:
        """Milliseconds to the first token of a stream, as the client waited."""
        return None if self.first_token_s is None else (self.first_token_s - self.started_s) * 1e3

    @property
    def waited_ms(self) -> float | None:
        """What the breaker compares: time to the first token of a stream, else to the answer."""
        return self.ttft_ms if self.stream else self.latency_ms

    @property
    def trace(self) -> Trace:
        """Its time as the client waited, also where the event has none because the cache answered."""
        return Trace(self.traceparent, self.started_ns, self.started_ns + round((self.latency_ms or 0.0) * 1e6))

    def ended(self, now_s: float, *, is_complete: bool, is_disconnected: bool) -> None:
        """Take down how it ended for the client."""
        self.latency_ms = (now_s - self.started_s) * 1e3
        if is_disconnected or self.http_status == CLIENT_CLOSED:
            self.status = "disconnected"
        elif is_complete and self.http_status == OK and not self.stream_failed:
            self.status = "ok"
        else:
            self.status = "error"
            self.error_class = self.error_class or ("StreamBroken" if self.http_status == OK else "Unknown")

    def facts(self) -> dict[str, Any]:
        """Return the fields of the event that this exchange knows, worker and time left to the caller."""
        assignment = self.assignment
        if assignment is None or self.status is None:
            return {}
        usage = self.usage or Usage()
        served = self._served(usage)
        return {
            **assignment.facts(),
            "kind": "request",
            "served": served,
            "request_id": (self.request_id or "")[:TEXT_LIMIT] or None,
            "status": self.status,
            "error_class": self.error_class,
            "why": self._why(),
            "stream": self.stream,
            "ttft_ms": None if usage.cached else self.ttft_ms,
            "latency_ms": None if usage.cached else self.latency_ms,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost_usd": None if usage.cached else usage.cost_usd,
            "cached": usage.cached,
            "finish_reason": usage.finish_reason,
            # A part of an answer has no form: LiteLLM tells of it as of a whole one where the client hung up.
            "contract_ok": usage.contract_ok if self.status == "ok" else None,
            "prompt_version": self.prompt_versions.get(served or assignment.asked),
            "flags": (*assignment.flags, MIRRORED) if self.is_mirrored else assignment.flags,
        }

    def _served(self, usage: Usage) -> Arm | None:
        if self.assignment is None or self.status == "error":
            return None
        if self.is_rescued or (self.is_unfit and self.status == "ok"):
            return "legacy"
        if usage.served is not None:
            return usage.served
        return self.assignment.asked if self.status == "ok" else None

    def _why(self) -> Why | None:
        if self.assignment is None or self.assignment.why:
            return self.assignment.why if self.assignment else None
        return "fallback" if self.is_rescued or self.is_unfit else None
