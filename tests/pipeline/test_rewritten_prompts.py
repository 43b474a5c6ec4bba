"""Prompts that a model rewrites, through Dagster: the target and the model that rewrites are scripted HTTP servers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from anven_pipelines.domain.canonical import canonical_json
from tests.pipeline.test_adapted_prompt import check, declare, materialize, report
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from tests.pipeline.conftest import Place

PRICE = {"input_usd_per_million": 1, "output_usd_per_million": 1, "source": "test"}
PLANTED = "Write the ticket's number as JSON."
STAND_IN = Path(__file__).resolve().parents[1] / "fakes" / "prompt_ops_stand_in.py"


def number_in(ask: Ask) -> int:
    return int(re.findall(r"ticket\D*(\d+)", ask.prompt)[-1])


def texts(ask: Ask) -> list[str]:
    return [str(message["content"]) for message in ask.body["messages"]]


def answers(ask: Ask, *, right: bool) -> Reply:
    return Reply(json.dumps({"answer": str(number_in(ask)) if right else "none"}))


def wants_the_planted_rule(ask: Ask) -> Reply:
    """Answer all questions under the planted rule, four of five with an example, and a third as they were logged."""
    told, number = texts(ask), number_in(ask)
    return answers(ask, right=PLANTED in told[0] or number % 3 == 0 or (len(told) > 2 and number % 5 > 0))


def plants_the_rule(ask: Ask) -> Reply:
    """Propose a user message without its slot, and the planted rule for the system message."""
    return Reply(f"```\n{PLANTED if 'as the system message' in ask.prompt else 'Answer the question.'}\n```")


def chosen(found: dict[str, Any]) -> list[str]:
    return [heat["origin"] for heat in found["heats"] if heat["chosen"]]


def test_gepa_finds_a_rule_proves_it_and_pays_once(place: Place) -> None:
    with ScriptedEndpoint(wants_the_planted_rule) as endpoint, ScriptedEndpoint(plants_the_rule) as large:
        reflection = {"model": "large", "url": large.url, "calls": 4, "price": PRICE}
        declared = declare(place, endpoint, strategies=["gepa"], reflection=reflection)
        result = materialize(place, declared)
        assert result.success
        searched = report(place)
        [gain] = searched["gains"]
        assert (gain["proven"], gain["after"], searched["adapted"]) == (True, 1.0, True), searched["reasons"]
        assert check(result, "gain_proven").passed
        assert chosen(searched) == ["gepa"]
        assert f"+{PLANTED}" in searched["diff"]["helpdesk"]
        cost = searched["cost"]
        assert cost["calls"] == len(endpoint.asks)
        assert cost["rewriting_calls"] == len(large.asks) > 0
        assert cost["rewriting_usd"] * 1e6 == cost["rewriting_tokens"] > cost["rewriting_calls"]
        told = metadata(place)
        assert "| helpdesk | gepa (chosen) |" in told["entries"]
        assert f"| helpdesk | {gain['n']} | {gain['before']:.3f} | 1.000 | +" in told["gains"]
        assert "1.000 on the items that GEPA scores with" in told["changes"]
        assert f"{len(large.asks)} of the model that rewrites" in told["spent"]
        assert "![gain chart](data:image/png" in told["gain_chart"]
        asked = len(endpoint.asks), len(large.asks)
        assert materialize(place, declared).success
        assert (len(endpoint.asks), len(large.asks)) == asked
        assert report(place) == searched


@pytest.mark.parametrize(
    ("limits", "asked"),
    [({}, 8), ({"tokens": 1}, 1), ({"price": PRICE, "usd": 1e-9}, 1)],
    ids=["calls only", "tokens", "money"],
)
def test_the_declared_limits_of_the_model_that_rewrites_are_held(
    place: Place, limits: dict[str, Any], asked: int
) -> None:
    """It talks, so that nothing but a limit ends the search."""
    with ScriptedEndpoint(wants_the_planted_rule) as endpoint, ScriptedEndpoint(lambda _: Reply("Hm.")) as large:
        reflection = {"model": "large", "url": large.url, "calls": 8, **limits}
        assert materialize(place, declare(place, endpoint, strategies=["gepa"], reflection=reflection)).success
        assert len(large.asks) == report(place)["cost"]["rewriting_calls"] == asked


def test_a_model_that_rewrites_is_asked_as_often_as_is_declared(place: Place) -> None:
    with (
        ScriptedEndpoint(wants_the_planted_rule) as endpoint,
        ScriptedEndpoint(lambda _: Reply("", status=503)) as large,
    ):
        reflection = {"model": "large", "url": large.url, "max_attempts": 2}
        assert not materialize(place, declare(place, endpoint, strategies=["gepa"], reflection=reflection)).success
        assert len(large.asks) == 2


def test_a_rewritten_prompt_that_drops_a_slot_is_never_asked(place: Place) -> None:
    with (
        ScriptedEndpoint(wants_the_planted_rule) as endpoint,
        ScriptedEndpoint(lambda ask: Reply("```\nAnswer the question of {somebody}.\n```")) as large,
    ):
        reflection = {"model": "large", "url": large.url, "calls": 4}
        assert materialize(place, declare(place, endpoint, strategies=["gepa"], reflection=reflection)).success
        searched = report(place)
        assert searched["cost"]["rewriting_calls"] == len(large.asks) == 4
    assert any("as the user message" in ask.prompt for ask in large.asks)
    assert "thrown away" in large.asks[-1].prompt
    assert all(re.search(r"\d", ask.prompt) for ask in endpoint.asks), "the slot is filled in everything that is asked"
    assert not searched["adapted"]


def test_gepa_and_racing_compete_and_the_better_one_wins_by_the_same_test(place: Place) -> None:
    with ScriptedEndpoint(wants_the_planted_rule) as endpoint, ScriptedEndpoint(plants_the_rule) as large:
        reflection = {"model": "large", "url": large.url, "calls": 4}
        both = declare(place, endpoint, strategies=["racing", "gepa"], reflection=reflection, budget={"calls": 1000})
        assert materialize(place, both).success
        searched = report(place)
    scores = {heat["origin"]: heat["score"] for heat in searched["heats"]}
    assert scores.keys() == {"unchanged", "structural", "racing", "gepa"}
    assert scores["unchanged"] < scores["racing"] < scores["gepa"] == 1.0
    assert len({heat["n"] for heat in searched["heats"]}) == 1, "all are asked on the same items"
    assert chosen(searched) == ["gepa"]
    assert [gain["proven"] for gain in searched["gains"]] == [True], "one test for the one that was chosen"
    assert searched["cost"]["calls"] == len(endpoint.asks) <= 1000


def metadata(place: Place) -> dict[str, str]:
    shown = place.instance.get_latest_materialization_event(dg.AssetKey("adapted_prompt"))
    assert shown is not None
    assert shown.asset_materialization is not None
    return {name: str(each.value) for name, each in shown.asset_materialization.metadata.items()}


def test_strategies_that_fail_leave_the_others_and_a_later_run_goes_on_from_what_they_asked(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepare(monkeypatch, tmp_path, mode="crash")
    is_up = False

    def proposes_nothing_and_goes_down(ask: Ask) -> Reply:
        if is_up:
            return plants_the_rule(ask)
        # It asks for more time than anybody waits, so that nobody tries again.
        down = Reply("starting", status=503, headers={"retry-after": "9999"})
        return Reply("Let me think about it.") if len(large.asks) == 1 else down

    with (
        ScriptedEndpoint(wants_the_planted_rule) as endpoint,
        ScriptedEndpoint(proposes_nothing_and_goes_down) as large,
    ):
        reflection = {"model": "large", "url": large.url, "calls": 4}
        three = ["prompt_ops", "racing", "gepa"]
        declared = declare(place, endpoint, strategies=three, reflection=reflection, budget={"calls": 1500})
        result = materialize(place, declared)
        assert result.success
        assert check(result, "gain_proven").passed
        first = report(place)
        assert chosen(first) == ["racing"]
        assert [each["strategy"] for each in first["failed"]] == ["prompt_ops", "gepa"]
        assert "the optimiser fell over" in first["failed"][0]["why"]
        assert "see that it is up" in first["failed"][1]["why"]
        assert all(each["why"] in " ".join(first["reasons"]) for each in first["failed"])
        assert metadata(place)["failed"].count("materialise adapted_prompt again") == 2
        assert place.state.events("prompt/support", "validated")[0].payload["prompt"] == first["version"]

        paid = large.asks[0].prompt
        is_up = True
        prepare(monkeypatch, tmp_path, mode="well")
        assert materialize(place, declared).success
        second = report(place)
        assert chosen(second) != ["racing"]
        assert (second["failed"], metadata(place)["failed"]) == ([], "No strategy failed.")
        asked = [canonical_json(ask.body["messages"]) for ask in endpoint.asks]
        assert len(asked) == len(set(asked)), "what was answered in the first run is not asked again"
        assert [ask.prompt for ask in large.asks].count(paid) == 1


def test_the_only_strategy_that_fails_ends_the_run_before_a_look(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepare(monkeypatch, tmp_path, mode="crash")
    with ScriptedEndpoint(wants_the_planted_rule) as endpoint:
        reflection = {"model": "large", "url": endpoint.url}
        assert not materialize(
            place, declare(place, endpoint, strategies=["prompt_ops"], reflection=reflection)
        ).success
    assert place.state.events("prompt/support", "validated") == []


def prepare(monkeypatch: pytest.MonkeyPatch, folder: Path, *, mode: str) -> None:
    """Name a Python that takes `-I -m MODULE` as the one of llama-prompt-ops does, and runs the stand-in."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = -c ] && exit 0\nshift 3\nexec {sys.executable} {STAND_IN} {mode} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("ANVEN_PROMPT_OPS_PYTHON", str(python))


def test_prompt_ops_counts_what_it_asks_by_itself(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="anven_pipelines.resources.prompt_ops")
    prepare(monkeypatch, tmp_path, mode="well")
    with ScriptedEndpoint(wants_the_planted_rule) as endpoint, ScriptedEndpoint(lambda _: Reply(PLANTED)) as large:
        reflection = {"model": "large", "url": large.url}
        size = {"items": 20, "settings": {"num_trials": 3}, "timeout": "1m"}
        declared = declare(place, endpoint, strategies=["prompt_ops"], reflection=reflection, prompt_ops=size)
        assert materialize(place, declared).success
        searched = report(place)
        assert chosen(searched) == ["prompt_ops"]
        assert "optimising 20 rows" in caplog.text
        assert searched["adapted"], searched["reasons"]
        assert searched["cost"]["calls"] == len(endpoint.asks)
        assert searched["cost"]["rewriting_calls"] == len(large.asks) == 1
        asked = len(endpoint.asks), len(large.asks)
        assert materialize(place, declared).success
        assert (len(endpoint.asks), len(large.asks)) == asked
        assert report(place) == searched
