"""The section `gateway` of a migration file: where the two arms are reached and what the gateway may do."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

import regex  # type: ignore[import-untyped]  # it ships no types
from pydantic import AfterValidator, Field

from anven_pipelines.spec_values import Duration, Pattern, Section


def _finds_something(pattern: str) -> str:
    if regex.compile(pattern).search("") is not None:
        message = f"the pattern {pattern!r} matches nothing at all, everywhere; one that takes a character is needed"
        raise ValueError(message)
    return pattern


OwnPattern = Annotated[Pattern, AfterValidator(_finds_something), Field(min_length=1, max_length=1000)]


class Upstream(Section):
    """Where the gateway reaches one arm."""

    model: str = Field(pattern=r"^[^/\s]+/\S+$")
    """Model as LiteLLM names it, `provider/model`, such as openai/gpt-4o or hosted_vllm/ANVEN-3b-instruct."""
    url: str | None = Field(default=None, pattern=r"^https?://[^\s]+$")
    """Base URL, such as http://127.0.0.1:8000/v1; the provider's own where absent."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key; the key itself never stands in a file."""
    timeout: Duration = Field(default=timedelta(minutes=2), json_schema_extra={"default": "2m"})
    """Longest wait for an answer; a target that takes longer is rescued by legacy."""
    rpm: int | None = Field(default=None, ge=1)
    """Requests in a minute, for each gateway; what comes above it is refused with 429, and at the target rescued by
    legacy and counted against the target."""
    tpm: int | None = Field(default=None, ge=1)
    """The same for tokens, of questions and answers; they are known when an answer has ended."""


class Shadow(Section):
    """What mirrored requests may spend, over restarts; the share that is mirrored stands in the route."""

    calls_per_day: int = Field(default=10_000, ge=0)
    """Mirrored requests in a day (UTC)."""
    usd_per_day: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Cost of mirrored requests in a day (UTC), at the target's price; needs `target.price`."""
    at_once: int = Field(default=16, ge=1)
    """Mirrored requests in flight of a gateway; one that finds as many is left out."""


class Breaker(Section):
    """When the gateway sends the workload back to legacy by itself, until the route gets a new generation."""

    error_burst: float = Field(default=0.3, gt=0, lt=1)
    """Share of the requests that a burst fails."""
    slow_factor: float = Field(default=3.0, ge=1, allow_inf_nan=False)
    """An answer is slow above this multiple of the legacy arm's 95th percentile ..."""
    slow_margin_ms: float = Field(default=1000.0, ge=0, allow_inf_nan=False)
    """... if it is above it by this many milliseconds, too."""
    slow_at_ms: float | None = Field(default=30_000.0, gt=0, allow_inf_nan=False)
    """Where too few answers of legacy were seen to say so, an answer is slow above this many milliseconds (of a stream
    the first token); null: none is, and a target that hangs is seen at its `timeout`."""


class Gateway(Section):
    """How the gateway serves the workload; applications ask it for the model `<workload>`."""

    legacy: Upstream
    target: Upstream | None = None
    """Needed unless the migration's target is an endpoint, which is asked where absent."""
    unit: Literal["user", "conversation"] = "user"
    """What stays on one arm: a user (header `x-anven-user`, else the request's `user`) or a conversation (header
    `x-anven-conversation`, else `metadata.conversation_id`, else the user)."""
    shadow: Shadow = Shadow()
    breaker: Breaker = Breaker()
    store_text: bool = False
    """Keep the text of requests and answers, redacted; refused unless the extra `pii` is installed."""
    redact: list[OwnPattern] = Field(default_factory=list, max_length=50)
    """Regular expressions of what is taken out of the text that is kept, beside addresses, numbers and keys: customer
    numbers, names of projects. The group `it` is taken out, else all that matches; <REDACTED> stands there instead."""
