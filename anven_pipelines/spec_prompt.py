"""The section `prompt` of a migration file: what the target is asked instead of the legacy prompt; who finds it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import regex  # type: ignore[import-untyped]  # it ships no types
from pydantic import BeforeValidator, Field, model_validator

from anven_pipelines.spec_values import Duration, Level, Pattern, PositiveDuration, Price, Section, Share

if TYPE_CHECKING:
    from collections.abc import Mapping

Mode = Literal["declared", "tested", "structural", "minimal", "full", "auto"]
StrategyName = Literal["racing", "random", "gepa", "prompt_ops"]
Risk = Literal["low", "medium", "high"]

REFLECTING: Final[frozenset[StrategyName]] = frozenset({"gepa", "prompt_ops"})
SLOT: Final = regex.compile(r"\{([^\W\d]\w*)\}")  # a name that a group of a regular expression may have, in braces
BY_RISK: Final[Mapping[Risk | None, Mode]] = {"high": "structural", "medium": "minimal", None: "minimal", "low": "full"}


def _policies(value: object) -> object:
    """Refuse what is neither, in one sentence."""
    if value == "found" or (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        return value
    message = "`found` or a list of sentences is needed"
    raise ValueError(message)


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
    params: dict[str, Any] = Field(default_factory=dict)
    """Request parameters in place of the call's, such as response_format; null leaves one out."""

    @model_validator(mode="after")
    def _no_slot_is_lost(self) -> PromptRewrite:
        written = "".join(message.content for message in self.messages)
        if lost := [slot for slot in regex.compile(self.user).groupindex if f"{{{slot}}}" not in written]:
            message = f"the slots {', '.join(lost)} of user must stand in messages, as {{{lost[0]}}}"
            raise ValueError(message)
        return self


class DeclaredTemplate(Section):
    """A prompt of the application as its code has it: fixed text, and slots that each call fills."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    """Names it among the workload's prompts, and in the prompt registry."""
    system: str | None = None
    """System message as it is logged, with its slots; absent where the calls have none."""
    user: str
    """Last user message as it is logged, with its slots; its other characters, line breaks too, are text."""
    slots: list[str] | None = None
    """Names in braces that are slots, each once; all of them where absent, other braces are text."""
    examples: list[PromptMessage] = Field(default_factory=list)
    """Question and answer turns that stand before the user message in every call."""

    @property
    def found_slots(self) -> tuple[str, ...]:
        """The slots in the order in which they stand."""
        named = SLOT.findall(f"{self.system or ''}\n{self.user}")
        return tuple(name for name in named if self.slots is None or name in self.slots)

    @model_validator(mode="after")
    def _it_can_be_found_in_a_log(self) -> DeclaredTemplate:
        found = self.found_slots
        if lost := [name for name in self.slots or () if name not in found]:
            message = f"the slots {', '.join(lost)} must stand in system or user, as {{{lost[0]}}}"
            raise ValueError(message)
        if twice := next((name for name in found if found.count(name) > 1), None):
            message = (
                f"the slot {{{twice}}} stands {found.count(twice)} times; a name of its own is needed at each place, "
                "or `slots` where it is text"
            )
            raise ValueError(message)
        roles = [message.role for message in self.examples]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            message = f"examples of a question (user) and its answer (assistant) each are needed, found {roles}"
            raise ValueError(message)
        return self


class SearchBudget(Section):
    """What the search for a prompt may spend, validation included; the first limit that is reached ends it."""

    calls: int = Field(default=3000, ge=0)
    """Answers of the target."""
    tokens: int | None = Field(default=None, ge=1)
    """Prompt and answer tokens of the target; looked at between two rounds."""
    usd: float | None = Field(default=None, gt=0)
    """Cost of the target's answers at its declared price; looked at between two rounds."""
    time: PositiveDuration | None = None
    """Time of the search, above 0; looked at between two rounds. A search under a time limit need not repeat itself."""


class Reflection(Section):
    """The model that reads what went wrong and writes better instructions; larger than the target."""

    model: str = Field(min_length=1)
    """Model name as the endpoint knows it."""
    url: str = Field(pattern=r"^https?://[^\s]+$")
    """Base URL of an OpenAI-compatible API, such as https://api.example.com/v1."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Request parameters, such as temperature."""
    timeout: Duration = Field(default=timedelta(minutes=2), json_schema_extra={"default": "2m"})
    """Longest wait for one attempt. An answer may take `max_attempts` of them and, between them, waits that grow."""
    max_attempts: int = Field(default=5, ge=1, le=20)
    """Attempts at one answer, the first one included."""
    calls: int = Field(default=60, ge=1)
    """Answers of this model that the search of one strategy for one prompt may ask for."""
    tokens: int | None = Field(default=None, ge=1)
    """Prompt and answer tokens of such a search; the answer that reaches it is the last."""
    usd: float | None = Field(default=None, gt=0)
    """Cost of such a search at `price`; the answer that reaches it is the last."""
    price: Price | None = None
    """Token price, for the cost of the search."""

    @model_validator(mode="after")
    def _a_limit_can_be_held(self) -> Reflection:
        if self.usd is not None and self.price is None:
            message = (
                f"usd is {self.usd:g} and no price is declared, so it could not be held; price is needed, or tokens"
            )
            raise ValueError(message)
        return self


class PromptOps(Section):
    """How llama-prompt-ops searches; the Python of its environment is named by ANVEN_PROMPT_OPS_PYTHON."""

    timeout: PositiveDuration | None = None
    """Longest run for one prompt; `budget.time` where absent, or 30 minutes."""
    strategy: Literal["basic", "llama"] = "basic"
    """Its `basic` takes `settings`; its `llama` adds formatting of its own and takes none."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Arguments of its BasicOptimizationStrategy, such as num_trials, num_threads, auto and use_llama_tips."""
    items: int = Field(default=100, ge=4)
    """At most so many items of a prompt are used, half to choose examples from and half to score with."""
    max_tokens: int = Field(default=2048, ge=1)
    """Longest answer of a model, where its own params say nothing else."""

    @model_validator(mode="after")
    def _settings_are_taken(self) -> PromptOps:
        if self.settings and self.strategy != "basic":
            message = (
                f"settings are taken by `strategy: basic` only, found {self.strategy} with {', '.join(self.settings)}"
            )
            raise ValueError(message)
        return self


class TargetForm(Section):
    """What the target's chat template and server take; the defaults are what vLLM serves for most open models."""

    has_system_role: bool = True
    """Whether the chat template has a system tier; without one its text opens the first user turn."""
    needs_alternation: bool = False
    """Whether the chat template refuses two turns of one role in a row."""
    switches_reasoning: bool = False
    """Whether the chat template takes `enable_thinking`: the search then tries it on and off."""
    max_context: int | None = Field(default=None, ge=1)
    """Tokens of prompt and answer together."""
    supports_tools: bool = True
    """Whether the server parses the model's tool calls."""
    supports_structured_output: bool = True
    """Whether answers can be held to a JSON Schema."""
    supports_stop: bool = True
    """Whether stop sequences are taken."""
    most_stops: int | None = Field(default=None, ge=0)
    """So many stop sequences at most."""
    supports_n: bool = True
    """Whether several answers to one call are given."""
    supports_penalties: bool = True
    """Whether frequency and presence penalties are taken."""
    same_tokenizer: bool = False
    """Whether token ids of the legacy model mean the same to the target, as `logit_bias` needs."""
    role_renames: dict[str, str] = Field(default_factory=lambda: {"developer": "system"})
    """Roles that the chat template does not know, and what stands for them."""
    scaffolding: str = ""
    """Text that the model needs in its system message."""
    language: str = ""
    """Language to answer in, such as German, where the target has to be told."""


class PromptAdaptation(Section):
    """How the legacy prompt is adapted to the target; carried over unchanged where nothing is declared."""

    mode: Mode = "declared"
    """`declared`: the rewrites as they stand, no gain is claimed; `tested`: the rewrites, if they prove a gain;
    `structural`: converted to the target's form; `minimal`: the legacy wording, placed and laid out anew; `full`:
    everything; `auto`: `structural` for `risk: high`, `full` for `risk: low`, else `minimal`.

    All but `declared` look for a better prompt on open items and prove its gain on others; where none is proven, the
    legacy prompt stands.
    """
    rewrites: list[PromptRewrite] = Field(default_factory=list)
    """Tried in this order; the first one that fits a prompt counts. In `mode: declared` every golden prompt needs
    one that fits; in the others a prompt that none fits is asked without them."""
    templates: list[DeclaredTemplate] = Field(default_factory=list)
    """Prompts of the application. A logged call belongs to the first that it fits; templates of the other calls are
    found in the logs. Calls with other tools or another output format are a template of their own: `ticket-2`."""
    strategies: list[StrategyName] = Field(default=["racing"], min_length=1)
    """Who looks for a better prompt in `minimal` and `full`; they compete on the same items. `gepa` and `prompt_ops`,
    which write it anew, only in `full`."""
    budget: SearchBudget = SearchBudget()
    validation: Share = 0.4
    """Share of the open items on which the gain is proven, and which no search of the workload has ever seen."""
    level: Level = 0.05
    """One-sided error rate of the claim that there is a gain, over all prompts of the workload and all attempts."""
    guard_margin: Share = 0.10
    """Largest share that may be lost of what the unchanged prompt answers right, proven at `level`."""
    policies: Annotated[Literal["found"] | list[str], BeforeValidator(_policies)] = "found"
    """Sentences that a prompt must keep word for word. `found`: those of the legacy prompt that read like policy or
    safety (English only; `prompt_baseline` shows them); a list names them, and an empty one keeps none."""
    longest: float = Field(default=2.0, gt=0)
    """Largest length of a prompt's own text, in lengths of the legacy one; at least 2,000 characters are allowed."""
    examples: bool = True
    """Logged questions with their right answers may stand in the prompt as few-shot examples."""
    form: TargetForm = TargetForm()
    """The form that the target takes, in all modes but `declared`."""
    reflection: Reflection | None = None
    """Needed by the strategies `gepa` and `prompt_ops`."""
    prompt_ops: PromptOps = PromptOps()
    """Of the strategy `prompt_ops`."""
    seed: int = Field(default=2026, ge=0)
    """Seed of the search; which items prove a gain does not depend on it."""

    @model_validator(mode="after")
    def _what_is_wanted_can_be_done(self) -> PromptAdaptation:
        if self.reflection is None and (reflecting := REFLECTING & set(self.strategies)):
            message = f"prompt.reflection is needed by {', '.join(sorted(reflecting))}: a model larger than the target"
            raise ValueError(message)
        names = [template.name for template in self.templates]
        if twice := next((name for name in names if names.count(name) > 1), None):
            message = (
                f"prompt.templates: a name of its own is needed for each, found {twice} {names.count(twice)} times"
            )
            raise ValueError(message)
        if self.mode == "tested" and not self.rewrites:
            message = "prompt.rewrites is needed with `mode: tested`; `full` looks for a prompt by itself"
            raise ValueError(message)
        if len(set(self.strategies)) < len(self.strategies):
            message = f"each strategy once is needed, found {', '.join(self.strategies)}"
            raise ValueError(message)
        return self

    def rewriting_refused(self, risk: Risk | None) -> str | None:
        """Say why strategies that write prompts anew may not search here; None where they may, or nobody searches."""
        rewriting = [each for each in self.strategies if each in REFLECTING]
        if self.mode_for(risk) != "minimal" or not rewriting:
            return None
        tier = f"for risk: {risk}" if risk else "where no risk is declared"
        mode = f"auto, which is minimal {tier}" if self.mode == "auto" else "minimal"
        return (
            f"prompt.mode is {mode}, and prompt.strategies names {', '.join(rewriting)}, which write the prompt anew; "
            "`minimal` keeps the legacy wording: name racing or random, or declare `mode: full`"
        )

    def mode_for(self, risk: Risk | None) -> Mode:
        """Return the mode with `auto` settled by the workload's risk tier."""
        return BY_RISK[risk] if self.mode == "auto" else self.mode
