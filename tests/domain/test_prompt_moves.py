"""Any mixture of moves is one prompt that still holds its slots and policies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.prompt_moves import REMINDER, Example, Mode, Space, space_of
from anven_pipelines.domain.prompt_parts import parts_of, shortened
from anven_pipelines.domain.prompt_template import SLOT, PromptTemplate, TemplateMessage, unchanged

POLICY = "Never share private data, whoever asks."
SYSTEM = (
    f"You are a helpful clerk. {POLICY} You will be given notes and a question. "
    "Reply with the exact value and nothing else."
)
POOL = [
    Example({"notes": f"Note {number} of {word}.", "question": f"Which {word}?"}, word)
    for number, word in enumerate(("red", "green", "blue", "red", "grey"))
]


def a_template(**change: object) -> PromptTemplate:
    fields: dict[str, object] = {
        "name": "desk",
        "system": SYSTEM,
        "user": "Context: {notes}\nQuestion: {question}\nAnswer:",
        "slots": ("notes", "question"),
        "policies": (POLICY,),
    }
    return PromptTemplate.model_validate({**fields, **change})


def a_space(template: PromptTemplate | None = None, *, mode: Mode = "full", reasons: bool = False) -> Space:
    template = template or a_template()
    return space_of(template, mode=mode, pool=POOL, reasons=reasons, rng=np.random.default_rng(7))


def texts(space: Space, **genome: str) -> list[str]:
    named = {name.replace("_", " "): option for name, option in genome.items()}
    return [each.content for each in space.candidate(named, origin="test").messages]


TEMPLATES = [
    a_template(),
    a_template(contract={"type": "object"}, examples=(TemplateMessage(role="user", content="hi"),)),
    a_template(system=None, user="Classify it.\nReply with one word.\n\n### Message\n{m}\n\n### Label\n", slots=("m",)),
    a_template(system=None, user="Translate {a} to {b}.", slots=("a", "b")),
    a_template(system="", user="<doc>\n{d}\n</doc>\n<q>{q}</q>\nAnswer now.\nAnswer: ", slots=("d", "q")),
    a_template(system="Hi.\n\nReply.\n", user="{x}", slots=("x",)),
    a_template(user="**Text:** {t}\n\n**Question:** {q}\n", slots=("t", "q")),
    a_template(user="Text:\n{t}\n\nQuestion:\n{q}", slots=("t", "q")),
    a_template(user=f"Context: \nQuestion: {{q}}\n\n{POLICY} Be quick.\nAnswer:", slots=("q",)),
    a_template(user="No slot at all.", slots=()),
    a_template(user="\n {a} and\n\n{b}{c}", slots=("a", "b", "c")),
]


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
@pytest.mark.parametrize("mode", ["full", "minimal", "structural"])
def test_without_a_move_the_prompt_is_the_logged_one(template: PromptTemplate, mode: Mode) -> None:
    space = a_space(template, mode=mode)
    as_logged = space.candidate(space.start, origin="test")
    assert as_logged.messages == unchanged(template).messages
    assert as_logged.version == unchanged(template).version
    assert as_logged.moves == {}


@given(st.sampled_from(TEMPLATES), st.integers(0, 2**32))
def test_every_mixture_of_moves_keeps_the_slots_and_the_policies(template: PromptTemplate, seed: int) -> None:
    space = a_space(template)
    candidate = space.candidate(space.draw(np.random.default_rng(seed)), origin="test")
    assert sorted(SLOT.findall(candidate.messages[-1].content)) == sorted(template.slots)
    whole = "\n".join(each.content for each in unchanged(template).messages)
    written = "\n".join(each.content for each in candidate.messages)
    assert all(policy in written for policy in template.policies if policy in whole)
    assert candidate.messages[-1].role == "user"


def test_equal_genomes_give_equal_prompts() -> None:
    genome = a_space().draw(np.random.default_rng(3))
    assert a_space().candidate(genome, origin="a").version == a_space().candidate(genome, origin="b").version


@pytest.mark.parametrize(
    ("genome", "expected"),
    [
        ({"concision": "no filler"}, f"{POLICY} You will be given notes and a question. "),
        ({"concision": "directive and policies"}, f"{POLICY} Reply with the exact value and nothing else."),
    ],
)
def test_concision_drops_what_is_no_instruction_and_keeps_the_policy(genome: dict[str, str], expected: str) -> None:
    system = texts(a_space(), **genome)[0]
    assert system.startswith(expected)
    assert "helpful clerk" not in system


@pytest.mark.parametrize(
    ("genome", "user"),
    [
        ({"layout": "heading"}, "### Context\n{notes}\n### Question\n{question}\nAnswer:"),
        ({"layout": "tag"}, "<context>\n{notes}\n</context>\n<question>\n{question}\n</question>\nAnswer:"),
        ({"layout": "bare", "cue": "none"}, "{notes}\n{question}"),
        ({"layout": "colon", "material_label": "Notes", "cue": "none"}, "Notes: {notes}\nQuestion: {question}"),
        ({"ask_label": "Request"}, "Context: {notes}\nRequest: {question}\nAnswer:"),
        ({"order": "reversed", "cue": "none"}, "Question: {question}\nContext: {notes}"),
        ({"reminder": "on"}, f"Context: {{notes}}\nQuestion: {{question}}\n{REMINDER}\nAnswer:"),
        (
            {"directive_place": "first in user", "cue": "none"},
            "Reply with the exact value and nothing else.\nContext: {notes}\nQuestion: {question}",
        ),
        (
            {"directive_place": "last in user", "directive": "short"},
            "Context: {notes}\nQuestion: {question}\nReply with the exact value.\nAnswer:",
        ),
    ],
)
def test_a_move_of_the_user_message(genome: dict[str, str], user: str) -> None:
    assert texts(a_space(), **genome)[-1] == user


def test_an_instruction_that_goes_to_the_user_message_leaves_the_system_message() -> None:
    system, user = texts(a_space(), directive_place="last in user")
    assert "Reply with the exact value" not in system
    assert "Reply with the exact value and nothing else." in user


def test_a_system_message_of_which_nothing_is_left_is_not_sent() -> None:
    space = a_space(a_template(system="Be kind. Reply with one word.", policies=()))
    messages = space.candidate({"concision": "no filler", "directive": "none"}, origin="test").messages
    assert [each.role for each in messages] == ["user"]


def test_examples_stand_before_the_question_in_the_layout_of_the_question() -> None:
    space = a_space()
    messages = space.candidate({"examples": "3 diverse", "layout": "bare", "cue": "none"}, origin="test").messages
    assert [each.role for each in messages] == ["system", *("user", "assistant") * 3, "user"]
    assert messages[1].content == "Note 0 of red.\nWhich red?"
    assert len({each.content for each in messages if each.role == "assistant"}) == 3


def test_an_example_whose_text_spells_a_slot_is_not_taken() -> None:
    trap = [Example({"notes": "see {question}", "question": "q"}, "a")] * 5
    assert "examples" not in space_of(a_template(), pool=trap, rng=np.random.default_rng(0)).dimensions


@pytest.mark.parametrize(
    ("mode", "dimensions"),
    [
        ("minimal", {"directive place", "layout", "order", "cue", "examples", "reminder"}),
        ("structural", set()),
    ],
)
def test_a_risk_tier_limits_the_moves(mode: Mode, dimensions: set[str]) -> None:
    assert set(a_space(mode=mode).dimensions) == dimensions


def test_reasoning_and_structured_output_are_parameters_where_they_can_be() -> None:
    schema = {"type": "object", "required": ["answer"]}
    space = a_space(a_template(contract=schema), reasons=True)
    params = space.candidate({"reasoning": "off", "structured output": "schema"}, origin="test").params
    assert params["chat_template_kwargs"] == {"enable_thinking": False}
    assert params["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }
    assert {"reasoning", "structured output"}.isdisjoint(a_space().dimensions)
    says_nothing = a_space(a_template(contract={"type": "object"}))
    assert "structured output" not in says_nothing.dimensions


def test_an_inline_slot_leaves_the_user_message_as_it_is() -> None:
    space = a_space(a_template(system=None, user="Translate {a} to {b}.", slots=("a", "b"), policies=()))
    assert {"layout", "material label", "ask label", "order", "cue"}.isdisjoint(space.dimensions)
    assert parts_of(space.template).body == "Translate {a} to {b}."


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layout is 'poster'; one of \['as logged', 'heading'"):
        a_space().candidate({"layout": "poster"}, origin="test")


@pytest.mark.parametrize(
    ("sentence", "short"),
    [
        ("Reply with the exact value and nothing else.", "Reply with the exact value."),
        ("Please answer with exactly one word, in lower case.", "Answer with one word."),
        (
            "Reply with exactly one of these words: red, green, blue.",
            "Reply with one of these words: red, green, blue.",
        ),
        (
            "Write one JSON object that calls a tool: refund with order, or track.",
            "Write one JSON object that calls a tool.",
        ),
    ],
)
def test_an_instruction_is_shortened_by_rule(sentence: str, short: str) -> None:
    assert shortened(sentence) == short


def test_sentences_are_told_apart_by_what_they_are_for() -> None:
    kinds = [each.kind for each in parts_of(a_template()).system]
    assert kinds == ["other", "policy", "instruction", "directive"]
