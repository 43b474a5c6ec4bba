"""An adapted prompt says what it does, and its version pins it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompts import AdaptedPrompt, apply, carry_over, declared_prompt, preview, version_of
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
    shown = preview(prompt, [asked("Context: a\nQuestion: b"), logged], may_be_shown=[True, True])
    assert shown.unfit == 1
    assert shown.message.startswith("1 of 2 golden prompts fit a rewrite; the first without one:")
    assert [count for count, *_ in shown.examples] == [1]
    sealed = preview(prompt, [asked("Context: a\nQuestion: b"), logged], may_be_shown=[False, False])
    assert (sealed.unfit, sealed.examples) == (1, []), "a sealed prompt is counted and not quoted"
    assert sealed.message.endswith("the first without one: sealed, as all of them are")


def test_a_pattern_that_never_ends_is_an_error_and_not_a_hang() -> None:
    slow = {"rewrites": [{"user": "(a|aa)+b", "messages": [{"role": "user", "content": "x"}]}]}
    with pytest.raises(InvalidInput, match="took longer"):
        apply(declared_prompt(PromptAdaptation.model_validate(slow)), asked("a" * 400 + "c"))


def test_nothing_declared_is_the_identity() -> None:
    assert declared_prompt(PromptAdaptation()) == carry_over()
    assert preview(carry_over(), [[], []], may_be_shown=[True, True]).message == "2 prompts are carried over unchanged"


def test_another_rewrite_is_another_version() -> None:
    fewer = PromptAdaptation(rewrites=ADAPTATION.rewrites[:1])
    assert declared_prompt(fewer).version != declared_prompt(ADAPTATION).version
    assert AdaptedPrompt.model_validate_json(declared_prompt(fewer).model_dump_json()) == declared_prompt(fewer)


def test_a_slot_that_would_be_lost_is_refused() -> None:
    lost = {"user": "(?P<a>.*) (?P<b>.*)", "messages": [{"role": "user", "content": "{a}"}]}
    with pytest.raises(ValidationError, match="the slots b of user must stand in messages"):
        PromptAdaptation.model_validate({"rewrites": [lost]})
