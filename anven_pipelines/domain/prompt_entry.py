"""The ways to ask a template that meet: the unchanged prompt, its conversion, declared rewrites, and candidates."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.prompt_changes import Chosen, chosen_of
from anven_pipelines.domain.prompt_diff import Prompt
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
    from collections.abc import Mapping

    import polars as pl

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
        candidate: It as a candidate; None for declared rewrites.
    """

    origin: str
    prompt: AdaptedPrompt
    part: Mapping[str, Any] = MappingProxyType({})
    candidate: Candidate | None = None


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


def declared_entry(items: TemplateItems, adaptation: PromptAdaptation) -> Entry | None:
    """Return the declared rewrites as an entry, where they fit every open prompt of the template."""
    if not adaptation.rewrites:
        return None
    prompt = declared_prompt(adaptation)
    logged = [json.loads(each) for part in items[1:] for each in part.rows["source_prompt"]]
    if any(fitting_rewrite(prompt.transformation, messages) is None for messages in logged):
        return None
    part = rewrites_part(items.template, prompt)
    return Entry("declared", found_prompt([part], profile=None, description=""), part)


def chosen_entry(items: TemplateItems, entry: Entry, *, profile: TargetProfile) -> Chosen:
    """Return what an entry changes for a template, and why."""
    configs = items.search.rows["model_config"].to_list()
    if entry.candidate is not None:
        asked = way_of(items.search.rows, found_prompt([entry.part], profile=None, description=""))
        tokens = [prompt_bound(entry.part, asked(item), profile) for item in range(len(configs))]
        contract = entry.part.get("contract")
        return chosen_of(
            items.template, entry.candidate, configs=configs, profile=profile, contract=contract, prompt_tokens=tokens
        )
    number = fitting_rewrite(entry.part, json.loads(items.search.rows["source_prompt"][0]))
    before = [each.model_dump() for each in unchanged(items.template).messages]
    return Chosen(items.template, None, Prompt(before, {}), Prompt(entry.part["rewrites"][number]["messages"], {}))


def way_of(rows: pl.DataFrame, prompt: AdaptedPrompt) -> Way:
    """Return how the items are asked with a prompt."""
    logged = calls_of(rows)

    def ask(item: int) -> Call:
        return apply(prompt, *logged[item])

    return ask
