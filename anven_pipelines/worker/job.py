"""What a worker is told to do: a manifest of request shards, an engine, and where the answers go."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Final, Literal

import polars as pl
from pydantic import Field

from anven_pipelines.domain.inference import CompletionRequest
from anven_pipelines.domain.table import Column, Table
from anven_pipelines.spec_target import EndpointTarget, JobTarget
from anven_pipelines.spec_values import Section

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUESTS: Final = Table(
    "requests",
    (
        Column("item_id", pl.String, "Golden item that is asked; each stands once in a job."),
        Column("messages", pl.String, "JSON list of messages of the chat completions API."),
        Column("params", pl.String, "JSON object of its other parameters."),
    ),
)


class EmbeddedSettings(Section):
    """The embedded engine on a model folder with a CTranslate2 conversion."""

    engine: Literal["embedded"] = "embedded"
    name: str
    """Name under which the model answers."""
    folder: str | None = None
    """Local path of the model; absent for one that comes with the package, wherever that is installed."""
    weights: str | None = None
    """SHA-256 of the weights, in hex, that must be loaded; not checked where absent."""
    precision: Literal["float32", "int8"] = "float32"
    threads: int = Field(default=1, ge=1)


class VllmSettings(Section):
    """vLLM on the model that a migration file declares."""

    engine: Literal["vllm"] = "vllm"
    target: JobTarget

    @property
    def name(self) -> str:
        """Name under which the model answers."""
        return self.target.model

    @property
    def weights(self) -> str | None:
        """SHA-256 of the weights, in hex, that must be loaded."""
        return self.target.digest


class EndpointSettings(Section):
    """An OpenAI-compatible server."""

    engine: Literal["endpoint"] = "endpoint"
    target: EndpointTarget


EngineSettings = Annotated[EmbeddedSettings | VllmSettings | EndpointSettings, Field(discriminator="engine")]


class Shard(Section):
    """A Parquet file of REQUESTS rows."""

    uri: str
    sha256: str
    rows: int


class Job(Section):
    """One batch of requests for one engine.

    Two jobs with the same key ask the same of the same model, so the answers of one serve the other.
    """

    key: str
    """Work key under which the answers are kept."""
    shards: list[Shard]
    settings: EngineSettings
    concurrency: int = Field(default=256, ge=1)
    """Requests in flight at once in a worker; enough to fill the engine's batch."""


def packed(requests: Sequence[CompletionRequest]) -> list[CompletionRequest]:
    """Order requests so that equal beginnings of prompts stand together: an engine computes and keeps them once."""
    return sorted(requests, key=lambda request: (json.dumps(request.messages, ensure_ascii=False), request.item_id))


def to_frame(requests: Sequence[CompletionRequest]) -> pl.DataFrame:
    """Write requests as REQUESTS rows."""
    rows = [
        (each.item_id, json.dumps(each.messages, ensure_ascii=False), json.dumps(each.params, ensure_ascii=False))
        for each in requests
    ]
    return pl.DataFrame(rows, schema=REQUESTS.schema, orient="row")


def from_frame(rows: pl.DataFrame) -> list[CompletionRequest]:
    """Read REQUESTS rows.

    Raises:
        ValueError: a column holds no JSON; the file's digest was checked, so whoever wrote it was wrong.
    """
    columns = rows.select("item_id", "messages", "params").iter_rows()
    return [
        CompletionRequest(item_id, json.loads(messages), json.loads(params)) for item_id, messages, params in columns
    ]
