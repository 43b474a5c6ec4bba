"""What a rehearsed roll back has to show, on the sightings of its requests and of the gateway's workers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.drill import Asked, Sighting, follow_times, is_old, judge_drill

WRITTEN_S = 100.0
NEW = 7


def request(at_s: float, served: Any, worker: str = "a", generation: int | None = None) -> Asked:
    """Build a request that was answered, by the route that the arm tells of unless told otherwise."""
    told = generation if generation is not None else (NEW - 1 if served == "target" else NEW)
    return Asked(at_s, Sighting(at_s, worker, told, served), None, 20, 5)


def word(at_s: float, generation: int, worker: str = "a") -> Sighting:
    return Sighting(at_s, worker, generation)


GOOD = [request(99.0, "target"), request(99.5, "target", "b"), request(100.1, "target"), request(100.5, "legacy")]
HEARD = [word(100.05, NEW - 1), word(100.3, NEW), word(100.2, NEW, "b")]


def judged(asked: list[Asked] = GOOD, heard: list[Sighting] = HEARD, **changes: Any) -> Any:
    values: dict[str, Any] = {"generation": NEW, "written_s": WRITTEN_S, "living": {"a", "b"}, "limit_s": 1.0}
    return judge_drill(asked, heard, **(values | changes))


def test_a_drill_passes_where_all_workers_followed_in_time_and_none_failed() -> None:
    found = judged()
    assert (found.passed, found.reasons) == (True, ())
    assert found.workers == pytest.approx({"a": 0.3, "b": 0.2})
    assert found.seconds == pytest.approx(
        0.3
    )  # what was begun at 100.1 s is the target's: 100.3 s is the first after it
    assert (found.by_target, found.late, found.requests, found.failed) == (2, 1, 4, 0)
    assert found.tokens == {"legacy": {"input": 20, "output": 5}, "target": {"input": 60, "output": 15}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"asked": [*GOOD, Asked(101.0, problem="500: boom")]}, "1 of 5 requests failed, the first one: 500: boom"),
        ({"asked": GOOD[2:]}, "the target answered no request before the roll back"),
        ({"asked": GOOD[:3]}, "legacy answered no request after the roll back"),
        ({"living": {"a", "b", "c"}}, "not seen to follow: workers c"),
        ({"heard": [*HEARD, word(101.0, NEW - 1, "b")]}, "not seen to follow: workers b"),
        ({"asked": [*GOOD, request(101.0, "target", "b", NEW)]}, "not seen to follow: workers b"),
        ({"limit_s": 0.25}, "it took 0.30 s, at most 0.25 s is allowed"),
        ({"asked": [], "heard": [], "living": set()}, "not seen to follow: workers all"),
    ],
)
def test_one_thing_amiss_fails_the_drill(change: dict[str, Any], reason: str) -> None:
    found = judged(**change)
    assert not found.passed
    assert any(each.startswith(reason) for each in found.reasons), found.reasons


def test_an_answer_by_legacy_under_the_old_route_is_no_roll_back() -> None:
    """The target failed and legacy rescued the request."""
    assert is_old(word(100.1, NEW - 1)._replace(served="legacy"), NEW)
    rescued = [*GOOD[:2], request(100.4, "legacy", generation=NEW - 1), request(100.6, "legacy")]
    assert judged(asked=rescued).workers["a"] == pytest.approx(0.6)


@given(
    st.lists(
        st.builds(
            Sighting,
            st.floats(90, 110),
            st.sampled_from(["a", "b"]),
            st.sampled_from([NEW - 1, NEW]),
            st.sampled_from([None, "legacy", "target"]),
        )
    )
)
def test_the_time_told_is_never_before_the_last_sign_of_the_target(seen: list[Sighting]) -> None:
    times = follow_times(seen, generation=NEW, written_s=WRITTEN_S)
    for each in seen:
        if each.at_s >= WRITTEN_S:
            time = times[each.worker]
            if is_old(each, NEW) and time is not None:
                assert WRITTEN_S + time >= each.at_s - 1e-9
