"""The nightly regression: the golden set against what serves production, paired with the frozen baseline."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import dagster as dg
import pytest

from anven_pipelines.chain import LOG_ASSETS
from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.schedules import nightly_regression
from tests.pipeline.conftest import Place, logged_call, recorded_answer
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anven_pipelines.resources.migrations import Declared

ITEMS = 250


def signed_off(place: Place, url: str) -> Declared:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    answers = [recorded_answer(at, str(at)) for at in range(ITEMS)]
    (place.folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))
    declared = place.declare(regression={"url": url, "margin": 0.05})
    assert place.migrate(declared).verdict == "GO"
    return declared


def run_night(place: Place, night: str) -> dg.ExecuteInProcessResult:
    config = {"ops": {"production_regression": {"config": {"epoch": night}}}}
    return place.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        run_config=config,
        instance=place.instance,
        partition_key="support",
        asset_selection=[dg.AssetKey("production_regression")],
        raise_on_error=False,
    )


def checks(result: dg.ExecuteInProcessResult) -> dict[str, tuple[bool, str | None]]:
    found = result.get_asset_check_evaluations()
    return {check.check_name: (check.passed, check.description) for check in found}


def answer(ask: Ask, *, wrong_below: int) -> Reply:
    number = ask.prompt.removesuffix("?").split()[-1]
    return Reply(json.dumps({"answer": "wrong" if int(number) < wrong_below else number}))


def test_what_still_answers_as_at_sign_off_passes(place: Place) -> None:
    with ScriptedEndpoint(lambda ask: answer(ask, wrong_below=0)) as endpoint:
        signed_off(place, endpoint.url)
        result = run_night(place, "2026-11-21")
    assert result.success
    assert {name: passed for name, (passed, _) in checks(result).items()} == {
        "no_regression": True,
        "proven_not_worse": True,
    }


def test_a_regression_fails_a_blocking_check_with_a_clear_message(place: Place) -> None:
    with ScriptedEndpoint(lambda ask: answer(ask, wrong_below=60)) as endpoint:
        signed_off(place, endpoint.url)
        result = run_night(place, "2026-11-21")
    assert not result.success
    passed, message = checks(result)["no_regression"]
    assert not passed
    assert message is not None
    assert message.startswith(
        "REGRESSION of support against its sign-off: worse than the margin is proven: mean score 76.00%"
    )


def test_each_night_asks_afresh_and_one_night_twice_asks_once(place: Place) -> None:
    with ScriptedEndpoint(lambda ask: answer(ask, wrong_below=0)) as endpoint:
        signed_off(place, endpoint.url)
        for night in ("2026-11-21", "2026-11-21", "2026-11-22"):
            run_night(place, night)
        assert len(endpoint.asks) == 2 * ITEMS


def test_a_night_is_in_the_ledger_once_and_what_it_saw_judges_no_other_answers(place: Place) -> None:
    with ScriptedEndpoint(lambda ask: answer(ask, wrong_below=0)) as endpoint:
        declared = signed_off(place, endpoint.url)
        for night in ("2026-11-21", "2026-11-21", "2026-11-22"):
            run_night(place, night)
    nights = [event.payload["night"] for event in place.state.events("holdout/support", "asked")]
    assert nights == ["2026-11-21", "2026-11-22"]
    assert place.migrate(declared).verdict == "GO"
    answers = [recorded_answer(at, "wrong" if at == 0 else str(at)) for at in range(ITEMS)]
    (place.folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))
    with pytest.raises(InvalidInput, match="opened by a nightly regression"):
        place.migrate(declared)


def test_the_baseline_stays_frozen_when_the_chain_runs_on(place: Place) -> None:
    with ScriptedEndpoint(lambda ask: answer(ask, wrong_below=0)) as endpoint:
        signed_off(place, endpoint.url)
        place.write_log([logged_call(at) for at in range(100)])
        job = place.definitions.resolve_implicit_global_asset_job_def()
        for assets, partition in ((LOG_ASSETS, "2026-10-05"), (("power_plan", "golden_dataset"), "support")):
            assert job.execute_in_process(
                instance=place.instance,
                partition_key=partition,
                asset_selection=[dg.AssetKey(asset) for asset in assets],
            ).success
        run_night(place, "2026-11-21")
        assert len(endpoint.asks) == ITEMS


def asked_of_the_schedule(place: Place) -> list[dg.RunRequest | dg.SkipReason]:
    night = datetime(2026, 11, 21, 2, tzinfo=UTC)
    with dg.build_schedule_context(scheduled_execution_time=night) as context:
        evaluated = nightly_regression(context, migrations=place.migrations, state=place.state)
        return list(cast("Iterable[dg.RunRequest | dg.SkipReason]", evaluated))


def test_a_workload_without_sign_off_is_left_out_with_its_reason(place: Place) -> None:
    place.declare()
    (skipped,) = asked_of_the_schedule(place)
    assert isinstance(skipped, dg.SkipReason)
    assert skipped.skip_message == "support: not signed off yet"


def test_the_schedule_asks_for_one_run_per_signed_off_workload_and_night(place: Place) -> None:
    with ScriptedEndpoint() as endpoint:
        signed_off(place, endpoint.url)
    place.declare(workload="new")
    (request,) = asked_of_the_schedule(place)
    assert isinstance(request, dg.RunRequest)
    assert (request.run_key, request.partition_key) == ("support/2026-11-21", "support")


def test_only_go_becomes_the_baseline(place: Place) -> None:
    with ScriptedEndpoint(lambda ask: answer(ask, wrong_below=0)) as endpoint:
        signed_off(place, endpoint.url)
        answers = [recorded_answer(at, "wrong") for at in range(ITEMS)]
        (place.folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))
        assert place.migrate(place.declare(regression={"url": endpoint.url, "margin": 0.05})).verdict == "NO-GO"
        result = run_night(place, "2026-11-21")
    assert result.success
    assert "mean score 100.00% against 100.00%" in str(checks(result)["no_regression"][1])


def test_another_grading_than_at_sign_off_is_not_compared(place: Place) -> None:
    with ScriptedEndpoint() as endpoint:
        signed_off(place, endpoint.url)
        place.declare(regression={"url": endpoint.url}, grading=[{"kind": "exact"}])
        result = run_night(place, "2026-11-21")
        assert endpoint.asks == []
    failure = next(event.step_failure_data for event in result.all_node_events if event.is_step_failure)
    assert "is not that of its last sign-off; sign off again" in str(failure.error)


def test_recorded_answers_alone_cannot_be_asked_again_and_that_is_said(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    answers = [recorded_answer(at, str(at)) for at in range(ITEMS)]
    (place.folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))
    place.migrate(place.declare())
    result = run_night(place, "2026-11-21")
    failure = next(event.step_failure_data for event in result.all_node_events if event.is_step_failure)
    assert "regression.url is missing" in str(failure.error)


def test_a_night_without_a_sign_off_says_what_to_do(place: Place) -> None:
    place.declare(regression={"url": "http://127.0.0.1:9/v1"})
    place.instance.add_dynamic_partitions("workload", ["support"])
    result = run_night(place, "2026-11-21")
    failure = next(event.step_failure_data for event in result.all_node_events if event.is_step_failure)
    assert "has no sign-off that was GO to compare with; materialise sign_off first" in str(failure.error)
