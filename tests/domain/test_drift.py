"""When the golden dataset no longer represents production."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from anven_pipelines.domain.drift import Drift, find_drift, frozen_traffic, since_freeze
from anven_pipelines.spec import Drift as Limits
from tests.builders import golden_of

STRATA = ["application"]
FROZEN = pl.DataFrame({"application": ["a", "b", "c"], "calls": [1000, 600, 400]})
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def live(counts: dict[str, int], *, turns: int = 1) -> pl.DataFrame:
    """Build calls in conversations of as many turns."""
    applications = [name for name, count in counts.items() for _ in range(count)]
    clusters = [f"c{at // turns}" for at in range(len(applications))]
    return pl.DataFrame({"application": applications, "cluster": clusters}, schema_overrides={"cluster": pl.String})


def drift_of(counts: dict[str, int], *, turns: int = 1, frozen: pl.DataFrame = FROZEN) -> Drift:
    return find_drift(frozen, live(counts, turns=turns), STRATA, Limits())


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
        ({"a": 470, "b": 290, "c": 190, "new": 50}, 1, "drifted", "5.0% of the calls are in strata that it never saw"),
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
    assert find_drift(one.select("calls"), live({"a": 50}), [], Limits()).status == "represents"


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


def test_the_freeze_is_compared_by_what_it_was_drawn_from_else_by_its_items() -> None:
    facts = {"golden": {"strata": [{"application": "a", "calls": 7, "available": 5, "drawn": 3, "sealed": 3}]}}
    assert frozen_traffic(golden_of(2), facts, STRATA).rows() == [("a", 7)]
    assert frozen_traffic(golden_of(2), {}, STRATA).rows() == [("helpdesk", 1), ("helpdesk", 1)]
    assert frozen_traffic(golden_of(2), facts, ["task"]).rows() == [("qa", 1), ("qa", 1)]


def test_only_calls_after_the_freeze_and_of_the_newest_days_are_live() -> None:
    times = [NOON - timedelta(days=days) for days in (20, 6, 3, 0)]
    traffic = pl.DataFrame({"ts": [*times, None], "at": range(5)})
    until = {"traffic_until": times[1].isoformat()}
    assert since_freeze(traffic, until, days=7)["at"].to_list() == [2, 3]
    assert since_freeze(traffic, {}, days=7)["at"].to_list() == [1, 2, 3]
    assert since_freeze(traffic, {"traffic_until": NOON.isoformat()}, days=7).is_empty()
