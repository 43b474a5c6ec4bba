"""A failed sign-off burns its holdout: what may run again, what may not, and what the next freeze seals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import polars as pl
import pytest

from anven_pipelines.domain.errors import InvalidInput
from tests.pipeline.conftest import Place, logged_call, recorded_answer

if TYPE_CHECKING:
    from anven_pipelines.domain.sign_off import Verdict

ITEMS = 160
HALF = {"size": "all", "holdout": 0.5}


def write_answers(place: Place, *, wrong: int) -> None:
    answers = [recorded_answer(at, "no idea" if at < wrong else str(at)) for at in range(2 * ITEMS)]
    (place.folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))


def sealed(place: Place) -> set[str]:
    manifest = place.artifacts.load_manifest("golden_dataset", "support")
    assert manifest is not None
    return set(place.artifacts.read(manifest).filter(pl.col("split") == "sealed")["cluster"])


def failed(place: Place) -> Verdict:
    place.write_log([logged_call(at) for at in range(ITEMS)])
    write_answers(place, wrong=ITEMS)
    verdict = place.migrate(place.declare(golden=HALF))
    assert verdict.verdict == "NO-GO"
    return verdict


def test_a_failed_sign_off_reproduces_refuses_other_answers_and_a_new_seed_seals_others(place: Place) -> None:
    verdict, burnt = failed(place), sealed(place)
    assert place.migrate(place.declare(golden=HALF)).to_json() == verdict.to_json()
    write_answers(place, wrong=0)
    with pytest.raises(InvalidInput, match=r"opened by run .* \(NO-GO\), so they cannot judge other answers"):
        place.migrate(place.declare(golden=HALF))
    assert place.migrate(place.declare(golden=HALF | {"seed": 7})).verdict != "NO-GO"
    assert len(sealed(place)) == ITEMS // 2
    assert not sealed(place) & burnt


def test_with_everything_sealed_more_logs_are_needed_or_a_waiver_that_the_verdict_tells(place: Place) -> None:
    failed(place)
    everything = {"size": "all", "holdout": 1.0}
    place.migrate(place.declare(golden=everything))
    with pytest.raises(InvalidInput, match=f"all {ITEMS} items of the draw belong to .* add logs"):
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
