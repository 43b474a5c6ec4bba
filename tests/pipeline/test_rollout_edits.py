"""A migration file that changes while its rollout runs, or a plan of another release: the ramp stops, no harm hides."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.rollout import Advance, Hold, RollBack
from anven_pipelines.domain.rollout_plan import edit_of, plan_in
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.spec_rollout import Rollout
from tests.running_rollout import LIMITS, NOW, ROLLOUT, START, begun, serve, share_in_force, tick

if TYPE_CHECKING:
    from anven_pipelines.resources.rollouts import Rollouts
    from tests.pipeline.conftest import Place

PRICED = {
    "model": "legacy-model",
    "logs": "../log-*.jsonl",
    "price": {"input_usd_per_million": 1.0, "output_usd_per_million": 2.0, "source": "a test"},
}


@pytest.fixture
def rollouts(place: Place) -> Rollouts:
    """Give the rollouts of a place in which `support` is signed off and has begun its first stage."""
    return begun(place)


def test_an_edit_of_the_plan_stops_the_ramp(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    place.declare(rollout=ROLLOUT | {"limits": LIMITS | {"quality": 0.5}})

    decision = rollouts.step("support", now=NOW).decision

    assert isinstance(decision, Hold)
    assert "the migration file's rollout changed since this attempt began" in decision.reasons[0]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"target": {"model": "another", "engine": "recorded", "answers": "../answers.jsonl"}}, "target"),
        ({"prompt": {"longest": 3.0}}, "prompt"),
        (
            {"gateway": {"legacy": {"model": "openai/gpt-4o"}, "target": {"model": "hosted_vllm/another"}}},
            "gateway",
        ),
        ({"contract": {"json_object": True}}, "contract"),
        ({"legacy": PRICED}, "legacy.price"),
    ],
)
def test_an_edit_of_what_is_served_stops_the_ramp_as_well(
    place: Place, rollouts: Rollouts, section: dict[str, Any], words: str
) -> None:
    serve(place)
    place.declare(rollout=ROLLOUT, **section)

    decision = rollouts.step("support", now=NOW).decision

    assert isinstance(decision, Hold)
    assert decision.reasons == (
        f"the migration file's {words} changed since this attempt began: abort it and start anew, or restore the file",
    )
    place.declare(rollout=ROLLOUT)
    assert isinstance(rollouts.step("support", now=NOW).decision, Advance)


def test_an_edit_of_what_the_form_requires_stops_the_ramp_as_well(place: Place, rollouts: Rollouts) -> None:
    def declare(*required: str) -> None:
        place.declare(rollout=ROLLOUT, contract={"json_object": True, "required": list(required)})

    declare("answer", "cause")
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=START)
    rollouts.start("support", who="ada", now=START)
    serve(place, attempt=2, generation=3, contract_ok=True)
    declare("answer")

    decision = rollouts.step("support", now=NOW).decision

    assert isinstance(decision, Hold)
    assert decision.reasons[0].startswith("the migration file's contract changed since this attempt began")
    declare("answer", "cause")
    assert isinstance(rollouts.step("support", now=NOW).decision, Advance)


def test_an_attempt_of_an_earlier_release_goes_on_by_what_its_plan_holds() -> None:
    written = {
        "rollout": Rollout().model_dump(mode="json"),
        "metrics": [],
        "serving": {"target": "a", "prompt": "b", "gateway": "c"},
    }
    begun = plan_in("support", written)
    declared = replace(begun, serving=(*begun.serving, ("contract", "d"), ("legacy.price", "e")))

    assert edit_of(begun, declared) is None
    assert edit_of(declared, replace(declared, serving=begun.serving)) == (
        "the migration file's contract and legacy.price changed"
    )


@pytest.mark.parametrize("text", [None, "workload: [support"])
def test_harm_is_rolled_back_though_the_migration_file_is_gone_or_broken(
    place: Place, rollouts: Rollouts, text: str | None
) -> None:
    serve(place, errors=0.3)
    file = place.folder / "migrations" / "support.yaml"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)

    (request,) = tick(place, rollouts).run_requests or []
    found = rollouts.step("support", now=NOW)

    assert isinstance(found.decision, RollBack)
    assert (request.partition_key, share_in_force(rollouts)) == ("support", 0.0)


@pytest.mark.parametrize(("errors", "share"), [(0.0, 0.5), (0.3, 0.0)])
def test_an_edit_of_the_stages_neither_moves_traffic_nor_hides_harm(
    place: Place, rollouts: Rollouts, errors: float, share: float
) -> None:
    serve(place, errors=errors)
    place.declare(rollout=ROLLOUT | {"stages": [{"share": 1.0, "soak": "24h"}]})

    rollouts.step("support", now=NOW)

    assert share_in_force(rollouts) == share


def test_a_plan_that_shrank_below_the_stage_is_no_crash(place: Place, rollouts: Rollouts) -> None:
    serve(place)
    rollouts.step("support", now=NOW)
    place.declare(rollout=ROLLOUT | {"stages": [{"share": 1.0, "soak": "24h"}]})

    assert isinstance(rollouts.step("support", now=NOW).decision, Hold)
    assert (rollouts.status("support").stage, share_in_force(rollouts)) == (1, 1.0)


def of_another_release(place: Place) -> None:
    """Have the log's plan name what this release does not know."""
    with sqlite3.connect(place.folder / "home" / "state.db") as database:
        written = """update events set payload = replace(payload, '"rollout":{', '"rollout":{"new_section":1,')"""
        database.execute(f"{written} where kind = 'started'")
    database.close()


@pytest.mark.parametrize(("errors", "share"), [(0.0, 0.5), (0.3, 0.0)])
@pytest.mark.parametrize("stages", [ROLLOUT["stages"], [{"share": 0.1, "soak": "24h"}, {"share": 1.0, "soak": "24h"}]])
def test_a_plan_of_another_release_stops_the_ramp_and_hides_no_harm(
    place: Place, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch, errors: float, share: float, stages: Any
) -> None:
    monkeypatch.setattr(StateStore, "require_intact", lambda _: None)  # the other release wrote it whole
    serve(place, errors=errors)
    of_another_release(place)
    place.declare(rollout=ROLLOUT | {"stages": stages})

    asked = tick(place, rollouts)
    decision = rollouts.step("support", now=NOW).decision

    assert share_in_force(rollouts) == share
    if errors:
        assert asked.run_requests
        assert isinstance(decision, RollBack)
    else:
        assert not asked.run_requests
        assert isinstance(decision, Hold)
        assert "another release wrote the attempt's plan, which this one cannot read, since" in decision.reasons[0]
