"""The invented tasks have one right answer each, and what a model is judged on is nothing it was trained on."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING

import pytest

from anven_pipelines.nano.messages import CORES, OPENERS
from anven_pipelines.nano.tasks import FACTS, TASKS, converse, draw_name, generate, split_of

if TYPE_CHECKING:
    from anven_pipelines.nano.tasks import Item, Split

SPLITS: tuple[Split, ...] = ("train", "golden", "adversarial")
FACT = re.compile(
    r"The (?P<a1>[a-z ]+?) of (?P<n1>\w+) is (?P<v1>[\w. ]+?)\.(?= |$)"
    r"|For (?P<n2>\w+) the (?P<a2>[a-z ]+?) is (?P<v2>[\w. ]+?)\.(?= |$)"
    r"|(?P<n3>\w+) has the (?P<a3>order number|invoice total|delivery date|ticket code|home city|phone extension) "
    r"(?P<v3>[\w. ]+?)\.(?= |$)",
)
ASKED = re.compile(
    r"What is the ([a-z ]+) of (\w+)\?|Which ([a-z ]+) does (\w+) have\?|Tell me the ([a-z ]+) of (\w+)\.",
)

DECOY = re.compile(r"\bnot ([A-Z][a-z]+)")


def facts_of(context: str) -> list[tuple[str, str, str]]:
    """Read name, attribute and value of each fact again."""
    found = [match.groupdict() for match in FACT.finditer(re.sub(r" -- | \* |; ", " ", context))]
    return [tuple(next(fact[f"{key}{n}"] for n in "123" if fact[f"{key}{n}"]) for key in "nav") for fact in found]  # type: ignore[misc]


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_items(split: Split) -> None:
    assert generate(split, 60, seed=3) == generate(split, 60, seed=3)


@pytest.mark.parametrize("split", SPLITS)
def test_another_seed_gives_other_items(split: Split) -> None:
    one, other = ({content(item) for item in generate(split, 60, seed=seed)} for seed in (3, 4))
    assert len(one & other) <= 3  # there are few customers' messages, so one may come again


@pytest.mark.parametrize("split", SPLITS)
def test_fewer_items_are_the_first_of_more(split: Split) -> None:
    assert generate(split, 30, seed=5) == generate(split, 60, seed=5)[:30]


def test_ids_are_unique_and_tasks_are_equally_many() -> None:
    items = [item for split in SPLITS for item in generate(split, 300, seed=1)]

    assert len({item.item_id for item in items}) == len(items)
    assert {task: sum(item.task == task for item in items) for task in TASKS} == dict.fromkeys(TASKS, 300)


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_about_notes_has_exactly_one_answer_in_them(split: Split) -> None:
    least, most = FACTS[split]
    for item in answers(split):
        asked = ASKED.fullmatch(item.question)
        assert asked is not None, item
        attribute, name = (group for group in asked.groups() if group)
        facts = facts_of(item.context)
        assert least <= len(facts) <= most, item
        assert [value for n, a, value in facts if (n, a) == (name, attribute)] == [item.answer], item


@pytest.mark.parametrize("split", SPLITS)
def test_every_name_in_a_question_belongs_to_the_split(split: Split) -> None:
    items = generate(split, 600, seed=2)
    in_notes = {name for item in items for name, _, _ in facts_of(item.context)}
    in_openers = {name for item in items if item.task == "intent" for name in names_in_opener(item.question, split)}
    in_lures = {name for item in items if item.task == "tool" for name in DECOY.findall(item.question)}

    assert len(in_notes) > 50
    assert len(in_openers) > 20
    assert (len(in_lures) > 20) == (split == "adversarial")
    assert {split_of(name) for name in in_notes | in_openers | in_lures} == {split}


@pytest.mark.parametrize("split", SPLITS)
def test_customers_of_tool_calls_belong_to_the_split(split: Split) -> None:
    calls = [json.loads(item.answer) for item in generate(split, 300, seed=2) if item.task == "tool"]
    customers = {name for call in calls for key, name in call.items() if key in ("customer", "notify")}

    assert len(customers) > 20
    assert {split_of(name) for name in customers} == {split}


@pytest.mark.parametrize("split", SPLITS)
def test_every_value_of_a_tool_call_stands_in_its_request(split: Split) -> None:
    for item in generate(split, 300, seed=2):
        if item.task == "tool":
            call = json.loads(item.answer)
            assert item.answer == json.dumps(call)
            assert all(str(value) in item.question for key, value in call.items() if key != "tool"), item


def test_no_intent_template_stands_in_two_splits() -> None:
    for intent, cores in CORES.items():
        kept = [core for split in SPLITS for core in cores[split]]
        assert len(set(kept)) == len(kept), intent
    openers = [opener for split in SPLITS for opener in OPENERS[split]]
    assert len(set(openers)) == len(openers)


def test_no_message_of_another_split_was_seen_in_training() -> None:
    seen = {item.question for item in generate("train", 6000, seed=9) if item.task == "intent"}
    unseen = {item.question for split in SPLITS[1:] for item in generate(split, 600, seed=9) if item.task == "intent"}

    assert len(seen) > 1000
    assert not seen & unseen


def test_adversarial_notes_hold_near_equal_names_lures_and_odd_separators() -> None:
    contexts = [item.context for item in answers("adversarial")]

    assert any("Ignore the question" in context for context in contexts)
    assert any(" -- " in context for context in contexts)
    names_of = [{name for name, _, _ in facts_of(context)} for context in contexts]
    near = sum(any(one_letter_apart(a, b) for a in names for b in names) for names in names_of)
    assert near > len(contexts) / 2


def test_a_curriculum_shortens_notes_but_keeps_two_facts() -> None:
    rng = random.Random(1)
    counts = {most: {len(facts_of(notes_of_conversation(rng, most_facts=most))) for _ in range(80)} for most in (1, 3)}

    assert counts == {1: {2}, 3: {2, 3}}


def test_the_turns_of_a_conversation_ask_different_things_about_the_same_notes() -> None:
    rng = random.Random(1)
    for _ in range(50):
        items = converse("answer", "train", rng, turns=4)
        assert len({item.context for item in items}) == 1
        assert len({item.question for item in items}) == len(items) == min(4, len(facts_of(items[0].context)))


def test_only_questions_about_notes_carry_a_context() -> None:
    assert all(
        bool(item.context) == (item.task == "answer") for split in SPLITS for item in generate(split, 60, seed=1)
    )


def test_names_are_many() -> None:
    rng = random.Random(1)

    assert len({draw_name("golden", rng) for _ in range(1000)}) > 800


def answers(split: Split) -> list[Item]:
    return [item for item in generate(split, 600, seed=2) if item.task == "answer"]


def notes_of_conversation(rng: random.Random, *, most_facts: int) -> str:
    return converse("answer", "train", rng, turns=1, most_facts=most_facts)[0].context


def names_in_opener(message: str, split: Split) -> list[str]:
    """Read the name that a customer's message opens with, where it does."""
    forms = [re.escape(opener).replace(r"\{name\}", r"(\w+)") for opener in OPENERS[split] if "{name}" in opener]
    return [match[1] for form in forms if (match := re.match(form, message))]


def content(item: Item) -> tuple[str, str]:
    return item.context, item.question


def one_letter_apart(one: str, other: str) -> bool:
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 1
