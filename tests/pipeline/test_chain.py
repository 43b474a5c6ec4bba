"""The whole chain through Dagster: from log lines to the verdict, and what stops it on the way."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from anven_pipelines.domain.errors import CheckFailed, InvalidInput
from anven_pipelines.domain.prompts import carry_over
from anven_pipelines.domain.workload import declared_digest
from anven_pipelines.migrate import of_kind
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.rollouts import Rollouts
from tests.pipeline.conftest import Place, logged_call, recorded_answer

if TYPE_CHECKING:
    from anven_pipelines.domain.manifest import Manifest

ITEMS = 300


def write_answers(place: Place, *, wrong: int = 0, missing: int = 0) -> None:
    answers = [recorded_answer(at, "no idea" if at < wrong else str(at)) for at in range(ITEMS - missing)]
    (place.folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))


def manifest_of(place: Place, asset: str, partition: str | None = "support") -> Manifest:
    manifest = place.artifacts.load_manifest(asset, partition)
    assert manifest is not None, asset
    return manifest


def test_a_good_target_gets_go_and_everything_it_rests_on_is_there(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place, wrong=2)
    verdict = place.migrate(place.declare())
    assert verdict.verdict == "GO"
    assert verdict.quality.n == ITEMS
    assert (verdict.quality.lost, verdict.quality.gained) == (2, 0)
    assert verdict.digests["golden_dataset"] == manifest_of(place, "golden_dataset").digest
    assert verdict.digests["scores"] == manifest_of(place, "scores").digest
    assert manifest_of(place, "request_log", "2026-10-05").rows == ITEMS
    assert manifest_of(place, "workload_inventory", None).rows == 1
    assert [event.payload["verdict"] for event in place.state.events("sign_off/support")] == ["GO"]
    assert len(place.state.events("holdout/support")) == 1
    assert place.state.verify().ok


def test_a_rollout_starts_on_the_verdict_of_the_chain_and_not_once_the_target_was_edited(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place, wrong=2)
    place.migrate(place.declare())
    rollouts = of_kind(place.definitions, "rollouts", Rollouts)
    place.declare(target={"model": "another", "engine": "recorded", "answers": "../answers.jsonl"})

    with pytest.raises(InvalidInput, match=r"was given for target-model \(.*the migration file declares another \("):
        rollouts.start("support", who="ada", now=datetime.now(UTC))
    place.declare()
    status = rollouts.start("support", who="ada", now=datetime.now(UTC))
    assert (status.phase, status.prompt) == ("running", carry_over().version)


def test_the_same_inputs_give_the_same_bytes_and_a_second_entry_in_the_ledger(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place, wrong=2)
    declared = place.declare()
    first, second = place.migrate(declared).to_json(), place.migrate(declared).to_json()
    assert first == second
    assert len(place.state.events("holdout/support")) == 2


def test_a_worse_target_gets_no_go_through_a_failed_blocking_check(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place, wrong=60)
    verdict = place.migrate(place.declare())
    assert verdict.verdict == "NO-GO"
    assert any(told.warning and "verdict_is_go failed: NO-GO" in told.text for told in place.told)


def test_unmatched_answers_stay_unmeasured_and_block(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place, missing=30)
    verdict = place.migrate(place.declare())
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.missingness.only_target_unmeasured == 30
    assert verdict.quality.n_measured == ITEMS - 30


def test_latency_tokens_and_cost_that_were_not_recorded_are_unmeasured_not_zero(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place)
    verdict = place.migrate(place.declare(sign_off={"quality_margin": 0.05}))
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.speed.status == verdict.safety.status == verdict.cost["status"] == "unmeasured"
    assert verdict.speed.legacy_ttft_p95_ms is None
    assert verdict.cost["legacy"]["mean_usd"] is None
    assert verdict.cost["target"]["input_tokens"] is None


def test_no_matching_answer_at_all_stops_before_anything_is_scored(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(80)])
    (place.folder / "answers.jsonl").write_text(json.dumps(recorded_answer(999, "x")) + "\n")
    with pytest.raises(CheckFailed, match="some_answered of target_answers failed: 0 of 80 items answered"):
        place.migrate(place.declare())
    assert any("some_answered failed: 0 of 80 items answered" in told.text for told in place.told)
    assert place.artifacts.load_manifest("scores", "support") is None


def test_a_failed_check_of_the_log_stops_the_chain(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_log([logged_call(at) for at in range(20)])
    write_answers(place)
    publish = ArtifactStore.publish
    monkeypatch.setattr(
        ArtifactStore,
        "publish",
        lambda store, table, frames, **named: publish(
            store, table, [] if table.name == "request_log" and list(frames) else frames, **named
        ),
    )
    with pytest.raises(CheckFailed, match="lines_conserved of request_log failed"):
        place.migrate(place.declare())
    assert place.artifacts.load_manifest("golden_dataset", "support") is None


def test_empty_and_broken_answers_are_told_and_stay_unmeasured(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(80)])
    (place.folder / "answers.jsonl").write_text("")
    with pytest.raises(CheckFailed, match="0 of 80 items answered"):
        place.migrate(place.declare())
    (place.folder / "answers.jsonl").write_text("{broken\n" + json.dumps(recorded_answer(3, "3")) + "\n")
    assert place.migrate(place.declare()).verdict == "INCONCLUSIVE"
    assert any(told.warning and "line 1 is no recorded answer" in told.text for told in place.told)


def test_how_a_target_is_asked_may_change_without_asking_again(place: Place) -> None:
    target = {"engine": "endpoint", "model": "m", "url": "http://127.0.0.1:1/v1"}
    plain = place.declare(target=target).migration
    paced = place.declare(target=target | {"concurrency": 99, "timeout": "5s", "api_key_env": "OTHER"}).migration
    assert declared_digest(plain, "target_answers") == declared_digest(paced, "target_answers")
    assert declared_digest(plain, "target_answers") != declared_digest(
        place.declare(target=target | {"params": {"seed": 1}}).migration, "target_answers"
    )


def test_bad_and_repeated_lines_are_kept_apart_and_counted(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    log = place.folder / "log-2026-10-05.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines, lines[0], "{broken", '["no object"]']) + "\n")
    write_answers(place)
    assert place.migrate(place.declare()).quality.n == ITEMS
    rejected = place.artifacts.read(manifest_of(place, "rejected_lines", "2026-10-05"))
    assert rejected.height == 2
    assert rejected["raw"].to_list()[0] == b"{broken"


def test_several_days_are_read_and_a_file_that_is_gone_is_forgotten(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(200)], "log-2026-10-05.jsonl")
    place.write_log([logged_call(at) for at in range(200, ITEMS)], "log-2026-10-06.jsonl")
    write_answers(place)
    declared = place.declare()
    assert place.migrate(declared).quality.n == ITEMS
    (place.folder / "log-2026-10-06.jsonl").unlink()
    assert place.migrate(declared).quality.n == 200
    assert manifest_of(place, "request_log", "2026-10-06").rows == 0


def test_two_workloads_with_one_log_are_read_once_and_do_not_mix(place: Place) -> None:
    place.write_log([logged_call(at, application="a" if at % 2 else "b") for at in range(ITEMS)])
    write_answers(place)
    legacy = {"model": "legacy-model", "logs": "../log-*.jsonl"}
    one = place.declare(workload="one", legacy=legacy | {"applications": ["a"]})
    two = place.declare(workload="two", legacy=legacy | {"applications": ["b"]})
    assert place.migrate(one).quality.n == ITEMS // 2
    assert place.migrate(two).quality.n == ITEMS // 2
    assert manifest_of(place, "request_log", "2026-10-05").rows == ITEMS


def test_a_broken_migration_file_leaves_the_other_workloads_alone(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place)
    (place.folder / "migrations" / "broken.yaml").write_text("workload: [")
    assert place.migrate(place.declare()).verdict == "GO"
    assert any("broken.yaml" in told.text for told in place.told if told.warning)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"legacy": {"model": "other", "logs": "../log-*.jsonl"}}, "other"),
        ({"legacy": {"model": "legacy-model", "logs": "../nothing-*.jsonl"}}, "matches no file"),
        ({"target": {"model": "m", "engine": "recorded", "answers": "../nothing.jsonl"}}, "does not exist"),
        ({"golden": {"size": 5000}}, "5000"),
        ({"sign_off": {"quality_margin": 0.03}}, r"80 sealed items can never certify .* At least 118 sealed items"),
    ],
)
def test_bad_input_gets_one_clear_error(place: Place, changes: dict[str, Any], message: str) -> None:
    place.write_log([logged_call(at) for at in range(80)])
    write_answers(place)
    with pytest.raises(InvalidInput, match=message):
        place.migrate(place.declare(**changes))


def test_stale_inputs_are_refused(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place)
    place.migrate(place.declare())
    place.declare(golden={"size": 100, "holdout": 1.0})
    job = place.definitions.resolve_implicit_global_asset_job_def()
    again: dict[str, Any] = {"instance": place.instance, "partition_key": "support", "raise_on_error": False}
    drawn = [dg.AssetKey("power_plan"), dg.AssetKey("golden_dataset")]
    assert job.execute_in_process(asset_selection=drawn, **again).success
    result = job.execute_in_process(asset_selection=[dg.AssetKey("scores")], **again)
    failure = next(event.step_failure_data for event in result.all_node_events if event.is_step_failure)
    assert "different versions of golden_dataset" in str(failure.error)


@pytest.mark.parametrize(
    ("changes", "asset", "sections"),
    [
        ({"golden": {"size": "all", "holdout": 0.5}}, "golden_dataset", "legacy, golden, grading"),
        ({"grading": [{"kind": "json_field", "field": "answer", "compare": "number"}]}, "golden_dataset", "grading"),
        ({"contract": {"json_object": True}}, "scores", "grading, contract"),
        ({"target": {"model": "other", "engine": "recorded", "answers": "../answers.jsonl"}}, "cost_model", "target"),
        ({"sign_off": {"quality_margin": 0.01}}, "cost_model", "sign_off"),
    ],
)
def test_an_edit_of_the_migration_file_makes_what_rests_on_it_stale(
    place: Place, changes: dict[str, Any], asset: str, sections: str
) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place)
    place.migrate(place.declare())
    place.declare(**changes)
    result = place.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=place.instance,
        partition_key="support",
        asset_selection=[dg.AssetKey("sign_off")],
        raise_on_error=False,
    )
    failure = next(event.step_failure_data for event in result.all_node_events if event.is_step_failure)
    assert f"since {asset} was materialised" in str(failure.error)
    assert sections in str(failure.error)


def test_a_declared_file_of_adversarial_calls_fills_its_quota(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(100)])
    place.write_log([logged_call(at, model=None) for at in range(100, 110)], "probes.jsonl")
    write_answers(place)
    golden = {"size": "all", "holdout": 1.0, "quotas": {"adversarial": 6}, "adversarial": "../probes.jsonl"}
    place.migrate(place.declare(golden=golden))
    rows = place.artifacts.read(manifest_of(place, "golden_dataset"))
    assert dict(rows["role"].value_counts().iter_rows()) == {"traffic": 100, "adversarial": 6}
    assert rows["weight"].sum() == 100


def test_assets_carry_what_the_ui_shows(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place)
    place.migrate(place.declare(golden={"size": "all", "holdout": 0.5}))
    for asset in ("power_plan", "golden_dataset", "target_answers", "scores", "scorecard", "cost_model", "sign_off"):
        event = place.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None
        assert event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        assert metadata["digest"].value == manifest_of(place, asset).digest
        assert "mlflow_run_id" in metadata
        assert metadata["dagster/row_count"].value == manifest_of(place, asset).rows
    graph = place.definitions.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.group_name in {
            "assess",
            "golden",
            "adapt",
            "infer",
            "evaluate",
            "cost",
            "sign_off",
            "monitor",
            "rollout",
        }
        assert node.owners
        assert node.kinds
        assert "dagster/column_schema" in node.metadata
        assert node.description
