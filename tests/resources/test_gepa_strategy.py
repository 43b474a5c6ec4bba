"""GEPA with a scripted model that rewrites, behind a real HTTP endpoint, and a target that is a function."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate, unchanged
from anven_pipelines.resources.gepa_strategy import GepaStrategy
from anven_pipelines.resources.pace import Pace
from anven_pipelines.resources.reflector import ReflectionBudget, Reflector
from anven_pipelines.spec_target import EndpointTarget
from anven_pipelines.spec_values import Price
from tests.fakes.answered_trial import AnsweredTrial
from tests.fakes.folder_checkpoint import FolderCheckpoint
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = "s3cret-key-of-the-team"
TEMPLATE = PromptTemplate(
    name="capitals", system="You are helpful.", user="Question: {question}\nAnswer:", slots=("question",)
)
PARTS = ("system", "user")
PLANTED = "Answer with the name alone, in capitals."


def target(messages: list[dict[str, str]]) -> str:
    """Answer right only under the planted instruction; without it, talk."""
    number = messages[-1]["content"].partition("C")[2].partition("?")[0]
    return f"CITY{number}" if PLANTED in messages[0]["content"] else f"I think it is city {number}."


def trial(items: int = 24, **changes: Any) -> AnsweredTrial:
    fields: dict[str, Any] = {
        "template": TEMPLATE,
        "inputs": [{"question": f"What is the capital of C{number}?"} for number in range(items)],
        "right": [f"CITY{number}" for number in range(items)],
        "target": target,
        "must_hold": ("{question}",),
    }
    return AnsweredTrial(**{**fields, **changes})


async def no_wait(_: float) -> None:
    pass


@dataclass
class Bench:
    """Searches with a scripted endpoint into one checkpoint."""

    folder: Path
    reflectors: list[Reflector] = field(default_factory=list)

    def search(self, endpoint: ScriptedEndpoint, trial: AnsweredTrial, **changes: Any) -> Candidate:
        budget = changes.pop("budget", ReflectionBudget(calls=6))
        metric_calls = changes.pop("metric_calls", 1000)
        minibatch = changes.pop("minibatch", 4)

        def reflector() -> Reflector:
            target = EndpointTarget(
                engine="endpoint",
                model="large",
                url=endpoint.url,
                api_key_env="REFLECTION_KEY",
                max_attempts=2,
                **changes,
            )
            made = Reflector(
                target,
                FolderCheckpoint(self.folder),
                budget,
                environ={"REFLECTION_KEY": KEY},
                pace=Pace(sleep=no_wait, jitter=lambda: 0.0),
            )
            self.reflectors.append(made)
            return made

        strategy = GepaStrategy(reflector, metric_calls=metric_calls, minibatch=minibatch, frontier_items=8)
        return strategy.search(trial, rng=np.random.default_rng(7))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "reflections")


def fenced(text: str) -> Reply:
    return Reply(f"Here it is:\n```\n{text}\n```")


def planting(ask: Ask) -> Reply:
    """Propose the planted instruction for the system message, and leave the user message as it is."""
    return fenced(PLANTED if "the system message" in ask.prompt else TEMPLATE.user)


def test_the_planted_instruction_is_found(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    asked = trial(stratum=dict.fromkeys(range(24), "task capitals"))
    with ScriptedEndpoint(planting, api_key=KEY) as endpoint:
        found = bench.search(endpoint, asked)
    assert [message.content for message in found.messages] == [PLANTED, TEMPLATE.user]
    assert asked.rewriting.calls == len(endpoint.asks) == bench.reflectors[0].spent.calls
    assert "task capitals" in endpoint.asks[0].prompt
    assert (found.origin, found.moves) == ("gepa", {"rewritten": "the system message"})
    assert "found 'I think it is city" in endpoint.asks[0].prompt
    assert "4 of 4 answers" in endpoint.asks[0].prompt
    assert "CITY" in endpoint.asks[0].prompt
    assert max(asked.asked.values()) == 1
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_model_is_told_that_there_is_no_system_message_and_not_that_one_says_so(bench: Bench) -> None:
    bare = trial(template=TEMPLATE.model_copy(update={"system": None}))
    with ScriptedEndpoint(planting, api_key=KEY) as endpoint:
        found = bench.search(endpoint, bare)
    asked = next(ask.prompt for ask in endpoint.asks if "the system message" in ask.prompt)
    assert asked.startswith("My requests to an assistant have no text as the system message yet.\n\nThis is what")
    assert "I use the following text" not in asked
    assert [message.content for message in found.messages] == [PLANTED, TEMPLATE.user]


def test_each_text_is_asked_for_its_own_slots_only(bench: Bench) -> None:
    """A model that is told to put a slot of the system message into the user message breaks a constraint each time."""
    both = TEMPLATE.model_copy(update={"system": "You help at {shop}.", "slots": ("shop", "question")})
    inputs = [{"question": f"What is the capital of C{number}?", "shop": "ours"} for number in range(24)]
    with ScriptedEndpoint(lambda _: Reply("Hm."), api_key=KEY) as endpoint:
        bench.search(endpoint, trial(template=both, inputs=inputs))
    told = {part: next(ask.prompt for ask in endpoint.asks if f"as the {part} message" in ask.prompt) for part in PARTS}
    rules = {part: next(line for line in text.splitlines() if "placeholders" in line) for part, text in told.items()}
    assert ("{shop}" in rules["system"], "{question}" in rules["system"]) == (True, False)
    assert ("{shop}" in rules["user"], "{question}" in rules["user"]) == (False, True)


def test_a_prompt_that_is_right_everywhere_is_left_alone_and_nobody_is_asked_to_rewrite_it(bench: Bench) -> None:
    perfect = trial(target=lambda messages: f"CITY{messages[-1]['content'].partition('C')[2].partition('?')[0]}")
    with ScriptedEndpoint(planting, api_key=KEY) as endpoint:
        assert bench.search(endpoint, perfect) == unchanged(TEMPLATE)
    assert endpoint.asks == []


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (lambda ask: Reply("I would rather talk about the weather."), None),
        (lambda ask: Reply("```\n" + PLANTED, finish_reason="length"), None),
        (lambda ask: fenced("Be nicer."), None),
        (lambda ask: fenced("Answer.") if "the user message" in ask.prompt else Reply("no"), "lacks '{question}'"),
        (lambda ask: Reply("prompt too long", status=400) if ask.prompt.count("user message") else Reply("no"), None),
    ],
    ids=["talk", "cut off", "no better", "breaks a slot", "refuses one question"],
)
def test_proposals_that_are_none_leave_the_prompt_unchanged(
    bench: Bench, script: Callable[[Ask], Reply], told: str | None
) -> None:
    asked = trial()
    with ScriptedEndpoint(script, api_key=KEY) as endpoint:
        assert bench.search(endpoint, asked).version == unchanged(TEMPLATE).version
    assert bench.reflectors[0].spent.calls == 6
    if told is not None:
        assert told in endpoint.asks[-1].prompt
        assert {version for version, _ in asked.asked} == {unchanged(TEMPLATE).version}


@pytest.mark.parametrize(
    ("script", "key", "changes", "error", "said"),
    [
        (planting, "another", {}, InvalidInput, "refused 1 requests"),
        (lambda ask: Reply(delay_s=5), KEY, {"timeout": "1s"}, UnavailableService, r"within 1 s; attempts: 2\)"),
        (lambda ask: Reply("busy", status=503), KEY, {}, UnavailableService, "HTTP 503"),
        (lambda ask: Reply(breaks="midway"), KEY, {}, UnavailableService, "broken_answer"),
        (planting, KEY, {"budget": ReflectionBudget(calls=6, usd=1.0)}, InvalidInput, "price"),
    ],
    ids=["key", "time", "busy", "broken", "no price"],
)
def test_an_endpoint_that_does_not_answer_ends_the_search_with_its_reason(
    bench: Bench, script: Callable[[Ask], Reply], key: str, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with ScriptedEndpoint(script, api_key=key) as endpoint, pytest.raises(error, match=said) as raised:
        bench.search(endpoint, trial(), **changes)
    assert KEY not in str(raised.value)
    assert len(endpoint.asks) <= 2


def test_a_search_that_was_stopped_is_answered_from_what_is_kept(bench: Bench) -> None:
    def dies_at_the_third(ask: Ask) -> Reply:
        return Reply("down", status=503) if len(endpoint.asks) >= 3 else fenced(f"Try {len(endpoint.asks)}.")

    def goes_on(ask: Ask) -> Reply:
        return planting(ask)

    first = trial()
    with ScriptedEndpoint(dies_at_the_third, api_key=KEY) as endpoint, pytest.raises(UnavailableService):
        bench.search(endpoint, first)
    paid = [ask.prompt for ask in endpoint.asks[:2]]

    second = trial(_kept=first._kept)
    with ScriptedEndpoint(goes_on, api_key=KEY) as endpoint:
        found = bench.search(endpoint, second)
    assert found.messages[0].content == PLANTED
    assert not {ask.prompt for ask in endpoint.asks} & set(paid)
    assert not second.asked.keys() & first.asked.keys()

    third = trial(_kept=second._kept)
    with ScriptedEndpoint(goes_on, api_key=KEY) as endpoint:
        assert bench.search(endpoint, third) == found
    assert endpoint.asks == []
    assert not third.asked
    assert bench.reflectors[2].spent == bench.reflectors[1].spent


@pytest.mark.parametrize("metric_calls", [0, 7, 8, 13, 20, 1000])
def test_answers_of_the_target_stay_within_their_budget(bench: Bench, metric_calls: int) -> None:
    asked = trial()
    with ScriptedEndpoint(planting, api_key=KEY) as endpoint:
        found = bench.search(endpoint, asked, metric_calls=metric_calls)
    assert sum(asked.asked.values()) <= metric_calls
    assert (found.messages[0].content == PLANTED) == (metric_calls == 1000)


def test_a_budget_of_the_trial_ends_the_search_with_the_best_so_far(bench: Bench) -> None:
    asked = trial(budget=15)
    with ScriptedEndpoint(planting, api_key=KEY) as endpoint:
        assert bench.search(endpoint, asked) == unchanged(TEMPLATE)
    assert sum(asked.asked.values()) <= 15


@pytest.mark.parametrize(
    ("budget", "changes", "calls"),
    [
        (ReflectionBudget(calls=0), {}, 0),
        (ReflectionBudget(calls=3), {}, 3),
        (ReflectionBudget(calls=9, tokens=1), {}, 1),
        (
            ReflectionBudget(calls=9, usd=1e-9),
            {"price": Price(input_usd_per_million=1, output_usd_per_million=1, source="test")},
            1,
        ),
    ],
    ids=["none", "calls", "tokens", "money"],
)
def test_the_model_that_rewrites_is_asked_within_its_budget(
    bench: Bench, budget: ReflectionBudget, changes: dict[str, Any], calls: int
) -> None:
    with ScriptedEndpoint(lambda ask: Reply("no"), api_key=KEY) as endpoint:
        assert bench.search(endpoint, trial(), budget=budget, **changes) == unchanged(TEMPLATE)
    assert len(endpoint.asks) == calls
    assert bench.reflectors[0].spent.calls == calls


def test_a_server_that_counts_no_tokens_is_charged_a_token_for_each_byte(bench: Bench) -> None:
    asked = trial()
    with ScriptedEndpoint(lambda ask: Reply("no", usage=False), api_key=KEY) as endpoint:
        bench.search(endpoint, asked, budget=ReflectionBudget(calls=9, tokens=100))
    assert len(endpoint.asks) == 1
    assert bench.reflectors[0].spent.tokens > len(endpoint.asks[0].prompt)
    assert asked.rewriting.computed
    assert str(bench.reflectors[0].exhausted()).startswith("at most ")


def test_the_same_seed_takes_the_same_steps(tmp_path: Path) -> None:
    def prompts(folder: str) -> list[str]:
        with ScriptedEndpoint(lambda ask: fenced(f"Be brief, {len(ask.prompt)}."), api_key=KEY) as endpoint:
            Bench(tmp_path / folder).search(endpoint, trial())
        return [ask.prompt for ask in endpoint.asks]

    assert prompts("one") == prompts("two")


def test_nothing_to_ask_leaves_the_prompt_unchanged(bench: Bench) -> None:
    with ScriptedEndpoint(planting, api_key=KEY) as endpoint:
        assert bench.search(endpoint, trial(items=0)) == unchanged(TEMPLATE)


def test_few_items_serve_for_both_ends(bench: Bench) -> None:
    with ScriptedEndpoint(planting, api_key=KEY) as endpoint:
        assert bench.search(endpoint, trial(items=3)).messages[0].content == PLANTED


def test_without_the_extra_the_error_names_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gepa", None)
    with (
        ScriptedEndpoint(planting, api_key=KEY) as endpoint,
        pytest.raises(InvalidInput, match=r"extra adapt .*\[adapt\]"),
    ):
        bench.search(endpoint, trial())
