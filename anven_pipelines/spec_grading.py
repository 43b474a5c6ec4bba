"""How answers are graded, as a migration file declares it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import (
    Field,
)

from anven_pipelines.spec_values import Duration, Pattern, Section


class Judge(Section):
    """The model that judges answers, reached through LiteLLM."""

    model: str = Field(min_length=1)
    """Name of the judge model."""
    url: str = Field(pattern=r"^https?://[^\s]+$")
    """Base URL of an OpenAI-compatible endpoint."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key."""
    concurrency: int = Field(default=4, ge=1, le=64)
    """Judgements in flight at once."""
    timeout: Duration = Field(default=timedelta(minutes=2), json_schema_extra={"default": "2m"})
    """Longest wait for one judgement."""


class OnlineJudge(Judge):
    """The model that scores answers of production while a rollout goes on, which gives the metric `quality`."""

    rubric: str = Field(min_length=1, max_length=4000)
    """What an answer has to meet, in plain words: how well it does is scored from 1 to 5, and told as 0 to 1."""
    judgements_per_day: int = Field(default=10_000, ge=1)
    """Most judgements that are begun in a day (UTC), failed ones included; what waits then has no score."""


class ExactGrader(Section):
    """1 when the answer equals the ground truth, character by character."""

    kind: Literal["exact"]


class TextGrader(Section):
    """1 when the answer equals the ground truth after Unicode, case, space and edge punctuation are normalised."""

    kind: Literal["text"]


class NumberGrader(Section):
    """1 when the last number in the answer equals the ground truth's number."""

    kind: Literal["number"]
    tolerance: float = Field(default=0.0, ge=0)
    """Largest absolute difference that still counts as equal."""


class JsonFieldGrader(Section):
    """1 when a field of the JSON object in the answer equals the ground truth."""

    kind: Literal["json_field"]
    field: str = Field(min_length=1)
    """Field name; dots step into nested objects."""
    compare: Literal["exact", "text", "number"] = "text"
    """How the field's value is compared."""
    tolerance: float = Field(default=0.0, ge=0)
    """Largest absolute difference for `compare: number`."""


class RegexGrader(Section):
    """1 when what the pattern captures in the answer equals the ground truth as text."""

    kind: Literal["regex"]
    pattern: Pattern
    """Python regular expression; its first group, or the whole match, is compared."""
    compare: Literal["exact", "text", "number"] = "text"
    """How the captured text is compared."""
    tolerance: float = Field(default=0.0, ge=0)
    """Largest absolute difference for `compare: number`."""


class RagasGrader(Section):
    """A Ragas metric in [0, 1], computed by a judge model (needs the extra `eval`)."""

    kind: Literal["ragas"]
    metric: Literal["faithfulness"] = "faithfulness"
    """Faithfulness: share of the answer's claims that the context supports."""
    judge: Judge


Grader = Annotated[
    ExactGrader | TextGrader | NumberGrader | JsonFieldGrader | RegexGrader | RagasGrader,
    Field(discriminator="kind"),
]
