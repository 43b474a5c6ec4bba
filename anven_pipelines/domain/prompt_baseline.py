"""The legacy prompts of a workload as versioned templates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import polars as pl

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompt_diff import folded
from anven_pipelines.domain.prompt_mining import mine
from anven_pipelines.domain.prompt_template import PromptTemplate, TemplateMessage, unchanged
from anven_pipelines.domain.tracking import RegisteredPrompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.spec_prompt import DeclaredTemplate

_TABLE: Final = pl.Schema(
    {
        "template": pl.String,
        "calls": pl.Int64,
        "slots": pl.String,
        "own characters": pl.Int64,
        "tools": pl.Int64,
        "contract": pl.Boolean,
        "version": pl.String,
    }
)


@dataclass(frozen=True)
class Baseline:
    """The templates of a workload's golden prompts.

    Attributes:
        templates: With the policies that bind them.
        calls: Golden prompts of each template, by its name.
        uncovered: Reason to the number of golden prompts without a template.
        proposed: By template, sentences that look like policy; they bind where `prompt.policies` is `found`.
    """

    templates: tuple[PromptTemplate, ...]
    calls: Mapping[str, int]
    uncovered: Mapping[str, int]
    proposed: Mapping[str, tuple[str, ...]]

    def to_json(self) -> str:
        """Return canonical JSON."""
        return canonical_json(
            {
                "templates": [{**each.model_dump(mode="json"), "version": each.version} for each in self.templates],
                "calls": dict(self.calls),
                "uncovered": dict(self.uncovered),
                "proposed": {name: list(sentences) for name, sentences in self.proposed.items()},
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Baseline:
        """Read what `to_json` wrote."""
        read = json.loads(text)
        return cls(
            templates=tuple(
                PromptTemplate.model_validate({name: value for name, value in each.items() if name != "version"})
                for each in read["templates"]
            ),
            calls=read["calls"],
            uncovered=read["uncovered"],
            proposed={name: tuple(sentences) for name, sentences in read["proposed"].items()},
        )

    def coverage(self) -> str:
        """Say how many prompts have a template, and why others have none."""
        covered, left = sum(self.calls.values()), sum(self.uncovered.values())
        why = "; ".join(f"{count}: {reason}" for reason, count in self.uncovered.items())
        return f"{covered} of {covered + left} golden prompts have one of {len(self.templates)} templates" + (
            f"; the others are asked as they are ({why})" if left else ""
        )

    def table(self) -> pl.DataFrame:
        """Return a row for each template."""
        return pl.DataFrame(
            [
                (
                    each.name,
                    self.calls.get(each.name, 0),
                    ", ".join(each.slots),
                    sum(len(message.content) for message in unchanged(each).messages),
                    len(each.tools),
                    each.contract is not None,
                    each.version[:12],
                )
                for each in self.templates
            ],
            schema=_TABLE,
            orient="row",
        )

    def markdown(self) -> str:
        """Return the templates' texts for a person."""
        shown = []
        for each in self.templates:
            turns = "\n".join(f"[{message.role}]\n{message.content}" for message in unchanged(each).messages)
            shown.append(f"**{each.name}**\n\n```text\n{folded(turns)}\n```")
        return "\n\n".join(shown) or "no template was found"


def baseline_of(
    golden: pl.DataFrame, *, policies: Literal["found"] | Sequence[str], declared: Sequence[DeclaredTemplate] = ()
) -> Baseline:
    """Find the templates of the golden prompts; answers play no part in it.

    Args:
        golden: GOLDEN rows, sealed ones too: each of them is asked.
        policies: Sentences that must stay; each binds the templates in which it stands. `found`: those that look like
            policy.
        declared: Templates that are known; a prompt that fits one belongs to the first of them.

    Raises:
        InvalidInput: a policy stands in no template, or a declared template is that of no prompt.
    """
    known = [_template(each) for each in declared]
    found = mine(golden.select("id", "application", "source_prompt", "model_config"), declared=known)
    counted = dict(sorted(found.calls.drop_nulls("template").group_by("template").len().iter_rows()))
    _require_calls(known, counted, golden.height)
    wanted = {
        each.name: found.proposed.get(each.name, ()) if policies == "found" else policies for each in found.templates
    }
    bound = [
        each.model_copy(update={"policies": tuple(policy for policy in wanted[each.name] if _stands_in(policy, each))})
        for each in found.templates
    ]
    if policies != "found" and (
        lost := [policy for policy in policies if not any(policy in each.policies for each in bound)]
    ):
        message = (
            f"prompt.policies: {lost[0]!r} stands in none of the {len(bound)} prompts that were found in the logs; "
            "a sentence as it is written there is needed"
        )
        raise InvalidInput(message)
    return Baseline(
        templates=tuple(bound),
        calls=counted,
        uncovered=found.uncovered,
        proposed=found.proposed,
    )


def legacy_prompts(baseline: Baseline, workload: str, *, golden: str) -> list[RegisteredPrompt]:
    """Return the legacy prompts for the prompt registry; they serve production until another one does."""
    return [
        RegisteredPrompt(
            name=f"{workload}.{each.name}",
            version=each.version,
            messages=[message.model_dump() for message in unchanged(each).messages],
            slots=list(each.slots),
            note=f"as found in {baseline.calls.get(each.name, 0)} golden prompts",
            tags={"anven.golden_dataset": golden},
            aliases=["legacy"],
            first_aliases=["production"],
            tools=list(each.tools),
            contract=each.contract,
            policies=list(each.policies),
        )
        for each in baseline.templates
    ]


def _template(declared: DeclaredTemplate) -> PromptTemplate:
    return PromptTemplate(
        name=declared.name,
        system=declared.system,
        user=declared.user,
        slots=declared.found_slots,
        examples=tuple(TemplateMessage(role=each.role, content=each.content) for each in declared.examples),
    )


def _require_calls(known: Sequence[PromptTemplate], calls: Mapping[str, int], golden: int) -> None:
    """Refuse a declared template without a call: a slip in its text would have its calls taken apart some other way."""
    for number, each in enumerate(known):
        if each.name not in calls:
            message = (
                f"prompt.templates[{number}] ({each.name}) is the template of none of the {golden} golden prompts; its "
                "text as it is logged is needed, to the last space and line break (YAML's `|-` adds none at the end), "
                "and before any template that takes its calls; leave it out where no call uses it"
            )
            raise InvalidInput(message)


def _stands_in(policy: str, template: PromptTemplate) -> bool:
    wanted = " ".join(policy.split())
    return any(wanted in " ".join(text.split()) for text in (template.system or "", template.user))
