"""The ways to ask a template that meet: the unchanged prompt, its conversion, declared rewrites, and candidates."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.prompt_changes import chosen_of
from anven_pipelines.domain.prompt_declared import rewritten
from anven_pipelines.domain.prompt_template import unchanged
from anven_pipelines.domain.prompts import (
    apply,
    calls_of,
    candidate_part,
    declared_prompt,
    fitting_rewrite,
    found_prompt,
    prompt_bound,
    rewrites_part,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from anven_pipelines.domain.prompt_changes import Chosen
    from anven_pipelines.domain.prompt_declared import Declared
    from anven_pipelines.domain.prompt_split import TemplateItems
    from anven_pipelines.domain.prompt_target import TargetProfile
    from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate
    from anven_pipelines.domain.prompt_trial import Way
    from anven_pipelines.domain.prompts import AdaptedPrompt, Call
    from anven_pipelines.spec_prompt import PromptAdaptation

UNCHANGED: Final = "unchanged"


class Entry(NamedTuple):
    """A way to ask a template that meets the others.

    Attributes:
        origin: Who made it.
        prompt: It alone.
        part: What it adds to the prompt of the workload; nothing for what stays as logged.
        candidate: It as a candidate, or of several rewrites of one template the first; None for the unchanged prompt.
        slots: Names that a call fills in it, where they are not the template's.
    """

    origin: str
    prompt: AdaptedPrompt
    part: Mapping[str, Any] = MappingProxyType({})
    candidate: Candidate | None = None
    slots: tuple[str, ...] = ()

    def serving(self, template: PromptTemplate, messages: Sequence[dict[str, Any]]) -> Candidate:
        """Return how a call of the template is asked: of several rewrites by the first that fits it."""
        if "rewrites" not in self.part:
            return self.candidate or unchanged(template)
        number = fitting_rewrite(self.part, messages)
        return unchanged(template) if number is None else rewritten(template, self.part["rewrites"][number])


def candidate_entry(
    template: PromptTemplate,
    candidate: Candidate,
    *,
    origin: str,
    profile: TargetProfile,
    form: Mapping[str, Any] | None = None,
) -> Entry:
    """Return a candidate as an entry, in the form that the target takes; `form` is that of `candidate_part`."""
    part = candidate_part(template, candidate, form=form)
    return Entry(origin, found_prompt([part], profile=profile, description=""), part, candidate)


def declared_entry(
    template: PromptTemplate,
    found: Declared | None,
    adaptation: PromptAdaptation,
    *,
    profile: TargetProfile,
    form: Mapping[str, Any],
) -> Entry | str | None:
    """Return the declared rewrites as an entry, in the form that the target takes; None where they fit no prompt.

    Where they miss some, or break a hard constraint, it is said why in words: nobody asks them.

    Args:
        template: What they replace.
        found: What `declarations` says of it, seen on all golden calls: an open one is as good as a sealed one here,
            and what a sealed one shows to break would be served all the same.
        adaptation: The section `prompt`.
        profile: The form that the target takes.
        form: As that of `candidate_part`.
    """
    if found is None or found.refused is not None:
        return found and found.refused
    # Never as the candidate, which serves every call of its template: a call that the patterns refuse, such as one with
    # line breaks, is one that a person left out and nobody tried.
    serving = declared_prompt(adaptation.model_copy(update={"rewrites": list(found.rewrites)}))
    part = {**rewrites_part(template, serving), **form}
    return Entry("declared", found_prompt([part], profile=profile, description=""), part, found.candidate, found.slots)


def as_answered(template: PromptTemplate, form: Mapping[str, Any]) -> PromptTemplate:
    """Return a template with the contract of its converted calls: what may be demanded of answers they must keep."""
    return template.model_copy(update={"contract": form["contract"]}) if "contract" in form else template


def chosen_entry(items: TemplateItems, entry: Entry, *, profile: TargetProfile) -> Chosen:
    """Return what an entry changes for a template, and why."""
    configs = items.search.rows["model_config"].to_list()
    asked = way_of(items.search.rows, found_prompt([entry.part], profile=None, description=""))
    tokens = [prompt_bound(entry.part, asked(item), profile) for item in range(len(configs))]
    contract = entry.part.get("contract")
    chosen = chosen_of(
        items.template,
        entry.candidate or unchanged(items.template),
        configs=configs,
        profile=profile,
        contract=contract,
        prompt_tokens=tokens,
    )
    return replace(chosen, slots=entry.slots or chosen.slots)


def way_of(rows: pl.DataFrame, prompt: AdaptedPrompt) -> Way:
    """Return how the items are asked with a prompt."""
    logged = calls_of(rows)

    def ask(item: int) -> Call:
        return apply(prompt, *logged[item])

    return ask
