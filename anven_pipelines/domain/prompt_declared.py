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
_TESTED: Final = {True: ": not asked, so not checked", False: ": not checked"}


class Declared(NamedTuple):
    """What declared rewrites make of a template.

    Attributes:
        candidate: It as a candidate, or the first of several rewrites.
        slots: Names that a call fills in the candidates.
        rewrites: Those that serve a call that a test asks, in their order; no other one was tried on the template.
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
        few = (
            f"they fit {fitting} of {self.calls} prompts, and all are needed, each by a rewrite that serves an open one"
            if self.missed
            else None
        )
        why = [each for each in (few, self.broken) if each is not None]
        return f"the declared rewrites are not asked: {'; '.join(why)}" if why else None


def declared_for(
    template: PromptTemplate,
    calls: Sequence[Call],
    adaptation: PromptAdaptation,
    *,
    asked: Sequence[bool] | None = None,
) -> Declared | None:
    """Return what the declared rewrites make of a template; None where they fit none of its calls.

    A test proves nothing of a rewrite that it asks nobody by: what only sealed prompts fit is left out, and they have
    to fit another one.

    Args:
        template: A legacy prompt, with the contract that its answers must keep.
        calls: Calls of it.
        adaptation: The section `prompt`.
        asked: Which calls a test asks; all where absent.
    """
    if not adaptation.rewrites:
        return None
    numbers = _serving(calls, adaptation, asked=None if adaptation.mode == "declared" else asked)
    found = []
    for number in sorted({each for each in numbers if each is not None}):
        served = [call for call, fitting in zip(calls, numbers, strict=True) if fitting == number]
        found.append(_declared(template, number, served, adaptation))
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


def _serving(calls: Sequence[Call], adaptation: PromptAdaptation, *, asked: Sequence[bool] | None) -> list[int | None]:
    """Return by call the number of the first rewrite that fits, of those by which an asked call is asked."""
    rewrites = declared_prompt(adaptation).transformation
    numbers = [fitting_rewrite(rewrites, call.messages) for call in calls]
    if asked is None:
        return numbers
    tested = sorted({number for number, used in zip(numbers, asked, strict=True) if used and number is not None})
    if not tested:  # nothing of it is tested, and what there is may still be said of it
        return numbers
    kept = adaptation.model_copy(update={"rewrites": [adaptation.rewrites[number] for number in tested]})
    return [None if number is None else tested[number] for number in _serving(calls, kept, asked=None)]


def declarations(
    templates: Sequence[PromptTemplate],
    calls: Sequence[Call],
    adaptation: PromptAdaptation,
    *,
    contract: Contract,
    asked: Sequence[bool] | None = None,
) -> dict[str, Declared]:
    """Return by template what the declared rewrites make of it; templates that they do not fit are left out.

    Args:
        templates: Tried in this order; a call belongs to the first that it fits.
        calls: All golden calls, sealed ones too: what is said of them quotes none.
        adaptation: The section `prompt`.
        contract: Of the migration file.
        asked: Which calls a test asks: open ones that stand for traffic; all where absent.
    """
    mine: dict[int, list[tuple[Call, bool]]] = {}
    for call, is_asked in zip(calls, asked or [True] * len(calls), strict=True) if adaptation.rewrites else ():
        first = next((number for number, each in enumerate(templates) if fit(each, *call) is not None), None)
        if first is not None:
            mine.setdefault(first, []).append((call, is_asked))
    found = {}
    for number, served in sorted(mine.items()):
        template = templates[number]
        answered = template.model_copy(update={"contract": answer_schema(template.contract, contract)})
        mine_asked = [is_asked for _, is_asked in served]
        if (declared := declared_for(answered, [call for call, _ in served], adaptation, asked=mine_asked)) is not None:
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
        f"{name}: {found.missed} of {found.calls} prompts fit no rewrite{_TESTED[adaptation.mode != 'declared']}"
        for name, found in declared.items()
        if found.missed
    ]
    return [*unserving(declared, adaptation), *missed]


def unserving(declared: Mapping[str, Declared], adaptation: PromptAdaptation) -> list[str]:
    """Say which rewrites serve no golden prompt that is asked: none that has a template, or one before does."""
    tests = adaptation.mode != "declared"
    prompt = "that a test asks (open, of the traffic, with a template)" if tests else "that has a template"
    return [
        f"prompt.rewrites[{number}] serves no golden prompt {prompt}{_TESTED[tests]}"
        for number, rewrite in enumerate(adaptation.rewrites)
        if not any(rewrite in found.rewrites for found in declared.values())
    ]


def _declared(
    template: PromptTemplate,
    number: int,
    served: Sequence[Call],
    adaptation: PromptAdaptation,
) -> Declared:
    """Say what one rewrite makes of the calls that it serves."""
    rewrites = declared_prompt(adaptation.model_copy(update={"rewrites": [adaptation.rewrites[number]]}))
    [rewrite] = rewrites.transformation["rewrites"]
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
