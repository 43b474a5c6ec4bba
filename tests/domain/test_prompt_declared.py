"""What a person writes by hand keeps what a found prompt must keep, however it cuts the calls."""

from __future__ import annotations

from typing import Any

import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompt_declared import (
    Declared,
    broken_declarations,
    declarations,
    declared_for,
    require_tested,
    unchecked_declarations,
)
from anven_pipelines.domain.prompt_template import PromptTemplate
from anven_pipelines.domain.prompts import Call
from anven_pipelines.spec import Contract
from anven_pipelines.spec_prompt import PromptAdaptation

POLICY = "Never share private data."
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
SHOP = PromptTemplate(
    name="shop",
    system=f"You help customers. {POLICY}",
    user="Context: {context}\nQuestion: {question}",
    slots=("context", "question"),
    tools=(TOOL,),
    contract={"type": "object"},
    policies=(POLICY,),
)
PARAMS = {"tools": [TOOL], "response_format": {"type": "json_object"}}
CUT = "(?s)Context: (?P<notes>.*?)\nQuestion: (?P<asked>.*)"
ASKED = "Notes: {notes}\n\n{asked}"


def call(at: int) -> Call:
    user = f"Context: Parcel {at} came on Monday.\nIt is red.\nQuestion: where is {at}?"
    return Call([{"role": "system", "content": SHOP.system}, {"role": "user", "content": user}], PARAMS)


CALLS = [call(at) for at in range(12)]


def rewrite(user: str = CUT, *, asked: str = ASKED, system: str = POLICY, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
    return {"user": user, "messages": messages} | fields


def declare(*rewrites: dict[str, Any], **fields: Any) -> PromptAdaptation:
    return PromptAdaptation.model_validate({"rewrites": list(rewrites)} | fields)


def declared(*rewrites: dict[str, Any], template: PromptTemplate = SHOP, **fields: Any) -> Declared:
    found = declared_for(template, CALLS, declare(*rewrites, **fields))
    assert isinstance(found, Declared), found
    return found


def test_a_rewrite_becomes_a_candidate_with_the_slots_of_its_template() -> None:
    found = declared(rewrite(params={"temperature": 0}))
    assert (found.slots, found.broken) == (SHOP.slots, None)
    assert found.candidate.messages[-1].content == "Notes: {context}\n\n{question}"
    assert (found.candidate.params, found.candidate.origin) == ({"temperature": 0}, "declared")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (rewrite(system="You help."), f"the policy {POLICY!r} is missing"),
        (rewrite("(?s).*\nQuestion: (?P<asked>.*)", asked="{asked}"), "the slots {context} are missing"),
        (rewrite(system=f"{POLICY} {'x' * 2_000}"), "characters; at most 2000 are allowed"),
        (rewrite(params={"tools": []}), "params.tools has none; the template's tools find"),
        (rewrite(params={"tool_choice": "none"}), "params.tool_choice is 'none'"),
        (rewrite(params={"response_format": {"type": "text"}}), "params.response_format is"),
        (rewrite(asked=f"{ASKED} {{today}}"), "the slots {today} are unknown"),
        (
            rewrite(messages=[{"role": "user", "content": f"{POLICY} {ASKED}"}, {"role": "assistant", "content": "I"}]),
            "the roles are user, assistant",
        ),
    ],
)
def test_a_rewrite_that_loses_what_must_stay_is_told_so(written: dict[str, Any], reason: str) -> None:
    broken = declared(written).broken
    assert broken is not None
    assert broken.startswith("prompt.rewrites[0]: ")
    assert reason in broken


def test_the_length_is_that_of_the_migration_file() -> None:
    long = rewrite(system=f"{POLICY} {'x' * 2_000}")
    assert declared(long, longest=50.0).broken is None


def test_what_a_call_filled_in_may_be_cut_and_may_not_be_left_out() -> None:
    in_pieces = r"(?s)Context: Parcel (?P<number>\d+) (?P<how>.*)\nQuestion: (?P<asked>.*)"
    found = declared(rewrite(in_pieces, asked="Of Parcel {number}, which {how}: {asked}"))
    assert (found.slots, found.broken) == (("number", "how", "asked"), None)
    assert "{number}" in found.candidate.messages[-1].content
    in_part = r"(?s)Context: (?P<first>[^\n]*).*\nQuestion: (?P<asked>.*)"
    broken = declared(rewrite(in_part, asked="{first} {asked}")).broken
    assert broken is not None
    assert "words that a call fills {context} with are left out" in broken
    assert "red" not in broken


def test_of_several_rewrites_for_one_prompt_each_must_keep_everything() -> None:
    short = r"(?s)Context: (?P<context>.*)\nQuestion: (?P<question>where is \d\?)"
    good, rest = rewrite(short, asked="{context} {question}"), rewrite()
    others = {"user": "Sort: (?P<text>.*)", "messages": [{"role": "user", "content": "{text}"}]}
    found = declared(others, good, rest)
    assert (found.slots, found.broken) == (("context", "question"), None)
    assert found.rewrites == tuple(declare(good, rest).rewrites), "the others serve no call of it"
    broken = declared(good, rewrite(system="You help.")).broken
    assert broken == (
        f"prompt.rewrites[1]: the policy {POLICY!r} is missing; it must stand word for word in the system or the last "
        "user message"
    )
    lost = declared(good, rewrite("(?s).*Question: (?P<asked>.*)", asked="{asked}")).broken
    assert lost is not None
    assert lost.startswith("prompt.rewrites[1]: the slots {context} are missing")


SHORT = r"(?s)Context: (?P<context>.*)\nQuestion: (?P<question>where is \d\?)"  # ten of the twelve


def test_rewrites_that_fit_some_calls_say_how_many_and_that_fit_none_are_for_others() -> None:
    assert declared(rewrite(SHORT, asked="{context} {question}")).refused == (
        "the declared rewrites are not asked: they fit 10 of 12 prompts, and all are needed, each by a rewrite that "
        "serves an open one"
    )
    assert declared(rewrite()).refused is None
    assert declared_for(SHOP, CALLS, declare(rewrite("Sort: (?P<text>.*)", asked="{text}"))) is None
    assert declared_for(SHOP, CALLS, PromptAdaptation()) is None


@pytest.mark.parametrize(
    ("mode", "served", "untold"),
    [
        (
            "tested",
            "a test asks (open, of the traffic, with a template): not asked, so not checked",
            "not asked, so not checked",
        ),
        ("declared", "has a template: not checked", "not checked"),
    ],
)
def test_rewrites_that_fit_some_calls_are_checked_on_these_and_the_others_are_told(
    mode: str, served: str, untold: str
) -> None:
    """Where nothing is tested, what fits a prompt without a template is asked, and nobody checks it."""
    some = rewrite(SHORT, asked="{context} {question}", system="You help.")
    adaptation = declare(some, SORT, mode=mode)
    found = declarations([SHOP], CALLS, adaptation, contract=Contract(json_object=False))
    [told] = broken_declarations(found)
    assert told.startswith(f"shop: prompt.rewrites[0]: the policy {POLICY!r} is missing")
    assert unchecked_declarations(found, adaptation) == [
        f"prompt.rewrites[1] serves no golden prompt that {served}",
        f"shop: 2 of 12 prompts fit no rewrite: {untold}",
    ]
    all_served = declare(rewrite())
    found = declarations([SHOP], CALLS, all_served, contract=Contract(json_object=False))
    assert unchecked_declarations(found, all_served) == []


def test_a_rewrite_that_a_test_asks_by_no_call_counts_for_nothing() -> None:
    some = rewrite(SHORT, asked="{context} {question}")
    asked = [at < 10 for at in range(len(CALLS))]
    tested, as_they_stand = declare(some, rewrite(system="You help."), mode="tested"), declare(some, rewrite())
    found = declared_for(SHOP, CALLS, tested, asked=asked)
    assert found is not None
    assert (found.rewrites, found.missed, found.broken) == (tuple(tested.rewrites[:1]), 2, None)
    assert found.refused is not None
    two_digits = r"(?s)Context: (?P<context>.*)\nQuestion: (?P<question>where is 1\d\?)"
    narrow = rewrite(two_digits, asked="{context} {question}")
    behind = declared_for(SHOP, CALLS, declare(narrow, rewrite(), mode="tested"), asked=asked)
    assert behind is not None
    assert (behind.missed, behind.refused) == (0, None), "the one behind it serves what it would have"
    declared = declared_for(SHOP, CALLS, as_they_stand, asked=asked)
    assert declared is not None
    assert declared.rewrites == tuple(as_they_stand.rewrites), "where nothing is tested all of them serve"


def breaks(templates: list[PromptTemplate], calls: list[Call], adaptation: PromptAdaptation, **contract: Any) -> Any:
    declared = declarations(templates, calls, adaptation, contract=Contract(**{"json_object": False} | contract))
    return broken_declarations(declared)


ROUTER = PromptTemplate(name="router", user="Sort: {text}", slots=("text",))
SORT = {"user": "Sort: (?P<text>.*)", "messages": [{"role": "user", "content": "{text}"}]}
LETTER = Call([{"role": "user", "content": "Sort: a letter"}], {})


def test_each_prompt_whose_rewrite_breaks_something_is_named() -> None:
    calls = [*CALLS, LETTER]
    [told] = breaks([SHOP, ROUTER], calls, declare(rewrite(system="You help."), SORT))
    assert told.startswith(f"shop: prompt.rewrites[0]: the policy {POLICY!r} is missing")
    assert breaks([SHOP, ROUTER], calls, declare(rewrite(), SORT)) == []
    assert breaks([SHOP, ROUTER], calls, PromptAdaptation()) == []


def test_a_call_belongs_to_the_first_template_that_it_fits_and_binds_no_other() -> None:
    anything = PromptTemplate(name="any", user="{text}", slots=("text",), policies=(POLICY,))
    assert breaks([ROUTER, anything], [LETTER], declare(SORT)) == []
    [told] = breaks([anything, ROUTER], [LETTER], declare(SORT))
    assert told.startswith("any: ")


def test_a_rewrite_may_demand_of_answers_what_the_migration_file_does_and_no_less() -> None:
    schema = {"type": "object", "properties": {"answer": {}}, "required": ["answer"]}
    asked = rewrite(params={"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}})
    assert breaks([SHOP], CALLS, declare(asked), json_object=True, required=["answer"]) == []
    [told] = breaks([SHOP], CALLS, declare(asked), json_object=True, required=["answer", "source"])
    assert "params.response_format is" in told


def test_rewrites_to_be_tested_that_fit_nothing_are_an_error_with_the_first_prompt_that_may_be_shown() -> None:
    slip = declare(rewrite("(?s)Kontext: (?P<notes>.*?)\nQuestion: (?P<asked>.*)"), mode="tested")
    calls = [LETTER, *CALLS]

    def require(adaptation: PromptAdaptation, *, shown: int) -> None:
        declared = declarations([SHOP], calls, adaptation, contract=Contract(json_object=False))
        require_tested(declared, calls, adaptation, may_be_shown=[at == shown for at in range(len(calls))])

    with pytest.raises(InvalidInput, match=r"0 of 13 golden prompts fit a rewrite; .*Parcel 3 came") as error:
        require(slip, shown=4)
    assert "Parcel 0" not in str(error.value), "sealed"
    require(slip.model_copy(update={"mode": "full"}), shown=4)
    require(declare(rewrite(), mode="tested"), shown=4)
    with pytest.raises(InvalidInput, match="no rewrite fits a prompt that has a template: 1 of 13 golden prompts"):
        require(declare(SORT, mode="tested"), shown=4)


def test_a_rewrite_fits_a_prompt_whose_system_message_is_the_developers() -> None:
    said = [Call([{**call.messages[0], "role": "developer"}, call.messages[1]], PARAMS) for call in CALLS]
    found = declared_for(SHOP, said, declare(rewrite()))
    assert isinstance(found, Declared), found
    assert (found.slots, found.broken) == (SHOP.slots, None)
