"""A candidate that lost something which must stay is refused, and told what it lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.prompt_constraints import broken, own_characters
from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate, TemplateMessage, unchanged

TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "find", "parameters": {"type": "array"}}}
CONTRACT = {"type": "object", "required": ["a"]}
POLICY = "Never share private data."
SYSTEM = f"You help with {{x}}. {POLICY} Today is {{date}}."
TEMPLATE = PromptTemplate(
    name="shop",
    system=SYSTEM,
    user="C: {context}\nQ: {question}",
    slots=("date", "context", "question"),
    tools=(TOOL,),
    contract=CONTRACT,
    policies=(POLICY,),
)
USER = ("user", TEMPLATE.user)


def asked(*messages: tuple[str, str], template: str = "shop", **params: Any) -> Candidate:
    made = tuple(TemplateMessage.model_validate({"role": role, "content": text}) for role, text in messages)
    return Candidate(template=template, messages=made, params=params)


def schema(contract: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": contract}}


def test_the_unchanged_prompt_breaks_nothing() -> None:
    assert broken(unchanged(TEMPLATE), TEMPLATE) is None


@pytest.mark.parametrize(
    "candidate",
    [
        asked(
            ("system", "Be brief. Never  share\nprivate data. {date}"), ("user", "{question}\n{context}\n{question}")
        ),
        asked(("user", f"{POLICY} {{date}} {{context}} {{question}}")),
        asked(("system", SYSTEM), ("user", "C: a {b}\nQ: c"), ("assistant", "d {e}"), USER),
        asked(("system", SYSTEM), USER, tools=[TOOL], tool_choice="auto"),
        asked(("system", SYSTEM), USER, response_format=schema(CONTRACT), temperature=None),
    ],
)
def test_what_keeps_everything_may_be_asked(candidate: Candidate) -> None:
    assert broken(candidate, TEMPLATE, most_characters=200) is None


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (asked(("system", SYSTEM), USER, template="desk"), "stands for 'desk'; one for 'shop' is needed"),
        (asked(("system", SYSTEM), ("user", "{context}")), "{question} are missing"),
        (asked(("system", POLICY), USER), "{date} are missing"),
        (asked(("system", SYSTEM), USER, ("assistant", "ok"), ("user", "go")), "{context}, {question} are missing"),
        (
            asked(("system", SYSTEM), ("user", "{context} {question} {tone}")),
            "{tone} are unknown; a call fills {date}, {context}, {question} only",
        ),
        (asked(("system", SYSTEM), ("user", "Q: {question}"), ("assistant", "d"), USER), "stand in an example"),
        (asked(USER, ("system", SYSTEM)), "roles are user, system"),
        (asked(("system", SYSTEM), ("system", SYSTEM), USER), "roles are system, system, user"),
        (asked(("system", SYSTEM), USER, USER), "user and assistant in turn"),
        (asked(("system", SYSTEM), ("assistant", "a"), USER), "user and assistant in turn"),
        (asked(("system", SYSTEM), USER, ("assistant", "a")), "the user last"),
        (asked(("system", SYSTEM)), "the user last"),
        (asked(("system", SYSTEM), USER, tools=[OTHER]), "with their schemas unchanged"),
        (asked(("system", SYSTEM), USER, tools=[]), "params.tools has none; the template's tools find"),
        (asked(("system", SYSTEM), USER, tools=None), "params.tools has none"),
        (asked(("system", SYSTEM), USER, tool_choice="none"), "must stay open"),
        (asked(("system", SYSTEM), USER, functions=[]), "params.functions is set"),
        (asked(("system", SYSTEM), USER, response_format=None), "response_format is null"),
        (asked(("system", SYSTEM), USER, response_format={"type": "json_object"}), "the template's contract"),
        (asked(("system", SYSTEM), USER, response_format=schema({"type": "object"})), "the template's contract"),
        (asked(("system", "{date}"), USER), "'Never share private data.' is missing"),
        (asked(("system", "Never share private  info. {date}"), USER), "word for word"),
        (
            asked(("system", "{date}"), ("user", POLICY), ("assistant", "ok"), USER),
            "must stand word for word in the system or the last user message",
        ),
        (asked(("system", SYSTEM + "x" * 200), USER), "characters; at most 200 are allowed"),
    ],
)
def test_what_lost_something_is_told_so(candidate: Candidate, reason: str) -> None:
    assert reason in (broken(candidate, TEMPLATE, most_characters=200) or "")


def test_a_policy_is_no_part_of_a_longer_word() -> None:
    template = PromptTemplate(name="shop", user="Never lie {a}", slots=("a",), policies=("Never lie",))
    assert broken(asked(("user", "Never lied {a}")), template) is not None
    assert broken(asked(("user", "{a} Never lie!")), template) is None


@pytest.mark.parametrize("wanted", [schema({}), {"type": "json_object"}, None])
def test_where_there_was_no_contract_any_may_be_added(wanted: Any) -> None:
    template = PromptTemplate(name="shop", user="{a}", slots=("a",))
    assert broken(asked(("user", "{a}"), response_format=wanted), template) is None


def test_json_mode_is_a_contract_of_any_object() -> None:
    template = PromptTemplate(name="shop", user="{a}", slots=("a",), contract={"type": "object"})
    assert broken(asked(("user", "{a}"), response_format={"type": "json_object"}), template) is None


def test_tools_may_not_be_added() -> None:
    template = PromptTemplate(name="shop", user="{a}", slots=("a",))
    assert "template's tools none" in (broken(asked(("user", "{a}"), tools=[TOOL]), template) or "")


def test_slots_count_for_nothing_in_the_length() -> None:
    assert own_characters(asked(("system", "abc"), ("user", "{a}: {b}"))) == 5


words = st.text(st.sampled_from("ab {}\n"), max_size=12)


@given(words, words)
def test_the_unchanged_prompt_always_may_be_asked(system: str, text: str) -> None:
    template = PromptTemplate(
        name="t", system=f"{system} Be safe.", user=f"{text}\n{{q}}", slots=("q",), policies=("Be safe.",)
    )
    assert broken(unchanged(template), template) is None
