"""A logged request is put in the target's form, each change with its reason; one that fits stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.prompt_conversion import convert
from anven_pipelines.domain.prompt_diff import Prompt, diff, folded
from anven_pipelines.domain.prompt_parameters import PROVIDER_ONLY
from anven_pipelines.domain.prompt_target import TargetProfile

Messages = list[dict[str, Any]]
PLAIN = TargetProfile()
S, U, A = ({"role": role, "content": role[0]} for role in ("system", "user", "assistant"))
LATE = {"role": "system", "content": "late"}
CALL = {"name": "find", "arguments": "{}"}
TOOL_CALL = {"id": "call_1", "type": "function", "function": CALL}
FUNCTION = {"name": "find", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
SCHEMA = {"type": "object", "required": ["a"]}
STRUCTURED = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_a_request_that_fits_stays_as_it_is() -> None:
    messages = [S, U, A, said("user", [{"type": "text", "text": "look"}, IMAGE])]
    params = {
        "temperature": 0.2,
        "top_p": 1,
        "seed": 3,
        "stop": ["\n"],
        "n": 2,
        "logprobs": True,
        "max_tokens": 10,
        "frequency_penalty": 0.1,
        "tools": [TOOL],
        "tool_choice": "auto",
        "response_format": STRUCTURED,
        "top_k": 5,
        "stream": True,
    }
    converted = convert(messages, params, TargetProfile(needs_alternation=True, max_context=100), contract=SCHEMA)
    assert converted == (messages, params, ())


@pytest.mark.parametrize(
    ("messages", "profile", "expected", "reason"),
    [
        ([said("developer", "d"), U], {}, [said("system", "d"), U], "no role developer"),
        ([S, LATE, U], {}, [said("system", "s\n\nlate"), U], "one system message"),
        ([S, U, LATE, A, U], {}, [said("system", "s\n\nlate"), U, A, U], "one system message"),
        ([U, LATE], {}, [LATE, U], "at the front"),
        ([S, said("developer", "d"), U], {}, [said("system", "s\n\nd"), U], "one system message"),
        (
            [S, said("system", [{"type": "text", "text": "p"}]), U],
            {},
            [said("system", [{"type": "text", "text": "s"}, {"type": "text", "text": "p"}]), U],
            "one system message",
        ),
        ([U, U, A], {"needs_alternation": True}, [said("user", "u\n\nu"), A], "in turn"),
        ([S, U], {"has_system_role": False}, [said("user", "s\n\nu")], "no system tier"),
        ([S, A, U], {"has_system_role": False}, [said("user", "s"), A, U], "no system tier"),
        (
            [S, said("user", [IMAGE])],
            {"has_system_role": False},
            [said("user", [{"type": "text", "text": "s"}, IMAGE])],
            "no system tier",
        ),
        ([S, U], {"language": "German"}, [said("system", "s\n\nAnswer in German."), U], "another language"),
        ([U], {"scaffolding": "/no_think"}, [said("system", "/no_think"), U], "wants it in its prompt"),
        (
            [U],
            {"scaffolding": "/t", "has_system_role": False},
            [said("user", "/t\n\nu")],
            "wants it in its prompt",
        ),
        (
            [U, {**said("assistant", None), "function_call": CALL}, {**said("function", "r"), "name": "find"}],
            {},
            [
                U,
                {**said("assistant", None), "tool_calls": [TOOL_CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "r"},
            ],
            "older form of tools",
        ),
        (
            [U, {**said("assistant", "a"), "function_call": None}],
            {},
            [U, A],
            "it is empty",
        ),
        (
            [{**said("assistant", None), "tool_calls": [{**TOOL_CALL, "id": "call_1"}]}, {**said("function", "r")}],
            {},
            [
                {**said("assistant", None), "tool_calls": [TOOL_CALL]},
                {"role": "tool", "tool_call_id": "call_1_", "content": "r"},
            ],
            "names its call",
        ),
    ],
)
def test_messages_are_put_in_the_targets_form(
    messages: Messages, profile: dict[str, Any], expected: Messages, reason: str
) -> None:
    before = copy.deepcopy(messages)
    converted = convert(messages, {}, TargetProfile(**profile))
    assert converted.messages == expected
    assert reason in " ".join(change.reason for change in converted.changes)
    assert messages == before


@pytest.mark.parametrize(
    ("params", "profile", "expected", "reason"),
    [
        ({"functions": [FUNCTION]}, {}, {"tools": [TOOL]}, "older form"),
        ({"functions": [FUNCTION], "tools": [TOOL]}, {}, {"tools": [TOOL]}, "older form"),
        ({"functions": []}, {}, {}, "older form"),
        (
            {"functions": [FUNCTION], "function_call": {"name": "find"}},
            {},
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "find"}}},
            "older form",
        ),
        (
            {"functions": [FUNCTION], "function_call": "auto"},
            {},
            {"tools": [TOOL], "tool_choice": "auto"},
            "older form",
        ),
        ({"function_call": "none"}, {}, {}, "no tools to choose"),
        ({"tools": [TOOL], "tool_choice": "auto"}, {"supports_tools": False}, {}, "reads no tool calls"),
        ({"response_format": {"type": "json_object"}}, {}, {"response_format": STRUCTURED}, "this schema"),
        ({"response_format": STRUCTURED}, {"supports_structured_output": False}, {}, "the prompt must"),
        ({"max_completion_tokens": 9}, {}, {"max_tokens": 9}, "one name"),
        ({"max_completion_tokens": 9, "max_tokens": 7}, {}, {"max_tokens": 9}, "the newer one counts"),
        ({"max_completion_tokens": None}, {}, {}, "one name"),
        ({"max_tokens": 5000}, {"max_context": 1024}, {"max_tokens": 1000}, "those of the prompt among them"),
        ({"max_tokens": 9}, {"max_context": 24}, {}, "may need them all"),
        ({"stop": "\n"}, {}, {"stop": ["\n"]}, "a list"),
        ({"stop": ["a", "", "a", "b"]}, {}, {"stop": ["a", "b"]}, "a list"),
        ({"stop": ["a", "b"]}, {"most_stops": 1}, {"stop": ["a"]}, "fewer stop"),
        ({"stop": "a"}, {"supports_stop": False}, {}, "fewer stop"),
        ({"stop": None}, {}, {}, "a list"),
        ({"logit_bias": {"5": 1}}, {}, {}, "tokenizer"),
        ({"n": 3}, {"supports_n": False}, {}, "one answer"),
        ({"presence_penalty": 1}, {"supports_penalties": False}, {}, "no penalties"),
        *(({name: "x", "seed": 1}, {}, {"seed": 1}, reason) for name, reason in PROVIDER_ONLY.items()),
    ],
)
def test_parameters_are_put_in_the_targets_form(
    params: dict[str, Any], profile: dict[str, Any], expected: dict[str, Any], reason: str
) -> None:
    converted = convert([U], params, TargetProfile(**profile), contract=SCHEMA, prompt_tokens=24)
    assert converted.params == expected
    assert reason in " ".join(change.reason for change in converted.changes)


@pytest.mark.parametrize(
    ("params", "profile"),
    [
        ({"response_format": {"type": "json_object"}}, {}),
        ({"response_format": {"type": "text"}}, {"supports_structured_output": False}),
        ({"logit_bias": {"5": 1}}, {"same_tokenizer": True}),
        ({"max_tokens": 5000}, {}),
        ({"something_new": 1}, {}),
    ],
)
def test_what_nothing_speaks_against_is_kept(params: dict[str, Any], profile: dict[str, Any]) -> None:
    assert convert([U], params, TargetProfile(**profile)) == ([U], params, ())


text = st.text(st.sampled_from("ab\n é"), max_size=6)
content = (
    st.none()
    | text
    | st.lists(st.just(IMAGE) | st.fixed_dictionaries({"type": st.just("text"), "text": text}), max_size=2)
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "function", "tool"]), "content": content},
    optional={"function_call": st.sampled_from([None, CALL]), "tool_calls": st.just([TOOL_CALL])},
)
params = st.fixed_dictionaries(
    {},
    optional={
        "functions": st.lists(st.just(FUNCTION), max_size=1),
        "function_call": st.sampled_from([None, "auto", {"name": "find"}]),
        "tools": st.sampled_from([[], [TOOL]]),
        "tool_choice": st.sampled_from(["auto", "none"]),
        "response_format": st.sampled_from([None, {"type": "json_object"}, STRUCTURED]),
        "max_completion_tokens": st.none() | st.integers(1, 2000),
        "max_tokens": st.none() | st.integers(1, 2000),
        "stop": st.none() | text | st.lists(text, max_size=3),
        "logit_bias": st.just({}),
        "user": text,
        "n": st.just(1),
        "seed": st.just(1),
    },
)
profile = st.builds(
    TargetProfile,
    has_system_role=st.booleans(),
    needs_alternation=st.booleans(),
    max_context=st.none() | st.integers(1, 1000),
    supports_tools=st.booleans(),
    supports_structured_output=st.booleans(),
    most_stops=st.none() | st.integers(1, 2),
    supports_n=st.booleans(),
    scaffolding=st.sampled_from(["", "/no_think"]),
    language=st.sampled_from(["", "German"]),
)


@settings(max_examples=150)
@given(st.lists(message, max_size=5), params, profile, st.sampled_from([None, SCHEMA]))
def test_a_converted_request_needs_no_change(
    messages: Messages, params: dict[str, Any], target: TargetProfile, contract: dict[str, Any] | None
) -> None:
    first = convert(messages, params, target, contract=contract)
    assert bool(first.changes) == ((first.messages, first.params) != (messages, params))
    assert convert(first.messages, first.params, target, contract=contract) == (first.messages, first.params, ())
    shown = diff(Prompt(messages, params), Prompt(first.messages, first.params), first.changes)
    assert {reason for hunk in shown for reason in hunk.reasons} == (
        {each.reason for each in first.changes} if shown else set()
    )


def test_the_diff_shows_each_change_with_its_reason() -> None:
    messages = [
        said("system", "Be kind.\nBe brief."),
        said("user", "\n".join("abcdefgh")),
        said("developer", "Be exact."),
    ]
    params = {"store": True, "seed": 1}
    converted = convert(messages, params, PLAIN)
    front, end = diff(Prompt(messages, params), Prompt(converted.messages, converted.params), converted.changes)
    assert front.lines == (" [system]", " Be kind.", " Be brief.", "+", "+Be exact.", " [user]", " a", " b")
    assert end.lines == (" f", " g", " h", "-[developer]", "-Be exact.", " [parameters]", " seed = 1", "-store = true")
    assert end.reasons == (
        "the target knows no role developer",
        "the target's template knows one system message, at the front; its text stands there now",
        "keeps the call at the provider",
    )
    assert end.text.startswith("# the target knows no role developer\n# ")


def test_a_reason_stands_where_its_lines_are() -> None:
    messages = [said("system", "s"), *(said("user", f"u{number}") for number in range(9))]
    converted = convert(messages, {"store": 1}, TargetProfile(language="German"))
    hunks = diff(Prompt(messages, {"store": 1}), Prompt(converted.messages, converted.params), converted.changes)
    assert [len(hunk.reasons) for hunk in hunks] == [1, 1]
    assert "another language" in hunks[0].reasons[0]


def test_equal_prompts_have_no_hunk() -> None:
    assert diff(Prompt([S, U], {}), Prompt([S, U], {})) == []


def test_long_lines_are_folded_for_a_page_and_keep_their_sign() -> None:
    long = "-" + "word " * 40
    shown = folded(f"{long}\n+short\n {'x' * 200}", hang=1).split("\n")
    assert len(shown) == 5
    assert all(line.startswith("-") for line in shown[:2])
    assert " ".join(" ".join(line[1:] for line in shown[:3]).split()).startswith("word word")
    assert shown[-2:] == ["+short", f" {'x' * 200}"]
    assert folded("as it stands\n\nhere") == "as it stands\n\nhere"
