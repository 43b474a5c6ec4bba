"""What surrounds the golden dataset, through Dagster and the command line's functions: truths, drift, exchange."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from anven_pipelines import golden_exchange
from anven_pipelines.assets.golden import every_stratum_sealed
from anven_pipelines.domain.errors import InvalidInput, MissingInput
from anven_pipelines.domain.golden import Freeze
from tests.builders import golden_of
from tests.pipeline.conftest import Place, logged_call, recorded_answer

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from anven_pipelines.domain.manifest import Manifest

ITEMS = 240
HALF = {"size": "all", "holdout": 0.5}


def fill(place: Place) -> None:
    """Write logs in which every second prompt is asked twice, and good answers."""
    place.write_log([logged_call(at) for at in range(ITEMS)])
    answers = [recorded_answer(at, str(at)) for at in range(2 * ITEMS)]
    (place.folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))


def materialize(place: Place, asset: str, partition: str = "support") -> dg.ExecuteInProcessResult:
    place.instance.add_dynamic_partitions("workload", ["support"])
    place.instance.add_dynamic_partitions("log_day", ["2026-10-05"])
    together = {"request_log": ["rejected_lines"], "golden_dataset": ["power_plan"]}
    assets = [asset, *together.get(asset, [])]
    return place.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=place.instance,
        partition_key=partition,
        asset_selection=[dg.AssetKey(each) for each in assets],
        raise_on_error=False,
    )


def golden(place: Place) -> Manifest:
    manifest = place.artifacts.load_manifest("golden_dataset", "support")
    assert manifest is not None
    return manifest


def found(result: dg.ExecuteInProcessResult, check: str) -> tuple[bool, str | None]:
    (each,) = [each for each in result.get_asset_check_evaluations() if each.check_name == check]
    return each.passed, each.description


def failure(result: dg.ExecuteInProcessResult) -> str:
    return str(next(event.step_failure_data for event in result.all_node_events if event.is_step_failure).error)


def test_truths_from_a_file_make_a_new_version_and_the_verdict_stale(place: Place) -> None:
    fill(place)
    place.migrate(place.declare(golden=HALF))
    before = golden(place).digest
    truths = [{"id": f"call-{at:04d}", "ground_truth": "other" if at == 7 else str(at)} for at in range(ITEMS - 1)]
    (place.folder / "truths.jsonl").write_text("".join(json.dumps(each) + "\n" for each in truths))
    place.declare(golden=HALF | {"ground_truth": {"source": "file", "file": "../truths.jsonl"}})
    result = materialize(place, "golden_dataset")
    assert golden(place).digest != before
    assert golden(place).rows == ITEMS - 1, "an item without a truth in the file has none"
    passed, message = found(result, "verdict_is_current")
    assert not passed
    assert "is stale: the ground truth of 1 of its items has changed since (call-0007)" in str(message)


def test_the_noise_floor_stands_beside_the_margin_and_drift_is_told(place: Place) -> None:
    fill(place)
    again = [logged_call(at, request_id=f"again-{at}", answer="?" if at < 5 else str(at)) for at in range(20)]
    place.write_log([logged_call(at) for at in range(ITEMS)] + again)
    verdict = place.migrate(place.declare(golden=HALF | {"strata": ["application"]}))
    assert verdict.noise_floor is not None
    assert verdict.noise_floor["disagreement"] == 0.25
    assert "differ in score in 25.0% of pairs" in verdict.noise_floor["reason"]
    assert found(materialize(place, "traffic_drift"), "still_represents_traffic") == (
        False,
        f"too few calls to tell: 0 since the freeze, {ITEMS + 20} at it",
    )
    later = {"ts": "2026-10-06T08:00:00Z", "application": "other"}
    new = [logged_call(at, request_id=f"new-{at}", **later) for at in range(100)]
    place.write_log([logged_call(at) for at in range(ITEMS)] + again + new)
    assert materialize(place, "request_log", "2026-10-05").success
    passed, message = found(materialize(place, "traffic_drift"), "still_represents_traffic")
    assert not passed
    assert "no longer represents production" in str(message)


@pytest.fixture
def at_home(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Let the command's functions find the test's own deployment."""

    def prepared(_: object) -> AbstractContextManager[dg.Definitions]:
        return nullcontext(place.definitions)

    monkeypatch.setattr(golden_exchange, "prepared", prepared)
    return place


def freeze(place: Place, **golden_section: object) -> None:
    fill(place)
    place.declare(golden=HALF | golden_section)
    assert materialize(place, "request_log", "2026-10-05").success
    assert materialize(place, "golden_dataset").success


@pytest.mark.parametrize("form", ["jsonl", "parquet", "huggingface"])
def test_what_was_exported_with_its_sealed_items_comes_back_as_the_same_rows(
    at_home: Place, form: golden_exchange.Form
) -> None:
    freeze(at_home)
    suffix = {"jsonl": ".jsonl", "parquet": ".parquet", "huggingface": ""}[form]
    to = at_home.folder / f"out{suffix}"
    done = golden_exchange.export_golden("support", home=at_home.folder, to=to, form=form, sealed=True)
    assert (done.items, done.sealed_items) == (ITEMS, ITEMS // 2)
    rows = at_home.artifacts.read(golden(at_home))
    made = golden_exchange.import_golden(str(to), workload="support", home=at_home.folder)
    assert at_home.artifacts.read(golden(at_home)).equals(rows)
    assert made.golden_dataset == golden(at_home).digest != done.golden_dataset


def test_sealed_items_stay_behind_unless_asked_for_and_letting_them_out_burns_them(at_home: Place) -> None:
    freeze(at_home)
    to, home = at_home.folder / "open.jsonl", at_home.folder
    assert golden_exchange.export_golden("support", home=home, to=to, form="jsonl", sealed=False).sealed_items == 0
    assert {json.loads(line)["split"] for line in to.read_text().splitlines()} == {"open"}
    assert at_home.state.events("holdout/support") == []
    before = at_home.artifacts.read(golden(at_home)).filter(split="sealed")["id"]
    with pytest.raises(InvalidInput, match="exists already"):
        golden_exchange.export_golden("support", home=home, to=to, form="jsonl", sealed=True)
    all_of_it = at_home.folder / "all.jsonl"
    golden_exchange.export_golden("support", home=home, to=all_of_it, form="jsonl", sealed=True)
    (event,) = at_home.state.events("holdout/support")
    assert event.kind == "exported"
    assert event.payload["golden_dataset"] == golden(at_home).digest
    assert f"none of {ITEMS} items can be sealed" in failure(materialize(at_home, "golden_dataset"))
    at_home.write_log([logged_call(at) for at in range(2 * ITEMS)])
    assert materialize(at_home, "request_log", "2026-10-05").success
    assert materialize(at_home, "golden_dataset").success
    after = at_home.artifacts.read(golden(at_home)).filter(split="sealed")["id"]
    assert not set(before) & set(after)


def test_an_imported_version_is_judged_on_where_the_migration_file_names_it(at_home: Place) -> None:
    freeze(at_home)
    file = at_home.folder / "mine.jsonl"
    prompt = [{"role": "user", "content": "x?"}]
    rows = [
        {"id": f"call-{at:04d}", "source_prompt": prompt, "source_output": str(at), "ground_truth": str(at)}
        for at in range(160)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = golden_exchange.import_golden(str(file), workload="support", home=at_home.folder)
    verdict = at_home.migrate(at_home.declare(golden=HALF | {"version": made.golden_dataset}))
    assert verdict.digests["golden_dataset"] == made.golden_dataset
    assert verdict.quality.n == made.sealed_items == 80
    assert found(materialize(at_home, "golden_dataset"), "candidates_conserved") == (
        True,
        "nothing was drawn: golden.version names a frozen version of 160 items, and 160 were read",
    )
    at_home.declare(golden=HALF | {"version": "0" * 64})
    assert "is no version of 'support'" in failure(materialize(at_home, "golden_dataset"))


def test_a_stratum_without_a_sealed_item_is_named_in_a_warning() -> None:
    for without, passed, said in (([], True, "has a sealed item"), (["{task: b}"], False, "speak for {task: b}: ")):
        facts = {"strata_without_sealed": without}
        check = every_stratum_sealed(Freeze(rows=golden_of(1), exclusions={}, candidates=1, facts=facts))
        assert check.passed == passed
        assert said in str(check.description)
        assert check.severity == dg.AssetCheckSeverity.WARN


def test_burnt_items_come_in_as_open_ones_and_an_import_of_nothing_else_is_refused(at_home: Place) -> None:
    freeze(at_home)
    golden_exchange.export_golden(
        "support", home=at_home.folder, to=at_home.folder / "all.jsonl", form="jsonl", sealed=True
    )
    file = at_home.folder / "mine.jsonl"
    for count, expected in ((ITEMS, None), (ITEMS + 3, 3)):
        rows = [
            {"id": f"call-{at:04d}", "source_prompt": [{"role": "user", "content": "x?"}], "source_output": str(at)}
            for at in range(count)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if expected is None:
            with pytest.raises(InvalidInput, match=f"none of {count} items can be sealed"):
                golden_exchange.import_golden(str(file), workload="support", home=at_home.folder)
        else:
            made = golden_exchange.import_golden(str(file), workload="support", home=at_home.folder)
            assert made.sealed_items == expected


def test_an_export_by_a_number_without_a_name_is_ledgered(at_home: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError

    freeze(at_home)
    monkeypatch.setattr("getpass.getuser", nameless)
    to = at_home.folder / "all.jsonl"
    golden_exchange.export_golden("support", home=at_home.folder, to=to, form="jsonl", sealed=True)
    (event,) = at_home.state.events("holdout/support")
    assert event.payload["by"] == f"uid {os.getuid()}"


def test_a_bad_file_imports_nothing_and_nothing_to_export_is_told(at_home: Place) -> None:
    at_home.declare()
    file = at_home.folder / "bad.jsonl"
    file.write_text('{"id": "a"}\n')
    with pytest.raises(InvalidInput, match="line 1: source_prompt is missing"):
        golden_exchange.import_golden(str(file), workload="support", home=at_home.folder)
    assert at_home.artifacts.load_manifest("golden_dataset", "support") is None
    with pytest.raises(MissingInput, match="has no golden dataset"):
        golden_exchange.export_golden(
            "support", home=at_home.folder, to=at_home.folder / "x", form="jsonl", sealed=False
        )
    with pytest.raises(InvalidInput, match="cannot be read"):
        golden_exchange.import_golden(str(at_home.folder / "none.parquet"), workload="support", home=at_home.folder)


def test_mlflow_holds_it_as_an_evaluation_dataset_and_gives_it_back(at_home: Place) -> None:
    freeze(at_home)
    rows = at_home.artifacts.read(golden(at_home))
    for _ in range(2):  # the second completes the first, and doubles nothing
        done = golden_exchange.export_golden("support", home=at_home.folder, to=None, form="mlflow", sealed=True)
    golden_exchange.import_golden(done.to, workload="support", home=at_home.folder)
    assert at_home.artifacts.read(golden(at_home)).equals(rows)
    assert rows.height == ITEMS
    with pytest.raises(InvalidInput, match="0 evaluation datasets named 'other'"):
        golden_exchange.import_golden("mlflow:other", workload="support", home=at_home.folder)
