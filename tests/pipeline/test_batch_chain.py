"""The chain with a model that the batch itself runs, in a worker process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
import pytest

from anven_pipelines.assets.inference import _weights_of
from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.nano.models import model_folder
from anven_pipelines.nano.prompts import anven_messages
from anven_pipelines.nano.tasks import generate
from anven_pipelines.spec_target import JobTarget, NanoTarget
from tests.pipeline.conftest import Place, logged_call

if TYPE_CHECKING:
    from anven_pipelines.domain.sign_off import Verdict

ITEMS = 160
NANO = {"engine": "nano", "model": "anven-nano"}


def write_questions(place: Place) -> None:
    place.write_log(
        [
            logged_call(
                at,
                messages=anven_messages(item),
                output=item.answer,
                ground_truth=item.answer,
                ttft_ms=20.0,
                latency_ms=100.0,
            )
            for at, item in enumerate(generate("golden", ITEMS, seed=4))
        ]
    )


def migrated(place: Place, target: dict[str, Any], **changes: Any) -> Verdict:
    declared = place.declare(
        target=target,
        grading=[{"kind": "exact"}],
        golden={"size": "all", "holdout": 1.0, "near_duplicates": "keep"},
        sign_off={"quality_margin": 0.3, "waive": ["cost", "safety"]} | changes,
    )
    return place.migrate(declared)


def target_rows(place: Place) -> pl.DataFrame:
    manifest = place.artifacts.load_manifest("target_answers", "support")
    assert manifest is not None
    return place.artifacts.read(manifest)


def test_a_batch_is_answered_and_its_times_count_for_nothing(place: Place) -> None:
    write_questions(place)
    verdict = migrated(place, NANO)
    rows = target_rows(place)
    assert rows["status"].to_list() == ["answered"] * ITEMS
    assert rows.select(pl.col("input_tokens", "output_tokens").is_not_null().all()).row(0) == (True, True)
    assert rows.select(pl.col("ttft_ms", "latency_ms").is_null().all()).row(0) == (True, True)
    assert verdict.quality.n == ITEMS
    assert verdict.quality.target_mean is not None
    assert verdict.quality.target_mean > 0.8
    assert verdict.speed.status == "unmeasured"
    assert verdict.verdict != "GO"  # what was not measured does not pass
    assert migrated(place, NANO, waive=["cost", "safety", "ttft"]).verdict == "GO"


def test_the_worker_says_in_the_run_what_it_did(place: Place) -> None:
    write_questions(place)
    migrated(place, NANO)
    event = place.instance.get_latest_materialization_event(dg.AssetKey("target_answers"))
    assert event is not None
    assert event.asset_materialization is not None
    figures: Any = event.asset_materialization.metadata["batch"].value
    assert figures["rows"] == figures["answered"] == ITEMS
    assert figures["tokens_per_s"] > 0
    said = [each.message for each in place.instance.all_logs(event.run_id)]
    assert any(f"{ITEMS} of {ITEMS} answered, 0 failed" in each for each in said)


JOB = {
    "engine": "vllm-job",
    "model": "ANVEN-3b-instruct",
    "weights": str(model_folder("anven-nano")),
    "digest": "0" * 64,
    "licence": "Apache-2.0",
}


def test_without_an_environment_of_vllm_the_job_is_refused(place: Place) -> None:
    write_questions(place)
    with pytest.raises(InvalidInput, match="set ANVEN_WORKER_PYTHON to its python"):
        migrated(place, JOB)


def test_a_model_that_does_not_fit_is_refused_before_anything_is_spent(place: Place) -> None:
    write_questions(place)
    with pytest.raises(InvalidInput, match=r"ANVEN-3b-instruct does not fit: .* raise tensor_parallel"):
        migrated(place, JOB | {"gpu_memory_gib": 0.001})
    assert not list((place.folder / "home" / "artifacts").glob("jobs/*"))


def test_what_answered_is_recorded_with_its_place_its_digest_and_its_licence() -> None:
    target = {"engine": "vllm-job", "model": "m", "weights": "s3://b/m", "digest": "0" * 64, "licence": "Apache-2.0"}
    pinned = {"weights": "s3://b/m", "digest": "0" * 64, "licence": "Apache-2.0"}
    assert _weights_of(JobTarget.model_validate(target)) == pinned
    assert _weights_of(JobTarget.model_validate(target | {"revision": "7"})) == pinned | {"revision": "7"}
    assert _weights_of(NanoTarget.model_validate(NANO)) == {}
