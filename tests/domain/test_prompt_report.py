"""What a search spent is told with its origin: as a server counted it, or as computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from anven_pipelines.domain.prompt_changes import chosen_of
from anven_pipelines.domain.prompt_gain import Gain
from anven_pipelines.domain.prompt_report import Adaptation, candidate_prompts, spent_in_words
from anven_pipelines.domain.prompt_target import TargetProfile
from anven_pipelines.domain.prompt_template import PromptTemplate, unchanged
from anven_pipelines.domain.prompt_trial import Cost
from anven_pipelines.domain.prompts import candidate_part, carry_over, found_prompt

COST = Cost(4, 40, 0.5, 9.0, rewriting_calls=2, rewriting_tokens=30, rewriting_usd=0.25)
OTHER = PromptTemplate(name="other", user="Sort: {q}", slots=("q",), contract={"type": "object", "required": ["kind"]})
BYTES = "(bytes where the server counts no tokens)"


def adaptation(**cost: Any) -> Adaptation:
    return Adaptation(
        prompt=carry_over(),
        heats=(),
        gains=(),
        guard=None,
        safety=None,
        cost=COST._replace(**cost),
        level=0.05,
        uncovered=0,
        reasons=(),
        chosen=(),
    )


@pytest.mark.parametrize(
    ("computed", "names", "words"),
    [
        (
            {},
            {"search_tokens", "search_usd", "rewriting_usd"},
            "4 answers of the target, 40 tokens, 0.5000 USD; 2 of the model that rewrites, 30 tokens, 0.2500 USD, 9 s",
        ),
        (
            {"computed": True},
            {"search_tokens_computed", "search_usd_computed", "rewriting_usd"},
            (
                f"4 answers of the target, at most 40 tokens, 0.5000 USD {BYTES}; "
                "2 of the model that rewrites, 30 tokens, 0.2500 USD, 9 s"
            ),
        ),
        (
            {"rewriting_computed": True},
            {"search_tokens", "search_usd", "rewriting_usd_computed"},
            (
                "4 answers of the target, 40 tokens, 0.5000 USD; "
                f"2 of the model that rewrites, at most 30 tokens, 0.2500 USD {BYTES}, 9 s"
            ),
        ),
    ],
    ids=["counted", "the target's computed", "the rewriting model's computed"],
)
def test_what_was_computed_is_told_as_computed(computed: dict[str, bool], names: set[str], words: str) -> None:
    told = adaptation(**computed)
    assert {name for name in told.metrics() if "_tokens" in name or "_usd" in name} == names
    assert told.spent() == words
    assert spent_in_words(told.to_json()["cost"]) == words.removesuffix(", 9 s")


def test_a_report_of_an_earlier_version_is_still_read() -> None:
    cost = adaptation(computed=True).to_json()["cost"]
    earlier = {name: value for name, value in cost.items() if not name.endswith("computed")}
    assert spent_in_words(earlier).startswith("4 answers of the target, 40 tokens, 0.5000 USD; ")


def test_a_candidate_has_the_contract_that_the_target_is_held_to() -> None:
    """In JSON mode the calls demand any object, and the target gets the schema of the declared fields."""
    schema = {"type": "object", "properties": {"answer": {}}, "required": ["answer"]}
    template = PromptTemplate(name="desk", user="Q: {q}", slots=("q",), contract={"type": "object"})
    parts = [
        candidate_part(template, unchanged(template), form={"contract": schema}),
        candidate_part(OTHER, unchanged(OTHER)),
    ]
    found = replace(
        adaptation(),
        prompt=found_prompt(parts, profile=TargetProfile(), description=""),
        chosen=tuple(
            chosen_of(each, unchanged(each), configs=["{}"], profile=TargetProfile()) for each in (template, OTHER)
        ),
        gains=tuple(Gain(name, 40, 0.5, 0.9, None, 0.05, proven=True, reason="") for name in ("desk", "other")),
    )
    assert [each.contract for each in candidate_prompts(found, "support", inputs={})] == [schema, OTHER.contract]
