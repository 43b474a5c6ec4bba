"""What the load benchmark measured becomes the target's serving cost: through the assets, against a live server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from anven_pipelines.domain.sign_off import Verdict
from tests.nano_server import nano_server
from tests.pipeline.conftest import Place, logged_call
from tests.scripted_endpoint import Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anven_pipelines.domain.manifest import Manifest

ITEMS = 80
BUSIEST = 1_140
"""Calls in the busiest minute: 20/s with the last calls of the minute before; rates of 15/s take two replicas."""
LOAD = {
    "slo": {"latency_ms": 100_000, "share": 0.8},  # generous: a busy machine stalls for seconds
    "rates": [15],
    "duration": "2s",
    "warm_up": 1,
    "replica_usd_per_hour": 0.5,
}
LEGACY = {
    "model": "legacy-model",
    "logs": "../log-*.jsonl",
    "price": {"input_usd_per_million": 20_000.0, "output_usd_per_million": 0.0, "source": "invented for the test"},
}


def declare(place: Place, url: str, **changes: Any) -> None:
    target = {"engine": "endpoint", "model": "anven-nano", "url": url, "params": {"max_tokens": 2}}
    sections = {
        "legacy": LEGACY,
        "target": target,
        "golden": {"size": ITEMS, "holdout": 0.5},
        "sign_off": {"quality_margin": 0.1, "waive": ["ttft", "safety"]},
        "load": LOAD,
    }
    place.declare(**{name: each for name, each in (sections | changes).items() if each is not None})


def write_log(place: Place) -> None:
    """Log a call every second for a minute, then many in the next; each had 10 tokens, 0.2 USD of the legacy model."""
    calls = [logged_call(at, input_tokens=10, output_tokens=1) for at in range(60)]
    busy = [
        logged_call(60 + at, input_tokens=10, output_tokens=1, ts=f"2026-10-05T08:01:{60 * at / BUSIEST:09.6f}Z")
        for at in range(BUSIEST)
    ]
    place.write_log(calls + busy)


def run(place: Place, *assets: str, raises: bool = True) -> dg.ExecuteInProcessResult:
    return place.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=place.instance,
        partition_key="support",
        asset_selection=[dg.AssetKey(asset) for asset in assets],
        raise_on_error=raises,
    )


def migrate(place: Place) -> Verdict:
    return place.migrate(place.migrations.of("support"))


def manifest_of(place: Place, asset: str) -> Manifest:
    manifest = place.artifacts.load_manifest(asset, "support")
    assert manifest is not None
    return manifest


def cost_of(place: Place) -> dict[str, Any]:
    run(place, "cost_model")
    return dict(manifest_of(place, "cost_model").facts["cost"])


def staleness(place: Place, asset: str) -> tuple[StaleStatus, list[str]]:
    """Return what the UI says of the asset, and which upstream assets it says it for."""
    graph = place.definitions.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(place.instance, graph, LoadingContextForTest(place.instance))
    causes = resolver.get_stale_causes(dg.AssetKey(asset), "support")
    named = [each.dependency.asset_key.to_user_string() for each in causes if each.dependency]
    return resolver.get_status(dg.AssetKey(asset), "support"), named


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(lambda _: Reply("one two")) as running:
        yield running


def test_a_live_benchmark_feeds_the_cost_model_and_the_verdict(place: Place) -> None:
    write_log(place)
    with nano_server() as server:
        declare(place, server.url)
        before = migrate(place)
        assert before.cost["status"] == "unmeasured"
        assert "no load_benchmark was made; `anven load` makes one" in before.cost["reason"]
        assert "load_benchmark" not in before.digests
        assert run(place, "load_benchmark").success

    # The verdict on the old cost model is refused until that has been made again.
    refused = run(place, "sign_off", raises=False)
    failure = next(event.step_failure_data for event in refused.all_node_events if event.is_step_failure)
    digest = manifest_of(place, "load_benchmark").digest
    assert f"load_benchmark {digest[:12]} was made since cost_model was materialised" in str(failure.error)

    result = run(place, "cost_model", "sign_off", raises=False)  # the nano model's answers are no tickets: NO-GO
    (event,) = result.asset_materializations_for_node("cost_model")
    assert str(event.metadata["serving"].value).startswith(f"measured: load_benchmark {digest[:12]} finds 2 replicas")
    model = manifest_of(place, "cost_model")
    assert model.inputs["load_benchmark"] == digest
    verdict = Verdict.model_validate_json(place.artifacts.read(manifest_of(place, "sign_off"))["json"].item())
    assert verdict.digests["load_benchmark"] == digest
    cost = verdict.cost
    # 2 x 0.5 USD x 24 h, of the 240 USD that the legacy model costs for the 1,200 calls of the log's one day.
    assert cost["target_usd_per_day"] == pytest.approx(24.0)
    assert cost["serving"] | {"reason": ""} == {
        "source": "measured",
        "usd_per_day": 24.0,
        "least_usd_per_day": 12.0,
        "reason": "",
        "benchmark": digest,
        "replicas": 2,
    }
    assert cost["target"]["obtained"] == {"no price of its own: paid by the day": ITEMS}
    assert cost["saving_per_request_usd"]["estimate"] == pytest.approx(0.2)
    assert cost["saving_per_day_usd"]["estimate"] == pytest.approx(240.0 - 24.0)
    assert cost["net_saving_per_request_usd"]["estimate"] == pytest.approx(0.18)
    criterion = next(each for each in verdict.criteria if each.name == "cost")
    assert (criterion.status, criterion.waived) == ("met", False)
    assert f"after 24 USD a day for serving (measured: load_benchmark {digest[:12]} finds 2" in criterion.reason


def test_the_cost_model_needs_no_benchmark_is_stale_after_a_newer_one_and_believes_no_old_one(
    place: Place, endpoint: ScriptedEndpoint
) -> None:
    graph = place.definitions.resolve_asset_graph()
    assert dg.AssetKey("load_benchmark") in graph.get(dg.AssetKey("cost_model")).parent_keys
    write_log(place)
    declare(place, endpoint.url)
    migrate(place)
    assert "load_benchmark" not in manifest_of(place, "cost_model").inputs
    assert staleness(place, "cost_model") == (StaleStatus.FRESH, [])
    run(place, "load_benchmark")
    assert staleness(place, "cost_model") == (StaleStatus.STALE, ["load_benchmark"])
    assert cost_of(place)["serving"]["usd_per_day"] == pytest.approx(24.0)
    assert staleness(place, "cost_model") == (StaleStatus.FRESH, [])
    run(place, "load_benchmark")
    assert staleness(place, "cost_model") == (StaleStatus.STALE, ["load_benchmark"])
    digest = manifest_of(place, "load_benchmark").digest

    declare(place, endpoint.url, load=LOAD | {"replica_usd_per_hour": 1.0})
    assert cost_of(place)["serving"]["usd_per_day"] == pytest.approx(48.0)

    declare(place, endpoint.url, cost={"target_usd_per_day": 7.0})
    declared = cost_of(place)
    assert (declared["serving"]["source"], declared["target_usd_per_day"]) == ("declared", 7.0)
    assert "2 x 0.5 USD x 24 h = 24 USD" in declared["serving"]["reason"]

    stale = LOAD | {"rates": [15, 16]}
    declare(place, endpoint.url, load=stale)
    found = cost_of(place)
    assert (found["status"], found["serving"]["source"], found["target_usd_per_day"]) == (
        "unmeasured",
        "unmeasured",
        None,
    )
    assert (
        f"load_benchmark {digest[:12]} is stale and tells no cost: workload 'support': the migration" in found["reason"]
    )
    assert "materialise load_benchmark" in found["reason"]

    declare(place, endpoint.url, load=stale, cost={"target_usd_per_day": 7.0})
    assert cost_of(place)["status"] == "met"

    declare(place, endpoint.url, golden={"size": ITEMS, "holdout": 0.5, "seed": 1})
    run(place, "power_plan", "golden_dataset", "prompt_baseline", "adapted_prompt", "legacy_answers", "target_answers")
    assert "it was run on another version of golden_dataset" in cost_of(place)["reason"]


def test_a_benchmark_that_found_no_rate_leaves_the_cost_unmeasured(place: Place) -> None:
    write_log(place)
    place.write_log([logged_call(at, cost_usd=0.0) for at in range(60 + BUSIEST)], "answers.jsonl")
    recorded = {"engine": "recorded", "model": "m", "answers": "../answers.jsonl"}
    with ScriptedEndpoint(lambda _: Reply("down", status=500)) as endpoint:
        declare(place, endpoint.url, target=recorded, load=LOAD | {"url": endpoint.url})
        # A logged cost of 0 is none that a replica with a price has.
        assert "no load_benchmark was made" in migrate(place).cost["reason"]
        run(place, "load_benchmark")
    found = cost_of(place)
    assert (found["status"], found["target_usd_per_day"]) == ("unmeasured", None)
    assert "found no rate that keeps the service level" in found["reason"]
