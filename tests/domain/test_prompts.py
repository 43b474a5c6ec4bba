"""An adapted prompt says what it does, and its version pins it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from anven_pipelines.domain.prompts import AdaptedPrompt, apply, carry_over, version_of

text = st.text(max_size=20)
part = st.fixed_dictionaries({"type": st.just("text"), "text": text})
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]), "content": text | st.lists(part)}
)


@given(st.lists(message))
def test_the_identity_changes_no_message(messages: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(messages)
    assert apply(carry_over(), messages) == before
    assert messages == before


def test_the_answer_is_a_list_of_its_own() -> None:
    messages = [{"role": "user", "content": "hello"}]
    apply(carry_over(), messages).append({"role": "user", "content": "more"})
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
        ({"strategy": "magic"}, "'magic' is unknown; one of identity"),
        ({"gain": 0.2}, "Extra inputs"),
    ],
)
def test_a_prompt_that_is_not_what_it_says_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdaptedPrompt(**{**carry_over().model_dump(), **change})


def test_a_prompt_cannot_be_edited() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        carry_over().strategy = "other"  # type: ignore[misc]  # the point of the test
