"""Rewrites that a person declared, as candidates: they keep the same constraints and get the same form as found ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import regex  # type: ignore[import-untyped] # in place of re for its timeout

from anven_pipelines.domain.prompt_constraints import broken, most_characters
from anven_pipelines.domain.prompt_mining import fit
from anven_pipelines.domain.prompt_template import PATTERN_SECONDS, SLOT, Candidate, TemplateMessage, fill
from anven_pipelines.domain.prompts import apply, declared_prompt, fitting_rewrite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.prompt_template import PromptTemplate
    from anven_pipelines.domain.prompts import AdaptedPrompt, Call
    from anven_pipelines.spec_prompt import PromptAdaptation


class Declared(NamedTuple):
    """What declared rewrites make of a template.

    Attributes:
        candidate: It as a candidate, or the first of several rewrites.
        exact: Whether the candidate asks every call as the rewrites do; else they cut calls in other places than the
            template, or several serve it.
        broken: Which constraint is broken; None where none is.
    """

    candidate: Candidate
    exact: bool
    broken: str | None


def declared_for(
    template: PromptTemplate, calls: Sequence[Call], adaptation: PromptAdaptation
) -> Declared | str | None:
    """Return what the declared rewrites make of a template; None where they fit none of its calls.

    Args:
        template: A legacy prompt.
        calls: Calls of it.
        adaptation: The section `prompt`.

    Returns:
        In words how many calls they miss, where they fit some and not all.
    """
    if not adaptation.rewrites:
        return None
    prompt = declared_prompt(adaptation)
    numbers = [fitting_rewrite(prompt.transformation, call.messages) for call in calls]
    if missed := numbers.count(None):
        told = f"the declared rewrites fit {len(calls) - missed} of {len(calls)} prompts; all are needed"
        return told if missed < len(calls) else None
    used = [
        prompt.transformation["rewrites"][number] for number in sorted({each for each in numbers if each is not None})
    ]
    if len(used) == 1 and _asks_the_same(exact := _in_slots(template, used[0]), template, calls, prompt):
        return Declared(exact, exact=True, broken=_broken(exact, template, adaptation))
    written = [(_candidate(template, each), _with_slots_of(template, each)) for each in used]
    reasons = (_broken(candidate, stands_for, adaptation) for candidate, stands_for in written)
    return Declared(written[0][0], exact=False, broken=next((each for each in reasons if each is not None), None))


def broken_declarations(
    templates: Sequence[PromptTemplate], calls: Sequence[Call], adaptation: PromptAdaptation
) -> list[str]:
    """Say which declared rewrites break a constraint, by template; calls are not quoted."""
    told = []
    for template in templates:
        mine = [call for call in calls if fit(template, *call) is not None]
        found = declared_for(template, mine, adaptation) if mine else None
        if isinstance(found, Declared) and found.broken is not None:
            told.append(f"{template.name}: {found.broken}")
    return told


def _broken(candidate: Candidate, template: PromptTemplate, adaptation: PromptAdaptation) -> str | None:
    return broken(candidate, template, most_characters=most_characters(template, longest=adaptation.longest))


def _candidate(
    template: PromptTemplate, rewrite: Mapping[str, Any], slots: Mapping[str, str] | None = None
) -> Candidate:
    """Write a rewrite as a candidate; its slots are its own where none are given in their place."""
    return Candidate(
        template=template.name,
        messages=tuple(
            TemplateMessage(role=each["role"], content=fill(each["content"], slots or {}))
            for each in rewrite["messages"]
        ),
        params=rewrite.get("params") or {},
        origin="declared",
    )


def _in_slots(template: PromptTemplate, rewrite: Mapping[str, Any]) -> Candidate:
    """Write a rewrite with the template's slots: its pattern cuts the template's text as it would cut a call's."""
    found = regex.fullmatch(rewrite["user"], template.user, timeout=PATTERN_SECONDS)
    return _candidate(template, rewrite, None if found is None else found.groupdict(default=""))


def _asks_the_same(
    candidate: Candidate, template: PromptTemplate, calls: Sequence[Call], rewrites: AdaptedPrompt
) -> bool:
    fitted = [fit(template, call.messages) for call in calls]
    return all(
        each is not None and candidate.asked(each.slots) == apply(rewrites, *call).messages
        for each, call in zip(fitted, calls, strict=True)
    )


def _with_slots_of(template: PromptTemplate, rewrite: Mapping[str, Any]) -> PromptTemplate:
    """Return the template as the rewrite cuts it; the names of its own slots are text then."""
    groups = tuple(regex.compile(rewrite["user"]).groupindex)
    return template.model_copy(update={"slots": groups})
