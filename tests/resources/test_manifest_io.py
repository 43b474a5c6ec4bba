# No `from __future__ import annotations`: Dagster evaluates the annotations of assets and checks.
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from anven_pipelines.domain.errors import MissingInput
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.table import Column, Table
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.manifest_io import ManifestIOManager

# Dagster 1.13 itself uses what it deprecates when one resource is nested in another.
pytestmark = pytest.mark.filterwarnings("ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning")

NUMBERS = Table("numbers", (Column("n", pl.Int64, "A number."),))
DAYS = dg.DailyPartitionsDefinition("2026-11-01", end_date="2026-11-04")
WORKLOADS = dg.StaticPartitionsDefinition(["support", "billing/eu"])


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(url=str(tmp_path / "artifacts"))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def resources(artifacts: ArtifactStore) -> dict[str, Any]:
    return {"artifacts": artifacts, "io_manager": ManifestIOManager(artifacts=artifacts)}


@dg.asset
def price_book(artifacts: ArtifactStore) -> Manifest:
    return artifacts.publish(NUMBERS, [pl.DataFrame({"n": [7]})])


@dg.asset(partitions_def=DAYS)
def request_log(context: dg.AssetExecutionContext, artifacts: ArtifactStore) -> dg.MaterializeResult[Manifest]:
    manifest = artifacts.publish(NUMBERS, [pl.DataFrame({"n": [int(context.partition_key[-2:])]})])
    return dg.MaterializeResult(value=manifest, data_version=dg.DataVersion(manifest.digest))


@dg.asset(partitions_def=WORKLOADS, ins={"request_log": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())})
def golden_dataset(
    artifacts: ArtifactStore, request_log: dict[str, Manifest], price_book: Manifest
) -> dg.MaterializeResult[Manifest]:
    frames = [artifacts.read(manifest) for manifest in (*request_log.values(), price_book)]
    return dg.MaterializeResult(value=artifacts.publish(NUMBERS, frames, facts={"days": list(request_log)}))


@dg.asset_check(asset=golden_dataset, blocking=True)
def golden_dataset_has_rows(golden_dataset: Manifest) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=golden_dataset.rows > 0, metadata={"rows": golden_dataset.rows})


@dg.asset(partitions_def=WORKLOADS)
def scores(artifacts: ArtifactStore, golden_dataset: Manifest) -> Manifest:
    return artifacts.publish(NUMBERS, [artifacts.read(golden_dataset)], inputs={"golden": golden_dataset.digest})


@dg.asset
def every_day(request_log) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - an input without annotation
    assert isinstance(request_log, dict)
    assert len(request_log) > 1


def materialise(
    assets: list[Any] | dg.AssetSelection,
    resources: dict[str, Any],
    instance: dg.DagsterInstance,
    partition: str | None = None,
) -> dg.ExecuteInProcessResult:
    everything = [price_book, request_log, golden_dataset, golden_dataset_has_rows, scores, every_day]
    return dg.materialize(
        everything,
        selection=assets,
        resources=resources,
        instance=instance,
        partition_key=partition,
    )


def test_each_asset_gets_the_manifests_of_those_before_it(
    artifacts: ArtifactStore, resources: dict[str, Any], instance: dg.DagsterInstance
) -> None:
    materialise([price_book], resources, instance)
    for day in ("2026-11-01", "2026-11-03"):
        materialise([request_log], resources, instance, day)
    result = materialise([golden_dataset, scores], resources, instance, "billing/eu")

    golden = artifacts.load_manifest("golden_dataset", "billing/eu")
    assert golden is not None
    assert golden.facts == {"days": ["2026-11-01", "2026-11-03"]}
    assert artifacts.read(golden)["n"].to_list() == [1, 3, 7]
    (check,) = result.get_asset_check_evaluations()
    assert (check.passed, check.metadata["rows"].value) == (True, 3)
    scored = artifacts.load_manifest("scores", "billing/eu")
    assert scored is not None
    assert scored.inputs == {"golden": golden.digest}
    assert artifacts.load_manifest("scores", "support") is None


@pytest.mark.parametrize("days", [[], ["2026-11-02"]])
def test_a_dict_stays_a_dict_for_one_partition_or_none(
    artifacts: ArtifactStore, resources: dict[str, Any], instance: dg.DagsterInstance, days: list[str]
) -> None:
    materialise([price_book], resources, instance)
    for day in days:
        materialise([request_log], resources, instance, day)
    materialise([golden_dataset.key], resources, instance, "support")

    golden = artifacts.load_manifest("golden_dataset", "support")
    assert golden is not None
    assert golden.facts == {"days": days}


def test_a_check_on_its_own_has_no_partition(resources: dict[str, Any], instance: dg.DagsterInstance) -> None:
    check = dg.AssetSelection.checks(golden_dataset_has_rows)

    with pytest.raises(MissingInput, match="the run names none; run it together with golden_dataset"):
        materialise(check, resources, instance)


def test_an_input_without_annotation_gets_all_partitions(
    resources: dict[str, Any], instance: dg.DagsterInstance
) -> None:
    for day in ("2026-11-01", "2026-11-03"):
        materialise([request_log], resources, instance, day)

    assert materialise([every_day], resources, instance).success


def test_a_missing_partition_says_what_to_materialise(resources: dict[str, Any], instance: dg.DagsterInstance) -> None:
    expected = r"no manifest for partition support, .*`dg launch --assets golden_dataset --partition support`"
    with pytest.raises(MissingInput, match=expected):
        materialise([scores], resources, instance, "support")


def test_a_missing_asset_says_what_to_materialise(resources: dict[str, Any], instance: dg.DagsterInstance) -> None:
    with pytest.raises(MissingInput, match=r"price_book has no manifest, .*`dg launch --assets price_book`$"):
        materialise([golden_dataset.key], resources, instance, "support")


def test_none_leaves_the_pointer_where_it_was(
    artifacts: ArtifactStore, resources: dict[str, Any], instance: dg.DagsterInstance
) -> None:
    @dg.asset(name="price_book")
    def nothing() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(value=None)

    materialise([price_book], resources, instance)
    before = artifacts.load_manifest("price_book", None)

    assert dg.materialize([nothing], resources=resources, instance=instance).success
    assert artifacts.load_manifest("price_book", None) == before


def test_rows_are_not_passed(resources: dict[str, Any], instance: dg.DagsterInstance) -> None:
    @dg.asset
    def rows() -> pl.DataFrame:
        return pl.DataFrame({"n": [1]})

    with pytest.raises(TypeError, match=r"rows returned a DataFrame; a Manifest is needed: publish rows"):
        dg.materialize([rows], resources=resources, instance=instance)


@pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`")  # beta, and what makes such runs
class TestARunOverSeveralPartitions:
    def run(self, returned: object, resources: dict[str, Any], instance: dg.DagsterInstance) -> None:
        @dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
        def backfilled() -> Any:
            return returned

        dg.materialize(
            [backfilled],
            resources=resources,
            instance=instance,
            tags={
                "dagster/asset_partition_range_start": "2026-11-01",
                "dagster/asset_partition_range_end": "2026-11-02",
            },
        )

    def test_saves_a_manifest_for_each(
        self, artifacts: ArtifactStore, resources: dict[str, Any], instance: dg.DagsterInstance
    ) -> None:
        manifest = artifacts.publish(NUMBERS, [])
        self.run({"2026-11-01": manifest, "2026-11-02": manifest}, resources, instance)

        assert artifacts.load_manifest("backfilled", "2026-11-02") == manifest

    def test_refuses_one_manifest_for_all(
        self, artifacts: ArtifactStore, resources: dict[str, Any], instance: dg.DagsterInstance
    ) -> None:
        with pytest.raises(TypeError, match=r"a dict of Manifest by partition \(2 partitions\) is needed"):
            self.run(artifacts.publish(NUMBERS, []), resources, instance)

    def test_refuses_a_partition_outside_the_run(
        self, artifacts: ArtifactStore, resources: dict[str, Any], instance: dg.DagsterInstance
    ) -> None:
        with pytest.raises(ValueError, match="backfilled returned manifests for 2026-11-03, which the run does not"):
            self.run({"2026-11-03": artifacts.publish(NUMBERS, [])}, resources, instance)
