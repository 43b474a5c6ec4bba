"""What the tracking server is told about one asset step, and its fit to what MLflow stores."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping  # noqa: TC003 - pydantic reads the record's annotations at run time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

from pydantic import TypeAdapter

from anven_pipelines.domain.canonical import canonical_json, digest_of

MAX_VALUE_CHARS: Final = 6000  # MLflow cuts longer parameters without a word
MAX_NAME_CHARS: Final = 250
_ILLEGAL: Final = re.compile(r"[^\w./:\- ]", re.ASCII)


RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
"""How a run stands, in MLflow's words; a step that is recorded has ended, an attempt of a rollout goes on."""


def step_key(*, run_id: str, asset: str, partition: str | None = None, attempt: int = 0) -> str:
    """Name one execution of one asset step: what is recorded twice under one key is one run.

    Args:
        run_id: Dagster's run.
        asset: The asset that the step materialises.
        partition: Its partition; None if it has none.
        attempt: Dagster's retry number within the run, 0 for the first try.
    """
    parts = [run_id, asset, *([partition] if partition else []), *([f"retry-{attempt}"] if attempt else [])]
    return "/".join(parts)


def step_tags(
    *,
    run_id: str,
    asset: str,
    workload: str | None = None,
    dataset_digest: str | None = None,
    deployment: str | None = None,
    code_version: str | None = None,
) -> dict[str, str]:
    """Return the tags that every run carries; what a step does not have is left out, never empty."""
    tags = {
        "dagster.run_id": run_id,
        "asset": asset,
        "workload": workload,
        "dataset_digest": dataset_digest,
        "deployment": deployment,
        "code_version": code_version,
    }
    return {name: value for name, value in tags.items() if value}


@dataclass(frozen=True, kw_only=True)
class RegisteredPrompt:
    """A prompt version for the prompt registry.

    Attributes:
        name: Of the prompt: workload and template.
        version: Digest of its content.
        messages: Role and content; slots stand in them as `{name}`.
        slots: Their names.
        note: What this version is, in a line.
        tags: What it was made from.
        aliases: That point at this version from now on.
        first_aliases: That point at it where they point at none yet, or at the version that one of `aliases` had: they
            follow it until somebody points them elsewhere.
        tools: Tools that its calls offer, in the chat completions form.
        contract: JSON Schema that answers must keep; None where the calls demand none.
        policies: Sentences that must stay word for word.
        params: Parameters of its requests; a value in words where it differs by call.
    """

    name: str
    version: str
    messages: list[dict[str, str]]
    slots: list[str]
    note: str
    tags: dict[str, str]
    aliases: list[str] = field(default_factory=list)
    first_aliases: list[str] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    contract: dict[str, Any] | None = None
    policies: list[str] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """Everything about one asset step that stands in its MLflow run.

    A metric that is None, NaN or infinite was not measured: it leaves `metrics` and stands in `tags` as
    `unmeasured.<metric>`, so that a missing number is said and never read as zero.
    """

    key: str
    """What makes the step unique, from `step_key`."""
    experiment: str
    """MLflow experiment: `anven/<workload>`."""
    name: str
    started: datetime
    ended: datetime
    status: RunStatus
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    """Artifact path to text."""
    prompts: list[RegisteredPrompt] = field(default_factory=list)
    """Prompt versions that the step made or found."""

    def __post_init__(self) -> None:
        """Refuse what cannot identify a step, and bring values to what JSON can hold."""
        if not self.key or "'" in self.key:
            message = f"the key of a step record is {self.key!r}; text without ' is needed, see step_key"
            raise ValueError(message)
        for moment in (self.started, self.ended):
            if moment.tzinfo is None:
                message = f"{moment.isoformat()} in the record of {self.name} has no time zone; UTC is needed"
                raise ValueError(message)
        for path in self.documents:
            if legal_name(path) != path:
                message = f"document {path!r} of {self.name}; a relative path such as reports/card.html is needed"
                raise ValueError(message)
        unmeasured = {f"unmeasured.{name}": why for name, value in self.metrics.items() if (why := _reason(value))}
        measured = {
            name: float(value)
            for name, value in self.metrics.items()
            if value is not None and f"unmeasured.{name}" not in unmeasured
        }
        normal = {
            "started": self.started.astimezone(UTC),
            "ended": self.ended.astimezone(UTC),
            "tags": {name: _text(value) for name, value in self.tags.items()} | unmeasured,
            "params": {name: _plain(value) for name, value in self.params.items()},
            "metrics": measured,
            "documents": {path: _text(text) for path, text in self.documents.items()},
        }
        for name, value in normal.items():
            object.__setattr__(self, name, value)

    @property
    def digest(self) -> str:
        """SHA-256 over everything in the record."""
        return digest_of(self._as_json())

    def to_json(self) -> str:
        """Write the record as canonical JSON; `from_json` reads it back equal."""
        return canonical_json(self._as_json())

    @classmethod
    def from_json(cls, text: str | bytes) -> StepRecord:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is not JSON, or not a step record.
        """
        return TypeAdapter(cls).validate_json(text)

    def _as_json(self) -> dict[str, object]:
        return asdict(self) | {"started": self.started.isoformat(), "ended": self.ended.isoformat()}


class Fitted(NamedTuple):
    """A record in names and values that MLflow stores unchanged."""

    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    documents: dict[str, str]


def fit(step: StepRecord) -> Fitted:
    """Make a record fit MLflow's limits without losing anything.

    A name with characters that MLflow refuses is replaced, and the document `tracking/renamed.json` says by what.
    A value beyond MAX_VALUE_CHARS is cut with a mark, and stands whole in the document that the mark names.
    """
    texts = {name: value if isinstance(value, str) else canonical_json(value) for name, value in step.params.items()}
    tag_names, param_names, metric_names = (legal_names(group) for group in (step.tags, texts, step.metrics))
    tags, tag_documents = _cut({tag_names[name]: value for name, value in step.tags.items()}, kind="tags")
    params, param_documents = _cut({param_names[name]: value for name, value in texts.items()}, kind="params")
    renamed = {
        kind: changed
        for kind, names in (("tags", tag_names), ("params", param_names), ("metrics", metric_names))
        if (changed := {legal: name for name, legal in names.items() if legal != name})
    }
    notes = {"tracking/renamed.json": canonical_json(renamed)} if renamed else {}
    return Fitted(
        tags=tags,
        params=params,
        metrics={metric_names[name]: value for name, value in step.metrics.items() if value is not None},
        documents=notes | tag_documents | param_documents | dict(step.documents),
    )


def legal_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name to one that MLflow accepts: itself where possible, and never one name for two."""
    legal = {name: legal_name(name) for name in names}
    taken = {name for name, replacement in legal.items() if name == replacement}
    for name in sorted(legal.keys() - taken):
        if legal[name] in taken:
            legal[name] = f"{legal[name][: MAX_NAME_CHARS - 17]}_{digest_of(name)[:16]}"
        taken.add(legal[name])
    return legal


def legal_name(name: str) -> str:
    """Replace what MLflow refuses in a name: odd characters, and what is no normal relative path."""
    clean = _ILLEGAL.sub("_", name)[:MAX_NAME_CHARS]
    legal = "/".join("_" if part in {"", ".", ".."} else part for part in clean.split("/"))
    if len(legal) > MAX_NAME_CHARS:
        legal = clean.replace("/", "_")
    return f"__{legal[2:]}" if legal.startswith("..") else legal


def _reason(value: float | None) -> str | None:
    """Say why a metric is no measurement; None if it is one."""
    if value is None:
        return "not measured"
    if math.isnan(value):
        return "not a number"
    return None if math.isfinite(value) else "infinite"


def _plain(value: object) -> str | int | float | bool:
    """Keep what JSON can hold; NumPy scalars, NaN and the like become their text."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    return value if isinstance(value, int) else _text(value)


def _text(value: object) -> str:
    """Replace NUL, which Postgres refuses, and lone surrogates, which UTF-8 refuses; model output holds both."""
    return str(value).replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _cut(values: dict[str, str], *, kind: str) -> tuple[dict[str, str], dict[str, str]]:
    """Cut long values, and return the whole ones as documents."""
    short, documents = {}, {}
    for name, value in values.items():
        short[name] = value
        if len(value) > MAX_VALUE_CHARS:
            path = f"tracking/{kind}/{name}.txt"
            documents[path] = value
            mark = f"... [cut: {len(value)} characters, whole in {path}]"
            short[name] = value[: MAX_VALUE_CHARS - len(mark)] + mark
    return short, documents
