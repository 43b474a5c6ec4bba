"""A prompt that was found, as the section `prompt` of a migration file that a person edits and tests again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import regex  # type: ignore[import-untyped] # in place of re for its timeout

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompt_mining import fit
from anven_pipelines.domain.prompt_target import TargetProfile
from anven_pipelines.domain.prompt_template import SLOT, Candidate, PromptTemplate
from anven_pipelines.domain.prompts import apply, declared_prompt, fitting_rewrite, found_prompt, stays_as_logged
from anven_pipelines.spec_prompt import PromptAdaptation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.prompts import AdaptedPrompt, Call

NO_SYSTEM: Final = r"\A\Z"  # an absent pattern would fit any system message
SEARCHING: Final = {"mode", "rewrites", "strategies", "reflection"}  # what a search needs and a test does not

WHERE_TESTED: Final = "`mode: tested` asks them where they fit every golden prompt of a form, sealed ones too"


class Written(NamedTuple):
    """A section `prompt`, and what a person has to know of it."""

    section: dict[str, Any]
    notes: tuple[str, ...]


def rewrites_of(prompt: AdaptedPrompt, logged: Sequence[Call], *, declared: PromptAdaptation | None = None) -> Written:
    """Write a prompt as rewrites that ask the same, to be edited by hand and tested again.

    Args:
        prompt: The workload's current prompt.
        logged: Open calls as logged; on these it is tried whether the rewrites ask the same.
        declared: The section that the migration file has now; what it sets for the proof stays as it is.

    Raises:
        InvalidInput: the legacy prompts stand unchanged, or nothing of the prompt can be said as a rewrite.
    """
    parts = prompt.transformation.get("templates", [])
    rewrites = list(prompt.transformation.get("rewrites", []))
    notes: list[str] = []
    templates: list[PromptTemplate] = []
    for part in parts:
        if stays_as_logged(part):
            continue
        template = PromptTemplate.model_validate(part["template"])
        if "rewrites" in part:
            rewrites += [each for each in part["rewrites"] if each not in rewrites]
        elif (reason := _inexpressible(template)) is not None:
            notes.append(f"{template.name} is left out: {reason}")
            continue
        else:
            rewrites.append(_rewrite(template, Candidate.model_validate(part["candidate"])))
        templates.append(template)
    if not rewrites:
        why = "; ".join(notes) or "the legacy prompts stand unchanged"
        message = f"nothing can be written as rewrites: {why}"
        raise InvalidInput(message)
    kept = declared.model_dump(mode="json", exclude=SEARCHING, exclude_defaults=True) if declared else {}
    section = {"mode": "tested", **kept, "rewrites": [_without_nulls(each) for each in rewrites]}
    return Written(section, (*notes, *_differences(prompt, section, templates, logged), WHERE_TESTED))


def _inexpressible(template: PromptTemplate) -> str | None:
    """Say why no rewrite fits the calls of a template: one knows a system text and the slots of one user text."""
    if template.examples:
        return "its logged calls hold few-shot turns, and a rewrite fits a single user message"
    if any(name in template.slots for name in SLOT.findall(template.system or "")):
        return "its system message has slots, and those of a rewrite stand in the user message"
    return None


def _rewrite(template: PromptTemplate, candidate: Candidate) -> dict[str, Any]:
    system = NO_SYSTEM
    if template.system is not None:
        system = rf"\A{regex.escape(template.system, special_only=True)}\Z"
    return {
        "system": system,
        "user": template.pattern,
        "messages": [each.model_dump() for each in candidate.messages],
        **({"params": candidate.params} if candidate.params else {}),
    }


def _without_nulls(rewrite: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rewrite.items() if value is not None}


def _in_its_form(rewritten: AdaptedPrompt, prompt: AdaptedPrompt) -> AdaptedPrompt:
    """Put declared rewrites in the places of a prompt's parts, with what they know of the target's form."""
    if prompt.strategy != "templates":
        return rewritten
    rewrites = rewritten.transformation["rewrites"]
    parts = [
        {**{name: each for name, each in part.items() if name != "candidate"}, "rewrites": rewrites}
        for part in prompt.transformation["templates"]
        if not stays_as_logged(part)  # a rewrite knows no template before its own
    ]
    profile = prompt.transformation["profile"]
    return found_prompt(parts, profile=None if profile is None else TargetProfile(**profile), description="")


def _differences(
    prompt: AdaptedPrompt, section: Mapping[str, Any], templates: Sequence[PromptTemplate], logged: Sequence[Call]
) -> list[str]:
    """Say what the rewrites, in the target's form as the prompt is, do not ask as it does."""
    rewritten = declared_prompt(PromptAdaptation.model_validate(section))
    tested = _in_its_form(rewritten, prompt)
    meant = [each for each in logged if not templates or any(fit(template, *each) for template in templates)]
    fitting = [each for each in meant if fitting_rewrite(rewritten.transformation, each.messages) is not None]
    different = sum(apply(prompt, *each) != apply(tested, *each) for each in fitting)
    notes = []
    if unfit := len(meant) - len(fitting):
        notes.append(f"no rewrite fits {unfit} of {len(meant)} open prompts, such as those with earlier turns")
    if different:
        notes.append(
            f"{different} of {len(fitting)} open prompts are asked otherwise than by the prompt that was found"
        )
    return notes
