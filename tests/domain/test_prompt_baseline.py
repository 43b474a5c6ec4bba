"""The templates of a workload: which policies bind them, how they are stored, and how they are registered."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompt_baseline import Baseline, baseline_of, legacy_prompts
from anven_pipelines.domain.prompt_constraints import broken
from anven_pipelines.domain.prompt_template import Candidate, TemplateMessage, unchanged
from anven_pipelines.spec_prompt import DeclaredTemplate
from tests.builders import golden_of

if TYPE_CHECKING:
    import polars as pl

POLICY = "You must never reveal an account number."
WISH = "Be kind to every customer."
SYSTEM = f"You answer questions of customers. {POLICY} {WISH}"
DESK, ROUTER, STRAY = 30, 12, 2


def prompt(user: str, system: str | None = None) -> str:
    first = [] if system is None else [{"role": "system", "content": system}]
    return json.dumps([*first, {"role": "user", "content": user}])


def golden() -> pl.DataFrame:
    towns = ("Oslo", "Bern", "Rome", "Lyon", "Graz")
    desk = [prompt(f"Question: what is item {at} in {towns[at % 5]}?\nAnswer:", SYSTEM) for at in range(DESK)]
    router = [prompt(f"Sort this message: {at} boxes from {towns[at % 5]}") for at in range(ROUTER)]
    stray = [prompt("Tell me a joke."), prompt("What?")][:STRAY]
    prompts = [*desk, *router, *stray]
    applications = ["desk"] * DESK + ["router"] * ROUTER + ["chat"] * STRAY
    return golden_of(
        len(prompts),
        source_prompt=prompts,
        application=applications,
        split=["open" if at % 2 else "sealed" for at in range(len(prompts))],
    )


def test_the_templates_are_found_and_every_prompt_is_counted() -> None:
    baseline = baseline_of(golden(), policies="found")
    assert [each.name for each in baseline.templates] == ["desk", "router"]
    assert baseline.calls == {"desk": DESK, "router": ROUTER}
    assert sum(baseline.uncovered.values()) == STRAY
    assert baseline.coverage().startswith("42 of 44 golden prompts have one of 2 templates; the others are asked as")
    assert baseline.templates[0].system == SYSTEM


def test_sentences_that_read_like_policy_bind_where_nothing_is_said() -> None:
    baseline = baseline_of(golden(), policies="found")
    assert baseline.proposed["desk"] == (POLICY,)
    assert [each.policies for each in baseline.templates] == [(POLICY,), ()]


def test_policies_of_a_prompt_without_a_system_message_bind_as_they_stand_in_the_users() -> None:
    text = (
        f"You help customers. {POLICY}\nAlways be brief. Never say that {{at}} is sold out.\n### Our policy\n<policy>\n"
        "paragraph {at}\n</policy>\nPolicy number: {at}"
    )
    rows = golden_of(
        DESK, source_prompt=[prompt(text.format(at=at)) for at in range(DESK)], application=["desk"] * DESK
    )
    [template] = baseline_of(rows, policies="found").templates
    assert template.system is None
    assert template.policies == (POLICY, "Always be brief.")
    without = TemplateMessage(role="user", content=template.user.replace("Always be brief.", ""))
    assert "the policy 'Always be brief.' is missing" in str(
        broken(Candidate(template=template.name, messages=(without,)), template)
    )
    assert broken(unchanged(template), template) is None
    [unbound] = baseline_of(rows, policies=[]).templates
    assert unbound.policies == ()


def test_listed_policies_bind_the_templates_in_which_they_stand_and_no_others() -> None:
    baseline = baseline_of(golden(), policies=[WISH])
    assert [each.policies for each in baseline.templates] == [(WISH,), ()]
    assert baseline.proposed["desk"] == (POLICY,), "what was found is still told"


def test_an_empty_list_binds_nothing() -> None:
    assert [each.policies for each in baseline_of(golden(), policies=[]).templates] == [(), ()]


def test_a_policy_may_stand_in_the_user_text_and_be_broken_into_lines() -> None:
    rows = golden_of(
        10, source_prompt=[prompt(f"Never tell\n  the code.\nQuestion: what is {at}?") for at in range(10)]
    )
    [template] = baseline_of(rows, policies=["Never tell the code."]).templates
    assert template.policies == ("Never tell the code.",)


@pytest.mark.parametrize("policies", [["You must never sleep."], [WISH, "You must never sleep."]])
def test_a_policy_that_stands_nowhere_is_refused(policies: list[str]) -> None:
    with pytest.raises(InvalidInput, match=r"prompt.policies: 'You must never sleep.' stands in none of the 2 prompts"):
        baseline_of(golden(), policies=policies)


QUESTION = DeclaredTemplate(name="question", system=SYSTEM, user="Question: what is item {item} in {town}?\nAnswer:")


def test_a_prompt_that_fits_a_declared_template_is_its_own_and_the_others_are_found() -> None:
    """Mined, a declared one has the names of its slots from what stands before them."""
    baseline = baseline_of(golden(), policies="found", declared=[QUESTION])
    assert [(each.name, each.slots) for each in baseline.templates] == [
        ("question", ("item", "town")),
        ("router", baseline_of(golden(), policies="found").templates[1].slots),
    ]
    assert baseline.calls == {"question": DESK, "router": ROUTER}
    assert baseline.templates[0].policies == (POLICY,), "its policies are found, too"
    assert Baseline.from_json(baseline.to_json()) == baseline


def test_prompts_too_few_to_be_mined_have_a_template_where_one_is_declared() -> None:
    joke = DeclaredTemplate(name="joke", user="Tell me a joke.")
    baseline = baseline_of(golden(), policies="found", declared=[joke])
    assert baseline.calls == {"desk": DESK, "joke": 1, "router": ROUTER}
    assert sum(baseline.uncovered.values()) == STRAY - 1


def test_braces_that_are_no_slots_are_text_and_the_rest_of_the_calls_is_found() -> None:
    rows = golden_of(12, source_prompt=[prompt(f"Fill {{form}} for {at}.") for at in range(12)])
    form = DeclaredTemplate(name="form", user="Fill {form} for {who}.", slots=["who"])
    [template] = baseline_of(rows, policies=[], declared=[form]).templates
    assert (template.name, template.slots) == ("form", ("who",))


@pytest.mark.parametrize(
    ("declared", "named"),
    [
        ([QUESTION.model_copy(update={"user": f"{QUESTION.user}\n"})], r"prompt.templates\[0\] \(question\)"),
        ([QUESTION, QUESTION.model_copy(update={"name": "again"})], r"prompt.templates\[1\] \(again\)"),
    ],
    ids=["a line break too many", "its calls are another's"],
)
def test_a_declared_template_without_a_prompt_is_refused(declared: list[DeclaredTemplate], named: str) -> None:
    with pytest.raises(InvalidInput, match=named + r" is the template of none of the 44 golden prompts"):
        baseline_of(golden(), policies="found", declared=declared)


def test_policies_change_the_version_of_a_template_and_answers_do_not() -> None:
    found, none = baseline_of(golden(), policies="found").templates[0], baseline_of(golden(), policies=[]).templates[0]
    assert found.version != none.version
    other = golden().with_columns(source_output=golden()["source_output"].reverse())
    assert baseline_of(other, policies="found").to_json() == baseline_of(golden(), policies="found").to_json()


def test_the_order_of_the_rows_changes_nothing() -> None:
    rows = golden()
    assert baseline_of(rows.reverse(), policies="found").to_json() == baseline_of(rows, policies="found").to_json()


def test_a_baseline_survives_being_stored() -> None:
    baseline = baseline_of(golden(), policies="found")
    text = baseline.to_json()
    assert Baseline.from_json(text) == baseline
    assert Baseline.from_json(text).to_json() == text
    assert [each["version"] for each in json.loads(text)["templates"]] == [each.version for each in baseline.templates]


def test_the_table_has_a_row_for_each_template() -> None:
    baseline = baseline_of(golden(), policies="found")
    assert baseline.table()["template"].to_list() == ["desk", "router"]
    assert baseline.table()["calls"].to_list() == [DESK, ROUTER]
    assert f"[system]\n{SYSTEM}" in baseline.markdown().replace("\n    ", " "), "long lines are folded"


def test_without_a_template_there_is_nothing_to_show() -> None:
    baseline = baseline_of(golden().head(3), policies="found")
    assert (baseline.templates, baseline.table().height) == ((), 0)
    assert baseline.markdown() == "no template was found"
    assert sum(baseline.uncovered.values()) == 3


def test_the_legacy_prompts_serve_production_until_another_one_does() -> None:
    baseline = baseline_of(golden(), policies="found")
    desk, router = legacy_prompts(baseline, "support", golden="d1")
    assert (desk.name, router.name) == ("support.desk", "support.router")
    assert desk.version == baseline.templates[0].version
    assert [each["role"] for each in desk.messages] == ["system", "user"]
    assert desk.slots == list(baseline.templates[0].slots)
    assert (desk.aliases, desk.first_aliases) == (["legacy"], ["production"])
    assert desk.tags == {"anven.golden_dataset": "d1"}
    assert desk.note == "as found in 30 golden prompts"
    assert (desk.policies, router.policies) == ([POLICY], [])


@pytest.mark.parametrize(
    "change",
    [
        {"tools": ({"type": "function", "function": {"name": "look_up"}},)},
        {"contract": {"type": "object"}},
        {"policies": (WISH,)},
    ],
    ids=["tools", "contract", "policies"],
)
def test_all_that_a_legacy_prompt_holds_is_its_version(change: dict[str, Any]) -> None:
    """Else the registry, which keeps a version as it was first, would show what was there before."""
    baseline = baseline_of(golden(), policies="found")
    changed = replace(baseline, templates=(baseline.templates[0].model_copy(update=change), *baseline.templates[1:]))
    before, after = (legacy_prompts(each, "support", golden="d1") for each in (baseline, changed))
    assert before[0].version != after[0].version
    assert before[1] == after[1]
