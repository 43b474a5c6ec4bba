"""An adapted prompt says what it does, and its version pins it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompt_mining import fit
from anven_pipelines.domain.prompt_report import served_versions
from anven_pipelines.domain.prompt_target import TargetProfile
from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate, TemplateMessage, unchanged
from anven_pipelines.domain.prompts import (
    AdaptedPrompt,
    Call,
    apply,
    as_logged_part,
    candidate_part,
    carry_over,
    declared_prompt,
    found_prompt,
    parts_in_order,
    preview,
    rewrites_part,
    version_of,
)
from anven_pipelines.spec_prompt import PromptAdaptation

text = st.text(max_size=20)
part = st.fixed_dictionaries({"type": st.just("text"), "text": text})
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]), "content": text | st.lists(part)}
)


@given(st.lists(message))
def test_the_identity_changes_no_message(messages: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(messages)
    assert apply(carry_over(), messages).messages == before
    assert messages == before


def test_the_answer_is_a_list_of_its_own() -> None:
    messages = [{"role": "user", "content": "hello"}]
    apply(carry_over(), messages).messages.append({"role": "user", "content": "more"})
    assert len(messages) == 1


def test_the_identity_says_that_nothing_was_adapted() -> None:
    prompt = carry_over()
    assert prompt.strategy == "identity"
    assert prompt.transformation == {}
    assert "unchanged" in prompt.description


def test_a_prompt_survives_being_stored() -> None:
    prompt = carry_over()
    assert AdaptedPrompt.model_validate_json(prompt.model_dump_json()) == prompt


def test_the_version_depends_on_what_decides_the_messages_alone() -> None:
    prompt = carry_over()
    reworded = AdaptedPrompt(**{**prompt.model_dump(), "description": "Other words."})
    assert reworded.version == prompt.version
    assert len({version_of("identity", {}), version_of("identity", {"a": 1}), version_of("sections", {})}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0" * 64}, "materialise adapted_prompt again"),
        ({"transformation": {"prefix": "x"}}, "materialise adapted_prompt again"),
        ({"strategy": "magic"}, "'magic' is unknown; one of identity, rewrite"),
        ({"gain": 0.2}, "Extra inputs"),
    ],
)
def test_a_prompt_that_is_not_what_it_says_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdaptedPrompt(**{**carry_over().model_dump(), **change})


def test_a_prompt_cannot_be_edited() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        carry_over().strategy = "other"  # type: ignore[misc]  # the point of the test


ADAPTATION = PromptAdaptation.model_validate(
    {
        "rewrites": [
            {
                "system": "sort",
                "user": "Message: (?P<text>.*)",
                "messages": [{"role": "user", "content": "Sort {text} as {kind}."}],
            },
            {
                "user": "(?s)Context: (?P<context>.*?)\\nQuestion: (?P<question>.*)",
                "messages": [
                    {"role": "system", "content": "Answer from the notes."},
                    {"role": "user", "content": "{context}\\n---\\n{question}"},
                ],
            },
        ]
    }
)


def asked(user: str, system: str | None = None) -> list[dict[str, Any]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": user}]


@pytest.mark.parametrize(
    ("logged", "sent"),
    [
        (
            asked("Context: a\nb\nQuestion: why {context}?", "long policies"),
            [
                {"role": "system", "content": "Answer from the notes."},
                {"role": "user", "content": "a\nb\\n---\\nwhy {context}?"},
            ],
        ),
        (asked("Message: hi", "please sort"), [{"role": "user", "content": "Sort hi as {kind}."}]),
    ],
)
def test_the_first_fitting_rewrite_writes_the_prompt_anew(
    logged: list[dict[str, Any]], sent: list[dict[str, Any]]
) -> None:
    assert apply(declared_prompt(ADAPTATION), logged).messages == sent


@pytest.mark.parametrize(
    "logged",
    [
        asked("Message: hi", "other policies"),
        asked("hello"),
        [{"role": "user", "content": [{"type": "text", "text": "Message: hi"}]}],
        [*asked("Context: a\nQuestion: b"), {"role": "assistant", "content": "c"}, *asked("Context: a\nQuestion: b")],
        [],
    ],
)
def test_a_prompt_that_no_rewrite_fits_is_refused_and_counted(logged: list[dict[str, Any]]) -> None:
    prompt = declared_prompt(ADAPTATION)
    with pytest.raises(InvalidInput, match="no rewrite of the section prompt fits"):
        apply(prompt, logged)
    calls = [Call(asked("Context: a\nQuestion: b"), {}), Call(logged, {})]
    shown = preview(prompt, calls, may_be_shown=[True, True])
    assert shown.unfit == 1
    assert shown.message.startswith("1 of 2 golden prompts fit a rewrite; the first without one:")
    assert [count for count, *_ in shown.examples] == [1]
    sealed = preview(prompt, calls, may_be_shown=[False, False])
    assert (sealed.unfit, sealed.examples) == (1, []), "a sealed prompt is counted and not quoted"
    assert sealed.message.endswith("the first without one: sealed, as all of them are")


def test_a_slot_has_any_name_that_a_group_may_have() -> None:
    named = {"user": "Größe: (?P<größe>.*)", "messages": [{"role": "user", "content": "{größe} {1} {}"}]}
    adaptation = PromptAdaptation.model_validate({"rewrites": [named]})
    assert apply(declared_prompt(adaptation), asked("Größe: XL")).messages == asked("XL {1} {}")
    template = PromptTemplate(name="t", user="Größe: {größe}", slots=("größe",))
    fitted = fit(template, asked("Größe: XL"))
    assert fitted is not None
    assert unchanged(template).asked(fitted.slots) == asked("Größe: XL")


def test_a_pattern_that_never_ends_is_an_error_and_not_a_hang() -> None:
    slow = {"rewrites": [{"user": "(a|aa)+b", "messages": [{"role": "user", "content": "x"}]}]}
    with pytest.raises(InvalidInput, match="took longer"):
        apply(declared_prompt(PromptAdaptation.model_validate(slow)), asked("a" * 400 + "c"))


def test_nothing_declared_is_the_identity() -> None:
    assert declared_prompt(PromptAdaptation()) == carry_over()
    assert (
        preview(carry_over(), [Call([], {})] * 2, may_be_shown=[True, True]).message
        == "2 prompts are carried over unchanged"
    )


def test_another_rewrite_is_another_version() -> None:
    fewer = PromptAdaptation(rewrites=ADAPTATION.rewrites[:1])
    assert declared_prompt(fewer).version != declared_prompt(ADAPTATION).version
    assert AdaptedPrompt.model_validate_json(declared_prompt(fewer).model_dump_json()) == declared_prompt(fewer)


def test_a_rewrite_lays_its_parameters_over_those_of_the_call() -> None:
    with_params = ADAPTATION.rewrites[1].model_copy(update={"params": {"max_tokens": 9, "stop": None}})
    prompt = declared_prompt(PromptAdaptation(rewrites=[with_params]))
    call = apply(prompt, asked("Context: a\nQuestion: why?"), {"stop": ["x"], "temperature": 0})
    assert call.params == {"stop": None, "temperature": 0, "max_tokens": 9}
    without = declared_prompt(PromptAdaptation(rewrites=ADAPTATION.rewrites[1:]))
    assert prompt.version != without.version
    assert "params" not in without.transformation["rewrites"][0], "its version is that of releases without parameters"


def test_a_slot_that_would_be_lost_is_refused() -> None:
    lost = {"user": "(?P<a>.*) (?P<b>.*)", "messages": [{"role": "user", "content": "{a}"}]}
    with pytest.raises(ValidationError, match="the slots b of user must stand in messages"):
        PromptAdaptation.model_validate({"rewrites": [lost]})


DESK = PromptTemplate(name="desk", system="Be brief.", user="Question: {question}", slots=("question",))
ROUTER = PromptTemplate(name="router", user="Sort: {text}", slots=("text",))
SHORT = Candidate(
    template="desk",
    messages=(TemplateMessage(role="user", content="Q: {question}\nA:"),),
    params={"temperature": None, "max_tokens": 20},
    moves={"layout": "short"},
    origin="racing",
)
LEGACY_TOOLS = {"functions": [{"name": "look_up", "parameters": {"type": "object"}}]}


def found(*parts: Any, profile: TargetProfile | None = None, description: str = "") -> AdaptedPrompt:
    return found_prompt(parts, profile=profile, description=description)


SHORTER = found(candidate_part(DESK, SHORT))


def test_a_found_prompt_asks_a_template_in_another_way() -> None:
    call = apply(SHORTER, asked("Question: why {question}?", "Be brief."), {"temperature": 0, "top_p": 1})
    assert call.messages == asked("Q: why {question}?\nA:")
    assert call.params == {"temperature": None, "top_p": 1, "max_tokens": 20}, (
        "null reaches the request, which drops it"
    )


@pytest.mark.parametrize(
    "logged", [asked("Question: why?"), asked("Question: why?", "Be long."), asked("Sort: this"), asked("hello"), []]
)
def test_prompts_of_no_found_template_stay_as_they_were_logged(logged: list[dict[str, Any]]) -> None:
    """Even in the target's form: nothing was proven of them."""
    prompt = found(candidate_part(DESK, SHORT), profile=TargetProfile())
    before = copy.deepcopy(logged)
    assert apply(prompt, logged, LEGACY_TOOLS) == (before, LEGACY_TOOLS)
    assert logged == before


def test_the_first_fitting_template_decides() -> None:
    anything = PromptTemplate(name="anything", system="Be brief.", user="{all}", slots=("all",))
    loud = Candidate(template="anything", messages=(TemplateMessage(role="user", content="{all}!"),))
    both = [candidate_part(DESK, SHORT), candidate_part(anything, loud)]
    prompt, turned = found(*both), found(*reversed(both))
    assert apply(prompt, asked("Question: why?", "Be brief.")).messages == asked("Q: why?\nA:")
    assert apply(prompt, asked("Hello", "Be brief.")).messages == asked("Hello!")
    assert apply(turned, asked("Question: why?", "Be brief.")).messages == asked("Question: why?!")


def test_a_call_of_a_template_that_stays_is_not_taken_by_one_behind_it_that_fits_it_too() -> None:
    anything = PromptTemplate(name="anything", user="{all}", slots=("all",))
    loud = Candidate(template="anything", messages=(TemplateMessage(role="user", content="{all}!"),))
    templates = [DESK, ROUTER, anything, ROUTER.model_copy(update={"name": "behind"})]
    parts = parts_in_order(templates, {"anything": candidate_part(anything, loud)})
    prompt = found(*parts, profile=TargetProfile(language="German"))
    sort, why = asked("Sort: this"), asked("Question: why?", "Be brief.")
    assert apply(prompt, sort, {"functions": []}) == (sort, {"functions": []}), "not even converted"
    assert apply(prompt, why).messages == why
    assert apply(prompt, asked("Hello")).messages[-1] == {"role": "user", "content": "Hello!"}
    assert list(served_versions(prompt)) == ["anything"]
    shown = preview(prompt, [Call(each, {}) for each in (sort, why, asked("Hello"))], may_be_shown=[True] * 3)
    assert shown.message == "1 of 3 golden prompts are adapted, 2 are asked as they were logged"
    assert [(count, "Hello!" in after) for count, _, after in shown.examples] == [(1, True)]
    assert AdaptedPrompt.model_validate_json(prompt.model_dump_json()) == prompt


def test_templates_behind_the_last_that_changes_are_no_part_of_the_prompt() -> None:
    desk = candidate_part(DESK, SHORT)
    assert parts_in_order([DESK, ROUTER], {"desk": desk}) == [desk]
    assert parts_in_order([ROUTER, DESK], {"desk": desk}) == [as_logged_part(ROUTER), desk]
    assert parts_in_order([DESK, ROUTER], {}) == []


def test_a_found_prompt_is_put_in_the_targets_form() -> None:
    desk = DESK.model_copy(update={"tools": ({"type": "function", "function": LEGACY_TOOLS["functions"][0]},)})
    structural = found(candidate_part(desk, unchanged(desk)), profile=TargetProfile(has_system_role=False))
    call = apply(structural, asked("Question: why?", "Be brief."), LEGACY_TOOLS)
    assert call.messages == asked("Be brief.\n\nQuestion: why?")
    [tool] = call.params["tools"]
    assert tool["function"]["name"] == "look_up"
    assert "functions" not in call.params
    assert apply(found(candidate_part(desk, unchanged(desk))), asked("Question: why?", "Be brief."), LEGACY_TOOLS) == (
        asked("Question: why?", "Be brief."),
        LEGACY_TOOLS,
    )


def test_calls_of_one_text_and_other_tools_or_another_output_format_stay_as_they_were_logged() -> None:
    """What is proven of calls without tools is not proven of those with some."""
    logged = asked("Question: why?", "Be brief.")
    for params in (LEGACY_TOOLS, {"response_format": {"type": "json_object"}}):
        assert apply(SHORTER, logged, params) == (logged, params)
    assert apply(SHORTER, logged, {"tools": [], "response_format": {"type": "text"}}).messages == asked("Q: why?\nA:")


def test_earlier_turns_stay_between_the_candidates_own_turns_and_the_last_question() -> None:
    examples = Candidate(
        template="desk",
        messages=(
            TemplateMessage(role="system", content="New."),
            TemplateMessage(role="user", content="Q: example?"),
            TemplateMessage(role="assistant", content="yes"),
            TemplateMessage(role="user", content="Q: {question}"),
        ),
    )
    call = [
        {"role": "user", "content": "Question: first?"},
        {"role": "assistant", "content": "Question: not a question", "name": "desk"},
        {"role": "user", "content": "of another form"},
        {"role": "assistant", "content": "one"},
    ]
    sent = apply(
        found(candidate_part(DESK, examples)),
        [*asked("Question: last?", "Be brief.")[:1], *call, *asked("Question: last?")],
    )
    assert [each["content"] for each in sent.messages] == [
        "New.",
        "Q: example?",
        "yes",
        "Q: first?",
        "Question: not a question",
        "of another form",
        "one",
        "Q: last?",
    ]
    assert sent.messages[4]["name"] == "desk"


def test_declared_rewrites_are_a_part_of_a_found_prompt_and_leave_what_they_do_not_fit() -> None:
    declared = declared_prompt(
        PromptAdaptation.model_validate(
            {"rewrites": [{"user": "Sort: (?P<text>.*)", "messages": [{"role": "user", "content": "Kind of {text}?"}]}]}
        )
    )
    prompt = found(rewrites_part(ROUTER, declared), candidate_part(DESK, SHORT), profile=TargetProfile())
    assert apply(prompt, asked("Sort: a letter")).messages == asked("Kind of a letter?")
    in_form = found(rewrites_part(ROUTER, declared), profile=TargetProfile(language="German"))
    assert apply(in_form, asked("Sort: a letter")).messages == [
        {"role": "system", "content": "Answer in German."},
        *asked("Kind of a letter?"),
    ]
    assert apply(prompt, asked("Question: why?", "Be brief.")).messages == asked("Q: why?\nA:")
    two_lines = asked("Sort: a letter\nof two lines")  # of the template, and not of the rewrite
    assert apply(prompt, two_lines).messages == two_lines


def test_the_version_of_a_found_prompt_is_the_digest_of_what_decides() -> None:
    other_words = SHORT.model_copy(update={"moves": {}, "origin": "gepa"})
    assert found(candidate_part(DESK, other_words), description="Other words.").version == SHORTER.version
    assert SHORTER.version == version_of("templates", SHORTER.transformation)
    others = {
        found(candidate_part(DESK, SHORT), profile=TargetProfile()).version,
        found(candidate_part(DESK, unchanged(DESK))).version,
        found(candidate_part(DESK.model_copy(update={"policies": ("Be brief.",)}), SHORT)).version,
        carry_over().version,
    }
    assert len(others | {SHORTER.version}) == 5
    assert AdaptedPrompt.model_validate_json(SHORTER.model_dump_json()) == SHORTER


def test_the_preview_of_a_found_prompt_counts_what_is_adapted_and_quotes_what_is_open() -> None:
    texts = [("Question: one?", "Be brief."), ("Sort: this",), ("Question: two?", "Be brief.")]
    logged = [Call(asked(*each), {}) for each in texts]
    shown = preview(SHORTER, logged, may_be_shown=[False, True, True])
    assert shown.unfit == 0
    assert shown.message == "2 of 3 golden prompts are adapted, 1 are asked as they were logged"
    [(count, before, after)] = shown.examples
    assert count == 2
    assert "Question: two?" in before
    assert "Q: two?" in after
    assert preview(SHORTER, logged, may_be_shown=[False] * 3).examples == []
