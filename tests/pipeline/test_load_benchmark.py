"""The asset `load_benchmark` as the UI materialises it: against a real server, and where nothing is served."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
import pytest

from anven_pipelines.chain import CHAIN_ASSETS, LOG_ASSETS
from anven_pipelines.definitions import migration_job
from anven_pipelines.domain.load import LOAD_REQUESTS
from anven_pipelines.domain.load_report import LoadReport
from tests.pipeline.conftest import Place, logged_call
from tests.scripted_endpoint import Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

ITEMS = 160
# Generous: a busy machine stalls for seconds, and the driver may be late by a tenth of the first limit.
SLO = {"ttft_ms": 100_000, "inter_token_ms": 20_000, "share": 0.9}
LOAD = {"slo": SLO, "rates": [15, 16], "duration": "3s", "warm_up": 2, "timeout": "2m"}


def materialize(place: Place, *, load: dict[str, Any] | None, target: dict[str, Any], **changes: Any) -> Any:
    """Make what `load_benchmark` needs, and it."""
    # A call every second.
    place.write_log([logged_call(at) for at in range(ITEMS)])
    sections = {"golden": {"size": "all", "holdout": 0.5}, **({} if load is None else {"load": load})} | changes
    place.declare(target=target, **sections)
    place.instance.add_dynamic_partitions("log_day", ["2026-10-05"])
    place.instance.add_dynamic_partitions("workload", ["support"])
    run(place, LOG_ASSETS, "2026-10-05")
    run(place, ("power_plan", "golden_dataset", "prompt_baseline", "adapted_prompt"), "support")
    return run(place, ("load_benchmark",), "support")


def run(place: Place, assets: tuple[str, ...], partition: str) -> dg.ExecuteInProcessResult:
    result = place.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=place.instance,
        partition_key=partition,
        asset_selection=[dg.AssetKey(asset) for asset in assets],
    )
    assert result.success
    return result


def target_at(url: str) -> dict[str, Any]:
    return {"engine": "endpoint", "model": "target-model", "url": url}


def found_in(place: Place) -> tuple[pl.DataFrame, LoadReport]:
    manifest = place.artifacts.load_manifest("load_benchmark", "support")
    assert manifest is not None
    return place.artifacts.read(manifest), LoadReport.model_validate(manifest.facts["load"])


def golden_in(place: Place) -> pl.DataFrame:
    manifest = place.artifacts.load_manifest("golden_dataset", "support")
    assert manifest is not None
    return place.artifacts.read(manifest)


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node("load_benchmark")
    return {name: each.value for name, each in event.metadata.items()}


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, tuple[bool, str]]:
    return {each.check_name: (each.passed, each.description or "") for each in result.get_asset_check_evaluations()}


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(lambda _: Reply("one two three")) as running:
        yield running


def test_a_served_target_is_measured_at_every_declared_rate(place: Place, endpoint: ScriptedEndpoint) -> None:
    priced = LOAD | {"replica_usd_per_hour": 3.6}
    result = materialize(place, load=priced, target=target_at(endpoint.url))
    rows, report = found_in(place)
    assert rows.schema == LOAD_REQUESTS.schema
    assert [each.rate for each in report.figures] == [15.0, 16.0]
    assert [each.judgement for each in report.figures] == ["within", "within"]
    assert report.target.status == "not reached"
    assert report.target.sustained_rate == 16.0
    assert rows.height == sum(each.requests for each in report.figures) == len(endpoint.asks) - 2  # the warm-up
    assert rows["met"].all()
    assert report.capacity is not None
    assert report.capacity.demand.peak_rate == pytest.approx(1.0)
    assert report.capacity.replicas_for_peak == 1
    assert report.capacity.usd_per_1000_full == pytest.approx(3.6 / (16 * 3600) * 1000)
    assert checks_of(result) == {
        "load_measured": (True, report.message),
        "bears_the_peak": (True, "16/s are sustained, the busiest minute has 1/s"),
    }
    said = [entry.user_message for entry in place.instance.all_logs(result.run_id)]
    assert [
        each.partition(":")[0] for each in said if each.startswith("target at") and " is " in each.partition(":")[0]
    ] == [
        "target at 15/s is within",
        "target at 16/s is within",
    ]
    shown = metadata_of(result)
    assert shown["status"] == report.message
    assert "| target | 16 " in shown["rates"]
    assert shown["chart"].startswith("![load benchmark](data:image/png;base64,")
    assert "n replicas serve n times" in shown["capacity"]["assumption"]


def test_sealed_items_are_never_sent_and_the_open_ones_count_as_shown(place: Place, endpoint: ScriptedEndpoint) -> None:
    materialize(place, load=LOAD, target=target_at(endpoint.url))
    golden = golden_in(place)
    sealed = golden.filter(pl.col("split") == "sealed")
    prompts = {json.loads(prompt)[-1]["content"] for prompt in sealed["source_prompt"]}
    assert sealed.height == ITEMS // 2
    assert not prompts & set(endpoint.asked)
    rows, _ = found_in(place)
    assert not set(rows["item_id"]) & set(sealed["id"])
    assert len(place.state.events("shown/support")) == 1
    assert not place.state.events("holdout/support")


def test_errors_are_misses_and_an_overloaded_target_is_left_alone(place: Place) -> None:
    order = count()
    with ScriptedEndpoint(lambda _: Reply("down", status=500) if next(order) % 2 else Reply("one two")) as endpoint:
        result = materialize(place, load=LOAD, target=target_at(endpoint.url))
    rows, report = found_in(place)
    assert [each.rate for each in report.figures] == [15.0]
    (only,) = report.figures
    assert only.failed == rows.filter(pl.col("status") == "failed").height > 0
    assert only.goodput == pytest.approx(only.answered / 3)
    assert only.judgement == "beyond"
    assert report.target.status == "below"
    assert checks_of(result)["load_measured"][0] is False
    assert checks_of(result)["bears_the_peak"] == (
        False,
        f"not measured: {report.target.reason}",
    )


def test_the_legacy_model_is_put_under_the_same_load(place: Place, endpoint: ScriptedEndpoint) -> None:
    with ScriptedEndpoint(lambda _: Reply("one two three", delay_s=0.3)) as legacy:
        result = materialize(place, load=LOAD | {"legacy": {"url": legacy.url}}, target=target_at(endpoint.url))
        assert {ask.body["model"] for ask in legacy.asks} == {"legacy-model"}
    rows, report = found_in(place)
    arms = {
        str(arm): own.select("rate", "number", "item_id", "due_s")
        for (arm,), own in rows.partition_by("arm", as_dict=True).items()
    }
    assert arms["target"].equals(arms["legacy"])
    assert report.legacy is not None
    assert report.legacy.sustained_rate == 16.0
    assert [(each.rate, each.difference.estimate) for each in report.compared] == [(15.0, 0.0), (16.0, 0.0)]
    ttft = {each.arm: each.ttft_ms.p50 for each in report.figures}
    assert (ttft["legacy"] or 0) > 300
    assert "| legacy | 15 " in metadata_of(result)["rates"]


def test_a_trace_replays_the_logs_own_arrivals(place: Place, endpoint: ScriptedEndpoint) -> None:
    materialize(place, load=LOAD | {"arrivals": "trace"}, target=target_at(endpoint.url))
    rows, _ = found_in(place)
    first = rows.filter(pl.col("rate") == 15.0)["due_s"]
    assert first.to_list() == pytest.approx(
        [at / 15 for at in range(45)], abs=0.01
    )  # a call every second, 15 times as fast


@pytest.mark.parametrize(
    ("load", "target", "holdout", "reason"),
    [
        (None, target_at("http://127.0.0.1:1/v1"), 0.5, "the migration file has no section `load`"),
        (
            LOAD,
            {"engine": "recorded", "model": "m", "answers": "x.jsonl"},
            0.5,
            "engine 'recorded' serves nothing that can be asked; load.url is needed",
        ),
        (LOAD, target_at("http://127.0.0.1:1/v1"), 1.0, "every golden item is sealed"),
        (
            LOAD,
            target_at("http://127.0.0.1:1/v1"),
            0.5,
            "none of 2 warm-up requests was answered; the last failed: unreac",
        ),
    ],
)
def test_where_nothing_can_be_asked_it_says_so_and_fails_nothing(
    place: Place, load: dict[str, Any] | None, target: dict[str, Any], holdout: float, reason: str
) -> None:
    result = materialize(place, load=load, target=target, golden={"size": "all", "holdout": holdout})
    rows, report = found_in(place)
    assert rows.is_empty()
    assert report.target.status == "unmeasured"
    assert report.target.sustained_rate is None
    assert reason in report.message
    assert reason in metadata_of(result)["status"]
    checks = checks_of(result)
    assert {name: passed for name, (passed, _) in checks.items()} == {"load_measured": False, "bears_the_peak": False}
    assert all(reason in found for _, found in checks.values())
    severities = {each.severity for each in result.get_asset_check_evaluations()}
    assert severities == {dg.AssetCheckSeverity.WARN}


def test_a_silent_target_spares_the_legacy_model(place: Place) -> None:
    with ScriptedEndpoint() as legacy:
        materialize(place, load=LOAD | {"legacy": {"url": legacy.url}}, target=target_at("http://127.0.0.1:1/v1"))
        assert legacy.asks == []


def test_neither_the_chain_nor_the_verdict_waits_for_it(place: Place) -> None:
    assert "load_benchmark" not in CHAIN_ASSETS
    graph = place.definitions.resolve_asset_graph()
    selected = migration_job.selection.resolve(graph)
    assert dg.AssetKey("sign_off") in selected
    assert dg.AssetKey("load_benchmark") not in selected
    assert graph.get(dg.AssetKey("load_benchmark")).child_keys == {dg.AssetKey("cost_model")}
