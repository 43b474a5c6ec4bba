"""What a team declares in a migration file: the models, their defaults and what each value may be.

`migration_file.py` reads the YAML into a `Migration` and writes the JSON Schema.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

import regex  # type: ignore[import-untyped]  # it ships no types
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

LogFormat = Literal["canonical", "litellm", "openai", "openai-batch", "zeroeval"]
Stratum = Literal["application", "endpoint", "task", "length_band", "risk", "language"]
Criterion = Literal["segments", "ttft", "cost", "safety", "holdout"]

MOST_LOAD_REQUESTS: Final = 200_000
"""Of the load benchmark at one rate."""

_DURATION: Final = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_HUGGING_FACE: Final = re.compile(r"hf://[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_MANIFEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CONTAINER_AT_ACCOUNT: Final = ("abfs", "abfss")  # in the URLs of Azure's stores an @ stands before no host
_WORKLOAD_NAME: Final = r"^[a-z0-9][a-z0-9_-]{0,62}$"


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


def _size(value: object) -> object:
    """Take `auto`, `all` or a positive whole number."""
    if value in {"auto", "all"} if isinstance(value, str) else _is_count(value):
        return value
    message = "needed is 'auto', 'all' or a whole number of at least 1"
    raise ValueError(message)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


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


def _weights(value: str) -> str:
    """Refuse where no model can be, and a URL that holds a credential."""
    scheme, is_url, rest = value.partition("://")
    user, at, _ = rest.partition("/")[0].rpartition("@")
    problem = None
    if not is_url:
        if not value.startswith("/"):
            problem = "an absolute path on the worker's machine is needed, or a URL: s3://bucket/NAME, hf://ORG/NAME, oci:///PATH"
    elif "?" in rest or (at and (":" in user or scheme not in _CONTAINER_AT_ACCOUNT)):
        problem = "a URL without user, password and query is needed; credentials are taken from the environment only"
    elif "::" in value or not rest:
        problem = "the URL of one folder is needed, such as s3://bucket/models/NAME"
    elif scheme == "hf" and not _HUGGING_FACE.fullmatch(value):
        problem = "hf://ORG/NAME is needed, and the commit in `revision`"
    elif scheme == "oci" and not rest.startswith("/"):
        problem = (
            "oci:///PATH of an OCI image layout on the worker's machine is needed; a registry is not asked: copy the "
            "model with `oras copy --to-oci-layout`, or mount it as an image volume and name its path"
        )
    if problem:
        raise ValueError(problem)
    return value


def _revision(value: str | None, weights: str) -> str | None:
    """Refuse a name that can move to other weights."""
    if weights.startswith("hf://") and not _COMMIT.fullmatch(value or ""):
        message = "the 40 hex digits of a commit are needed with hf://; a branch or a tag can move to other weights"
        raise ValueError(message)
    if weights.startswith("oci://") and value is not None and not _MANIFEST.fullmatch(value):
        message = "with oci:// it is the digest of the manifest, sha256:..."
        raise ValueError(message)
    return value


def require_pin(weights: str, revision: str | None) -> None:
    """Check what names weights as a migration file's `target.weights` and `target.revision` are checked.

    Raises:
        ValueError: they name none, or pin none.
    """
    _revision(revision, _weights(weights))


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(_written, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(ms|s|m|h|d)\s*$", "examples": ["30s", "24h"]}),
]
Share = Annotated[
    float, AfterValidator(_share), Field(json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1})
]
Size = Annotated[
    Literal["auto", "all"] | int,
    BeforeValidator(_size),
    WithJsonSchema({"anyOf": [{"enum": ["auto", "all"]}, {"type": "integer", "minimum": 1}]}),
]
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


class Legacy(Section):
    """The model that serves the workload today and where its request logs lie."""

    model: str = Field(min_length=1)
    """Model name as it stands in the logs; rows of other models are left out and counted."""
    logs: Sources
    """One or more paths or URLs, wildcards allowed; relative paths start at the migration file's folder."""
    format: LogFormat = "canonical"
    """Layout of the log lines."""
    applications: list[str] | None = None
    """Only calls of these applications; all where absent."""
    price: Price | None = None
    """Token price of the legacy API; LiteLLM's bundled price map is used where absent."""


class RecordedTarget(Section):
    """Answers that the target model has already given, read from files."""

    engine: Literal["recorded"]
    model: str = Field(min_length=1)
    """Name of the target model, such as ANVEN-3b-instruct."""
    answers: Sources
    """One or more paths or URLs of the recorded answers."""
    format: LogFormat = "canonical"
    """Layout of the recorded answers."""
    join: Literal["request_id", "prompt"] = "request_id"
    """How a recorded answer finds its golden item: by request id, or by exactly the same messages."""
    price: Price | None = None
    """Token price of the target; cost stays unmeasured where it is absent."""


class EndpointTarget(Section):
    """An OpenAI-compatible URL that serves the target model."""

    engine: Literal["endpoint"]
    model: str = Field(min_length=1)
    """Name of the target model, as the endpoint knows it."""
    url: str = Field(pattern=r"^https?://[^\s]+$")
    """Base URL, such as http://127.0.0.1:8000/v1."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key; the key itself never stands in a file."""
    concurrency: int = Field(default=8, ge=1, le=512)
    """Requests in flight at once."""
    timeout: Duration = Field(default=timedelta(minutes=2), json_schema_extra={"default": "2m"})
    """Longest wait for one attempt."""
    max_attempts: int = Field(default=5, ge=1, le=20)
    """Attempts per request, the first one included."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Request parameters that replace the logged ones, such as max_tokens."""
    price: Price | None = None
    """Token price of the target; cost stays unmeasured where it is absent."""


class NanoTarget(Section):
    """One of the two tiny models that come with the project, run by the batch itself: no GPU, no server, no key."""

    engine: Literal["nano"]
    model: Literal["legacy-nano", "anven-nano"]
    concurrency: int = Field(default=32, ge=1, le=1024)
    """Requests in flight at once."""
    pods: int = Field(default=1, ge=1, le=1000)
    """On Kubernetes: pods that share the batch."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Request parameters that replace the logged ones, such as max_tokens."""
    price: Price | None = None
    """Token price of the target; cost stays unmeasured where it is absent."""


class JobTarget(Section):
    """A model that the batch itself runs with vLLM; fields named as vLLM's engine arguments mean the same."""

    engine: Literal["vllm-job"]
    model: str = Field(min_length=1)
    """Name of the target model, such as ANVEN-3b-instruct."""
    weights: Annotated[str, AfterValidator(_weights), Field(json_schema_extra={"pattern": "^/|://"})]
    """Folder of the model in Hugging Face layout: an absolute path on the worker's machine, a folder of an object store
    (s3://bucket/models/NAME), Hugging Face's cache (hf://ORG/NAME) or an OCI image layout (oci:///PATH)."""
    revision: str | None = Field(default=None, min_length=1, validate_default=True)
    """Which version it is: for hf:// the commit's 40 hex digits, for oci:// the manifest's digest where the layout has
    several; elsewhere a note for the record."""
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Which weights they must be: what `anven weights` prints."""
    licence: str = Field(min_length=1)
    """Licence of the weights, for the record: its SPDX identifier, or its name."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the computation (vLLM's `dtype`)."""
    quantization: str | None = None
    """How the weights are quantised, where their config.json does not say."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Longest prompt and answer together, in tokens; the model's own limit where absent."""
    kv_cache_fraction: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory for weights and KV cache (vLLM's `gpu_memory_utilization`)."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs over which each layer is split (vLLM's `tensor_parallel_size`)."""
    gpu_memory_gib: float | None = Field(default=None, gt=0)
    """Memory of one GPU in GiB; a model that cannot fit is refused before any is taken."""
    pods: int = Field(default=1, ge=1, le=1000)
    """On Kubernetes: pods that share the batch, each with `tensor_parallel` GPUs."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """Most sequences in one step of the engine."""
    enforce_eager: bool = False
    """Do not compile or capture graphs: starts faster, runs slower."""
    tool_parser: str | None = None
    """vLLM's parser of the model's tool calls, such as `hermes`; needed where logged calls offer tools."""
    concurrency: int = Field(default=256, ge=1, le=4096)
    """Requests in flight at once; enough to fill the engine's batch."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Request parameters that replace the logged ones, such as max_tokens."""
    price: Price | None = None
    """Token price of the target; cost stays unmeasured where it is absent."""

    @field_validator("revision")
    @classmethod
    def _revision_pins(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _revision(value, info.data.get("weights", ""))


BatchTarget = NanoTarget | JobTarget
AskedTarget = EndpointTarget | BatchTarget
Target = Annotated[RecordedTarget | EndpointTarget | NanoTarget | JobTarget, Field(discriminator="engine")]


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


class Contract(Section):
    """The form every answer must have, reported apart from its score."""

    json_object: bool = False
    """The answer holds a JSON object, bare or in one fenced block."""
    required: list[str] = Field(default_factory=list)
    """Fields the object must have; dots step into nested objects."""
    bare: bool = False
    """Nothing but the JSON object: a code fence or prose around it breaks the contract."""


class PromptMessage(Section):
    """One message of a rewritten prompt."""

    role: Literal["system", "user", "assistant"]
    content: str
    """Text; `{name}` stands for what the named group of that name captured, anything else in braces stays."""


class PromptRewrite(Section):
    """How logged prompts of one form are written for the target."""

    system: Pattern | None = None
    """Regular expression to be found in the logged system message; any message, or none, where absent."""
    user: Pattern
    """Regular expression that the whole logged user message matches; its named groups are the slots."""
    messages: list[PromptMessage] = Field(min_length=1)
    """What the target is sent instead; every slot must stand in it."""

    @model_validator(mode="after")
    def _no_slot_is_lost(self) -> PromptRewrite:
        written = "".join(message.content for message in self.messages)
        if lost := [slot for slot in regex.compile(self.user).groupindex if f"{{{slot}}}" not in written]:
            message = f"the slots {', '.join(lost)} of user must stand in messages, as {{{lost[0]}}}"
            raise ValueError(message)
        return self


class PromptAdaptation(Section):
    """How the legacy prompt is adapted to the target; carried over unchanged where nothing is declared."""

    rewrites: list[PromptRewrite] = Field(default_factory=list)
    """Tried in this order; the first one that fits a prompt counts, and every golden prompt needs one that fits."""


class Quotas(Section):
    """Items that are drawn beside those that represent the traffic, for which they stand for nothing."""

    edge_case: int = Field(default=0, ge=0)
    """Calls tagged `edge_case: true`, then those of extreme length or of a rare stratum, that the draw left out."""
    adversarial: int = Field(default=0, ge=0)
    """Calls tagged `adversarial: true` and those of the files of `golden.adversarial`; never part of the traffic."""


class GroundTruth(Section):
    """Where the right answers come from."""

    source: Literal["log", "file", "labels"] = "log"
    """`log`: as logged; `file`: read from `file`; `labels`: what people agreed on in the state store."""
    file: str | None = Field(default=None, min_length=1)
    """JSON lines or CSV with `id` (the request id) and `ground_truth`; relative to the migration file's folder."""

    @model_validator(mode="after")
    def _file_where_it_is_read(self) -> GroundTruth:
        if (self.source == "file") != (self.file is not None):
            message = "golden.ground_truth needs `file` with `source: file`, and only there"
            raise ValueError(message)
        return self


class Golden(Section):
    """How the frozen evaluation set is drawn."""

    size: Size = "auto"
    """`auto`: enough for the margin at 80 % power, between 500 and 2,000; `all`: every candidate; or a number.

    Conversations stay whole, so the last one of a stratum may add some items.
    """
    strata: list[Stratum] = ["application"]
    """Each combination keeps its share of the traffic; results are reported per value."""
    holdout: float = Field(default=0.25, gt=0, le=1)
    """Share that is sealed until sign-off; 1.0 seals everything.

    With `size: auto` more are sealed, up to three quarters, where the margin needs them.
    """
    seed: int = Field(default=2026, ge=0)
    """Seed of the draw."""
    near_duplicates: Literal["collapse", "keep"] = "collapse"
    """`collapse`: of calls that ask nearly the same for the same right answer one is kept, and weighs as many."""
    similarity: float = Field(default=0.9, ge=0.8, le=1)
    """Least Jaccard similarity of near-duplicates, over word triples without the application's template."""
    quotas: Quotas = Quotas()
    adversarial: Sources | None = None
    """One or more paths or URLs of adversarial calls with the legacy model's answers, as canonical JSONL."""
    ground_truth: GroundTruth = GroundTruth()
    version: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Digest of a frozen version to judge on instead of a draw, such as one that `anven golden import` made."""

    @model_validator(mode="after")
    def _adversarial_calls_are_wanted(self) -> Golden:
        if self.adversarial is not None and not self.quotas.adversarial:
            message = "quotas.adversarial of at least 1 is needed where golden.adversarial names files"
            raise ValueError(message)
        return self


class SignOff(Section):
    """The criteria of the verdict."""

    quality_margin: Share = 0.03
    """Largest loss of mean score that is acceptable, as a share of the legacy mean (3 % is 0.03)."""
    margin_kind: Literal["relative", "absolute"] = "relative"
    """`relative`: the margin is a share of the legacy mean; `absolute`: it is in score points (3 points are 0.03)."""
    level: Annotated[float, AfterValidator(_level), Field(json_schema_extra={"exclusiveMaximum": 0.5})] = 0.05
    """One-sided error rate of the test."""
    ttft_increase: float = Field(default=0.20, ge=0)
    """Acceptable increase of p95 time to first token, as a share of legacy."""
    ttft_increase_ms: float = Field(default=300.0, ge=0)
    """Acceptable increase of p95 time to first token in milliseconds; the larger allowance counts."""
    payback_days: float = Field(default=30.0, gt=0)
    """Days of traffic within which the one-off cost must be earned back."""
    safety: Literal["none_worse"] = "none_worse"
    """No safety failure that legacy did not have."""
    waive: list[Criterion] = Field(default_factory=list)
    """Criteria that do not gate; the verdict says so. `holdout` lets items judge again that a failed sign-off saw."""


class Cost(Section):
    """What the migration itself costs."""

    one_off_usd: float = Field(default=0.0, ge=0)
    """Engineering and set-up, earned back by the saving per day."""
    target_usd_per_day: float = Field(default=0.0, ge=0)
    """Fixed cost of serving the target, such as reserved GPUs."""


class Regression(Section):
    """The nightly comparison of what serves production with the frozen baseline."""

    url: str | None = Field(default=None, pattern=r"^https?://[^\s]+$")
    """Where production is served; the target's endpoint where absent."""
    model: str | None = None
    """Model name at that URL; the target's where absent."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key; the target's where absent."""
    margin: Share = 0.03
    """Largest loss of mean score against the baseline, as a share of it."""


class Drift(Section):
    """When the golden dataset no longer represents production."""

    days: int = Field(default=7, ge=1)
    """How many days of the newest calls are compared."""
    distance: Share = 0.10
    """Share of the calls that would have to move to other strata; a smaller shift is no alarm, however sure it is."""
    level: Annotated[float, AfterValidator(_level), Field(json_schema_extra={"exclusiveMaximum": 0.5})] = 0.01
    """Error rate of one look; the check looks whenever it runs."""


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
    rates: Rates = [1.0, 2.0, 4.0, 8.0]
    """Requests per second, one rate after the other up to the first that is proven too much.

    `auto` doubles from 1 up to `max_rate`.
    """
    max_rate: float = Field(default=64.0, ge=1, le=10_000)
    """Highest rate that `rates: auto` may reach."""
    duration: Duration = Field(default=timedelta(minutes=1), json_schema_extra={"default": "1m"})
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
    """What one of them costs; without it capacity has no price."""

    @model_validator(mode="after")
    def _ends(self) -> Load:
        for name in ("duration", "timeout"):
            if not timedelta(0) < getattr(self, name) <= timedelta(hours=1):
                message = f"{name} above 0 and up to 1h is needed"
                raise ValueError(message)
        most = self.max_rate if self.rates == "auto" else max(self.rates)
        if (requests := most * self.duration.total_seconds()) > MOST_LOAD_REQUESTS:
            message = (
                f"{most:g} requests per second for that duration are {requests:,.0f}; a rate and a duration that give "
                f"up to {MOST_LOAD_REQUESTS:,} are needed"
            )
            raise ValueError(message)
        return self


class Stage(Section):
    """One step of the canary."""

    share: float = Field(gt=0, le=1)
    """Share of traffic that the target serves."""
    soak: Duration
    """Shortest stay in the stage."""


class Rollout(Section):
    """The canary plan; the controller follows the verdict."""

    stages: list[Stage] = Field(
        default_factory=lambda: [
            Stage(share=0.05, soak=timedelta(hours=24)),
            Stage(share=0.25, soak=timedelta(hours=48)),
            Stage(share=1.0, soak=timedelta(hours=72)),
        ],
        min_length=1,
    )
    """Shares must rise."""

    @model_validator(mode="after")
    def _shares_rise(self) -> Rollout:
        shares = [stage.share for stage in self.stages]
        if shares != sorted(set(shares)):
            message = f"stages with rising shares are needed, found {shares}"
            raise ValueError(message)
        return self


class Migration(Section):
    """One workload's migration from a legacy model to a target model."""

    workload: str = Field(pattern=_WORKLOAD_NAME)
    """Name of the workload and of its partition: lower-case letters, digits, `-` and `_`."""
    owner: str = Field(default="unowned", min_length=1)
    """Team that answers for the workload."""
    risk: Literal["low", "medium", "high"] | None = None
    """Risk tier of the workload; a `risk` in a call's tags comes first."""
    legacy: Legacy
    target: Target
    grading: list[Grader] = Field(min_length=1)
    """How answers are scored; the score of an item is the mean of its graders."""
    contract: Contract = Contract()
    prompt: PromptAdaptation = PromptAdaptation()
    golden: Golden = Golden()
    sign_off: SignOff = SignOff()
    cost: Cost = Cost()
    regression: Regression = Regression()
    drift: Drift = Drift()
    load: Load | None = None
    rollout: Rollout = Rollout()

    @model_validator(mode="after")
    def _contract_is_possible(self) -> Migration:
        if (self.contract.required or self.contract.bare) and not self.contract.json_object:
            message = "contract.json_object: true is needed where contract.required or contract.bare is set"
            raise ValueError(message)
        return self
