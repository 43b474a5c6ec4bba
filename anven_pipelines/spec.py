"""What a team declares in a migration file: the models, their defaults and what each value may be.

`migration_file.py` reads the YAML into a `Migration` and writes the JSON Schema.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import (
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.spec_gateway import Gateway, Upstream
from anven_pipelines.spec_grading import Grader
from anven_pipelines.spec_load import Load
from anven_pipelines.spec_prompt import PromptAdaptation, Risk
from anven_pipelines.spec_rollout import Rollout
from anven_pipelines.spec_target import EndpointTarget, RecordedTarget, Target
from anven_pipelines.spec_values import Level, LogFormat, Price, Section, Share, Sources

Stratum = Literal["application", "endpoint", "task", "length_band", "risk", "language"]
Criterion = Literal["segments", "ttft", "cost", "safety", "holdout"]

_WORKLOAD_NAME: Final = r"^[a-z0-9][a-z0-9_-]{0,62}$"


def _size(value: object) -> object:
    """Take `auto`, `all` or a positive whole number."""
    if value in {"auto", "all"} if isinstance(value, str) else _is_count(value):
        return value
    message = "needed is 'auto', 'all' or a whole number of at least 1"
    raise ValueError(message)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


Size = Annotated[
    Literal["auto", "all"] | int,
    BeforeValidator(_size),
    WithJsonSchema({"anyOf": [{"enum": ["auto", "all"]}, {"type": "integer", "minimum": 1}]}),
]


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


class Contract(Section):
    """The form every answer must have, reported apart from its score."""

    json_object: bool = False
    """The answer holds a JSON object, bare or in one fenced block."""
    required: list[str] = Field(default_factory=list)
    """Fields the object must have; dots step into nested objects."""
    bare: bool = False
    """Nothing but the JSON object: a code fence or prose around it breaks the contract."""


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
    strata: list[Stratum] = ["application"]  # noqa: RUF012 - pydantic copies it
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
    level: Level = 0.05
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
    target_usd_per_day: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """What serving the target costs a day, used or not, such as reserved GPUs.

    Where absent, what `load_benchmark` finds at `load.replica_usd_per_hour`, unless calls are paid for by the token.
    """


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
    level: Level = 0.01
    """Error rate of one look; the check looks whenever it runs."""


class Migration(Section):
    """One workload's migration from a legacy model to a target model."""

    workload: str = Field(pattern=_WORKLOAD_NAME)
    """Name of the workload and of its partition: lower-case letters, digits, `-` and `_`."""
    owner: str = Field(default="unowned", min_length=1)
    """Team that answers for the workload."""
    risk: Risk | None = None
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
    gateway: Gateway | None = None
    """Where the gateway reaches the two arms; a workload without this section is not served by it."""

    @property
    def target_upstream(self) -> Upstream | None:
        """Where the gateway reaches the target; None where no gateway is declared."""
        if self.gateway is None:
            return None
        if self.gateway.target is not None:
            return self.gateway.target
        asked = self.target
        if not isinstance(asked, EndpointTarget):  # the file's own check has seen to it
            message = f"{self.workload}: gateway.target is needed"
            raise InvalidInput(message)
        return Upstream(
            model=f"openai/{asked.model}", url=asked.url, api_key_env=asked.api_key_env, timeout=asked.timeout
        )

    @model_validator(mode="after")
    def _contract_is_possible(self) -> Migration:
        if (self.contract.required or self.contract.bare) and not self.contract.json_object:
            message = "contract.json_object: true is needed where contract.required or contract.bare is set"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _the_gateway_finds_the_target(self) -> Migration:
        if self.gateway is not None and self.gateway.target is None and not isinstance(self.target, EndpointTarget):
            message = f"gateway.target is needed: where the target is served, as target.engine is {self.target.engine}"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _the_judge_has_texts(self) -> Migration:
        if self.rollout.judge is not None and not (self.gateway and self.gateway.store_text):
            message = (
                "rollout.judge reads the redacted texts that the gateway keeps: gateway.store_text: true is needed, "
                f"found {'false' if self.gateway else 'no section `gateway`'}"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _a_prompt_can_be_looked_for(self) -> Migration:
        if self.prompt.mode == "declared":
            return self
        if isinstance(self.target, RecordedTarget):
            message = f"prompt.mode is {self.prompt.mode}; a target that can be asked is needed, not recorded answers"
            raise ValueError(message)  # noqa: TRY004 - pydantic takes only this for a problem of the file
        if self.golden.holdout == 1:
            message = (
                f"prompt.mode is {self.prompt.mode} and golden.holdout is 1; open items are needed to look for a "
                "prompt on, such as golden.holdout: 0.5"
            )
            raise ValueError(message)
        if self.prompt.budget.usd is not None and self.target.price is None:
            message = (
                f"prompt.budget.usd is {self.prompt.budget.usd:g} and target.price is not declared, so the limit could "
                "not be held; declare target.price, or set prompt.budget in calls or tokens"
            )
            raise ValueError(message)
        if (refusal := self.prompt.rewriting_refused(self.risk)) is not None:
            raise ValueError(refusal)
        return self
