"""The two prompt styles: what a legacy prompt was made of can be read from it, and every prompt fits the models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import regex  # type: ignore[import-untyped]  # it ships no types
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.nano.prompts import LEGACY_PATTERN, anven_messages, legacy_messages
from anven_pipelines.nano.tasks import Item, generate

if TYPE_CHECKING:
    from collections.abc import Callable

    from anven_pipelines.nano.tasks import Split

SPLITS: tuple[Split, ...] = ("train", "golden", "adversarial")


@pytest.mark.parametrize("split", SPLITS)
def test_a_legacy_user_turn_gives_back_context_and_question(split: Split) -> None:
    for item in generate(split, 120, seed=1):
        slots = re.search(LEGACY_PATTERN, legacy_messages(item)[1]["content"])
        assert slots is not None
        assert slots.groupdict() == {"context": item.context, "question": item.question}


@given(context=st.text(max_size=60), question=st.text(max_size=60))
def test_any_text_comes_back_unless_the_context_itself_looks_like_a_question(context: str, question: str) -> None:
    item = Item("id", "answer", context.replace("\nQuestion: ", ""), question, "")

    turn = legacy_messages(item)[1]["content"]

    for search in (re.search, regex.search):
        slots = search(LEGACY_PATTERN, turn)
        assert slots is not None
        assert slots.groupdict() == {"context": item.context, "question": item.question}


@pytest.mark.parametrize("style", [legacy_messages, anven_messages])
def test_slot_names_inside_a_text_stay_text(style: Callable[[Item], list[dict[str, str]]]) -> None:
    item = Item("id", "answer", "The {question} of {context}", "Is {context} a {question}?", "")

    turn = style(item)[1]["content"]

    assert "The {question} of {context}" in turn
    assert "Is {context} a {question}?" in turn


def test_a_legacy_prompt_has_one_fixed_long_instruction_for_each_task() -> None:
    items = generate("golden", 60, seed=1)
    systems = {(item.task, legacy_messages(item)[0]["content"]) for item in items}

    assert len(systems) == 3
    assert all(len(system) > 400 for _, system in systems)


def test_an_anven_prompt_is_short_and_names_what_it_holds() -> None:
    for item in generate("golden", 60, seed=1):
        system, user = anven_messages(item)
        assert (system["role"], user["role"]) == ("system", "user")
        assert len(system["content"]) < 60
        assert user["content"].startswith("### ")
        assert item.context in user["content"]
        assert user["content"].endswith(item.question)
