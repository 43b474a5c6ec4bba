"""Every logged prompt is covered by the template it was written with, or counted with the reason why not."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import polars as pl
import pytest
import regex  # type: ignore[import-untyped] # as the patterns are written for
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.prompt_anchors import shared_text, slot_values
from anven_pipelines.domain.prompt_mining import Inventory, fit, mine
from anven_pipelines.domain.prompt_template import PromptTemplate, fill
from anven_pipelines.nano.prompts import LEGACY_SYSTEM, LEGACY_USER, legacy_messages
from anven_pipelines.nano.tasks import Task, generate

CITIES = ("Paris", "Rome", "New York", "Oslo by night", "Graz", "Bern", "Lyon and Nice", "Bath", "Cork", "Ulm")
THINGS = ("a lamp", "two chairs", "the phone", "ink", "my old sofa", "tea", "one red hat", "glue", "salt", "a van")

Messages = list[dict[str, Any]]


def calls_of(prompts: list[Messages], application: str | None = "shop", **params: Any) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": [f"{application}-{number:05}" for number in range(len(prompts))],
            "application": [application] * len(prompts),
            "source_prompt": [json.dumps(each) for each in prompts],
            "model_config": [json.dumps(params)] * len(prompts),
        },
        schema_overrides={"application": pl.String},
    )


def user(text: str, system: str | None = "Be brief.") -> Messages:
    front = [] if system is None else [{"role": "system", "content": system}]
    return [*front, {"role": "user", "content": text}]


def pairs(pattern: str) -> list[Messages]:
    """Fill `{a}` and `{b}` with every pair of a city and a thing, 100 in all."""
    return [user(fill(pattern, {"a": city, "b": thing})) for city in CITIES for thing in THINGS]


def asked_again(inventory: Inventory) -> dict[str, Messages]:
    """Build each covered prompt from its template, its slots and its earlier turns."""
    templates = {template.name: template for template in inventory.templates}
    built = {}
    for row in inventory.calls.filter(pl.col("template").is_not_null()).iter_rows(named=True):
        template, slots = templates[row["template"]], json.loads(row["slots"])
        system = [] if template.system is None else [{"role": "system", "content": fill(template.system, slots)}]
        examples = [each.model_dump() for each in template.examples]
        last = {"role": "user", "content": fill(template.user, slots)}
        built[row["id"]] = [*system, *examples, *json.loads(row["earlier"]), last]
    return built


def assert_roundtrip(inventory: Inventory, calls: pl.DataFrame) -> None:
    logged = dict(zip(calls["id"], map(json.loads, calls["source_prompt"]), strict=True))
    assert asked_again(inventory) == {name: logged[name] for name in asked_again(inventory)}
    assert inventory.covered + sum(inventory.uncovered.values()) == calls.height


@pytest.mark.parametrize("applications_are_logged", [True, False])
def test_the_three_templates_of_the_demo_are_found(applications_are_logged: bool) -> None:
    names: dict[Task, str] = {"answer": "helpdesk", "intent": "router", "tool": "actions"}
    items = generate("golden", 300, seed=5)
    calls = pl.concat(
        calls_of([legacy_messages(each) for each in items if each.task == task], name) for task, name in names.items()
    )
    if not applications_are_logged:
        calls = calls.with_columns(application=pl.lit(None, dtype=pl.String))
    inventory = mine(calls)
    found = {template.system: template for template in inventory.templates}
    answer = found[LEGACY_SYSTEM["answer"]]
    assert (answer.user, answer.slots) == (LEGACY_USER, ("context", "question"))
    for task in ("intent", "tool"):
        assert found[LEGACY_SYSTEM[task]].user == "Context: \nQuestion: {question}\nAnswer:"
    expected = {"helpdesk", "router", "actions"} if applications_are_logged else {"unknown", "unknown-2", "unknown-3"}
    assert {template.name for template in inventory.templates} == expected
    assert (inventory.covered, inventory.uncovered) == (300, {})
    assert_roundtrip(inventory, calls)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("Context: {a}\nQuestion: {b}\nAnswer:", "Context: {context}\nQuestion: {question}\nAnswer:"),
        ("## Notes\n{a}\n## Ask\n{b}", "## Notes\n{notes}\n## Ask\n{ask}"),
        ("<doc>\n{a}\n</doc>\n<q>{b}</q>", "<doc>\n{doc}\n</doc>\n<q>{q}</q>"),
        ("**Place**: {a}\n**Thing**: {b}", "**Place**: {place}\n**Thing**: {thing}"),
        ("---\n{a}\n---\nThing:\n---\n{b}\n---", "---\n{slot_1}\n---\nThing:\n---\n{slot_2}\n---"),
        ("Compare {a} with the {b} and say more.", "Compare {slot_1} with the {slot_2} and say more."),
        ('{"place": "{a}", "thing": "{b}"}', '{"place": "{place}", "thing": "{thing}"}'),
        ("Text: {a}\nText: {b}", "Text: {text}\nText: {text_2}"),
        ("Question: What is {a}?\nAnswer:", "Question: {question}\nAnswer:"),
        ('Answer {"a": 1} or {place}. Place: {a}', 'Answer {"a": 1} or {place}. Place: {place_2}'),
        ("地点\uff1a{a}\n物品\uff1a{b}。", "地点\uff1a{slot_1}\n物品\uff1a{slot_2}"),
        ("Ünïcode 🙂: {a}", "Ünïcode 🙂: {slot_1}"),
        ("{a}", "{slot_1}"),
        ("Say hello.", "Say hello."),
    ],
)
def test_shared_text_and_slots_are_told_apart(pattern: str, expected: str) -> None:
    calls = calls_of(pairs(pattern))
    inventory = mine(calls)
    assert [template.user for template in inventory.templates] == [expected]
    assert inventory.covered == calls.height
    assert_roundtrip(inventory, calls)


def test_a_slot_may_be_empty() -> None:
    prompts = pairs("Context: {a}\nQuestion: {b}\nAnswer:") + [
        user(f"Context: \nQuestion: {b}\nAnswer:") for b in THINGS
    ]
    inventory = mine(calls_of(prompts))
    assert inventory.templates[0].slots == ("context", "question")
    assert inventory.covered == 110


def test_a_few_that_do_not_fit_are_counted_and_change_nothing() -> None:
    prompts = [*pairs("Context: {a}\nQuestion: {b}"), user("ping"), user("are you there"), user("hello")]
    inventory = mine(calls_of(prompts))
    assert [template.user for template in inventory.templates] == ["Context: {context}\nQuestion: {question}"]
    assert list(inventory.uncovered.values()) == [3]
    assert "fewer than 5 calls" in next(iter(inventory.uncovered))


def test_many_that_do_not_fit_are_a_template_of_their_own() -> None:
    calls = calls_of(pairs("Context: {a}\nQuestion: {b}") + pairs("Translate to French please: {a}")[:40:4])
    inventory = mine(calls)
    assert [(each.name, each.user) for each in inventory.templates] == [
        ("shop", "Context: {context}\nQuestion: {question}"),
        ("shop-2", "Translate to French please: {slot_1}"),
    ]
    assert_roundtrip(inventory, calls)


def test_the_order_of_the_calls_changes_nothing() -> None:
    calls = pl.concat([calls_of(pairs("A: {a}\nB: {b}")), calls_of(pairs("Name: {b}"), "other")])
    first, second = mine(calls), mine(calls.sample(fraction=1, shuffle=True, seed=4))
    assert first.templates == second.templates
    assert first.calls.equals(second.calls)


def test_a_system_text_with_a_date_is_one_template_with_a_slot() -> None:
    system = "You are the desk of a shop and always kind. Date: 2026-11-{day}. Answer in one short sentence, please."
    prompts = [user(f"Q: {thing}", system.replace("{day}", f"{day}")) for day in (1, 12, 30) for thing in THINGS]
    calls = calls_of(prompts)
    inventory = mine(calls)
    (template,) = inventory.templates
    assert template.system == system.replace("2026-11-{day}", "{date}")
    assert template.slots == ("date", "q")
    fitted = fit(template, prompts[0])
    assert fitted is not None
    assert fitted.slots == {"date": "2026-11-1", "q": THINGS[0]}
    assert_roundtrip(inventory, calls)


def test_system_texts_that_share_a_preamble_are_templates_of_their_own() -> None:
    preamble = "You are a polite and careful assistant of a large online shop. Never guess. "
    tails = ("Answer from the context only, with the exact value.", "Name the department that handles the message.")
    prompts = [user(f"Q: {thing}", preamble + tail) for tail in tails for thing in THINGS]
    assert {each.system for each in mine(calls_of(prompts)).templates} == {preamble + tail for tail in tails}


def test_a_passage_in_the_system_text_is_a_slot() -> None:
    system = "You answer from the passage alone.\nPassage: {p}\nNever guess."
    passages = [
        f"{city} has {thing}, {number * 7919} times"
        for number, (city, thing) in enumerate(zip(CITIES, THINGS, strict=True))
    ]
    prompts = [user(f"Q: {thing}", system.replace("{p}", each)) for thing, each in zip(THINGS, passages, strict=True)]
    calls = calls_of([*prompts, *pairs("Q: {a}")])
    inventory = mine(calls)
    assert {each.system: each.slots for each in inventory.templates} == {
        system.replace("{p}", "{passage}"): ("passage", "q"),
        "Be brief.": ("q",),
    }
    assert_roundtrip(inventory, calls)


def test_system_texts_that_share_nothing_have_no_template() -> None:
    systems = ["red sky", "My dog sleeps", "Two and two", "an open door", "Winter", "a long way home"]
    inventory = mine(calls_of([user("Q: why", each) for each in systems]))
    assert (inventory.templates, sum(inventory.uncovered.values())) == ((), 6)


def test_earlier_turns_of_a_conversation_stand_between_the_template_and_the_question() -> None:
    turns: Messages = []
    prompts = []
    for number, thing in enumerate([*THINGS, *CITIES]):
        prompts.append([{"role": "system", "content": "S"}, *turns, {"role": "user", "content": f"Q: {thing}"}])
        answer = [{"role": "user", "content": f"Q: {thing}"}, {"role": "assistant", "content": f"A {number}"}]
        turns = [] if number % 4 == 3 else [*turns, *answer]
    calls = calls_of(prompts)
    inventory = mine(calls)
    assert [(each.user, each.examples) for each in inventory.templates] == [("Q: {q}", ())]
    assert json.loads(inventory.calls["earlier"][2])[0] == {"role": "user", "content": "Q: a lamp"}
    assert_roundtrip(inventory, calls)


def test_turns_that_stand_in_all_calls_are_examples() -> None:
    shots = [
        {"role": "user", "content": "Q: 1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Q: 2+2"},
        {"role": "assistant", "content": "4"},
    ]
    prompts = [[*shots, {"role": "user", "content": f"Q: {thing}"}] for thing in THINGS]
    calls = calls_of(prompts)
    inventory = mine(calls)
    (template,) = inventory.templates
    assert [each.model_dump() for each in template.examples] == shots
    assert set(inventory.calls["earlier"]) == {"[]"}
    assert_roundtrip(inventory, calls)


def test_tools_and_output_format_part_templates_and_stand_in_them() -> None:
    function = {"name": "find", "parameters": {"type": "object"}}
    schema = {"type": "object", "required": ["a"]}
    prompts = pairs("Q: {b}")[:20]
    frames = [
        calls_of(prompts, "a", tools=[{"type": "function", "function": function}]),
        calls_of(prompts, "b", functions=[function]),
        calls_of(prompts, "c", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
        calls_of(prompts, "d", response_format={"type": "json_object"}),
        calls_of(prompts, "e", response_format={"type": "text"}),
    ]
    templates = {each.name: each for each in mine(pl.concat(frames)).templates}
    assert templates["a"].tools == templates["b"].tools == ({"type": "function", "function": function},)
    assert [templates[name].contract for name in "cde"] == [schema, {"type": "object"}, None]


def test_declared_templates_come_first_and_as_they_are() -> None:
    declared = PromptTemplate(
        name="mine", system="Be brief.", user="A: {x}\n{rest}", slots=("x", "rest"), policies=("P.",)
    )
    inventory = mine(
        pl.concat([calls_of(pairs("A: {a}\nB: {b}")), calls_of(pairs("C: {a}"), "mine")]), declared=[declared]
    )
    assert inventory.templates[0] == declared
    assert [each.name for each in inventory.templates] == ["mine", "mine-2"]
    assert json.loads(inventory.calls.filter(pl.col("template") == "mine")["slots"][0])["rest"].startswith("B: ")


TICKET = PromptTemplate(name="ticket", system="Be brief.", user="A: {x}\nB: {y}", slots=("x", "y"))
TOOL = {"type": "function", "function": {"name": "look_up"}}
JSON_MODE = {"response_format": {"type": "json_object"}}


def fitting(inventory: Inventory, calls: pl.DataFrame) -> dict[str | None, int]:
    """Count calls by the first template that fits them with their parameters, as they are split and served."""
    found = Counter(
        next((each.name for each in inventory.templates if fit(each, json.loads(call), json.loads(asked))), None)
        for call, asked in calls.select("source_prompt", "model_config").iter_rows()
    )
    return dict(found)


def test_a_declared_template_is_one_for_every_tools_and_format_of_its_calls() -> None:
    prompts = pairs("A: {a}\nB: {b}")
    calls = pl.concat(
        [
            calls_of(prompts[:10], "a", tools=[TOOL]),
            calls_of(prompts[:20], "b", **JSON_MODE),
            calls_of(prompts[:5], "c"),
            calls_of(prompts[:12], "d", tools=[TOOL], **JSON_MODE),
        ]
    )
    declared = [TICKET, TICKET.model_copy(update={"name": "ticket-2", "user": "of another {text}", "slots": ("text",)})]
    inventory = mine(calls, declared=declared)
    forms = {each.name: (len(each.tools), each.contract is not None) for each in inventory.templates}
    assert forms == {
        "ticket": (0, True),
        "ticket-3": (1, True),
        "ticket-4": (1, False),
        "ticket-5": (0, False),
        "ticket-2": (0, False),
    }
    assert fitting(inventory, calls) == {"ticket": 20, "ticket-3": 12, "ticket-4": 10, "ticket-5": 5}
    assert dict(inventory.calls.group_by("template").len().iter_rows()) == fitting(inventory, calls)
    assert_roundtrip(inventory, calls)


def test_calls_of_a_declared_template_in_a_rare_form_are_counted_as_what_they_are() -> None:
    """Before, a template whose calls differ in form covered all of them and fitted none."""
    prompts = pairs("A: {a}\nB: {b}")
    calls = pl.concat([calls_of(prompts[:3], "a", tools=[TOOL]), calls_of(prompts[:4], "b", **JSON_MODE)])
    inventory = mine(calls, declared=[TICKET])
    assert [(each.name, each.tools, each.contract) for each in inventory.templates] == [
        ("ticket", (), {"type": "object"})
    ]
    assert fitting(inventory, calls) == {"ticket": 4, None: 3}
    [(reason, count)] = inventory.uncovered.items()
    assert ("fewer than 5 calls" in reason, count) == (True, 3)


def test_a_call_that_was_left_is_covered_where_a_template_of_other_calls_fits_it() -> None:
    calls = pl.concat([calls_of(pairs("A: {a}\nB: {b}"), "shop"), calls_of(pairs("A: {a}\nB: {b}")[:2], "few")])
    inventory = mine(calls)
    assert (inventory.covered, fitting(inventory, calls)) == (102, {"shop": 102})
    assert_roundtrip(inventory, calls)


IMAGE = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:"}}]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("no json", "no JSON list"),
        ("[3]", "no JSON list"),
        ("[]", "ends with no message"),
        (json.dumps([*user("q"), {"role": "assistant", "content": "a"}]), "ends with assistant message"),
        (json.dumps([{"role": "user", "content": "a"}, *user("q")]), "stands behind other messages"),
        (json.dumps([{"role": "user", "content": IMAGE}]), "more than text"),
        (json.dumps([{"role": "user", "content": "q", "name": "Ann"}]), "more than text"),
        (json.dumps([{"role": "user", "content": "q"}]), "fewer than 5 calls"),
    ],
)
def test_a_call_without_a_template_says_why(prompt: str, reason: str) -> None:
    calls = calls_of(pairs("Q: {b}"))
    odd = calls[:1].with_columns(id=pl.lit("odd"), source_prompt=pl.lit(prompt))
    inventory = mine(pl.concat([calls, odd]))
    assert inventory.covered == 100
    (why,) = inventory.uncovered
    assert reason in why


def test_text_in_parts_is_text() -> None:
    calls = calls_of([[{"role": "user", "content": [{"type": "text", "text": f"Q: {each}"}]}] for each in THINGS])
    assert [each.user for each in mine(calls).templates] == ["Q: {q}"]


def test_no_calls_have_no_templates() -> None:
    inventory = mine(calls_of([user("q")]).clear())
    assert (inventory.templates, inventory.covered, inventory.uncovered) == ((), 0, {})


def test_policies_are_proposed_and_bind_nothing() -> None:
    system = "You help. You must not share private data. Answer shortly.\nNever guess! Use the notes."
    inventory = mine(calls_of([user(f"Q: {each}", system) for each in THINGS]))
    assert inventory.proposed == {"shop": ("You must not share private data.", "Never guess!")}
    assert inventory.templates[0].policies == ()


def test_lengths_are_those_of_whole_prompts() -> None:
    inventory = mine(calls_of([user("Q: " + "x" * (each + 1), "four") for each in range(100)]))
    assert inventory.lengths["shop"] == (7, 57, 102, 107)


def test_an_inventory_that_lost_a_call_cannot_be_made() -> None:
    sound = mine(calls_of(pairs("Q: {b}")))
    with pytest.raises(ValueError, match="100 of 100 calls"):
        Inventory(sound.templates, sound.calls.with_columns(template=pl.lit(None, dtype=pl.String)), {}, {})


def test_a_prompt_of_another_template_does_not_fit() -> None:
    template = PromptTemplate(name="t", system="S", user="Q: {q}", slots=("q",))
    assert fit(template, user("Q: why", "S")) == ({"q": "why"}, [])
    assert fit(template, user("Q: why", "T")) is None
    assert fit(template, user("A: why", "S")) is None
    assert fit(template, user("Q: why", None)) is None
    assert fit(template, []) is None


text = st.text(st.sampled_from("ab Q:\n{}<>q?.é你"), max_size=30)


@settings(max_examples=150)
@given(st.lists(st.lists(text, min_size=1, max_size=3), min_size=1, max_size=12), st.sampled_from(["a: {}\nb: ", "{}"]))
def test_whatever_was_logged_is_covered_exactly_or_counted(rows: list[list[str]], around: str) -> None:
    calls = calls_of([user(around.join(row), None) for row in rows])
    assert_roundtrip(mine(calls, least_calls=1), calls)


@given(st.lists(text, min_size=1, max_size=8))
def test_what_fits_is_the_text_again(texts: list[str]) -> None:
    literals = shared_text(texts)
    for each in texts:
        values = slot_values(each, literals)
        if values is not None:
            between = [*values, ""]
            assert "".join(part for pair in zip(literals, between, strict=True) for part in pair) == each


@given(st.lists(text, min_size=2, max_size=8, unique=True), text)
def test_the_values_are_those_of_the_templates_pattern(texts: list[str], other: str) -> None:
    inventory = mine(calls_of([user(f"Left: {each}\nRight: {each[::-1]}") for each in texts]), least_calls=1)
    for template in inventory.templates:
        for each in (f"Left: {other}\nRight: x", other):
            fitted = fit(template, user(each))
            found = regex.fullmatch(template.pattern, each)
            assert (found and found.groupdict()) == (fitted and fitted.slots)


def test_two_thousand_prompts_take_less_than_two_seconds() -> None:
    calls = calls_of([legacy_messages(each) for each in generate("golden", 2_000, seed=1)], None)
    start = time.process_time()
    mine(calls)
    assert time.process_time() - start < 2  # 0.4 s on 2 cores


def test_twice_the_prompt_length_takes_no_four_times_as_long() -> None:
    def seconds(words: int) -> float:
        prompts = [user(f"Context: {' '.join(f'w{(k * n) % 997}' for n in range(words))}\nQ: {k}") for k in range(30)]
        start = time.process_time()
        mine(calls_of(prompts))
        return time.process_time() - start

    seconds(100)
    assert seconds(4_000) < 16 * max(seconds(500), 0.02)  # linear: 8 times
