"""What counts as kept, as saturated and as measured; hand-computed."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from anven_pipelines.domain.completion import Answer, Failure
from anven_pipelines.domain.inference import CompletionRequest
from anven_pipelines.domain.load import (
    LEVEL,
    RateFigures,
    Timing,
    figures_of,
    judged,
    lag_limit_ms,
    may_go_on,
    request_row,
    requests_needed,
    saturation_of,
    unsent_row,
)
from anven_pipelines.domain.load_plan import Due
from anven_pipelines.spec_load import ServiceLevel
from anven_pipelines.stats.proportions import wilson_interval
from tests.load_rows import requests_at

DUE = Due(2.0, CompletionRequest("item-1", [], {}))
ANSWER = Answer("fine", None, "stop", "m", 7, 5, None, 30.0, 70.0, 25.0)


def slo(**limits: Any) -> ServiceLevel:
    return ServiceLevel.model_validate({"ttft_ms": 500.0} | limits)


def figures(rows: pl.DataFrame, level: ServiceLevel | None = None, *, seconds: float = 20.0) -> RateFigures:
    limits = level or slo()
    return figures_of(judged(rows, limits), limits, seconds=seconds)


def misses(count: int, of: int, *, rate: float = 10.0) -> RateFigures:
    return figures(requests_at(rate, ttft_ms=[900.0] * count + [100.0] * (of - count)))


def test_times_count_from_when_the_request_was_due() -> None:
    row = request_row(DUE, ANSWER, Timing(started_s=2.25, departed_s=2.26))
    assert row.pop("lag_ms") == pytest.approx(260.0)
    assert row == {
        "item_id": "item-1",
        "due_s": 2.0,
        "status": "answered",
        "ttft_ms": 280.0,
        "latency_ms": 320.0,
        "inter_token_ms": 10.0,
        "longest_gap_ms": 25.0,
        "input_tokens": 7,
        "output_tokens": 5,
    }


def test_the_first_token_of_an_empty_answer_is_its_end() -> None:
    empty = Answer("", None, "stop", "m", 7, 2, None, None, 70.0)
    row = request_row(DUE, empty, Timing(started_s=2.0, departed_s=2.0))
    assert (row["ttft_ms"], row["latency_ms"], row["inter_token_ms"]) == (70.0, 70.0, None)
    rows = pl.DataFrame([{"arm": "target", "rate": 1.0, "number": 0, **row}])
    assert judged(rows, slo(inter_token_ms=9.0))["met"].to_list() == [True]
    assert judged(rows, slo(ttft_ms=69.0))["met"].to_list() == [False]


def test_a_failure_has_a_reason_and_no_times() -> None:
    row = request_row(DUE, Failure("server_error", "oops", 500), Timing(started_s=2.0, departed_s=None))
    assert row == {
        "item_id": "item-1",
        "due_s": 2.0,
        "lag_ms": 0.0,
        "status": "failed",
        "reason": "server_error: HTTP 500: oops",
    }
    assert unsent_row(DUE, cap=8)["reason"] == "8 requests were unanswered, as many as load.max_in_flight allows"


@pytest.mark.parametrize(
    ("limits", "columns", "met"),
    [
        ({}, {}, True),
        ({"ttft_ms": 99.0}, {}, False),
        ({"latency_ms": 200.0}, {}, True),
        ({"latency_ms": 199.0}, {}, False),
        ({"inter_token_ms": 10.0}, {}, True),
        ({"inter_token_ms": 9.0}, {}, False),
        ({"inter_token_ms": 9.0}, {"output_tokens": [1], "inter_token_ms": [None]}, True),
        ({"inter_token_ms": 9.0}, {"output_tokens": [None], "inter_token_ms": [None]}, None),
        ({}, {"ttft_ms": [None]}, None),
        ({"latency_ms": 199.0}, {"ttft_ms": [None]}, False),
        ({}, {"status": ["failed"], "ttft_ms": [None]}, False),
        ({}, {"status": ["failed"]}, False),
        ({}, {"status": ["unsent"]}, False),
    ],
)
def test_a_request_keeps_every_limit_or_none_is_said(
    limits: dict[str, float], columns: dict[str, Any], met: bool | None
) -> None:
    typed = {
        name: pl.Series(values, dtype=pl.String if name == "status" else pl.Float64) for name, values in columns.items()
    }
    rows = requests_at(1.0, ttft_ms=[100.0]).with_columns(**typed)
    assert judged(rows, slo(**limits))["met"].to_list() == [met]


def test_figures_are_those_computed_by_hand() -> None:
    # 200 requests over 20 s: 100 ms to the first token, but for ten of 900 ms and five errors at the end.
    times: list[float | None] = [100.0] * 185 + [900.0] * 10 + [None] * 5
    rows = requests_at(10.0, ttft_ms=times, status=["answered"] * 195 + ["failed"] * 5)
    found = figures(rows)
    assert (found.requests, found.answered, found.failed, found.unsent, found.kept) == (200, 195, 5, 0, 185)
    assert found.offered_rate == 10.0
    assert found.error_share == pytest.approx(0.025)
    assert found.goodput == 9.25
    # The 195th was due at 19.4 s and answered at 20.4 s; those due from 19.1 s on with 900 ms + 100 ms are too late.
    assert found.achieved_rate == pytest.approx(
        sum(at / 10 + (0.2 if at < 185 else 1.0) <= 20 for at in range(195)) / 20
    )
    assert found.within is not None
    interval = wilson_interval(185, 200, level=LEVEL)
    assert (found.within.estimate, found.within.lower) == (interval.estimate, interval.lower)
    # Nearest rank: the 100th, the 190th; an error is slower than every answer. 200 requests hold no p99.
    assert (found.ttft_ms.p50, found.ttft_ms.p95, found.ttft_ms.p99) == (100.0, 900.0, None)
    assert found.latency_ms.p95 == 1000.0
    assert found.prompts == 50
    assert found.judgement == "unproven"


def test_a_percentile_among_the_errors_is_none() -> None:
    rows = requests_at(10.0, ttft_ms=[100.0] * 90 + [None] * 10, status=["answered"] * 90 + ["failed"] * 10)
    assert figures(rows).ttft_ms.p95 is None


@pytest.mark.parametrize(
    ("requests", "p50", "p95", "p99"),
    [
        (9, False, False, False),
        (10, True, False, False),
        (99, True, False, False),
        (100, True, True, False),
        (500, True, True, True),
    ],
)
def test_percentiles_of_too_few_requests_are_not_made_up(requests: int, p50: bool, p95: bool, p99: bool) -> None:
    found = figures(requests_at(10.0, ttft_ms=[100.0] * requests)).ttft_ms
    assert (found.p50 is not None, found.p95 is not None, found.p99 is not None) == (p50, p95, p99)


@pytest.mark.parametrize(
    ("missed", "judgement"), [(0, "within"), (4, "within"), (10, "unproven"), (25, "beyond"), (200, "beyond")]
)
def test_a_rate_is_judged_by_the_far_bound(missed: int, judgement: str) -> None:
    assert misses(missed, 200).judgement == judgement


def test_a_rate_right_at_the_limit_is_seldom_called_within_or_beyond() -> None:
    """Exact, over all numbers of misses: at a true share of just 95 % either claim is wrong."""
    chance: dict[str, float] = {}
    for missed in range(41):
        judgement = misses(missed, 200).judgement
        chance[judgement] = chance.get(judgement, 0.0) + float(binom.pmf(missed, 200, 0.05))
    assert sum(chance.values()) == pytest.approx(1.0, abs=1e-6)
    assert 0.01 < chance["within"] < 0.055
    assert 0.01 < chance["beyond"] < 0.055


@pytest.mark.parametrize("share", [0.9, 0.95, 0.99])
def test_so_many_requests_prove_a_share_and_one_less_does_not(share: float) -> None:
    needed = requests_needed(share)
    assert wilson_interval(needed, needed, level=LEVEL).lower >= share
    assert wilson_interval(needed - 1, needed - 1, level=LEVEL).lower < share


@settings(deadline=None)
@given(st.lists(st.sampled_from(["answered", "failed", "unsent"]), min_size=1, max_size=120))
def test_errors_never_raise_goodput(statuses: list[str]) -> None:
    rows = requests_at(10.0, ttft_ms=[100.0] * len(statuses), status=statuses)
    found = figures(rows)
    assert found.kept == statuses.count("answered")
    assert found.goodput == pytest.approx(statuses.count("answered") / 20)
    assert found.error_share == pytest.approx(1 - statuses.count("answered") / len(statuses))


def test_a_driver_that_was_late_measured_nothing() -> None:
    lag = [80.0] * 6 + [1.0] * 194
    found = figures(requests_at(10.0, ttft_ms=[100.0] * 200, lag_ms=lag))
    assert found.judgement == "unmeasured"
    assert found.reason.startswith("the driver itself could not keep up: 6 of 200 requests left more than 50 ms late")
    assert figures(requests_at(10.0, ttft_ms=[100.0] * 200, lag_ms=[80.0] * 5 + [1.0] * 195)).judgement == "within"


@pytest.mark.parametrize(
    ("limits", "lag_ms"),
    [
        ({"ttft_ms": 500, "latency_ms": 3000}, 50.0),
        ({"ttft_ms": 20}, 10.0),
        ({"ttft_ms": None, "latency_ms": 3000}, 300.0),
        ({"ttft_ms": None, "inter_token_ms": 5}, 50.0),
    ],
)
def test_how_late_the_driver_may_be_follows_from_the_limits(limits: dict[str, Any], lag_ms: float) -> None:
    assert lag_limit_ms(slo(**limits)) == lag_ms


def test_answers_without_the_limited_time_leave_the_rate_unmeasured() -> None:
    found = figures(requests_at(10.0, ttft_ms=[None] + [100.0] * 199, latency_ms=[100.0] * 200))
    assert (found.judgement, found.goodput, found.within, found.ttft_ms.p50) == ("unmeasured", None, None, None)
    assert found.reason.startswith("1 of 200 requests lack a time that is limited")
    assert found.latency_ms.p50 == 100.0


def test_requests_that_the_cap_held_back_are_told() -> None:
    rows = requests_at(10.0, ttft_ms=[100.0] * 200, status=["unsent"] * 60 + ["answered"] * 140)
    found = figures(rows)
    assert found.judgement == "beyond"
    assert found.reason.endswith("the safety cap kept 60 requests from being sent, which count as misses")


def ladder(*rungs: tuple[float, int]) -> list[RateFigures]:
    return [misses(missed, 200, rate=rate) for rate, missed in rungs]


@pytest.mark.parametrize(
    ("rungs", "status", "sustained", "beyond"),
    [
        ([(1.0, 0), (2.0, 0), (4.0, 90)], "found", 2.0, 4.0),
        ([(1.0, 0), (2.0, 10), (4.0, 90)], "found", 1.0, 4.0),
        ([(1.0, 10), (2.0, 0), (4.0, 90)], "found", 2.0, 4.0),
        ([(1.0, 0), (2.0, 0)], "not reached", 2.0, None),
        ([(1.0, 90)], "below", None, 1.0),
        ([(1.0, 10)], "unproven", None, None),
        ([(1.0, 90), (2.0, 0)], "below", None, 1.0),
        ([], "unmeasured", None, None),
    ],
)
def test_the_saturation_point_lies_between_what_is_proven(
    rungs: list[tuple[float, int]], status: str, sustained: float | None, beyond: float | None
) -> None:
    found = saturation_of(ladder(*rungs), slo())
    assert (found.status, found.sustained_rate, found.beyond_rate) == (status, sustained, beyond)
    assert (found.goodput is None) == (sustained is None)


def test_a_rate_that_was_not_measured_is_never_passed_and_ends_the_ladder() -> None:
    late = figures(requests_at(4.0, ttft_ms=[100.0] * 200, lag_ms=[80.0] * 200))
    assert not may_go_on([late])
    assert saturation_of([late], slo()).status == "unmeasured"
    unproven = saturation_of([*ladder((2.0, 10)), late], slo())
    assert (unproven.status, unproven.sustained_rate) == ("unproven", None)
    found = saturation_of([*ladder((2.0, 0)), late], slo())
    assert (found.status, found.sustained_rate) == ("not reached", 2.0)
    assert "4/s was not measured: the driver itself could not keep up" in found.reason


@settings(deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_what_is_sustained_was_proven_and_nothing_below_it_failed(missed: list[int]) -> None:
    rungs = ladder(*((2.0**at, each) for at, each in enumerate(missed)))
    found = saturation_of(rungs, slo())
    if found.sustained_rate is not None:
        below = [each for each in rungs if each.rate <= found.sustained_rate]
        assert below[-1].judgement == "within"
        assert all(each.judgement != "beyond" for each in below)
        assert found.goodput is not None
        assert math.isfinite(found.goodput)
