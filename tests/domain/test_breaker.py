"""The breaker: bursts trip it, what is usual does not, and it stays open until someone has looked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.breaker import (
    LEAST_REFERENCE,
    BreakerLimits,
    BreakerState,
    Observation,
    observe,
    renewed,
    slow_above_ms,
)
from anven_pipelines.domain.errors import InvalidInput

LIMITS = BreakerLimits()
START = BreakerState(generation=1)
GOOD = Observation("target", failed=False, waited_ms=100.0, stream=False)
BAD = Observation("target", failed=True, waited_ms=None, stream=False)
SLOW = Observation("target", failed=False, waited_ms=5_000.0, stream=False)
LEGACY = Observation("legacy", failed=False, waited_ms=100.0, stream=False)
LEGACY_BAD = Observation("legacy", failed=True, waited_ms=None, stream=False)


def after(*seen: Observation, state: BreakerState = START) -> BreakerState:
    for each in seen:
        state = observe(state, each, LIMITS)
    return state


def test_six_failures_in_a_row_trip_it_and_five_do_not() -> None:
    assert after(*[BAD] * 5).tripped is None
    assert after(*[BAD] * 6).tripped == "errors"
    assert after(*[GOOD] * 1000, *[BAD] * 6).tripped == "errors"


def test_a_target_that_fails_half_its_requests_trips_it_within_a_few_dozen() -> None:
    rng = np.random.default_rng(3)
    needed = []
    for _ in range(200):
        state, count = START, 0
        while not state.tripped:
            state, count = observe(state, BAD if rng.random() < 0.5 else GOOD, LIMITS), count + 1
        needed.append(count)
    assert np.mean(needed) < 18
    assert max(needed) < 80


def test_a_target_that_fails_as_rarely_as_is_usual_does_not_trip_it() -> None:
    # One false trip in a million requests is the bound; in 200,000 requests fewer than two are all but sure.
    rng = np.random.default_rng(4)
    trips, state = 0, START
    for failed in rng.random(200_000) < LIMITS.usual_errors:
        state = observe(state, BAD if failed else GOOD, LIMITS)
        if state.tripped:
            trips, state = trips + 1, START
    assert trips <= 1


def test_an_outage_of_both_arms_is_not_the_targets() -> None:
    state = after(*[LEGACY, LEGACY_BAD] * 200)
    assert after(*[BAD, GOOD] * 30, state=state).tripped is None
    assert after(*[BAD, GOOD] * 30).tripped == "errors"


def test_slow_answers_trip_it_where_legacy_is_known_to_be_faster() -> None:
    assert after(*[SLOW] * 50).tripped is None
    known = after(*[LEGACY] * LEAST_REFERENCE)
    assert slow_above_ms(known, LIMITS, stream=False) == 1100.0
    assert after(*[SLOW] * 7, state=known).tripped == "latency"
    assert after(*[GOOD] * 500, state=known).tripped is None


def test_streams_and_plain_answers_are_compared_apart() -> None:
    known = after(*[LEGACY] * LEAST_REFERENCE)
    assert slow_above_ms(known, LIMITS, stream=True) == LIMITS.slow_at_ms
    assert after(*[SLOW._replace(stream=True)] * 50, state=known).tripped is None


def test_what_nobody_answers_in_time_is_slow_where_nothing_is_known_of_legacy() -> None:
    hangs = Observation("target", failed=None, waited_ms=30_001.0, stream=False)
    assert after(*[hangs] * 6).tripped == "latency"
    state = START
    for _ in range(50):
        state = observe(state, hangs, replace(LIMITS, slow_at_ms=None))
    assert state.tripped is None


def test_a_slow_legacy_makes_a_slow_target_usual() -> None:
    known = after(*[LEGACY._replace(waited_ms=4_000.0)] * LEAST_REFERENCE)
    assert after(*[SLOW] * 50, state=known).tripped is None


def test_what_is_not_known_yet_counts_as_neither() -> None:
    unknown = Observation("target", failed=None, waited_ms=None, stream=False)
    assert after(*[unknown] * 100) == START


def test_only_a_newer_generation_closes_it() -> None:
    tripped = after(*[BAD] * 6)
    assert after(*[GOOD] * 1000, state=tripped).tripped == "errors"
    assert renewed(tripped, generation=1) == tripped
    assert renewed(tripped, generation=0) == tripped
    closed = renewed(after(*[LEGACY] * 30, *[BAD] * 6), generation=2)
    assert (closed.generation, closed.tripped, closed.errors) == (2, None, 0.0)
    assert len(closed.legacy_ms[False]) == 30


observations = st.builds(
    Observation,
    st.sampled_from(["legacy", "target"]),
    failed=st.sampled_from([True, False, None]),
    waited_ms=st.none() | st.floats(0, 1e5),
    stream=st.booleans(),
)


@given(st.lists(observations, max_size=60))
def test_it_never_trips_without_a_bad_answer_of_the_target(seen: list[Observation]) -> None:
    state = after(*seen)
    if state.tripped == "errors":
        assert sum(each.arm == "target" and each.failed is True for each in seen) >= 6
    if state.tripped == "latency":
        assert sum(each.arm == "target" and each.waited_ms is not None for each in seen) >= 6
    assert min(state.errors, state.slow) >= 0


@pytest.mark.parametrize(
    "change",
    [
        {"usual_errors": 0.0},
        {"error_burst": 1.0},
        {"slow_burst": 0.01},
        {"slow_factor": 0.5},
        {"slow_margin_ms": -1.0},
        {"slow_at_ms": 0.0},
        {"slow_at_ms": float("nan")},
        {"false_trip": 1.0},
        {"false_trip": float("nan")},
    ],
)
def test_limits_that_can_be_none_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="out of range"):
        replace(LIMITS, **change)
