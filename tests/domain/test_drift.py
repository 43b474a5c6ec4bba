"""When the golden dataset no longer represents production."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from anven_pipelines.domain.candidates import strata_of, traffic_strata
from anven_pipelines.domain.drift import Drift, FrozenTraffic, find_drift, frozen_traffic, since_freeze
from anven_pipelines.domain.request_log import REQUEST_LOG
from anven_pipelines.spec import Drift as Limits
from tests.builders import a_migration, golden_of

STRATA = ["application"]
FROZEN = pl.DataFrame({"application": ["a", "b", "c"], "calls": [1000, 600, 400]})
HELD = FROZEN.select("application")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def live(counts: dict[str, int], *, turns: int = 1) -> pl.DataFrame:
    """Build calls in conversations of as many turns."""
    applications = [name for name, count in counts.items() for _ in range(count)]
    clusters = [f"c{at // turns}" for at in range(len(applications))]
    return pl.DataFrame({"application": applications, "cluster": clusters}, schema_overrides={"cluster": pl.String})


def drift_of(counts: dict[str, int], *, turns: int = 1, frozen: pl.DataFrame = FROZEN, effect: float = 1.0) -> Drift:
    return find_drift(FrozenTraffic(frozen, effect, HELD), live(counts, turns=turns), STRATA, Limits())


def test_the_same_shares_still_represent_production() -> None:
    drift = drift_of({"a": 500, "b": 300, "c": 200})
    assert drift.represents
    assert drift.distance == 0
    assert "still represents production" in drift.reason


@pytest.mark.parametrize(
    ("counts", "turns", "status", "reason"),
    [
        ({"a": 300, "b": 500, "c": 200}, 1, "drifted", "20.0% of the calls fall into other strata"),
        ({"a": 48_000, "b": 31_200, "c": 20_800}, 1, "represents", "10% would matter"),
        (
            {"a": 470, "b": 290, "c": 190, "new": 50},
            1,
            "drifted",
            "5.0% of the calls are in strata that the freeze never saw",
        ),
        ({"a": 20, "b": 12, "c": 8}, 1, "too few calls to tell", "40 since the freeze would show a shift of 10%"),
        ({"a": 500, "b": 300, "c": 200}, 50, "too few calls to tell", "1000 since the freeze"),
        ({"a": 40, "b": 60}, 50, "too few calls to tell", "100 since the freeze"),
        ({}, 1, "too few calls to tell", "0 since the freeze, 2000 at it"),
    ],
)
def test_each_change_of_the_traffic_is_told(counts: dict[str, int], turns: int, status: str, reason: str) -> None:
    drift = drift_of(counts, turns=turns)
    assert drift.status == status
    assert reason in drift.reason
    assert drift.represents == (status == "represents")


def test_a_single_stratum_needs_enough_calls_too() -> None:
    one = pl.DataFrame({"application": ["a"], "calls": [1000]})
    assert drift_of({"a": 5}, frozen=one).status == "too few calls to tell"
    assert drift_of({"a": 50}, frozen=one).status == "represents"
    unstratified = FrozenTraffic(one.select("calls"), 1.0, HELD.select([]))
    assert find_drift(unstratified, live({"a": 50}), [], Limits()).status == "represents"


def test_unchanged_traffic_raises_few_alarms_and_a_shift_is_found() -> None:
    rng, shares, shifted = np.random.default_rng(5), [0.5, 0.3, 0.2], [0.35, 0.45, 0.2]
    false_alarms = found = 0
    for _ in range(100):
        frozen = FROZEN.with_columns(calls=pl.Series(rng.multinomial(900, shares)))
        same = dict(zip("abc", rng.multinomial(900, shares).tolist(), strict=True))
        moved = dict(zip("abc", rng.multinomial(900, shifted).tolist(), strict=True))
        false_alarms += drift_of(same, frozen=frozen).status == "drifted"
        found += drift_of(moved, frozen=frozen).status == "drifted"
    assert false_alarms <= 2
    assert found >= 93


def test_each_sample_is_divided_by_its_own_design_effect() -> None:
    moved = {"a": 400, "b": 400, "c": 200}
    assert drift_of(moved).status == "drifted"
    # 2,000 calls at the freeze in conversations of 20 are 100 independent ones.
    assert drift_of(moved, effect=20.0).status == "too few calls to tell"


def test_a_small_freeze_may_have_missed_what_was_always_there() -> None:
    few = FROZEN.with_columns(calls=pl.Series([3, 2, 0]))
    assert drift_of({"a": 500, "b": 300, "c": 200}, frozen=few).status == "too few calls to tell"


def test_a_distance_that_matters_but_may_be_chance_is_not_called_represented() -> None:
    limits = Limits(distance=0.1, level=1e-12)
    seen = live({"a": 2750, "b": 2450, "c": 1000})
    assert find_drift(FrozenTraffic(FROZEN, 2.0, HELD), seen, STRATA, limits).status == "too few calls to tell"


def test_calls_in_strata_without_a_golden_item_are_told_apart() -> None:
    drift = find_drift(FrozenTraffic(FROZEN, 1.0, HELD.head(2)), live({"a": 500, "b": 300, "c": 200}), STRATA, Limits())
    assert drift.represents
    assert drift.uncovered_share == 0.2
    assert "20.0% into strata without a golden item (c)" in drift.reason


def test_the_freeze_is_compared_by_the_traffic_it_saw_else_by_what_its_items_stand_for() -> None:
    facts = {"traffic": {"strata": [{"application": "a", "calls": 7}], "design_effect": 3.0}}
    golden = golden_of(3, role=["traffic", "traffic", "edge_case"], weight=[4.0, 2.0, 1.0])
    seen = frozen_traffic(golden, facts, STRATA)
    assert (seen.calls.rows(), seen.design_effect) == ([("a", 7.0)], 3.0)
    assert seen.golden.rows() == [("helpdesk",), ("helpdesk",)]
    imported = frozen_traffic(golden, {}, STRATA)
    assert imported.calls.rows() == [("helpdesk", 4.0), ("helpdesk", 2.0)]
    assert imported.design_effect == pytest.approx(20 / 6)
    assert frozen_traffic(golden, facts, ["task"]).calls.rows() == [("qa", 4.0), ("qa", 2.0)]


def test_unchanged_traffic_of_which_few_calls_qualify_is_no_drift() -> None:
    calls = REQUEST_LOG.conform(
        pl.DataFrame(
            {
                "request_id": [f"r{at}" for at in range(1000)],
                "model": ["legacy-model"] * 1000,
                "application": ["a", "b"] * 500,
                "status": ["ok"] * 900 + ["error"] * 100,
                "messages": ['[{"role":"user","content":"same"}]'] * 1000,
                "ground_truth": ["t" if at % 8 in (0, 1, 2, 4, 6) else None for at in range(1000)],
            }
        )
    )
    migration = a_migration(golden={"strata": STRATA})
    facts = {"traffic": traffic_strata(calls, migration)}
    assert facts["traffic"]["strata"] == [{"application": "a", "calls": 500}, {"application": "b", "calls": 500}]
    assert facts["traffic"]["design_effect"] == 1.0
    frozen = frozen_traffic(golden_of(2, application=["a", "b"]), facts, STRATA)
    drift = find_drift(frozen, strata_of(calls, migration), STRATA, Limits())
    assert (drift.represents, drift.distance) == (True, 0.0)


def test_only_calls_after_the_freeze_and_of_the_newest_days_are_live() -> None:
    times = [NOON - timedelta(days=days) for days in (20, 6, 3, 0)]
    traffic = pl.DataFrame({"ts": [*times, None], "at": range(5)})
    until = {"traffic_until": times[1].isoformat()}
    assert since_freeze(traffic, until, days=7)["at"].to_list() == [2, 3]
    assert since_freeze(traffic, {}, days=7).is_empty()  # an import: nobody knows which calls are new
    assert since_freeze(traffic, {"traffic_until": NOON.isoformat()}, days=7).is_empty()
