"""The real llama-prompt-ops, in its own environment, between two scripted endpoints."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate, unchanged
from anven_pipelines.resources.prompt_ops import PromptOpsStrategy
from anven_pipelines.resources.prompt_ops_process import PYTHON, command_of
from anven_pipelines.resources.reflector import ReflectionBudget, Reflector
from anven_pipelines.spec_target import EndpointTarget
from tests.fakes.answered_trial import AnsweredTrial
from tests.fakes.folder_checkpoint import FolderCheckpoint
from tests.pipeline.conftest import logged_call, new_place, place_at
from tests.pipeline.test_adapted_prompt import declare, materialize, report
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.prompt_ops, pytest.mark.timeout(600)]

TEMPLATE = PromptTemplate(name="capitals", system="You are helpful.", user="{question}", slots=("question",))
PLANTED = "Answer with the name alone."
ITEMS = 12
NO_EXAMPLES = {
    "max_bootstrapped_demos": 0,
    "max_labeled_demos": 0,
    "use_llama_tips": False,
}


def propose(ask: Ask) -> Reply:
    """Fill the fields that DSPy asks its proposing model for."""
    fields = re.findall(r"`\[\[ ## (\w+) ## \]\]`", ask.prompt.rpartition("Respond with")[2])
    texts = {name: PLANTED if name == "proposed_instruction" else "capitals" for name in fields if name != "completed"}
    return Reply(
        "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in texts.items()) + "\n\n[[ ## completed ## ]]"
    )


def answer(ask: Ask) -> Reply:
    """Answer right only under the planted instruction, or with examples before the question."""
    number = re.findall(r"C(\d+)", ask.prompt)[-1]
    messages = ask.body["messages"]
    is_told = messages[0]["content"] == PLANTED
    return Reply(f"CITY{number}" if is_told else f"I think it is city {number}.")


class Bench:
    """The strategy, with answers kept in one folder."""

    def __init__(self, python: str, folder: Path) -> None:
        self.command = command_of({PYTHON: python})
        self.folder = folder

    def search(self, target: ScriptedEndpoint, proposer: ScriptedEndpoint, **changes: Any) -> Candidate:
        calls = changes.pop("calls", 500)

        def client(name: str, url: str) -> Reflector:
            endpoint = EndpointTarget(engine="endpoint", model=name, url=url)
            return Reflector(endpoint, FolderCheckpoint(self.folder / name), ReflectionBudget(calls), environ={})

        fields: dict[str, Any] = {
            "command": self.command,
            "target": lambda: client("small", target.url),
            "proposer": lambda: client("large", proposer.url),
            "timeout_s": 400.0,
            "settings": NO_EXAMPLES,
        }
        trial = AnsweredTrial(
            template=TEMPLATE,
            inputs=[{"question": f"capital of C{number}?"} for number in range(ITEMS)],
            right=[f"CITY{number}" for number in range(ITEMS)],
            target=lambda messages: "",
        )
        return PromptOpsStrategy(**{**fields, **changes}).search(trial, rng=np.random.default_rng(7))


@pytest.fixture
def bench(prompt_ops_python: str, tmp_path: Path) -> Bench:
    return Bench(prompt_ops_python, tmp_path)


def test_it_finds_the_planted_instruction_on_the_target_itself_and_pays_once(bench: Bench) -> None:
    with ScriptedEndpoint(answer) as target, ScriptedEndpoint(propose) as proposer:
        found = bench.search(target, proposer)
    assert [message.content for message in found.messages] == [PLANTED, TEMPLATE.user]
    assert {ask.body["model"] for ask in target.asks} == {"small"}
    assert {ask.body["model"] for ask in proposer.asks} == {"large"}
    assert {tuple(message["role"] for message in ask.body["messages"]) for ask in target.asks} == {("system", "user")}
    assert not any("[[ ##" in str(ask.body["messages"]) for ask in target.asks)

    with ScriptedEndpoint(answer) as target, ScriptedEndpoint(propose) as proposer:
        assert bench.search(target, proposer) == found
    assert (target.asks, proposer.asks) == ([], [])


def test_through_dagster_it_wins_by_the_same_test_and_all_that_it_asks_is_counted(
    prompt_ops_python: str, tmp_path: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ticket(ask: Ask) -> Reply:
        number = re.findall(r"ticket (\d+)", ask.prompt)[-1]
        is_told = any(message["content"] == PLANTED for message in ask.body["messages"])
        return Reply(json.dumps({"answer": number if is_told or int(number) % 3 == 0 else "none"}))

    monkeypatch.setenv(PYTHON, prompt_ops_python)
    with (
        ScriptedEndpoint(ticket) as target,
        ScriptedEndpoint(propose) as proposer,
        place_at(new_place(tmp_path, empty_mlflow)) as place,
    ):
        reflection = {"model": "large", "url": proposer.url}
        wanted: dict[str, Any] = {
            "strategies": ["prompt_ops"],
            "reflection": reflection,
            "examples": True,
            "guard_margin": 0.5,
        }
        declared = declare(place, target, **wanted)
        place.write_log([logged_call(at) for at in range(140)])
        assert materialize(place, declared).success
        found = report(place)
    assert [heat["origin"] for heat in found["heats"] if heat["chosen"]] == ["prompt_ops"]
    assert found["adapted"], found["reasons"]
    assert f"+{PLANTED}" in found["diff"]["helpdesk"]
    assert found["cost"]["calls"] == len(target.asks)
    assert found["cost"]["rewriting_calls"] == len(proposer.asks) > 0


def test_its_examples_stand_before_the_question(bench: Bench) -> None:
    def learns(ask: Ask) -> Reply:
        is_shown = len(ask.body["messages"]) > 2
        number = re.findall(r"C(\d+)", ask.prompt)[-1]
        return Reply(f"CITY{number}" if is_shown else "I do not know.")

    with ScriptedEndpoint(learns) as target, ScriptedEndpoint(propose) as proposer:
        found = bench.search(target, proposer, settings={"use_llama_tips": False})
    assert int(found.moves["examples"]) > 0
    roles = [message.role for message in found.messages]
    assert roles[-3:] == ["user", "assistant", "user"]
    assert found.messages[-1].content == TEMPLATE.user


def test_its_own_strategy_for_llama_runs(bench: Bench) -> None:
    with ScriptedEndpoint(answer) as target, ScriptedEndpoint(propose) as proposer:
        found = bench.search(target, proposer, strategy="llama", settings={})
    assert found.origin in ("prompt-ops", "unchanged")
    assert found.messages[-1].content == TEMPLATE.user
    assert target.asks


def test_it_stops_within_the_budget(bench: Bench) -> None:
    with ScriptedEndpoint(answer) as target, ScriptedEndpoint(propose) as proposer:
        found = bench.search(target, proposer, calls=7)
    assert found.version == unchanged(TEMPLATE).version
    assert "of 7 calls" in found.moves["prompt-ops"]
    assert max(len(target.asks), len(proposer.asks)) <= 7
