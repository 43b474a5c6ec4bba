"""A template's slots stand once, in the system or the user text, and a logged prompt gives back what filled them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from anven_pipelines.domain.prompt_mining import fit
from anven_pipelines.domain.prompt_template import PromptTemplate, unchanged

TEMPLATE = PromptTemplate(
    name="t", system="Today is {date}, {not_a_slot}.", user="C: {c}\nQ: {q}", slots=("date", "c", "q")
)


def slots_of(messages: list[dict[str, Any]]) -> dict[str, str] | None:
    fitted = fit(TEMPLATE, messages)
    return None if fitted is None else fitted.slots


def test_a_slot_may_stand_in_the_system_text() -> None:
    slots = {"date": "1 May", "c": "a", "q": "b"}
    messages = unchanged(TEMPLATE).asked(slots)
    assert messages[0]["content"] == "Today is 1 May, {not_a_slot}."
    assert slots_of(messages) == slots


@pytest.mark.parametrize(
    ("system", "user", "slots"),
    [
        ("{a}", "{a}", ("a",)),
        (None, "{a} {a}", ("a",)),
        ("{a}", "text", ("a", "b")),
        (None, "{a}", ("a", "a")),
        ("text", "text", ("a",)),
    ],
)
def test_a_slot_that_does_not_stand_once_is_refused(system: str | None, user: str, slots: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="each slot must stand once in system and user"):
        PromptTemplate(name="t", system=system, user=user, slots=slots)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [("system", "Today is 1 May, {not_a_slot}.")],
        [("user", "C: a\nQ: b")],
        [("system", "Today was 1 May, {not_a_slot}."), ("user", "C: a\nQ: b")],
        [("system", "Today is 1 May, {not_a_slot}."), ("user", "C: a")],
        [("system", "Today is 1 May, {not_a_slot}."), ("system", "x"), ("user", "C: a\nQ: b")],
    ],
)
def test_a_prompt_of_another_template_fills_no_slots(messages: list[tuple[str, str]]) -> None:
    assert slots_of([{"role": role, "content": text} for role, text in messages]) is None


@given(st.text(), st.text(st.characters(exclude_characters="\n")), st.text())
def test_what_was_filled_in_is_found_again(date: str, context: str, question: str) -> None:
    slots = {"date": date, "c": context, "q": question}
    assert slots_of(unchanged(TEMPLATE).asked(slots)) == slots


def test_a_copy_with_other_content_has_a_version_of_its_own() -> None:
    known = TEMPLATE.version, TEMPLATE.pattern
    bound = TEMPLATE.model_copy(update={"policies": ("Today is",)})
    assert bound.version == PromptTemplate.model_validate(bound.model_dump()).version != known[0]
    assert TEMPLATE.model_copy(update={"name": "other"}).version == known[0] == TEMPLATE.version
    warmer = unchanged(TEMPLATE)
    assert warmer.version != warmer.model_copy(update={"params": {"temperature": 1}}).version
