"""A failed sign-off burns its holdout: what may run again, what may not, and what the next freeze seals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl
import pytest

from anven_pipelines.chain import CHAIN_ASSETS, LOG_ASSETS
from anven_pipelines.domain.errors import InvalidInput
from tests.pipeline.conftest import Place, logged_call, recorded_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.domain.sign_off import Verdict
    from anven_pipelines.resources.migrations import Declared

ITEMS = 160
HALF = {"size": "all", "holdout": 0.5}


def write_answers(place: Place, *, wrong: int) -> None:
    answers = [recorded_answer(at, "no idea" if at < wrong else str(at)) for at in range(2 * ITEMS)]
    (place.folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))


def sealed(place: Place) -> set[str]:
    manifest = place.artifacts.load_manifest("golden_dataset", "support")
    assert manifest is not None
    return set(place.artifacts.read(manifest).filter(pl.col("split") == "sealed")["cluster"])


def failed(place: Place, golden: Mapping[str, object] = HALF) -> Verdict:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place, wrong=ITEMS)
    verdict = place.migrate(place.declare(golden=golden))
    assert verdict.verdict == "NO-GO"
    return verdict


def materialize(place: Place, declared: Declared, *, until: str) -> None:
    """Run the chain up to an asset."""
    place.instance.add_dynamic_partitions("workload", [declared.migration.workload])
    place.instance.add_dynamic_partitions("log_day", ["2026-10-05"])
    chain = CHAIN_ASSETS[: CHAIN_ASSETS.index(until) + 1]
    for assets, partition in ((LOG_ASSETS, "2026-10-05"), (chain, declared.migration.workload)):
        assert (
            place.definitions.resolve_implicit_global_asset_job_def()
            .execute_in_process(
                instance=place.instance,
                partition_key=partition,
                asset_selection=[dg.AssetKey(asset) for asset in assets],
            )
            .success
        )


def opened(place: Place) -> set[str]:
    manifest = place.artifacts.load_manifest("golden_dataset", "support")
    assert manifest is not None
    return set(place.artifacts.read(manifest).filter(pl.col("split") == "open")["cluster"])


def test_a_failed_sign_off_reproduces_refuses_other_answers_and_new_logs_seal_others(place: Place) -> None:
    verdict, seen = failed(place), sealed(place) | opened(place)
    assert place.migrate(place.declare(golden=HALF)).to_json() == verdict.to_json()
    write_answers(place, wrong=0)
    with pytest.raises(InvalidInput, match=r"opened by run .* \(NO-GO\), so they cannot judge other answers"):
        place.migrate(place.declare(golden=HALF))
    with pytest.raises(InvalidInput, match=f"none of {ITEMS} items can be sealed: .* stood open in an earlier version"):
        place.migrate(place.declare(golden=HALF | {"seed": 7}))
    place.write_log([logged_call(at) for at in range(2 * ITEMS)])
    materialize(place, place.declare(golden=HALF), until="golden_dataset")
    assert len(sealed(place)) == ITEMS
    assert not sealed(place) & seen


def test_another_seed_seals_what_no_scorecard_has_shown(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place, wrong=0)
    materialize(place, place.declare(golden=HALF), until="scores")
    first, shown = sealed(place), opened(place)
    materialize(place, place.declare(golden=HALF | {"seed": 7}), until="golden_dataset")
    assert (sealed(place), opened(place)) == (first, shown)


def test_before_anything_is_shown_another_seed_seals_others(place: Place) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    materialize(place, place.declare(golden=HALF), until="golden_dataset")
    first = sealed(place)
    materialize(place, place.declare(golden=HALF | {"seed": 7}), until="golden_dataset")
    assert sealed(place) & opened(place) == set()
    assert sealed(place) != first


def test_with_everything_sealed_more_logs_are_needed_or_a_waiver_that_the_verdict_tells(place: Place) -> None:
    everything = {"size": "all", "holdout": 1.0}
    failed(place, everything)
    with pytest.raises(InvalidInput, match=f"none of {ITEMS} items can be sealed: .* add logs"):
        place.migrate(place.declare(golden=everything | {"seed": 7}))
    waive = {"quality_margin": 0.05, "waive": ["ttft", "cost", "safety", "holdout"]}
    verdict = place.migrate(place.declare(golden=everything | {"seed": 7}, sign_off=waive))
    assert f"holdout: undecided (waived by the migration file): {ITEMS} of {ITEMS} sealed items" in str(verdict.reasons)
    place.write_log([logged_call(at) for at in range(2 * ITEMS)])
    fresh = place.migrate(place.declare(golden=everything))
    assert fresh.quality.n == ITEMS
    assert f"none of {ITEMS} sealed items was opened" in str(fresh.reasons)


def test_a_run_that_died_after_opening_is_finished_by_the_same_inputs_only(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place, wrong=0)
    with monkeypatch.context() as patched:
        patched.setattr("anven_pipelines.assets.sign_off.decide", lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(BaseException, match="killed"):
            place.migrate(place.declare(golden=HALF))
    assert place.state.events("sign_off/support") == []
    assert len(place.state.events("holdout/support")) == 1
    write_answers(place, wrong=1)
    with pytest.raises(InvalidInput, match="no verdict"):
        place.migrate(place.declare(golden=HALF))
    write_answers(place, wrong=0)
    assert place.migrate(place.declare(golden=HALF)).verdict != "NO-GO"


def test_another_name_makes_no_burnt_item_fresh(place: Place) -> None:
    failed(place)
    write_answers(place, wrong=0)
    with pytest.raises(InvalidInput, match=r"opened by run .* of support on .* \(NO-GO\)"):
        place.migrate(place.declare(golden=HALF, workload="renamed"))
    with pytest.raises(InvalidInput, match=f"none of {ITEMS} items can be sealed"):
        place.migrate(place.declare(golden=HALF | {"seed": 7}, workload="renamed"))


def test_the_same_ids_in_another_log_are_other_items(place: Place) -> None:
    failed(place)
    place.write_log([logged_call(at, messages=[{"role": "user", "content": f"Other {at}?"}]) for at in range(ITEMS)])
    write_answers(place, wrong=0)
    verdict = place.migrate(place.declare(golden=HALF, workload="other"))
    assert verdict.attempt == 1
    assert verdict.quality.n == ITEMS // 2
