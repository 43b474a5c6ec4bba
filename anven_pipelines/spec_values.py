"""The kinds of value that stand in a migration file, and how each is read and refused."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Final, Literal

import regex  # type: ignore[import-untyped]  # it ships no types
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

_DURATION: Final = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")


_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(value: object) -> object:
    """Read `30s`, `24h` or `2d`; anything else is left for pydantic to refuse."""
    if isinstance(value, str):
        if not (match := _DURATION.match(value)):
            message = "a duration such as 500ms, 30s, 15m, 24h or 2d is needed"
            raise ValueError(message)
        return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    if isinstance(value, timedelta):
        return value
    message = "a duration with its unit is needed, such as 500ms, 30s, 15m, 24h or 2d"
    raise ValueError(message)


def _written(value: timedelta) -> str:
    """Write a duration as a migration file does, in the largest unit that needs no fraction."""
    thousandths = round(value / timedelta(milliseconds=1))
    unit = next(unit for unit in reversed(_SECONDS) if thousandths % round(1000 * _SECONDS[unit]) == 0)
    return f"{thousandths // round(1000 * _SECONDS[unit])}{unit}"


def _above_zero(value: timedelta) -> timedelta:
    """Refuse a duration of nothing."""
    if value <= timedelta(0):
        message = "a duration above 0 is needed, such as 30m"
        raise ValueError(message)
    return value


def _share(value: float) -> float:
    """Refuse percentages written as whole numbers, and say what was probably meant."""
    if not 0 < value < 1:
        hint = f" ({value:g} % is {value / 100:g})" if 1 <= value < 100 else ""  # noqa: PLR2004 - percent
        message = f"a share between 0 and 1 is needed{hint}"
        raise ValueError(message)
    return value


def _level(value: float) -> float:
    """Refuse an error rate of a coin toss and more, and what can be none."""
    if not 0 < value < 0.5:  # noqa: PLR2004 - a coin toss
        message = "an error rate above 0 and below 0.5 is needed, such as 0.05"
        raise ValueError(message)
    return value


def _regex(value: str) -> str:
    """Refuse a pattern that does not compile."""
    try:
        regex.compile(value)
    except regex.error as error:
        message = f"a regular expression is needed ({error})"
        raise ValueError(message) from error
    return value


def _sources(value: object) -> object:
    """Let one string stand for a list of one."""
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, list) and listed and all(isinstance(each, str) and each.strip() for each in listed):
        return listed
    message = "a path or URL, or a list of them, is needed"
    raise ValueError(message)


LogFormat = Literal["canonical", "litellm", "openai", "openai-batch", "zeroeval"]


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(_written, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(ms|s|m|h|d)\s*$", "examples": ["30s", "24h"]}),
]


PositiveDuration = Annotated[Duration, AfterValidator(_above_zero)]


Share = Annotated[
    float, AfterValidator(_share), Field(json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1})
]


Pattern = Annotated[str, AfterValidator(_regex)]


Sources = Annotated[
    list[str],
    BeforeValidator(_sources),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            ]
        }
    ),
]


Level = Annotated[float, AfterValidator(_level), Field(json_schema_extra={"exclusiveMaximum": 0.5})]


class Section(BaseModel):
    """A part of the migration file: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Price(Section):
    """What tokens cost, with the date and the source of the price."""

    input_usd_per_million: float = Field(ge=0)
    """USD for a million input tokens."""
    output_usd_per_million: float = Field(ge=0)
    """USD for a million output tokens."""
    cached_usd_per_million: float | None = Field(default=None, ge=0)
    """USD for a million input tokens that came from the provider's cache; the input price where absent."""
    source: str
    """Where the price was read, and when: `invoice 2026-10`, `price page, 2026-11-01`."""
