"""The load benchmark of a migration: rates, arrivals, and what a request has to keep."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Annotated, Final, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from anven_pipelines.spec_values import Duration, Section, Share

MOST_LOAD_REQUESTS: Final = 200_000
"""Of the load benchmark at one rate."""
LONGEST_HELD: Final = timedelta(hours=1)
"""Of a rate, and of a request under load."""


def _rates(value: object) -> object:
    """Take `auto` or a list of rising rates."""
    if value == "auto":
        return value
    if isinstance(value, list) and value and all(_is_rate(each) for each in value) and value == sorted(set(value)):
        return value
    message = "needed is 'auto', or a list of rising numbers above 0, in requests per second, such as [1, 2, 4]"
    raise ValueError(message)


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


Rates = Annotated[
    Literal["auto"] | list[float],
    BeforeValidator(_rates),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "auto"},
                {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}, "minItems": 1},
            ]
        }
    ),
]


class ServiceLevel(Section):
    """What a request under load has to keep; its times count from the moment at which it was due to be sent."""

    ttft_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Longest time to the first token."""
    inter_token_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Longest mean time per token after the first one."""
    latency_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Longest time to the end of the answer."""
    share: Share = 0.95
    """Share of the requests that have to keep all of it; errors and requests that were not sent keep nothing."""

    @model_validator(mode="after")
    def _limits_something(self) -> ServiceLevel:
        if self.ttft_ms is None and self.inter_token_ms is None and self.latency_ms is None:
            message = "at least one of ttft_ms, inter_token_ms and latency_ms is needed"
            raise ValueError(message)
        return self


class LoadedLegacy(Section):
    """The legacy model, where it may be put under the same load; each request is paid for."""

    url: str = Field(pattern=r"^https?://[^\s]+$")
    """Base URL of an OpenAI-compatible endpoint."""
    model: str | None = None
    """Model name at that URL; `legacy.model` where absent."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key."""


class Load(Section):
    """The load benchmark: nothing is sent unless this section stands in the file."""

    slo: ServiceLevel
    url: str | None = Field(default=None, pattern=r"^https?://[^\s]+$")
    """Where the target is served; the target's own endpoint where absent."""
    model: str | None = None
    """Model name at that URL; the target's where absent."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key; the target's goes to no other `url`."""
    legacy: LoadedLegacy | None = None
    rates: Rates = [1.0, 2.0, 4.0, 8.0]  # noqa: RUF012 - pydantic copies it
    """Requests per second, one rate after the other up to the first that is proven too much.

    `auto` doubles from 1 up to `max_rate`.
    """
    max_rate: float = Field(default=64.0, ge=1, le=10_000)
    """Highest rate that `rates: auto` may reach."""
    duration: Duration = Field(default=timedelta(minutes=1), validate_default=True, json_schema_extra={"default": "1m"})
    """How long each rate is held."""
    arrivals: Literal["poisson", "trace"] = "poisson"
    """`poisson`: independent arrivals; `trace`: those of the log, compressed or stretched to the rate."""
    timeout: Duration = Field(default=timedelta(minutes=1), json_schema_extra={"default": "1m"})
    """Longest wait for an answer; it is not asked for again."""
    max_in_flight: int = Field(default=256, ge=1, le=480)
    """Safety cap: a request that is due while so many are unanswered is not sent, and counts as a miss."""
    warm_up: int = Field(default=5, ge=1, le=100)
    """Requests that are asked one after the other before the first rate and count for nothing."""
    seed: int = Field(default=2026, ge=0)
    """Seed of the arrivals and of the order of the prompts."""
    replicas: int = Field(default=1, ge=1)
    """Servers behind the URL; capacity is told for one of them."""
    replica_usd_per_hour: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """What one of them costs; without it capacity has no price, and the cost model takes none from the benchmark."""

    @field_validator("duration", "timeout")
    @classmethod
    def _is_short(cls, value: timedelta) -> timedelta:
        if not timedelta(0) < value <= LONGEST_HELD:
            message = "a duration above 0 and up to 1h is needed"
            raise ValueError(message)
        return value

    @field_validator("duration")
    @classmethod
    def _asks_so_often(cls, value: timedelta, info: ValidationInfo) -> timedelta:
        """Not a check of the whole section, which pydantic makes only where nothing else is wrong."""
        rates = info.data.get("rates")
        most = info.data.get("max_rate", 0.0) if rates == "auto" else max(rates or [0.0])
        if (requests := most * value.total_seconds()) > MOST_LOAD_REQUESTS:
            message = (
                f"{most:g} requests per second for that duration are {requests:,.0f}; a rate and a duration that give "
                f"up to {MOST_LOAD_REQUESTS:,} are needed"
            )
            raise ValueError(message)
        return value
