"""The target of a migration: recorded answers, a served model, or one that the batch itself runs."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationInfo,
    field_validator,
)

from anven_pipelines.spec_values import Duration, LogFormat, Price, Section, Sources

_HUGGING_FACE: Final = re.compile(r"hf://[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


_MANIFEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


_CONTAINER_AT_ACCOUNT: Final = ("abfs", "abfss")  # in the URLs of Azure's stores an @ stands before no host


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
        message = (
            "the 40 hex digits of a commit are needed with hf://, as `revision` (--revision of `anven weights`); a "
            "branch or a tag can move to other weights"
        )
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
    """Token price of the target; without it cost is known where a log states it or servers are paid by the day."""


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
    """Token price of the target; without it cost is known where a log states it or servers are paid by the day."""


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
    """Token price of the target; without it cost is known where a log states it or servers are paid by the day."""


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
    """Token price of the target; without it cost is known where a log states it or servers are paid by the day."""

    @field_validator("revision")
    @classmethod
    def _revision_pins(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _revision(value, info.data.get("weights", ""))


BatchTarget = NanoTarget | JobTarget


AskedTarget = EndpointTarget | BatchTarget


Target = Annotated[RecordedTarget | EndpointTarget | NanoTarget | JobTarget, Field(discriminator="engine")]
