"""Rewrites that a person declared, as candidates: they keep what found ones keep and get the same form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import regex  # type: ignore[import-untyped] # in place of re for its timeout

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompt_calls import answer_schema
from anven_pipelines.domain.prompt_constraints import broken, most_characters
from anven_pipelines.domain.prompt_mining import fit
from anven_pipelines.domain.prompt_template import PATTERN_SECONDS, Candidate, TemplateMessage, fill
from anven_pipelines.domain.prompts import apply, declared_prompt, fitting_rewrite, preview

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.prompt_template import PromptTemplate
    from anven_pipelines.domain.prompts import AdaptedPrompt, Call
    from anven_pipelines.spec import Contract
    from anven_pipelines.spec_prompt import PromptAdaptation, PromptRewrite

_WORD: Final = regex.compile(r"\w+")


class Declared(NamedTuple):
    """What declared rewrites make of a template.

    Attributes:
        candidate: It as a candidate, or the first of several rewrites.
        slots: Names that a call fills in the candidates.
        rewrites: Those that serve a call, in their order; no other one was tried on a call of the template.
        broken: Which constraint is broken first, and by which rewrite; None where none is.
        calls: Calls of the template.
        missed: Those that no rewrite fits.
    """

    candidate: Candidate
    slots: tuple[str, ...]
    rewrites: tuple[PromptRewrite, ...]
    broken: str | None
    calls: int
    missed: int = 0

    @property
    def refused(self) -> str | None:
        """Why a test does not ask them; None where it does."""
        fitting = self.calls - self.missed
        few = f"they fit {fitting} of {self.calls} prompts, and all are needed" if self.missed else None
        why = [each for each in (few, self.broken) if each is not None]
        return f"the declared rewrites are not asked: {'; '.join(why)}" if why else None


def declared_for(template: PromptTemplate, calls: Sequence[Call], adaptation: PromptAdaptation) -> Declared | None:
    """Return what the declared rewrites make of a template; None where they fit none of its calls.

    Args:
        template: A legacy prompt, with the contract that its answers must keep.
        calls: Calls of it.
        adaptation: The section `prompt`.
    """
    if not adaptation.rewrites:
        return None
    prompt = declared_prompt(adaptation)
    numbers = [fitting_rewrite(prompt.transformation, call.messages) for call in calls]
    found = []
    for number in sorted({each for each in numbers if each is not None}):
        served = [call for call, fitting in zip(calls, numbers, strict=True) if fitting == number]
        found.append(_declared(template, number, served, prompt, adaptation))
    if not found:
        return None
    return Declared(
        candidate=found[0].candidate,
        slots=tuple(dict.fromkeys(name for each in found for name in each.slots)),
        rewrites=tuple(rewrite for each in found for rewrite in each.rewrites),
        broken=next((each.broken for each in found if each.broken is not None), None),
        calls=len(calls),
        missed=numbers.count(None),
    )


def declarations(
    templates: Sequence[PromptTemplate], calls: Sequence[Call], adaptation: PromptAdaptation, *, contract: Contract
) -> dict[str, Declared]:
    """Return by template what the declared rewrites make of it; templates that they do not fit are left out.

    Args:
        templates: Tried in this order; a call belongs to the first that it fits.
        calls: All golden calls, sealed ones too: what is said of them quotes none.
        adaptation: The section `prompt`.
        contract: Of the migration file.
    """
    mine: dict[int, list[Call]] = {}
    for call in calls if adaptation.rewrites else ():
        first = next((number for number, each in enumerate(templates) if fit(each, *call) is not None), None)
        if first is not None:
            mine.setdefault(first, []).append(call)
    found = {}
    for number, served in sorted(mine.items()):
        template = templates[number]
        answered = template.model_copy(update={"contract": answer_schema(template.contract, contract)})
        if (declared := declared_for(answered, served, adaptation)) is not None:
            found[template.name] = declared
    return found


def require_tested(
    declared: Mapping[str, Declared],
    calls: Sequence[Call],
    adaptation: PromptAdaptation,
    *,
    may_be_shown: Sequence[bool],
) -> None:
    """Refuse rewrites that are to be tested and fit no call of any template, as a slip in `user` does.

    Args:
        declared: As `declarations` returns it.
        calls: All golden calls.
        adaptation: The section `prompt`.
        may_be_shown: Which calls are open; a sealed one is not quoted.

    Raises:
        InvalidInput: with the first prompt that they do not fit and that may be shown.
    """
    if adaptation.mode != "tested" or declared:
        return
    shown = preview(declared_prompt(adaptation), calls, may_be_shown=may_be_shown)
    message = (
        "prompt.rewrites: `mode: tested` has nothing to test, as no rewrite fits a prompt that has a template: "
        f"{shown.message}; correct `user` and `system`, which are regular expressions (`user` matches the whole text, "
        "line breaks only with (?s))"
    )
    raise InvalidInput(message)


def broken_declarations(declared: Mapping[str, Declared]) -> list[str]:
    """Say which declared rewrites break a constraint, by template; what calls filled in is not quoted."""
    return [f"{name}: {found.broken}" for name, found in declared.items() if found.broken is not None]


def unchecked_declarations(declared: Mapping[str, Declared], adaptation: PromptAdaptation) -> list[str]:
    """Say which rewrites and which prompts no constraint was checked on."""
    missed = [
        f"{name}: {found.missed} of {found.calls} prompts fit no rewrite: not asked, so not checked"
        for name, found in declared.items()
        if found.missed
    ]
    return [*unserving(declared, adaptation), *missed]


def unserving(declared: Mapping[str, Declared], adaptation: PromptAdaptation) -> list[str]:
    """Say which rewrites serve no golden prompt: they fit none that has a template, or one before them does."""
    return [
        f"prompt.rewrites[{number}] serves no golden prompt that has a template: not asked, so not checked"
        for number, rewrite in enumerate(adaptation.rewrites)
        if not any(rewrite in found.rewrites for found in declared.values())
    ]


def _declared(
    template: PromptTemplate,
    number: int,
    served: Sequence[Call],
    rewrites: AdaptedPrompt,
    adaptation: PromptAdaptation,
) -> Declared:
    """Say what one rewrite makes of the calls that it serves."""
    rewrite = rewrites.transformation["rewrites"][number]
    candidate, slots = _in_slots(template, rewrite), template.slots
    if _asks_the_same(candidate, template, served, rewrites):
        broken_by = _broken(candidate, template, adaptation)
    else:
        candidate, slots = rewritten(template, rewrite), tuple(regex.compile(rewrite["user"]).groupindex)
        # Its slots are not the template's, whose names are text then.
        stands_for = template.model_copy(update={"slots": slots})
        broken_by = _broken(candidate, stands_for, adaptation) or _left_out(template, served, rewrites)
    told = None if broken_by is None else f"prompt.rewrites[{number}]: {broken_by}"
    return Declared(candidate, slots, (adaptation.rewrites[number],), told, len(served))


def _broken(candidate: Candidate, template: PromptTemplate, adaptation: PromptAdaptation) -> str | None:
    return broken(candidate, template, most_characters=most_characters(template, longest=adaptation.longest))


def rewritten(
    template: PromptTemplate, rewrite: Mapping[str, Any], slots: Mapping[str, str] | None = None
) -> Candidate:
    """Write a rewrite as a candidate for a template.

    Args:
        template: What it replaces.
        rewrite: As JSON.
        slots: What stands in place of its slots; its own names where absent.
    """
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
    try:
        found = regex.fullmatch(rewrite["user"], template.user, timeout=PATTERN_SECONDS)
    except TimeoutError:  # calls are cut in time; then it is judged by its own slots
        found = None
    return rewritten(template, rewrite, None if found is None else found.groupdict(default=""))


def _asks_the_same(
    candidate: Candidate, template: PromptTemplate, calls: Sequence[Call], rewrites: AdaptedPrompt
) -> bool:
    fitted = [fit(template, call.messages) for call in calls]
    return all(
        each is not None and candidate.asked(each.slots) == apply(rewrites, *call).messages
        for each, call in zip(fitted, calls, strict=True)
    )


def _left_out(template: PromptTemplate, calls: Sequence[Call], rewrites: AdaptedPrompt) -> str | None:
    """Say of which slot a word is not asked: what a call fills in may be cut, and nothing of it left out."""
    for call in calls:
        fitted = fit(template, call.messages)
        asked = " ".join(each["content"] for each in apply(rewrites, *call).messages)
        words = set(_WORD.findall(asked))
        for slot, value in (fitted.slots if fitted else {}).items():
            if not words.issuperset(_WORD.findall(value)):
                return f"words that a call fills {{{slot}}} with are left out; every slot must be asked whole"
    return None
