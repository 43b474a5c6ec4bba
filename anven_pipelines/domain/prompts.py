"""How the legacy prompt is carried over to the target model.

An adapted prompt is data: a strategy by name and the transformation it applies. Its version is a digest of both, so
equal versions ask equal questions. A further strategy is one entry in `STRATEGIES`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import regex  # type: ignore[import-untyped] # in place of re for its timeout
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from anven_pipelines.domain.canonical import canonical_json, digest_of
from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompt_conversion import convert
from anven_pipelines.domain.prompt_mining import Fitted, fit
from anven_pipelines.domain.prompt_target import TargetProfile
from anven_pipelines.domain.prompt_template import PATTERN_SECONDS, Candidate, PromptTemplate, fill
from anven_pipelines.domain.token_count import most_tokens

if TYPE_CHECKING:
    import polars as pl

    from anven_pipelines.spec_prompt import PromptAdaptation, PromptRewrite

Message = dict[str, Any]
Params = dict[str, Any]


class Call(NamedTuple):
    """What a model is asked: messages, and the request's other parameters."""

    messages: list[Message]
    params: Params


Strategy = Callable[[Mapping[str, Any], Call], Call]


def _unchanged(_: Mapping[str, Any], call: Call) -> Call:
    """Ask the target exactly what the legacy model was asked."""
    return call


def _by_templates(transformation: Mapping[str, Any], call: Call) -> Call:
    """Ask as the part of the first template that fits says, in the target's form; others stay as they were logged.

    Nothing is proven of the others, and of prompts of a template that none of its rewrites fits.
    """
    if (found := _part_of(transformation, call)) is None:
        return call
    number, fitted = found
    part = transformation["templates"][number]
    if "rewrites" in part:
        if fitting_rewrite(part, call.messages) is None:
            return call
        asked = _rewritten(part, call)
    else:
        messages = _in_place(_template(part["template"]), _candidate(part["candidate"]), fitted)
        asked = Call(messages, call.params | part["candidate"]["params"])
    if transformation["profile"] is None:
        return asked
    profile = TargetProfile(**transformation["profile"])
    tokens = prompt_bound(part, asked, profile)
    converted = convert(asked.messages, asked.params, profile, contract=part.get("contract"), prompt_tokens=tokens)
    return Call(list(converted.messages), dict(converted.params))


def _part_of(transformation: Mapping[str, Any], call: Call) -> tuple[int, Fitted] | None:
    """Return the number, from 0, of the part that a call is asked by; None where it stays as it was logged."""
    for number, part in enumerate(transformation["templates"]):
        if (fitted := fit(_template(part["template"]), call.messages, call.params)) is not None:
            return None if stays_as_logged(part) else (number, fitted)
    return None


def prompt_bound(part: Mapping[str, Any], asked: Call, profile: TargetProfile) -> int | None:
    """Return a bound on the tokens of a prompt as the target gets it; None where its context knows no limit."""
    if profile.max_context is None:
        return None
    sent = convert(asked.messages, asked.params, profile)
    return most_tokens(sent.messages, sent.params, per_byte=part.get("tokens_per_byte", 1.0))


def _in_place(template: PromptTemplate, candidate: Candidate, fitted: Fitted) -> list[Message]:
    """Ask as the candidate does; earlier turns of the conversation stand between its own turns and the last question.

    Questions among them that have the template's form are written as the candidate writes one.
    """
    *before, question = candidate.asked(fitted.slots)
    return [*before, *(_earlier(template, candidate, turn) for turn in fitted.earlier), question]


def _earlier(template: PromptTemplate, candidate: Candidate, turn: Message) -> Message:
    if turn.get("role") == "user" and isinstance(turn.get("content"), str):
        found = _search(template.pattern, turn["content"], whole=True)
        if found is not None:
            return {**turn, "content": fill(candidate.messages[-1].content, found.groupdict(default=""))}
    return dict(turn)


def _rewritten(transformation: Mapping[str, Any], call: Call) -> Call:
    """Write the messages anew by the first rewrite that fits them.

    Raises:
        InvalidInput: none fits; a prompt that silently stayed as it was would be measured as if it were adapted.
    """
    messages = call.messages
    number = fitting_rewrite(transformation, messages)
    if number is None:
        message = f"no rewrite of the section prompt fits the logged prompt {_shown(messages)}; add one that does"
        raise InvalidInput(message)
    rewrite = transformation["rewrites"][number]
    _, user = _single_turn(messages) or ("", "")
    slots = _search(rewrite["user"], user, whole=True).groupdict(default="")
    return Call(
        [{**each, "content": fill(each["content"], slots)} for each in rewrite["messages"]],
        call.params | (rewrite.get("params") or {}),
    )


STRATEGIES: Final[Mapping[str, Strategy]] = {
    "identity": _unchanged,
    "rewrite": _rewritten,
    "templates": _by_templates,
}


class AdaptedPrompt(BaseModel):
    """What turns the legacy messages into the target's; refuses a version that is not the digest of the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: str = Field(description="Name of the strategy, one of STRATEGIES.")
    transformation: dict[str, Any] = Field(description="What the strategy applies, plain JSON values.")
    description: str = Field(description="What was done, in words for the report; not part of the version.")
    version: str = Field(description="SHA-256, in hex, over strategy and transformation.")

    @field_validator("strategy")
    @classmethod
    def _strategy_is_known(cls, strategy: str) -> str:
        if strategy not in STRATEGIES:
            message = f"the prompt strategy {strategy!r} is unknown; one of {', '.join(STRATEGIES)} is needed"
            raise ValueError(message)
        return strategy

    @model_validator(mode="after")
    def _version_is_digest(self) -> AdaptedPrompt:
        if self.version != (digest := version_of(self.strategy, self.transformation)):
            message = (
                f"the prompt version is {self.version}, its content has {digest}; materialise adapted_prompt again"
            )
            raise ValueError(message)
        return self


def version_of(strategy: str, transformation: Mapping[str, Any]) -> str:
    """Return the version of a prompt: the digest of what decides the messages."""
    return digest_of({"strategy": strategy, "transformation": dict(transformation)})


def carry_over() -> AdaptedPrompt:
    """Return the identity: the legacy prompt, unchanged."""
    return AdaptedPrompt(
        strategy="identity",
        transformation={},
        description="The legacy prompt carried over unchanged; nothing was adapted to the target model.",
        version=version_of("identity", {}),
    )


def declared_prompt(adaptation: PromptAdaptation) -> AdaptedPrompt:
    """Return what the migration file declares: its rewrites, or the legacy prompt unchanged."""
    if not adaptation.rewrites:
        return carry_over()
    transformation = {"rewrites": [_dumped(each) for each in adaptation.rewrites]}
    count = len(adaptation.rewrites)
    return AdaptedPrompt(
        strategy="rewrite",
        transformation=transformation,
        description=f"Written anew by the first fitting of {count} rewrites of the migration file.",
        version=version_of("rewrite", transformation),
    )


def _dumped(rewrite: PromptRewrite) -> dict[str, Any]:
    """Return a rewrite as plain JSON; one without parameters has the version that it had before there were any."""
    return rewrite.model_dump(mode="json", exclude=None if rewrite.params else {"params"})


def candidate_part(
    template: PromptTemplate, candidate: Candidate, *, form: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Return what a candidate adds to a prompt; how it was found is no part of it.

    Args:
        template: What it replaces.
        candidate: What is asked.
        form: What the target's form needs to know: `contract`, the JSON Schema of answers in JSON mode;
            `tokens_per_byte`, a bound for prompts (1 where absent).
    """
    decides = candidate.model_dump(mode="json", include={"template", "messages", "params"})
    return {"template": template.model_dump(mode="json"), "candidate": decides, **(form or {})}


def rewrites_part(template: PromptTemplate, rewrites: AdaptedPrompt) -> Mapping[str, Any]:
    """Return what declared rewrites add to a prompt, for the calls of one template."""
    return {"template": template.model_dump(mode="json"), "rewrites": rewrites.transformation["rewrites"]}


def as_logged_part(template: PromptTemplate) -> Mapping[str, Any]:
    """Return the part of a template that stays: it keeps its calls from templates behind it that fit them, too."""
    return {"template": template.model_dump(mode="json")}


def stays_as_logged(part: Mapping[str, Any]) -> bool:
    """Say whether the calls of a part are asked as they were logged."""
    return "candidate" not in part and "rewrites" not in part


def parts_in_order(
    templates: Sequence[PromptTemplate], changed: Mapping[str, Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return the parts of a prompt so that it parts calls as the search did: a call belongs to the first that fits.

    Args:
        templates: All of them, in the order in which items were given to them.
        changed: By name, the parts of those that change. Those that stay stand before them as they were logged; what
            stands behind the last that changes takes nothing from it, and is left out.
    """
    parts = [changed.get(each.name) or as_logged_part(each) for each in templates]
    while parts and stays_as_logged(parts[-1]):
        parts.pop()
    return parts


def found_prompt(
    parts: Sequence[Mapping[str, Any]], *, profile: TargetProfile | None, description: str
) -> AdaptedPrompt:
    """Return the prompt that is made of the parts of some templates; calls of others stay as they were logged.

    Args:
        parts: As `candidate_part`, `rewrites_part` and `as_logged_part` return them.
        profile: The form that the target takes; None converts nothing.
        description: In words.
    """
    transformation = {"profile": None if profile is None else asdict(profile), "templates": list(parts)}
    return AdaptedPrompt(
        strategy="templates",
        transformation=transformation,
        description=description,
        version=version_of("templates", transformation),
    )


def apply(prompt: AdaptedPrompt, messages: Sequence[Message], params: Mapping[str, Any] | None = None) -> Call:
    """Return what the target model is sent in place of the legacy call, which stays as it is."""
    return STRATEGIES[prompt.strategy](prompt.transformation, Call(list(messages), dict(params or {})))


# Parsed once, not once for each of thousands of calls.
def _template(written: Mapping[str, Any]) -> PromptTemplate:
    return _parsed_template(canonical_json(written))


def _candidate(written: Mapping[str, Any]) -> Candidate:
    return _parsed_candidate(canonical_json(written))


@lru_cache(maxsize=256)
def _parsed_template(written: str) -> PromptTemplate:
    return PromptTemplate.model_validate_json(written)


@lru_cache(maxsize=256)
def _parsed_candidate(written: str) -> Candidate:
    return Candidate.model_validate_json(written)


def fitting_rewrite(transformation: Mapping[str, Any], messages: Sequence[Message]) -> int | None:
    """Return the number, from 0, of the first rewrite that fits a prompt; None where none does.

    A rewrite knows one user message, with or without a system message before it; earlier turns have no place in it.
    """
    parts = _single_turn(messages)
    if parts is None:
        return None
    system, user = parts
    for number, rewrite in enumerate(transformation["rewrites"]):
        fits_system = rewrite["system"] is None or _search(rewrite["system"], system)
        if fits_system and _search(rewrite["user"], user, whole=True):
            return number
    return None


def _search(pattern: str, text: str, *, whole: bool = False) -> Any:  # noqa: ANN401 - regex ships no types
    """Find a pattern in a text, or fit it to the whole of it.

    Raises:
        InvalidInput: it takes too long, as patterns with nested repetitions do.
    """
    find = regex.fullmatch if whole else regex.search
    try:
        return find(pattern, text, timeout=PATTERN_SECONDS)
    except TimeoutError as error:
        message = f"prompt.rewrites: the pattern {pattern!r} took longer than {PATTERN_SECONDS:g} s on {text[:80]!r}"
        raise InvalidInput(message) from error


def _single_turn(messages: Sequence[Message]) -> tuple[str, str] | None:
    """Return system and user text; None for a prompt of any other form."""
    roles = [message.get("role") for message in messages]
    if roles not in (["user"], ["system", "user"], ["developer", "user"]):
        return None
    texts = [text for message in messages if isinstance(text := message.get("content"), str)]
    if len(texts) != len(messages):
        return None
    return texts[0] if len(texts) > 1 else "", texts[-1]


def _shown(messages: Sequence[Message], *, most: int = 300) -> str:
    text = repr([(message.get("role"), message.get("content")) for message in messages])
    return text if len(text) <= most else text[: most - 1] + "…"


def calls_of(golden: pl.DataFrame) -> list[Call]:
    """Return golden rows as they were logged."""
    rows = golden.select("source_prompt", "model_config").iter_rows()  # a loop: nested JSON
    return [Call(json.loads(messages), json.loads(params or "null") or {}) for messages, params in rows]


class Preview(NamedTuple):
    """What an adaptation makes of logged prompts.

    Attributes:
        unfit: Prompts that it does not know.
        message: The same in words, with the first of them that may be shown.
        examples: For each form of prompt of which one may be shown: how many there are, that one as logged, the same
            as the target is asked.
    """

    unfit: int
    message: str
    examples: list[tuple[int, str, str]]


def preview(prompt: AdaptedPrompt, logged: Sequence[Call], *, may_be_shown: Sequence[bool]) -> Preview:
    """Look at what becomes of every logged prompt, before the target is asked.

    Args:
        prompt: The adaptation.
        logged: Every golden call, sealed ones too: each of them has to fit.
        may_be_shown: Which of them are open; a sealed prompt is counted and not quoted.
    """
    if prompt.strategy == "templates":
        return _changed(prompt, logged, may_be_shown=may_be_shown)
    if prompt.strategy == "identity":
        return Preview(0, f"{len(logged)} prompts are carried over unchanged", [])
    numbers = [fitting_rewrite(prompt.transformation, call.messages) for call in logged]
    first = {number: at for at, number in reversed(list(enumerate(numbers))) if may_be_shown[at]}
    unfit = numbers.count(None)
    quoted = _shown(logged[first[None]].messages) if None in first else "sealed, as all of them are"
    example = f"; the first without one: {quoted}" if unfit else ""
    return Preview(
        unfit,
        f"{len(logged) - unfit} of {len(logged)} golden prompts fit a rewrite{example}",
        [
            (numbers.count(number), _shown(logged[at].messages), _shown(apply(prompt, *logged[at]).messages))
            for number, at in sorted((number, at) for number, at in first.items() if number is not None)
        ],
    )


def _changed(prompt: AdaptedPrompt, logged: Sequence[Call], *, may_be_shown: Sequence[bool]) -> Preview:
    """Count the prompts of each template that are asked in another way; every prompt fits."""
    numbers = [
        None if found is None else found[0] for found in (_part_of(prompt.transformation, each) for each in logged)
    ]
    first = {number: at for at, number in reversed(list(enumerate(numbers))) if may_be_shown[at]}
    same = numbers.count(None)
    return Preview(
        0,
        f"{len(logged) - same} of {len(logged)} golden prompts are adapted, {same} are asked as they were logged",
        [
            (numbers.count(number), _shown(logged[at].messages), _shown(apply(prompt, *logged[at]).messages))
            for number, at in sorted((number, at) for number, at in first.items() if number is not None)
        ],
    )
