"""The split parts whole conversations, keeps sealed items away, and does not depend on the order of the rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.prompt_looks import conversations
from anven_pipelines.domain.prompt_split import Part, Split, TemplateItems, split_items
from anven_pipelines.domain.prompt_template import PromptTemplate
from tests.builders import golden_of

if TYPE_CHECKING:
    import polars as pl

DESK = PromptTemplate(name="desk", system="Be brief.", user="Question: {question}", slots=("question",))
ROUTER = PromptTemplate(name="router", user="Sort: {text}", slots=("text",))
ITEMS = 120


def prompt_of(at: int) -> str:
    """Write a desk's prompt, a router's, and every tenth time one of nobody's."""
    if at % 10 == 9:
        return json.dumps([{"role": "user", "content": f"Hello {at}"}])
    if at % 2:
        return json.dumps([{"role": "user", "content": f"Sort: text {at}"}])
    system = {"role": "system", "content": "Be brief."}
    return json.dumps([system, {"role": "user", "content": f"Question: what is {at}?"}])


def golden(**columns: Any) -> pl.DataFrame:
    return golden_of(
        ITEMS,
        **{
            "source_prompt": [prompt_of(at) for at in range(ITEMS)],
            "split": ["open"] * ITEMS,
            "cluster": [f"talk-{at // 6}" for at in range(ITEMS)],
        }
        | columns,
    )


def split_of(rows: pl.DataFrame, templates: tuple[PromptTemplate, ...] = (DESK, ROUTER), **changes: Any) -> Split:
    return split_items(rows, templates, **{"validation": 0.4} | changes)


def parts_of(items: TemplateItems) -> tuple[Part, Part]:
    return items.search, items.validation


def ids(split: Split) -> list[list[str]]:
    return [part.rows["id"].to_list() for items in split.templates for part in parts_of(items)]


def test_of_two_templates_of_one_text_each_gets_the_items_with_its_tools() -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    with_tool = DESK.model_copy(update={"name": "desk-2", "tools": (tool,)})
    as_object = DESK.model_copy(update={"name": "desk-3", "contract": {"type": "object"}})
    kinds = [{}, {"functions": [tool["function"]]}, {"response_format": {"type": "json_object"}}]
    rows = golden(model_config=[json.dumps(kinds[at // 2 % 3]) for at in range(ITEMS)])
    split = split_of(rows, templates=(DESK, with_tool, as_object))
    asked = [set(part.rows["model_config"]) for items in split.templates for part in (items.search, items.validation)]
    assert asked == [{json.dumps(kind)} for kind in kinds for _ in range(2)]


def test_every_open_item_is_in_one_part_of_its_template_or_uncovered() -> None:
    split = split_of(golden())
    assert [items.template for items in split.templates] == [DESK, ROUTER]
    assert split.uncovered == ITEMS // 10
    placed = [name for part in ids(split) for name in part]
    assert len(placed) == len(set(placed)) == ITEMS - ITEMS // 10
    assert [len(part) for part in ids(split)] == [36, 24, 30, 18]


def test_what_fills_the_slots_stands_beside_its_item() -> None:
    for items in split_of(golden()).templates:
        for part in (items.search, items.validation):
            assert len(part.filled) == part.rows.height > 0
            for slots, prompt in zip(part.filled, part.rows["source_prompt"], strict=True):
                [value] = slots.values()
                assert value in prompt
                assert value.rstrip("?").split()[-1].isdigit()


@pytest.mark.parametrize("names", range(5))
def test_a_conversation_is_on_one_side(names: int) -> None:
    for items in split_of(golden(cluster=[f"talk-{names}-{at // 6}" for at in range(ITEMS)])).templates:
        sides = [set(part.rows["cluster"]) for part in (items.search, items.validation)]
        assert all(sides)
        assert not sides[0] & sides[1]
        assert len(sides[1]) == round(0.4 * 20)


def test_a_conversation_in_which_several_templates_ask_is_on_one_side_of_all() -> None:
    """The router is asked in few of the desk's conversations; each has its share to validate on."""
    talks = [f"talk-{at // 6}" if at % 2 == 0 or at < ITEMS // 2 else f"other-{at}" for at in range(ITEMS)]
    split = split_of(golden(cluster=talks))
    asked, proving = (
        {cluster for items in split.templates for cluster in parts_of(items)[side].rows["cluster"]} for side in (0, 1)
    )
    assert not asked & proving
    for items in split.templates:
        found = [set(part.rows["cluster"]) for part in parts_of(items)]
        assert (len(found[1]), items.lacking) == (round(0.4 * len(found[0] | found[1])), 0)
    assert {talks[at] for at in range(ITEMS) if at % 2} & {talks[at] for at in range(0, ITEMS, 2)}, "some ask in both"


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_rows_changes_nothing(seed: int) -> None:
    rows = golden()
    shuffled = rows.sample(fraction=1.0, shuffle=True, seed=seed)
    one, other = split_of(rows), split_of(shuffled)
    assert ids(one) == ids(other)
    assert [part.filled for items in one.templates for part in parts_of(items)] == [
        part.filled for items in other.templates for part in parts_of(items)
    ]


def test_further_conversations_leave_the_ranks_of_the_others() -> None:
    """New items may come between, and turn none of the others around."""
    rows = golden()
    fewer = split_of(rows.head(ITEMS // 2)).templates[0]
    more = split_of(rows).templates[0]
    known = set(rows.head(ITEMS // 2)["id"])

    def ranked(items: Any) -> list[str]:
        return [name for part in (items.validation, items.search) for name in part.rows["id"] if name in known]

    assert ranked(fewer) == ranked(more)


def searched_by(split: Split) -> set[str]:
    return {name for items in split.templates for name in items.search.rows["id"]}


@pytest.mark.parametrize("validation", [0.1, 0.4, 0.7])
def test_what_was_searched_never_validates_and_another_share_takes_of_the_rest(validation: float) -> None:
    before = split_of(golden())
    searched = searched_by(before)
    for first, items in zip(
        before.templates, split_of(golden(), validation=validation, searched=searched).templates, strict=True
    ):
        validating = set(items.validation.rows["cluster"])
        assert not searched & set(items.validation.rows["id"])
        assert len(validating) == min(round(validation * 20), 8)
        assert validating <= set(first.validation.rows["cluster"])
        assert items.lacking == max(round(validation * 20) - 8, 0)


def test_a_search_that_starts_again_splits_as_it_did() -> None:
    first = split_of(golden())
    again = split_of(golden(), searched=searched_by(first))
    assert ids(again) == ids(first)
    assert [items.lacking for items in again.templates] == [0, 0]


def test_a_conversation_of_which_one_item_was_searched_is_searched_whole() -> None:
    [first, _] = split_of(golden()).templates
    [known, *_] = first.validation.rows.iter_rows(named=True)
    [items, _] = split_of(golden(), searched={known["id"]}).templates
    assert known["cluster"] not in set(items.validation.rows["cluster"])
    assert len(set(items.validation.rows["cluster"])) == 8, "the next one stands in for it"


def test_another_question_of_a_searched_conversation_proves_nothing_in_a_later_version() -> None:
    """A freeze of more logs draws another item of each conversation; and now more of them are to validate."""
    [first, _] = split_of(golden(), validation=0.2).templates
    searched = set(conversations(first.search.rows)) | set(conversations(first.search.rows).values())
    [later, _] = split_of(golden(id=[f"later-{at}" for at in range(ITEMS)]), searched=searched).templates
    assert (len(set(later.validation.rows["cluster"])), later.lacking) == (4, 4)
    assert not set(later.validation.rows["cluster"]) & set(first.search.rows["cluster"])


def test_new_conversations_stand_in_where_earlier_ones_were_searched() -> None:
    half = golden().head(ITEMS // 2)
    searched = searched_by(split_of(half))
    for items in split_of(golden(), searched=searched).templates:
        assert not searched & set(items.validation.rows["id"])
        assert (len(set(items.validation.rows["cluster"])), items.lacking) == (8, 0)


def test_the_items_are_in_no_order_of_the_log() -> None:
    searched = split_of(golden(cluster=[f"item-{at:05d}" for at in range(ITEMS)])).templates[0].search
    assert searched.rows["id"].to_list() != sorted(searched.rows["id"])


def test_sealed_items_and_what_stands_for_no_traffic_never_reach_it() -> None:
    splits = ["sealed" if at % 3 == 0 else "open" for at in range(ITEMS)]
    roles = ["challenge" if at % 4 == 0 else "traffic" for at in range(ITEMS)]
    split = split_of(golden(split=splits, role=roles))
    wanted = {f"item-{at:05d}" for at in range(ITEMS) if at % 3 and at % 4}
    placed = {name for part in ids(split) for name in part}
    assert placed < wanted
    assert len(placed) + split.uncovered == len(wanted)


def test_an_item_belongs_to_the_first_template_that_it_fits() -> None:
    anything = PromptTemplate(name="anything", user="{text}", slots=("text",))
    split = split_items(golden(), (ROUTER, anything), validation=0.4)
    counts = [items.search.rows.height + items.validation.rows.height for items in split.templates]
    assert counts == [48, 12], "the desk's prompts have a system message, which neither template has"
    assert split.uncovered == 60


def test_earlier_turns_are_no_part_of_what_fits() -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Question: one?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Question: two?"},
    ]
    items = split_of(golden(source_prompt=[json.dumps(talk)] * ITEMS)).templates[0]
    assert items.search.filled[0] == {"question": "two?"}


@pytest.mark.parametrize("rows", [golden().head(0), golden(split=["sealed"] * ITEMS)], ids=["none", "all sealed"])
def test_without_open_items_the_parts_are_empty(rows: pl.DataFrame) -> None:
    assert ids(split_of(rows)) == [[], [], [], []]
    assert split_of(rows).uncovered == 0


def test_without_templates_every_item_is_uncovered() -> None:
    assert split_items(golden(), (), validation=0.4) == Split((), uncovered=ITEMS)
